"""Turn Ctrl-C, SIGTERM and SIGHUP into a flag that the trainer polls; interrupt code that doesn't poll."""

from __future__ import annotations

import _thread
import contextlib
import os
import signal
import threading
from collections.abc import Iterator
from types import FrameType

GRACE = 3.5
"""Seconds after a signal until code that hasn't stopped is interrupted."""
RETRY = 5.0
"""Seconds between repeated interrupts; longer than cleanup takes."""
EXIT_DELAY = 0.25
"""Seconds the process may keep running after its final message."""


class Terminated(BaseException):
    """SIGTERM outside ``stop_flag``; an exception like KeyboardInterrupt, so partial files are removed."""


def install_signal_handlers() -> None:
    """Make SIGTERM raise Terminated; a second SIGTERM, or ``GRACE`` seconds, kills the process."""

    def receive(signum: int, frame: FrameType | None) -> None:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        timer = threading.Timer(GRACE, signal.raise_signal, [signal.SIGTERM])
        timer.daemon = True
        timer.start()
        raise Terminated

    signal.signal(signal.SIGTERM, receive)


def exit_soon(status: int) -> None:
    """Exit even if threads are running; Python would wait for compiler threads, up to a minute."""
    timer = threading.Timer(EXIT_DELAY, os._exit, [status])
    timer.daemon = True
    timer.start()


class StopFlag:
    """The signal received, if any; call the flag to poll."""

    signum: int | None = None

    def __call__(self) -> bool:
        return self.signum is not None

    @property
    def status(self) -> int:
        """Exit status of a program stopped by the signal."""
        return 128 + (self.signum or signal.SIGINT)


@contextlib.contextmanager
def stop_flag(once: bool = True) -> Iterator[StopFlag]:
    """Make signals set a flag while the block runs. ``once``: a second signal has its default effect.

    If the block is still running ``GRACE`` seconds after a signal, KeyboardInterrupt is raised in it: an
    evaluation or a compilation may take minutes, and files on disk are always consistent. The exception is
    repeated every ``RETRY`` seconds, because an interrupt inside a Python callback is lost.
    """
    flag = StopFlag()
    old_handlers = {s: signal.getsignal(s) for s in _stop_signals()}
    ended = threading.Event()

    def interrupt_repeatedly() -> None:
        pause = GRACE
        while not ended.wait(pause):
            _interrupt()
            pause = RETRY

    interrupter = threading.Thread(target=interrupt_repeatedly, daemon=True)

    def receive(signum: int, frame: FrameType | None) -> None:
        first, flag.signum = flag.signum is None, signum
        if once:
            signal.signal(signal.SIGINT, signal.default_int_handler)
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
            if first:
                interrupter.start()

    for s in old_handlers:
        signal.signal(s, receive)
    try:
        yield flag
    finally:
        ended.set()
        for s, handler in old_handlers.items():
            signal.signal(s, handler)


def _stop_signals() -> list[signal.Signals]:
    """SIGINT, SIGTERM, and SIGHUP unless it is ignored, as under nohup."""
    signals = [signal.SIGINT, signal.SIGTERM]
    if hasattr(signal, "SIGHUP") and signal.getsignal(signal.SIGHUP) != signal.SIG_IGN:
        signals.append(signal.SIGHUP)
    return signals


def _interrupt() -> None:
    if os.name == "posix":  # a real signal also wakes blocking calls
        os.kill(os.getpid(), signal.SIGINT)
    else:
        _thread.interrupt_main()
