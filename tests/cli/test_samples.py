"""What ``makemore sample`` prints: samples alone, the same for a seed, one a line where lines are."""

from __future__ import annotations

import json

import pytest

from makemore.models import MODELS
from tests.cli.conftest import call, train

TRAINABLE = [name for name in MODELS if name != "mixture"]


def budget(model: str) -> list[str]:
    return [] if model == "count" else ["--steps", "3", "--no-compile"]


@pytest.mark.parametrize("model", TRAINABLE)
@pytest.mark.parametrize(("text", "mode"), [("words.txt", "lines"), ("prose.txt", "text")])
def test_a_seed_gives_the_same_samples(work, model, text, mode):
    train(text, "-m", model, "--mode", mode, "--out", "run", *budget(model))
    arguments = ["sample", "run", "-n", "4", "--max-new-tokens", "40", "--seed"]
    first, again, other = call(*arguments, "7"), call(*arguments, "7"), call(*arguments, "8")
    assert first.status == 0
    assert first.err == ""
    assert first == again
    assert first.out != other.out
    samples = json.loads(call(*arguments, "7", "--json").out)["samples"]
    separator = "\n" if mode == "lines" else "\n" + "-" * 40 + "\n"
    assert first.out == separator.join(samples) + "\n"
    assert set("".join(samples)) <= set((work / text).read_text())


@pytest.mark.parametrize("model", ["count", "bigram", "transformer"])
def test_bytes_make_no_second_line_in_a_line(work, model):
    train("words.txt", "-m", model, "--tokenizer", "byte", "--out", "run", *budget(model))
    samples = json.loads(call("sample", "run", "-n", "100", "--seed", "1", "--json").out)["samples"]
    assert len(samples) == 100
    assert not any("\n" in sample for sample in samples)
    assert call("sample", "run", "-n", "100", "--seed", "1").out.count("\n") == 100


def test_json_is_one_object(work):
    for arguments in (
        ["sample", "lines", "-n", "3"],
        ["eval", "lines"],
        ["compare", "lines"],
        ["score", "lines", "words.txt"],
        ["score", "lines", "words.txt", "--against", "lines"],
        ["models"],
        ["models", "mlp"],
        ["data"],
        ["train", "words.txt", "-m", "bigram", "--steps", "2", "--out", "new"],
        ["mix", "lines", "new", "--out", "mixed"],
        ["gradcheck"],
    ):
        result = call(*arguments, "--json")
        assert result.status == 0, result.err
        assert result.out.endswith("}\n")
        assert result.out.count("\n") == 1
        assert isinstance(json.loads(result.out), dict)


def test_the_dynamic_score_stands_apart(work):
    train("words.txt", "-m", "bigram", "--steps", "20", "--out", "new")
    plain = json.loads(call("eval", "new", "--json").out)
    both = json.loads(call("eval", "new", "--dynamic", "--json").out)
    dynamic = both.pop("dynamic")
    assert both == plain
    assert dynamic["tokens"] == plain["tokens"]
    assert dynamic["difference"] == pytest.approx(dynamic["bits_per_byte"] - plain["bits_per_byte"])
    assert "not comparable" in call("eval", "new", "--dynamic").out


def test_a_mixture_samples_by_seed(work):
    train("words.txt", "-m", "bigram", "--steps", "2", "--out", "new")
    assert call("mix", "lines", "new", "--out", "mixed").status == 0
    arguments = ["sample", "mixed", "-n", "4", "--seed", "7"]
    assert call(*arguments) == call(*arguments)


class TestPrompts:
    def test_come_first_in_every_sample(self, work):
        out = call("sample", "lines", "-n", "6", "--prompt", "ba", "--seed", "1").out
        assert len(out.splitlines()) == 6
        assert all(line.startswith("ba") for line in out.splitlines())

    def test_may_come_from_a_file_that_ends_in_a_newline(self, work):
        (work / "prompt.txt").write_bytes(b"ba\r\n")
        from_file = call("sample", "lines", "--prompt-file", "prompt.txt", "--seed", "1")
        assert from_file == call("sample", "lines", "--prompt", "ba", "--seed", "1")

    def test_of_one_character_may_come_from_a_file(self, work):
        (work / "prompt.txt").write_text("b")
        assert call("sample", "lines", "--prompt-file", "prompt.txt").status == 0

    def test_may_have_characters_never_seen_if_skipped(self, work):
        result = call("sample", "lines", "-n", "3", "--prompt", "Zbé", "--unknown", "skip", "--seed", "1")
        assert result.status == 0
        assert all(line.startswith("Zbé") for line in result.out.splitlines())
        continued = [line[3:] for line in result.out.splitlines()]
        known = call("sample", "lines", "-n", "3", "--prompt", "b", "--seed", "1").out.splitlines()
        assert continued == [line[1:] for line in known]

    def test_may_be_longer_than_any_context(self, work):
        train("prose.txt", "-m", "transformer", "--steps", "2", "--no-compile", "--out", "run")
        (work / "prompt.txt").write_text((work / "prose.txt").read_text() * 2)
        result = call("sample", "run", "--prompt-file", "prompt.txt", "--max-new-tokens", "5")
        assert result.status == 0
        assert len(result.out) <= 2 * len((work / "prose.txt").read_text()) + 6


def test_the_first_samples_do_not_depend_on_how_many(work):
    three = call("sample", "lines", "-n", "3", "--seed", "5").out
    assert call("sample", "lines", "-n", "300", "--seed", "5").out.startswith(three)


def test_greedy_takes_no_chances(work):
    out = call("sample", "lines", "-n", "3", "--greedy").out.splitlines()
    assert len(set(out)) == 1
    assert call("sample", "lines", "-n", "3", "--temperature", "0").out.splitlines() == out


def test_a_stop_string_and_what_follows_are_left_out(work):
    free = call("sample", "text", "--seed", "3").out
    stopped = call("sample", "text", "--seed", "3", "--stop", "salt").out
    assert "salt" in free
    assert stopped == free[: free.index("salt")] + "\n"


def test_the_longest_sample(work):
    out = call("sample", "text", "--max-new-tokens", "17", "--seed", "1").out
    assert len(out) == 18
