"""``makemore models``."""

from __future__ import annotations

import typer

from makemore.cli.options import JSON, print_json


def command(
    name: str | None = typer.Argument(None, help="Model whose settings to list (default: list all models)."),
    json: bool = JSON,
) -> None:
    """List the models, or the settings of one."""
    from makemore.models.catalogue import READ_ONLY_MODELS, list_models, model_settings

    if name is None:
        rows = list_models()
        if json:
            print_json({"models": rows, "to_read": READ_ONLY_MODELS})
            return
        width = max(len(row["name"]) for row in rows)
        for row in rows:
            print(f"{row['name']:<{width}}  {row['summary']}")
        print("\nread first:")
        for row in READ_ONLY_MODELS:
            print(f"{row['name']:<{width}}  {row['summary']}")
        print("\nsettings of a model: makemore models NAME")
        return
    settings = model_settings(name)
    if json:
        print_json({"model": name, "settings": settings})
        return
    for row in settings:
        print(f"model.{row['name']}={row['default']}  {row['help']}")
