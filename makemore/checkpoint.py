"""Run directories: safe to load, written whole or not at all.

Settings are JSON, tensors safetensors; nothing is ever unpickled. Every file carries its own
checksum and is written beside its place, flushed to disk and renamed into it.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from makemore.errors import UserError

FORMAT = 1
CONFIG, TOKENIZER, MODEL = "config.json", "tokenizer.json", "model.safetensors"
METRICS, SAMPLES, RESULT, STATES = "metrics.jsonl", "samples.txt", "result.json", "state"
SEEN = "seen.safetensors"
KEPT_STATES = 2


def write_bytes(path: Path, data: bytes) -> None:
    """Replace a file whole or not at all. Raises UserError where it can't be written."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with temporary.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
        _sync_folder(path.parent)
    except OSError as error:
        with contextlib.suppress(OSError):
            temporary.unlink()
        raise UserError(f"can't write {path}: {error.strerror}") from None


def _sync_folder(folder: Path) -> None:
    # A rename is on disk once its folder is; Windows has no such call and needs none.
    if os.name == "posix":
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def _digest(payload: Any) -> str:
    text = json.dumps(payload, sort_keys=True, ensure_ascii=True)
    return hashlib.sha256(text.encode()).hexdigest()


def write_json(path: Path, payload: dict[str, Any]) -> None:
    """A JSON object with its checksum."""
    payload = json.loads(json.dumps(payload))
    text = json.dumps({**payload, "sha256": _digest(payload)}, indent=1, ensure_ascii=False)
    write_bytes(path, (text + "\n").encode("utf-8", errors="surrogatepass"))


def read_json(path: Path) -> dict[str, Any]:
    """What ``write_json`` wrote. Raises UserError if missing, damaged or not ours."""
    try:
        payload = json.loads(path.read_bytes().decode("utf-8", errors="surrogatepass"))
        digest = payload.pop("sha256")
    except FileNotFoundError:
        raise UserError(f"{path} is missing; this is no complete run") from None
    except (OSError, ValueError, KeyError, AttributeError, TypeError, RecursionError):
        raise UserError(f"{path} is damaged or not one of makemore's files") from None
    if digest != _digest(payload):
        raise UserError(f"{path} is damaged: its checksum doesn't match")
    return payload


def _is_ours(path: Path) -> bool:
    """Whether ``write_json`` wrote this file; other programs have a config.json too."""
    try:
        return "run_id" in read_json(path)
    except UserError:
        return False


def _tensor_digest(tensors: dict[str, Tensor]) -> str:
    total = hashlib.sha256()
    for name in sorted(tensors):
        tensor = tensors[name]
        total.update(f"{name} {tensor.dtype} {list(tensor.shape)}\n".encode())
        total.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return total.hexdigest()


def write_tensors(path: Path, tensors: dict[str, Tensor], run_id: str) -> None:
    """Tensors with their checksum and the run they belong to."""
    # Cloned: safetensors refuses tensors that share memory (tied weights).
    plain = {name: t.detach().cpu().contiguous().clone() for name, t in tensors.items()}
    metadata = {"format": str(FORMAT), "run_id": run_id, "sha256": _tensor_digest(plain)}
    write_bytes(path, save(plain, metadata))


def read_tensors(path: Path, run_id: str) -> dict[str, Tensor]:
    """What ``write_tensors`` wrote. Raises UserError if missing, damaged or another run's."""
    if not path.is_file():
        raise UserError(f"{path} is missing; this is no complete run")
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError, ValueError, RuntimeError, KeyError, AttributeError, TypeError):
        raise UserError(f"{path} is damaged or not one of makemore's files") from None
    if metadata.get("run_id") != run_id:
        raise UserError(f"{path} belongs to another run")
    if metadata.get("sha256") != _tensor_digest(tensors):
        raise UserError(f"{path} is damaged: its checksum doesn't match")
    return tensors


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
        self.path = path

    @property
    def exists(self) -> bool:
        return (self.path / CONFIG).exists()

    @property
    def occupied(self) -> bool:
        """Whether something stands in the way of a new run."""
        if not os.path.isdir(self.path):  # unlike Path's, no error for a name too long
            return os.path.lexists(self.path)
        return any(self.path.iterdir())

    def clear(self) -> None:
        """Remove an earlier run's files, and no others. Raises UserError for a folder that isn't one."""
        if not any(_is_ours(self.path / name) for name in (CONFIG, TOKENIZER)):
            raise UserError(f"{self.path} is not a makemore run; won't overwrite it")
        self.drop_states()
        # What makes it a run goes last: cut short, it can be cleared again.
        for name in (MODEL, SEEN, METRICS, SAMPLES, RESULT, TOKENIZER, CONFIG):
            (self.path / name).unlink(missing_ok=True)

    def create(self, config: dict[str, Any], tokenizer: dict[str, Any]) -> str:
        """Write what doesn't change in training; returns the run's id."""
        config = {"format": FORMAT, **config}
        run_id = _digest(config)[:16]
        write_json(self.path / TOKENIZER, {**tokenizer, "run_id": run_id})
        write_json(self.path / CONFIG, {**config, "run_id": run_id})
        return run_id

    def write_config(self, config: dict[str, Any]) -> None:
        """Replace the settings of a run that is there."""
        write_json(self.path / CONFIG, config)

    def read_config(self) -> dict[str, Any]:
        """Raises UserError where this is no run, a damaged one, or one of a later format."""
        if not os.path.isdir(self.path):
            raise UserError(f"no run at {self.path}; makemore train makes one")
        if not self.exists:
            raise UserError(f"{self.path} is not a makemore run (it has no {CONFIG})")
        config = read_json(self.path / CONFIG)
        if config.get("format") != FORMAT:
            raise UserError(f"{self.path} has format {config.get('format')}; this version reads {FORMAT}")
        return config

    def read_tokenizer(self, run_id: str) -> dict[str, Any]:
        data = read_json(self.path / TOKENIZER)
        if data.get("run_id") != run_id:
            raise UserError(f"{self.path / TOKENIZER} belongs to another run")
        return data

    def write_model(self, tensors: dict[str, Tensor], run_id: str) -> None:
        write_tensors(self.path / MODEL, tensors, run_id)

    def read_model(self, run_id: str) -> dict[str, Tensor]:
        return read_tensors(self.path / MODEL, run_id)

    def write_seen(self, hashes_U: Tensor, run_id: str) -> None:
        """Hashes of the training lines, (U,) int64, sorted."""
        write_tensors(self.path / SEEN, {"hashes": hashes_U}, run_id)

    def read_seen(self, run_id: str) -> Tensor | None:
        """What ``write_seen`` wrote; None where the run has none. Raises UserError if damaged."""
        return read_tensors(self.path / SEEN, run_id)["hashes"] if (self.path / SEEN).exists() else None

    def write_result(self, result: dict[str, Any]) -> None:
        write_json(self.path / RESULT, result)

    def read_result(self) -> dict[str, Any] | None:
        return read_json(self.path / RESULT) if (self.path / RESULT).exists() else None

    def write_samples(self, text: str) -> None:
        write_bytes(self.path / SAMPLES, text.encode())

    def append_metrics(self, record: dict[str, Any]) -> None:
        """One JSON line. Raises UserError where it can't be written."""
        try:
            with (self.path / METRICS).open("a", encoding="utf-8") as file:
                file.write(json.dumps(record) + "\n")
        except OSError as error:
            raise UserError(f"can't write {self.path / METRICS}: {error.strerror}") from None

    def read_metrics(self) -> list[dict[str, Any]]:
        """Every whole line; one cut off by a crash is passed over."""
        records = []
        if (self.path / METRICS).exists():
            for line in (self.path / METRICS).read_text(encoding="utf-8", errors="replace").splitlines():
                with contextlib.suppress(ValueError):
                    records.append(json.loads(line))
        return [r for r in records if isinstance(r, dict)]

    def cut_metrics(self, step: int) -> None:
        """Forget what was logged after ``step``, which a resumed run takes again."""
        kept = [r for r in self.read_metrics() if isinstance(r.get("step"), int) and r["step"] <= step]
        write_bytes(self.path / METRICS, "".join(json.dumps(r) + "\n" for r in kept).encode())

    def write_state(self, step: int, state: dict[str, Any], run_id: str) -> None:
        """Save all that resuming needs, then drop all but the last two."""
        folder = self.path / STATES / f"{step:09d}"
        tensors: dict[str, Tensor] = {}
        skeleton = _flatten(state, "state", tensors)
        write_tensors(folder / "tensors.safetensors", tensors, run_id)
        # Written last: a folder with this file is complete.
        write_json(folder / "state.json", {"step": step, "run_id": run_id, "state": skeleton})
        for old in self._states()[KEPT_STATES:]:
            shutil.rmtree(old, ignore_errors=True)

    def _states(self) -> list[Path]:
        """State folders, newest first."""
        found = (self.path / STATES).glob("[0-9]*") if (self.path / STATES).is_dir() else []
        return sorted((p for p in found if p.is_dir()), key=lambda p: p.name, reverse=True)

    def read_state(self, run_id: str) -> tuple[dict[str, Any], list[str]]:
        """The newest good state, and what was wrong with newer ones.

        Raises UserError where no state is good.
        """
        problems: list[str] = []
        for folder in self._states():
            try:
                payload = read_json(folder / "state.json")
                if payload.get("run_id") != run_id:
                    raise UserError(f"{folder} belongs to another run")
                tensors = read_tensors(folder / "tensors.safetensors", run_id)
                return _unflatten(payload["state"], tensors), problems
            except (UserError, KeyError, TypeError, ValueError) as error:
                problems.append(str(error))
        detail = f" ({problems[0]})" if problems else ""
        raise UserError(f"{self.path} has no state to resume from{detail}")

    def drop_states(self) -> None:
        """A finished run needs no state."""
        shutil.rmtree(self.path / STATES, ignore_errors=True)
