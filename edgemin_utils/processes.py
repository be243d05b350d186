"""Several processes that train one model together, as `accelerate launch` starts them.

Each process goes through the same code. The main one alone decides what has to be computed and writes the record; the
others train beside it and wait. A process that was not launched so is its own main one, and nothing here costs it
anything: torch is asked only where it was imported already.
"""

import contextlib
import os
import sys
from collections.abc import Iterator, Sequence
from typing import Any


def launched_processes() -> int:
    """How many processes the launcher that started this one says there are; 1 without a launcher."""
    count = os.environ.get("WORLD_SIZE", "")
    return int(count) if count.isdigit() else 1


@contextlib.contextmanager
def joined_processes() -> Iterator[None]:
    """Joins the processes that a launcher started, for as long as the context lasts: by NCCL where there are GPUs, by
    gloo else. Without a launcher nothing happens."""
    if launched_processes() == 1:
        yield
        return
    import torch
    from accelerate import PartialState

    state = PartialState(cpu=not torch.cuda.is_available())
    try:
        yield
    finally:
        state.destroy_process_group()


def is_main_process() -> bool:
    """Whether this process is the one that writes."""
    group = _group()
    return group is None or group.get_rank() == 0


def from_main_process(value: Any) -> Any:
    """The main process's `value`, in every process; all of them have to call it."""
    if _group() is None:
        return value
    from accelerate.utils import broadcast_object_list

    return broadcast_object_list([value])[0]


def of_every_process(value: Any) -> Sequence[Any]:
    """Every process's `value`, in their order; all of them have to call it."""
    if _group() is None:
        return [value]
    from accelerate.utils import gather_object

    return gather_object([value])


def wait_for_every_process() -> None:
    """Returns when every process is here."""
    if _group() is not None:
        from accelerate.utils import wait_for_everyone

        wait_for_everyone()


def _group() -> Any:
    """torch.distributed if this process has joined others, else None."""
    torch = sys.modules.get("torch")
    distributed = torch and torch.distributed
    return distributed if distributed and distributed.is_available() and distributed.is_initialized() else None
