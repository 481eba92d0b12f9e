"""A model card: what an exported model was trained on and how, its scores, and what it copies."""

from __future__ import annotations

import contextlib
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
from makemore.runs.schema import Environment, RunRecord
from makemore.runtime.files import read_json
from makemore.sampling.text import SampleRequest
from makemore.settings import ModelConfig, Settings, TrainConfig, parse
from makemore.settings.base import flatten
from makemore.training.planning import DEFAULT_SECONDS, has_budget
from makemore.types import MIN_COPIED

N_SAMPLES = {"lines": 200, "text": 5}
"""Samples that are compared with the training text, by mode."""
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
    config, model = run.config, run.model
    rows: list[tuple[str, Any]] = [("parameters or counts", f"{model.n_parameters():,}")]
    if not isinstance(model, MixtureModel):
        return [*rows, *_used_settings(config.model, config.train).items()]
    rows += [("members", ", ".join(member.run for member in config.mixed)), *_budget_rows(run)]
    rows += _flat(config.model, "model.").items()
    for record, member in zip(config.mixed, model.members, strict=True):
        used = _used_settings(member.config, record.train)
        rows += [(f"{record.run}: {name}", value) for name, value in used.items()]
    return rows


def _budget_rows(run: Run) -> list[tuple[str, Any]]:
    """The budget of all members together, if they were trained in this run."""
    requested = run.folder.read_requested()
    if not requested:
        return []
    train = parse(TrainConfig, requested.get("train", {}), "train")
    seconds = train.max_time if has_budget(train) else DEFAULT_SECONDS
    when = ", before it was resumed" if any(record.resumed for record in _member_records(run)) else ""
    budgets = ((f"budget in steps{when}", train.steps), (f"budget in seconds{when}", seconds))
    return [(name, value) for name, value in budgets if value is not None]


def _member_records(run: Run) -> list[RunRecord]:
    records = []
    for folder in run.folder.members:
        with contextlib.suppress(UserError):  # the mixture has a copy of what it needs
            records.append(folder.read_config())
    return records


def _used_settings(model: ModelConfig, train: TrainConfig) -> dict[str, Any]:
    """Settings of a model and of its training, by dotted name; of counting, only the budget."""
    trained = _flat(train, "train.")
    if train.optimizer.name == "none":
        trained = {name: value for name, value in trained.items() if name == "train.max_time"}
    return _flat(model, "model.") | trained


def _flat(settings: Settings, prefix: str) -> dict[str, Any]:
    values = flatten(settings.model_dump(mode="json", exclude={"members"}), prefix)
    return {name: value for name, value in values.items() if value is not None}


def _machine_rows(run: Run) -> list[tuple[str, Any]]:
    own = run.config.environment
    environments = {run.name: own} if own else _member_environments(run)
    rows = []
    for name in ("device", "precision", "threads", "processes", "machine"):
        values = {member: getattr(environment, name) for member, environment in environments.items()}
        if len(set(values.values())) > 1:
            rows.append((name, ", ".join(f"{value} ({member})" for member, value in values.items())))
        elif values:
            rows.append((name, next(iter(values.values()))))
    return [*rows, *run.config.versions.items()]


def _member_environments(run: Run) -> dict[str, Environment]:
    return {r.model.name: r.environment for r in _member_records(run) if r.environment is not None}
