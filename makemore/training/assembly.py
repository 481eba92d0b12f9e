"""Build the loader and trainer of a training plan."""

from __future__ import annotations

from collections.abc import Callable

from makemore.corpus.loader import Batching, Loader, OrderedLoader, PackedLoader, ShuffledLoader, StreamLoader
from makemore.evaluation.scoring import estimate_loss
from makemore.models.base import CountModel
from makemore.runtime.device import set_compile_cache_dir
from makemore.runtime.sharding import shard
from makemore.tokenizers.traits import token_traits
from makemore.training.learners import is_sharded, make_learner
from makemore.training.plan import Plan
from makemore.training.trainer import Trainer

VAL_BATCH_TOKENS = 65536
"""Tokens per batch of the val loader, from which count models choose their settings."""


def make_loader(plan: Plan) -> Loader:
    """Build the training loader; its micro-batches have ``batch_tokens // grad_accum_steps`` tokens."""
    split, boundary, train = plan.corpus.splits["train"], plan.model.boundary_id, plan.train
    batch_tokens = train.data.batch_tokens // train.data.grad_accum_steps
    if isinstance(plan.model, CountModel):
        return OrderedLoader(split, boundary, batch_tokens, in_order=plan.model.reads_in_order)
    batching = Batching(batch_tokens, train.data.block_size, train.seed)
    if train.data.loader == "streams":
        return StreamLoader(split, boundary, batching, train.data.truncation)
    if train.data.loader == "packed":
        return PackedLoader(split, boundary, batching)
    return ShuffledLoader(split, boundary, batching, plan.model.context_prefix)


def make_trainer(plan: Plan, stop: Callable[[], bool]) -> Trainer:
    """Move the model to its device and build its trainer: learner, loader and evaluation."""
    plan.model.to(plan.device)
    if isinstance(plan.model, CountModel):
        plan.model.prepare(plan.corpus.splits["train"].tokens_N, token_traits(plan.corpus.tokenizer))
    plan.model.one_document_per_row = plan.train.data.loader in ("windows", "documents")
    if is_sharded(plan.train):
        shard(plan.model, plan.train)
    val = plan.corpus.splits["val"]
    eval_tokens = plan.train.eval_tokens

    def val_loader() -> OrderedLoader:
        return OrderedLoader(val, plan.model.boundary_id, VAL_BATCH_TOKENS)

    if plan.compiled:
        set_compile_cache_dir()
    learner = make_learner(
        plan.model,
        plan.train,
        precision=plan.precision,
        compiled=plan.compiled,
        held_out=val_loader,
        native=plan.native,
    )

    def evaluate() -> float:
        # Autocast is twice as fast, and an estimate is enough here.
        with learner.autocast():
            return estimate_loss(plan.model, val, eval_tokens, learner.nats)

    return Trainer(learner, make_loader(plan), plan.train, evaluate if len(val.tokens_N) else None, stop)
