"""One run in many processes, as torchrun starts them. In a process alone, nothing here does anything.

``session`` joins the processes. Within it every process makes the same calls in the same order. Before
they exchange anything but gradients they agree that all are well: a UserError in one is then raised in all.
"""

from __future__ import annotations

import contextlib
import os
import time
import uuid
from collections.abc import Callable, Iterator
from datetime import timedelta
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

from makemore.errors import UserError

if TYPE_CHECKING:
    from torch import Tensor
    from torch.distributed import Store  # type: ignore[attr-defined]

PATIENCE = 300.0
"""Seconds that processes wait for each other at the beginning."""
ATTEMPT = "makemore/attempt"
T = TypeVar("T")


class Agreed(UserError):  # noqa: N818 - the error is what they agree on
    """A UserError that every process raises."""


class Place(NamedTuple):
    """Which process this is, of how many, and which on its machine."""

    rank: int = 0
    size: int = 1
    local_rank: int = 0


_ALONE = Place()
_place = _ALONE
_earlier_attempt = False


def launched() -> Place:
    """What torchrun says in the environment; it needn't have been asked to ``session`` yet."""
    names = ("RANK", "WORLD_SIZE", "LOCAL_RANK")
    if not all(os.environ.get(name, "").isdigit() for name in (*names, "MASTER_PORT")):
        return _ALONE
    return Place(*(int(os.environ[name]) for name in names))


def launch_id() -> str:
    """The same for all attempts that one torchrun makes, and for no others; empty without torchrun."""
    name = os.environ.get("TORCHELASTIC_RUN_ID", "")
    # Without a rendezvous its id is "none", but all workers of this machine have the same parent.
    return f"process {os.getppid()}" if name == "none" else name


def restarted() -> bool:
    """Whether torchrun has started the processes anew, after one of them failed. Asked in the first one."""
    # Each machine counts its own failures only.
    return _earlier_attempt or os.environ.get("TORCHELASTIC_RESTART_COUNT", "0") != "0"


def rank() -> int:
    return _place.rank


def size() -> int:
    return _place.size


def local_rank() -> int:
    return _place.local_rank


def is_main() -> bool:
    """Whether this is the process that writes, prints and evaluates."""
    return _place.rank == 0


@contextlib.contextmanager
def session(stop: Callable[[], bool] = lambda: False) -> Iterator[None]:
    """The processes belong together while the block runs; ``stop`` is asked while they look for each other.

    Raises UserError in every process where one does, or where one is gone; KeyboardInterrupt where
    ``stop`` says yes.
    """
    global _place
    place = launched()
    if place.size == 1 or _place.size > 1:
        yield
        return
    import torch
    import torch.distributed as dist

    if not dist.is_available():
        raise UserError("this torch is built without torch.distributed: train in one process")
    from torch.distributed import PrefixStore  # type: ignore[attr-defined]
    from torch.distributed.rendezvous import rendezvous

    backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
    with _reaching_others():
        store, *_ = next(rendezvous("env://", timeout=timedelta(seconds=PATIENCE)))
        own = PrefixStore(_meet(store, place, stop), store)
        dist.init_process_group(backend, store=own, rank=place.rank, world_size=place.size)
    _place = place
    try:
        yield
        if is_main():
            store.delete_key(ATTEMPT)
    except Agreed:
        raise
    except UserError as error:
        _agree(0.0, str(error))
    finally:
        _place = _ALONE
        dist.destroy_process_group()
        # Gloo's threads let go of their last tensors a moment later, and abort a process that ends before.
        time.sleep(0.1)


def _meet(store: Store, place: Place, stop: Callable[[], bool]) -> str:
    """A name for this attempt, which all processes have.

    Torchrun has one store for all its attempts: in it stand the addresses of processes that are gone
    (pytorch issue 135712), and which attempt this is no one can say, as each machine counts its own.
    So the first process gives the attempt a name, and answers whoever greets it by that name.
    """
    part = _welcome if place.rank == 0 else _greet
    return part(store, uuid.uuid4().hex, place, stop)


def _welcome(store: Store, attempt: str, place: Place, stop: Callable[[], bool]) -> str:
    """The first process's part in ``_meet``."""
    global _earlier_attempt
    _earlier_attempt = store.check([ATTEMPT])
    store.set(ATTEMPT, attempt)
    until = time.monotonic() + PATIENCE
    for other in range(1, place.size):
        if not _there(store, f"{attempt}/{other}", until, stop):
            raise Agreed(f"process {other} of {place.size} didn't come within {PATIENCE:.0f} s")
        store.set(f"{attempt}/{other}/{store.get(f'{attempt}/{other}').decode()}", "")
    return attempt


def _greet(store: Store, own: str, place: Place, stop: Callable[[], bool]) -> str:
    """The other processes' part: an attempt that doesn't answer is over, or hasn't begun."""
    until = time.monotonic() + PATIENCE
    while time.monotonic() < until:
        if _there(store, ATTEMPT, time.monotonic() + 1, stop):
            attempt = store.get(ATTEMPT).decode()
            store.set(f"{attempt}/{place.rank}", own)
            if _there(store, f"{attempt}/{place.rank}/{own}", time.monotonic() + 1, stop):
                return attempt
    raise Agreed(f"the first process of {place.size} didn't come within {PATIENCE:.0f} s")


def _there(store: Store, key: str, until: float, stop: Callable[[], bool]) -> bool:
    """Whether a key appears before a time has come."""
    while not store.check([key]):
        if stop():
            raise KeyboardInterrupt
        if time.monotonic() >= until:
            return False
        time.sleep(0.02)
    return True


@contextlib.contextmanager
def _reaching_others() -> Iterator[None]:
    try:
        yield
    except RuntimeError as error:
        reason = next(iter(str(error).strip().splitlines()), "no reason given")[:200]
        raise Agreed(f"lost touch with the run's other processes ({reason}); go on with --resume") from None


def _agree(value: float, error: str = "") -> float:
    """The largest value, unless a process has an error: then Agreed is raised in all."""
    import torch
    import torch.distributed as dist

    with _reaching_others():
        both = torch.tensor([float(bool(error)), value], dtype=torch.float64)
        dist.all_reduce(both, dist.ReduceOp.MAX)
        failed, largest = both.tolist()
        if not failed:
            return largest
        errors = [""] * size()
        dist.all_gather_object(errors, error)
    raise Agreed(next(filter(None, errors)))


def highest(value: float) -> float:
    """The largest of all processes' values, in all."""
    return value if size() == 1 else _agree(value)


@contextlib.contextmanager
def once_a_machine() -> Iterator[None]:
    """The first process of each machine goes through the block before the others: what it leaves in a
    cache they find there.
    """
    first = local_rank() == 0
    if not first:
        highest(0)
    yield
    if first:
        highest(0)


def from_main(value: T) -> T:
    """The first process's value, in all."""
    if size() == 1:
        return value
    import torch.distributed as dist

    _agree(0.0)
    box = [value]
    with _reaching_others():
        dist.broadcast_object_list(box, src=0)
    return box[0]


def gather(value: T) -> list[T]:
    """All processes' values in the first one, by rank; nothing in the others."""
    if size() == 1:
        return [value]
    import torch.distributed as dist

    _agree(0.0)
    values: list[Any] | None = [None] * size() if is_main() else None
    with _reaching_others():
        dist.gather_object(value, values)
    return values or []


def own_rows(rows: int) -> slice:
    """This process's share of a batch's rows, as ``numpy.array_split`` cuts them: maybe none."""
    each, over = divmod(rows, size())
    begin = rank() * each + min(rank(), over)
    return slice(begin, begin + each + (rank() < over))


def add_up(tensors: list[Tensor]) -> None:
    """Sum each tensor over all processes, in place: one message for all, which are of one dtype."""
    if size() == 1:
        return
    import torch
    import torch.distributed as dist

    flat = torch.cat([tensor.reshape(-1) for tensor in tensors])
    with _reaching_others():
        dist.all_reduce(flat)
    sums = flat.split([tensor.numel() for tensor in tensors])
    torch._foreach_copy_(
        tensors, [total.view_as(tensor) for total, tensor in zip(sums, tensors, strict=True)]
    )
