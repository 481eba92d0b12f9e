"""The command line: one file per command, no logic in it."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Sequence
from typing import TextIO, cast

import typer

from makemore import __version__
from makemore.cli.exchange import export, importing
from makemore.cli.inspecting import check, gradcheck, inspecting, models, play
from makemore.cli.measuring import compare, evaluate, score
from makemore.cli.options import printable
from makemore.cli.signals import Terminated, heed_termination, leave_soon
from makemore.cli.texts import data, doctor, tokenize
from makemore.cli.training import lr_find, mix, sample, train
from makemore.errors import UserError
from makemore.runtime import distributed as parallel
from makemore.runtime.process import tune_process

tune_process()

app = typer.Typer(
    help="Train, score, sample and compare character-level language models on any text file.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.command("train")(train.command)
app.command("eval")(evaluate.command)
app.command("sample")(sample.command)
app.command("score")(score.command)
app.command("compare")(compare.command)
app.command("mix")(mix.command)
app.command("check")(check.command)
app.command("export")(export.command)
app.command("inspect")(inspecting.command)
app.command("import")(importing.command)
app.command("gradcheck")(gradcheck.command)
app.command("lr-find")(lr_find.command)
app.command("play")(play.command)
app.command("models")(models.command)
app.command("data")(data.command)
app.command("tokenize")(tokenize.command)
app.command("doctor")(doctor.command)


# Typer brings its own click or uses the installed one, depending on its version.
ClickException = cast(
    type[typer.BadParameter],
    next(kind for kind in typer.BadParameter.__mro__ if kind.__name__ == "ClickException"),
)


def _version(asked: bool) -> None:
    if asked:
        typer.echo(f"makemore {__version__}")
        raise typer.Exit


@app.callback()
def root(
    version: bool = typer.Option(
        False, "--version", callback=_version, is_eager=True, help="Show the version and exit."
    ),
) -> None:
    """Nothing to do before a command but to say the version."""


def _fail(message: str, status: int = 2) -> int:
    line = printable(" ".join(message.split()))
    if parallel.launched().rank == 0:
        with contextlib.suppress(OSError):
            print(f"makemore: {line}", file=sys.stderr)
    return status


def _abandon(stream: TextIO) -> None:
    """Nothing more may be written there, not even at exit."""
    with contextlib.suppress(OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


def _refused(error: OSError) -> int:
    """The system refuses something: a full disk, a file that may not be read."""
    if error.filename is not None:
        return _fail(f"{error.filename}: {error.strerror}")
    _abandon(sys.stdout)
    return _fail(f"can't write the output: {error.strerror}")


def run(arguments: Sequence[str]) -> int:
    """Run a command line; returns the exit status: 0 done, 2 the user's mistake, 130/143 stopped."""
    try:
        status = app(list(arguments), prog_name="makemore", standalone_mode=False)
        sys.stdout.flush()
        return status if isinstance(status, int) else 0
    except UserError as error:
        return _fail(str(error))
    except ClickException as error:
        if type(error).__name__ == "NoArgsIsHelpError":
            print(error.format_message(), file=sys.stderr)
            return 2
        return _fail(error.format_message())
    except (KeyboardInterrupt, typer.Abort):
        return _fail("stopped", 130)
    except Terminated:
        return _fail("stopped", 143)
    except (BrokenPipeError, SystemExit) as error:
        # Click makes a SystemExit of it.
        if isinstance(error, SystemExit) and not isinstance(error.__context__, BrokenPipeError):
            raise
        _abandon(sys.stdout)  # the reader (head, say) has had enough
        return 0
    except UnicodeEncodeError as error:  # half a character in an argument, which a path of Windows may have
        return _fail(f"{error.object!r} is no text: {error.reason}")
    except OSError as error:
        if error.errno is None:
            raise
        return _refused(error)
    except (MemoryError, RuntimeError) as error:
        from makemore.runtime.device import is_out_of_memory

        if not is_out_of_memory(error):
            raise
        return _fail("out of memory; ask for less at a time, or use a smaller model")


def main(command: str | None = None) -> None:
    """The ``makemore`` program; ``command`` is put first, for train.py and sample.py."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(encoding="utf-8", errors="backslashreplace")
    heed_termination()
    status = run([command, *sys.argv[1:]] if command else sys.argv[1:])
    try:
        sys.stderr.flush()
    except OSError:
        _abandon(sys.stderr)
    if status > 128:
        leave_soon(status)
    sys.exit(status)
