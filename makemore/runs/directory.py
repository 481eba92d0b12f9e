"""Run directories: safe to load, written atomically, locked against concurrent writers."""

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
from makemore.runs.schema import check_schema
from makemore.runtime.files import (
    is_temporary,
    json_digest,
    make_dir_durably,
    read_json,
    read_tensors,
    stat_regular_file,
    user_format_errors,
    user_write_errors,
    write_bytes,
    write_json,
    write_tensors,
)

FORMAT = 1
CONFIG, TOKENIZER, MODEL = "config.json", "tokenizer.json", "model.safetensors"
METRICS, SAMPLES, RESULT, STATES = "metrics.jsonl", "samples.txt", "result.json", "state"
LINE_HASHES = "seen.safetensors"
STATE, TENSORS = "state.json", "tensors.safetensors"


_METRICS_SEAL = {"bytes": int, "sha256": str}
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
_STATE = {"name": str, "run_id": str, "tensors": str, "metrics": _METRICS_SEAL, "state": dict, "copies": dict}
_RESULT = {"run_id": str, "metrics": _METRICS_SEAL}


class SavedState(NamedTuple):
    """A loaded state, and the problems of newer, damaged ones."""

    state: dict[str, Any]
    metrics: dict[str, Any]
    """Size (``bytes``) and ``sha256`` of ``metrics.jsonl`` when the state was saved."""
    problems: list[str]


def _read_form(path: Path, form: Any) -> dict[str, Any]:
    """Read a JSON file. Raises UserError if it doesn't match ``form``."""
    payload = read_json(path)
    try:
        check_schema(payload, form)
    except ValueError as error:
        raise UserError(f"{path} is damaged or from another version: {error}") from None
    return payload


def _is_run_file(path: Path) -> bool:
    """Whether makemore wrote this JSON file; other programs have a config.json too."""
    try:
        return "run_id" in read_json(path)
    except UserError:
        return False


def _state_order(folder: Path) -> tuple[int, int]:
    """Sort key of a state folder: its step, then its number within the step."""
    step, _, nth = folder.name.partition(".")
    return int(step), int(nth or 0)


def _flatten(value: Any, path: str, tensors: dict[str, Tensor]) -> Any:
    """Convert a nested state to JSON, moving its tensors to ``tensors`` under their path."""
    if isinstance(value, Tensor):
        tensors[path] = value
        return {"$tensor": path}
    if isinstance(value, dict):
        # Pairs, because optimizer states have integer keys and JSON keys are strings.
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
    """Reads and writes the files of one run directory; their meaning is left to the workflows."""

    def __init__(self, path: Path) -> None:
        # ``.`` and ``..`` lack a name, which sibling files are named after.
        self.path = path if path.name not in ("", "..") else path.resolve()
        self._good_state: Path | None = None
        """The newest state known to be intact: the last one read or written."""
        self._copies: dict[str, dict[str, Any]] = {}
        """Contents of config and tokenizer, copied into every state."""

    @property
    def exists(self) -> bool:
        return (self.path / CONFIG).exists()

    @property
    def is_occupied(self) -> bool:
        """Whether the path is taken; an incompletely created run doesn't count."""
        if not os.path.isdir(self.path):  # unlike Path.is_dir, no error if the name is too long
            return os.path.lexists(self.path)
        names = {p.name for p in self.path.iterdir() if not is_temporary(p)}
        return not (
            names <= {TOKENIZER, LINE_HASHES, STATES} and (not names or _is_run_file(self.path / TOKENIZER))
        )

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Create and lock the run directory. Raises UserError if another process holds the lock."""
        if os.path.lexists(self.path) and not os.path.isdir(self.path):
            raise UserError(f"{self.path} is not a makemore run; won't overwrite it")
        with user_write_errors(self.path):
            make_dir_durably(self.path)
        with exclusive(self.path):
            yield

    def clear(self) -> None:
        """Remove a run's files and no others. Raises UserError if the folder holds something else."""
        if self.is_occupied and not any(_is_run_file(self.path / name) for name in (CONFIG, TOKENIZER)):
            raise UserError(f"{self.path} is not a makemore run; won't overwrite it")
        with user_write_errors(self.path):
            self.remove_temporaries()
            self.drop_states()
            # Files that identify a run go last: an interrupted clear can be repeated.
            for name in (MODEL, LINE_HASHES, METRICS, SAMPLES, RESULT, TOKENIZER, CONFIG):
                (self.path / name).unlink(missing_ok=True)

    def remove_temporaries(self) -> None:
        """Remove temporary files left by killed processes."""
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
        """Write the files that training doesn't change and the initial state, the config last: a run with a
        config can be resumed. ``seen_U``: see ``write_line_hashes``. Returns the run's id."""
        config = {"format": FORMAT, **config, "seen": seen_U is not None}
        run_id = json_digest(config)[:16]
        self._copies = {
            TOKENIZER: {**tokenizer, "run_id": run_id},
            CONFIG: {**config, "run_id": run_id},
        }
        write_json(self.path / TOKENIZER, self._copies[TOKENIZER])
        if seen_U is not None:
            self.write_line_hashes(seen_U, run_id)
        if state is not None:
            self.write_state(0, state, run_id)
        write_json(self.path / CONFIG, self._copies[CONFIG])
        return run_id

    def restore_from_states(self) -> list[str]:
        """Restore a damaged config or tokenizer from a state; returns the problems found."""
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
        """The newest state's copy of config or tokenizer (``name``); None if no state has one."""
        for folder in self._states():
            with contextlib.suppress(UserError, KeyError, TypeError, ValueError):
                return dict(read_json(folder / STATE)["copies"][name])
        return None

    def write_config(self, config: dict[str, Any]) -> None:
        """Replace the config of an existing run."""
        self._copies[CONFIG] = config
        write_json(self.path / CONFIG, config)

    def read_config(self) -> dict[str, Any]:
        """Raises UserError if this is not a run, is damaged, or has another format version."""
        if not os.path.isdir(self.path):
            raise UserError(f"no run at {self.path}; create one with makemore train")
        if not self.exists:
            raise UserError(f"{self.path} is not a makemore run (it has no {CONFIG})")
        version = read_json(self.path / CONFIG).get("format")
        if version != FORMAT:
            raise UserError(f"{self.path} has format {version}; this version reads {FORMAT}")
        config = _read_form(self.path / CONFIG, _CONFIG)
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

    def write_line_hashes(self, hashes_U: Tensor, run_id: str) -> None:
        """Write the sorted hashes of the training lines, (U,) int64."""
        write_tensors(self.path / LINE_HASHES, {"hashes": hashes_U}, run_id)

    def read_line_hashes(self, config: dict[str, Any]) -> Tensor | None:
        """Read the line hashes; None if the run has none. Raises UserError if missing or damaged."""
        if not config["seen"]:
            return None
        with user_format_errors(self.path / LINE_HASHES):
            return read_tensors(self.path / LINE_HASHES, config["run_id"])["hashes"]

    def write_result(self, result: dict[str, Any]) -> None:
        write_json(
            self.path / RESULT,
            {**result, "run_id": self.read_config()["run_id"], "metrics": self.metrics_checksum()},
        )

    def read_result(self) -> dict[str, Any] | None:
        return _read_form(self.path / RESULT, _RESULT) if (self.path / RESULT).exists() else None

    def write_samples(self, text: str) -> None:
        write_bytes(self.path / SAMPLES, text.encode())

    def append_metrics(self, record: dict[str, Any], sync: bool = False) -> None:
        """Append a JSON line; ``sync``: fsync it. Raises UserError if it can't be written."""
        path = self.path / METRICS
        stat_regular_file(path)
        with user_write_errors(path), path.open("a", encoding="utf-8", newline="\n") as file:
            file.write(json.dumps(record) + "\n")
            if sync:
                file.flush()
                os.fsync(file.fileno())

    def read_metrics(self) -> list[dict[str, Any]]:
        """Read all records, skipping lines that a crash cut off."""
        records = []
        if (self.path / METRICS).exists():
            for line in (self.path / METRICS).read_text(encoding="utf-8", errors="replace").splitlines():
                with contextlib.suppress(ValueError):
                    records.append(json.loads(line))
        return [r for r in records if isinstance(r, dict)]

    def metrics_checksum(self) -> dict[str, Any]:
        """Current size and checksum of ``metrics.jsonl``, to store in a state or a result."""
        data = self._metrics_bytes()
        return {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}

    def check_metrics(self, seal: dict[str, Any]) -> str:
        """Check the metrics that existed when ``seal`` was taken; returns the problem, or an empty string."""
        path, data = self.path / METRICS, self._metrics_bytes()
        if seal["bytes"] and not path.exists():
            return f"{path} is missing"
        intact = hashlib.sha256(data[: seal["bytes"]]).hexdigest() == seal["sha256"]
        return "" if intact else f"{path} is damaged: its checksum doesn't match"

    def _metrics_bytes(self) -> bytes:
        return (
            (self.path / METRICS).read_bytes() if stat_regular_file(self.path / METRICS) is not None else b""
        )

    def truncate_metrics(self, step: int, seal: dict[str, Any]) -> str:
        """Drop metrics logged after ``step``, when ``seal`` was taken: a resumed run logs them again.

        Returns the problem with the rest, whose readable lines are kept, or an empty string.
        """
        if problem := self.check_metrics(seal):
            records = [r for r in self.read_metrics() if isinstance(r.get("step"), int) and r["step"] <= step]
            data = "".join(json.dumps(r) + "\n" for r in records).encode()
        else:
            data = self._metrics_bytes()[: seal["bytes"]]
        write_bytes(self.path / METRICS, data)
        return problem

    def write_state(self, step: int, state: dict[str, Any], run_id: str) -> None:
        """Save a state to resume from, then delete all but it and the last good one before it."""
        folder = self._new_state(step)
        tensors: dict[str, Tensor] = {}
        skeleton = _flatten(state, "state", tensors)
        payload = {
            "name": folder.name,
            "run_id": run_id,
            "state": skeleton,
            "metrics": self.metrics_checksum(),
        }
        payload["copies"] = self._copies
        try:
            digest = write_tensors(folder / TENSORS, tensors, run_id)
            # Written last: marks the folder as complete.
            write_json(folder / STATE, {**payload, "tensors": digest})
        except UserError:
            shutil.rmtree(folder, ignore_errors=True)
            raise
        for old in self._states():
            if old not in (folder, self._good_state):
                shutil.rmtree(old, ignore_errors=True)
        self._good_state = folder

    def _new_state(self, step: int) -> Path:
        """A folder that doesn't exist yet, so no good state is overwritten."""
        nth = max((n for s, n in map(_state_order, self._states()) if s == step), default=-1) + 1
        return self.path / STATES / (f"{step:09d}.{nth}" if nth else f"{step:09d}")

    def _states(self) -> list[Path]:
        """State folders, newest first. Raises UserError for symbolic links."""
        states = self.path / STATES
        paths = states.iterdir() if states.is_dir() else []
        folders = [p for p in paths if re.fullmatch(r"\d{1,18}(\.\d{1,9})?", p.name) and p.is_dir()]
        for folder in (states, *folders):
            if folder.is_symlink():
                raise UserError(f"{folder} is a link; a run directory may not contain links")
        return sorted(folders, key=_state_order, reverse=True)

    def read_state(self, run_id: str) -> SavedState:
        """Read the newest good state. Raises UserError if there is none."""
        problems: list[str] = []
        for folder in self._states():
            try:
                saved = self._read_state(folder, run_id)
            except UserError as error:
                problems.append(str(error))
            else:
                self._good_state = folder
                return saved._replace(problems=problems)
        detail = f" ({problems[0]})" if problems else ""
        raise UserError(f"{self.path} has no state to resume from{detail}; start over with --overwrite")

    def read_states(self, run_id: str) -> tuple[list[SavedState], list[str]]:
        """Read all good states, newest first, and the problems of the others."""
        good, problems = [], []
        for folder in self._states():
            try:
                good.append(self._read_state(folder, run_id))
            except UserError as error:
                problems.append(str(error))
        return good, problems

    def _read_state(self, folder: Path, run_id: str) -> SavedState:
        payload = _read_form(folder / STATE, _STATE)
        if payload.get("run_id") != run_id:
            raise UserError(f"{folder / STATE} belongs to another run")
        if payload.get("name") != folder.name:
            raise UserError(f"{folder / STATE} is damaged: it belongs to state {payload.get('name')}")
        tensors = read_tensors(folder / TENSORS, run_id, payload.get("tensors"))
        try:
            return SavedState(_unflatten(payload["state"], tensors), payload["metrics"], [])
        except (KeyError, TypeError, ValueError) as error:
            raise UserError(f"{folder / STATE} is damaged: {type(error).__name__} {error}") from None

    def drop_states(self) -> None:
        """Delete every state."""
        states = self.path / STATES
        if states.is_symlink():
            states.unlink()
        shutil.rmtree(states, ignore_errors=True)


@contextlib.contextmanager
def exclusive(folder: Path) -> Iterator[None]:
    """Lock a folder for this process. Raises UserError if another process holds the lock.

    On POSIX, flock on the folder itself: it leaves no file, and is released even if the process is killed.
    File systems without locks are left unlocked.
    """
    if os.name != "posix":
        from filelock import FileLock, Timeout

        try:
            with FileLock(folder.with_name(f".{folder.name}.lock"), timeout=0):
                yield
        except Timeout:
            raise _in_use_error(folder) from None
        return
    import fcntl

    handle = os.open(folder, os.O_RDONLY)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise _in_use_error(folder) from None
        except OSError:
            pass
        yield
    finally:
        os.close(handle)


def _in_use_error(folder: Path) -> UserError:
    return UserError(f"another process is writing {folder}; wait for it to finish, or name another --out")
