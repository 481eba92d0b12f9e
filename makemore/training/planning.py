"""Resolve a training request into a plan: text, model, recipe, device and run directory."""

from __future__ import annotations

import dataclasses
from typing import Any

import torch

from makemore.corpus.source import Source
from makemore.corpus.splits import Corpus, make_corpus
from makemore.corpus.text import read_source
from makemore.errors import UserError
from makemore.models import MODELS
from makemore.models.base import CountModel, LanguageModel
from makemore.runs.directory import RunDir
from makemore.runs.schema import RunConfig
from makemore.runtime import distributed, native
from makemore.runtime.device import pick_device, total_memory_gb
from makemore.runtime.files import MAX_BYTES
from makemore.runtime.memory import MemoryLimit, construct_model
from makemore.settings import CorpusConfig, CorpusStats, Recipe, TrainConfig, override
from makemore.tokenizers import Tokenizer, require_valid_spec
from makemore.training.learners import is_sharded
from makemore.training.learners.speed import measure_speed
from makemore.training.observers import Observer
from makemore.training.optimizers import OPTIMIZERS
from makemore.training.plan import Plan, make_plan
from makemore.training.pretrained import check_encodable, fine_tune_recipe, load_weights
from makemore.training.request import TrainRequest, open_source, run_folder
from makemore.types import DocumentEnds

DEFAULT_SECONDS = 120.0
"""Training time if neither steps nor time are set."""
LARGE_VOCABULARY = 1000
"""Vocabulary size from which memory is estimated and, for characters, another tokenizer suggested."""
BYTES_PER_PARAMETER = 16
"""Weights, gradients, and the optimizer's two moments, in float32."""
BYTES_PER_SAVED_PARAMETER = 16
"""The best weights and the copies of weights and moments that are made to save them."""
BYTES_PER_LOGIT = 12
"""Logits, log-probabilities and gradients of a batch, in float32."""
MIN_NOTED_GB = 1.0


def prepare(request: TrainRequest, observer: Observer) -> Plan:
    """Check and resolve a request without writing to disk. Raises UserError if it is invalid."""
    kind = MODELS.get(request.model)
    if not kind.is_trainable:
        raise UserError(f"a {request.model} is made from trained runs; use makemore mix")
    tokenizer = request.tokenizer or "char"
    require_valid_spec(tokenizer)
    requested, corpus_config = request.requested, request.requested.corpus
    device = pick_device(requested.train.runtime.device)
    source = open_source(request)
    folder = RunDir(run_folder(request, source))
    check_run_dir(folder, request)
    start = request.pretrained
    if start and start.model != request.model:
        raise UserError(f"{start.origin} holds a {start.model}, not a {request.model}; omit --model")
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
    recipe = _recipe(
        kind, corpus_stats(corpus, requested.train, device), requested, is_fine_tuning=start is not None
    )
    if start:
        recipe = fine_tune_recipe(start, recipe, corpus.mode)
    model_config = override(recipe.model, requested.model, "model")
    train = override(recipe.train, requested.train, "train")
    if train.optimizer.name != "none":
        OPTIMIZERS.path(train.optimizer.name)
    if issubclass(kind, CountModel) and requested.train.max_time is None:
        train = train.replace(max_time=None)  # a single pass has no time limit
    is_chosen = "name" in requested.train.optimizer.model_fields_set
    if is_sharded(train) and train.optimizer.name == "muon" and not is_chosen:
        observer.note("using adamw: muon needs unsharded matrices")
        train = train.replace(optimizer=train.optimizer.replace(name="adamw"))
    model_config, train = fit_context(kind, model_config, train=train, corpus=corpus, observer=observer)
    _check_memory(kind, model_config, corpus=corpus, train=train, device=device, observer=observer)
    model = make_model(kind, model_config, corpus.tokenizer, train.seed, corpus.document_ends)
    if start:
        load_weights(model, start)
    plan = make_plan(
        folder=folder,
        source=source,
        model=model,
        tokenizer_spec=start.tokenizer_spec if start else tokenizer,
        init_from=start.origin if start else "",
        corpus=corpus,
        train=train,
        corpus_config=corpus_config,
        device=device,
    )
    for note in [*native.failure_notes(), *_recipe_notes(recipe, requested)]:
        observer.note(note)
    return plan


def corpus_stats(corpus: Corpus, train: TrainConfig, device: torch.device) -> CorpusStats:
    """Collect the inputs of a recipe. ``train``: the requested settings."""
    split = corpus.splits["train"]
    return CorpusStats(
        mode=corpus.mode,
        train_tokens=len(split.tokens_N),
        vocab_size=corpus.tokenizer.vocab_size,
        documents=len(split.starts_D),
        longest_document=int((split.ends_D - split.starts_D).max()),
        device=device.type,
        steps=train.steps,
        max_time=train.max_time if has_budget(train) else DEFAULT_SECONDS,
    )


def has_budget(config: TrainConfig) -> bool:
    """Whether steps or time are limited."""
    return config.steps is not None or config.max_time is not None


def tokenize_source(
    source: Source,
    config: CorpusConfig,
    tokenizer: str | Tokenizer,
    observer: Observer,
    require_encodable: bool = False,
) -> Corpus:
    """Tokenize a text. ``require_encodable``: raise UserError if the tokenizer can't encode all of it."""
    with distributed.local_main_first():
        text = read_source(source, config)
        corpus = make_corpus(text, config, tokenizer, observer.encoding)
        if require_encodable:
            check_encodable(corpus, text)
    return dataclasses.replace(corpus, notes=(*text.notes, *corpus.notes))


def _recipe(
    kind: type[LanguageModel], stats: CorpusStats, requested: RunConfig, *, is_fine_tuning: bool
) -> Recipe:
    """The model's recipe; on a CPU with limited time, for the training speed measured here."""
    recipe = kind.recipe(stats)
    measurable = stats.device == "cpu" and stats.max_time is not None and distributed.world_size() == 1
    if is_fine_tuning or not measurable or recipe.tokens_per_second is None:
        return recipe
    train = override(recipe.train, requested.train, "train")
    speed = measure_speed(kind, recipe.model, train, stats.vocab_size)
    if speed is None:
        return recipe
    return kind.recipe(dataclasses.replace(stats, speed=speed / recipe.tokens_per_second))


def _recipe_notes(recipe: Recipe, requested: RunConfig) -> list[str]:
    """What the recipe chose, unless the request contains model settings."""
    has_settings = requested.model.model_fields_set - {"name"}
    return [f"recipe: {recipe.reason}"] if recipe.reason and not has_settings else []


def _corpus_notes(source: Source, corpus: Corpus) -> list[str]:
    notes = [*corpus.notes, corpus.tokenizer.note]
    if source.n_skipped:
        notes.append(f"skipped {source.n_skipped:,} files that aren't text")
    if source.n_repeated:
        notes.append(f"skipped {source.n_repeated:,} links to files that are read already")
    if corpus.blank_lines:
        notes.append(f"skipped {corpus.blank_lines:,} blank lines")
    if corpus.capped:
        held_out = sum(len(corpus.splits[name].starts_D) for name in ("val", "test"))
        chars = f"{corpus.splits['val'].chars:,} characters each"
        size = f"{held_out:,} lines" if corpus.mode == "lines" else chars
        notes.append(f"val and test limited to {size}; set shares with --split")
    return [note for note in notes if note]


def check_run_dir(folder: RunDir, request: TrainRequest) -> None:
    """Raise UserError if the run directory already exists and may not be overwritten."""
    if folder.is_occupied and not request.overwrite:
        is_run = folder.exists or folder.members
        why = "already holds a run; add --resume, --overwrite" if is_run else "is not a run; move it"
        raise UserError(f"{folder.path} {why}, or name another --out")


def fit_context(
    kind: type[LanguageModel], model_config: Any, train: TrainConfig, corpus: Corpus, observer: Observer
) -> tuple[Any, TrainConfig]:
    """Limit the model's and the trainer's block_size to the length of the training text."""
    n_train = len(corpus.splits["train"].tokens_N)
    if not kind.supports_streaming and corpus.mode == "text" and model_config.block_size > n_train:
        observer.note(f"block_size reduced from {model_config.block_size} to {n_train}, the text's length")
        model_config = model_config.replace(block_size=n_train)
    return model_config, train.replace(block_size=min(train.data.block_size, n_train))


def _check_memory(
    kind: type[LanguageModel],
    config: Any,
    *,
    corpus: Corpus,
    train: TrainConfig,
    device: torch.device,
    observer: Observer,
) -> None:
    """Note the expected memory if it is large, or if characters make a large vocabulary.

    Raises UserError if it doesn't fit in the device's memory.
    """
    tokenizer, advice = corpus.tokenizer, "use a smaller vocabulary, e.g. bpe:512"
    many_characters = tokenizer.name == "char" and tokenizer.vocab_size >= LARGE_VOCABULARY
    if many_characters:
        advice = "-t bpe:2048 or -t byte takes less, and often predicts rare characters better"
    if issubclass(kind, CountModel):
        tokens_N = corpus.splits["train"].tokens_N
        cost, needed = kind.memory_needed(
            config,
            tokens_N,
            tokenizer.vocab_size,
            tokenizer.boundary_id,
            negligible=0 if many_characters else MIN_NOTED_GB * 1e9,
        )
        advice = advice if many_characters else f"a lower {kind.memory_setting} takes less"
    elif tokenizer.vocab_size >= LARGE_VOCABULARY:
        n_parameters = count_parameters(kind, config, tokenizer.vocab_size)
        cost, needed = f"{n_parameters:,} parameters", n_parameters * BYTES_PER_PARAMETER
        needed += BYTES_PER_SAVED_PARAMETER * n_parameters if device.type == "cpu" else 0
        micro_batch = train.data.batch_tokens / train.data.grad_accum_steps
        needed += BYTES_PER_LOGIT * tokenizer.vocab_size * micro_batch
    else:
        return
    kinds = f"{tokenizer.vocab_size - 1:,} {'characters' if tokenizer.name == 'char' else 'tokens'}"
    cost += f" for {kinds} take about {needed / 1e9:.1f} GB to train"
    memory = total_memory_gb(device)
    if memory is not None and needed > memory * 1e9:
        raise UserError(f"{cost}, but only {memory:.1f} GB are available; {advice}")
    if many_characters or needed >= MIN_NOTED_GB * 1e9:
        observer.note(f"{cost}; {advice}")


def count_parameters(kind: type[LanguageModel], config: Any, vocab_size: int) -> int:
    """Number of parameters of a model, without allocating it. Raises UserError if it has too many layers."""
    with MemoryLimit(MAX_BYTES), torch.device("meta"):
        return kind(config, vocab_size, 0).n_parameters()


def make_model(
    kind: type[LanguageModel],
    config: Any,
    tokenizer: Tokenizer,
    seed: int,
    document_ends: DocumentEnds,
    max_bytes: int | None = None,
) -> LanguageModel:
    """Initialise a model. Raises UserError if it needs more memory than ``max_bytes`` or available."""
    torch.manual_seed(seed)
    model = construct_model(kind, config, tokenizer.vocab_size, tokenizer.boundary_id, max_bytes)
    model.set_document_ends(document_ends)
    return model
