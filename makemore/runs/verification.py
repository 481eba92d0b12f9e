"""Check the files of a run for damage."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from makemore.errors import UserError
from makemore.runs.directory import MODEL, RESULT, SAMPLES, STATES, TOKENIZER, RunDir, find_run
from makemore.runs.schema import ResultRecord, RunRecord
from makemore.runs.states import SavedState
from makemore.runtime.files import stat_regular_file, tensor_digest, user_format_errors
from makemore.tokenizers import tokenizer_from_dict


def check_run(path: str | Path) -> list[str]:
    """Check a run's files; returns a line for each problem. Raises UserError if there is no run.

    Every byte is checked, except metrics logged after the newest state, which a resumed run logs again.
    """
    folder = RunDir(find_run(path))
    if not folder.path.is_dir() or not folder.is_occupied:
        raise UserError(f"no run at {path}; create one with makemore train")
    problems: list[str] = []
    config: RunRecord | None = None
    for read in (folder.read_config, folder.read_config_copy):
        with _collecting(problems):
            config = config or read()
    if config:
        files = RunChecker(folder, config, problems)
        for verify in (files.tokenizer, files.model, files.seen, files.result, files.samples, files.metrics):
            with _collecting(problems):
                verify()
    return problems


@contextlib.contextmanager
def _collecting(problems: list[str]) -> Iterator[None]:
    try:
        yield
    except UserError as error:
        if str(error) not in problems:
            problems.append(str(error))


class RunChecker:
    """Checks of a run's files against its newest state; each method checks one file and raises UserError."""

    def __init__(self, folder: RunDir, config: RunRecord, problems: list[str]) -> None:
        self.folder, self.config, self.run_id = folder, config, config.run_id
        self.newest: SavedState | None = None
        self.best: dict[str, Any] = {}
        """Best weights in the newest state."""
        # Shared runs and mixtures are finished and have no states.
        self.finished = not (states := folder.states.folders())
        for path in states:
            with _collecting(problems):
                saved = folder.states.read(path, self.run_id)
                self.newest = self.newest or saved
        if self.newest:
            with _collecting(problems), user_format_errors(folder.path / STATES):
                self.finished = bool(self.newest.state["trainer"].get("finished"))
                self.best = dict(self.newest.state["best"])

    def tokenizer(self) -> None:
        with user_format_errors(self.folder.path / TOKENIZER):
            tokenizer_from_dict(self.folder.read_tokenizer(self.run_id))

    def model(self) -> None:
        """The weights of a finished run must be the best ones in its newest state."""
        path = self.folder.path / MODEL
        if not self.finished and not self.best and not path.exists():
            return
        digest = tensor_digest(self.folder.read_model(self.run_id))
        with user_format_errors(self.folder.path / STATES):
            best_digest = tensor_digest(self.best) if self.best else digest
        if self.finished and digest != best_digest:
            raise UserError(f"{path} is damaged: its weights are not the best weights of the run")

    def seen(self) -> None:
        self.folder.read_line_hashes(self.config)

    def _result(self) -> ResultRecord | None:
        result = self.folder.read_result()
        if result is not None and result.run_id != self.run_id:
            raise UserError(f"{self.folder.path / RESULT} belongs to another run")
        return result

    def result(self) -> None:
        if self._result() is None and self.finished:
            raise UserError(f"{self.folder.path / RESULT} is missing")

    def samples(self) -> None:
        result, path = self._result(), self.folder.path / SAMPLES
        if result is None or result.samples is None:
            return
        info = stat_regular_file(path)
        if info is None:
            raise UserError(f"{path} is missing")
        expected = ("\n".join(result.samples) + "\n").encode()
        if info.st_size != len(expected) or path.read_bytes() != expected:
            raise UserError(f"{path} is damaged: it differs from the samples in {RESULT}")

    def metrics(self) -> None:
        """The log must match the checksum in the result, or in the newest state of an unfinished run."""
        seal, is_complete = self.newest.metrics if self.newest else None, False
        if self.finished and (result := self._result()):
            seal, is_complete = result.metrics, True
        if seal and (problem := self.folder.metrics.check(seal, is_complete)):
            raise UserError(problem)
