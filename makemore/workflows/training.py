"""From a text to a trained, scored, saved run."""

from __future__ import annotations

import contextlib
import dataclasses
import platform
import tomllib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import torch

from makemore import parallel
from makemore.allowance import construct, for_weights
from makemore.checkpoint import CONFIG, STATES, TOKENIZER, RunDir, Saved
from makemore.config import CorpusConfig, CorpusFacts, TrainConfig, override, sections
from makemore.corpus.loader import Loader, OrderedLoader, PackedLoader, ShuffledLoader, StreamLoader
from makemore.corpus.source import Source
from makemore.corpus.splits import Corpus, make_corpus
from makemore.corpus.text import store_text
from makemore.datasets import open_input
from makemore.device import keep_compiled, memory_of, peak_memory, pick_compile, pick_device, pick_precision
from makemore.errors import UserError
from makemore.files import tensor_digest, well_formed
from makemore.learners import GradientLearner, make_learner
from makemore.models import MODELS
from makemore.models.base import CountModel, LanguageModel
from makemore.scoring import quick_loss, score
from makemore.sharding import shard
from makemore.tokenizers import TOKENIZERS, Tokenizer, tokenizer_from_dict
from makemore.trainer import Diverged, Record, Trainer
from makemore.types import Score
from makemore.workflows.changes import CHANGEABLE, changes, refuse_changes, require_tokenizer
from makemore.workflows.generation import SampleRequest, sample
from makemore.workflows.runs import Run, corpus_config_of, load, versions
from makemore.workflows.seen import hashes_to_keep
from makemore.workflows.starting import begin_with, read_start, refuse_unspellable, started_recipe

SECTIONS = ("model", "train", "corpus")
DEFAULT_SECONDS = 120.0
"""Training time where neither steps nor time are given."""
SAMPLES_SHOWN = 10
LARGE_VOCABULARY = 4096
BYTES_PER_PARAMETER = 16
"""Weights, gradients, and two moments of the optimizer, in float32."""
HELD_OUT_TOKENS = 65536
ROLLBACKS = 10
"""How often a run may go back before its rate, by then a thousandth, is not to blame."""


class Interrupted(Exception):  # noqa: N818 - a wish, not an error
    """Training was asked to stop; ``run`` holds a state that resumes."""

    def __init__(self, run: Path) -> None:
        super().__init__(f"stopped; go on with --resume (state saved in {run})")
        self.run = run


class Helped(Exception):  # noqa: N818 - all went well
    """Training is done, and this was not the process that scores and samples."""


class Observer(Protocol):
    """Who watches a training run; the command line draws a progress bar."""

    def note(self, text: str) -> None:
        """Something worth knowing."""

    def start(self, plan: Plan) -> None:
        """Training begins."""

    def record(self, record: Record) -> None:
        """Progress."""

    def encoding(self, done: int, total: int) -> None:
        """Progress of turning text into tokens, in characters."""

    def scoring(self, done: int, total: int) -> None:
        """Progress of the final score, in tokens."""

    def close(self) -> None:
        """Nothing more will come."""


class Silent:
    """An observer that doesn't look."""

    def note(self, text: str) -> None: ...
    def start(self, plan: Plan) -> None: ...
    def record(self, record: Record) -> None: ...
    def encoding(self, done: int, total: int) -> None: ...
    def scoring(self, done: int, total: int) -> None: ...
    def close(self) -> None: ...


@dataclass(frozen=True)
class TrainRequest:
    """What to train. ``settings``: ``section.key=value`` strings, the last word."""

    input: str | tuple[str, ...] | None = None
    """One or several of what ``makemore train`` takes; none is the list that ships with the project."""
    model: str = "transformer"
    tokenizer: str | None = None
    """None: characters, or those of the run that is resumed."""
    out: Path | None = None
    train: Mapping[str, Any] = field(default_factory=dict)
    """Fields of TrainConfig that were asked for."""
    corpus: Mapping[str, Any] = field(default_factory=dict)
    """Fields of CorpusConfig that were asked for."""
    settings: tuple[str, ...] = ()
    config: Path | None = None
    resume: bool = False
    overwrite: bool = False
    init_from: Path | None = None
    """A run or a Hugging Face folder to take weights and tokenizer from; ``tokenizer`` isn't used then."""


@dataclass(frozen=True)
class Plan:
    """Everything resolved: what will be trained, on what, how, and where to."""

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
    init_from: str = ""
    """What the weights were taken from."""


@dataclass(frozen=True)
class TrainResult:
    """A finished run and its figures."""

    run: Run
    score: Score
    steps: int
    best_step: int
    tokens: int
    seconds: float
    stopped_early: bool
    samples: list[str]
    used: dict[str, Any]
    """What it was really trained with: device, threads, precision, compiled, optimizer, weights."""
    peak_memory: int | None
    """Bytes, of the process or of its tensors on CUDA, at most; None where the system doesn't say."""

    def as_dict(self) -> dict[str, Any]:
        return {
            "run": str(self.run.folder.path),
            "model": self.run.config["model"]["name"],
            "parameters": self.run.model.n_parameters(),
            "steps": self.steps,
            "best_step": self.best_step,
            "tokens": self.tokens,
            "seconds": round(self.seconds, 3),
            "tokens_per_second": round(self.tokens / max(self.seconds, 1e-9), 1),
            "stopped_early": self.stopped_early,
            "peak_memory": self.peak_memory,
            "used": self.used,
            self.score.split: self.score.as_dict(),
            "samples": self.samples,
        }


def _read_config(path: Path | None) -> dict[str, dict[str, Any]]:
    """The sections of a TOML file. Raises UserError if missing, malformed or of unknown sections."""
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
            raise UserError(f"{path}: sections are [{'], ['.join(SECTIONS)}], not {name!r}")
    return {name: dict(data.get(name, {})) for name in SECTIONS}


def _asked(request: TrainRequest) -> dict[str, dict[str, Any]]:
    """Settings by section: TOML file < command line < --set."""
    asked = _read_config(request.config)
    asked["train"].update(request.train)
    asked["corpus"].update(request.corpus)
    for name, values in sections(list(request.settings), SECTIONS).items():
        asked[name].update(values)
    return asked


def source_of(request: TrainRequest) -> Source:
    """The text that a request names. Raises UserError where it isn't there."""
    names = (request.input,) if isinstance(request.input, str) else request.input or ()
    return open_input(names)


def run_folder(request: TrainRequest, source: Source) -> Path:
    """Where a request's run lives."""
    tuned = "-tuned" if request.init_from else ""
    return request.out or Path("checkpoints") / f"{source.stem}-{request.model}{tuned}"


def _facts(corpus: Corpus, train: Mapping[str, Any], device: torch.device) -> CorpusFacts:
    split = corpus.splits["train"]
    config = override(TrainConfig(), train, "train")
    no_budget = not _has_budget(config)
    return CorpusFacts(
        mode=corpus.mode,
        train_tokens=len(split.tokens_N),
        vocab_size=corpus.tokenizer.vocab_size,
        documents=len(split.starts_D),
        longest_document=int((split.ends_D - split.starts_D).max()),
        device=device.type,
        steps=config.steps,
        max_time=DEFAULT_SECONDS if no_budget else config.max_time,
    )


def _has_budget(config: TrainConfig) -> bool:
    """Raises UserError where steps or time leave nothing to do."""
    if config.steps is not None and config.steps < 1:
        raise UserError(f"--steps {config.steps}: must be 1 or more")
    if config.max_time is not None and config.max_time <= 0:
        raise UserError(f"--max-time {config.max_time:g}: must be above 0")
    return config.steps is not None or config.max_time is not None


def prepare(request: TrainRequest, observer: Observer) -> Plan:
    """Check and resolve a request; touches nothing on disk. Raises UserError."""
    kind = MODELS.get(request.model)
    if not kind.standalone:
        raise UserError(f"a {request.model} is made of trained runs: makemore mix RUN RUN --out DIR")
    tokenizer = request.tokenizer or "char"
    TOKENIZERS.path(tokenizer.partition(":")[0])
    asked = _asked(request)
    source = source_of(request)
    folder = RunDir(run_folder(request, source))
    _require_room(folder, request)
    corpus_config = override(CorpusConfig(), asked["corpus"], "corpus")
    start = read_start(request.init_from, request.model) if request.init_from else None
    corpus = _encoded(
        source, corpus_config, start.tokenizer if start else tokenizer, observer, spell_all=start is not None
    )
    if min(len(s.tokens_N) for s in corpus.splits.values() if len(s.starts_D)) < 2:
        raise UserError(f"{source.name} is too short for its splits: one of them has a single token")
    for note in _notes(source, corpus):
        observer.note(note)
    device = pick_device(str(asked["train"].get("device", "auto")))
    recipe = kind.recipe(_facts(corpus, asked["train"], device))
    if start:
        request = dataclasses.replace(request, tokenizer=start.spelling)
        recipe = started_recipe(start, recipe, corpus.mode)
    model_config = override(recipe.model, asked["model"], "model")
    train = override(recipe.train, asked["train"], "train")
    if issubclass(kind, CountModel) and asked["train"].get("max_time") is None:
        train = dataclasses.replace(train, max_time=None)  # one pass, however long
    if _sharded(train) and train.optimizer == "muon" and "optimizer" not in asked["train"]:
        observer.note("adamw in place of muon, which needs whole matrices")
        train = dataclasses.replace(train, optimizer="adamw")
    model_config, train = _fit_context(kind, model_config, train, corpus, observer)
    _tell_cost(kind, model_config, corpus.tokenizer, device, observer)
    model = make_model(kind, model_config, corpus.tokenizer, train.seed)
    if start:
        begin_with(model, start)
    return plan_run(request, folder, source, model, corpus, train, corpus_config)


def _encoded(
    source: Source,
    config: CorpusConfig,
    tokenizer: str | Tokenizer,
    observer: Observer,
    spell_all: bool = False,
) -> Corpus:
    """The text in tokens. ``spell_all``: raises UserError where the tokenizer can't spell some of it."""
    with parallel.once_a_machine():
        text = store_text(source, config.encoding)
        corpus = make_corpus(text, config, tokenizer, observer.encoding)
        if spell_all:
            refuse_unspellable(corpus, text)
    return corpus


def _notes(source: Source, corpus: Corpus) -> list[str]:
    """What is worth knowing of a text and its tokenizer."""
    notes = [corpus.note, corpus.tokenizer.note]
    if source.skipped:
        notes.append(f"{source.skipped:,} files that aren't text left out")
    if corpus.blank_lines:
        notes.append(f"{corpus.blank_lines:,} blank lines left out")
    if corpus.capped:
        held_out = sum(len(corpus.splits[name].starts_D) for name in ("val", "test"))
        unit = (
            f"{held_out:,} lines"
            if corpus.mode == "lines"
            else f"{corpus.splits['val'].chars:,} characters each"
        )
        notes.append(f"val and test kept to {unit}; --split asks for shares")
    return [note for note in notes if note]


def _require_room(folder: RunDir, request: TrainRequest) -> None:
    if folder.occupied and not request.overwrite:
        held = "already holds a run; add --resume, --overwrite" if folder.exists else "is in the way; move it"
        raise UserError(f"{folder.path} {held}, or name another --out DIR")


def _sharded(train: TrainConfig) -> bool:
    return train.shard and parallel.size() > 1


def _fit_context(
    kind: type[LanguageModel], model_config: Any, train: TrainConfig, corpus: Corpus, observer: Observer
) -> tuple[Any, TrainConfig]:
    """Contexts that the text has room for: attention's shrinks to it, and says so."""
    room = len(corpus.splits["train"].tokens_N)
    if not kind.streams and corpus.mode == "text" and model_config.block_size > room:
        observer.note(f"block_size shrinks from {model_config.block_size} to {room}: the text is no longer")
        model_config = dataclasses.replace(model_config, block_size=room)
    return model_config, dataclasses.replace(train, block_size=min(train.block_size, room))


def _tell_cost(
    kind: type[LanguageModel], config: Any, tokenizer: Tokenizer, device: torch.device, observer: Observer
) -> None:
    """Say what a model with rows for a large vocabulary takes, before memory is asked for.

    Raises UserError where that is more than the machine has.
    """
    if issubclass(kind, CountModel) or tokenizer.vocab_size < LARGE_VOCABULARY:
        return
    with torch.device("meta"):
        parameters = sum(p.numel() for p in kind(config, tokenizer.vocab_size, 0).parameters())
    needed = parameters * BYTES_PER_PARAMETER / 1e9
    cost = (
        f"{parameters:,} parameters for {tokenizer.vocab_size:,} tokens take about {needed:.1f} GB to train"
    )
    room = memory_of(device)
    if room is not None and needed > room:
        raise UserError(f"{cost}, and there are {room:.1f}; choose a smaller vocabulary, such as bpe:512")
    if needed >= 1:
        observer.note(cost)


def make_model(
    kind: type[LanguageModel], config: Any, tokenizer: Tokenizer, seed: int, most: int | None = None
) -> LanguageModel:
    """A fresh model with weights from a seed. Raises UserError where memory, or ``most``, can't hold it."""
    torch.manual_seed(seed)
    return construct(kind, config, tokenizer.vocab_size, tokenizer.boundary_id, most)


def plan_run(
    request: TrainRequest,
    folder: RunDir,
    source: Source,
    model: LanguageModel,
    corpus: Corpus,
    train: TrainConfig,
    corpus_config: CorpusConfig,
) -> Plan:
    """The rest of a plan, which follows from model and recipe."""
    if not model.streams and model.max_len and train.block_size > model.max_len:
        train = dataclasses.replace(train, block_size=model.max_len)
    if train.loader == "packed" and not model.packs:
        raise UserError(f"train.loader=packed: {request.model} needs a row for each document")
    device = pick_device(train.device)
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
        pick_precision(train, device),
        pick_compile(train, device, model.compiles) and not _sharded(train),
        str(request.init_from or ""),
    )


def config_file(plan: Plan) -> dict[str, Any]:
    """What a run says of itself."""
    corpus, split = plan.corpus, plan.corpus.splits["train"]
    return {
        "model": {"name": plan.model_name, "settings": dataclasses.asdict(plan.model.config)},
        "tokenizer": plan.tokenizer_spec,
        "corpus": {
            "paths": plan.source.saved(),
            "name": plan.source.stem,
            "mode": corpus.mode,
            "reason": corpus.reason,
            "shares": list(corpus.shares),
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
        "device": str(plan.device),
        "threads": torch.get_num_threads(),
        "processes": parallel.size(),
        "launch": parallel.launch_id(),
        "machine": platform.machine(),
        "versions": versions(),
    }


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
    if _sharded(plan.train):
        shard(plan.model, plan.train)
    val = plan.corpus.splits["val"]
    tokens = plan.train.eval_tokens

    def held_out() -> OrderedLoader:
        return OrderedLoader(val, plan.model.boundary_id, HELD_OUT_TOKENS)

    if plan.compiled:
        keep_compiled()
    learner = make_learner(plan.model, plan.train, plan.precision, plan.compiled, held_out)

    def evaluate() -> float:
        # At training's precision: an estimate, twice as fast.
        with learner.autocast():
            return quick_loss(plan.model, val, tokens)

    return Trainer(learner, make_loader(plan), plan.train, evaluate if len(val.tokens_N) else None, stop)


def train(
    request: TrainRequest, observer: Observer | None = None, stop: Callable[[], bool] = lambda: False
) -> TrainResult:
    """Train, score and save a run.

    ``stop`` is asked at every step; once it says yes, the state is saved and Interrupted raised.
    Raises UserError for what the user can mend, before anything is written. Of several processes all
    but the first raise Helped at the end.
    """
    with contextlib.ExitStack() as held:
        with parallel.session(stop):
            main = parallel.is_main()
            if observer is None or not main:
                observer = Silent()
            request = parallel.from_main(_after_restart(request))
            trained = (_resume if request.resume else _begin)(request, observer, stop, held)
        if not main:
            raise Helped
        return _conclude(*trained, observer, stop)


def _after_restart(request: TrainRequest) -> TrainRequest:
    """Go on with what torchrun's attempt before this one has begun, from its last state."""
    if not (parallel.size() > 1 and parallel.is_main() and parallel.restarted()):
        return request
    folder = RunDir(run_folder(request, source_of(request)))
    if not folder.exists or folder.read_config().get("launch") != parallel.launch_id():
        return request
    return dataclasses.replace(request, resume=True)


def _begin(
    request: TrainRequest, observer: Observer, stop: Callable[[], bool], held: contextlib.ExitStack
) -> tuple[Plan, Trainer]:
    plan = prepare(request, observer)
    trainer = make_trainer(plan, stop)
    if plan.init_from:
        _judge_start(plan, trainer, observer)
    state = trainer.state_dict()
    parallel.highest(0)  # all have looked at the folder before anything is written
    run_id = ""
    if parallel.is_main():
        held.enter_context(plan.folder.locked())
        _require_room(plan.folder, request)  # another process may have begun a run meanwhile
        plan.folder.clear()
        seen_U = hashes_to_keep(plan.corpus)
        run_id = plan.folder.create(config_file(plan), plan.corpus.tokenizer.to_dict(), state, seen_U)
        if plan.init_from:
            _write_best(plan, trainer, run_id)
    return _fit(plan, trainer, run_id, observer)


def _judge_start(plan: Plan, trainer: Trainer, observer: Observer) -> None:
    """Weights that were taken over are kept unless training betters them."""
    val = trainer.judge().val
    if val is not None:
        observer.note(f"starts from {plan.init_from}: val {val:.4f} nats/token")


def _fit(plan: Plan, trainer: Trainer, run_id: str, observer: Observer) -> tuple[Plan, Trainer]:
    observer.start(plan)
    for left in reversed(range(ROLLBACKS + 1)):
        try:
            _train_on(plan, trainer, run_id, observer)
        except Diverged as error:
            if not left or plan.train.on_divergence == "stop":
                raise
            _roll_back(plan, trainer, run_id, observer, str(error))
        else:
            break
    parallel.highest(0)
    return plan, trainer


def _train_on(plan: Plan, trainer: Trainer, run_id: str, observer: Observer) -> None:
    if trainer.finished:
        return
    for record in trainer.fit():
        # Every process has a part of the state.
        state = trainer.state_dict() if record.save else None
        if parallel.is_main():
            _write(plan, trainer, record, state, run_id)
        if record.note:
            observer.note(record.note)
        observer.record(record)
    if trainer.stopped:
        weights = trainer.learner.weights()
        if parallel.is_main() and not trainer.best:
            plan.folder.write_model(weights, run_id)
        parallel.highest(0)
        raise Interrupted(plan.folder.path)


def _roll_back(plan: Plan, trainer: Trainer, run_id: str, observer: Observer, why: str) -> None:
    """Back to the last state saved, at half the learning rate."""
    saved = parallel.from_main(plan.folder.read_state(run_id) if parallel.is_main() else None)
    assert saved is not None
    trainer.go_back(saved.state)
    if parallel.is_main():
        plan.folder.cut_metrics(trainer.step, saved.metrics)
        if trainer.best:
            _write_best(plan, trainer, run_id)
    assert isinstance(trainer.learner, GradientLearner)
    share = trainer.learner.optimizers.scale
    observer.note(
        f"{why.partition(':')[0]}; back to step {trainer.step:,}, at {share:g} of the learning rate"
    )


def _write(plan: Plan, trainer: Trainer, record: Record, state: dict[str, Any] | None, run_id: str) -> None:
    if record.improved:
        _write_best(plan, trainer, run_id)
    # What only says that a step has been is not logged: resuming goes on as if undisturbed.
    if record.loss is not None or record.val is not None:
        plan.folder.append_metrics(_metrics(record), sync=state is not None)
    if state is not None:
        plan.folder.write_state(trainer.step, state, run_id)


def _write_best(plan: Plan, trainer: Trainer, run_id: str) -> None:
    """The best weights so far, after the settings that training itself has chosen."""
    config = plan.folder.read_config()
    settings = dataclasses.asdict(plan.model.config)
    if config["model"]["settings"] != settings:
        plan.folder.write_config({**config, "model": {"name": plan.model_name, "settings": settings}})
    plan.folder.write_model(trainer.best, run_id)


def _metrics(record: Record) -> dict[str, Any]:
    kept = dataclasses.asdict(record)
    for name in ("improved", "save", "note"):
        kept.pop(name)
    return {k: v for k, v in kept.items() if v is not None}


def _conclude(plan: Plan, trainer: Trainer, observer: Observer, stop: Callable[[], bool]) -> TrainResult:
    """Score the best model on val (train where there is no val), sample it, save both."""
    memory = peak_memory(plan.device)

    def scoring(done: int, total: int) -> None:
        observer.scoring(done, total)
        if stop():
            raise Interrupted(plan.folder.path)

    run = load(plan.folder.path, str(plan.device))
    split = plan.corpus.splits["val" if len(plan.corpus.splits["val"].tokens_N) else "train"]
    figures = score(run.model, split, run.tokenizer, progress=scoring)
    n = SAMPLES_SHOWN if plan.corpus.mode == "lines" else 1
    samples = list(sample(run, SampleRequest(n=n, seed=plan.train.seed)))
    result = TrainResult(
        run,
        figures,
        trainer.step,
        trainer.best_step,
        trainer.tokens,
        trainer.elapsed,
        trainer.stopped_early,
        samples,
        _used(plan, trainer),
        memory,
    )
    plan.folder.write_samples("\n".join(samples) + "\n")
    plan.folder.write_result(result.as_dict())
    return result


def _used(plan: Plan, trainer: Trainer) -> dict[str, Any]:
    """What the settings came to: ``auto`` resolved, compiling as it turned out."""
    used: dict[str, Any] = {
        "device": str(plan.device),
        "threads": torch.get_num_threads(),
        "precision": str(trainer.learner.precision).removeprefix("torch."),
        "compiled": trainer.learner.compiled,
        "optimizer": plan.train.optimizer,
        "weights": trainer.best_weights,
    }
    if trainer.learner.not_compiled:
        used["not_compiled"] = trainer.learner.not_compiled
    return used


def _resume(
    request: TrainRequest, observer: Observer, stop: Callable[[], bool], held: contextlib.ExitStack
) -> tuple[Plan, Trainer]:
    """Go on where a run stopped; a larger budget may be given, other settings may not change."""
    MODELS.path(request.model)
    asked = _asked(request)
    source = source_of(request)
    folder = RunDir(run_folder(request, source))
    # Only the first process need have the run on its disk.
    if parallel.is_main() and folder.occupied:
        held.enter_context(folder.locked())
        for problem in folder.mend():
            observer.note(f"{problem}; written anew from a state")
    config = parallel.from_main(folder.read_config() if parallel.is_main() else {})
    run_id = config["run_id"]
    changed = {k: asked["train"].pop(k) for k in CHANGEABLE if k in asked["train"]}
    if request.model != config["model"]["name"]:
        raise UserError(f"the run is a {config['model']['name']}, not a {request.model}")
    saved = parallel.from_main(folder.read_state(run_id) if parallel.is_main() else None)
    assert saved is not None
    kind = MODELS.get(request.model)
    with well_formed(folder.path / STATES):
        model_config = override(kind.Config(), saved.state["settings"], "model")
    with well_formed(folder.path / CONFIG):
        before = override(TrainConfig(), config["train"], "train")
        train = override(before, changed, "train")
        corpus_config = corpus_config_of(config)
    if not (_has_budget(train) or issubclass(kind, CountModel)):  # which takes one pass, however long
        raise UserError("the run has neither steps nor time to train for; add --steps or --max-time")
    require_tokenizer(request.tokenizer, config["tokenizer"])
    refuse_changes({"model": model_config, "train": train, "corpus": corpus_config}, asked)
    data = parallel.from_main(folder.read_tokenizer(run_id) if parallel.is_main() else {})
    with well_formed(folder.path / TOKENIZER):
        tokenizer = tokenizer_from_dict(data)
    corpus = _encoded(source, corpus_config, tokenizer, observer)
    if corpus.digests != config["corpus"]["digests"]:
        raise UserError(f"{source.name} is not the text that {folder.path} was trained on; can't go on")
    with well_formed(folder.path / STATES):
        most = for_weights(saved.state["learner"]["model"].values())
    model = make_model(kind, model_config, corpus.tokenizer, train.seed, most)
    request = dataclasses.replace(request, tokenizer=config["tokenizer"])
    plan = plan_run(request, folder, source, model, corpus, train, corpus_config)
    trainer = make_trainer(plan, stop)
    for problem in saved.problems:
        observer.note(f"{problem}; going back to the state before")
    with well_formed(folder.path / STATES):
        trainer.load_state_dict(saved.state)
    budgets = [(getattr(train, k) or 0, getattr(before, k) or 0) for k in ("steps", "max_time")]
    trainer.carry_on(any(now > then for now, then in budgets))
    if parallel.is_main():
        _tell_changes(plan, config, trainer, observer)
        _mend(plan, trainer, saved, run_id, observer)
    observer.note(f"resuming at step {trainer.step:,}")
    return _fit(plan, trainer, run_id, observer)


def _tell_changes(plan: Plan, config: dict[str, Any], trainer: Trainer, observer: Observer) -> None:
    """Say what is other than before, and keep it with the run."""
    lines = changes(config, config_file(plan), plan.train)
    for line in lines:
        observer.note(line)
    if trainer.finished:
        why = "val stopped improving; raise train.patience" if trainer.stopped_early else "give more --steps"
        observer.note(f"the run has ended at step {trainer.step:,}: {why} to go on")
    if lines:
        known = config.get("resumed")
        history = [*(known if isinstance(known, list) else []), {"step": trainer.step, "changes": lines}]
        train = dataclasses.asdict(plan.train)
        plan.folder.write_config({**config, "train": train, "resumed": history})


def _mend(plan: Plan, trainer: Trainer, saved: Saved, run_id: str, observer: Observer) -> None:
    """Bring what training writes beside its states back to where the state is."""
    plan.folder.sweep()
    if problem := plan.folder.cut_metrics(trainer.step, saved.metrics):
        observer.note(f"{problem}; the lines that can be read are kept")
    try:
        plan.folder.read_seen(plan.folder.read_config())
    except UserError as error:
        observer.note(f"{error}; written anew from the text")
        seen_U = hashes_to_keep(plan.corpus)
        if seen_U is not None:
            plan.folder.write_seen(seen_U, run_id)
    if not trainer.best:
        return
    try:
        as_then = tensor_digest(plan.folder.read_model(run_id)) == tensor_digest(trainer.best)
    except UserError as error:
        observer.note(f"{error}; written anew from the state")
        as_then = False
    if not as_then:
        _write_best(plan, trainer, run_id)
