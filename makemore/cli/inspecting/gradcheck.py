"""``makemore gradcheck``."""

from __future__ import annotations

import typer

from makemore.cli.options import JSON
from makemore.cli.terminal import echo, print_json


def command(
    model: str = typer.Argument("batchnorm-mlp", help="Model with a hand-written backward pass."),
    settings: list[str] = typer.Option([], "--set", help="A setting, such as model.n_layer=3; repeatable."),
    seed: int = typer.Option(0, "--seed", help="Random seed of weights and batch."),
    json: bool = JSON,
) -> None:
    """Check hand-written gradients against autograd.

    Finite differences are a second reference. All arithmetic is in float64.
    """
    from makemore.cli.tables import gradcheck_table
    from makemore.inspection.gradcheck import check_gradients

    rows = check_gradients(model, tuple(settings), seed)
    if json:
        print_json({"model": model, "rows": rows})
    else:
        echo(gradcheck_table(rows))
    if not all(row.approximate for row in rows):
        raise typer.Exit(1)
