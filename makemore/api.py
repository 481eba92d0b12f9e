"""The Python API: train, load, sample, score, compare and mix."""

from __future__ import annotations

import multiprocessing
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from makemore.arguments import in_python_terms, python_terms
from makemore.comparison.compare import CompareRequest
from makemore.comparison.compare import compare as run_comparison
from makemore.comparison.result import Comparison
from makemore.evaluation.evaluate import adapted_run, adaptive_score
from makemore.evaluation.evaluate import evaluate as evaluate_run
from makemore.evaluation.surprisal import Surprisal, surprisal
from makemore.interop.hf import read_pretrained
from makemore.runs import run as runs
from makemore.sampling.logits import SampleParams
from makemore.sampling.novel import sample_novel
from makemore.sampling.text import SampleRequest, context_ids, random_seed, sample, stream_text
from makemore.settings.base import flatten
from makemore.settings.train import parse_duration
from makemore.training.mixing.mix import mix as mix_runs
from makemore.training.observers import MultiObserver, Observer
from makemore.training.request import TrainRequest
from makemore.training.train import train as train_run
from makemore.types import Score


class Run(runs.Run):
    """A trained model with its tokenizer and settings; see ``load`` and ``train``.

    Attributes:
        model: The torch module, in eval mode.
        tokenizer: Encodes text to token ids and decodes ids to text.
        config: The contents of ``config.json``.
        folder: The run directory.
    """

    @in_python_terms
    def sample(
        self,
        n: int = 10,
        prompt: str = "",
        *,
        max_new_tokens: int | None = None,
        temperature: float = 1.0,
        top_k: int | None = None,
        top_p: float | None = None,
        min_p: float | None = None,
        greedy: bool = False,
        stop: str | None = None,
        seed: int | None = None,
        novel_only: bool = False,
        adaptive: bool = False,
    ) -> list[str]:
        """Sample texts that begin with ``prompt``, in batches as large as memory and caches allow.

        Args:
            n: Number of samples. With a fixed seed, sample i is the same for any ``n``.
            prompt: Text that every sample begins with (in ``lines`` mode, the beginning of a line).
            max_new_tokens: Length limit (default: 500, or four times the longest training line).
            temperature: Below 1 sharpens the distribution, above 1 flattens it, 0 is greedy.
            top_k: Sample from the k most probable tokens only.
            top_p: Sample from the fewest tokens whose probabilities sum to at least this.
            min_p: Drop tokens less probable than this fraction of the most probable one.
            greedy: Always take the most probable token.
            stop: End a sample before this string.
            seed: Makes the samples repeatable; random by default.
            novel_only: Skip samples that are training lines (``lines`` mode).
            adaptive: The model learns from the prompt before it continues it.

        Returns:
            The samples, prompt included.

        Raises:
            UserError: a value is out of range, or the tokenizer can't encode the prompt.
        """
        request = SampleRequest(
            n=n,
            prompt=prompt,
            max_new_tokens=max_new_tokens,
            params=SampleParams(temperature, top_k, top_p, min_p, greedy),
            stop=stop,
            seed=random_seed() if seed is None else seed,
        )
        run = adapted_run(self, request) if adaptive else self
        return list((sample_novel if novel_only else sample)(run, request))

    @in_python_terms
    def generate(
        self,
        prompt: str = "",
        *,
        max_new_tokens: int | None = None,
        temperature: float = 1.0,
        top_k: int | None = None,
        top_p: float | None = None,
        min_p: float | None = None,
        greedy: bool = False,
        stop: str | None = None,
        seed: int | None = None,
        adaptive: bool = False,
    ) -> Iterator[str]:
        """Stream one continuation of ``prompt``, in pieces of whole characters, as they are generated.

        Takes the arguments of ``sample``; an invalid argument raises UserError here, not at the first piece.
        """
        request = SampleRequest(
            n=1,
            prompt=prompt,
            max_new_tokens=max_new_tokens,
            params=SampleParams(temperature, top_k, top_p, min_p, greedy),
            stop=stop,
            seed=random_seed() if seed is None else seed,
        )
        context_ids(self, request)  # check the prompt
        return stream_text(adapted_run(self, request) if adaptive else self, request)

    @in_python_terms
    def evaluate(
        self,
        split: str | None = None,
        *,
        file: str | Path | None = None,
        stride: int | None = None,
        adaptive: bool = False,
    ) -> Score:
        """Score every token of a split exactly once.

        Args:
            split: ``val`` (default), ``test``, ``train`` or ``val+test``.
            file: Another text, scored in full unless ``split`` is given.
            stride: Step between overlapping windows in tokens (default: half the context).
            adaptive: The model learns from each part of the text once it has predicted it.

        Raises:
            UserError: the split is unknown or empty, the text is missing, changed or unreadable, or the model
                can't learn.
        """
        score = adaptive_score if adaptive else evaluate_run
        return score(self, None if file is None else Path(file), split, stride)

    @in_python_terms
    def score(self, text: str | Path, *, adaptive: bool = False) -> Surprisal:
        """Surprisal in bits of each piece of a text (a string, or a Path to a file), and the total score;
        ``adaptive``: the model learns from each piece once it has predicted it.

        Raises UserError if the file can't be read or has no characters that the tokenizer knows.
        """
        return surprisal(self, text, adaptive=adaptive)


def _wrap(run: runs.Run) -> Run:
    return Run(run.folder, run.config, run.tokenizer, run.model)


@in_python_terms
def load(path: str | Path, device: str = "auto") -> Run:
    """Load a run directory.

    Args:
        path: The directory that training wrote.
        device: ``auto``, ``cpu``, ``cuda``, ``cuda:1`` or ``mps``.

    Raises:
        UserError: the directory isn't a run or is damaged, or its model or the device is unknown.
    """
    return _wrap(runs.load(path, device))


class _PythonNotes(MultiObserver):
    """Forwards events, with arguments in place of flags in notes."""

    def note(self, text: str) -> None:
        super().note(python_terms(text, train))


@in_python_terms
def train(
    text: str | Path | Sequence[str | Path] = (),
    model: str | None = None,
    *,
    tokenizer: str | None = None,
    steps: int | None = None,
    max_time: str | float | None = None,
    out: str | Path | None = None,
    seed: int = 0,
    device: str = "auto",
    mode: str = "auto",
    settings: Mapping[str, Any] | None = None,
    init_from: str | Path | None = None,
    resume: bool = False,
    overwrite: bool = False,
    observer: Observer | None = None,
) -> Run:
    """Train a model on a text and score it on val; the run is saved and returned.

    Issues a UserWarning, with what to do, if the model is worse than n-gram counts or than guessing.

    Args:
        text: Files, directories, globs, URLs or data set names, as for ``makemore train``.
        model: A name from ``makemore models`` (default: ``auto``, or the model of ``init_from``).
        tokenizer: A name such as ``char`` (default), ``byte`` or ``bpe:512``.
        steps: Number of optimizer steps.
        max_time: Training time: seconds, or a string such as ``"90s"`` or ``"5m"`` (default without
            ``steps``: two minutes).
        out: Run directory (default: ``checkpoints/TEXT-MODEL``).
        seed: Random seed for weights, batches and dropout.
        device: ``auto``, ``cpu``, ``cuda``, ``cuda:1`` or ``mps``.
        mode: ``lines``, ``text`` or ``auto``.
        settings: Other settings by dotted name, such as ``{"model.n_layer": 6, "train.lr": 1e-3}``.
        init_from: A run or a Hugging Face GPT-2 directory to fine-tune.
        resume: Resume an interrupted run.
        overwrite: Overwrite an existing run.
        observer: Receives progress; silent by default.

    Raises:
        UserError: a setting is invalid, the text can't be read, or training diverged.
    """
    texts = [text] if isinstance(text, str | Path) else text
    pretrained = None if init_from is None else read_pretrained(Path(init_from))
    limits = {"steps": steps, "max_time": parse_duration(max_time)}
    request = TrainRequest(
        input=tuple(map(str, texts)),
        model=model or "",
        tokenizer=tokenizer,
        out=None if out is None else Path(out),
        train={**{k: v for k, v in limits.items() if v is not None}, "seed": seed, "device": device},
        corpus={"mode": mode},
        settings=tuple(f"{name}={value}" for name, value in flatten(settings or {}).items()),
        resume=resume,
        overwrite=overwrite,
        pretrained=pretrained,
    )
    result = train_run(request, observer and _PythonNotes(observer))
    if result.remark:
        warnings.warn(python_terms(result.remark, train), stacklevel=3)
    return _wrap(result.run)


@in_python_terms
def evaluate(run: str | Path | Run, split: str | None = None, *, file: str | Path | None = None) -> Score:
    """Score a run, or the run at a path; see ``Run.evaluate``."""
    return (run if isinstance(run, Run) else load(run)).evaluate(split, file=file)


def _commas(values: Any) -> str:
    return values if isinstance(values, str) else ",".join(map(str, values))


def _require_main_module() -> None:
    """Exit if a comparison started this process to train a run: it would start the comparison again."""
    if getattr(multiprocessing.current_process(), "_inheriting", False):
        raise SystemExit('makemore: put the call of makemore.compare under: if __name__ == "__main__":')


@in_python_terms
def compare(
    *inputs: str | Path,
    models: str | Sequence[str] = "all",
    tokenizers: str | Sequence[str] = "char",
    seeds: int = 1,
    steps: int | None = None,
    max_time: str | float | None = None,
    grid: Mapping[str, Sequence[Any]] | None = None,
    budget_total: str | float | None = None,
    scaling: bool = False,
    split: str | None = None,
    file: str | Path | None = None,
    adaptive: bool = False,
    out: str | Path | None = None,
    device: str = "auto",
    overwrite: bool = False,
    stop: Callable[[], bool] = lambda: False,
) -> Comparison:
    """Train models on one text with equal budgets, or load existing runs, and rank them, best first.

    Call this under ``if __name__ == "__main__":``: training processes import the calling script.

    Args:
        inputs: One text, or run directories.
        models, tokenizers, seeds: Names (or ``all`` models), number of seeds; all combinations are trained.
        steps, max_time: Optimizer steps and training time per run (default: 90 s).
        grid: Values of settings, such as ``{"model.n_layer": [2, 4]}``; every combination is trained.
        budget_total: Total training time; after each round, only the better half goes on.
        scaling: Train each model at several widths and for several times; fits ``Comparison.laws``.
        split, file: ``val`` (default), ``test`` or ``val+test``; or a file to score on instead.
        adaptive: Also rank the runs while they learn from the text they are scored on.
        out: Directory for the runs that are trained.
        device: ``auto``, ``cpu``, ``cuda``, ``cuda:1`` or ``mps``.
        overwrite: Retrain existing runs.
        stop: Polled during training; once it returns True, TrainingInterrupted is raised.

    Raises:
        UserError: a name is unknown, or the runs can't be ranked on one text.
    """
    _require_main_module()
    return run_comparison(
        CompareRequest(
            inputs=tuple(map(str, inputs)),
            models=_commas(models),
            tokenizers=_commas(tokenizers),
            seeds=seeds,
            steps=steps,
            max_time=parse_duration(max_time),
            grid=tuple(f"{name}={_commas(values)}" for name, values in (grid or {}).items()),
            total_time=parse_duration(budget_total),
            scaling=scaling,
            split=split,
            file=None if file is None else Path(file),
            adaptive=adaptive,
            out=None if out is None else Path(out),
            device=device,
            overwrite=overwrite,
        ),
        stop=stop,
    )


@in_python_terms
def mix(
    paths: Sequence[str | Path],
    out: str | Path,
    *,
    gate: bool = True,
    device: str = "auto",
    overwrite: bool = False,
) -> Run:
    """Combine runs that share a tokenizer and text into a mixture whose weights are fitted on val.

    Args:
        paths: Two or more run directories.
        out: Run directory of the mixture.
        gate: Whether weights depend on what the runs predict at each token, or are constant.
        device: ``auto``, ``cpu``, ``cuda``, ``cuda:1`` or ``mps``.
        overwrite: Overwrite an existing run.

    Raises:
        UserError: the runs differ in tokenizer or text, or ``out`` already exists.
    """
    return _wrap(mix_runs(paths, Path(out), device, overwrite, gate).run)
