"""Whether the files of a run are those that were written."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from makemore.errors import UserError
from makemore.runs.directory import CONFIG, MODEL, RESULT, SAMPLES, STATES, TOKENIZER, RunDir, Saved
from makemore.runtime.files import require_plain, tensor_digest, well_formed
from makemore.tokenizers import tokenizer_from_dict


def check(path: str | Path) -> list[str]:
    """What is wrong with a run's files, a line each that names the file; nothing where all is well.

    Looks at every byte of every file, but for metrics logged after the newest state: a resumed run logs
    them anew. Raises UserError where this is no run.
    """
    folder = RunDir(Path(path))
    if not folder.path.is_dir() or not folder.occupied:
        raise UserError(f"no run at {path}; makemore train makes one")
    problems: list[str] = []
    config = folder.read_copy(CONFIG)
    with _noting(problems):
        config = folder.read_config()
    if config:
        files = RunFiles(folder, config, problems)
        for look in (files.tokenizer, files.model, files.seen, files.result, files.samples, files.metrics):
            with _noting(problems):
                look()
    return problems


@contextlib.contextmanager
def _noting(problems: list[str]) -> Iterator[None]:
    try:
        yield
    except UserError as error:
        if str(error) not in problems:
            problems.append(str(error))


class RunFiles:
    """The files of one run beside its config, each looked at in the light of the newest state."""

    def __init__(self, folder: RunDir, config: dict[str, Any], problems: list[str]) -> None:
        self.folder, self.config, self.run_id = folder, config, config["run_id"]
        states, broken = folder.read_states(self.run_id)
        problems += broken
        self.newest: Saved | None = states[0] if states else None
        self.best: dict[str, Any] = {}
        """The best weights as the newest state has them."""
        # Without states a run is one that was shared, or a mixture.
        self.finished = not (states or broken)
        if self.newest:
            with _noting(problems), well_formed(folder.path / STATES):
                self.finished = bool(self.newest.state["trainer"].get("finished"))
                self.best = dict(self.newest.state["best"])

    def tokenizer(self) -> None:
        with well_formed(self.folder.path / TOKENIZER):
            tokenizer_from_dict(self.folder.read_tokenizer(self.run_id))

    def model(self) -> None:
        """Of a finished run it has to be the best that training found."""
        path = self.folder.path / MODEL
        if not self.finished and not self.best and not path.exists():
            return
        found = tensor_digest(self.folder.read_model(self.run_id))
        with well_formed(self.folder.path / STATES):
            kept = tensor_digest(self.best) if self.best else found
        if self.finished and found != kept:
            raise UserError(f"{path} is damaged: these are not the weights that were kept")

    def seen(self) -> None:
        self.folder.read_seen(self.config)

    def _result(self) -> dict[str, Any] | None:
        result = self.folder.read_result()
        if result is not None and result.get("run_id") != self.run_id:
            raise UserError(f"{self.folder.path / RESULT} belongs to another run")
        return result

    def result(self) -> None:
        if self._result() is None and self.finished:
            raise UserError(f"{self.folder.path / RESULT} is missing")

    def samples(self) -> None:
        result, path = self._result(), self.folder.path / SAMPLES
        if result is None or "samples" not in result:
            return
        if require_plain(path) is None:
            raise UserError(f"{path} is missing")
        with well_formed(self.folder.path / RESULT):
            written = ("\n".join(result["samples"]) + "\n").encode()
        if path.read_bytes() != written:
            raise UserError(f"{path} is damaged: {RESULT} has other samples")

    def metrics(self) -> None:
        """As they were at the end, or where the newest state was saved."""
        seal = self.newest.metrics if self.newest else None
        with well_formed(self.folder.path / RESULT):
            if self.finished and (result := self._result()):
                seal = result["metrics"]
            if seal and (problem := self.folder.metrics_problem(seal)):
                raise UserError(problem)
