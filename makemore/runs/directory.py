"""Run directories: safe to load, whole at every moment, used by one process at a time."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from torch import Tensor

from makemore.errors import UserError
from makemore.runs.schema import check_form
from makemore.runtime.files import (
    is_temporary,
    json_digest,
    make_folder,
    read_json,
    read_tensors,
    require_plain,
    well_formed,
    write_bytes,
    write_json,
    write_tensors,
    writing,
)

FORMAT = 1
CONFIG, TOKENIZER, MODEL = "config.json", "tokenizer.json", "model.safetensors"
METRICS, SAMPLES, RESULT, STATES = "metrics.jsonl", "samples.txt", "result.json", "state"
SEEN = "seen.safetensors"
STATE, TENSORS = "state.json", "tensors.safetensors"


_SEAL = {"bytes": int, "sha256": str}
_CONFIG = {
    "run_id": str,
    "model": {"name": str, "settings": dict},
    "tokenizer": str,
    "seen": bool,
    "corpus": {
        "paths": [str],
        "mode": ("lines", "text"),
        "split": str,
        "dedupe": bool,
        "encoding": str,
        "digests": {"train": str, "val": str, "test": str},
        "longest_document": int,
        "context": str,
    },
}
_STATE = {"name": str, "run_id": str, "tensors": str, "metrics": _SEAL, "state": dict, "copies": dict}
_RESULT = {"run_id": str, "metrics": _SEAL}


class Saved(NamedTuple):
    """A state that was read, and what was wrong with newer ones."""

    state: dict[str, Any]
    metrics: dict[str, Any]
    """What ``metrics.jsonl`` was then: ``bytes`` and their ``sha256``."""
    problems: list[str]


def _read(path: Path, form: Any) -> dict[str, Any]:
    """A JSON file of a form. Raises UserError where it isn't."""
    payload = read_json(path)
    try:
        check_form(payload, form)
    except ValueError as error:
        raise UserError(f"{path} is damaged or from another version: {error}") from None
    return payload


def _is_ours(path: Path) -> bool:
    """Whether ``write_json`` wrote this file; other programs have a config.json too."""
    try:
        return "run_id" in read_json(path)
    except UserError:
        return False


def _order(folder: Path) -> tuple[int, int]:
    """Step and number of a state; several may be of one step."""
    step, _, nth = folder.name.partition(".")
    return int(step), int(nth or 0)


def _flatten(value: Any, path: str, tensors: dict[str, Tensor]) -> Any:
    """Nested state as JSON, its tensors put aside under their path."""
    if isinstance(value, Tensor):
        tensors[path] = value
        return {"$tensor": path}
    if isinstance(value, dict):
        # Pairs, because optimizers number their parameters and JSON keys are strings.
        pairs = [[k, _flatten(v, f"{path}/{k}", tensors)] for k, v in value.items()]
        return {"$dict": pairs}
    if isinstance(value, list | tuple):
        return [_flatten(v, f"{path}/{i}", tensors) for i, v in enumerate(value)]
    return value


def _unflatten(value: Any, tensors: dict[str, Tensor]) -> Any:
    if isinstance(value, dict):
        if "$tensor" in value:
            return tensors[value["$tensor"]]
        return {key: _unflatten(v, tensors) for key, v in value["$dict"]}
    if isinstance(value, list):
        return [_unflatten(v, tensors) for v in value]
    return value


class RunDir:
    """The files of one run. Paths, writing and reading; what they mean is the workflows' business."""

    def __init__(self, path: Path) -> None:
        # ``.`` and ``..`` have no name of their own, which what is put beside a run is called after.
        self.path = path if path.name not in ("", "..") else path.resolve()
        self._state: Path | None = None
        """The newest state known to be good: the last one read or written."""
        self._copies: dict[str, dict[str, Any]] = {}
        """What config and tokenizer hold: every state has them too."""

    @property
    def exists(self) -> bool:
        return (self.path / CONFIG).exists()

    @property
    def occupied(self) -> bool:
        """Whether something stands in the way of a new run; one cut short while it was being made doesn't."""
        if not os.path.isdir(self.path):  # unlike Path's, no error for a name too long
            return os.path.lexists(self.path)
        names = {p.name for p in self.path.iterdir() if not is_temporary(p)}
        return not (names <= {TOKENIZER, SEEN, STATES} and (not names or _is_ours(self.path / TOKENIZER)))

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """No other process writes this run while the block runs. Raises UserError where one does."""
        if os.path.lexists(self.path) and not os.path.isdir(self.path):
            raise UserError(f"{self.path} is not a makemore run; won't overwrite it")
        with writing(self.path):
            make_folder(self.path)
        with exclusive(self.path):
            yield

    def clear(self) -> None:
        """Remove an earlier run's files, and no others. Raises UserError for a folder that isn't one."""
        if self.occupied and not any(_is_ours(self.path / name) for name in (CONFIG, TOKENIZER)):
            raise UserError(f"{self.path} is not a makemore run; won't overwrite it")
        with writing(self.path):
            self.sweep()
            self.drop_states()
            # What makes it a run goes last: cut short, it can be cleared again.
            for name in (MODEL, SEEN, METRICS, SAMPLES, RESULT, TOKENIZER, CONFIG):
                (self.path / name).unlink(missing_ok=True)

    def sweep(self) -> None:
        """Remove what killed processes left half-written."""
        for folder in (self.path, *self._states()):
            for path in filter(is_temporary, folder.iterdir()):
                path.unlink(missing_ok=True)

    def create(
        self,
        config: dict[str, Any],
        tokenizer: dict[str, Any],
        state: dict[str, Any] | None = None,
        seen_U: Tensor | None = None,
    ) -> str:
        """Write what doesn't change in training, and the state before the first step: once there is a
        config there is a run that can be resumed. ``seen_U``: see ``write_seen``. Returns the run's id."""
        config = {"format": FORMAT, **config, "seen": seen_U is not None}
        run_id = json_digest(config)[:16]
        self._copies = {
            TOKENIZER: {**tokenizer, "run_id": run_id},
            CONFIG: {**config, "run_id": run_id},
        }
        write_json(self.path / TOKENIZER, self._copies[TOKENIZER])
        if seen_U is not None:
            self.write_seen(seen_U, run_id)
        if state is not None:
            self.write_state(0, state, run_id)
        write_json(self.path / CONFIG, self._copies[CONFIG])
        return run_id

    def mend(self) -> list[str]:
        """Take what is damaged of config and tokenizer from a state; returns what was wrong."""
        problems = []
        for name in (CONFIG, TOKENIZER):
            try:
                read_json(self.path / name)
            except UserError as error:
                if copy := self.read_copy(name):
                    write_json(self.path / name, copy)
                    problems.append(str(error))
        return problems

    def read_copy(self, name: str) -> dict[str, Any] | None:
        """What a state has of config or tokenizer, from the newest that has them."""
        for folder in self._states():
            with contextlib.suppress(UserError, KeyError, TypeError, ValueError):
                return dict(read_json(folder / STATE)["copies"][name])
        return None

    def write_config(self, config: dict[str, Any]) -> None:
        """Replace the settings of a run that is there."""
        self._copies[CONFIG] = config
        write_json(self.path / CONFIG, config)

    def read_config(self) -> dict[str, Any]:
        """Raises UserError where this is no run, a damaged one, or one of a later format."""
        if not os.path.isdir(self.path):
            raise UserError(f"no run at {self.path}; makemore train makes one")
        if not self.exists:
            raise UserError(f"{self.path} is not a makemore run (it has no {CONFIG})")
        version = read_json(self.path / CONFIG).get("format")
        if version != FORMAT:
            raise UserError(f"{self.path} has format {version}; this version reads {FORMAT}")
        config = _read(self.path / CONFIG, _CONFIG)
        self._copies[CONFIG] = config
        return config

    def read_tokenizer(self, run_id: str) -> dict[str, Any]:
        data = read_json(self.path / TOKENIZER)
        if data.get("run_id") != run_id:
            raise UserError(f"{self.path / TOKENIZER} belongs to another run")
        self._copies[TOKENIZER] = data
        return data

    def write_model(self, tensors: dict[str, Tensor], run_id: str) -> None:
        write_tensors(self.path / MODEL, tensors, run_id)

    def read_model(self, run_id: str) -> dict[str, Tensor]:
        return read_tensors(self.path / MODEL, run_id)

    def write_seen(self, hashes_U: Tensor, run_id: str) -> None:
        """Hashes of the training lines, (U,) int64, sorted."""
        write_tensors(self.path / SEEN, {"hashes": hashes_U}, run_id)

    def read_seen(self, config: dict[str, Any]) -> Tensor | None:
        """What ``write_seen`` wrote; None where the run has none. Raises UserError if missing or damaged."""
        if not config["seen"]:
            return None
        with well_formed(self.path / SEEN):
            return read_tensors(self.path / SEEN, config["run_id"])["hashes"]

    def write_result(self, result: dict[str, Any]) -> None:
        write_json(
            self.path / RESULT,
            {**result, "run_id": self.read_config()["run_id"], "metrics": self.metrics_seal()},
        )

    def read_result(self) -> dict[str, Any] | None:
        return _read(self.path / RESULT, _RESULT) if (self.path / RESULT).exists() else None

    def write_samples(self, text: str) -> None:
        write_bytes(self.path / SAMPLES, text.encode())

    def append_metrics(self, record: dict[str, Any], sync: bool = False) -> None:
        """One JSON line; ``sync``: on disk when this returns. Raises UserError where it can't be written."""
        path = self.path / METRICS
        require_plain(path)
        with writing(path), path.open("a", encoding="utf-8", newline="\n") as file:
            file.write(json.dumps(record) + "\n")
            if sync:
                file.flush()
                os.fsync(file.fileno())

    def read_metrics(self) -> list[dict[str, Any]]:
        """Every whole line; one cut off by a crash is passed over."""
        records = []
        if (self.path / METRICS).exists():
            for line in (self.path / METRICS).read_text(encoding="utf-8", errors="replace").splitlines():
                with contextlib.suppress(ValueError):
                    records.append(json.loads(line))
        return [r for r in records if isinstance(r, dict)]

    def metrics_seal(self) -> dict[str, Any]:
        """What ``metrics.jsonl`` is now, as a state or a result remembers it."""
        data = self._metrics_bytes()
        return {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}

    def metrics_problem(self, seal: dict[str, Any]) -> str:
        """What is wrong with the metrics that were there when ``seal`` was taken; empty if nothing."""
        path, data = self.path / METRICS, self._metrics_bytes()
        if seal["bytes"] and not path.exists():
            return f"{path} is missing"
        whole = hashlib.sha256(data[: seal["bytes"]]).hexdigest() == seal["sha256"]
        return "" if whole else f"{path} is damaged: its checksum doesn't match"

    def _metrics_bytes(self) -> bytes:
        return (self.path / METRICS).read_bytes() if require_plain(self.path / METRICS) is not None else b""

    def cut_metrics(self, step: int, seal: dict[str, Any]) -> str:
        """Forget what was logged after ``step``, when ``seal`` was taken: a resumed run takes it again.

        Returns what is wrong with the rest, whose lines are kept as far as they can be read.
        """
        if problem := self.metrics_problem(seal):
            kept = [r for r in self.read_metrics() if isinstance(r.get("step"), int) and r["step"] <= step]
            data = "".join(json.dumps(r) + "\n" for r in kept).encode()
        else:
            data = self._metrics_bytes()[: seal["bytes"]]
        write_bytes(self.path / METRICS, data)
        return problem

    def write_state(self, step: int, state: dict[str, Any], run_id: str) -> None:
        """Save all that resuming needs, then drop all but this state and the good one before it."""
        folder = self._new_state(step)
        tensors: dict[str, Tensor] = {}
        skeleton = _flatten(state, "state", tensors)
        payload = {"name": folder.name, "run_id": run_id, "state": skeleton, "metrics": self.metrics_seal()}
        payload["copies"] = self._copies
        try:
            digest = write_tensors(folder / TENSORS, tensors, run_id)
            # Written last: a folder with this file is complete.
            write_json(folder / STATE, {**payload, "tensors": digest})
        except UserError:
            shutil.rmtree(folder, ignore_errors=True)
            raise
        for old in self._states():
            if old not in (folder, self._state):
                shutil.rmtree(old, ignore_errors=True)
        self._state = folder

    def _new_state(self, step: int) -> Path:
        """A folder that isn't there yet: a good state is never written over."""
        nth = max((n for s, n in map(_order, self._states()) if s == step), default=-1) + 1
        return self.path / STATES / (f"{step:09d}.{nth}" if nth else f"{step:09d}")

    def _states(self) -> list[Path]:
        """State folders, newest first. Raises UserError where they are elsewhere."""
        states = self.path / STATES
        found = states.iterdir() if states.is_dir() else []
        folders = [p for p in found if re.fullmatch(r"\d{1,18}(\.\d{1,9})?", p.name) and p.is_dir()]
        for folder in (states, *folders):
            if folder.is_symlink():
                raise UserError(f"{folder} is a link; the files of a run are in it and nowhere else")
        return sorted(folders, key=_order, reverse=True)

    def read_state(self, run_id: str) -> Saved:
        """The newest good state. Raises UserError where none is good."""
        problems: list[str] = []
        for folder in self._states():
            try:
                saved = self._read_state(folder, run_id)
            except UserError as error:
                problems.append(str(error))
            else:
                self._state = folder
                return saved._replace(problems=problems)
        detail = f" ({problems[0]})" if problems else ""
        raise UserError(f"{self.path} has no state to resume from{detail}; --overwrite begins anew")

    def read_states(self, run_id: str) -> tuple[list[Saved], list[str]]:
        """All good states, newest first, and what is wrong with the others."""
        good, problems = [], []
        for folder in self._states():
            try:
                good.append(self._read_state(folder, run_id))
            except UserError as error:
                problems.append(str(error))
        return good, problems

    def _read_state(self, folder: Path, run_id: str) -> Saved:
        payload = _read(folder / STATE, _STATE)
        if payload.get("run_id") != run_id:
            raise UserError(f"{folder / STATE} belongs to another run")
        if payload.get("name") != folder.name:
            raise UserError(f"{folder / STATE} is damaged: it is of state {payload.get('name')}")
        tensors = read_tensors(folder / TENSORS, run_id, payload.get("tensors"))
        try:
            return Saved(_unflatten(payload["state"], tensors), payload["metrics"], [])
        except (KeyError, TypeError, ValueError) as error:
            raise UserError(f"{folder / STATE} is damaged: {type(error).__name__} {error}") from None

    def drop_states(self) -> None:
        """Forget every state."""
        states = self.path / STATES
        if states.is_symlink():
            states.unlink()
        shutil.rmtree(states, ignore_errors=True)


@contextlib.contextmanager
def exclusive(folder: Path) -> Iterator[None]:
    """One process at a time has a folder. Raises UserError where another has it.

    POSIX locks the folder itself, which leaves nothing behind; the system unlocks it when its process
    ends, however it ends. File systems without locks go without.
    """
    if os.name != "posix":
        from filelock import FileLock, Timeout

        try:
            with FileLock(folder.with_name(f".{folder.name}.lock"), timeout=0):
                yield
        except Timeout:
            raise _in_use(folder) from None
        return
    import fcntl

    handle = os.open(folder, os.O_RDONLY)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise _in_use(folder) from None
        except OSError:
            pass
        yield
    finally:
        os.close(handle)


def _in_use(folder: Path) -> UserError:
    return UserError(f"another process is writing {folder}; wait for it to end, or name another --out")
