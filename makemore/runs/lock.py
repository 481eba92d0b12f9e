"""Lock run directories: one process at a time may write."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

from makemore.errors import UserError


@contextlib.contextmanager
def exclusive(folder: Path) -> Iterator[None]:
    """Lock a folder for this process. Raises UserError if another process holds the lock.

    On POSIX, flock on the folder itself: it leaves no file, and is released even if the process is killed.
    File systems that don't support locks are used without.
    """
    in_use = UserError(f"another process is writing {folder}; wait for it to finish, or name another --out")
    if os.name != "posix":
        from filelock import FileLock, Timeout

        try:
            with FileLock(folder.with_name(f".{folder.name}.lock"), timeout=0):
                yield
        except Timeout:
            raise in_use from None
        return
    import fcntl

    handle = os.open(folder, os.O_RDONLY)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise in_use from None
        except OSError:
            pass
        yield
    finally:
        os.close(handle)
