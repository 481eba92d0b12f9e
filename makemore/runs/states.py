"""Training states to resume from: ``state/STEP/``, each complete or absent."""

from __future__ import annotations

import contextlib
import math
import re
import shutil
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from makemore.errors import UserError
from makemore.runs.schema import Seal, StateRecord, read_record
from makemore.runtime import distributed
from makemore.runtime.files import read_json, read_tensors, write_json, write_tensors
from makemore.runtime.sharding import SavedShards

STATE, TENSORS = "state.json", "tensors.safetensors"
SHARD = "shard-{}.safetensors"
"""Each rank's part of sharded tensors. Torch's own sharded checkpoints are indexed by a pickle."""


class SavedState(NamedTuple):
    """A loaded state, and the problems of newer, damaged states."""

    state: dict[str, Any]
    metrics: Seal
    problems: list[str]


class States:
    """The state folders of one run."""

    def __init__(self, path: Path) -> None:
        """``path``: the folder of all states."""
        self.path = path
        self.newest: Path | None = None
        """The newest state known to be intact: the last one read or written."""

    def folders(self) -> list[Path]:
        """State folders, newest first. Raises UserError for symbolic links."""
        paths = self.path.iterdir() if self.path.is_dir() else []
        folders = [p for p in paths if re.fullmatch(r"\d{1,18}(\.\d{1,9})?", p.name) and p.is_dir()]
        for folder in (self.path, *folders):
            if folder.is_symlink():
                raise UserError(f"{folder} is a link; a run directory may not contain links")
        return sorted(folders, key=_state_order, reverse=True)

    def write(
        self, step: int, state: dict[str, Any], run_id: str, metrics: Seal, copies: dict[str, Any]
    ) -> None:
        """Save a state to resume from, then delete all older states except the last good one. Rank 0 writes
        it; if tensors are sharded, each rank writes its shards.

        ``metrics``: the log's checksum; ``copies``: config and tokenizer, to restore them if damaged.
        """
        tensors: dict[str, Tensor] = {}
        shards: dict[str, Tensor] = {}
        flat = _flatten(state, "state", tensors, shards)
        if not (shards or distributed.is_main()):
            return
        folder, digests = self._new_folder(step), list[str]()
        try:
            if shards:
                folder, run_id = distributed.broadcast((folder, run_id))
                digest = write_tensors(folder / SHARD.format(distributed.rank()), shards, run_id)
                digests = distributed.gather(digest)
                if not distributed.is_main():
                    return
            payload = {"name": folder.name, "run_id": run_id, "state": flat, "shards": digests}
            payload |= {"metrics": metrics.model_dump(), "copies": copies}
            payload["tensors"] = write_tensors(folder / TENSORS, tensors, run_id)
            # Written last: marks the folder as complete.
            write_json(folder / STATE, payload)
        except UserError:
            shutil.rmtree(folder, ignore_errors=True)
            raise
        for old in self.folders():
            if old not in (folder, self.newest):
                shutil.rmtree(old, ignore_errors=True)
        self.newest = folder

    def _new_folder(self, step: int) -> Path:
        """Path of a new folder, so no good state is overwritten."""
        nth = max((n for s, n in map(_state_order, self.folders()) if s == step), default=-1) + 1
        return self.path / (f"{step:09d}.{nth}" if nth else f"{step:09d}")

    def read_newest(self, run_id: str, mapped: bool = False) -> SavedState:
        """Read the newest good state, as ``read`` does. Raises UserError if there is none."""
        problems: list[str] = []
        for folder in self.folders():
            try:
                saved = self.read(folder, run_id, mapped)
            except UserError as error:
                problems.append(str(error))
            else:
                self.newest = folder
                return saved._replace(problems=problems)
        detail = f" ({problems[0]})" if problems else ""
        run = self.path.parent
        raise UserError(f"{run} has no state to resume from{detail}; start over with --overwrite")

    def read(self, folder: Path, run_id: str, mapped: bool = False) -> SavedState:
        """Read a state. ``mapped``: don't copy its tensors to memory, nor join shards. Raises UserError."""
        record = read_record(folder / STATE, StateRecord)
        if record.run_id != run_id:
            raise UserError(f"{folder / STATE} belongs to another run")
        if record.name != folder.name:
            raise UserError(f"{folder / STATE} is damaged: it belongs to state {record.name}")
        tensors: dict[str, Any] = read_tensors(folder / TENSORS, run_id, [record.tensors], mapped)
        try:
            parts = [
                read_tensors(folder / SHARD.format(i), run_id, [digest], mapped=True)
                for i, digest in enumerate(record.shards)
            ]
            for name in parts[0] if parts else ():
                shards = SavedShards([part[name] for part in parts])
                tensors[name] = shards if mapped else torch.cat(shards.parts)
            return SavedState(_unflatten(record.state, tensors), record.metrics, [])
        except (KeyError, TypeError, ValueError, RuntimeError) as error:
            raise UserError(f"{folder / STATE} is damaged: {type(error).__name__} {error}") from None

    def read_copy(self, name: str) -> dict[str, Any] | None:
        """Return the newest state's copy of config or tokenizer (``name``), or None if there is none."""
        for folder in self.folders():
            with contextlib.suppress(UserError, KeyError, TypeError, ValueError):
                return dict(read_json(folder / STATE)["copies"][name])
        return None

    def drop(self) -> None:
        """Delete every state."""
        if self.path.is_symlink():
            self.path.unlink()
        shutil.rmtree(self.path, ignore_errors=True)


def _state_order(folder: Path) -> tuple[int, int]:
    """Sort key of a state folder: its step, then its number within the step."""
    step, _, nth = folder.name.partition(".")
    return int(step), int(nth or 0)


def _flatten(value: Any, path: str, tensors: dict[str, Tensor], shards: dict[str, Tensor]) -> Any:
    """Convert a nested state to JSON, moving its tensors to ``tensors``, and this rank's part of sharded ones
    to ``shards``, under their path."""
    if isinstance(value, Tensor):
        if hasattr(value, "to_local"):
            shards[path] = value.to_local()
        else:
            tensors[path] = value
        return {"$tensor": path}
    if isinstance(value, dict):
        # Pairs, because optimizer states have integer keys and JSON keys are strings.
        pairs = [[k, _flatten(v, f"{path}/{k}", tensors, shards)] for k, v in value.items()]
        return {"$dict": pairs}
    if isinstance(value, list | tuple):
        return [_flatten(v, f"{path}/{i}", tensors, shards) for i, v in enumerate(value)]
    if isinstance(value, float) and not math.isfinite(value):
        return {"$float": str(value)}  # JSON has no infinities
    return value


def _unflatten(value: Any, tensors: dict[str, Tensor]) -> Any:
    if isinstance(value, dict):
        if "$tensor" in value:
            return tensors[value["$tensor"]]
        if "$float" in value:
            return float(value["$float"])
        return {key: _unflatten(v, tensors) for key, v in value["$dict"]}
    if isinstance(value, list):
        return [_unflatten(v, tensors) for v in value]
    return value
