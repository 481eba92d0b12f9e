"""Ctrl-C and SIGTERM as a question the trainer asks; a second one stops at once."""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Iterator
from types import FrameType


class StopFlag:
    """Which signal has come, if any."""

    signum: int | None = None

    def __call__(self) -> bool:
        return self.signum is not None

    @property
    def status(self) -> int:
        """The exit status of a program stopped by the signal."""
        return 128 + (self.signum or signal.SIGINT)


@contextlib.contextmanager
def stop_flag(once: bool = True) -> Iterator[StopFlag]:
    """Signals set the flag while the block runs; ``once``: a second one has its usual effect."""
    flag = StopFlag()
    before = {s: signal.getsignal(s) for s in (signal.SIGINT, signal.SIGTERM)}

    def receive(signum: int, frame: FrameType | None) -> None:
        flag.signum = signum
        if once:
            signal.signal(signal.SIGINT, signal.default_int_handler)
            signal.signal(signal.SIGTERM, signal.SIG_DFL)

    for s in before:
        signal.signal(s, receive)
    try:
        yield flag
    finally:
        for s, handler in before.items():
            signal.signal(s, handler)
