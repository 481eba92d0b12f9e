"""The settings of a run, and the JSON files of a run directory, as typed records."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any, ClassVar, Literal, Self, TypeVar

from pydantic import BaseModel, ConfigDict, Field, InstanceOf, SerializeAsAny, ValidationError, create_model

from makemore.errors import UserError
from makemore.models import MODELS
from makemore.runtime.files import read_json
from makemore.settings import CorpusConfig, ModelConfig, Settings, TrainConfig, parse
from makemore.settings.base import describe_error
from makemore.types import DocumentEnds

FORMAT: Literal[2] = 2


class RunConfig(Settings):
    """All settings of a run."""

    model: SerializeAsAny[ModelConfig]
    tokenizer: str = Field(
        "char", description="char, byte, bpe:512, spm:512, spm-unigram:512 or tiktoken:gpt2"
    )
    corpus: CorpusConfig = CorpusConfig()
    train: TrainConfig = TrainConfig()

    @classmethod
    def for_model(cls, name: str) -> type[Self]:
        """This class for the settings of one model. Raises UserError if the model is unknown."""
        return _for_config(cls, MODELS.get(name).Config)

    def __reduce__(self) -> Any:
        """Pickle the explicitly set values; the per-model class can't be imported by name."""
        return _unpickle, (type(self).__base__, self.model.name, self.model_dump(exclude_unset=True))


C = TypeVar("C", bound=RunConfig)


@cache
def _for_config(cls: type[C], config: type[ModelConfig]) -> type[C]:
    return create_model(cls.__name__, __base__=cls, model=(config, config()))


def _unpickle(cls: type[C], model: str, values: Mapping[str, Any]) -> C:
    return parse(cls.for_model(model), values)


class Record(BaseModel):
    """Base class of the parts of a run's files; unknown keys are ignored."""

    model_config: ClassVar[ConfigDict] = ConfigDict(frozen=True, extra="ignore", protected_namespaces=())


class TextRecord(Record):
    """The training text."""

    paths: tuple[InstanceOf[str], ...] = Field(min_length=1)
    """Absolute paths; with surrogates if they aren't UTF-8."""
    name: InstanceOf[str] = ""
    digests: dict[Literal["train", "val", "test"], str] = Field(min_length=3)
    """Checksums of the documents of each split."""
    tokens: dict[str, int] = {}
    """Number of tokens of each split."""
    longest_document: int
    """In tokens."""
    context: str
    """The end of the training split, in text mode: the context of a sample."""
    reason: str = ""
    """Why the mode was chosen."""
    fractions: tuple[float, ...] = ()
    """Fractions of train, val and test."""


class Environment(Record):
    """Where and how a run was trained."""

    precision: str
    compiled: bool
    native: bool
    device: str
    threads: int
    processes: int
    machine: str
    launch: str = ""
    """Id of the torchrun launch."""


class Member(Record):
    """A member of a mixture."""

    run: InstanceOf[str]
    train: TrainConfig


class Resumption(Record):
    """A resumption with changed settings."""

    step: int
    changes: tuple[str, ...]


class RunRecord(RunConfig):
    """The contents of ``config.json``."""

    model_config = ConfigDict(extra="ignore")

    format: Literal[2] = FORMAT
    run_id: str = ""
    text: TextRecord
    seen: bool = False
    """Whether hashes of the training lines are stored."""
    document_ends: DocumentEnds = "anywhere"
    """What the model was trained to rule out; ``anywhere`` in runs of earlier versions."""
    init_from: str = ""
    environment: Environment | None = None
    """None for mixtures."""
    mixed: tuple[Member, ...] = ()
    """Members of a mixture."""
    resumed: tuple[Resumption, ...] = ()
    versions: dict[str, str] = {}

    @property
    def seed(self) -> int | None:
        """The training seed; None for mixtures."""
        return None if self.mixed else self.train.seed


class Seal(Record):
    """Size and checksum of ``metrics.jsonl`` when they were stored."""

    bytes: int = Field(ge=0)
    sha256: str


class StateRecord(Record):
    """The contents of ``state.json``: a training state, whose tensors are stored beside it."""

    name: str
    run_id: str
    tensors: str
    """Checksum of the tensors."""
    shards: tuple[str, ...] = ()
    """Checksums of each rank's part of sharded tensors."""
    metrics: Seal
    state: dict[str, Any]
    copies: dict[str, Any]
    """Copies of config and tokenizer."""


class WeightsRecord(Record):
    """The contents of ``weights.json``."""

    run_id: str
    digests: tuple[str, ...]
    """Checksums of the newest weights and of the previous ones."""


class SplitScore(Record):
    """The score of a split."""

    nll: float | None
    bits_per_byte: float | None
    tokens: int = 0
    bytes: int = 0


class ResultRecord(Record):
    """The fields of ``result.json`` that makemore reads back."""

    run_id: str
    metrics: Seal
    seconds: float = 0.0
    tokens: int = 0
    """Tokens trained on."""
    peak_memory: int | None = None
    samples: tuple[str, ...] | None = None
    val: SplitScore | None = None
    train: SplitScore | None = None
    """The score if there is no val split."""


R = TypeVar("R", bound=BaseModel)


def read_record(path: Path, cls: type[R]) -> R:
    """Read a JSON file. Raises UserError if it is damaged or holds something else."""
    return _validate(path, cls, read_json(path))


def parse_run_record(values: Mapping[str, Any], path: Path) -> RunRecord:
    """Validate the contents of the ``config.json`` at ``path``, also of earlier versions.

    Raises UserError if they are damaged or the model is unknown.
    """
    if values.get("format") not in (1, FORMAT):
        raise UserError(
            f"{path.parent} has format {values.get('format')}; this version of makemore reads {FORMAT}"
        )
    try:
        values = _from_format_1(values) if values["format"] == 1 else values
        name = values["model"]["name"]
        cls = RunRecord.for_model(name)
        values = {**values, "model": {**MODELS.get(name).Config.legacy_defaults, **values["model"]}}
    except (KeyError, TypeError, AttributeError, ValueError):
        raise UserError(f"{path} has no valid model name; it is damaged or from another version") from None
    return _validate(path, cls, values)


def _validate(path: Path, cls: type[R], values: Mapping[str, Any]) -> R:
    try:
        return cls.model_validate(values)
    except (ValidationError, UserError) as error:
        reason = str(error) if isinstance(error, UserError) else describe_error(error)
        raise UserError(f"{path} is damaged or from another version: {reason}") from None


def _from_format_1(values: Mapping[str, Any]) -> dict[str, Any]:
    """Convert a config of format 1, which mixed the settings of the corpus with facts about the text."""
    corpus = dict(values["corpus"])
    settings = {name: corpus.pop(name) for name in CorpusConfig.model_fields if name in corpus}
    names = Environment.model_fields.keys()
    environment = {name: values[name] for name in names & values.keys()}
    return {
        **{name: value for name, value in values.items() if name not in names},
        "format": FORMAT,
        "model": {"name": values["model"]["name"], **values["model"]["settings"]},
        "corpus": settings,
        "text": {**corpus, "fractions": corpus.get("shares", ())},
        "environment": environment or None,
    }
