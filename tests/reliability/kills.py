"""Training runs that are killed anywhere, resumed, and compared with one that nobody disturbed."""

from __future__ import annotations

import json
import random
import re
import signal
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import torch

from makemore.runs.directory import RunDir
from tests.reliability.fork_server import Job, Nursery, Outcome

STEPS = 12
SETTINGS = (
    "train.save_interval=0",
    "train.eval_interval=3",
    "train.patience=0",
    "train.grad_accum_steps=2",
    "train.batch_tokens=64",
    "train.ema=0.8",
    "train.eval_tokens=64",
    "model.dropout=0.1",
    "model.n_layer=1",
    "model.n_embd=16",
    "model.n_head=2",
    "model.block_size=16",
)
"""A state of every kind: moments of two optimizers, an average of weights, random numbers, a place."""


def text(words: int = 60) -> str:
    """Lines of a tiny language."""
    rng = random.Random(2)
    return "".join(
        "".join(rng.choice("bdkl") + rng.choice("aei") for _ in range(3)) + "\n" for _ in range(words)
    )


class Trial:
    """One run directory, and what has been done to it."""

    def __init__(self, nursery: Nursery, folder: Path) -> None:
        self.nursery, self.folder = nursery, folder
        folder.mkdir(parents=True)
        (folder / "words.txt").write_text(text(), encoding="utf-8")
        self.run = RunDir(folder / "run")

    def go(self, at_call: int | None = None, after: float | None = None) -> Outcome:
        """Begin the run, or go on with it where there is one; checks what was promised before."""
        resume = self.run.exists
        promised = self._promised()
        command = ["train", "words.txt", "--out", "run", *(["--resume"] if resume else self._begin())]
        outcome = self.nursery.run(Job(command, str(self.folder), at_call, after))
        said = re.search(r"resuming at step (\d+)", outcome.err)
        if said:
            assert int(said[1]) >= promised, f"went back to step {said[1]} though {promised} was saved"
        if outcome.status != -signal.SIGKILL:
            assert outcome.status == 0, outcome.err
            assert bool(said) == resume, outcome.err
            assert "damaged" not in outcome.err, outcome.err
        return outcome

    def _begin(self) -> list[str]:
        settings = [part for setting in SETTINGS for part in ("--set", setting)]
        fixed = ["--mode", "lines", "--device", "cpu", "--dtype", "float32", "--no-compile"]
        return ["--steps", str(STEPS), *fixed, *settings]

    def _promised(self) -> int:
        path = self.folder / "promised"
        steps = path.read_text().split() if path.exists() else []
        return int(steps[-1]) if steps else 0

    def end(self) -> dict[str, torch.Tensor]:
        """What a finished run came to: weights kept, and all that its last state holds."""
        run_id = self.run.read_config()["run_id"]
        state = self.run.read_state(run_id).state
        found = {f"kept {k}": v for k, v in self.run.read_model(run_id).items()}
        found |= {f"last {k}": v for k, v in state["learner"]["model"].items()}
        optimizers = state["learner"]["optimizers"]
        for part in ("0", "1"):
            for nth, moments in optimizers[part]["state"].items():
                found |= {f"{part} {nth} {k}": torch.as_tensor(v) for k, v in moments.items()}
        found |= {f"average {i}": v for i, v in enumerate(state["learner"]["average"]["average"])}
        found["random"] = state["random"]["torch"]
        return found

    def check(self, wanted: dict[str, torch.Tensor]) -> None:
        """The end is that of the undisturbed run, and nothing is left over."""
        found = self.end()
        assert found.keys() == wanted.keys()
        different = [name for name in wanted if not torch.equal(found[name], wanted[name])]
        assert not different, different
        lines = (self.folder / "run" / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
        steps = [json.loads(line)["step"] for line in lines]
        assert steps == sorted(set(steps)), steps
        assert {3, 6, 9, STEPS} <= set(steps), steps
        assert not list((self.folder / "run").rglob("*.tmp"))


def undisturbed(nursery: Nursery, folder: Path) -> tuple[dict[str, torch.Tensor], Outcome]:
    """What all others are compared with, its duration, and its calls."""
    trial = Trial(nursery, folder)
    outcome = trial.go()
    assert outcome.status == 0, outcome.err
    return trial.end(), outcome


def kill_everywhere(nursery: Nursery, folder: Path, kills: int, seed: int = 0) -> Iterator[Counter[str]]:
    """Kill ``kills`` times: half at calls spread over a whole run, half at random moments of runs that are
    killed again and again. Yields what has happened so far after every run that came to its end."""
    rng = random.Random(seed)
    wanted, whole = undisturbed(nursery, folder / "whole")
    done: Counter[str] = Counter()
    at_calls = kills // 2
    for i in range(at_calls):
        trial = Trial(nursery, folder / f"call-{i}")
        stratum = whole.calls * i // at_calls
        killed = trial.go(at_call=stratum + rng.randrange(max(1, whole.calls // at_calls)) + 1)
        done["at a call"] += killed.status == -signal.SIGKILL
        trial.go()
        trial.check(wanted)
        done["runs"] += 1
        yield done
    while done.total() - done["runs"] < kills:
        trial = Trial(nursery, folder / f"moment-{done['runs']}")
        for _ in range(5):
            killed = trial.go(after=rng.uniform(0, whole.seconds))
            if killed.status == 0:
                break
            done["at a moment"] += 1
        if killed.status:
            trial.go()
        trial.check(wanted)
        done["runs"] += 1
        yield done
