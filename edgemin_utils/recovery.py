"""What a compressed model is trained on again: the labels, and its teacher's soft targets where it has a teacher."""

from collections.abc import Sequence

from torch import nn
from transformers import PreTrainedTokenizerBase

from edgemin_utils.config import Settings
from edgemin_utils.data import TaskData
from edgemin_utils.distillation.soft_targets import soft_target_loss
from edgemin_utils.evaluation import load_stage_model, tokenized_task
from edgemin_utils.records import Run
from edgemin_utils.teacher_signals import signal_source
from edgemin_utils.training import LossFunction, label_loss


def load_teacher(run: Run, key: str) -> tuple[PreTrainedTokenizerBase, nn.Module] | None:
    """Tokenizer and model of the teacher that stage `key` learns from; None if it learns from labels alone."""
    teacher = run.stage(key).teacher
    return load_stage_model(run, teacher) if teacher else None


def answer_loss(
    run: Run,
    settings: Settings,
    teacher: tuple[PreTrainedTokenizerBase, nn.Module] | None,
    models: Sequence[nn.Module],
    data: TaskData,
) -> LossFunction:
    """The loss of recovery and tuning.

    The teacher reads the train rows through its own tokenizer: soft targets belong to rows, so that a student whose
    vocabulary was cut learns from them all the same.

    Args:
        models: those that the student's rows are tokenized for, so that teacher and student see rows cut alike.
        data: the chain's rows.
    """
    if teacher is None:
        return label_loss
    tokenizer, model = teacher
    rows = tokenized_task(run, tokenizer, models, data).train
    signals = signal_source(
        model, rows, tokenizer, ("logits",), settings.evaluation_batch_size, settings.teacher_cache_gigabytes
    )
    return soft_target_loss(signals, settings.temperature, settings.soft_target_weight)
