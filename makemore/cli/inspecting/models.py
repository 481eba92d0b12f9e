"""``makemore models``."""

from __future__ import annotations

import typer

from makemore.cli.options import JSON
from makemore.cli.terminal import echo, print_json


def command(
    name: str | None = typer.Argument(None, help="Model whose settings to list (default: list all models)."),
    json: bool = JSON,
) -> None:
    """List the models, or one model's settings."""
    from makemore.models.catalogue import READ_ONLY_MODELS, list_models, list_read_only_models, settings_for

    if name is None:
        rows = list_models()
        if json:
            print_json({"models": rows, "to_read": list_read_only_models()})
            return
        width = max(len(row["name"]) for row in rows)
        for row in rows:
            echo(f"{row['name']:<{width}}  {row['summary']}")
        echo("\nread first:")
        for row in list_read_only_models():
            echo(f"{row['name']:<{width}}  {row['summary']}")
        echo("\nsettings of a model: makemore models NAME")
        return
    if name in READ_ONLY_MODELS:
        if json:
            print_json({"model": name, "summary": READ_ONLY_MODELS[name]})
        else:
            echo(f"{name}: {READ_ONLY_MODELS[name]}\nit has no settings: it is to be read, not trained")
        return
    sections = settings_for(name)
    if json:
        print_json({"model": name, "settings": sections.pop("model"), **sections})
        return
    for section, rows in sections.items():
        for row in rows:
            echo(f"{section}.{row['name']}={row['default']}  {row['help']}")
    echo(f"\n{name}'s recipe changes some of these for the text and budget; --set and --config override it")
