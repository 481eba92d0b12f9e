"""A training plan: a resolved request."""

from __future__ import annotations

import platform
from dataclasses import dataclass

import torch

from makemore.corpus.source import Source
from makemore.corpus.splits import Corpus
from makemore.errors import UserError
from makemore.kernels import Kernel
from makemore.models.base import LanguageModel, ManualModel
from makemore.runs.directory import RunDir
from makemore.runs.run import versions
from makemore.runs.schema import Environment, RunRecord, TextRecord
from makemore.runtime import distributed
from makemore.runtime.device import pick_precision, should_compile
from makemore.settings import CorpusConfig, TrainConfig
from makemore.training.learners import is_sharded, pick_native


@dataclass(frozen=True, kw_only=True)
class Plan:
    """A resolved request: everything needed to train."""

    folder: RunDir
    source: Source
    model: LanguageModel
    tokenizer_spec: str
    corpus: Corpus
    train: TrainConfig
    corpus_config: CorpusConfig
    device: torch.device
    precision: torch.dtype
    compiled: bool
    """Whether training uses ``torch.compile``."""
    native: Kernel | None
    """The C kernel that computes loss and gradients, if one is used."""
    init_from: str = ""
    """Source of the initial weights; empty if random."""

    @property
    def model_name(self) -> str:
        return self.model.config.name


def make_plan(
    *,
    folder: RunDir,
    source: Source,
    model: LanguageModel,
    tokenizer_spec: str,
    corpus: Corpus,
    train: TrainConfig,
    corpus_config: CorpusConfig,
    device: torch.device,
    init_from: str = "",
) -> Plan:
    """Complete a plan from the model and the training settings."""
    if not model.supports_streaming and model.max_len and train.data.block_size > model.max_len:
        train = train.replace(block_size=model.max_len)
    if train.data.loader == "packed" and not model.supports_packing:
        raise UserError(
            f"train.loader=packed: {model.config.name} needs one document per row; use train.loader=documents"
        )
    if train.data.loader == "streams" and (not model.supports_streaming or isinstance(model, ManualModel)):
        raise UserError(
            f"train.loader=streams: {model.config.name} keeps no state between batches; "
            "use train.loader=windows"
        )
    precision = pick_precision(train, device, model.supports_autocast)
    native = pick_native(model, train, device, precision)
    return Plan(
        folder=folder,
        source=source,
        model=model,
        tokenizer_spec=tokenizer_spec,
        corpus=corpus,
        train=train,
        corpus_config=corpus_config,
        device=device,
        precision=precision,
        compiled=should_compile(train, device, model.supports_compile and native is None)
        and not is_sharded(train),
        native=native,
        init_from=init_from,
    )


def run_record(plan: Plan) -> RunRecord:
    """The contents of a run's ``config.json``."""
    corpus, split = plan.corpus, plan.corpus.splits["train"]
    text = TextRecord(
        paths=tuple(plan.source.absolute_names()),
        name=plan.source.stem,
        digests=corpus.digests,
        tokens={name: len(s.tokens_N) for name, s in corpus.splits.items()},
        longest_document=int((split.ends_D - split.starts_D).max()),
        context=corpus.context,
        reason=corpus.reason,
        fractions=corpus.fractions,
    )
    environment = Environment(
        precision=str(plan.precision).removeprefix("torch."),
        compiled=plan.compiled,
        native=plan.native is not None,
        device=str(plan.device),
        threads=torch.get_num_threads(),
        processes=distributed.world_size(),
        machine=platform.machine(),
        launch=distributed.launch_id(),
    )
    return RunRecord.for_model(plan.model_name)(
        model=plan.model.config,
        tokenizer=plan.tokenizer_spec,
        corpus=plan.corpus_config.model_copy(update={"mode": corpus.mode}),
        train=plan.train,
        text=text,
        document_ends=plan.model.document_ends,
        init_from=plan.init_from,
        environment=environment,
        versions=versions(),
    )
