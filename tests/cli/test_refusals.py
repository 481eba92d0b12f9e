"""User errors: one clear line, exit status 2, no file changed."""

from __future__ import annotations

import pytest
import torch

from tests.cli.conftest import call, listing, train

FILES = {
    "empty": (b"", "bad.txt is empty"),
    "whitespace": (b" \n\t\r\n ", "bad.txt is empty"),
    "one character": (b"a", "fewer than two distinct characters"),
    "one repeated character": (b"aaaa", "fewer than two distinct characters"),
    "byte-order mark only": (b"\xef\xbb\xbf", "is empty"),
    "binary": (b"\x7fELF\0\0\1\2" * 50, "looks binary (zero byte at 4)"),
    "utf-16": (("ab\n" * 50).encode("utf-16"), "--encoding"),
    "latin-1": (
        "abcd\ngarçon\n".encode("latin-1"),
        "(0xe7) at byte 8 in line 2; pass its encoding, such as --encoding",
    ),
    "latin-1 with a mark": ("\ufeffabc".encode() + b"\xe7", "(0xe7) at byte 6 in line 1; to replace them"),
    "two characters": (b"ab", "too short"),
    "no character twice": (b"abcdefghijklmnopqrst", "too short"),
}


@pytest.mark.parametrize("kind", FILES)
def test_unusable_texts_are_refused(refused, work, kind):
    data, message = FILES[kind]
    (work / "bad.txt").write_bytes(data)
    assert message in refused("train", "bad.txt", "--model", "count")


def test_three_lines_are_too_few(refused, work):
    (work / "bad.txt").write_text("ab\ncd\nef\n")
    assert "the val split would be empty" in refused("train", "bad.txt", "--mode", "lines", "-m", "count")


def test_single_line_is_refused_in_lines_mode(refused, work):
    (work / "one.txt").write_text("just one line of text\n\n")
    assert "--mode text" in refused("train", "one.txt", "--mode", "lines", "--model", "count")


TRAIN = {
    "missing file": (["none.txt"], "no such file: none.txt"),
    "missing name": (["nonw"], "no such file"),
    "near a name": (["first-name"], "did you mean 'first-names'"),
    "not downloaded": (["shakespeare"], "get it with: makemore data shakespeare"),
    "overlong name": (["x" * 5000], "no such file"),
    "overlong path": (["x" * 5000 + ".txt"], "can't read"),
    "run as input": (["lines"], "is a run"),
    "model": (["words.txt", "--model", "transfomer"], "did you mean 'transformer'"),
    "tokenizer": (["words.txt", "--tokenizer", "bite"], "did you mean 'byte'"),
    "mixture": (["words.txt", "--model", "mixture"], "makemore mix"),
    "setting": (["words.txt", "-m", "mlp", "--set", "model.n_hiden=3"], "did you mean 'model.n_hidden'"),
    "group": (["words.txt", "--set", "train.optimzer.lr=1"], "did you mean 'train.optimizer'"),
    "section": (["words.txt", "--set", "modle.n_hidden=3"], "did you mean 'model'"),
    "no section": (["words.txt", "--set", "n_hidden=3"], "write section.name=value"),
    "no value": (["words.txt", "--set", "model.n_hidden"], "write section.name=value"),
    "whole number": (["words.txt", "-m", "mlp", "--set", "model.n_hidden=3.5"], "must be a whole number"),
    "word": (["words.txt", "-m", "mlp", "--set", "model.n_hidden=many"], "must be a whole number"),
    "number": (["words.txt", "-m", "mlp", "--set", "train.lr=fast"], "must be a number"),
    "nan": (["words.txt", "-m", "mlp", "--set", "train.lr=nan"], "must be a number"),
    "choice": (["words.txt", "--set", "train.schedule=steep"], "must be one of constant, linear, cosine"),
    "out of range": (["words.txt", "-m", "mlp", "--set", "model.n_hidden=0"], "n_hidden=0: must be 1"),
    "learning rate": (["words.txt", "-m", "mlp", "--set", "train.lr=-1"], "lr=-1: must be 0 or more"),
    "beta": (["words.txt", "-m", "mlp", "--set", "train.beta2=1"], "below 1"),
    "block": (["words.txt", "-m", "mlp", "--set", "train.block_size=0"], "block_size=0: must be 1 or more"),
    "seed": (["words.txt", "-m", "mlp", "--seed", "-1"], "train.seed=-1: must be 0 or more"),
    "huge seed": (["words.txt", "-m", "mlp", "--seed", str(10**30)], "must be below 9.22337e+18"),
    "mode": (["words.txt", "--mode", "line"], "must be one of auto, lines, text"),
    "steps": (["words.txt", "--steps", "0"], "train.steps=0: must be 1 or more"),
    "steps in words": (["words.txt", "--steps", "few"], "--steps"),
    "time": (["words.txt", "--max-time", "soon"], "max-time 'soon'"),
    "zero time": (["words.txt", "--max-time", "0"], "max-time '0'"),
    "negative time": (["words.txt", "--max-time", "-5s"], "max-time '-5s'"),
    "two fractions": (["words.txt", "--split", "0.5,0.5"], "three fractions"),
    "sum of fractions": (["words.txt", "--split", "0.5,0.5,0.5"], "sum to 1"),
    "fractions in words": (["words.txt", "--split", "most,some,few"], "three fractions"),
    "no train": (["words.txt", "--split", "0,0.5,0.5"], "nothing to train on"),
    "encoding": (["words.txt", "--encoding", "utf-9"], "unknown encoding 'utf-9'"),
    "binary encoding": (["words.txt", "--encoding", "hex"], "--encoding"),
    "device": (["words.txt", "--device", "toaster"], "unknown device 'toaster'"),
    "other device": (["words.txt", "--device", "meta"], "unknown device 'meta'"),
    "dtype": (["words.txt", "--dtype", "float16"], "must be one of auto, float32, bfloat16"),
    "taken": (["words.txt", "-m", "count", "--out", "lines"], "--resume, --overwrite, or name another --out"),
    "resume and overwrite": (["words.txt", "--resume", "--overwrite"], "can't be combined"),
    "no run": (["words.txt", "--resume", "--out", "nowhere"], "no run at nowhere"),
    "other text": (["prose.txt", "-m", "count", "--resume", "--out", "lines"], "not the text"),
    "other model": (["words.txt", "-m", "mlp", "--resume", "--out", "lines"], "resume it with --model count"),
    "no config": (["words.txt", "--config", "none.toml"], "can't read none.toml"),
    "folder config": (["words.txt", "--config", "."], "can't read"),
    "option": (["words.txt", "--modle", "mlp"], "--model"),
}  # fmt: skip


@pytest.mark.parametrize("mistake", TRAIN)
def test_train_refuses(refused, mistake):
    arguments, message = TRAIN[mistake]
    assert message in refused("train", *arguments)


@pytest.mark.skipif(torch.cuda.is_available(), reason="CUDA is available")
@pytest.mark.parametrize("command", [["train", "words.txt"], ["eval", "lines"], ["sample", "lines"]])
def test_missing_cuda_is_refused(refused, command):
    assert "no CUDA" in refused(*command, "--device", "cuda")


CONFIGS = {
    "[train\nsteps = 3": "is not TOML",
    "steps = 3": "'steps' is not a section; use [model], [train], [corpus]",
    "[training]\nsteps = 3": "'training' is not a section",
    "[train]\nstep = 3": "did you mean 'train.steps'",
    "[train]\nsteps = 'few'": "must be a whole number",
    "[model]\nn_hidden = [1, 2]": "must be a whole number",
    "[corpus]\nmode = 'line'": "must be one of",
}


@pytest.mark.parametrize("text", CONFIGS)
def test_invalid_config_files_are_refused(refused, work, text):
    (work / "bad.toml").write_text(text)
    assert CONFIGS[text] in refused("train", "words.txt", "--model", "mlp", "--config", "bad.toml")


def test_config_file_that_is_not_utf8_is_refused(refused, work):
    (work / "bad.toml").write_bytes(b"[train]\n# gar\xe7on\n")
    assert "is not TOML" in refused("train", "words.txt", "--config", "bad.toml")


RUNS = {
    "no folder": ("none", "no run at none"),
    "a file": ("words.txt", "words.txt is a file, not a run"),
    "another folder": (".", "is not a makemore run"),
    "overlong name": ("x" * 5000, "no run at"),
}


@pytest.mark.parametrize("command", ["eval", "sample"])
@pytest.mark.parametrize("kind", RUNS)
def test_path_that_is_not_a_run_is_refused(refused, command, kind):
    path, message = RUNS[kind]
    assert message in refused(command, path)


SAMPLE = {
    "unseen characters": (["--prompt", "Zé"], "not in the vocabulary: 'Z' 'é'"),
    "two lines": (["--prompt", "ba\nda"], "the prompt has several lines"),
    "unknown": (["--unknown", "guess"], "must be error or skip"),
    "top-k": (["--top-k", "0"], "--top-k 0: must be 1 or more"),
    "temperature": (["--temperature", "-1"], "--temperature -1"),
    "nan temperature": (["--temperature", "nan"], "--temperature nan"),
    "n": (["-n", "0"], "-n 0: must be 1 or more"),
    "tokens": (["--max-new-tokens", "0"], "--max-new-tokens 0"),
    "top-p": (["--top-p", "2"], "--top-p 2"),
    "min-p": (["--min-p", "0"], "--min-p 0"),
    "stop": (["--stop", ""], "--stop ''"),
    "two prompts": (["--prompt", "b", "--prompt-file", "words.txt"], "can't be combined"),
    "nothing to learn from": (["--adaptive"], "give --prompt or --prompt-file"),
    "adaptive report": (["--adaptive", "--report"], "leave out --report"),
    "no prompt file": (["--prompt-file", "none.txt"], "no such file: none.txt"),
    "beam": (["--beam", "0"], "--beam 0: must be 1 or more"),
    "fewer beams than samples": (["--beam", "3", "-n", "5"], "raise --beam"),
    "beam and temperature": (["--beam", "3", "--temperature", "0.5"], "combined with --stop or sampling"),
    "beam and stop": (["--beam", "3", "--stop", "a"], "combined with --stop or sampling"),
    "length penalty": (["--beam", "3", "--length-penalty", "-1"], "--length-penalty -1"),
    "length penalty without beam": (["--length-penalty", "1"], "requires --beam"),
    "show-probs and beam": (["--show-probs", "--beam", "3"], "leave out --report"),
    "show-probs and report": (["--show-probs", "--report"], "leave out --report"),
    "novel-only and beam": (["--novel-only", "--beam", "3"], "leave out --report and --beam"),
    "novel-only and report": (["--novel-only", "--report"], "leave out --report and --beam"),
    "device": (["--device", "toaster"], "unknown device"),
    "word": (["-n", "many"], "-n"),
}


@pytest.mark.parametrize("mistake", SAMPLE)
def test_sample_refuses(refused, mistake):
    arguments, message = SAMPLE[mistake]
    assert message in refused("sample", "lines", *arguments)


def test_novel_only_is_refused_for_running_text(refused):
    assert "this run's text is one document" in refused("sample", "text", "--novel-only")


def test_report_needs_the_training_text(refused, work):
    train("prose.txt", "-m", "count", "--out", "run")
    (work / "prose.txt").unlink()
    assert "is missing" in refused("sample", "run", "--report")


def test_novel_only_gives_up_without_new_samples(refused, work):
    (work / "two.txt").write_text("bada\ndaba\n" * 40)
    train("two.txt", "-m", "count", "--mode", "lines", "--out", "run")
    message = refused("sample", "run", "--novel-only", "--temperature", "0.01", "-n", "2")
    assert "only 0 of 200 samples were new; lower -n or raise --temperature" in message


EVAL = {
    "split": (["lines", "--split", "vla"], "did you mean 'val'"),
    "empty split": (["lines", "--split", ""], "unknown split"),
    "joined splits": (["lines", "--split", "val+tset"], "unknown split"),
    "adaptive rate of counts": (["lines", "--adaptive", "--adaptive-lr", "0.1"], "learns by counting"),
    "adaptive rate": (["lines", "--adaptive-lr", "0.1"], "requires --adaptive"),
    "adaptive negative rate": (["lines", "--adaptive", "--adaptive-lr", "-1"], "needs lr >= 0"),
    "missing file": (["lines", "none.txt"], "no such file"),
    "run as text": (["lines", "text"], "is a run"),
}


@pytest.mark.parametrize("mistake", EVAL)
def test_eval_refuses(refused, mistake):
    arguments, message = EVAL[mistake]
    assert message in refused("eval", *arguments)


OTHERS = {
    "command": (["trian"], "Did you mean 'train'"),
    "option": (["--versoin"], "--version"),
    "no run": (["sample"], "Missing argument"),
    "no runs": (["compare"], "Missing argument"),
    "no out": (["mix", "lines", "lines"], "--out"),
    "model": (["models", "bigramm"], "did you mean 'bigram'"),
    "data": (["data", "shakespear"], "did you mean 'shakespeare'"),
    "gradcheck": (["gradcheck", "mlp"], "no hand-written backward pass"),
    "compare split": (["compare", "words.txt", "--split", "tset"], "did you mean 'test'"),
    "compare models": (["compare", "words.txt", "--models", "count,mpl"], "did you mean 'mlp'"),
    "compare mixture": (["compare", "words.txt", "--models", "count,mixture"], "made of trained runs"),
    "compare time": (["compare", "words.txt", "--max-time", "0"], "max-time '0'"),
    "compare tokenizers": (["compare", "words.txt", "--tokenizers", "char,bite"], "did you mean 'byte'"),
    "compare seeds": (["compare", "words.txt", "--seeds", "0"], "--seeds 0: must be 1 or more"),
    "compare steps": (["compare", "words.txt", "--steps", "0"], "--steps 0: must be 1 or more"),
    "compare no file": (["compare", "none.txt"], "no such file: none.txt"),
    "compare trained file": (["compare", "words.txt", "--file", "prose.txt"], "give run directories"),
    "compare formats": (["compare", "lines", "--csv", "--json"], "can't be combined"),
    "compare common file": (["compare", "lines", "text", "--file", "none.txt"], "no such file"),
    "compare text and run": (["compare", "words.txt", "lines"], "words.txt is not a run directory"),
    "compare folder": (["compare", "."], "give its runs, such as lines"),
    "compare run twice": (["compare", "lines", "./lines"], "lines is given twice"),
    "compare runs with budget": (["compare", "lines", "--max-time", "5s"], "--max-time is for training"),
    "compare runs with models": (["compare", "lines", "--models", "lstm"], "--models is for training"),
    "compare splits": (["compare", "lines", "text"], "different splits"),
    "mix one": (["mix", "lines", "--out", "m"], "at least two runs"),
    "mix over a run": (["mix", "lines", "lines", "--out", "text"], "already holds"),
    "score no file": (["score", "lines", "none.txt"], "no such file: none.txt"),
    "score no run": (["score", "none", "words.txt"], "no run at none"),
    "score against": (["score", "lines", "prose.txt", "--against", "text"], "same mode"),
    "score page": (["score", "lines", "words.txt", "--html", "words.txt/page.html"], "can't write"),
    "extra argument": (["eval", "lines", "words.txt", "more"], "more"),
}


@pytest.mark.parametrize("mistake", OTHERS)
def test_other_commands_refuse(refused, mistake):
    arguments, message = OTHERS[mistake]
    assert message in refused(*arguments)


def test_no_command_shows_the_help(work):
    result = call()
    assert result.status == 2
    assert "Train and sample" in result.err


class TestOverwriting:
    def test_other_folders_are_refused(self, refused, work):
        (work / "mine").mkdir()
        (work / "mine" / "letter.txt").write_text("dear reader")
        line = refused("train", "words.txt", "-m", "count", "--out", "mine", "--overwrite")
        assert "mine is not a run directory and is not overwritten" in line

    def test_folder_with_another_program_s_config_is_refused(self, refused, work):
        (work / "mine").mkdir()
        (work / "mine" / "config.json").write_text('{"name": "app", "sha256": "?"}')
        assert "is not overwritten" in refused(
            "train", "words.txt", "-m", "count", "--out", "mine", "--overwrite"
        )

    def test_file_is_refused(self, refused, work):
        assert "is not overwritten" in refused(
            "train", "words.txt", "-m", "count", "--out", "prose.txt", "--overwrite"
        )

    def test_parent_folder_of_mixture_members_is_refused(self, refused, work):
        assert "is not overwritten" in refused("mix", "lines", "lines", "--out", ".", "--overwrite")

    def test_run_is_replaced_and_other_files_are_kept(self, work):
        (work / "lines" / "notes.txt").write_text("mine")
        train("words.txt", "-m", "bigram", "--steps", "2", "--out", "lines", "--overwrite")
        assert (work / "lines" / "notes.txt").read_text() == "mine"
        assert call("sample", "lines").status == 0

    def test_run_with_damaged_config_is_replaced(self, work):
        (work / "lines" / "config.json").write_text("{")
        train("words.txt", "-m", "count", "--out", "lines", "--overwrite")
        assert call("eval", "lines").status == 0

    def test_empty_folder_needs_no_overwrite(self, work):
        (work / "new").mkdir()
        train("words.txt", "-m", "count", "--out", "new")

    def test_invalid_settings_leave_the_run_unchanged(self, work):
        before = listing(work)
        assert call("train", "words.txt", "--out", "lines", "--overwrite", "--seed", "-1").status == 2
        assert listing(work) == before


def test_vocabulary_too_large_for_memory_is_refused(refused, monkeypatch):
    monkeypatch.setattr("makemore.training.planning.LARGE_VOCABULARY", 5)
    monkeypatch.setattr("makemore.training.planning.total_memory_gb", lambda device: 1e-7)
    assert "take about" in refused("train", "words.txt", "--model", "bigram")
