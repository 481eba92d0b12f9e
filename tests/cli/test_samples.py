"""Output of ``makemore sample``: reproducible by seed, one sample per line in lines mode."""

from __future__ import annotations

import gzip
import io
import json
import sys

import pytest

from makemore.models import MODELS
from makemore.runs.run import load
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
def test_byte_samples_have_no_newline_in_lines_mode(work, model):
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


@pytest.mark.parametrize("model", ["bigram", "count", "context-mixing"])
def test_the_adaptive_score_is_reported_beside_the_frozen_one(work, model):
    train("words.txt", "-m", model, "--steps", "20", "--out", "new")
    frozen = json.loads(call("eval", "new", "--json").out)
    both = json.loads(call("eval", "new", "--adaptive", "--json").out)
    adaptive = both.pop("adaptive")
    assert both == frozen
    assert adaptive["tokens"] == frozen["tokens"]
    assert adaptive["nll"] != frozen["nll"]
    assert adaptive["difference"] == pytest.approx(adaptive["bits_per_byte"] - frozen["bits_per_byte"])
    low, high = adaptive["difference_ci95"]
    assert low is None or low <= adaptive["difference"] <= high
    assert "relative to the frozen score" in call("eval", "new", "--adaptive").out


@pytest.mark.parametrize("model", ["gru", "count", "context-mixing"])
def test_a_model_learns_from_its_prompt(work, model):
    train("prose.txt", "-m", model, "--steps", "5", "--out", "new", "--mode", "text")
    prompt = "dabber " * 60 + "dab"
    options = ("-p", prompt, "--max-new-tokens", "4", "--seed", "1", "--show-probs", "--json")

    def first_p(*more):
        out = json.loads(call("sample", "new", *options, *more).out)
        return {c["token"]: c["p"] for c in out["tokens"][0][0]["top"]}

    frozen, adaptive = first_p("--frozen"), first_p("--adaptive")
    assert frozen == first_p()
    assert adaptive != frozen
    texts = json.loads(call("sample", "new", *options[:-2], "--json", "--adaptive", "-n", "3").out)["samples"]
    assert len(texts) == 3
    assert all(text.startswith(prompt) for text in texts)


def test_adaptive_surprisal_falls_where_a_text_repeats_itself(work):
    frozen = json.loads(call("score", "lines", "--text", "kilobada\n" * 9, "--json").out)
    adaptive = json.loads(call("score", "lines", "--text", "kilobada\n" * 9, "--adaptive", "--json").out)
    assert (frozen["adaptive"], adaptive["adaptive"]) == (False, True)
    assert adaptive["spans"][0] == frozen["spans"][0]
    assert adaptive["spans"][-2]["bits"] < frozen["spans"][-2]["bits"]
    out = call("score", "lines", "--text", "kilobada", "--adaptive", "--against", "text")
    assert "lines" in (out.out + out.err)
    assert "by lines, adaptive: " in call("score", "lines", "--text", "kilobada", "--adaptive").out


def test_mixture_samples_are_reproducible(work):
    train("words.txt", "-m", "bigram", "--steps", "2", "--out", "new")
    assert call("mix", "lines", "new", "--out", "mixed").status == 0
    arguments = ["sample", "mixed", "-n", "4", "--seed", "7"]
    assert call(*arguments) == call(*arguments)


class TestPrompts:
    def test_every_sample_starts_with_the_prompt(self, work):
        out = call("sample", "lines", "-n", "6", "--prompt", "ba", "--seed", "1").out
        assert len(out.splitlines()) == 6
        assert all(line.startswith("ba") for line in out.splitlines())

    def test_final_newline_of_a_prompt_file_is_dropped(self, work):
        (work / "prompt.txt").write_bytes(b"ba\r\n")
        from_file = call("sample", "lines", "--prompt-file", "prompt.txt", "--seed", "1")
        assert from_file == call("sample", "lines", "--prompt", "ba", "--seed", "1")

    def test_prompt_file_may_be_compressed(self, work):
        (work / "prompt.txt.gz").write_bytes(gzip.compress(b"ba\n"))
        from_file = call("sample", "lines", "--prompt-file", "prompt.txt.gz", "--seed", "1")
        assert from_file == call("sample", "lines", "--prompt", "ba", "--seed", "1")

    def test_prompt_file_may_hold_one_character(self, work):
        (work / "prompt.txt").write_text("b")
        assert call("sample", "lines", "--prompt-file", "prompt.txt").status == 0

    def test_unknown_characters_can_be_skipped(self, work):
        result = call("sample", "lines", "-n", "3", "--prompt", "Zbé", "--unknown", "skip", "--seed", "1")
        assert result.status == 0
        assert all(line.startswith("Zbé") for line in result.out.splitlines())
        continued = [line[3:] for line in result.out.splitlines()]
        known = call("sample", "lines", "-n", "3", "--prompt", "b", "--seed", "1").out.splitlines()
        assert continued == [line[1:] for line in known]

    def test_prompt_may_be_longer_than_the_context(self, work):
        train("prose.txt", "-m", "transformer", "--steps", "2", "--no-compile", "--out", "run")
        (work / "prompt.txt").write_text((work / "prose.txt").read_text() * 2)
        result = call("sample", "run", "--prompt-file", "prompt.txt", "--max-new-tokens", "5")
        assert result.status == 0
        assert len(result.out) <= 2 * len((work / "prose.txt").read_text()) + 6

    def test_several_prompts(self, work):
        out = call("sample", "lines", "-n", "2", "-p", "ba", "-p", "de", "--seed", "1").out.splitlines()
        assert [line[:2] for line in out] == ["ba", "ba", "de", "de"]
        assert out[2:] == call("sample", "lines", "-n", "2", "-p", "de", "--seed", "1").out.splitlines()
        both = json.loads(
            call("sample", "lines", "-n", "2", "-p", "ba", "-p", "de", "--seed", "1", "--json").out
        )
        assert both["prompts"] == ["ba", "de"]
        assert both["samples"] == out

    def test_each_line_of_a_file_is_a_prompt_in_lines_mode(self, work):
        (work / "prompts.txt").write_text("ba\nde\n\nki\n")
        out = call("sample", "lines", "-n", "1", "--prompt-file", "prompts.txt").out.splitlines()
        assert [line[:2] for line in out] == ["ba", "de", "ki"]

    def test_a_file_is_one_prompt_in_text_mode(self, work):
        (work / "prompt.txt").write_text("bread and\n\nsalt ")
        out = call("sample", "text", "--prompt-file", "prompt.txt", "--seed", "1").out
        assert out.startswith("bread and\n\nsalt ")
        assert "-----" not in out

    def test_prompts_from_standard_input(self, work, monkeypatch):
        piped = io.TextIOWrapper(io.BytesIO(b"ba\r\nde\r\n"))
        monkeypatch.setattr(sys, "stdin", piped)
        from_input = call("sample", "lines", "-n", "3", "--prompt-file", "-", "--seed", "1")
        assert from_input == call("sample", "lines", "-n", "3", "-p", "ba", "-p", "de", "--seed", "1")

    @pytest.mark.parametrize(
        ("data", "message"),
        [(b"", "standard input is empty"), (b"a\0b", "binary"), (b"\xe7", "standard input is not utf-8")],
    )
    def test_standard_input_that_is_not_text_is_refused(self, refused, monkeypatch, data, message):
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(data)))
        assert message in refused("sample", "lines", "--prompt-file", "-")


class Terminal(io.StringIO):
    """Standard output that claims to be a terminal and records each write in ``writes``."""

    def __init__(self) -> None:
        super().__init__()
        self.writes: list[str] = []

    def isatty(self) -> bool:
        return True

    def write(self, text: str) -> int:
        self.writes.append(text)
        return super().write(text)


def test_sample_streams_to_a_terminal(work, monkeypatch):
    from makemore.cli import run

    arguments = ["sample", "text", "--prompt", "bread ", "--seed", "3", "--max-new-tokens", "50"]
    piped = call(*arguments).out
    terminal = Terminal()
    monkeypatch.setattr(sys, "stdout", terminal)
    assert run(arguments) == 0
    assert terminal.getvalue() == piped
    assert len(terminal.writes) > 40


def test_novel_only_leaves_out_training_lines(work):
    known = set(load("lines").documents().all("train"))
    (work / "words.txt").unlink()
    arguments = ["sample", "lines", "-n", "30", "--seed", "1"]
    new = call(*arguments, "--novel-only")
    assert new.status == 0
    assert len(new.out.splitlines()) == 30
    assert not known & set(new.out.splitlines())
    assert known & set(call(*arguments).out.splitlines())
    assert json.loads(call(*arguments, "--novel-only", "--json").out)["samples"] == new.out.splitlines()


@pytest.mark.parametrize("run", ["lines", "text"])
def test_report_has_memorisation_statistics(work, run):
    arguments = ["sample", run, "--report", "-n", "8", "--max-new-tokens", "15", "--seed", "1"]
    table = call(*arguments).out
    assert "held-out" in table
    assert ("verbatim training lines" if run == "lines" else "longest run copied from train, max") in table
    report = json.loads(call(*arguments, "--json").out)["report"]
    assert report["samples"]["texts"] == 8
    name = "verbatim" if run == "lines" else "copied_mean"
    assert report["samples"][name] is not None
    assert report["held_out"][name] is not None
    assert set(report["samples"]["distinct"]) == {"1", "2", "3", "4"}


@pytest.mark.parametrize(("run", "message"), [("lines", "are training lines"), ("text", "copied from train")])
def test_eval_reports_memorisation(work, run, message):
    assert message in call("eval", run).out.splitlines()[-1]
    statistics = json.loads(call("eval", run, "--json").out)["memorisation"]
    assert statistics["samples"]["texts"] == (1000 if run == "lines" else 20)
    assert statistics == json.loads(call("eval", run, "--json").out)["memorisation"]
    assert message not in call("eval", run, "--no-report").out
    assert "memorisation" not in json.loads(call("eval", run, "--no-report", "--json").out)
    assert message not in call("eval", run, "words.txt").out


class TestProbabilities:
    def test_every_token_has_its_probability(self, work):
        arguments = ["sample", "lines", "-n", "2", "-p", "ba", "--seed", "1"]
        samples = call(*arguments).out.splitlines()
        result = call(*arguments, "--show-probs")
        assert result.status == 0
        lines = result.out.splitlines()
        # Each sample, then a line for each token after the prompt and for the line's end.
        assert lines[0] == samples[0]
        assert lines[len(samples[0])] == samples[1]
        assert len(lines) == sum(map(len, samples))
        assert lines[len(samples[0]) - 1].lstrip().startswith(r"'\n'")
        report = json.loads(call(*arguments, "--show-probs", "--json").out)
        assert report["samples"] == [sample + "\n" for sample in samples]
        for sample, tokens in zip(samples, report["tokens"], strict=True):
            assert "".join(t["token"] for t in tokens) == sample[2:] + "\n"
            for token in tokens:
                assert 0 < token["p"] <= 1
                assert token["entropy"] >= 0
                tops = [t["p"] for t in token["top"]]
                assert tops == sorted(tops, reverse=True)
                assert len(tops) == 5

    def test_terminal_output_is_coloured(self, work, monkeypatch):
        from makemore.cli import run

        terminal = Terminal()
        monkeypatch.setattr(sys, "stdout", terminal)
        monkeypatch.setenv("TERM", "xterm-256color")
        monkeypatch.delenv("NO_COLOR", raising=False)
        assert run(["sample", "lines", "-n", "1", "--show-probs", "--seed", "1"]) == 0
        assert "\x1b[3" in terminal.getvalue()


def test_beam_search_finds_likelier_lines_than_greedy(work):
    (greedy,) = call("sample", "lines", "-n", "1", "--greedy").out.splitlines()
    beams = call("sample", "lines", "-n", "4", "--beam", "20", "--length-penalty", "0").out.splitlines()
    assert len(set(beams)) == 4

    def nats(line: str) -> float:
        (work / "line.txt").write_text(line + "\n" + line + "\n")
        return json.loads(call("eval", "lines", "line.txt", "--json").out)["nll"] * (len(line) + 1)

    nll = [nats(line) for line in beams]
    assert nll == sorted(nll)
    assert nll[0] <= nats(greedy) + 1e-6


def test_first_samples_do_not_depend_on_n(work):
    three = call("sample", "lines", "-n", "3", "--seed", "5").out
    assert call("sample", "lines", "-n", "300", "--seed", "5").out.startswith(three)


def test_greedy_is_deterministic(work):
    out = call("sample", "lines", "-n", "3", "--greedy").out.splitlines()
    assert len(set(out)) == 1
    assert call("sample", "lines", "-n", "3", "--temperature", "0").out.splitlines() == out


def test_sample_ends_before_the_stop_string(work):
    unlimited = call("sample", "text", "--seed", "3").out
    stopped = call("sample", "text", "--seed", "3", "--stop", "salt").out
    assert "salt" in unlimited
    assert stopped == unlimited[: unlimited.index("salt")] + "\n"


def test_max_new_tokens_limits_the_sample(work):
    out = call("sample", "text", "--max-new-tokens", "17", "--seed", "1").out
    assert len(out) == 18
