"""``auto``: members in one run directory, honest scores, interruption and errors."""

from __future__ import annotations

import dataclasses
import random
import time
from typing import ClassVar

import numpy as np
import pytest
import torch

from makemore.errors import UserError
from makemore.evaluation.distributions import halves
from makemore.evaluation.evaluate import evaluate
from makemore.models.mixture import Mixture
from makemore.runs.run import load
from makemore.runs.verification import check_run
from makemore.sampling.text import SampleRequest, sample
from makemore.training.mixing import auto, gating
from makemore.training.mixing.gating import fit_gates
from makemore.training.records import TrainingInterrupted
from makemore.training.request import TrainRequest
from makemore.training.train import train
from makemore.types import Split


@pytest.fixture(scope="module")
def text(tmp_path_factory):
    rng = random.Random(5)
    words = [
        "".join(rng.choice("bdkl") + rng.choice("aei") for _ in range(rng.randint(1, 4))) for _ in range(60)
    ]
    path = tmp_path_factory.mktemp("auto") / "words.txt"
    path.write_text(" ".join(rng.choice(words) for _ in range(3000)), encoding="utf-8")
    return path


def request(text, **changes):
    options = {
        "input": str(text),
        "model": "auto",
        "out": text.parent / "run",
        "train": {"steps": 20},
        "settings": ("train.batch_tokens=256",),
    }
    return TrainRequest(**{**options, **changes})


@pytest.fixture(scope="module", autouse=True)
def quick_gates():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(gating, "STEPS", 200)
        yield


@pytest.fixture(scope="module")
def result(text):
    return train(request(text))


def test_the_run_holds_its_members(result):
    assert [member.name for member in result.members] == ["context-mixing", "transformer"]
    assert sum(member.weight for member in result.members) == pytest.approx(1)
    run = load(result.run.folder.path)
    assert run.config.model.name == "auto"
    for name in ("context-mixing", "transformer"):
        member = load(run.folder.member(name).path)
        for key, tensor in member.model.state_dict().items():
            index = ["context-mixing", "transformer"].index(name)
            torch.testing.assert_close(run.model.state_dict()[f"parts.{index}.{key}"], tensor, rtol=0, atol=0)
    assert check_run(run.folder.path) == []


def test_a_loaded_run_scores_val_as_training_did(result):
    run = load(result.run.folder.path)
    assert evaluate(run).nats == pytest.approx(result.score.nats, abs=1e-3)


def test_val_is_scored_by_gates_that_were_not_fitted_there(result):
    """Gates fitted again, on one half of val, give the score of the other half."""
    run = load(result.run.folder.path)
    assert isinstance(run.model, Mixture)
    saved = run.model.gates.state_dict()
    fit_gates(run.model, run.corpus().splits["val"])
    for name, tensor in run.model.gates.state_dict().items():
        torch.testing.assert_close(tensor, saved[name], atol=1e-4, rtol=1e-3)
    first, second, third = (gate.state_dict()["out.bias"] for gate in run.model.gates)
    assert not torch.equal(first, second)
    assert not torch.equal(second, third)


def test_it_is_no_worse_than_its_best_member(result):
    best = min(evaluate(load(result.run.folder.member(member.name).path)).nll for member in result.members)
    assert result.score.nll <= best + 0.01


def test_the_same_seed_gives_the_same_samples(result):
    run = load(result.run.folder.path)
    texts = list(sample(run, SampleRequest(n=2, seed=3, max_new_tokens=200)))
    assert texts == list(sample(run, SampleRequest(n=2, seed=3, max_new_tokens=200)))


def test_an_interrupted_run_goes_on_to_the_same_result(text, result):
    out = text.parent / "interrupted"
    calls = iter(range(10_000))
    with pytest.raises(TrainingInterrupted, match="interrupted"):
        train(request(text, out=out), stop=lambda: next(calls) >= 12)
    with pytest.raises(UserError, match="already holds a run"):
        train(request(text, out=out))
    resumed = train(request(text, out=out, resume=True))
    assert resumed.score.nats == pytest.approx(result.score.nats, abs=1e-6)
    np.testing.assert_allclose(
        [member.weight for member in resumed.members], [member.weight for member in result.members], atol=1e-6
    )


def test_overwriting_removes_the_members(text):
    out = text.parent / "replaced"
    train(request(text, out=out))
    train(request(text, out=out, model="bigram", train={"steps": 1}, overwrite=True))
    assert not list((out / "members").iterdir())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"settings": ("model.gate=4",)}, "auto has no setting model.gate"),
        ({"resume": True, "out": None}, "to resume"),
    ],
)
def test_requests_that_it_cannot_fulfil(text, changes, message, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=message):
        train(request(text, **changes))


def test_resuming_reads_the_text_as_recorded(text):
    """Without the options of the first command, val is still the recorded one."""
    out = text.parent / "halves"
    corpus = {"split": "0.5,0.25,0.25", "mode": "text"}
    first = train(request(text, out=out, corpus=corpus))
    resumed = train(request(text, out=out, resume=True))
    assert resumed.score.tokens == first.score.tokens
    assert resumed.score.nats == pytest.approx(first.score.nats, rel=1e-6)


def test_resuming_needs_only_the_run(text, monkeypatch, tmp_path):
    """The text, tokenizer and budget are those of the interrupted command, unless others are named."""
    monkeypatch.chdir(tmp_path)
    out, calls = text.parent / "alone", iter(range(10_000))
    first = request(text, out=out, tokenizer="byte")
    with pytest.raises(TrainingInterrupted):
        train(first, stop=lambda: next(calls) >= 12)
    with pytest.raises(UserError, match="tokenizer was byte, not char"):
        train(TrainRequest(out=out, resume=True, tokenizer="char"))
    resumed = train(TrainRequest(out=out, resume=True))
    assert resumed.run.tokenizer.name == "byte"
    uninterrupted = train(dataclasses.replace(first, out=text.parent / "undisturbed"))
    assert resumed.steps == uninterrupted.steps
    assert resumed.score.nats == pytest.approx(uninterrupted.score.nats, abs=1e-6)
    more = train(TrainRequest(out=out, resume=True, train={"steps": 40}))
    assert more.steps > resumed.steps


@pytest.mark.parametrize("lines", ["ab\n" * 3 + "abcdefghij" * 9 + "\n", "abcab\n" * 40])
def test_val_of_any_shape_is_enough_for_a_gate(lines, tmp_path):
    path = tmp_path / "lines.txt"
    path.write_text(lines * 5, encoding="utf-8")
    corpus = {"mode": "lines", "split": "0.7,0.15,0.15"}
    result = train(request(path, out=tmp_path / "run", corpus=corpus, train={"steps": 2}))
    assert np.isfinite(result.score.nats)


def test_without_val_the_members_have_equal_weights(text, tmp_path):
    result = train(request(text, out=tmp_path / "run", corpus={"split": "1,0,0"}))
    assert [member.weight for member in result.members] == [0.5, 0.5]
    assert result.members[0].nll is None
    assert result.score.split == "train"


def test_halves_meet_at_the_start_of_a_document_inside_the_text():
    def val(starts, n):
        zeros = np.zeros(len(starts), np.int64)
        return Split("val", np.zeros(n, np.uint8), np.array(starts), zeros, zeros)

    assert halves(val([0, 10], 100), 5) == [(10, 1), (100, 2)]
    assert halves(val([0, 30, 60], 100), 5) == [(60, 1), (100, 2)]
    assert halves(val([0], 100), 5) == [(50, 1), (100, 2)]
    assert halves(val([0, 80_000], 90_000), 5) == [(32_768, 1), (90_000, 2)]


class TestMembersTrainedTogether:
    """With a time limit, and without a number of steps."""

    OPTIONS: ClassVar = {"train": {"max_time": 2.0}}

    @pytest.fixture(autouse=True)
    def two_threads(self, monkeypatch):
        monkeypatch.setattr(auto, "MIN_NEURAL_SECONDS", 0.5)
        before = torch.get_num_threads()
        torch.set_num_threads(2)
        yield
        torch.set_num_threads(before)

    def test_both_are_trained_and_all_threads_are_used_again(self, text):
        start = time.monotonic()
        result = train(request(text, out=text.parent / "together", **self.OPTIONS))
        assert [member.name for member in result.members] == ["context-mixing", "transformer"]
        assert all(member.seconds > 0 for member in result.members)
        assert result.seconds == pytest.approx(max(member.seconds for member in result.members), abs=0.01)
        assert result.seconds <= time.monotonic() - start
        assert torch.get_num_threads() == 2

    def test_an_interruption_stops_both_and_is_resumed(self, text):
        out = text.parent / "together-interrupted"
        begun = time.monotonic()
        with pytest.raises(TrainingInterrupted, match=r"saved in .*together-interrupted\)"):
            train(request(text, out=out, **self.OPTIONS), stop=lambda: time.monotonic() - begun > 1)
        assert sorted(path.name for path in (out / "members").iterdir()) == ["context-mixing", "transformer"]
        resumed = train(request(text, out=out, resume=True, **self.OPTIONS))
        assert np.isfinite(resumed.score.nats)

    def test_an_error_of_either_is_raised_and_stops_the_other(self, text, monkeypatch):
        whole = auto._train_member
        for name in ("context-mixing", "transformer"):

            def fail(request, folder, member, *rest, name=name):
                if member == name:
                    raise UserError(f"no room for {name}")
                return whole(request, folder, member, *rest)

            monkeypatch.setattr(auto, "_train_member", fail)
            with pytest.raises(UserError, match=f"no room for {name}"):  # instead of training for an hour
                train(request(text, out=text.parent / f"without-{name}", train={"max_time": 3600.0}))
