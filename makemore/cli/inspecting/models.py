"""``makemore models``."""

from __future__ import annotations

import typer

from makemore.cli.options import JSON, print_json


def command(
    name: str | None = typer.Argument(None, help="Model whose settings to list (default: list all models)."),
    json: bool = JSON,
) -> None:
    """List the models, or the settings of one."""
    from makemore.models.catalogue import TO_READ, rungs, settings_of

    if name is None:
        rows = rungs()
        if json:
            print_json({"models": rows, "to_read": TO_READ})
            return
        width = max(len(row["name"]) for row in rows)
        for row in rows:
            print(f"{row['name']:<{width}}  {row['summary']}")
        print("\nread first:")
        for row in TO_READ:
            print(f"{row['name']:<{width}}  {row['summary']}")
        print("\nsettings of a model: makemore models NAME")
        return
    settings = settings_of(name)
    if json:
        print_json({"model": name, "settings": settings})
        return
    for row in settings:
        print(f"model.{row['name']}={row['default']}  {row['help']}")
