"""Training curves logged to TensorBoard and Weights & Biases."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest

from makemore.errors import UserError
from makemore.training.observers import MultiObserver, Observer, TensorBoard, WandB, curves
from makemore.training.records import TrainRecord
from makemore.training.request import TrainRequest
from makemore.training.train import train
from tests.cli.conftest import call, words

pytestmark = pytest.mark.slow


@pytest.fixture
def text(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.chdir(tmp_path)
    Path("words.txt").write_text(words(), encoding="utf-8")
    return "words.txt"


def record(**changes: Any) -> TrainRecord:
    return TrainRecord(
        **{**dict.fromkeys(TrainRecord.__dataclass_fields__, 0), "loss": 2.0, "val": None, **changes}
    )


def test_curves_skip_missing_values() -> None:
    assert curves(record(val_ema=None)) == {"loss/train": 2.0, "learning rate": 0, "tokens a second": 0}
    assert curves(record(loss=None, val=1.5, val_ema=1.4))["loss/val"] == 1.5


def test_multi_observer_forwards_all_calls() -> None:
    class RecordingObserver(Observer):
        def __init__(self) -> None:
            self.events: list[object] = []

        def note(self, text: str) -> None:
            self.events.append(text)

        def record(self, record: TrainRecord) -> None:
            self.events.append(record.step)

        def scoring(self, done: int, total: int) -> None:
            self.events.append((done, total))

    recorders = RecordingObserver(), RecordingObserver()
    observers = MultiObserver(*recorders)
    observers.note("hello")
    observers.record(record(step=3))
    observers.scoring(1, 2)
    assert recorders[0].events == recorders[1].events == ["hello", 3, (1, 2)]


def test_tensorboard_can_read_the_curves(text: str) -> None:
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    budget = ("--steps", 6, "--set", "train.eval_interval=2")
    result = call("train", text, "--model", "bigram", *budget, "--out", "run", "--tensorboard")
    assert result.status == 0, result.err
    events = EventAccumulator("run/tensorboard").Reload()
    curve = [(scalar.step, scalar.value) for scalar in events.Scalars("loss/val")]
    logged = [json.loads(line) for line in Path("run/metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    assert curve == [(r["step"], pytest.approx(r["val"])) for r in logged if "val" in r]
    assert "loss/train" in events.Tags()["scalars"]


def test_wandb_logs_offline(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_SILENT", "true")
    monkeypatch.delenv("WANDB_MODE", raising=False)
    result = call("train", text, "--model", "bigram", "--steps", 3, "--out", "run", "--wandb")
    assert result.status == 0, result.err
    (log,) = Path("run/wandb").glob("offline-run-*/run-*.wandb")
    assert b"loss/train" in log.read_bytes()


class FakeWandB:
    """Records the calls made to the wandb module."""

    def __init__(self) -> None:
        self.kwargs: dict[str, Any] = {}
        self.logged: list[tuple[int, dict[str, float]]] = []
        self.finished = False

    def init(self, **arguments: Any) -> FakeWandB:
        self.kwargs = arguments
        return self

    def log(self, values: dict[str, float], step: int) -> None:
        self.logged.append((step, values))

    def finish(self) -> None:
        self.finished = True

    def teardown(self) -> None:
        assert self.finished


def test_wandb_receives_settings_and_curves(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    fake = FakeWandB()
    monkeypatch.setitem(sys.modules, "wandb", fake)
    monkeypatch.setenv("WANDB_MODE", "online")
    log = WandB()
    result = train(TrainRequest(input=text, model="bigram", out=Path("run"), train={"steps": 3}), log)
    log.close()
    assert fake.finished
    assert (fake.kwargs["mode"], fake.kwargs["name"], fake.kwargs["config"]["model"]["name"]) == (
        "online",
        "run",
        "bigram",
    )
    assert fake.kwargs["config"]["train"]["steps"] == 3
    assert fake.logged[-1][0] == 3
    assert fake.logged[-1][1]["loss/val"] == pytest.approx(result.run.folder.metrics.read()[-1]["val"])


@pytest.mark.parametrize(("option", "package"), [("--tensorboard", "tensorboard"), ("--wandb", "wandb")])
def test_a_missing_package_error_names_the_extra(
    option: str, package: str, text: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("torch.utils.tensorboard", "wandb"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(UserError, match=rf"makemore\[{package}\]"):
        TensorBoard() if package == "tensorboard" else WandB()
    result = call("train", text, "-m", "bigram", "--steps", 2, "--out", "run", option)
    assert result.status == 2
    assert f"pip install 'makemore[{package}]'" in result.err
    assert not Path("run").exists()
