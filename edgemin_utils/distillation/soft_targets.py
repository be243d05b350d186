r"""The teacher's softened answers (Hinton et al. 2015, section 2), alone and as the last phase of other objectives.

With logits z, temperature T and weight alpha:

.. math:: L = \alpha T^2 D_{KL}(\mathrm{softmax}(z^T / T) \| \mathrm{softmax}(z^S / T)) + (1 - \alpha) CE(y, z^S)

A row without a label, as transfer text is, has no label term.
"""

import torch
from torch import nn

from edgemin_utils.config import Settings
from edgemin_utils.distillation.losses import label_divergence, soft_target_divergence
from edgemin_utils.distillation.objective import Lesson, Objective, SignalSource, student_states
from edgemin_utils.training import Batch, LossFunction, Phase


class SoftTargets(Objective):
    """Soft targets at temperature T beside the labels, for all epochs."""

    def signals(self, lesson: Lesson) -> tuple[str, ...]:
        return ("logits",)

    def phases(self, lesson: Lesson) -> list[Phase]:
        return [prediction_phase(lesson, lesson.epochs)]


def prediction_phase(lesson: Lesson, epochs: float) -> Phase:
    """Soft targets and labels: the last phase of every objective that has two."""
    settings = lesson.settings
    loss = soft_target_loss(lesson.signals, settings.temperature, settings.soft_target_weight)
    return Phase("soft targets", epochs, settings.prediction_learning_rate, loss)


def soft_target_loss(signals: SignalSource, temperature: float, weight: float) -> LossFunction:
    """`weight` times the soft targets plus (1 - weight) times the cross-entropy with the labels."""

    def loss(model: nn.Module, batch: Batch) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        logits, _ = student_states(model, batch, ())
        return answer_loss(signals(batch)["logits"], logits, batch["labels"], temperature, weight)

    return loss


def answer_loss(
    teacher_logits: torch.Tensor, logits: torch.Tensor, labels: torch.Tensor, temperature: float, weight: float
) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """The loss above, and its two parts; logits (batch, labels), labels (batch,)."""
    soft = soft_target_divergence(teacher_logits, logits, temperature)
    hard = label_divergence(logits, labels)
    return weight * soft + (1 - weight) * hard, {"soft targets": soft, "labels": hard}


def answers_and(
    inside: torch.Tensor,
    what: str,
    teacher_logits: torch.Tensor,
    logits: torch.Tensor,
    labels: torch.Tensor,
    settings: Settings,
) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """The loss of an objective that trains answers and something inside the model at once: the answers plus
    `intermediate_weight` times `inside`, which the log calls `what`.

    Args:
        inside: (), the mean over the batch.
        teacher_logits, logits, labels: as `answer_loss` takes them.
    """
    answers, parts = answer_loss(teacher_logits, logits, labels, settings.temperature, settings.soft_target_weight)
    return answers + settings.intermediate_weight * inside, {**parts, what: inside}
