"""Data-parallel training in the processes that torchrun starts; does nothing in a single process.

Within ``process_group`` all ranks make the same calls in the same order. A rank that raises a UserError
stores its message, prints it and exits, which ends the other ranks' collectives: they raise the same error.
"""

from __future__ import annotations

import contextlib
import os
import re
import time
import uuid
from collections.abc import Callable, Iterator
from datetime import timedelta
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

from makemore.errors import UserError

if TYPE_CHECKING:
    from torch import Tensor
    from torch.distributed import Store  # type: ignore[attr-defined]

JOIN_TIMEOUT = 300.0
"""Seconds to wait for the other ranks at start-up."""
ATTEMPT_KEY, ERROR_KEY = "makemore/attempt", "error"
T = TypeVar("T")


class DistributedUserError(UserError):
    """A UserError raised on every rank."""


class DistInfo(NamedTuple):
    """This process's rank, the number of processes, and its rank on its machine."""

    rank: int = 0
    world_size: int = 1
    local_rank: int = 0


_SINGLE = DistInfo()
_dist_info = _SINGLE
_store: Store | None = None
"""The store of this attempt."""
_earlier_attempt = False
_reporting_rank = 0


def dist_info_from_env() -> DistInfo:
    """Read rank and world size from torchrun's environment variables; works before ``process_group`` too."""
    names = ("RANK", "WORLD_SIZE", "LOCAL_RANK")
    if not all(os.environ.get(name, "").isdigit() for name in (*names, "MASTER_PORT")):
        return _SINGLE
    return DistInfo(*(int(os.environ[name]) for name in names))


def launch_id() -> str:
    """An id shared by all attempts of one torchrun launch and no other; an empty string without torchrun."""
    name = os.environ.get("TORCHELASTIC_RUN_ID", "")
    # Without rendezvous the id is "none", but all workers on a machine share a parent process.
    return f"process {os.getppid()}" if name == "none" else name


def was_restarted() -> bool:
    """Whether torchrun has restarted the processes after a failure; valid on rank 0 only."""
    # Torchrun's count covers this machine's failures only.
    return _earlier_attempt or os.environ.get("TORCHELASTIC_RESTART_COUNT", "0") != "0"


def rank() -> int:
    return _dist_info.rank


def world_size() -> int:
    return _dist_info.world_size


def local_rank() -> int:
    return _dist_info.local_rank


def is_main() -> bool:
    """Whether this is rank 0, which alone writes (but for shards) and shows progress."""
    return _dist_info.rank == 0


@contextlib.contextmanager
def process_group(stop: Callable[[], bool] = lambda: False) -> Iterator[None]:
    """Join the process group for the block; ``stop`` is polled while ranks wait for each other.

    Raises:
        UserError: on every rank, when any rank raises one or is lost.
        KeyboardInterrupt: when ``stop`` returns True.
    """
    global _dist_info, _store, _reporting_rank
    info = dist_info_from_env()
    if info.world_size == 1 or _dist_info.world_size > 1:
        yield
        return
    import torch
    import torch.distributed as dist

    if not dist.is_available():
        raise UserError("this torch was built without torch.distributed; start without torchrun")
    from torch.distributed import PrefixStore  # type: ignore[attr-defined]
    from torch.distributed.rendezvous import rendezvous

    backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
    with peer_errors():
        launch_store, *_ = next(rendezvous("env://", timeout=timedelta(seconds=JOIN_TIMEOUT)))
        store = PrefixStore(_join_attempt(launch_store, info, stop), launch_store)
        dist.init_process_group(backend, store=store, rank=info.rank, world_size=info.world_size)
    _dist_info, _store, _reporting_rank = info, store, 0
    try:
        yield
        if is_main():
            launch_store.delete_key(ATTEMPT_KEY)
    except DistributedUserError:
        raise
    except UserError as error:
        with contextlib.suppress(RuntimeError):  # the store may be lost
            store.compare_set(ERROR_KEY, "", f"{info.rank} {error}")
        _first_error()
        raise
    finally:
        dist.destroy_process_group()
        _dist_info, _store = _SINGLE, None
        # Gloo's threads release their last tensors a moment later, and abort a process that exits first.
        time.sleep(0.1)


def _join_attempt(store: Store, info: DistInfo, stop: Callable[[], bool]) -> str:
    """Agree with all ranks on a name for this attempt.

    Torchrun uses one store for all its attempts: it holds addresses of dead processes (pytorch issue 135712),
    and no rank knows the number of the attempt, as each machine counts its own restarts. So rank 0 names the
    attempt, and acknowledges each rank that registers under this name; a rank without an answer waits for a
    newer attempt.
    """
    global _earlier_attempt
    token, deadline = uuid.uuid4().hex, time.monotonic() + JOIN_TIMEOUT
    if info.rank == 0:
        _earlier_attempt = store.check([ATTEMPT_KEY])
        store.set(ATTEMPT_KEY, token)
    missing = int(info.rank == 0)  # rank 0 waits for all ranks, they wait for rank 0
    while missing < info.world_size:
        if info.rank == 0 and store.check([f"{token}/{missing}"]):
            store.set(f"{token}/{missing}/{store.get(f'{token}/{missing}').decode()}", "")
            missing += 1
            continue
        if info.rank != 0 and store.check([ATTEMPT_KEY]):
            attempt = store.get(ATTEMPT_KEY).decode()
            store.set(f"{attempt}/{info.rank}", token)
            if store.check([f"{attempt}/{info.rank}/{token}"]):
                return attempt
        if stop():
            raise KeyboardInterrupt
        if time.monotonic() >= deadline:
            name = f"rank {missing} of {info.world_size}"
            raise DistributedUserError(f"{name} did not join in {JOIN_TIMEOUT:.0f} s; check that it runs")
        time.sleep(0.02)
    return token


@contextlib.contextmanager
def peer_errors() -> Iterator[None]:
    """Turn a failed collective into the failing rank's UserError, or into one on a lost connection."""
    try:
        yield
    except RuntimeError as error:
        from torch.distributed import DistError

        # Gloo raises plain RuntimeErrors.
        if not isinstance(error, DistError) and "gloo" not in str(error).lower():
            raise
        reason = re.sub(r"^\[[^]]*\] ", "", str(error).strip()).partition("\n")[0].partition(" [")[0][:80]
        lost = f"lost connection to the other ranks ({reason}); continue with --resume"
        raise DistributedUserError(_first_error() or lost) from None


def _first_error() -> str:
    """The first UserError that a rank raised, if any."""
    global _reporting_rank
    with contextlib.suppress(RuntimeError):  # the store may be lost, too
        if _store is not None and _store.check([ERROR_KEY]):
            rank, _, message = _store.get(ERROR_KEY).decode().partition(" ")
            _reporting_rank = int(rank)
            return message
    return ""


def reports_errors() -> bool:
    """Whether this rank prints the error that ended training: the first to raise one, otherwise rank 0."""
    return dist_info_from_env().rank == _reporting_rank


def all_reduce_max(value: float) -> float:
    """Maximum over all ranks, on every rank."""
    if world_size() == 1:
        return value
    import torch
    import torch.distributed as dist

    maximum = torch.tensor(value, dtype=torch.float64)
    with peer_errors():
        dist.all_reduce(maximum, dist.ReduceOp.MAX)
    return maximum.item()


@contextlib.contextmanager
def local_main_first() -> Iterator[None]:
    """Run the block on each machine's first rank before the others, which then find its cache files."""
    is_first = local_rank() == 0
    if not is_first:
        all_reduce_max(0)
    yield
    if is_first:
        all_reduce_max(0)


def broadcast(value: T) -> T:
    """Return rank 0's value on every rank."""
    if world_size() == 1:
        return value
    import torch.distributed as dist

    box = [value]
    with peer_errors():
        dist.broadcast_object_list(box, src=0)
    return box[0]


def gather(value: T) -> list[T]:
    """Return the values of all ranks in order on rank 0, and an empty list on other ranks."""
    if world_size() == 1:
        return [value]
    import torch.distributed as dist

    values: list[Any] | None = [None] * world_size() if is_main() else None
    with peer_errors():
        dist.gather_object(value, values)
    return values or []


def rank_slice(rows: int) -> slice:
    """This rank's slice of a batch's rows, split as by ``numpy.array_split``; may be empty."""
    per_rank, remainder = divmod(rows, world_size())
    start = rank() * per_rank + min(rank(), remainder)
    return slice(start, start + per_rank + (rank() < remainder))


def all_reduce_sum(tensors: list[Tensor]) -> None:
    """Sum tensors of one dtype over all ranks, in place, with one all-reduce."""
    if world_size() == 1:
        return
    import torch
    import torch.distributed as dist

    flat = torch.cat([tensor.reshape(-1) for tensor in tensors])
    with peer_errors():
        dist.all_reduce(flat)
    sums = flat.split([tensor.numel() for tensor in tensors])
    torch._foreach_copy_(
        tensors, [total.view_as(tensor) for total, tensor in zip(sums, tensors, strict=True)]
    )
