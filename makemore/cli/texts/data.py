"""``makemore data``."""

from __future__ import annotations

import sys

import typer

from makemore.cli.options import JSON, print_json


def command(
    name: str | None = typer.Argument(None, help="A data set to download (default: list them)."),
    json: bool = JSON,
) -> None:
    """List the data sets, or download one."""
    from makemore.corpus.datasets import DATASETS, SHIPPED, download, shipped_file

    if name is None:
        about = {SHIPPED: f"ships with makemore: {shipped_file()}"}
        about |= {key: f"{dataset.about}: makemore data {key}" for key, dataset in DATASETS.items()}
        if json:
            print_json({"datasets": about})
            return
        for key, text in about.items():
            print(f"{key:<12}  {text}")
        return
    path, fetched = download(name)
    if json:
        print_json({"name": name, "path": str(path), "fetched": fetched})
        return
    print(f"{'fetched' if fetched else 'already there'}: {path}", file=sys.stderr)
    print(path)
