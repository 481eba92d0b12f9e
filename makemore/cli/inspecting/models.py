"""``makemore models``."""

from __future__ import annotations

import typer

from makemore.cli.options import JSON, print_json


def command(
    name: str | None = typer.Argument(None, help="A rung, for its settings (default: all rungs)."),
    json: bool = JSON,
) -> None:
    """List the rungs of the ladder, or one rung's settings."""
    from makemore.models.catalogue import TO_READ, rungs, settings_of

    if name is None:
        rows = rungs()
        if json:
            print_json({"models": rows, "to_read": TO_READ})
            return
        width = max(len(row["name"]) for row in rows)
        for row in rows:
            print(f"{row['name']:<{width}}  {row['summary']}")
        print("\nto read before the others:")
        for row in TO_READ:
            print(f"{row['name']:<{width}}  {row['summary']}")
        print("\nsettings of one: makemore models NAME")
        return
    settings = settings_of(name)
    if json:
        print_json({"model": name, "settings": settings})
        return
    for row in settings:
        print(f"model.{row['name']}={row['default']}  {row['help']}")
