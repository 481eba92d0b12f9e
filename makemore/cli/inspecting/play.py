"""``makemore play``."""

from __future__ import annotations

from pathlib import Path

import typer

from makemore.cli.options import DEVICE
from makemore.cli.terminal import echo


def command(
    runs: list[Path] = typer.Argument(..., help="Run directories to choose from."),
    port: int = typer.Option(0, "--port", min=0, max=65535, help="Port on 127.0.0.1; 0 picks a free one."),
    open: bool = typer.Option(False, "--open", help="Open the page in a browser."),
    device: str = DEVICE,
) -> None:
    """Explore runs on a local web page.

    Shows next-token probabilities as you type, draws samples and compares runs. Ctrl-C stops the server.
    """
    from makemore.errors import require_packages

    require_packages("play", ("starlette", "uvicorn"), extra="play")
    import secrets
    import webbrowser

    from makemore.play.server import HOST, listen, make_app, serve
    from makemore.runs.run import load

    loaded = {str(path): load(path, device) for path in runs}
    token = secrets.token_urlsafe(24)
    listener = listen(port)
    address = f"http://{HOST}:{listener.getsockname()[1]}/#{token}"
    echo(address)
    echo("press Ctrl-C to stop", err=True)
    if open:
        webbrowser.open(address)
    try:
        serve(make_app(loaded, token), listener)
    except KeyboardInterrupt:
        echo("stopped", err=True)
