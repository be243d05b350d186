"""Training on transformers' Trainer, which differs only in its loss, and batched prediction. Several processes of
`accelerate launch` share a batch's rows: their mean gradient is one process's where a loss is a mean over rows."""

import contextlib
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
import transformers
from datasets import Dataset
from torch import cuda, nn
from torch.nn import functional
from tqdm.auto import tqdm
from transformers import PreTrainedModel
from transformers import PreTrainedTokenizerBase as Tokenizer

from edgemin_utils.encoders import input_names
from edgemin_utils.environment import processor_flags
from edgemin_utils.errors import SettingError
from edgemin_utils.rows.tokens import Rows
from edgemin_utils.settings import Settings

Batch = Mapping[str, torch.Tensor]
# (model, batch) -> (loss to minimise, named parts of it to be logged)
LossFunction = Callable[[nn.Module, Batch], tuple[torch.Tensor, dict[str, torch.Tensor]]]
LOGGED_POINTS = 60


@dataclass(frozen=True)
class Phase:
    """One stretch of training with one loss, its own warm-up and its own linear decay to zero."""

    name: str
    epochs: float  # passes over the rows; may be a fraction
    learning_rate: float  # peak of the schedule
    loss: LossFunction  # what is minimised; finds a row's place among the rows as batch["position"]
    evaluates: bool = True  # hold-out accuracy means something after each epoch (not while a head is untrained)
    batch_size: int | None = None  # None takes the settings'
    projections: nn.Module | None = None  # used by the loss alone: trained with the model, left behind with the phase
    transfer: bool = False  # texts without labels are learnt from too, for which a teacher alone has answers
    check: Callable[[Rows], None] = lambda rows: None  # before training: raises MethodRefused where rows do not serve


@dataclass
class TrainingLog:
    """Each phase, losses averaged between points, and hold-out rows' results; steps and epochs count through phases."""

    phases: list[dict[str, Any]] = field(default_factory=list)
    history: list[dict[str, Any]] = field(default_factory=list)
    evaluations: list[dict[str, Any]] = field(default_factory=list)


def model_inputs(model: nn.Module, batch: Batch) -> dict[str, torch.Tensor]:
    """The entries of a batch that the model's forward takes, each (batch, tokens)."""
    return {name: batch[name] for name in input_names(model) if name in batch}


def label_loss(model: nn.Module, batch: Batch) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """Cross-entropy between the logits (batch, labels) and the labels (batch,), mean over the batch."""
    return functional.cross_entropy(model(**model_inputs(model, batch)).logits.float(), batch["labels"]), {}


def training_precision(settings: Settings) -> str:
    """ "float32" or "bfloat16": what `settings.training_precision` comes to on this machine."""
    if settings.training_precision != "auto":
        return settings.training_precision
    # A T4 only emulates bfloat16, slower than it computes in float32.
    by_processor = not processor_flags().isdisjoint("avx512_bf16 amx_bf16 bf16".split())
    native = cuda.is_bf16_supported(including_emulation=False) if cuda.is_available() else by_processor
    return "bfloat16" if native else "float32"


def train(
    model: PreTrainedModel,
    rows: Rows,
    phases: Sequence[Phase],
    settings: Settings,
    seed: int,
    log: TrainingLog | None = None,
    precision: str | None = None,
    after_phase: Callable[[Phase], None] | None = None,
) -> TrainingLog:
    """Trains `model` in place and adds the phases to the log. Order and dropout depend on `seed` alone. Precision None
    is the settings'; under fake quantization only "float32" keeps weights on the grid. `after_phase` finds the model in
    evaluation mode. Raises as a phase's `check`, and SettingError where processes cannot share a batch."""
    log = log or TrainingLog()
    for phase in phases:
        phase.check(rows)
    for number, phase in enumerate(phases, start=len(log.phases)):
        make = BatchMaker(rows.learnt_from if phase.transfer else rows.train, rows.tokenizer)
        if phase.epochs > 0 and len(make.lengths):
            seed_of_phase = (seed + 1000 * number) % 2**32  # NumPy takes no larger one
            history = _History(phase, log, rows, settings, model)
            _train_phase(make, history, seed_of_phase, precision or training_precision(settings))
            model.cpu().eval()
            if after_phase is not None:
                after_phase(phase)
    return log


def _train_phase(make: "BatchMaker", history: "_History", seed: int, precision: str) -> None:
    phase, settings, started = history.phase, history.settings, time.perf_counter()
    batch_size, on_gpu = phase.batch_size or settings.batch_size, cuda.is_available()
    with tempfile.TemporaryDirectory() as scratch:
        asked: dict[str, Any] = {"num_train_epochs": phase.epochs, "learning_rate": phase.learning_rate}
        asked |= {"warmup_steps": settings.warmup_ratio, "weight_decay": settings.weight_decay}
        asked |= {"max_grad_norm": settings.max_grad_norm, "seed": seed, "data_seed": seed}
        asked |= {"bf16": precision == "bfloat16", "use_cpu": not on_gpu, "dataloader_pin_memory": on_gpu}
        # Relation losses do not reach the classification head; the filter would wait for the loss in every step.
        asked |= {"ddp_find_unused_parameters": True, "logging_nan_inf_filter": False, "remove_unused_columns": False}
        asked |= dict.fromkeys("save_strategy eval_strategy logging_strategy".split(), "no")
        arguments = transformers.TrainingArguments(scratch, disable_tqdm=True, report_to="none", **asked)
        processes = arguments.world_size
        if batch_size % processes:
            way = "set batch_size and teacher_batch_size to multiples of their number"
            raise SettingError(f"a batch of {batch_size} rows cannot be divided among {processes} processes; {way}")
        arguments.per_device_train_batch_size = batch_size // processes
        places = range(len(make.lengths))  # the collator makes batches of them
        trainer = _PhaseTrainer(_ModelWithLoss(history), arguments, make, train_dataset=places, callbacks=[history])
        trainer.remove_callback(transformers.PrinterCallback)  # it would print the run's totals, which the log has
        trainer.row_order = GroupedByLength(make.lengths, batch_size, seed) if settings.length_grouping else None
        torch.manual_seed(seed + arguments.process_index)  # or every process would drop the same units
        options = {"unit": "step", "leave": False, "mininterval": 0.5, "disable": arguments.process_index > 0}
        with tqdm(desc=phase.name, **options) as history.bar:
            trainer.train()
    seconds = time.perf_counter() - started - history.evaluation_seconds
    made = {"name": phase.name, "epochs": phase.epochs, "learning_rate": phase.learning_rate, "precision": precision}
    made |= {"seconds": seconds, "examples_per_second": len(places) * phase.epochs / seconds, "processes": processes}
    projected = sum(value.numel() for value in (phase.projections or nn.Identity()).parameters())
    history.log.phases.append({**made, "steps": trainer.state.global_step, "projection_parameters": projected})


class GroupedByLength(torch.utils.data.Sampler):
    """Row numbers for batches of like length, anew every epoch: shuffled, sorted by length within `GROUP_BATCHES`
    batches, which are shuffled (with transformers' own, from long to short, models learn worse)."""

    GROUP_BATCHES = 16

    def __init__(self, lengths: Any, batch_size: int, seed: int):
        self.lengths, self.batch_size, self.seed, self.epoch = np.asarray(lengths), batch_size, seed, 0

    def __len__(self) -> int:
        return len(self.lengths)

    def __iter__(self) -> Iterator[int]:
        generator, size = np.random.default_rng((self.seed, self.epoch)), self.batch_size
        self.epoch += 1
        order = generator.permutation(len(self.lengths))
        for start in range(0, len(order), size * self.GROUP_BATCHES):
            group = order[start : start + size * self.GROUP_BATCHES]
            group = group[np.argsort(self.lengths[group], kind="stable")]
            # A last, smaller batch stays last: in between it would shift the borders of all that follow.
            whole = len(group) // size
            yield from group[: whole * size].reshape(-1, size)[generator.permutation(whole)].flatten().tolist()
            yield from group[whole * size :].tolist()


class _ModelWithLoss(nn.Module):
    """A model with a phase's projections, whose forward pass is the loss, as several GPUs and mixed precision need."""

    def __init__(self, history: "_History"):
        super().__init__()
        self.model, self.projections, self.history = history.model, history.phase.projections, history

    def forward(self, batch: Batch) -> torch.Tensor:
        loss, parts = self.history.phase.loss(self.model, batch)
        self.history.add({"loss": loss, **parts})
        return loss


class _PhaseTrainer(transformers.Trainer):
    row_order: GroupedByLength | None

    def _get_train_sampler(self, train_dataset: Any = None) -> Any:
        return self.row_order or super()._get_train_sampler(train_dataset)

    def compute_loss(self, model: nn.Module, inputs: Batch, *_: Any, **__: Any) -> torch.Tensor:
        return model(inputs)


class _History(transformers.TrainerCallback):
    """Averages the loss and its parts between the points kept, evaluates after each epoch, and shows progress."""

    def __init__(self, phase: Phase, log: TrainingLog, rows: Rows, settings: Settings, model: PreTrainedModel):
        self.phase, self.log, self.rows, self.settings, self.model = phase, log, rows, settings, model
        self.steps, self.epochs = (sum(item[name] for item in log.phases) for name in ("steps", "epochs"))
        self.sums, self.count, self.evaluation_seconds, self.bar = dict[str, torch.Tensor](), 0, 0.0, tqdm(disable=True)

    def add(self, values: Mapping[str, torch.Tensor]) -> None:
        self.sums = {name: self.sums.get(name, 0.0) + value.detach() for name, value in values.items()}
        self.count += 1

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.bar.total = state.max_steps
        self.bar.update()
        every = max(1, state.max_steps // LOGGED_POINTS)
        if state.global_step % every == 0 or state.global_step == state.max_steps:
            place = {"step": self.steps + state.global_step, "epoch": self.epochs + state.epoch}
            means = {name: float(value) / self.count for name, value in self.sums.items()}
            self.log.history.append({"phase": self.phase.name, **place, **means})
            self.sums, self.count = {}, 0

    def on_epoch_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        holdout, started = self.rows.holdout, time.perf_counter()
        if self.phase.evaluates and len(holdout) and state.is_world_process_zero:
            logits = predict(self.model, holdout, self.rows.tokenizer, self.settings.evaluation_batch_size)
            labels = np.asarray(holdout["labels"])
            loss = functional.cross_entropy(torch.from_numpy(logits), torch.from_numpy(labels))
            place = {"phase": self.phase.name, "epoch": self.epochs + state.epoch}
            accuracy = (logits.argmax(axis=1) == labels).mean()
            self.log.evaluations.append({**place, "loss": float(loss), "accuracy": float(accuracy)})
            self.evaluation_seconds += time.perf_counter() - started


class BatchMaker:
    """Makes a batch of places in tokenized `rows`, int64 on the CPU: token ids, types and attention mask, (batch,
    tokens), padded on the right; labels and position (the places), (batch,). `lengths` are in tokens, (rows,)."""

    def __init__(self, rows: Dataset, tokenizer: Tokenizer):
        def tensor(column: Any) -> torch.Tensor:
            return torch.from_numpy(column.to_numpy().astype(np.int64))

        self.padding = tokenizer.pad_token_id or 0
        names = [name for name in ("input_ids", "token_type_ids", "labels") if name in rows.column_names]
        table = rows.select_columns(names).with_format("arrow")[:]
        columns = {name: table.column(name).combine_chunks() for name in names}
        self.lengths = tensor(columns["input_ids"].value_lengths())
        self.starts = self.lengths.cumsum(0) - self.lengths
        self.by_row = {name: tensor(columns.pop(name)) for name in ("labels",) if name in columns}
        self.by_token = {name: tensor(column.flatten()) for name, column in columns.items()}

    def __call__(self, places: Any) -> dict[str, torch.Tensor]:
        chosen = torch.as_tensor(places)
        steps = torch.arange(int(self.lengths[chosen].max()))
        padded = steps >= self.lengths[chosen, None]
        tokens = (self.starts[chosen, None] + steps).masked_fill_(padded, 0)
        filled = {name: values[tokens].masked_fill_(padded, 0) for name, values in self.by_token.items()}
        filled["input_ids"].masked_fill_(padded, self.padding)
        rows = {name: values[chosen] for name, values in self.by_row.items()}
        return {**filled, "attention_mask": (~padded).long(), **rows, "position": chosen}


def batches(rows: Dataset, tokenizer: Tokenizer, size: int, device: Any = "cpu") -> Iterator[tuple[np.ndarray, Batch]]:
    """Yields (places, batch as `BatchMaker` makes it, on the device), longest rows first, so that little is padded."""
    make = BatchMaker(rows, tokenizer)
    for places in make.lengths.argsort(descending=True, stable=True).split(size):
        yield places.numpy(), {name: value.to(device) for name, value in make(places).items()}


def predict(model: PreTrainedModel, rows: Dataset, tokenizer: Tokenizer, batch_size: int = 64) -> np.ndarray:
    """Logits (rows, labels) in float32, in the rows' order, from the model in evaluation mode."""
    result = np.zeros((len(rows), model.config.num_labels), dtype=np.float32)
    device = next((parameter.device for parameter in model.parameters()), "cpu")
    with evaluation_mode(model), torch.inference_mode():
        for places, batch in batches(rows, tokenizer, batch_size, device) if len(rows) else ():
            result[places] = model(**model_inputs(model, batch)).logits.float().cpu().numpy()
    return result


@contextlib.contextmanager
def evaluation_mode(model: nn.Module) -> Iterator[nn.Module]:
    """The model in evaluation mode, put back as it was afterwards."""
    with contextlib.ExitStack() as stack:
        stack.callback(model.train, model.training)
        yield model.eval()
