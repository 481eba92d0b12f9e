"""The log of a run: ``metrics.jsonl``, one JSON object per line."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from pathlib import Path
from typing import Any

from pydantic_core import to_jsonable_python

from makemore.runs.schema import Seal
from makemore.runtime.files import require_file, stat_regular_file, user_write_errors, write_bytes
from makemore.runtime.untrusted import parse_json

MAX_LOG_BYTES = 1 << 28
"""Maximum bytes of a log, enough for more than a million lines."""
MAX_NUMBER = 10**18
"""Maximum of a log's numbers: steps, tokens, seconds, nats; larger ones overflow in plots."""


class MetricsLog:
    """Appends records, and verifies the part of the log covered by a stored checksum (a seal)."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def append(self, record: dict[str, Any], sync: bool = False) -> None:
        """Append a JSON line; ``sync``: fsync it. Raises UserError if it can't be written."""
        path = self.path
        stat_regular_file(path)
        with user_write_errors(path), path.open("a", encoding="utf-8", newline="\n") as file:
            file.write(json.dumps(to_jsonable_python(record, inf_nan_mode="null")) + "\n")
            if sync:
                file.flush()
                os.fsync(file.fileno())

    def read(self) -> list[dict[str, Any]]:
        """Read the numbers of all records, skipping other lines, such as one that a crash cut off.

        Raises UserError if the log is not a regular file or too large.
        """
        return [record for line in self._bytes().splitlines() if (record := _parse_record(line))]

    def checksum(self) -> Seal:
        """Current size and checksum of ``metrics.jsonl``, to store in a state or a result."""
        data = self._bytes()
        return Seal(bytes=len(data), sha256=hashlib.sha256(data).hexdigest())

    def check(self, seal: Seal, is_complete: bool = False) -> str:
        """Check the metrics logged before ``seal`` was stored; returns the problem, or an empty string.

        ``is_complete``: nothing may have been logged since.
        """
        path, data = self.path, self._bytes()
        if seal.bytes and not path.exists():
            return f"{path} is missing"
        if is_complete and len(data) > seal.bytes:
            return f"{path} is damaged: {len(data) - seal.bytes:,} bytes were added after the run ended"
        intact = hashlib.sha256(data[: seal.bytes]).hexdigest() == seal.sha256
        return "" if intact else f"{path} is damaged: its checksum doesn't match"

    def truncate(self, step: int, seal: Seal) -> str:
        """Drop metrics logged after ``step``, when ``seal`` was stored; a resumed run logs them again.

        Returns the problem if the kept part is damaged (its readable lines are kept), or an empty string.
        """
        if problem := self.check(seal):
            records = [r for r in self.read() if r["step"] <= step]
            data = "".join(json.dumps(r, allow_nan=False) + "\n" for r in records).encode()
        else:
            data = self._bytes()[: seal.bytes]
        write_bytes(self.path, data)
        return problem

    def _bytes(self) -> bytes:
        if stat_regular_file(self.path) is None:
            return b""
        require_file(self.path, MAX_LOG_BYTES)
        return self.path.read_bytes()


def _parse_record(line: bytes) -> dict[str, Any]:
    """The numbers of a log line by name. Returns an empty dict if it isn't an object with a step."""
    with contextlib.suppress(ValueError):
        record = parse_json(line)
        if isinstance(record, dict) and type(record.get("step")) is int:
            return {k: v for k, v in record.items() if type(v) in (int, float) and abs(v) <= MAX_NUMBER}
    return {}
