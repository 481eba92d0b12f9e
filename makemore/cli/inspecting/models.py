"""``makemore models``."""

from __future__ import annotations

import typer

from makemore.cli.options import JSON
from makemore.cli.terminal import echo, print_json

SCHEMA = typer.Option(False, "--json-schema", help="Print the JSON schema of settings files, for editors.")


def command(
    name: str | None = typer.Argument(None, help="Model whose settings to list (default: list all models)."),
    schema: bool = SCHEMA,
    json: bool = JSON,
) -> None:
    """List the models, or one model's settings."""
    from makemore.models.catalogue import READ_ONLY_MODELS
    from makemore.runs.settings_help import json_schema, list_settings

    if schema:
        print_json(json_schema())
    elif name is None:
        _list_models(json)
    elif name in READ_ONLY_MODELS:
        if json:
            print_json({"model": name, "summary": READ_ONLY_MODELS[name]})
        else:
            echo(f"{name}: {READ_ONLY_MODELS[name]}\nit has no settings: it is to be read, not trained")
    elif json:
        print_json({"model": name, "settings": list_settings(name)})
    else:
        for row in list_settings(name):
            allowed = f"  ({row['allowed']})" if row["allowed"] else ""
            default = "none" if row["default"] is None else row["default"]
            echo(f"{row['name']}={default}{allowed}  {row['help']}")
        echo(
            f"\n{name}'s recipe changes some of these for the text and budget; --set and --config override it"
        )
        echo("a group may be left out: train.lr is train.optimizer.lr")


def _list_models(json: bool) -> None:
    from makemore.models import MODELS
    from makemore.models.catalogue import READ_ONLY_MODELS

    rows = [{"name": name, "summary": MODELS.get(name).summary} for name in MODELS]
    to_read = [{"name": name, "summary": summary} for name, summary in READ_ONLY_MODELS.items()]
    if json:
        print_json({"models": rows, "to_read": to_read})
        return
    width = max(len(row["name"]) for row in rows)
    for row in rows:
        echo(f"{row['name']:<{width}}  {row['summary']}")
    echo("\nread first:")
    for row in to_read:
        echo(f"{row['name']:<{width}}  {row['summary']}")
    echo("\nsettings of a model: makemore models NAME")
