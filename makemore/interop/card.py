"""A model card: what an exported model was trained on and how, its scores, and what it copies."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from makemore.errors import UserError
from makemore.evaluation.memorization import Originality, sample_memorization
from makemore.models import MODELS
from makemore.runs.directory import RESULT
from makemore.runs.run import Run
from makemore.runtime.files import read_json
from makemore.sampling.text import SampleRequest
from makemore.settings.base import flatten

N_SAMPLES = {"lines": 200, "text": 5}
"""Samples that are compared with the training text, by mode."""


def model_card(run: Run, front_matter: str = "") -> bytes:
    """The card in Markdown; names that aren't UTF-8 get question marks.

    ``front_matter``: YAML at its head, read by model hubs.
    """
    config, model = run.config, MODELS.get(run.config.model.name)
    parts = [
        f"---\n{front_matter}\n---\n" if front_matter else "",
        f"# {run.name}\n",
        f"A language model ({config.model.name}: {model.summary}), trained on *{config.text.name}* with "
        f"makemore {config.versions.get('makemore', '')} and exported from its run.\n",
        "**Licence:** not stated. Before publishing this model, choose a licence that the training text's "
        "licence allows.\n",
        f"## Training text\n\n{_table(_text_rows(run))}",
        f"## Scores\n\n{_scores(run)}",
        f"## Copies of the training text\n\n{_copies(run)}",
        f"## Settings\n\n{_table(_setting_rows(run))}",
        f"## Environment\n\n{_table(_machine_rows(run))}",
    ]
    return "\n".join(part for part in parts if part).encode("utf-8", errors="replace")


def _table(rows: Iterable[tuple[str, Any]]) -> str:
    cells = [(name, str(value).replace("|", r"\|").replace("\n", " ")) for name, value in rows]
    return "| | |\n|---|---|\n" + "".join(f"| {name} | {value} |\n" for name, value in cells)


def _text_rows(run: Run) -> list[tuple[str, Any]]:
    text = run.config.text
    shares = " / ".join(f"{fraction:.0%}" for fraction in text.fractions)
    kind = "one document per line" if run.mode == "lines" else "running text"
    return [
        ("name", text.name),
        ("read as", f"{kind}, by {run.config.tokenizer} tokens"),
        ("train / val / test", shares),
        *((f"tokens of {name}", f"{n:,}") for name, n in text.tokens.items()),
        *((f"sha256 of {name}", digest) for name, digest in text.digests.items()),
        *_line_rows(run),
    ]


def _line_rows(run: Run) -> list[tuple[str, Any]]:
    if run.mode != "lines":
        return []
    return [("identical lines in the same split", "yes" if run.config.corpus.dedupe else "not ensured")]


def _scores(run: Run) -> str:
    result = {} if run.folder.read_result() is None else read_json(run.folder.path / RESULT)
    name = "val" if result.get("val") else "train"
    score = result.get(name)
    if not score:
        return "Not scored during training; run `makemore eval` to score the model.\n"
    low, high = score.get("ci95") or (None, None)
    interval = f" (95 %: {low:.4f} to {high:.4f})" if low is not None and high is not None else ""
    rows: list[tuple[str, Any]] = [
        ("split", f"{name}, {score['tokens']:,} tokens"),
        ("nats per token", f"{score['nll']:.4f}"),
        ("bits per byte", f"{score['bits_per_byte']:.4f}{interval}"),
    ]
    baseline = result.get("baseline")
    if baseline:
        rows.append(("n-gram model for comparison, nats per token", f"{baseline['nll']:.4f}"))
    note = "The score is frozen: the model doesn't learn from the scored text. "
    chosen = (
        "The best weights were chosen on val.\n"
        if name == "val"
        else "The text had no held-out part, so this is the loss on the training text.\n"
    )
    return _table(rows) + "\n" + note + chosen


def _copies(run: Run) -> str:
    n = N_SAMPLES[run.mode]
    try:
        report = sample_memorization(run, [SampleRequest(n=n, seed=0)])
    except UserError as error:
        return f"Not measured: {str(error).partition(';')[0]}.\n"
    samples = _copied(report.samples)
    held_out = (
        "" if report.held_out is None else f" In held-out text of the same size, {_copied(report.held_out)}."
    )
    return f"In {n} samples with seed 0, {samples}.{held_out}\n"


def _copied(texts: Originality) -> str:
    if texts.verbatim is not None:
        return f"{texts.verbatim:.1%} are lines of the training text"
    return (
        f"the longest passage that also occurs in the training text has {texts.copied_mean:.0f} characters "
        f"on average, {texts.copied_max} at most"
    )


def _setting_rows(run: Run) -> list[tuple[str, Any]]:
    values = flatten(run.config.model_dump(mode="json", include={"model", "train"}))
    members = [("members", ", ".join(member.run for member in run.config.mixed))] if run.config.mixed else []
    return [
        ("parameters or counts", f"{run.model.n_parameters():,}"),
        *members,
        *((name, value) for name, value in values.items() if value is not None and name != "model.members"),
    ]


def _machine_rows(run: Run) -> list[tuple[str, Any]]:
    environment = run.config.environment
    shown = ("device", "precision", "threads", "processes", "machine")
    machine = [] if environment is None else [(name, getattr(environment, name)) for name in shown]
    return [*machine, *run.config.versions.items()]
