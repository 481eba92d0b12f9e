"""Kill training runs at any point, resume them, and compare them with an uninterrupted run."""

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
from tests.reliability.fork_server import ForkServer, Job, Outcome

STEPS = 12
SETTINGS = (
    "model=transformer",
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
"""Cover all kinds of state: moments of two optimizers, averaged weights, random generators, data position."""


def make_text(words: int = 60) -> str:
    """Lines of a tiny artificial language."""
    rng = random.Random(2)
    return "".join(
        "".join(rng.choice("bdkl") + rng.choice("aei") for _ in range(3)) + "\n" for _ in range(words)
    )


class Trial:
    """A run directory that is trained, killed and resumed."""

    def __init__(self, server: ForkServer, folder: Path) -> None:
        self.server, self.folder = server, folder
        folder.mkdir(parents=True)
        (folder / "words.txt").write_text(make_text(), encoding="utf-8")
        self.run = RunDir(folder / "run")

    def train(self, kill_at_call: int | None = None, kill_after: float | None = None) -> Outcome:
        """Start the run, or resume it if it exists; checks that no saved step is lost."""
        resume = self.run.exists
        saved = self._last_saved_step()
        command = ["train", "words.txt", "--out", "run", *(["--resume"] if resume else self._start_options())]
        outcome = self.server.run(Job(command, str(self.folder), kill_at_call, kill_after))
        resumed_at = re.search(r"resuming [\w-]+ at step (\d+)", outcome.err)
        if resumed_at:
            assert int(resumed_at[1]) >= saved, f"went back to step {resumed_at[1]} though {saved} was saved"
        if outcome.status != -signal.SIGKILL:
            assert outcome.status == 0, outcome.err
            assert bool(resumed_at) == resume, outcome.err
            assert "damaged" not in outcome.err, outcome.err
        return outcome

    def _start_options(self) -> list[str]:
        settings = [part for setting in SETTINGS for part in ("--set", setting)]
        fixed = ["--mode", "lines", "--device", "cpu", "--dtype", "float32", "--no-compile"]
        return ["--steps", str(STEPS), *fixed, *settings]

    def _last_saved_step(self) -> int:
        path = self.folder / "saved_steps"
        steps = path.read_text().split() if path.exists() else []
        return int(steps[-1]) if steps else 0

    def final_state(self) -> dict[str, torch.Tensor]:
        """Tensors of a finished run: the saved model, and its last training state."""
        run_id = self.run.read_config().run_id
        state = self.run.states.read_newest(run_id).state
        tensors = {f"model {k}": v for k, v in self.run.read_model(run_id).items()}
        tensors |= {f"learner {k}": v for k, v in state["learner"]["model"].items()}
        optimizers = state["learner"]["optimizers"]
        for part in ("0", "1"):
            for nth, moments in optimizers[part]["state"].items():
                tensors |= {f"{part} {nth} {k}": torch.as_tensor(v) for k, v in moments.items()}
        tensors |= {f"average {i}": v for i, v in enumerate(state["learner"]["average"]["average"])}
        tensors["random"] = state["random"]["torch"]
        return tensors

    def check(self, expected: dict[str, torch.Tensor]) -> None:
        """The final state equals ``expected``, the log is complete, and no temporary files are left."""
        actual = self.final_state()
        assert actual.keys() == expected.keys()
        different = [name for name in expected if not torch.equal(actual[name], expected[name])]
        assert not different, different
        lines = (self.folder / "run" / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
        steps = [json.loads(line)["step"] for line in lines]
        assert steps == sorted(set(steps)), steps
        assert {3, 6, 9, STEPS} <= set(steps), steps
        assert not list((self.folder / "run").rglob("*.tmp"))


def train_reference(server: ForkServer, folder: Path) -> tuple[dict[str, torch.Tensor], Outcome]:
    """Train the reference run without kills; its outcome has its duration and number of disk calls."""
    trial = Trial(server, folder)
    outcome = trial.train()
    assert outcome.status == 0, outcome.err
    return trial.final_state(), outcome


def kill_everywhere(server: ForkServer, folder: Path, kills: int, seed: int = 0) -> Iterator[Counter[str]]:
    """Kill runs ``kills`` times: half at disk calls spread over a run, half at random moments of runs that
    are killed repeatedly. Yields the counts so far after each completed run."""
    rng = random.Random(seed)
    expected, reference = train_reference(server, folder / "reference")
    counts: Counter[str] = Counter()
    at_calls = kills // 2
    for i in range(at_calls):
        trial = Trial(server, folder / f"call-{i}")
        first = reference.calls * i // at_calls
        outcome = trial.train(kill_at_call=first + rng.randrange(max(1, reference.calls // at_calls)) + 1)
        counts["at a call"] += outcome.status == -signal.SIGKILL
        trial.train()
        trial.check(expected)
        counts["runs"] += 1
        yield counts
    while counts.total() - counts["runs"] < kills:
        trial = Trial(server, folder / f"moment-{counts['runs']}")
        for _ in range(5):
            outcome = trial.train(kill_after=rng.uniform(0, reference.seconds))
            if outcome.status == 0:
                break
            counts["at a moment"] += 1
        if outcome.status:
            trial.train()
        trial.check(expected)
        counts["runs"] += 1
        yield counts
