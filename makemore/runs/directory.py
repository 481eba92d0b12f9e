"""Run directories: safe to load, written atomically, locked against concurrent writers."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from torch import Tensor

from makemore.errors import UserError
from makemore.runs.lock import exclusive
from makemore.runs.metrics import MetricsLog
from makemore.runs.schema import ResultRecord, RunRecord, Seal, WeightsRecord, parse_run_record, read_record
from makemore.runs.states import States
from makemore.runtime import distributed
from makemore.runtime.files import (
    is_temporary,
    json_digest,
    make_dir_durably,
    read_json,
    read_tensors,
    tensor_digest,
    user_format_errors,
    user_write_errors,
    write_bytes,
    write_json,
    write_tensors,
)

CONFIG, TOKENIZER, MODEL = "config.json", "tokenizer.json", "model.safetensors"
METRICS, SAMPLES, RESULT, STATES = "metrics.jsonl", "samples.txt", "result.json", "state"
LINE_HASHES = "seen.safetensors"
WEIGHTS = "weights.json"
REQUESTED = "requested.json"
"""Settings of the command that started a run with members; written before training."""
MEMBERS = "members"
"""Folder of the runs that a mixture trained as its members."""
CHECKPOINTS = Path("checkpoints")
"""Default folder of runs."""


def find_run(path: str | Path) -> Path:
    """The path of a run, which may be given by its name alone if it is in ``checkpoints``."""
    path = Path(path)
    named = CHECKPOINTS / path
    is_name = len(path.parts) == 1 and not os.path.lexists(path)
    return named if is_name and os.path.isfile(named / CONFIG) else path


def _is_run_file(path: Path) -> bool:
    """Whether makemore wrote this JSON file; other programs have a config.json too."""
    try:
        return not {"run_id", "settings"}.isdisjoint(read_json(path))
    except UserError:
        return False


class RunDir:
    """Reads and writes the files of one run directory, without interpreting them."""

    def __init__(self, path: Path) -> None:
        # Resolve ``.`` and ``..``, because sibling files are named after the directory.
        self.path = path if path.name not in ("", "..") else path.resolve()
        self.metrics = MetricsLog(self.path / METRICS)
        self.states = States(self.path / STATES)
        self._copies: dict[str, dict[str, Any]] = {}
        """Contents of config and tokenizer, copied into every state."""

    @property
    def exists(self) -> bool:
        return (self.path / CONFIG).exists()

    @property
    def is_occupied(self) -> bool:
        """Whether the path exists; an empty or incompletely created run directory doesn't count."""
        if not os.path.isdir(self.path):  # unlike Path.is_dir, no error if the name is too long
            return os.path.lexists(self.path)
        names = {p.name for p in self.path.iterdir() if not is_temporary(p)}
        return not (
            names <= {TOKENIZER, LINE_HASHES, STATES, REQUESTED}
            and (not names or any(_is_run_file(self.path / name) for name in (TOKENIZER, REQUESTED)))
        )

    def member(self, name: str) -> RunDir:
        """The run of a member that is trained in this run."""
        return RunDir(self.path / MEMBERS / name)

    @property
    def members(self) -> list[RunDir]:
        """The runs of all members that are trained in this run."""
        folder = self.path / MEMBERS
        names = sorted(path.name for path in folder.iterdir()) if folder.is_dir() else []
        return [member for name in names if (member := self.member(name)).is_occupied]

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Create and lock the run directory. Raises UserError if another process holds the lock."""
        if os.path.lexists(self.path) and not os.path.isdir(self.path):
            raise UserError(
                f"{self.path} is not a run directory and is not overwritten; choose another --out"
            )
        with user_write_errors(self.path):
            make_dir_durably(self.path)
        with exclusive(self.path):
            yield

    def clear(self) -> None:
        """Remove a run's files and no others. Raises UserError if the folder holds something else."""
        marks = (CONFIG, TOKENIZER, REQUESTED)
        is_run = self.members or any(_is_run_file(self.path / name) for name in marks)
        if self.is_occupied and not is_run:
            raise UserError(
                f"{self.path} is not a run directory and is not overwritten; choose another --out"
            )
        with user_write_errors(self.path):
            self.remove_temporaries()
            self.states.drop()
            for member in self.members:
                member.clear()
                member.path.rmdir()
            # Remove files that identify a run last: an interrupted clear can be repeated.
            for name in (MODEL, WEIGHTS, LINE_HASHES, METRICS, SAMPLES, RESULT, REQUESTED, TOKENIZER, CONFIG):
                (self.path / name).unlink(missing_ok=True)

    def write_requested(self, settings: dict[str, Any]) -> None:
        """Record the settings of the command that started the run."""
        with user_write_errors(self.path):
            write_json(self.path / REQUESTED, {"settings": settings})

    def read_requested(self) -> dict[str, Any]:
        """The settings of ``write_requested``; empty if there are none."""
        path = self.path / REQUESTED
        settings = read_json(path).get("settings") if path.exists() else None
        return settings if isinstance(settings, dict) else {}

    def remove_temporaries(self) -> None:
        """Remove temporary files left by killed processes."""
        for folder in (self.path, *self.states.folders()):
            for path in filter(is_temporary, folder.iterdir()):
                path.unlink(missing_ok=True)

    def create(
        self,
        config: RunRecord,
        tokenizer: dict[str, Any],
        state: dict[str, Any] | None = None,
        seen_U: Tensor | None = None,
    ) -> str:
        """Create the run: tokenizer, line hashes (``seen_U``), initial state, then config.json. Writing the
        config last means every run that has one can be resumed. Returns the run's id."""
        config = config.model_copy(update={"seen": seen_U is not None})
        run_id = json_digest(config.model_dump())[:16]
        config = config.model_copy(update={"run_id": run_id})
        self._copies = {TOKENIZER: {**tokenizer, "run_id": run_id}, CONFIG: config.model_dump()}
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
                if copy := self.states.read_copy(name):
                    write_json(self.path / name, copy)
                    problems.append(str(error))
        return problems

    def write_config(self, config: RunRecord) -> None:
        """Replace the config of an existing run."""
        self._copies[CONFIG] = config.model_dump()
        write_json(self.path / CONFIG, self._copies[CONFIG])

    def read_config(self) -> RunRecord:
        """Read the config. Raises UserError if it is missing, is damaged, or has another format version."""
        if not os.path.isdir(self.path):
            if os.path.lexists(self.path):
                raise UserError(f"{self.path} is a file, not a run; give a run's directory")
            raise UserError(f"no run at {self.path}; create one with makemore train")
        if not self.exists and self.members:
            raise UserError(f"{self.path} is unfinished; continue it with makemore train --resume")
        if not self.exists:
            raise UserError(f"{self.path} is not a makemore run (it has no {CONFIG}); give a run's directory")
        config = parse_run_record(read_json(self.path / CONFIG), self.path / CONFIG)
        self._copies[CONFIG] = config.model_dump()
        return config

    def read_config_copy(self) -> RunRecord | None:
        """The config stored with the newest state, or None if there is none."""
        copy = self.states.read_copy(CONFIG)
        return None if copy is None else parse_run_record(copy, self.path / CONFIG)

    def read_tokenizer(self, run_id: str) -> dict[str, Any]:
        data = read_json(self.path / TOKENIZER)
        if data.get("run_id") != run_id:
            raise UserError(f"{self.path / TOKENIZER} belongs to another run")
        self._copies[TOKENIZER] = data
        return data

    def write_model(self, tensors: dict[str, Tensor], run_id: str) -> None:
        """Write the weights. Equal weights give equal files, so their checksum and the run's id are in
        ``weights.json``, written first and with the previous checksum, in case of an interruption between."""
        plain = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
        digests = [tensor_digest(plain)]
        with contextlib.suppress(UserError):  # damaged: written again
            digests += self._weight_digests(run_id)[:1]
        write_json(self.path / WEIGHTS, {"run_id": run_id, "digests": digests})
        write_tensors(self.path / MODEL, plain, None)

    def read_model(self, run_id: str) -> dict[str, Tensor]:
        return read_tensors(self.path / MODEL, run_id, self._weight_digests(run_id))

    def _weight_digests(self, run_id: str) -> tuple[str, ...]:
        """Checksums of the newest weights and of those before; none in runs of earlier versions."""
        if not os.path.lexists(self.path / WEIGHTS):
            return ()
        record = read_record(self.path / WEIGHTS, WeightsRecord)
        if record.run_id != run_id:
            raise UserError(f"{self.path / WEIGHTS} belongs to another run")
        return record.digests

    def write_line_hashes(self, hashes_U: Tensor, run_id: str) -> None:
        """Write the sorted hashes of the training lines, (U,) int64."""
        write_tensors(self.path / LINE_HASHES, {"hashes": hashes_U}, run_id)

    def read_line_hashes(self, config: RunRecord) -> Tensor | None:
        """Read the line hashes; returns None if the run has none. Raises UserError if they are damaged."""
        if not config.seen:
            return None
        with user_format_errors(self.path / LINE_HASHES):
            return read_tensors(self.path / LINE_HASHES, config.run_id)["hashes"]

    def write_result(self, result: dict[str, Any]) -> None:
        write_json(
            self.path / RESULT,
            {**result, "run_id": self.read_config().run_id, "metrics": self.metrics.checksum().model_dump()},
        )

    def read_result(self) -> ResultRecord | None:
        return read_record(self.path / RESULT, ResultRecord) if (self.path / RESULT).exists() else None

    def write_samples(self, text: str) -> None:
        write_bytes(self.path / SAMPLES, text.encode())

    def write_state(self, step: int, state: dict[str, Any], run_id: str) -> None:
        """Save a state to resume from, with the log's checksum and copies of config and tokenizer. All ranks
        must call this if tensors are sharded; only the arguments of rank 0 matter otherwise."""
        metrics = self.metrics.checksum() if distributed.is_main() else Seal(bytes=0, sha256="")
        self.states.write(step, state, run_id, metrics, self._copies)
