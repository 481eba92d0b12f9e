"""The command line: one file per command, without logic."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
from collections.abc import Callable, Sequence
from typing import Any, TextIO, cast

import typer
import typer.core

from makemore import __version__
from makemore.cli.exchange import export, importing
from makemore.cli.inspecting import check, gradcheck, inspect, models, play, runs
from makemore.cli.measuring import compare, evaluate, score
from makemore.cli.signals import Terminated, exit_soon, install_signal_handlers
from makemore.cli.terminal import echo
from makemore.cli.texts import data, doctor, tokenize
from makemore.cli.training import lr_find, mix, sample, train
from makemore.errors import UserError
from makemore.runtime import distributed
from makemore.runtime.process import tune_process

tune_process()

COMMANDS: dict[str, dict[str, Callable[..., None]]] = {
    "Train and sample": {
        "train": train.command,
        "sample": sample.command,
        "mix": mix.command,
        "lr-find": lr_find.command,
    },
    "Measure and compare": {
        "eval": evaluate.command,
        "score": score.command,
        "compare": compare.command,
    },
    "Look inside": {
        "inspect": inspect.command,
        "play": play.command,
        "runs": runs.command,
        "models": models.command,
        "check": check.command,
        "gradcheck": gradcheck.command,
    },
    "Texts and tokens": {
        "data": data.command,
        "doctor": doctor.command,
        "tokenize": tokenize.command,
    },
    "Exchange with other programs": {
        "export": export.command,
        "import": importing.command,
    },
}
"""Every command, in the groups of ``makemore --help``."""
MAX_MESSAGE = 1000
"""Maximum length of an error message in characters."""


class GroupedHelp(typer.core.TyperGroup):
    """Lists the commands in groups."""

    def format_commands(self, ctx: Any, formatter: Any) -> None:
        width = max(len(name) for group in COMMANDS.values() for name in group)
        for title, group in COMMANDS.items():
            with formatter.section(title):
                limit = formatter.width - width - 6
                rows = [(f"{name:<{width}}", self.commands[name].get_short_help_str(limit)) for name in group]
                formatter.write_dl(rows)


app = typer.Typer(
    cls=GroupedHelp,
    help="Train, score, sample and compare small language models on any text file.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)
for group in COMMANDS.values():
    for name, command in group.items():
        app.command(name)(command)


# Depending on its version, typer bundles click or uses the installed one.
ClickException = cast(
    type[typer.BadParameter],
    next(kind for kind in typer.BadParameter.__mro__ if kind.__name__ == "ClickException"),
)


def _version(show: bool) -> None:
    if show:
        echo(f"makemore {__version__}")
        raise typer.Exit


@app.callback()
def root(
    version: bool = typer.Option(
        False, "--version", callback=_version, is_eager=True, help="Show the version and exit."
    ),
) -> None:
    """Group callback: handles --version only."""


def _fail(message: str, status: int = 2) -> int:
    line = " ".join(message.split())
    if len(line) > MAX_MESSAGE:  # it quotes a long argument; the end says what to do
        line = f"{line[: MAX_MESSAGE // 2]} … {line[-MAX_MESSAGE // 2 :]}"
    if distributed.reports_errors():
        with contextlib.suppress(OSError):
            echo(f"makemore: {line}", err=True)
    return status


def _redirect_to_devnull(stream: TextIO) -> None:
    """Python's flush at exit would otherwise fail on the broken stream."""
    with contextlib.suppress(OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


def run(arguments: Sequence[str]) -> int:
    """Run a command line; returns the exit status: 0 success, 2 user error, 130/143 stopped by a signal."""
    try:
        status = app(list(arguments), prog_name="makemore", standalone_mode=False)
        sys.stdout.flush()
        return status if isinstance(status, int) else 0
    except UserError as error:
        return _fail(str(error))
    except ClickException as error:
        if type(error).__name__ == "NoArgsIsHelpError":
            echo(error.format_message(), err=True)
            return 2
        return _fail(error.format_message())
    except (KeyboardInterrupt, typer.Abort):
        return _fail("stopped", 130)
    except Terminated:
        return _fail("stopped", 143)
    except (BrokenPipeError, SystemExit) as error:
        # Click turns BrokenPipeError into SystemExit.
        if isinstance(error, SystemExit) and not isinstance(error.__context__, BrokenPipeError):
            raise
        _redirect_to_devnull(sys.stdout)  # the reader, such as head, closed the pipe
        return 0
    except UnicodeEncodeError as error:  # a lone surrogate, as a Windows path may contain
        return _fail(f"{error.object!r} is not valid text: {error.reason}")
    except OSError as error:
        if error.errno is None:
            raise
        if error.filename is not None:
            return _fail(f"{error.filename}: {error.strerror}")
        _redirect_to_devnull(sys.stdout)
        return _fail(f"can't write the output: {error.strerror}")
    except (MemoryError, RuntimeError) as error:
        from makemore.runtime.device import is_out_of_memory

        if not is_out_of_memory(error):
            raise
        return _fail("out of memory; reduce the batch or request size, or use a smaller model")


def _open_closed_streams() -> None:
    """Open the null device in place of closed standard streams (``2>&-``): other files would otherwise get
    their numbers, and messages of C libraries would end up in them."""
    while (number := os.open(os.devnull, os.O_RDWR)) <= 2:
        pass
    os.close(number)
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, mode, encoding="utf-8"))  # noqa: SIM115 - open until exit


def main(command: str | None = None) -> None:
    """Entry point of ``makemore``; ``command`` is prepended to the arguments, for train.py and sample.py."""
    _open_closed_streams()
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(encoding="utf-8", errors="backslashreplace")
    install_signal_handlers()
    try:
        os.getcwd()
    except OSError:
        sys.exit(_fail("the working directory doesn't exist any more; change to another one"))
    status = run([command, *sys.argv[1:]] if command else sys.argv[1:])
    try:
        sys.stderr.flush()
    except OSError:
        _redirect_to_devnull(sys.stderr)
    # An exception would be shown while Python shuts down.
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    if status > 128:
        exit_soon(status)
    sys.exit(status)
