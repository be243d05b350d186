"""What the teacher says about each training row, computed once and kept where memory allows."""

from collections.abc import Sequence

import numpy as np
import torch
from datasets import Dataset
from torch import nn
from transformers import PreTrainedTokenizerBase

from edgemin_utils.encoders import captured_projections
from edgemin_utils.training import Batch, batch_maker, batches, evaluation_mode, model_inputs


def teacher_signals(teacher: nn.Module, batch: Batch, names: Sequence[str]) -> dict[str, torch.Tensor]:
    """Named signals of one batch: "logits" (batch, labels), "query.5" (batch, tokens, hidden); no gradients."""
    projections = [name for name in names if name != "logits"]
    with evaluation_mode(teacher), torch.no_grad(), captured_projections(teacher, projections) as states:
        with torch.autocast(batch["input_ids"].device.type, enabled=False):
            logits = teacher(**model_inputs(teacher, batch)).logits
    return {**states, "logits": logits}


class CachedSignals:
    """Signals of every training row, computed in one pass over length-sorted rows and looked up by position.

    A signal of one vector a row is kept as (rows, size). One of a vector a token is kept without padding, as
    (real tokens of all rows + 1, size), whose last row is the zero vector that padding gets.
    """

    def __init__(self, teacher: nn.Module, rows: Dataset, tokenizer: PreTrainedTokenizerBase, names: Sequence[str],
                 batch_size: int):
        self.lengths = torch.from_numpy(np.asarray(rows["length"], dtype=np.int64))
        self.starts = torch.cumsum(self.lengths, 0) - self.lengths
        self.by_row: dict[str, torch.Tensor] = {}
        self.by_token: dict[str, torch.Tensor] = {}
        total = int(self.lengths.sum())
        device = next(teacher.parameters()).device
        for positions, batch in batches(rows, tokenizer, batch_size, device):
            signals = teacher_signals(teacher, batch, names)
            real = batch["attention_mask"].bool().cpu()
            places = torch.cat([torch.arange(self.lengths[row]) + self.starts[row] for row in positions])
            for name in names:
                values = signals[name].cpu()
                if values.dim() == 2:
                    store = self.by_row.setdefault(name, values.new_empty(len(rows), values.shape[-1]))
                    store[torch.from_numpy(positions)] = values
                else:
                    store = self.by_token.setdefault(name, values.new_zeros(total + 1, values.shape[-1]))
                    store[places] = values[real]

    def __call__(self, batch: Batch) -> dict[str, torch.Tensor]:
        device, positions = batch["position"].device, batch["position"].cpu()
        steps = torch.arange(batch["input_ids"].shape[1])
        lengths, starts = self.lengths[positions], self.starts[positions]
        padding = next(iter(self.by_token.values())).shape[0] - 1 if self.by_token else 0
        places = torch.where(steps < lengths[:, None], starts[:, None] + steps, padding)
        return {**{name: store[positions].to(device) for name, store in self.by_row.items()},
                **{name: store[places].to(device) for name, store in self.by_token.items()}}


def signal_source(teacher: nn.Module, rows: Dataset, tokenizer: PreTrainedTokenizerBase, names: Sequence[str],
                  batch_size: int, cache_gigabytes: float):
    """A function from a training batch to the teacher's signals: cached if they fit, else computed batch by batch.

    Rows are found by `batch["position"]` and read through the teacher's own tokenizer, which is not the student's
    once a vocabulary was cut. Signals of tokens then fit only where both cut a row into the same tokens.

    Args:
        rows: the training rows as the teacher sees them, in the training rows' order.
        tokenizer: the teacher's.
        cache_gigabytes: most memory the cache may take, in 10^9 bytes.
    """
    tokens = int(np.sum(rows["length"]))
    widths = sum(teacher.config.hidden_size for name in names if name != "logits")
    if tokens * widths * 4 <= cache_gigabytes * 1e9:
        return CachedSignals(teacher, rows, tokenizer, names, batch_size)
    make = batch_maker(rows, tokenizer)

    def compute(batch: Batch) -> dict[str, torch.Tensor]:
        device, own = batch["position"].device, make(batch["position"].tolist())
        return teacher_signals(teacher, {name: value.to(device) for name, value in own.items()}, names)

    return compute
