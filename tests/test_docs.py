"""The documentation: commands parse, the CLI reference is current, links resolve."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest
import typer

from makemore.cli import app
from makemore.models import MODELS
from tests.scripts import loaded

ROOT = Path(__file__).resolve().parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]


def unwrap_torchrun(line: str) -> str:
    """The `makemore train` command that a torchrun line starts in each process; other lines unchanged."""
    words = shlex.split(line) if "torchrun " in line and "…" not in line else []
    if "torchrun" not in words:
        return line
    from torch.distributed.run import get_args_parser

    launch = get_args_parser().parse_args(words[words.index("torchrun") + 1 :])
    assert launch.training_script == "train.py", line
    return shlex.join(["makemore", "train", *launch.training_script_args])


def commands() -> list[tuple[str, str]]:
    """(page, command line) of every `makemore …` line in a code block or in backticks."""
    candidates = []
    for page in PAGES:
        text = page.read_text(encoding="utf-8")
        for block in re.findall(r"```[a-z]*\n(.*?)```", text, flags=re.DOTALL):
            candidates += [(page.name, line.strip().removeprefix("!")) for line in block.splitlines()]
        candidates += [(page.name, line) for line in re.findall(r"`(makemore \w+ [^`]+)`", text)]
    lines = [(page, line.partition("  #")[0].strip()) for page, line in candidates]
    lines = [(page, unwrap_torchrun(line)) for page, line in lines]
    # COMMAND and … are placeholders.
    runnable = [(p, c) for p, c in lines if c.startswith("makemore ") and "…" not in c and "COMMAND" not in c]
    return sorted({(p, c) for p, c in runnable if p != "cli.md"})


@pytest.mark.parametrize(
    ("command", "extra"),
    [(r"makemore play", "play"), (r"--format onnx", "onnx"), (r"--tensorboard\b", "tensorboard")],
)
def test_pages_with_commands_that_need_an_extra_install_it(command, extra):
    """Pages that install the project and use an extra name it; others needn't repeat the installation."""
    for page in PAGES:
        text = page.read_text(encoding="utf-8")
        installs = re.findall(r"pip install -e \S+", text)
        if installs and re.search(command, text):
            assert any(f"{extra}]" in install or f"{extra}," in install for install in installs), page


def test_commands_are_found():
    assert len(commands()) > 20


@pytest.mark.parametrize(("page", "line"), commands(), ids=lambda value: str(value)[:60])
def test_every_command_parses(page, line):
    group = typer.main.get_command(app)
    name, *arguments = shlex.split(line.replace("{TEXT}", "names"))[1:]
    assert name in group.commands, line
    context = group.commands[name].make_context(name, arguments)
    model = context.params.get("model")
    assert model is None or model in MODELS
    context.close()


def test_cli_reference_is_current():
    with loaded("docs/make_cli.py") as module:
        reference = module.reference()
    written = (ROOT / "docs" / "cli.md").read_text(encoding="utf-8")
    assert written == reference, "run: python docs/make_cli.py"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_resolve(page):
    for target in re.findall(r"\]\(([^)#]+)[^)]*\)", page.read_text(encoding="utf-8")):
        if not target.startswith("http"):
            assert (page.parent / target).exists(), target


def test_every_model_has_a_page():
    for name in MODELS:
        assert (ROOT / "docs" / "ladder" / f"{name}.md").exists(), name
