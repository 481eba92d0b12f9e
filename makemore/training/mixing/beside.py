"""Train two members at the same time: one in a thread of its own, on one core."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import contextmanager
from typing import Any, TypeVar

import torch

from makemore.training.observers import Observer
from makemore.training.plan import Plan
from makemore.training.records import TrainingInterrupted

Stop = Callable[[], bool]
T = TypeVar("T")
U = TypeVar("U")


class _Beside(Observer):
    """Forwards what happens before training begins, and keeps later notes; drops measurements."""

    def __init__(self, observer: Observer) -> None:
        self.observer = observer
        self.started: Future[None] = Future()
        self.notes: list[str] = []

    def note(self, text: str) -> None:
        if self.started.done():
            self.notes.append(text)
        else:
            self.observer.note(text)

    def encoding(self, done: int, total: int) -> None:
        self.observer.encoding(done, total)

    def start(self, plan: Plan) -> None:
        self.observer.start(plan)
        self.started.set_result(None)


def train_beside(
    beside: Callable[[Observer, Stop], T],
    main: Callable[[Observer, Stop], U],
    observer: Observer,
    stop: Stop,
) -> tuple[T, U]:
    """Run two trainings, each given an observer and a function that says when to stop.

    ``beside`` computes in C, in one thread that doesn't hold Python's lock. ``main`` starts once the other
    has read its text and made its model; when the other has ended, it gets all of torch's threads. An error
    of either stops both and is raised.
    """
    quiet, abandoned = _Beside(observer), False
    with ThreadPoolExecutor(1) as pool:
        other = pool.submit(beside, quiet, lambda: abandoned or stop())
        both: list[Future[Any]] = [other, quiet.started]
        try:
            wait(both, return_when=FIRST_COMPLETED)
            with _sharing_threads(other) as share:
                result = main(observer, lambda: share() or stop())
            finished = other.result()
        except TrainingInterrupted:
            abandoned = True
            other.result()  # raises its error, if that was the reason
            raise
        except BaseException:
            abandoned = True
            raise
    for note in quiet.notes:
        observer.note(note)
    return finished, result


@contextmanager
def _sharing_threads(other: Future[T]) -> Iterator[Stop]:
    """Use one torch thread fewer until the other call ends. Yields a function to call often: it adjusts the
    number of threads, and returns True if the other call failed."""
    total = torch.get_num_threads()

    def share() -> bool:
        n = total if other.done() else max(1, total - 1)
        if torch.get_num_threads() != n:
            torch.set_num_threads(n)
        return other.done() and other.exception() is not None

    try:
        yield share
    finally:
        torch.set_num_threads(total)
