"""The distillation objectives: what a student matches of its teacher, and in which phases.

An `Objective` names the teacher signals that it needs and turns settings into training phases. A new one is a class
with `signals` and `phases` and one line in `OBJECTIVES`.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import nn
from torch.nn import functional

from edgemin_utils.config import Settings, nearest
from edgemin_utils.encoders import captured_projections, layer_number
from edgemin_utils.errors import ModelError, SettingError
from edgemin_utils.training import Batch, LossFunction, Phase, label_loss, model_inputs

# batch -> named teacher signals of the batch's rows (see teacher.TeacherSignals)
SignalSource = Callable[[Batch], Mapping[str, torch.Tensor]]


# ---- the losses, as functions of tensors -----------------------------------------------------------------------


def relation_scores(first: torch.Tensor, second: torch.Tensor, relation_heads: int) -> torch.Tensor:
    r"""Scaled dot products between the tokens of two projections, by relation head.

    The heads' vectors are concatenated and split anew into `relation_heads` A_r vectors of size d_r, so that teacher
    and student need neither the same number of heads nor the same hidden size (MiniLMv2, Wang et al. 2021,
    section 3.1): :math:`A_a B_a^\top / \sqrt{d_r}`.

    Args:
        first, second: (batch, tokens, hidden), floating point.

    Returns:
        (batch, relation_heads, tokens, tokens), float32; rows are queries, columns keys.

    Raises:
        ModelError: `relation_heads` does not divide the hidden size.
    """
    batch, tokens, hidden = first.shape
    if hidden % relation_heads:
        raise ModelError(f"{relation_heads} relation heads do not divide the hidden size {hidden}; choose a divisor "
                         "that teacher and student share")
    size = hidden // relation_heads
    first, second = (states.float().view(batch, tokens, relation_heads, size).transpose(1, 2)
                     for states in (first, second))
    return first @ second.transpose(-1, -2) / size**0.5


def relation_divergence(teacher_scores: torch.Tensor, student_scores: torch.Tensor,
                        attention_mask: torch.Tensor) -> torch.Tensor:
    r"""Mean KL(teacher || student) between relation distributions, over relation heads and real tokens.

    MiniLMv2 (Wang et al. 2021), section 3.1:
    :math:`\frac{1}{A_r |x|} \sum_a \sum_t D_{KL}(R^T_{a,t} \,\|\, R^S_{a,t})` with R the softmax of the scores over
    the keys. Padding takes no part: masked as a key, left out as a query.

    Args:
        teacher_scores, student_scores: (batch, relation_heads, tokens, tokens).
        attention_mask: (batch, tokens), 1 for real tokens.

    Returns:
        A scalar in nats.
    """
    real = attention_mask.bool()
    keys = real[:, None, None, :]
    lowest = torch.finfo(teacher_scores.dtype).min
    teacher_log = teacher_scores.masked_fill(~keys, lowest).log_softmax(-1)
    student_log = student_scores.masked_fill(~keys, lowest).log_softmax(-1)
    difference = (teacher_log - student_log).masked_fill(~keys, 0.0)
    by_query = (teacher_log.exp() * difference).sum(-1)
    by_query = by_query.masked_fill(~real[:, None, :], 0.0)
    return by_query.sum() / (real.sum() * teacher_scores.shape[1])


def soft_target_divergence(teacher_logits: torch.Tensor, student_logits: torch.Tensor,
                           temperature: float) -> torch.Tensor:
    r"""T² · KL(softmax(teacher / T) || softmax(student / T)), mean over the batch, in nats.

    Hinton et al. 2015, section 2; the factor T² keeps the gradient's size independent of T.

    Args:
        teacher_logits, student_logits: (batch, labels).
    """
    teacher_log = (teacher_logits.float() / temperature).log_softmax(-1)
    student_log = (student_logits.float() / temperature).log_softmax(-1)
    return temperature**2 * functional.kl_div(student_log, teacher_log, log_target=True, reduction="batchmean")


# ---- the losses, as what a training phase minimises ------------------------------------------------------------


def soft_target_loss(signals: SignalSource, temperature: float, weight: float) -> LossFunction:
    """`weight` times the soft targets plus (1 - weight) times the cross-entropy with the labels."""

    def loss(model: nn.Module, batch: Batch) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        logits = model(**model_inputs(model, batch)).logits.float()
        soft = soft_target_divergence(signals(batch)["logits"], logits, temperature)
        hard = functional.cross_entropy(logits, batch["labels"])
        return weight * soft + (1 - weight) * hard, {"soft targets": soft, "labels": hard}

    return loss


def relation_loss(signals: SignalSource, teacher_layer: int, student_layer: int, pairs: Sequence[str],
                  weights: Sequence[float], relation_heads: int) -> LossFunction:
    """Weighted sum of `relation_divergence` over pairs of projections such as "query-query" or "query-key".

    `teacher_layer` and `student_layer` count from 0; the signals hold "query.<teacher_layer>" and so on.
    """
    projections = sorted({part for pair in pairs for part in pair.split("-")})

    def loss(model: nn.Module, batch: Batch) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        inner = getattr(model, "module", model)
        with captured_projections(inner, [f"{name}.{student_layer}" for name in projections]) as student:
            model(**model_inputs(model, batch))
        teacher, parts = signals(batch), {}
        with torch.autocast(batch["input_ids"].device.type, enabled=False):
            for pair in pairs:
                first, second = pair.split("-")
                parts[pair] = relation_divergence(
                    relation_scores(teacher[f"{first}.{teacher_layer}"], teacher[f"{second}.{teacher_layer}"],
                                    relation_heads),
                    relation_scores(student[f"{first}.{student_layer}"], student[f"{second}.{student_layer}"],
                                    relation_heads),
                    batch["attention_mask"])
        return sum(weight * parts[pair] for weight, pair in zip(weights, pairs, strict=True)), parts

    return loss


# ---- the objectives --------------------------------------------------------------------------------------------


class Objective(Protocol):
    """What a student learns from."""

    source: str

    def signals(self, settings: Settings, teacher: nn.Module) -> tuple[str, ...]:
        """Names of the teacher signals needed: "logits", "query.5", ... (layers counted from 0)."""

    def phases(self, settings: Settings, teacher: nn.Module, student: nn.Module,
               signals: SignalSource | None) -> list[Phase]:
        """The training phases. Raises ModelError where teacher and student do not fit the objective."""


@dataclass(frozen=True)
class NoDistillation:
    """Fine-tuning alone, for as many epochs as the distilled student gets in all: every comparison's baseline."""

    source: str = "cross-entropy with the labels"

    def signals(self, settings: Settings, teacher: nn.Module) -> tuple[str, ...]:
        return ()

    def phases(self, settings: Settings, teacher: nn.Module, student: nn.Module,
               signals: SignalSource | None) -> list[Phase]:
        epochs = settings.distillation_epochs + settings.prediction_epochs
        return [Phase("labels", epochs, settings.prediction_learning_rate, label_loss)]


@dataclass(frozen=True)
class SoftTargets:
    """Soft targets at temperature T beside the labels, for all epochs."""

    source: str = "Hinton et al. 2015"

    def signals(self, settings: Settings, teacher: nn.Module) -> tuple[str, ...]:
        return ("logits",)

    def phases(self, settings: Settings, teacher: nn.Module, student: nn.Module,
               signals: SignalSource | None) -> list[Phase]:
        epochs = settings.distillation_epochs + settings.prediction_epochs
        return [_prediction_phase(settings, epochs, signals)]


@dataclass(frozen=True)
class Relations:
    """MiniLMv2: the self-attention relations of one teacher layer, then soft targets for the prediction layer."""

    source: str = "MiniLMv2, Wang et al. 2021"

    def signals(self, settings: Settings, teacher: nn.Module) -> tuple[str, ...]:
        layer = layer_number(teacher, settings.teacher_layer)
        names = sorted({part for pair in settings.relation_pairs for part in pair.split("-")})
        return tuple(f"{name}.{layer}" for name in names) + (("logits",) if settings.prediction_epochs else ())

    def phases(self, settings: Settings, teacher: nn.Module, student: nn.Module,
               signals: SignalSource | None) -> list[Phase]:
        for role, model in (("teacher", teacher), ("student", student)):
            if model.config.hidden_size % settings.relation_heads:
                raise ModelError(
                    f"relation_heads = {settings.relation_heads} does not divide the {role}'s hidden size "
                    f"{model.config.hidden_size}; choose a divisor that teacher and student share")
        loss = relation_loss(
            signals, layer_number(teacher, settings.teacher_layer), layer_number(student, settings.student_layer),
            settings.relation_pairs, settings.relation_weights, settings.relation_heads)
        relations = Phase("relations", settings.distillation_epochs, settings.distillation_learning_rate, loss,
                          evaluates=False)
        return [relations, _prediction_phase(settings, settings.prediction_epochs, signals)]


def _prediction_phase(settings: Settings, epochs: float, signals: SignalSource) -> Phase:
    loss = soft_target_loss(signals, settings.temperature, settings.soft_target_weight)
    return Phase("soft targets", epochs, settings.prediction_learning_rate, loss)


OBJECTIVES: dict[str, Objective] = {
    "none": NoDistillation(),
    "none-pretrained": NoDistillation(),
    "logits": SoftTargets(),
    "minilmv2": Relations(),
}


def find_objective(name: str) -> Objective:
    """The objective of that name.

    Raises:
        SettingError: unknown name, with the nearest known one.
    """
    if name not in OBJECTIVES:
        raise SettingError(f"unknown distillation objective {name!r}; {nearest(name, OBJECTIVES)}")
    return OBJECTIVES[name]


def relation_matrices(model: nn.Module, batch: Batch, layer: int, pairs: Sequence[str],
                      relation_heads: int) -> dict[str, torch.Tensor]:
    """Relation distributions of the batch's first row, averaged over relation heads, for looking at.

    Returns:
        Pair -> (tokens, tokens) float32; each row sums to 1.
    """
    number = layer_number(model, layer)
    projections = sorted({part for pair in pairs for part in pair.split("-")})
    with torch.inference_mode(), captured_projections(model, [f"{name}.{number}" for name in projections]) as states:
        model(**model_inputs(model, batch))
    tokens = int(batch["attention_mask"][0].sum())
    result = {}
    for pair in pairs:
        first, second = (states[f"{name}.{number}"][:1, :tokens] for name in pair.split("-"))
        result[pair] = relation_scores(first, second, relation_heads).softmax(-1)[0].mean(0)
    return result
