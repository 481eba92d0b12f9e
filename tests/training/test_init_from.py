"""Training initialised from the weights of a run or a Hugging Face model."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from makemore.errors import UserError
from makemore.interop.hf import hf_files, read_pretrained
from makemore.runs.run import load
from makemore.tokenizers import fit_tokenizer
from makemore.training.observers import Observer
from makemore.training.planning import prepare
from makemore.training.pretrained import FINE_TUNE_LR_SCALE
from makemore.training.request import TrainRequest
from makemore.training.train import train
from tests.cli.conftest import call, words
from tests.interop.nonzero_models import nonzero_transformer

pytestmark = pytest.mark.slow

TINY = ("model.n_layer=1", "model.n_embd=16", "model.n_head=2")


@pytest.fixture
def text(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.chdir(tmp_path)
    Path("words.txt").write_text(words(), encoding="utf-8")
    Path("others.txt").write_text(words(seed=9), encoding="utf-8")
    return "words.txt"


def train_base(text: str, model: str = "transformer", **fields: object) -> Path:
    settings = TINY if model == "transformer" else ()
    request = TrainRequest(
        input=text, model=model, out=Path("base"), train={"steps": 5}, settings=settings, **fields
    )  # type: ignore[arg-type]
    return train(request).run.folder.path


@pytest.mark.parametrize("model", ["transformer", "lstm", "batchnorm-mlp"])
def test_training_starts_from_the_runs_weights_and_tokenizer(model: str, text: str) -> None:
    base = train_base(text, model)
    request = TrainRequest(
        input="others.txt", model=model, train={"steps": 3}, pretrained=read_pretrained(base)
    )
    plan, base_weights = prepare(request, Observer()), load(base).model.state_dict()
    assert all(torch.equal(tensor, base_weights[name]) for name, tensor in plan.model.state_dict().items())
    plain = prepare(TrainRequest(input="others.txt", model=model, train={"steps": 3}), Observer())
    assert plan.train.optimizer.lr == pytest.approx(FINE_TUNE_LR_SCALE * plain.train.optimizer.lr)
    assert plan.folder.path == Path("checkpoints") / f"others-{model}-tuned"
    result = train(request)
    assert result.run.config.init_from == str(base)
    assert result.run.tokenizer.to_dict() == load(base).tokenizer.to_dict()
    assert result.run.folder.metrics.read()


def test_initial_weights_are_kept_if_training_does_not_improve_them(text: str) -> None:
    base = train_base(text)
    zero_lr = {"steps": 4, "lr": 0.0, "matrix_lr": 0.0, "weight_decay": 0.0}
    unchanged = train(
        TrainRequest(input=text, out=Path("same"), train=zero_lr, pretrained=read_pretrained(base))
    )
    assert unchanged.best_step == 0
    worse = train(
        TrainRequest(
            input=text,
            out=Path("worse"),
            train=zero_lr | {"optimizer": "adamw", "lr": 9.0, "warmup_steps": 0},
            pretrained=read_pretrained(base),
        )
    )
    initial = load(base).model.state_dict()
    assert worse.best_step == 0
    assert all(torch.equal(tensor, initial[name]) for name, tensor in worse.run.model.state_dict().items())


def test_a_count_model_adds_to_existing_counts(text: str) -> None:
    base = train_base(text, "count")
    more = train(
        TrainRequest(input="others.txt", model="count", out=Path("more"), pretrained=read_pretrained(base))
    )
    assert more.run.model.table.counts(1).sum() > 1.5 * load(base).model.table.counts(1).sum()


def test_init_from_a_hugging_face_directory(text: str) -> None:
    tokenizer = fit_tokenizer("char", [Path(text).read_text(encoding="utf-8").replace("\n", "")])
    model = nonzero_transformer(tokenizer.vocab_size, style="gpt2")
    Path("hf").mkdir()
    for name, data in hf_files(model, tokenizer).items():
        (Path("hf") / name).write_bytes(data)
    block_size = ("model.block_size=16",)
    plan = prepare(
        TrainRequest(input=text, pretrained=read_pretrained(Path("hf")), settings=block_size), Observer()
    )
    tokens = torch.randint(1, tokenizer.vocab_size, (2, 16))
    torch.testing.assert_close(plan.model.eval()(tokens)[0], model(tokens)[0])
    result = json.loads(call("train", text, "--init-from", "hf", "--steps", 2, "--json").out)
    assert result["model"] == "transformer"
    assert result["run"] == str(Path("checkpoints") / "words-transformer-tuned")


def test_the_command_line_can_resume_a_fine_tuned_run(text: str) -> None:
    base = train_base(text, "rnn")
    arguments = ("train", "others.txt", "--init-from", base, "--out", "tuned")
    assert "starts from base: val≈" in call(*arguments, "--steps", 3).err
    resumed = call(*arguments, "--steps", 6, "--resume", "--json")
    assert resumed.status == 0, resumed.err
    assert json.loads(resumed.out)["steps"] == 6


def test_incompatible_runs_are_rejected(text: str) -> None:
    base = train_base(text)
    Path("unknown.txt").write_text(words() + "élan\nx\n", encoding="utf-8")
    requests = {
        "holds a transformer, not a lstm": TrainRequest(
            input=text, model="lstm", pretrained=read_pretrained(base)
        ),
        "no token for 'n' 'x' 'é'": TrainRequest(input="unknown.txt", pretrained=read_pretrained(base)),
        "don't fit the pretrained model": TrainRequest(
            input=text, pretrained=read_pretrained(base), settings=("model.n_embd=32",)
        ),
    }
    for message, request in requests.items():
        with pytest.raises(UserError, match=message):
            prepare(request, Observer())
    assert "no run at nowhere" in call("train", text, "--init-from", "nowhere").err
    assert "leave --tokenizer out" in call("train", text, "--init-from", base, "--tokenizer", "byte").err


def test_init_from_a_mixture_is_rejected(text: str) -> None:
    train_base(text)
    other = train(
        TrainRequest(input=text, model="bigram", out=Path("other"), train={"steps": 3})
    ).run.folder.path
    assert call("mix", "base", other, "--out", "mixed").status == 0
    assert "is made from trained runs" in call("train", text, "--init-from", "mixed").err
