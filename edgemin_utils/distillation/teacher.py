"""The teacher as its students see it: what it says about every training row, computed once."""

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from edgemin_utils.distillation.losses import full_precision
from edgemin_utils.encoders import captured_states, state_width
from edgemin_utils.errors import MethodRefused
from edgemin_utils.rows.tables import NO_LABEL
from edgemin_utils.rows.tokens import Rows, tokenize_rows
from edgemin_utils.settings import Settings
from edgemin_utils.training import Batch, BatchMaker, evaluation_mode, model_inputs

# Name -> a batch's logits (batch, labels), vectors (batch, size) or states (batch, tokens, size)
States = Mapping[str, Tensor]


def teacher_signals(model: PreTrainedModel, batch: Batch, names: Sequence[str]) -> dict[str, Tensor]:
    """Signals as `student_states` gives them, in evaluation mode, without autocast and detached."""
    plain = torch.autocast(batch["input_ids"].device.type, enabled=False)
    with evaluation_mode(model), torch.set_grad_enabled("gradient" in names), plain:
        return {name: value.detach() for name, value in student_states(model, batch, names).items()}


def student_states(model: nn.Module, batch: Batch, names: Sequence[str]) -> dict[str, Tensor]:
    """Signals of one forward pass in float32 or float64, by name: "logits" (batch, labels), a state as
    `encoders.captured_states` names it, or "gradient", (batch, tokens, 1): the norm of the gradient of the labels' loss
    (the model's own answer's, where there is none) by every token's embedding."""
    inner = {"embeddings" if name == "gradient" else name for name in names if name != "logits"}
    with captured_states(model, sorted(inner), stop_early={"logits", "gradient"}.isdisjoint(names)) as states:
        states["logits"] = model(**model_inputs(model, batch)).logits
    if "gradient" in names:
        own, labels = states["logits"].argmax(-1), batch["labels"]
        loss = nn.functional.cross_entropy(states["logits"], labels.where(labels != NO_LABEL, own), reduction="sum")
        (gradient,) = torch.autograd.grad(loss, states["embeddings"], retain_graph=True)
        states["gradient"] = gradient.norm(dim=-1, keepdim=True)
    return {name: full_precision(states[name]) for name in names}


class Teacher:
    """A teacher and its signals of the rows that students train on, cached up to `settings.teacher_cache_gigabytes`.
    Rows go by `batch["position"]`, read by the teacher's `tokenizer`: not the student's once a vocabulary was cut."""

    def __init__(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, rows: Rows, settings: Settings):
        self.model, self.settings, self.rows = model, settings, rows
        if tokenizer is not rows.tokenizer:
            self.rows = tokenize_rows(rows.data, tokenizer, rows.limit, configs=[model.config])
        self._batch_of = BatchMaker(self.rows.learnt_from, self.rows.tokenizer)
        self._wanted, self._cache = dict[str, None](), dict[str, Tensor]()

    def signals(self, names: Sequence[str]) -> Callable[[Batch], States]:
        """A function from a batch to these signals (as `student_states` names them) of its rows, zero at padding. One
        pass over the rows serves all names that were asked for before its first batch."""
        self._wanted |= dict.fromkeys(names)
        return lambda batch: self._signals_of(batch, names)

    def require_same_tokens(self, rows: Rows) -> None:
        """Raises MethodRefused where the student's rows are not the teacher's, token by token."""
        if rows is self.rows:
            return
        known = rows.tokenizer.get_vocab()
        numbers = {number: known.get(token) for token, number in self.rows.tokenizer.get_vocab().items()}
        pairs = zip(self.rows.learnt_from["input_ids"], rows.learnt_from["input_ids"], strict=True)
        if count := sum([numbers[number] for number in one] != list(other) for one, other in pairs):
            self._wanted.clear()
            other = f"since the vocabulary was cut {count:,} of {len(rows.learnt_from):,} train rows have other tokens"
            raise MethodRefused(f"{other}; use an objective that does not compare them, or vocabulary_text = none")

    def _signals_of(self, batch: Batch, names: Sequence[str]) -> States:
        cache, limit = self._cache, self.settings.teacher_cache_gigabytes * 1e9 / 4  # values of float32
        missing = [name for name in {**self._wanted, **dict.fromkeys(names)} if name not in cache]
        if missing:
            if sum(self._shape(name).numel() for name in [*cache, *missing]) > limit:
                missing = list(names)
                cache.clear()  # what other students used makes room
            if sum(self._shape(name).numel() for name in missing) > limit:
                self.model.to(batch["position"].device)
                return teacher_signals(self.model, self._rows_at(batch["position"].cpu()), names)
            self._fill(missing)
            self._wanted = {}
        places, width = batch["position"].cpu(), batch["input_ids"].shape[1]
        return {name: cache[name][self._at(name, places, width)].to(batch["position"].device) for name in names}

    def _fill(self, names: Sequence[str]) -> None:
        """Computes signals of all rows: (rows + 1, size), or (real tokens of all rows + 1, size); the last is zero."""
        lengths = self._batch_of.lengths
        self.model.to("cuda" if torch.cuda.is_available() else "cpu")
        for places in lengths.argsort(descending=True, stable=True).split(self.settings.evaluation_batch_size):
            signals = teacher_signals(self.model, self._rows_at(places), names)
            for name in names:
                value = signals[name].cpu()
                if name not in self._cache:
                    self._cache[name] = value.new_zeros(self._shape(name))
                self._cache[name][self._at(name, places, value.shape[1])] = value
                self._cache[name][-1] = 0.0
        self.model.cpu()

    def _at(self, name: str, places: Tensor, width: int) -> Tensor:
        """Where a signal of those rows is cached: at their places, or their tokens', (rows, width), padding last."""
        steps, make = torch.arange(width), self._batch_of
        tokens = torch.where(steps < make.lengths[places, None], make.starts[places, None] + steps, make.lengths.sum())
        return places if is_of_row(name) else tokens

    def _rows_at(self, places: Tensor) -> Batch:
        return {name: value.to(self.model.device) for name, value in self._batch_of(places).items()}

    def _shape(self, name: str) -> torch.Size:
        lengths = self._batch_of.lengths
        size = {"logits": self.model.config.num_labels, "gradient": 1}.get(name) or state_width(self.model, name)
        return torch.Size([1 + (len(lengths) if is_of_row(name) else int(lengths.sum())), size])


def is_of_row(name: str) -> bool:
    """Whether a signal is one vector a row, rather than one a token."""
    return name == "logits" or name.startswith("cls.")
