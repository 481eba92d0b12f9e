"""Training request: the text, the requested settings, and where to write the run."""

from __future__ import annotations

import contextlib
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, cast

from makemore.corpus.datasets import resolve_input
from makemore.corpus.source import Source, resolve_recorded_source
from makemore.errors import UserError, unknown_name
from makemore.models import MODELS
from makemore.runs.directory import RunDir
from makemore.runs.schema import RunConfig, RunRecord
from makemore.runtime import distributed
from makemore.settings import parse
from makemore.settings.base import arrange, flatten, merge
from makemore.training.pretrained import PretrainedModel

SECTIONS = ("model", "train", "corpus")
PLAIN = ("model", "tokenizer")
"""Settings that may have a plain value: a name."""
DEFAULT_MODEL = "auto"
PARALLEL_MODEL = "transformer"
"""The default with torchrun: ``auto`` trains in one process."""


@dataclass(frozen=True, kw_only=True)
class TrainRequest:
    """A training request. ``settings`` override the other fields, and these the file ``config``.

    Raises UserError for unknown or invalid settings.
    """

    input: str | tuple[str, ...] = ()
    """Inputs as ``makemore train`` takes them. Default: to resume the run in ``out``, its text; otherwise the
    data set that ships with makemore."""
    model: str = ""
    """The model's name. If empty: the name in ``config``, or else the model of ``pretrained``, of the resumed
    run in ``out``, or the default."""
    tokenizer: str | None = None
    """Tokenizer name (None: the one in ``config``, else the resumed run's, else ``char``)."""
    out: Path | None = None
    train: Mapping[str, Any] = field(default_factory=dict)
    """Requested fields of TrainConfig."""
    corpus: Mapping[str, Any] = field(default_factory=dict)
    """Requested fields of CorpusConfig."""
    settings: tuple[str, ...] = ()
    """Settings as ``section.name=value``."""
    config: Path | None = None
    """TOML file of settings."""
    resume: bool = False
    overwrite: bool = False
    pretrained: PretrainedModel | None = None
    """Initial weights, with their tokenizer; ``tokenizer`` is then ignored."""

    def __post_init__(self) -> None:
        """Complete ``model`` and ``tokenizer`` from the settings."""
        object.__setattr__(self, "model", self.requested.model.name)
        if "tokenizer" in self.requested.model_fields_set:
            object.__setattr__(self, "tokenizer", self.requested.tokenizer)

    @cached_property
    def requested(self) -> RunConfig:
        """The requested settings; others are not set and have their defaults."""
        file = {} if self.config is None else read_toml(self.config)
        sources = [
            {"model": {"name": self._default_model()}},
            file,
            {"model": {"name": self.model}} if self.model else {},
            {"tokenizer": self.tokenizer} if self.tokenizer is not None else {},
            {"train": dict(self.train), "corpus": dict(self.corpus)},
            *parse_assignments(self.settings),
        ]
        if self.config is not None:
            _check_file(self.config, file, _model_name(sources))
        return requested_config(sources)

    def _default_model(self) -> str:
        if self.pretrained:
            return self.pretrained.model
        if self.resume and self.out and (config := _recorded_config(RunDir(self.out))):
            return config.model.name
        return DEFAULT_MODEL if distributed.dist_info_from_env().world_size == 1 else PARALLEL_MODEL

    def __getstate__(self) -> dict[str, Any]:
        """Pickle without ``requested``: a new process registers added models only later."""
        return {name: value for name, value in vars(self).items() if name != "requested"}


def _recorded_config(folder: RunDir) -> RunRecord | None:
    """The config of a run, or its copy in a saved training state if it is damaged; None without both."""
    for read in (folder.read_config, folder.read_config_copy):
        with contextlib.suppress(UserError):
            return read()
    return None


def requested_config(sources: list[dict[str, Any]]) -> RunConfig:
    """Merge settings, later ones over earlier ones; at least one names the model.

    Raises UserError for an unknown or invalid setting.
    """
    name = _model_name(sources)
    chosen = [key for source in sources for key in source.get("model", {}) if key != "name"]
    if chosen and MODELS.get(name).trains_members:
        raise UserError(
            f"{name} has no setting model.{chosen[0]}: it chooses its models' settings itself; "
            "name a --model, e.g. transformer"
        )
    cls = RunConfig.for_model(name)
    merged: dict[str, Any] = {}
    for source in [*sources, {"model": {"name": name}}]:
        merged = merge(merged, arrange(cls, source))
    return parse(cls, merged)


def _model_name(sources: list[dict[str, Any]]) -> str:
    """The last model named."""
    return [str(source["model"]["name"]) for source in sources if "name" in source.get("model", {})][-1]


def open_source(request: TrainRequest) -> Source:
    """Open the input text; to resume, by default the run's. Raises UserError if it doesn't exist."""
    names = (request.input,) if isinstance(request.input, str) else request.input
    if not names and request.resume and request.out:
        folder = RunDir(request.out)
        for run in (folder, *folder.members):
            if config := _recorded_config(run):
                return resolve_recorded_source(config.text.paths)
    return resolve_input(names)


def run_folder(request: TrainRequest, source: Source) -> Path:
    """The run directory: ``--out``, or a name made from the text and the model."""
    tuned = "-tuned" if request.pretrained else ""
    return request.out or Path("checkpoints") / f"{source.stem}-{request.model}{tuned}"


def read_toml(path: Path) -> dict[str, Any]:
    """Read a TOML file of settings. Raises UserError if missing, malformed, or with unknown sections."""
    try:
        data = tomllib.loads(path.read_text(encoding="utf-8-sig"))
    except OSError as error:
        raise UserError(f"can't read {path}: {error.strerror}") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, RecursionError) as error:
        raise UserError(f"{path} is not TOML: {error}") from None
    for name, section in data.items():
        if name not in PLAIN and (name not in SECTIONS or not isinstance(section, dict)):
            raise UserError(f"{path}: {name!r} is not a section; use [{'], ['.join(SECTIONS)}] or tokenizer")
    return as_sections(data)


def _check_file(path: Path, values: dict[str, Any], model: str) -> None:
    """Raise UserError, naming the file, for an invalid setting, or one given twice."""
    try:
        requested_config([values, {"model": {"name": model}}])
        _require_once(RunConfig.for_model(model), values)
    except UserError as error:
        named = values.get("model", {}).get("name", model)
        reason = error if named == model else f"it has settings of a {named}, not of a {model}: {error}"
        raise UserError(f"{path}: {reason}") from None


def _require_once(cls: type[RunConfig], values: Mapping[str, Any]) -> None:
    """Raise UserError if two names in ``values`` are names of one setting."""
    names: dict[str, str] = {}
    for name, value in flatten(values).items():
        for setting in flatten(arrange(cls, _nest(name.split("."), value))):
            if setting in names:
                raise UserError(f"{names[setting]} and {name} are the same setting; keep one of them")
            names[setting] = name


def _nest(names: Sequence[str], value: Any) -> dict[str, Any]:
    """``_nest(("a", "b"), 1)`` is ``{"a": {"b": 1}}``."""
    for name in reversed(names):
        value = {name: value}
    return cast("dict[str, Any]", value)


def as_sections(data: Mapping[str, Any]) -> dict[str, Any]:
    """Read a plain value of ``model`` as its name."""
    model = data.get("model")
    return {**data, "model": {"name": model}} if isinstance(model, str | int | float) else dict(data)


def parse_assignments(settings: Sequence[str], sections: Sequence[str] = SECTIONS) -> list[dict[str, Any]]:
    """Parse ``("model.order=2", …)`` into ``[{"model": {"order": 2}}, …]``.

    Raises UserError for a setting not of the form ``section.name=value`` or an unknown section.
    """
    parsed: list[dict[str, Any]] = []
    for text in settings:
        key, equals, value = text.partition("=")
        section, *names = key.strip().split(".")
        if section in PLAIN and equals and not names:
            parsed.append(as_sections({section: value.strip()}))
            continue
        if not equals or not all(names) or not names:
            raise UserError(f"--set {text!r}: write section.name=value, such as model.n_layer=4")
        if section not in sections:
            raise unknown_name("section of settings", section, sections)
        parsed.append(_nest((section, *names), _parse_value(value.strip())))
    return parsed


def _parse_value(text: str) -> Any:
    """A number or a list as in TOML, otherwise the text."""
    try:
        values = tomllib.loads(f"value = {text}")
    except (ValueError, RecursionError):
        return text
    value = values.pop("value")
    is_plain = isinstance(value, int | float | list) and not isinstance(value, bool) and not values
    return value if is_plain else text
