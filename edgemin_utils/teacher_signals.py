"""What the teacher says about each training row, computed once and kept where memory allows."""

from collections.abc import Callable, Iterator, Mapping, Sequence

import numpy as np
import torch
from datasets import Dataset
from torch import nn
from transformers import PreTrainedTokenizerBase

from edgemin_utils.encoder_states import captured_states, state_width
from edgemin_utils.training import Batch, batch_maker, batches, evaluation_mode, model_inputs


def teacher_signals(teacher: nn.Module, batch: Batch, names: Sequence[str]) -> dict[str, torch.Tensor]:
    """Named signals of one batch, without gradients: "logits" (batch, labels), or a state as
    `encoder_states.captured_states` names it, such as "query.5" or "hidden.2"."""
    states_named = [name for name in names if name != "logits"]
    with evaluation_mode(teacher), torch.no_grad(), captured_states(teacher, states_named) as states:
        with torch.autocast(batch["input_ids"].device.type, enabled=False):
            logits = teacher(**model_inputs(teacher, batch)).logits
    return {**states, "logits": logits}


class CachedSignals:
    """Signals of every training row, computed in one pass over length-sorted rows and looked up by position.

    A signal of one vector a row is kept as (rows, size). One of a vector a token is kept without padding, as
    (real tokens of all rows + 1, size), whose last row is the zero vector that padding gets.
    """

    def __init__(
        self,
        teacher: nn.Module,
        rows: Dataset,
        tokenizer: PreTrainedTokenizerBase,
        names: Sequence[str],
        batch_size: int,
    ):
        self.lengths = torch.from_numpy(np.asarray(rows["length"], dtype=np.int64))
        self.starts = torch.cumsum(self.lengths, 0) - self.lengths
        self.by_row: dict[str, torch.Tensor] = {}
        self.by_token: dict[str, torch.Tensor] = {}
        total = int(self.lengths.sum())
        device = next(teacher.parameters()).device
        for positions, batch in batches(rows, tokenizer, batch_size, device):
            signals = teacher_signals(teacher, batch, names)
            real = batch["attention_mask"].bool().cpu()
            places = torch.cat([torch.arange(int(self.lengths[row])) + self.starts[row] for row in positions])
            for name in names:
                values = signals[name].cpu()
                if values.dim() == 2:
                    store = self.by_row.setdefault(name, values.new_empty(len(rows), values.shape[-1]))
                    store[torch.from_numpy(positions)] = values
                else:
                    store = self.by_token.setdefault(name, values.new_zeros(total + 1, values.shape[-1]))
                    store[places] = values[real]

    def __call__(self, batch: Batch) -> Mapping[str, torch.Tensor]:
        """Name -> signals of the batch's rows, found by `batch["position"]`: (batch, size), or (batch, tokens, size)
        with zeros at padding."""
        return _SignalsOfBatch(self, batch)


class _SignalsOfBatch(Mapping):
    """Signals of one batch, gathered when they are asked for: a phase pays for those that it uses."""

    def __init__(self, cache: CachedSignals, batch: Batch):
        self.cache, self.device, self.positions = cache, batch["position"].device, batch["position"].cpu()
        self.tokens = batch["input_ids"].shape[1]

    def __getitem__(self, name: str) -> torch.Tensor:
        if name in self.cache.by_row:
            return self.cache.by_row[name][self.positions].to(self.device)
        store = self.cache.by_token[name]
        lengths, starts = self.cache.lengths[self.positions], self.cache.starts[self.positions]
        steps = torch.arange(self.tokens)
        places = torch.where(steps < lengths[:, None], starts[:, None] + steps, store.shape[0] - 1)
        return store[places].to(self.device)

    def __iter__(self) -> Iterator[str]:
        yield from (*self.cache.by_row, *self.cache.by_token)

    def __len__(self) -> int:
        return len(self.cache.by_row) + len(self.cache.by_token)


def signal_source(
    teacher: nn.Module,
    rows: Dataset,
    tokenizer: PreTrainedTokenizerBase,
    names: Sequence[str],
    batch_size: int,
    cache_gigabytes: float,
) -> Callable[[Batch], Mapping[str, torch.Tensor]]:
    """A function from a training batch to the teacher's signals, named as in `teacher_signals`: cached if they fit,
    else computed batch by batch.

    Rows are found by `batch["position"]` and read through the teacher's own tokenizer, which is not the student's
    once a vocabulary was cut. Signals of tokens then fit only where both cut a row into the same tokens.

    Args:
        rows: the training rows as the teacher sees them, in the training rows' order.
        tokenizer: the teacher's.
        cache_gigabytes: most memory the cache may take, in 10^9 bytes.
    """
    tokens, count = int(np.sum(rows["length"])), len(rows)
    states = [name for name in names if name != "logits"]
    values = sum(state_width(teacher, name) * (count if name.startswith("cls.") else tokens) for name in states)
    if values * 4 <= cache_gigabytes * 1e9:
        return CachedSignals(teacher, rows, tokenizer, names, batch_size)
    make = batch_maker(rows, tokenizer)

    def compute(batch: Batch) -> dict[str, torch.Tensor]:
        device, own = batch["position"].device, make(batch["position"].tolist())
        return teacher_signals(teacher.to(device), {name: value.to(device) for name, value in own.items()}, names)

    return compute
