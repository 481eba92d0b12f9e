"""A model card: what an exported model was trained on and how, its scores, and what it copies."""

from __future__ import annotations

import itertools
from collections.abc import Iterable
from typing import Any

from makemore.errors import UserError
from makemore.evaluation.memorization import Originality, sample_memorization
from makemore.models import MODELS
from makemore.models.base import CountModel, LanguageModel, MixtureModel
from makemore.models.count import Count
from makemore.runs.directory import RESULT
from makemore.runs.run import Run
from makemore.runtime.files import read_json
from makemore.sampling.text import SampleRequest
from makemore.settings.base import flatten

N_SAMPLES = {"lines": 200, "text": 5}
"""Samples that are compared with the training text, by mode."""
MIN_COPIED = 0.01
"""Minimum share of copied text that is mentioned, as by ``makemore eval``."""
NO_VAL = "The text had no held-out part, so this is the loss on the training text."


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
    rows: list[tuple[str, Any]] = [
        ("split", f"{name}, {score['tokens']:,} tokens"),
        ("nats per token", _number(score["nll"])),
        ("bits per byte", _number(score["bits_per_byte"]) + _interval(score)),
    ]
    baseline = result.get("baseline")
    if baseline:
        rows.append(("n-gram model for comparison, nats per token", f"{baseline['nll']:.4f}"))
    sentences = [
        "The score is frozen: the model doesn't learn from the scored text.",
        *([*_chosen_on_val(run.model), *_remarks(score)] if name == "val" else [NO_VAL]),
    ]
    return _table(rows) + "\n" + " ".join(sentences) + "\n"


def _number(value: float | None) -> str:
    return "infinite" if value is None else f"{value:.4f}"


def _interval(score: dict[str, Any]) -> str:
    bounds = score.get("ci95")
    if not bounds or score["bits_per_byte"] is None:
        return ""
    low, high = bounds
    if low is None or high is None:
        return " (too short for an interval)"
    return f" (95 %: {low:.4f} to {high:.4f})"


def _chosen_on_val(model: LanguageModel, of: str = "") -> list[str]:
    """What of a model was chosen or fitted on val, in sentences. ``of``: names the model in its mixture."""
    if isinstance(model, MixtureModel):
        gate = "The gate was fitted on val; each half of val was scored by a gate fitted on the other half."
        weights = "The weights of the members were fitted on val, so the score is slightly optimistic."
        members = [_chosen_on_val(member, f" of {member.config.name}") for member in model.members]
        return [gate if model.is_gated else weights, *dict.fromkeys(itertools.chain(*members))]
    if isinstance(model, Count):
        return [f"The n-gram order{of} was chosen on val, unless it was set."]
    if isinstance(model, CountModel):
        return []
    return [f"The best weights{of} were chosen on val."]


def _remarks(score: dict[str, Any]) -> list[str]:
    """What ``makemore eval`` remarks if val occurs in train."""
    remarks = []
    if score.get("all_in_train"):
        remarks.append("Every document of val is in train: the score measures memory.")
    if score.get("copied", 0) >= MIN_COPIED:
        remarks.append(f"{score['copied']:.0%} of val occurs verbatim in train, in long passages.")
    return remarks


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
