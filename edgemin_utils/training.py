"""Training and predicting: one phase of gradient descent on transformers' Trainer, and batched prediction.

Every loop of the study is a `Phase`: fine-tuning, relation distillation, prediction-layer distillation and recovery
differ only in their loss. Because the loop is transformers' Trainer, `accelerate launch` spreads it over GPUs and
machines unchanged.

With several processes a batch is still `batch_size` rows: consecutive rows of the same order go to one process after
another, batch_size / processes to each, and gradients are averaged. That is the single process's gradient where a loss
is a mean over rows; a mean over tokens weights each process's tokens alike instead of each token. If the rows are no
multiple of the batch, the last batch of an epoch is filled up with rows of its first ones.
"""

import contextlib
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from torch import nn
from torch.nn import functional
from torch.utils.data import Sampler
from tqdm.auto import tqdm
from transformers import (
    DataCollatorWithPadding,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    PrinterCallback,
    Trainer,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
    set_seed,
)

from edgemin_utils.config import Settings
from edgemin_utils.encoders import input_names
from edgemin_utils.errors import SettingError
from edgemin_utils.measurement.environment import has_native_bfloat16

Batch = Mapping[str, torch.Tensor]
# (model, batch) -> (loss to minimise, named parts of it to be logged)
LossFunction = Callable[[nn.Module, Batch], tuple[torch.Tensor, dict[str, torch.Tensor]]]

LOGGED_POINTS = 60


@dataclass(frozen=True)
class Phase:
    """One stretch of training with one loss, its own warm-up and its own linear decay to zero.

    Attributes:
        name: as it appears in histories and figures.
        epochs: passes over the rows; may be a fraction.
        learning_rate: peak of the schedule.
        loss: what is minimised.
        evaluates: whether hold-out accuracy means something after each epoch (not while a head is untrained).
        batch_size: rows a batch; None takes the settings'.
        projections: parameters that only the loss uses; trained with the model, and left behind with the phase.
    """

    name: str
    epochs: float
    learning_rate: float
    loss: LossFunction
    evaluates: bool = True
    batch_size: int | None = None
    projections: nn.Module | None = None


@dataclass
class TrainingLog:
    """What training left to look at; `as_dict` is the `training` entry of a record.

    Attributes:
        phases: name, epochs, steps, seconds, examples_per_second, precision, processes and projection_parameters
            (trained, but not part of the model) of each phase.
        history: phase, step (counted through all phases), epoch, loss and its named parts, averaged between points
            and over the rows of this process.
        evaluations: phase, epoch (through all phases), loss and accuracy on the hold-out rows.
    """

    phases: list[dict[str, Any]] = field(default_factory=list)
    history: list[dict[str, Any]] = field(default_factory=list)
    evaluations: list[dict[str, Any]] = field(default_factory=list)

    def as_dict(self) -> dict[str, Any]:
        """The log in JSON's types."""
        return {"phases": self.phases, "history": self.history, "evaluations": self.evaluations}


def model_inputs(model: nn.Module, batch: Batch) -> dict[str, torch.Tensor]:
    """The entries of a batch that the model's forward takes, each (batch, tokens)."""
    return {name: batch[name] for name in input_names(model) if name in batch}


def label_loss(model: nn.Module, batch: Batch) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """Cross-entropy between the logits (batch, labels) and the labels (batch,), mean over the batch."""
    logits = model(**model_inputs(model, batch)).logits.float()
    return functional.cross_entropy(logits, batch["labels"]), {}


def training_precision(settings: Settings) -> str:
    """ "float32" or "bfloat16": what `settings.training_precision` comes to on this machine."""
    if settings.training_precision != "auto":
        return settings.training_precision
    # A T4 only emulates bfloat16, slower than it computes in float32.
    native = (
        torch.cuda.is_bf16_supported(including_emulation=False) if torch.cuda.is_available() else has_native_bfloat16()
    )
    return "bfloat16" if native else "float32"


def train_phases(
    model: nn.Module,
    rows: Dataset,
    phases: list[Phase],
    tokenizer: PreTrainedTokenizerBase,
    settings: Settings,
    seed: int,
    holdout: Dataset | None = None,
    log: TrainingLog | None = None,
) -> TrainingLog:
    """Trains `model` in place through `phases` on tokenized `rows` and returns the log: a new one, or `log` with the
    phases behind those that it has.

    `rows` has the columns of `tokenization.tokenize`; each row's place in it reaches the loss as
    `batch["position"]`. Order, dropout and initial schedule depend on `seed` alone.

    Raises:
        SettingError: there are several processes and a phase's batch cannot be divided among them.
    """
    log = log or TrainingLog()
    for number, phase in enumerate(phases, start=len(log.phases)):
        if phase.epochs > 0 and len(rows):
            own_seed = (seed + 1000 * number) % 2**32  # NumPy takes no larger one
            _train_phase(model, rows, phase, tokenizer, settings, own_seed, holdout, log)
    return log


def _train_phase(
    model: nn.Module,
    rows: Dataset,
    phase: Phase,
    tokenizer: PreTrainedTokenizerBase,
    settings: Settings,
    seed: int,
    holdout: Dataset | None,
    log: TrainingLog,
) -> None:
    precision, batch_size = training_precision(settings), phase.batch_size or settings.batch_size
    steps_before = sum(item["steps"] for item in log.phases)
    epochs_before = sum(item["epochs"] for item in log.phases)
    set_seed(seed)
    columns = [name for name in rows.column_names if name in TRAINING_COLUMNS]
    rows = rows.select_columns(columns).add_column("position", np.arange(len(rows)))
    with tempfile.TemporaryDirectory() as scratch:
        arguments = TrainingArguments(
            output_dir=scratch,
            num_train_epochs=phase.epochs,
            learning_rate=phase.learning_rate,
            per_device_train_batch_size=batch_size,
            warmup_steps=settings.warmup_ratio,
            weight_decay=settings.weight_decay,
            max_grad_norm=settings.max_grad_norm,
            seed=seed,
            data_seed=seed,
            bf16=precision == "bfloat16",
            use_cpu=not torch.cuda.is_available(),
            save_strategy="no",
            eval_strategy="no",
            logging_strategy="no",
            report_to="none",
            disable_tqdm=True,
            remove_unused_columns=False,
            dataloader_pin_memory=torch.cuda.is_available(),
            # Relation losses do not reach the classification head.
            ddp_find_unused_parameters=True,
        )
        processes = arguments.world_size
        arguments.per_device_train_batch_size = _rows_of_a_process(batch_size, processes)
        collect = _CollectHistory(phase, log, steps_before, epochs_before, holdout, tokenizer, settings, model)
        trainer = _PhaseTrainer(
            model=_ModelWithLoss(model, phase),
            args=arguments,
            train_dataset=rows,
            callbacks=[collect],
            data_collator=DataCollatorWithPadding(tokenizer),
        )
        trainer.remove_callback(PrinterCallback)  # it would print the run's totals, which the log has
        trainer.collect = collect
        if settings.length_grouping:
            trainer.row_order = GroupedByLength(rows["length"], batch_size, seed)
        if arguments.process_index:
            torch.manual_seed(seed + arguments.process_index)  # or every process would drop the same units
        started = time.perf_counter()
        trainer.train()
        seconds = time.perf_counter() - started - collect.evaluation_seconds
    steps = trainer.state.global_step
    log.phases.append(
        {
            "name": phase.name,
            "epochs": phase.epochs,
            "steps": steps,
            "seconds": seconds,
            "precision": precision,
            "processes": processes,
            "learning_rate": phase.learning_rate,
            "examples_per_second": len(rows) * phase.epochs / seconds,
            "projection_parameters": sum(value.numel() for value in phase.projections.parameters())
            if phase.projections
            else 0,
        }
    )
    model.cpu().eval()


def _rows_of_a_process(batch_size: int, processes: int) -> int:
    """Rows that each process takes of a batch."""
    if batch_size % processes:
        raise SettingError(
            f"a batch of {batch_size} rows cannot be divided among {processes} processes; set "
            "batch_size and teacher_batch_size to multiples of their number"
        )
    return batch_size // processes


class GroupedByLength(Sampler):
    """Row numbers in an order whose batches hold rows of like length, drawn anew for every epoch.

    Rows are shuffled, cut into groups of `GROUP_BATCHES` batches, sorted by length within a group, and the batches of
    a group are shuffled. transformers' own grouping leaves each group running from long to short, 50 batches at a
    time; where length goes with the label, as in SST-2's phrases and in the embedded corpora, models learn worse
    from it.

    Args:
        lengths: tokens of each row.
        batch_size: rows a batch.
        seed: of the first epoch; epoch e draws with (seed, e).
    """

    GROUP_BATCHES = 16

    def __init__(self, lengths: Sequence[int], batch_size: int, seed: int):
        self.lengths, self.batch_size, self.seed, self.epoch = np.asarray(lengths), batch_size, seed, 0

    def __len__(self) -> int:
        return len(self.lengths)

    def set_epoch(self, epoch: int) -> None:
        """The next iteration draws as this epoch."""
        self.epoch = epoch

    def __iter__(self) -> Iterator[int]:
        generator = np.random.default_rng((self.seed, self.epoch))
        self.epoch += 1
        order = generator.permutation(len(self.lengths))
        for start in range(0, len(order), self.batch_size * self.GROUP_BATCHES):
            group = order[start : start + self.batch_size * self.GROUP_BATCHES]
            group = group[np.argsort(self.lengths[group], kind="stable")]
            parts = [group[place : place + self.batch_size] for place in range(0, len(group), self.batch_size)]
            # A last, smaller batch stays last: in between it would shift the borders of all that follow.
            whole = [part for part in parts if len(part) == self.batch_size]
            for number in generator.permutation(len(whole)):
                yield from whole[number].tolist()
            if len(parts) > len(whole):
                yield from parts[-1].tolist()


TRAINING_COLUMNS = ("input_ids", "attention_mask", "token_type_ids", "labels", "length")


class _ModelWithLoss(nn.Module):
    """What the Trainer trains: a model, the projections of a phase, and a forward pass that gives the phase's loss.

    With the loss inside, several GPUs see each parameter that it uses, and mixed precision wraps this module instead
    of the model, which goes on to predict in float32.
    """

    def __init__(self, model: nn.Module, phase: Phase):
        super().__init__()
        self.model, self.projections, self.loss = model, phase.projections, phase.loss

    def forward(self, batch: Batch) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        loss, parts = self.loss(self.model, batch)
        return loss, {name: value.detach() for name, value in parts.items()}


class _PhaseTrainer(Trainer):
    """Trainer whose model computes the phase's loss by itself."""

    collect: "_CollectHistory"
    row_order: "GroupedByLength | None" = None

    def _get_train_sampler(self, train_dataset: Dataset | None = None) -> Any:
        return self.row_order or super()._get_train_sampler(train_dataset)

    def compute_loss(
        self, model: nn.Module, inputs: Batch, return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        loss, parts = model(inputs)
        self.collect.add(loss, parts)
        return (loss, None) if return_outputs else loss


class _CollectHistory(TrainerCallback):
    """Averages the loss and its parts between the points kept, evaluates after each epoch, and shows progress."""

    def __init__(
        self,
        phase: Phase,
        log: TrainingLog,
        steps_before: int,
        epochs_before: float,
        holdout: Dataset | None,
        tokenizer: PreTrainedTokenizerBase,
        settings: Settings,
        model: nn.Module,
    ):
        self.phase, self.log, self.holdout, self.tokenizer, self.settings = phase, log, holdout, tokenizer, settings
        self.model = model
        self.steps_before, self.epochs_before = steps_before, epochs_before
        self.sums: dict[str, torch.Tensor] = {}
        self.count = 0
        self.evaluation_seconds = 0.0
        self.bar: tqdm | None = None

    def add(self, loss: torch.Tensor, parts: dict[str, torch.Tensor]) -> None:
        for name, value in {"loss": loss, **parts}.items():
            self.sums[name] = self.sums.get(name, 0.0) + value.detach()
        self.count += 1

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self.bar = tqdm(
            total=state.max_steps,
            desc=self.phase.name,
            unit="step",
            leave=False,
            mininterval=0.5,
            disable=not state.is_world_process_zero,
        )

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        if self.bar is not None:
            self.bar.close()

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        if self.bar is not None:
            self.bar.update()
        every = max(1, state.max_steps // LOGGED_POINTS)
        if self.count and (state.global_step % every == 0 or state.global_step == state.max_steps):
            means = {name: float(value) / self.count for name, value in self.sums.items()}
            self.log.history.append(
                {
                    "phase": self.phase.name,
                    "step": self.steps_before + state.global_step,
                    "epoch": self.epochs_before + state.epoch,
                    **means,
                }
            )
            self.sums, self.count = {}, 0

    def on_epoch_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        if not (
            self.phase.evaluates and self.holdout is not None and len(self.holdout) and state.is_world_process_zero
        ):
            return
        started = time.perf_counter()
        logits = predict(self.model, self.holdout, self.tokenizer, self.settings.evaluation_batch_size)
        labels = torch.tensor(self.holdout["labels"])
        self.log.evaluations.append(
            {
                "phase": self.phase.name,
                "epoch": self.epochs_before + state.epoch,
                "loss": float(functional.cross_entropy(torch.from_numpy(logits), labels)),
                "accuracy": float((logits.argmax(axis=1) == labels.numpy()).mean()),
            }
        )
        self.evaluation_seconds += time.perf_counter() - started


def batches(
    rows: Dataset, tokenizer: PreTrainedTokenizerBase, batch_size: int, device: torch.device | str = "cpu"
) -> Iterator[tuple[np.ndarray, Batch]]:
    """Yields (positions, batch) over tokenized rows, longest first, padded only to the longest of the batch.

    `positions` are the rows' places in `rows`; the batch holds int64 tensors of shape (batch, tokens) and, where the
    rows have them, labels of shape (batch,).
    """
    make = batch_maker(rows, tokenizer)
    order = np.argsort(-np.asarray(rows["length"]), kind="stable")
    for start in range(0, len(order), batch_size):
        positions = order[start : start + batch_size]
        yield positions, {name: value.to(device) for name, value in make(positions.tolist()).items()}


def batch_maker(rows: Dataset, tokenizer: PreTrainedTokenizerBase) -> Callable[[Sequence[int]], Batch]:
    """A function from places in tokenized `rows` to a batch of them, padded to its longest row: int64 (batch, tokens),
    labels (batch,)."""
    columns = [
        name for name in ("input_ids", "attention_mask", "token_type_ids", "labels") if name in rows.column_names
    ]
    collate, plain = DataCollatorWithPadding(tokenizer), rows.select_columns(columns)

    def make(positions: Sequence[int]) -> Batch:
        chosen = plain[positions]
        return collate(
            [
                dict(zip(columns, values, strict=True))
                for values in zip(*(chosen[name] for name in columns), strict=True)
            ]
        )

    return make


def predict(
    model: PreTrainedModel, rows: Dataset, tokenizer: PreTrainedTokenizerBase, batch_size: int = 64
) -> np.ndarray:
    """Logits (rows, labels) in float32, in the rows' order, from the model in evaluation mode."""
    if not len(rows):
        return np.zeros((0, model.config.num_labels), dtype=np.float32)
    parameter = next(model.parameters(), None)
    device = parameter.device if parameter is not None else "cpu"
    result = np.empty((0, 0), dtype=np.float32)
    with evaluation_mode(model), torch.inference_mode():
        for positions, batch in batches(rows, tokenizer, batch_size, device):
            logits = model(**model_inputs(model, batch)).logits.float().cpu().numpy()
            if not len(result):
                result = np.empty((len(rows), logits.shape[1]), dtype=np.float32)
            result[positions] = logits
    return result


@contextlib.contextmanager
def evaluation_mode(model: nn.Module) -> Iterator[nn.Module]:
    """The model in evaluation mode, put back as it was afterwards."""
    was_training = model.training
    model.eval()
    try:
        yield model
    finally:
        model.train(was_training)
