"""Several processes that train one model together, as `accelerate launch` starts them.

Each goes through the same code; the main one alone decides what has to be computed, and writes the record. A process
that was not launched so is its own main one; torch is asked only where it was imported already.
"""

import contextlib
import os
import sys
from collections.abc import Iterator
from typing import Any


def launched_processes() -> int:
    """How many processes the launcher that started this one says there are; 1 without a launcher."""
    return int(os.environ.get("WORLD_SIZE") or 1)


@contextlib.contextmanager
def joined_processes() -> Iterator[None]:
    """Joins the processes that a launcher started, if one did, for as long as the context lasts."""
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
    return _group() is None or _group().get_rank() == 0


def from_main_process(value: Any) -> Any:
    """The main process's `value`, in every process; all of them have to call it."""
    values = [value]
    if _group() is not None:
        _group().broadcast_object_list(values)
    return values[0]


def wait_for_every_process() -> None:
    """Returns when every process is here."""
    if _group() is not None:
        _group().all_gather_object([None] * _group().get_world_size(), None)  # NCCL's own barrier prints a warning


def _group() -> Any:
    """torch.distributed if this process has joined others, else None."""
    distributed = getattr(sys.modules.get("torch"), "distributed", None)
    return distributed if distributed and distributed.is_available() and distributed.is_initialized() else None
