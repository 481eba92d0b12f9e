"""Any text, encoding, prompt, setting or command line is accepted or refused in one line: never a traceback,
never exit status 1, never an unrelated file changed."""

from __future__ import annotations

import contextlib
import string
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from makemore.errors import UserError
from makemore.models import MODELS
from makemore.settings import TrainConfig
from makemore.settings.base import setting_names
from makemore.training.observers import Observer
from makemore.training.planning import prepare
from makemore.training.request import TrainRequest
from makemore.training.trainer import Trainer
from tests.cli.conftest import Result, call, words
from tests.reliability.fuzzing import (
    ENCODINGS,
    ASGIApp,
    RestorableRun,
    check_request,
    check_run_directory,
    check_text,
    play_app,
)

pytestmark = pytest.mark.slow

CHARS = "bdkl" + "aei" + " \t\r\n\0\x1b\u2028\ufeff\u0301é漢🙂\ud800" + string.printable


def examples(number: int) -> Callable[[Any], Any]:
    """Hypothesis settings: a fixed number of examples, the same ones in every run."""
    checks = [HealthCheck.function_scoped_fixture, HealthCheck.too_slow, HealthCheck.data_too_large]
    return settings(
        max_examples=number, deadline=None, derandomize=True, database=None, suppress_health_check=checks
    )


@pytest.fixture(scope="module")
def work(tmp_path_factory) -> Iterator[Path]:
    """The current folder: a text, and a finished run in each mode."""
    folder = tmp_path_factory.mktemp("hostile")
    (folder / "words.txt").write_text(words(60), encoding="utf-8")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        for mode in ("lines", "text"):
            begin = ["--mode", mode, "--out", mode, "--device", "cpu"]
            assert call("train", "words.txt", "-m", "count", *begin).status == 0
        yield folder


@pytest.fixture(scope="module")
def restorable_run(tmp_path_factory) -> RestorableRun:
    return RestorableRun(tmp_path_factory.mktemp("restorable_run"))


@pytest.fixture(scope="module")
def app(tmp_path_factory) -> ASGIApp:
    return play_app(tmp_path_factory.mktemp("play"))


def file_stats(folder: Path) -> dict[Path, tuple[int, int]]:
    """Size and modification time of every file."""
    stats = ((p, p.stat()) for p in folder.rglob("*"))
    return {p: (info.st_size, info.st_mtime_ns) for p, info in stats}


def assert_handled(result: Result) -> None:
    assert "Traceback" not in result.err
    assert result.status in (0, 2), result
    if result.status == 2:
        assert result.err.count("makemore: ") == 1 or "Usage" in result.err, result
        assert "\x1b" not in result.err


@examples(500)
@given(st.binary(max_size=200))
@example(b"\0\0\0\1\0\0\r\n\r\n")
def test_texts_of_arbitrary_bytes(tmp_path, data):
    check_text(data, tmp_path)


@examples(500)
@given(st.sampled_from(ENCODINGS), st.text(CHARS, max_size=60), st.integers(0, 1023))
def test_texts_in_every_encoding(tmp_path, encoding, content, choices):
    try:
        data = content.encode(encoding)
    except (LookupError, UnicodeError):
        data = content.encode("utf-8", errors="surrogatepass")
    prefix = (0, ENCODINGS.index(encoding), choices % 2, choices // 2 % 3, choices // 6 % 5, choices & 1)
    check_text(bytes(prefix) + data, tmp_path)


@examples(200)
@given(st.binary(min_size=4, max_size=60))
@example(
    b"\0\0z\x0f\0\x077\x1e\xf9\xb5(\x08\x04" + bytes(15)
)  # these were found by the fuzzer: first, a split that is a number
@example(b"\1\0z\x0f\xf6\xe8A\0\1\0\xf7d")  # a config without a time
@example(b"zJ7bf\x04J7bf\x04\xff0y\0\0??\x04\xff0y8\xff\x01")  # a state without its best weights
@example(b"\0\0\x0e" + b"\x97" * 10 + b"J")  # a wrong value put into itself
@example(b"\1\0\1\0\xff0\n")  # an encoding's name with a zero byte
@example(b"\0\x81\x0e" + b"\xf8" * 23 + b"\nJ")  # a state whose copy of the config isn't one
def test_damaged_run_directories(restorable_run, data):
    check_run_directory(data, restorable_run)


@examples(500)
@given(st.binary(max_size=24))
@example(bytes([0, 0, 7]))  # the client disconnects
@example(bytes([0, 0, 0, 1, 1]))  # 100,000 brackets
@example(bytes([0, 0, 0, 2, 0, 2, 16]))  # the smallest temperature
def test_play_requests(app, data):
    check_request(data, app)


@examples(500)
@given(
    st.sampled_from(["lines", "text"]),
    st.text(CHARS, max_size=20),
    st.lists(
        st.sampled_from(
            [
                "--greedy --json --novel-only --show-probs --report",
                "--temperature --top-k --top-p --min-p --beam --max-new-tokens --seed --stop --unknown",
            ]
        ).flatmap(lambda options: st.sampled_from(options.split())),
        max_size=3,
        unique=True,
    ),
    st.sampled_from(["-1", "0", "0.5", "1", "2", "nan", "inf", "1e400", "x", "", "skip", "9" * 30]),
)
def test_prompts_and_sampling_options(work, run, prompt, options, value):
    before = file_stats(work)
    flags = ("--greedy", "--json", "--novel-only", "--show-probs", "--report")
    arguments = [part for option in options for part in ([option] if option in flags else [option, value])]
    if "--max-new-tokens" not in arguments:
        arguments += ["--max-new-tokens", "5"]
    if "9" * 30 not in arguments or "--max-new-tokens" not in options:
        assert_handled(call("sample", run, "-n", "1", f"--prompt={prompt}", *arguments))
    assert file_stats(work) == before


VALUES = [
    -1,
    0,
    1,
    2,
    3,
    0.5,
    -0.1,
    1.5,
    10**13,
    10**30,
    1e308,
    "nan",
    "inf",
    "-inf",
    "",
    "x",
    "none",
    "true",
]
KEYS = [f"train.{name}" for name in setting_names(TrainConfig)] + [
    f"model.{name}" for kind in MODELS for name in MODELS.get(kind).Config.model_fields
]


@examples(800)
@given(
    st.sampled_from(list(MODELS)),
    st.dictionaries(st.sampled_from(KEYS), st.sampled_from(VALUES) | st.text(CHARS, max_size=6), max_size=3),
)
def test_settings_with_odd_values(work, name, values):
    settings = tuple(f"{key}={value}" for key, value in values.items())
    before = file_stats(work)
    with contextlib.suppress(UserError):
        prepare(TrainRequest(input="words.txt", model=name, out=work / "none", settings=settings), Observer())
    assert file_stats(work) == before


WORDS = """
words.txt lines text nowhere . .. / --json --help --split val --out new --overwrite --resume --set
model.n_embd=8 train.steps=1 --steps 1 --max-time 1s -m bigram count mlp nope --seed --tokenizer byte char
bpe:260 bpe:-1 --mode --config --dtype bfloat16 --stride --on-divergence rollback --device cpu cuda
--compile --no-compile --encoding utf-16 --prompt
""".split()  # noqa: SIM905 - a list would take half a page
COMMANDS = ("train", "eval", "sample", "check", "mix", "tokenize", "models", "nope", "--version", "")


@examples(250)
@given(
    st.sampled_from(COMMANDS),
    st.lists(st.sampled_from(WORDS) | st.text(CHARS, max_size=5), max_size=6),
)
def test_random_command_lines(work, command, arguments):
    """Training ends after one step, whatever the arguments."""
    if command == "train":
        arguments = [*arguments, "--out", "new", "--steps", "1", "--no-compile"]
    before = file_stats(work)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Trainer, "progress", property(lambda self: float(self.step >= 1)))
        patch.setenv("COLUMNS", "80")
        assert_handled(call(command, *arguments))
    after = file_stats(work)
    written = {p for p in before.keys() | after.keys() if before.get(p) != after.get(p)}
    assert all(p.relative_to(work).parts[0] in ("new", "checkpoints") for p in written), written
