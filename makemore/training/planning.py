"""Resolve a training request into a plan: text, model, recipe, device and folder."""

from __future__ import annotations

import dataclasses
import platform
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from makemore.corpus.datasets import resolve_input
from makemore.corpus.source import Source
from makemore.corpus.splits import Corpus, make_corpus
from makemore.corpus.text import read_source
from makemore.errors import UserError
from makemore.models import MODELS
from makemore.models.base import CountModel, LanguageModel, ManualModel
from makemore.runs.directory import RunDir
from makemore.runs.run import versions
from makemore.runtime import distributed as parallel
from makemore.runtime.device import pick_device, pick_precision, should_compile, total_memory_gb
from makemore.runtime.memory import construct_model
from makemore.settings import CorpusConfig, CorpusStats, TrainConfig, parse_settings, replace_settings
from makemore.tokenizers import TOKENIZERS, Tokenizer
from makemore.training.init_from import check_encodable, fine_tune_recipe, load_weights, read_start
from makemore.training.kernels import GradientKernel, gradient_kernel
from makemore.training.observers import Observer

SECTIONS = ("model", "train", "corpus")
DEFAULT_SECONDS = 120.0
"""Training time if neither steps nor time are set."""
LARGE_VOCABULARY = 4096
BYTES_PER_PARAMETER = 16
"""Weights, gradients, and the optimizer's two moments, in float32."""


@dataclass(frozen=True)
class TrainRequest:
    """What to train. ``settings`` are ``section.key=value`` strings and override everything else."""

    input: str | tuple[str, ...] | None = None
    """Inputs as ``makemore train`` takes them; None: the data set that ships with makemore."""
    model: str = "transformer"
    tokenizer: str | None = None
    """None: ``char``, or the tokenizer of the resumed run."""
    out: Path | None = None
    train: Mapping[str, Any] = field(default_factory=dict)
    """Requested fields of TrainConfig."""
    corpus: Mapping[str, Any] = field(default_factory=dict)
    """Requested fields of CorpusConfig."""
    settings: tuple[str, ...] = ()
    config: Path | None = None
    resume: bool = False
    overwrite: bool = False
    init_from: Path | None = None
    """Run or Hugging Face folder to load weights and tokenizer from; ``tokenizer`` is then ignored."""


@dataclass(frozen=True)
class Plan:
    """A resolved request: everything needed to train."""

    folder: RunDir
    source: Source
    model_name: str
    model: LanguageModel
    tokenizer_spec: str
    corpus: Corpus
    train: TrainConfig
    corpus_config: CorpusConfig
    device: torch.device
    precision: torch.dtype
    compiled: bool
    """With ``torch.compile``."""
    native: GradientKernel | None
    """The C implementation, if it computes loss and gradients."""
    init_from: str = ""
    """Where the initial weights come from; empty if random."""


def prepare(request: TrainRequest, observer: Observer) -> Plan:
    """Check and resolve a request without writing to disk. Raises UserError if it is invalid."""
    kind = MODELS.get(request.model)
    if not kind.is_trainable:
        raise UserError(f"a {request.model} combines trained runs; use makemore mix RUN RUN --out DIR")
    tokenizer = request.tokenizer or "char"
    TOKENIZERS.path(tokenizer.partition(":")[0])
    overrides = requested_settings(request)
    source = open_source(request)
    folder = RunDir(run_folder(request, source))
    check_run_dir(folder, request)
    corpus_config = replace_settings(CorpusConfig(), overrides["corpus"], "corpus")
    start = read_start(request.init_from, request.model) if request.init_from else None
    corpus = tokenize_source(
        source,
        corpus_config,
        start.tokenizer if start else tokenizer,
        observer,
        require_encodable=start is not None,
    )
    if min(len(s.tokens_N) for s in corpus.splits.values() if len(s.starts_D)) < 2:
        raise UserError(f"{source.name} is too short: each split needs at least two tokens; use more text")
    for note in _corpus_notes(source, corpus):
        observer.note(note)
    device = pick_device(str(overrides["train"].get("device", "auto")))
    recipe = kind.recipe(corpus_stats(corpus, overrides["train"], device))
    if start:
        request = dataclasses.replace(request, tokenizer=start.spelling)
        recipe = fine_tune_recipe(start, recipe, corpus.mode)
    model_config = replace_settings(recipe.model, overrides["model"], "model")
    train = replace_settings(recipe.train, overrides["train"], "train")
    if issubclass(kind, CountModel) and overrides["train"].get("max_time") is None:
        train = dataclasses.replace(train, max_time=None)  # a single pass has no time limit
    if sharded(train) and train.optimizer == "muon" and "optimizer" not in overrides["train"]:
        observer.note("using adamw: muon needs unsharded matrices")
        train = dataclasses.replace(train, optimizer="adamw")
    model_config, train = fit_context(kind, model_config, train, corpus, observer)
    _check_memory(kind, model_config, corpus.tokenizer, device, observer)
    model = make_model(kind, model_config, corpus.tokenizer, train.seed)
    if start:
        load_weights(model, start)
    return plan_run(request, folder, source, model, corpus, train, corpus_config)


def open_source(request: TrainRequest) -> Source:
    """Open the input text. Raises UserError if it doesn't exist."""
    names = (request.input,) if isinstance(request.input, str) else request.input or ()
    return resolve_input(names)


def run_folder(request: TrainRequest, source: Source) -> Path:
    """The run directory: ``--out``, or a name made from the text and the model."""
    tuned = "-tuned" if request.init_from else ""
    return request.out or Path("checkpoints") / f"{source.stem}-{request.model}{tuned}"


def requested_settings(request: TrainRequest) -> dict[str, dict[str, Any]]:
    """Requested settings by section; --set overrides flags, which override the TOML file."""
    settings = _read_config(request.config)
    settings["train"].update(request.train)
    settings["corpus"].update(request.corpus)
    for name, values in parse_settings(list(request.settings), SECTIONS).items():
        settings[name].update(values)
    return settings


def _read_config(path: Path | None) -> dict[str, dict[str, Any]]:
    """Read a TOML file by section. Raises UserError if missing, malformed, or with unknown sections."""
    if path is None:
        return {name: {} for name in SECTIONS}
    try:
        data = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"can't read {path}: {error.strerror}") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise UserError(f"{path} is not TOML: {error}") from None
    for name, section in data.items():
        if name not in SECTIONS or not isinstance(section, dict):
            raise UserError(f"{path}: {name!r} is not a section; use [{'], ['.join(SECTIONS)}]")
    return {name: dict(data.get(name, {})) for name in SECTIONS}


def corpus_stats(corpus: Corpus, train: Mapping[str, Any], device: torch.device) -> CorpusStats:
    """Collect the inputs of a recipe. ``train``: requested fields of TrainConfig."""
    split = corpus.splits["train"]
    config = replace_settings(TrainConfig(), train, "train")
    no_budget = not has_budget(config)
    return CorpusStats(
        mode=corpus.mode,
        train_tokens=len(split.tokens_N),
        vocab_size=corpus.tokenizer.vocab_size,
        documents=len(split.starts_D),
        longest_document=int((split.ends_D - split.starts_D).max()),
        device=device.type,
        steps=config.steps,
        max_time=DEFAULT_SECONDS if no_budget else config.max_time,
    )


def has_budget(config: TrainConfig) -> bool:
    """Whether steps or time are limited. Raises UserError if either isn't positive."""
    if config.steps is not None and config.steps < 1:
        raise UserError(f"--steps {config.steps}: must be 1 or more")
    if config.max_time is not None and config.max_time <= 0:
        raise UserError(f"--max-time {config.max_time:g}: must be above 0")
    return config.steps is not None or config.max_time is not None


def tokenize_source(
    source: Source,
    config: CorpusConfig,
    tokenizer: str | Tokenizer,
    observer: Observer,
    require_encodable: bool = False,
) -> Corpus:
    """Tokenize a text. ``require_encodable``: raise UserError if the tokenizer can't encode all of it."""
    with parallel.local_main_first():
        text = read_source(source, config.encoding)
        corpus = make_corpus(text, config, tokenizer, observer.encoding)
        if require_encodable:
            check_encodable(corpus, text)
    return corpus


def _corpus_notes(source: Source, corpus: Corpus) -> list[str]:
    notes = [corpus.note, corpus.tokenizer.note]
    if source.skipped:
        notes.append(f"skipped {source.skipped:,} files that aren't text")
    if corpus.blank_lines:
        notes.append(f"skipped {corpus.blank_lines:,} blank lines")
    if corpus.capped:
        held_out = sum(len(corpus.splits[name].starts_D) for name in ("val", "test"))
        unit = (
            f"{held_out:,} lines"
            if corpus.mode == "lines"
            else f"{corpus.splits['val'].chars:,} characters each"
        )
        notes.append(f"val and test limited to {unit}; set shares with --split")
    return [note for note in notes if note]


def check_run_dir(folder: RunDir, request: TrainRequest) -> None:
    """Raise UserError if the run directory is taken and may not be overwritten."""
    if folder.is_occupied and not request.overwrite:
        why = "already holds a run; add --resume, --overwrite" if folder.exists else "is not a run; move it"
        raise UserError(f"{folder.path} {why}, or name another --out DIR")


def fit_context(
    kind: type[LanguageModel], model_config: Any, train: TrainConfig, corpus: Corpus, observer: Observer
) -> tuple[Any, TrainConfig]:
    """Limit the model's and the trainer's block_size to the length of the training text."""
    n_train = len(corpus.splits["train"].tokens_N)
    if not kind.supports_streaming and corpus.mode == "text" and model_config.block_size > n_train:
        observer.note(f"block_size reduced from {model_config.block_size} to {n_train}, the text's length")
        model_config = dataclasses.replace(model_config, block_size=n_train)
    return model_config, dataclasses.replace(train, block_size=min(train.block_size, n_train))


def _check_memory(
    kind: type[LanguageModel], config: Any, tokenizer: Tokenizer, device: torch.device, observer: Observer
) -> None:
    """Note the training memory of a large-vocabulary model. Raises UserError if it exceeds the device's."""
    if issubclass(kind, CountModel) or tokenizer.vocab_size < LARGE_VOCABULARY:
        return
    parameters = count_parameters(kind, config, tokenizer.vocab_size)
    needed = parameters * BYTES_PER_PARAMETER / 1e9
    cost = (
        f"{parameters:,} parameters for {tokenizer.vocab_size:,} tokens take about {needed:.1f} GB to train"
    )
    memory = total_memory_gb(device)
    if memory is not None and needed > memory:
        raise UserError(f"{cost}, but only {memory:.1f} GB exist; use a smaller vocabulary, such as bpe:512")
    if needed >= 1:
        observer.note(cost)


def count_parameters(kind: type[LanguageModel], config: Any, vocab_size: int) -> int:
    """Number of parameters of a model, without allocating it."""
    with torch.device("meta"):
        return kind(config, vocab_size, 0).n_parameters()


def make_model(
    kind: type[LanguageModel], config: Any, tokenizer: Tokenizer, seed: int, most: int | None = None
) -> LanguageModel:
    """Initialise a model. Raises UserError if it needs more than ``most`` bytes or doesn't fit in memory."""
    torch.manual_seed(seed)
    return construct_model(kind, config, tokenizer.vocab_size, tokenizer.boundary_id, most)


def plan_run(
    request: TrainRequest,
    folder: RunDir,
    source: Source,
    model: LanguageModel,
    corpus: Corpus,
    train: TrainConfig,
    corpus_config: CorpusConfig,
) -> Plan:
    """Complete a plan from the model and the training settings."""
    if not model.supports_streaming and model.max_len and train.block_size > model.max_len:
        train = dataclasses.replace(train, block_size=model.max_len)
    if train.loader == "packed" and not model.supports_packing:
        raise UserError(f"train.loader=packed: {request.model} needs one document per row; use 'documents'")
    if train.loader == "streams" and (not model.supports_streaming or isinstance(model, ManualModel)):
        raise UserError(
            f"train.loader=streams: {request.model} carries no state between batches; use 'windows'"
        )
    device = pick_device(train.device)
    precision = pick_precision(train, device, model.supports_autocast)
    native = pick_native(model, train, device, precision)
    return Plan(
        folder,
        source,
        request.model,
        model,
        request.tokenizer or "char",
        corpus,
        train,
        corpus_config,
        device,
        precision,
        should_compile(train, device, model.supports_compile and native is None) and not sharded(train),
        native,
        str(request.init_from or ""),
    )


def pick_native(
    model: LanguageModel, train: TrainConfig, device: torch.device, precision: torch.dtype
) -> GradientKernel | None:
    """The model's C implementation, if it has one and training may use it."""
    allowed = train.compile == "auto" and device.type == "cpu" and not sharded(train)
    return gradient_kernel(model, precision) if allowed else None


def sharded(train: TrainConfig) -> bool:
    """Whether weights and optimizer states are sharded over several processes."""
    return train.shard and parallel.world_size() > 1


def run_config(plan: Plan) -> dict[str, Any]:
    """The contents of a run's ``config.json``."""
    corpus, split = plan.corpus, plan.corpus.splits["train"]
    return {
        "model": {"name": plan.model_name, "settings": dataclasses.asdict(plan.model.config)},
        "tokenizer": plan.tokenizer_spec,
        "corpus": {
            "paths": plan.source.saved(),
            "name": plan.source.stem,
            "mode": corpus.mode,
            "reason": corpus.reason,
            "shares": list(corpus.fractions),
            "split": plan.corpus_config.split,
            "dedupe": plan.corpus_config.dedupe,
            "encoding": plan.corpus_config.encoding,
            "digests": corpus.digests,
            "tokens": {name: len(s.tokens_N) for name, s in corpus.splits.items()},
            "longest_document": int((split.ends_D - split.starts_D).max()),
            "context": corpus.context,
        },
        "train": dataclasses.asdict(plan.train),
        "init_from": plan.init_from,
        "precision": str(plan.precision).removeprefix("torch."),
        "compiled": plan.compiled,
        "native": plan.native is not None,
        "device": str(plan.device),
        "threads": torch.get_num_threads(),
        "processes": parallel.world_size(),
        "launch": parallel.launch_id(),
        "machine": platform.machine(),
        "versions": versions(),
    }
