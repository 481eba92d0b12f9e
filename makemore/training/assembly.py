"""Loader, learner and evaluation of a plan."""

from __future__ import annotations

from collections.abc import Callable

from makemore.corpus.loader import Loader, OrderedLoader, PackedLoader, ShuffledLoader, StreamLoader
from makemore.evaluation.scoring import quick_loss
from makemore.models.base import CountModel
from makemore.runtime.device import keep_compiled
from makemore.runtime.sharding import shard
from makemore.training.learners.gradient import make_learner
from makemore.training.planning import Plan, sharded
from makemore.training.trainer import Trainer

HELD_OUT_TOKENS = 65536


def make_loader(plan: Plan) -> Loader:
    """Batches of the training split, as the recipe has them: each a part of a step."""
    split, boundary, train = plan.corpus.splits["train"], plan.model.boundary_id, plan.train
    tokens = train.batch_tokens // train.accumulate
    if isinstance(plan.model, CountModel):
        return OrderedLoader(split, boundary, tokens)
    if train.loader == "streams":
        return StreamLoader(split, boundary, tokens, train.block_size, train.seed, train.truncation)
    if train.loader == "packed":
        return PackedLoader(split, boundary, tokens, train.block_size, train.seed)
    return ShuffledLoader(split, boundary, tokens, train.block_size, plan.model.lead, train.seed)


def make_trainer(plan: Plan, stop: Callable[[], bool]) -> Trainer:
    """Model on its device, learner, loader and evaluation, ready to fit."""
    plan.model.to(plan.device)
    plan.model.one_document = plan.train.loader in ("windows", "documents")
    if sharded(plan.train):
        shard(plan.model, plan.train)
    val = plan.corpus.splits["val"]
    tokens = plan.train.eval_tokens

    def held_out() -> OrderedLoader:
        return OrderedLoader(val, plan.model.boundary_id, HELD_OUT_TOKENS)

    if plan.compiled:
        keep_compiled()
    learner = make_learner(plan.model, plan.train, plan.precision, plan.compiled, held_out, plan.native)

    def evaluate() -> float:
        # At training's precision: an estimate, twice as fast.
        with learner.autocast():
            return quick_loss(plan.model, val, tokens, learner.nats)

    return Trainer(learner, make_loader(plan), plan.train, evaluate if len(val.tokens_N) else None, stop)
