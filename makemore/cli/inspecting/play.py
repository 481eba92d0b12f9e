"""``makemore play``."""

from __future__ import annotations

import sys
from pathlib import Path

import typer

from makemore.cli.options import DEVICE


def command(
    runs: list[Path] = typer.Argument(..., metavar="RUN...", help="Run directories, to switch between."),
    port: int = typer.Option(0, "--port", min=0, max=65535, help="Port on 127.0.0.1 (default: a free one)."),
    open: bool = typer.Option(False, "--open", help="Open the page in the browser."),
    device: str = DEVICE,
) -> None:
    """A page on this machine: type, see what comes next, sample, compare runs. Ctrl-C ends it."""
    import importlib.util

    from makemore.errors import UserError

    missing = [name for name in ("starlette", "uvicorn") if importlib.util.find_spec(name) is None]
    if missing:
        raise UserError(f"play needs {' and '.join(missing)}: pip install 'makemore[play]'")
    import secrets
    import webbrowser

    from makemore.play.server import HOST, listen, make_app, serve
    from makemore.runs.run import load

    loaded = {str(path): load(path, device) for path in runs}
    token = secrets.token_urlsafe(24)
    listener = listen(port)
    address = f"http://{HOST}:{listener.getsockname()[1]}/#{token}"
    print(address, flush=True)
    print("Ctrl-C ends it", file=sys.stderr)
    if open:
        webbrowser.open(address)
    try:
        serve(make_app(loaded, token), listener)
    except KeyboardInterrupt:
        print("ended", file=sys.stderr)
