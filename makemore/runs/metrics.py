"""The log of a run: ``metrics.jsonl``, one JSON object per line."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from pathlib import Path
from typing import Any

from makemore.runtime.files import finite, stat_regular_file, user_write_errors, write_bytes


class MetricsLog:
    """Appends records, and verifies the part of the log covered by a stored checksum (a seal)."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def append(self, record: dict[str, Any], sync: bool = False) -> None:
        """Append a JSON line; ``sync``: fsync it. Raises UserError if it can't be written."""
        path = self.path
        stat_regular_file(path)
        with user_write_errors(path), path.open("a", encoding="utf-8", newline="\n") as file:
            file.write(json.dumps(finite(record), allow_nan=False) + "\n")
            if sync:
                file.flush()
                os.fsync(file.fileno())

    def read(self) -> list[dict[str, Any]]:
        """Read all records, skipping lines that a crash cut off."""
        records = []
        if self.path.exists():
            for line in self.path.read_text(encoding="utf-8", errors="replace").splitlines():
                with contextlib.suppress(ValueError):
                    records.append(json.loads(line))
        return [r for r in records if isinstance(r, dict)]

    def checksum(self) -> dict[str, Any]:
        """Current size and checksum of ``metrics.jsonl``, to store in a state or a result."""
        data = self._bytes()
        return {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}

    def check(self, seal: dict[str, Any], is_complete: bool = False) -> str:
        """Check the metrics logged before ``seal`` was stored; returns the problem, or an empty string.

        ``is_complete``: nothing may have been logged since.
        """
        path, data = self.path, self._bytes()
        if seal["bytes"] and not path.exists():
            return f"{path} is missing"
        if is_complete and len(data) > seal["bytes"]:
            return f"{path} is damaged: {len(data) - seal['bytes']:,} bytes were added after the run ended"
        intact = hashlib.sha256(data[: seal["bytes"]]).hexdigest() == seal["sha256"]
        return "" if intact else f"{path} is damaged: its checksum doesn't match"

    def truncate(self, step: int, seal: dict[str, Any]) -> str:
        """Drop metrics logged after ``step``, when ``seal`` was stored; a resumed run logs them again.

        Returns the problem if the kept part is damaged (its readable lines are kept), or an empty string.
        """
        if problem := self.check(seal):
            records = [r for r in self.read() if isinstance(r.get("step"), int) and r["step"] <= step]
            data = "".join(json.dumps(finite(r), allow_nan=False) + "\n" for r in records).encode()
        else:
            data = self._bytes()[: seal["bytes"]]
        write_bytes(self.path, data)
        return problem

    def _bytes(self) -> bytes:
        return self.path.read_bytes() if stat_regular_file(self.path) is not None else b""
