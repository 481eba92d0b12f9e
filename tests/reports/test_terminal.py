"""Faults reported with control codes of texts and names in a terminal; comments describe the reports."""

from __future__ import annotations

import ast
import contextlib
import io
import json
import os
import shutil
from pathlib import Path

import pytest

from makemore import cli
from makemore.cli.terminal import escape_control_chars
from makemore.runs.directory import RunDir
from tests.cli.conftest import Result, call, words
from tests.cli.conftest import trained_runs as trained_runs
from tests.cli.conftest import work as work

TITLE = "\x1b]0;owned\x07"
"""Sets the window's title in most terminals."""
HOSTILE = (TITLE, "\x1b[2J", "\x9b2J", "\x07", "\u202e")
posix = pytest.mark.skipif(os.name != "posix", reason="Windows allows no control characters in file names")


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def call_on_terminal(*arguments: object) -> Result:
    out, err = Terminal(), Terminal()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        status = cli.run([str(a) for a in arguments])
    return Result(status, out.getvalue(), err.getvalue())


def hostile_codes(output: str) -> list[str]:
    return [code for code in HOSTILE if code in output]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two runs whose names and texts hold control codes."""
    path = tmp_path_factory.mktemp("hostile")
    lines = [f"{line}{TITLE}\x9b2J\u202e" for line in words(60).splitlines()]
    (path / f"text{TITLE}.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
    for mode in ("lines", "text"):
        result = call_on_terminal(
            *("train", path / f"text{TITLE}.txt", "-m", "count", "--mode", mode),
            *("--out", path / f"{mode}{TITLE}"),
        )
        assert result.status == 0, result
        assert not hostile_codes(result.out + result.err)
        assert r"\x1b]0;owned\x07" in result.out
    return path


# A text or a shared checkpoint that sets the window's title or clears the screen (CVE-2003-0063).
@posix
@pytest.mark.parametrize(
    "command",
    [
        ["sample", "LINES"],
        ["sample", "TEXT"],
        ["sample", "TEXT", "-n", "2", "--json"],
        ["sample", "LINES", "--show-probs", "-n", "2"],
        ["sample", "LINES", "--report", "-n", "5"],
        ["sample", "LINES", "-p", "\x1b[2J\x07\u0436"],
        ["eval", "LINES"],
        ["eval", "LINES", "FILE", "--json"],
        ["score", "TEXT", "FILE"],
        ["score", "LINES", "FILE", "--against", "LINES"],
        ["compare", "LINES"],
        ["compare", "LINES", "--csv"],
        ["compare", "LINES", "--markdown"],
        ["tokenize", "FILE"],
        ["tokenize", "FILE", "-t", "byte"],
        ["doctor", "FILE", "--no-compile"],
        ["check", "LINES"],
        ["check", "FILE"],
        ["train", "FILE", "-m", "bigram", "--steps", "5", "--out", "NEW", "--overwrite"],
        ["mix", "LINES", "LINES", "--out", "NEW2", "--overwrite"],
        ["export", "LINES", "-f", "arpa", "--overwrite"],
        ["inspect", "LINES"],
        ["lr-find", "FILE", "-m", "bigram", "--steps", "10"],
        ["models", TITLE],
        ["data", TITLE],
        ["gradcheck", TITLE],
        ["import", "FILE", "FILE"],
        ["play", "FILE"],
    ],
    ids=" ".join,
)
def test_control_codes_never_reach_the_terminal(folder, monkeypatch, command):
    monkeypatch.chdir(folder)
    paths = {"FILE": f"text{TITLE}.txt", "LINES": f"lines{TITLE}", "TEXT": f"text{TITLE}"}
    new = {"NEW": f"new{TITLE}", "NEW2": f"mix{TITLE}"}
    result = call_on_terminal(*((paths | new).get(part, part) for part in command))
    assert result.status in (0, 2), result.err
    assert not hostile_codes(result.out + result.err), result
    if "--json" in command:
        json.loads(result.out)


@posix
def test_samples_in_a_pipe_are_raw_and_messages_are_not(folder, monkeypatch):
    monkeypatch.chdir(folder)
    assert TITLE in call("sample", f"lines{TITLE}", "-n", "20").out
    result = call("train", f"text{TITLE}.txt", "-m", "count", "--out", f"lines{TITLE}", "--overwrite")
    assert TITLE in result.out
    assert not hostile_codes(result.err)
    for command in ("check", "inspect"):
        assert not hostile_codes(call(command, f"lines{TITLE}").out)


@posix
def test_a_strangers_settings_are_escaped(folder, monkeypatch):
    monkeypatch.chdir(folder)
    run = RunDir(Path(f"text{TITLE}"))
    config = run.read_config()
    corpus = config.corpus.replace(encoding=f"utf{TITLE}")
    text = config.text.model_copy(update={"paths": (f"/nowhere{TITLE}",)})
    changes = {"tokenizer": f"char{TITLE}", "corpus": corpus, "text": text}
    run.write_config(config.model_copy(update=changes))
    try:
        for command in (["eval"], ["compare"], ["check"], ["inspect"], ["sample", "--report"]):
            result = call_on_terminal(command[0], run.path, *command[1:])
            assert not hostile_codes(result.out + result.err), result
    finally:
        run.write_config(config)


@posix
def test_pages_show_control_codes_as_symbols(folder, monkeypatch):
    monkeypatch.chdir(folder)
    lines, text = f"lines{TITLE}", f"text{TITLE}.txt"
    assert call("score", lines, text, "--html", "score.html").status == 0
    assert call("compare", lines, "--html", "compare.html").status == 0
    assert call("inspect", lines, "--out", "pictures").status == 0
    for page in ("score.html", "compare.html", *Path("pictures").glob("*.html")):
        content = Path(page).read_text(encoding="utf-8")
        assert not hostile_codes(content)
        assert "␛]0;owned␇" in content


@posix
def test_a_name_of_several_lines_forges_no_row(folder, monkeypatch):
    monkeypatch.chdir(folder)
    shutil.copytree(f"lines{TITLE}", "a\n| best | 0.1 |")
    for flag in ([], ["--markdown"]):
        output = call("compare", "a\n| best | 0.1 |", *flag).out
        assert r"a\n" in output
        assert not [line for line in output.splitlines() if line.startswith("| best")]


def test_text_in_any_script_is_not_escaped():
    assert escape_control_chars("naïve\tпривет　漢字\n👩\u200d👧 می\u200cخواهم\u00a0!") == (
        "naïve\tпривет　漢字\n👩\u200d👧 می\u200cخواهم\u00a0!"
    )
    assert escape_control_chars("\x1b\x9b\u202e\x00\ud800") == r"\x1b\x9b\u202e\x00\ud800"


def test_commands_print_only_through_the_terminal_module():
    """No command calls print or writes to a stream itself, so none can forget to escape."""
    folder = Path(cli.__file__).parent
    for path in folder.rglob("*.py"):
        if path.name in ("terminal.py", "console.py"):
            continue
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call):
                called = ast.unparse(node.func)
                assert called not in ("print", "typer.echo"), f"{path}: {called}"
                assert not called.endswith(("stdout.write", "stderr.write")), f"{path}: {called}"
            if isinstance(node, ast.ImportFrom) and node.module == "rich.console":
                assert "Console" not in [name.name for name in node.names], path


def test_tables_hold_no_escaped_styles_where_colours_are_forced(work, monkeypatch):
    """FORCE_COLOR=1, as continuous integration sets it, turned a table's head into ``\\x1b[1m``."""
    monkeypatch.setenv("FORCE_COLOR", "1")
    for command in (
        ["compare", "lines", "text", "--file", "words.txt"],
        ["runs", "."],
        ["gradcheck"],
        ["models"],
    ):
        result = call(*command)
        assert "\\x1b" not in result.out + result.err, command
