"""Mistakes a user can make: one clear line, exit status 2, nothing changed on disk."""

from __future__ import annotations

import hashlib
import random
import shutil
from pathlib import Path

import pytest

from makemore.cli import run
from makemore.models import MODELS


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MAKEMORE_DATA", raising=False)
    return tmp_path


def words(n: int = 120) -> str:
    rng = random.Random(1)
    return "".join("".join(rng.choice("abcde") for _ in range(rng.randint(2, 6))) + "\n" for _ in range(n))


@pytest.fixture
def text(folder):
    (folder / "words.txt").write_text(words(), encoding="utf-8")
    return "words.txt"


@pytest.fixture
def trained(text, capsys):
    assert run(["train", text, "--model", "bigram", "--steps", "3", "--out", "run"]) == 0
    capsys.readouterr()
    return "run"


def listing(folder: Path) -> dict[str, str]:
    return {
        str(p.relative_to(folder)): hashlib.sha256(p.read_bytes()).hexdigest() if p.is_file() else "folder"
        for p in sorted(folder.rglob("*"))
    }


def refused(arguments, folder, capsys, *words) -> str:
    """Run a command line that must be refused; returns its one line."""
    before = listing(folder)
    status = run([str(a) for a in arguments])
    out, err = capsys.readouterr()
    assert status == 2, (status, out, err)
    assert out == ""
    lines = err.strip().splitlines()
    assert len(lines) == 1, err
    assert lines[0].startswith("makemore: ")
    assert listing(folder) == before
    for word in words:
        assert word.lower() in lines[0].lower(), lines[0]
    return lines[0]


BAD_FILES = {
    "empty": (b"", ["empty"]),
    "blank": (b" \n\n\t\n", ["empty"]),
    "one-character": (b"a", ["single"]),
    "one-kind": (b"aaaaaaaa\naaaa", ["single"]),
    "binary": (b"\x7fELF\x02\x00\x00\x01abc\x00" * 50, ["binary", "zero byte at 5"]),
    "latin-1": ("café\n".encode("latin-1") * 40, ["not utf-8", "byte 0xe9 at 3", "--encoding"]),
    "short": (b"ab", ["too short"]),
}


@pytest.mark.parametrize("kind", BAD_FILES)
def test_files_there_is_nothing_to_learn_from(kind, folder, capsys):
    data, said = BAD_FILES[kind]
    (folder / "bad.txt").write_bytes(data)
    refused(["train", "bad.txt", "--model", "bigram"], folder, capsys, *said)


def test_one_line_in_lines_mode(folder, capsys):
    (folder / "one.txt").write_text("just one line of text here\n", encoding="utf-8")
    refused(["train", "one.txt", "--mode", "lines"], folder, capsys, "one line", "--mode text")


def test_too_few_lines_for_the_splits(folder, capsys):
    (folder / "few.txt").write_text("anna\nbob\ncarl\n", encoding="utf-8")
    refused(["train", "few.txt", "--mode", "lines"], folder, capsys, "too short", "--split")


def test_no_such_file_and_folders(folder, capsys):
    refused(["train", "missing.txt"], folder, capsys, "no such file", "missing.txt")
    refused(["train", "shakespear"], folder, capsys, "did you mean", "shakespeare")
    refused(["train", "shakespeare"], folder, capsys, "makemore data shakespeare")
    refused(["train", folder], folder, capsys, "folder")


WRONG_TRAINING = {
    "model": (["--model", "transfomer"], ["did you mean", "transformer"]),
    "mixture": (["--model", "mixture"], ["makemore mix"]),
    "tokenizer": (["--tokenizer", "chr"], ["did you mean", "char"]),
    "mode": (["--mode", "line"], ["auto, lines, text"]),
    "setting": (["--set", "model.n_hiden=3", "--model", "mlp"], ["did you mean", "model.n_hidden"]),
    "section": (["--set", "modl.n_hidden=3"], ["did you mean", "model"]),
    "form": (["--set", "n_hidden"], ["section.key=value"]),
    "whole-number": (["--set", "model.n_layer=2.5"], ["whole number"]),
    "number": (["--set", "train.lr=fast"], ["number"]),
    "not-finite": (["--set", "train.lr=nan"], ["number"]),
    "choice": (["--set", "train.optimizer=adam"], ["adamw"]),
    "heads": (["--set", "model.n_head=3"], ["multiple"]),
    "zero-layers": (["--set", "model.n_layer=0"], ["at least 1"]),
    "batch": (["--set", "train.batch_tokens=0"], ["1 or more"]),
    "no-optimizer": (["--model", "mlp", "--set", "train.optimizer=none"], ["adamw"]),
    "packed": (["--model", "lstm", "--set", "train.loader=packed"], ["lstm"]),
    "steps": (["--steps", "0"], ["--steps"]),
    "time": (["--max-time", "soon"], ["90s"]),
    "no-time": (["--max-time", "0s"], ["--max-time"]),
    "split": (["--split", "0.5,0.5"], ["three shares"]),
    "split-sum": (["--split", "0.5,0.5,0.5"], ["sum to 1"]),
    "nothing-to-train": (["--split", "0,0.5,0.5"], ["nothing to train"]),
    "device": (["--device", "gpu"], ["cuda"]),
    "dtype": (["--dtype", "float16"], ["bfloat16"]),
    "encoding": (["--encoding", "utf-99"], ["unknown encoding"]),
    "option": (["--modle", "mlp"], ["--modle"]),
    "both": (["--resume", "--overwrite"], ["exclude"]),
    "nothing-to-resume": (["--resume"], ["no run"]),
    "config": (["--config", "none.toml"], ["none.toml"]),
}


@pytest.mark.parametrize("kind", WRONG_TRAINING)
def test_wrong_training_commands(kind, folder, text, capsys):
    options, said = WRONG_TRAINING[kind]
    refused(["train", text, *options], folder, capsys, *said)


@pytest.mark.parametrize("toml", ["model = 3", "[modle]\nx = 1", "[model\n", "[train]\nspeed = 1"])
def test_wrong_config_files(toml, folder, text, capsys):
    (folder / "c.toml").write_text(toml, encoding="utf-8")
    refused(["train", text, "--config", "c.toml"], folder, capsys)


def test_config_file_command_line_and_set_in_their_order(folder, text, capsys):
    (folder / "c.toml").write_text(
        "[model]\nn_hidden = 8\nn_embd = 4\n[train]\nsteps = 9\n", encoding="utf-8"
    )
    options = ["--config", "c.toml", "--steps", "2", "--set", "model.n_embd=3", "--out", "r"]
    assert run(["train", text, "--model", "mlp", *options]) == 0
    from makemore import load

    config = load("r").config
    assert config["model"]["settings"]["n_hidden"] == 8
    assert config["model"]["settings"]["n_embd"] == 3
    assert config["train"]["steps"] == 2


def test_cuda_without_cuda(folder, text, capsys):
    import torch

    if torch.cuda.is_available():
        pytest.skip("there is a CUDA device here")
    refused(["train", text, "--device", "cuda"], folder, capsys, "no CUDA")


def test_a_run_that_is_there(folder, text, trained, capsys):
    again = ["train", text, "--model", "bigram", "--steps", "3", "--out", "run"]
    refused(again, folder, capsys, "--resume", "--overwrite")
    assert run([*again, "--overwrite"]) == 0


def test_a_folder_that_is_no_run_is_not_overwritten(folder, text, capsys):
    (folder / "mine").mkdir()
    (folder / "mine" / "thesis.txt").write_text("precious", encoding="utf-8")
    refused(
        ["train", text, "--out", "mine", "--overwrite", "--steps", "1"], folder, capsys, "not a makemore run"
    )


def test_resuming_with_other_settings(folder, text, trained, capsys):
    base = ["train", text, "--out", "run", "--resume"]
    refused([*base, "--model", "mlp"], folder, capsys, "bigram")
    refused([*base, "--model", "bigram", "--set", "train.lr=9"], folder, capsys, "train.lr")
    refused([*base, "--model", "bigram", "--seed", "5"], folder, capsys, "train.seed")
    (folder / "other.txt").write_text(words(60), encoding="utf-8")
    refused(
        ["train", "other.txt", "--model", "bigram", "--out", "run", "--resume"],
        folder,
        capsys,
        "not the text",
    )


def test_resuming_with_a_larger_budget_goes_on(folder, text, trained, capsys):
    base = ["train", text, "--model", "bigram", "--out", "run", "--resume", "--json"]
    assert run([*base, "--steps", "7"]) == 0
    import json

    assert json.loads(capsys.readouterr().out)["steps"] == 7


WRONG_SAMPLING = {
    "top-k": (["--top-k", "0"], ["--top-k"]),
    "temperature": (["--temperature", "-1"], ["--temperature"]),
    "n": (["-n", "0"], ["-n 0"]),
    "top-p": (["--top-p", "1.5"], ["--top-p"]),
    "min-p": (["--min-p", "0"], ["--min-p"]),
    "length": (["--max-new-tokens", "0"], ["--max-new-tokens"]),
    "stop": (["--stop", ""], ["--stop"]),
    "unknown": (["--unknown", "ignore"], ["error or skip"]),
    "prompt": (["--prompt", "aéz"], ["never saw", "é", "--unknown skip"]),
    "newline": (["--prompt", "a\nb"], ["one line"]),
    "two-prompts": (["--prompt", "a", "--prompt-file", "words.txt"], ["exclude"]),
    "prompt-file": (["--prompt-file", "nowhere.txt"], ["nowhere.txt"]),
}


@pytest.mark.parametrize("kind", WRONG_SAMPLING)
def test_wrong_sampling_commands(kind, folder, trained, capsys):
    options, said = WRONG_SAMPLING[kind]
    refused(["sample", trained, *options], folder, capsys, *said)


def test_wrong_evaluations(folder, text, trained, capsys):
    refused(["eval", trained, "--split", "vla"], folder, capsys, "did you mean", "val")
    refused(["eval", "nowhere"], folder, capsys, "no run")
    refused(["eval", text], folder, capsys, "no run")
    refused(["eval", folder], folder, capsys, "not a makemore run")
    (folder / text).write_text(words(50), encoding="utf-8")
    refused(["eval", trained], folder, capsys, "changed")
    (folder / text).unlink()
    refused(["eval", trained], folder, capsys, "gone")
    assert run(["sample", trained, "-n", "2"]) == 0


@pytest.mark.parametrize("name", ["config.json", "tokenizer.json", "model.safetensors"])
@pytest.mark.parametrize("damage", ["flip", "cut", "gone", "empty", "foreign", "list"])
def test_damaged_runs(name, damage, folder, trained, capsys):
    path = folder / trained / name
    data = bytearray(path.read_bytes())
    if damage == "gone":
        path.unlink()
    else:
        middle = len(data) // 2
        data[middle] ^= 1
        new = {
            "flip": bytes(data),
            "cut": bytes(data[:middle]),
            "empty": b"",
            "foreign": b'{"a": 1}',
            "list": b"[]",
        }
        path.write_bytes(new[damage])
    refused(
        ["sample", trained],
        folder,
        capsys,
        "config.json" if name == "config.json" and damage == "gone" else name,
    )


def test_files_of_another_run_are_noticed(folder, text, trained, capsys):
    assert run(["train", text, "--model", "bigram", "--steps", "4", "--out", "second"]) == 0
    capsys.readouterr()
    for name in ("tokenizer.json", "model.safetensors"):
        shutil.copy(folder / "run" / name, folder / "run" / f"{name}.mine")
        shutil.copy(folder / "second" / name, folder / "run" / name)
        refused(["sample", "run"], folder, capsys, "another run")
        (folder / "run" / f"{name}.mine").replace(folder / "run" / name)


def test_runs_on_different_splits_are_not_ranked(folder, text, trained, capsys):
    (folder / "other.txt").write_text(words(70), encoding="utf-8")
    assert run(["train", "other.txt", "--model", "bigram", "--steps", "2", "--out", "other"]) == 0
    capsys.readouterr()
    refused(["compare", "run", "other"], folder, capsys, "different splits")
    refused(["compare", "words.txt", "other.txt"], folder, capsys, "one text")
    refused(["compare", "words.txt", "--models", "mlp,lsmt"], folder, capsys, "did you mean", "lstm")


ODD_TEXTS = {
    "crlf": words().replace("\n", "\r\n").encode(),
    "bom": b"\xef\xbb\xbf" + words().encode(),
    "no-end": words().rstrip("\n").encode(),
    "blank-lines": words().replace("\n", "\n\n").encode(),
    "tabs": words().replace("a", "\t").encode(),
    "emoji": words().replace("a", "🙂").replace("b", "👩\u200d👩\u200d👧").encode(),
    "combining": words().replace("a", "e\u0301").encode(),
    "separators": words().replace("a", "\x0b\x1c\u2028").encode(),
    "utf-16": words().encode("utf-16"),
}


@pytest.mark.parametrize("mode", ["lines", "text"])
@pytest.mark.parametrize("kind", ODD_TEXTS)
def test_odd_texts_work(kind, mode, folder, capsys):
    (folder / "odd.txt").write_bytes(ODD_TEXTS[kind])
    encoding = ["--encoding", "utf-16"] if kind == "utf-16" else []
    command = ["train", "odd.txt", "--model", "mlp", "--mode", mode, "--steps", "3", "--out", "r", *encoding]
    assert run(command) == 0
    capsys.readouterr()
    assert run(["eval", "r", "--split", "val+test"]) == 0
    assert run(["sample", "r", "-n", "2", "--max-new-tokens", "9"]) == 0
    out = capsys.readouterr().out
    assert "\r" not in out
    assert "\ufeff" not in out


def test_a_text_shorter_than_the_context_shrinks_it_and_says_so(folder, capsys):
    (folder / "tiny.txt").write_text("to be or not to be, that is the question. " * 2, encoding="utf-8")
    assert run(["train", "tiny.txt", "--steps", "2", "--out", "r"]) == 0
    assert "block_size shrinks from 128 to 75" in capsys.readouterr().err
    assert run(["eval", "r"]) == 0


@pytest.mark.parametrize("name", [name for name in MODELS if MODELS.get(name).standalone])
@pytest.mark.parametrize("mode", ["lines", "text"])
def test_samples_repeat_themselves_with_a_seed(name, mode, folder, text, capsys):
    command = ["train", text, "--model", name, "--mode", mode, "--steps", "2", "--no-compile", "--out", "r"]
    assert run(command) == 0
    capsys.readouterr()
    texts = []
    for seed in (7, 7, 8):
        assert run(["sample", "r", "-n", "3", "--seed", str(seed), "--max-new-tokens", "40"]) == 0
        texts.append(capsys.readouterr().out)
    assert texts[0] == texts[1] != texts[2]
    if mode == "lines":
        assert len(texts[0].splitlines()) == 3


def test_unknown_characters_of_a_prompt_can_be_left_out(folder, trained, capsys):
    assert run(["sample", trained, "--prompt", "aéb", "--unknown", "skip", "-n", "2", "--seed", "1"]) == 0
    assert all(line.startswith("aéb") for line in capsys.readouterr().out.splitlines())


def test_a_stop_string_ends_a_sample(folder, text, capsys):
    assert run(["train", text, "--model", "count", "--mode", "text", "--out", "r"]) == 0
    capsys.readouterr()
    assert run(["sample", "r", "--seed", "1", "--max-new-tokens", "300"]) == 0
    whole = capsys.readouterr().out.rstrip("\n")
    assert run(["sample", "r", "--seed", "1", "--max-new-tokens", "300", "--stop", whole[40:44]]) == 0
    assert capsys.readouterr().out.rstrip("\n") == whole[: whole.index(whole[40:44])].rstrip("\n")
