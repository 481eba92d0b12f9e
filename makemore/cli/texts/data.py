"""``makemore data``."""

from __future__ import annotations

import typer

from makemore.cli.options import JSON
from makemore.cli.terminal import echo, print_json


def command(
    name: str | None = typer.Argument(None, help="Data set to download (default: list them)."),
    json: bool = JSON,
) -> None:
    """List the data sets, or download one."""
    from makemore.corpus.datasets import BUNDLED, DATASETS, bundled_file, download

    if name is None:
        descriptions = {BUNDLED: f"bundled with makemore: {bundled_file()}"}
        descriptions |= {key: f"{dataset.about}: makemore data {key}" for key, dataset in DATASETS.items()}
        if json:
            print_json({"datasets": descriptions})
            return
        for key, text in descriptions.items():
            echo(f"{key:<12}  {text}")
        return
    path, fetched = download(name)
    if json:
        print_json({"name": name, "path": str(path), "fetched": fetched})
        return
    echo(f"{'fetched' if fetched else 'already downloaded'}: {path}", err=True)
    echo(str(path))
