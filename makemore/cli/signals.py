"""Ctrl-C, SIGTERM and SIGHUP as a question the trainer asks; what doesn't ask is interrupted."""

from __future__ import annotations

import _thread
import contextlib
import os
import signal
import threading
from collections.abc import Iterator
from types import FrameType

GRACE = 3.5
"""Seconds after which a signal that nobody has asked about interrupts what is going on."""
RETRY = 5.0
"""Seconds from that to its repetition: more than clearing away takes."""
LAST = 0.25
"""Seconds that what is left has after the last word."""


class Terminated(BaseException):
    """SIGTERM came where nobody asks: as KeyboardInterrupt, so that what is half-written is cleared away."""


def heed_termination() -> None:
    """Have SIGTERM raise Terminated; a second one, or ``GRACE`` seconds, end the program as it is."""

    def receive(signum: int, frame: FrameType | None) -> None:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        timer = threading.Timer(GRACE, signal.raise_signal, [signal.SIGTERM])
        timer.daemon = True
        timer.start()
        raise Terminated

    signal.signal(signal.SIGTERM, receive)


def leave_soon(status: int) -> None:
    """End the program though threads go on: Python waits for a compiler's, which may take a minute."""
    timer = threading.Timer(LAST, os._exit, [status])
    timer.daemon = True
    timer.start()


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
    """Signals set the flag while the block runs; ``once``: a second one has its usual effect.

    Where the block hasn't ended ``GRACE`` seconds after a signal, KeyboardInterrupt is raised in it: an
    evaluation or a compilation may take minutes, and what is on disk is whole at every moment. It is raised
    again every ``RETRY`` seconds: one that falls into a callback of Python's is lost.
    """
    flag = StopFlag()
    before = {s: signal.getsignal(s) for s in _signals()}
    ended = threading.Event()

    def insist() -> None:
        pause = GRACE
        while not ended.wait(pause):
            _interrupt()
            pause = RETRY

    insisting = threading.Thread(target=insist, daemon=True)

    def receive(signum: int, frame: FrameType | None) -> None:
        first, flag.signum = flag.signum is None, signum
        if once:
            signal.signal(signal.SIGINT, signal.default_int_handler)
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
            if first:
                insisting.start()

    for s in before:
        signal.signal(s, receive)
    try:
        yield flag
    finally:
        ended.set()
        for s, handler in before.items():
            signal.signal(s, handler)


def _signals() -> list[signal.Signals]:
    """Those that ask a program to end; nohup has SIGHUP ignored."""
    found = [signal.SIGINT, signal.SIGTERM]
    if hasattr(signal, "SIGHUP") and signal.getsignal(signal.SIGHUP) != signal.SIG_IGN:
        found.append(signal.SIGHUP)
    return found


def _interrupt() -> None:
    if os.name == "posix":  # a signal wakes what waits, too
        os.kill(os.getpid(), signal.SIGINT)
    else:
        _thread.interrupt_main()
