"""What an objective is: what a student matches of its teacher, and in which phases. One of one's own with a `loss` (as
in README.md) trains for all epochs; one of several phases, or with learned projections, overrides `phases`; one that
runs the student in another way (with layers replaced, or tokens hidden) gives a phase another `loss`."""

import math
import pkgutil
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel as Model

from edgemin_utils.distillation.losses import label_divergence, relation_scores, soft_target_divergence
from edgemin_utils.distillation.teacher import States, Teacher, is_of_row, student_states
from edgemin_utils.encoders import encoder_layers, state_width
from edgemin_utils.errors import MethodRefused, SettingError
from edgemin_utils.names import IMPLEMENTATIONS, register_method
from edgemin_utils.settings import Settings, nearest
from edgemin_utils.training import Batch, LossFunction, Phase, label_loss

# (student's states, teacher's states, batch) -> loss, or (loss, named parts of it), in full precision
Comparison = Callable[[States, States, Batch], Any]


def find_objective(name: str, settings: Settings, seed: int = 0) -> "Objective":
    """The objective of that name, for a stage's settings; raises SettingError if unknown."""
    if name not in IMPLEMENTATIONS:
        raise SettingError(f"unknown distillation objective {name!r}; {nearest(name, IMPLEMENTATIONS)}")
    found = IMPLEMENTATIONS[name]
    made = pkgutil.resolve_name(f"{__package__}.{found}") if isinstance(found, str) else found
    return made(settings, seed)


def register(name: str, objective: type["Objective"], settings: Sequence[str] = ()) -> None:
    """Makes one's own known; `settings` are what it feels beside epochs and rates. Raises as `register_method`."""
    register_method(name, "distillation", objective, settings)
    IMPLEMENTATIONS[name] = objective


class RelationView(NamedTuple):
    """Which relations an objective matches, for looking at them; layers count from 0."""

    pairs: tuple[str, ...]
    heads: int
    teacher_layer: int
    student_layer: int
    weights: tuple[float, ...] = (1.0, 1.0)


class Objective:
    """What a student learns from, under a stage's `settings`; `seed` draws learned projections."""

    states: Sequence[str] = ("logits",)  # what `loss` sees of both models; others as in `encoders.captured_states`

    def __init__(self, settings: Settings, seed: int = 0):
        self.settings, self.seed = settings, seed

    def loss(self, student: States, teacher: States, batch: Batch) -> Any:
        """The loss of a batch, or (loss, named parts of it), from the `states` of both models: logits (batch, labels),
        others (batch, tokens, size). A text without a label has -1 in batch["labels"]."""
        raise NotImplementedError(f"{type(self).__name__} gives neither `loss` nor `phases`")

    def phases(self, teacher: Teacher, student: Model) -> list[Phase]:
        """The training phases; here one, of `loss`. Raises MethodRefused where teacher and student do not fit."""
        return [self.phase("distillation", teacher, self.loss, self.states)]

    def relations(self, teacher: Teacher, student: Model) -> RelationView | None:
        """The relations between tokens that it matches, if it does."""
        return None

    def phase(
        self, name: str, teacher: Teacher, compare: Comparison, *states: Sequence[str], part: str = "whole", **more: Any
    ) -> Phase:
        """A phase that compares the student's `states` and, if others, the teacher's, for the epochs of its `part`:
        "first" (what is inside the model), "last" (the answers) or "whole"; `more` as for `training.Phase`."""
        settings, own, signals = self.settings, states[0], teacher.signals(states[-1])
        epochs = {"first": settings.distillation_epochs, "last": settings.prediction_epochs}
        rate = settings.distillation_learning_rate if part == "first" else settings.prediction_learning_rate

        def loss(model: nn.Module, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
            student = student_states(model, batch, own)
            # Autocast, where training uses it, is for the models alone.
            with torch.autocast(batch["input_ids"].device.type, enabled=False):
                found = compare(student, signals(batch), batch)
            return found if isinstance(found, tuple) else (found, {})

        phase = Phase(name, epochs.get(part, sum(epochs.values())), rate, loss, part != "first", transfer=True, **more)
        return phase if all(map(is_of_row, own)) else replace(phase, check=teacher.require_same_tokens)

    def with_answers(self, what: str, teacher: Teacher, gap: Comparison, *states: Sequence[str], **more: Any) -> Phase:
        """A phase of the answers plus `intermediate_weight` times the `gap`, called `what`; `more` as for `phase`."""

        def compare(student: States, teacher: States, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
            (loss, parts), distance = self.answers(student, teacher, batch), gap(student, teacher, batch)
            return loss + self.settings.intermediate_weight * distance, {**parts, what: distance}

        own, theirs = (["logits", *names] for names in states)
        return self.phase(f"soft targets and {what}", teacher, compare, own, theirs, **more)

    def answers(self, student: States, teacher: States, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        """Soft targets, by their weight, and labels, by the rest, of logits (batch, labels), and these two parts."""
        soft = soft_target_divergence(teacher["logits"], student["logits"], self.settings.temperature)
        hard, weight = label_divergence(student["logits"], batch["labels"]), self.settings.soft_target_weight
        return weight * soft + (1 - weight) * hard, {"soft targets": soft, "labels": hard}

    def soft_targets(self, teacher: Teacher, part: str = "last") -> Phase:
        """The phase of `answers`, which ends every objective of several phases."""
        return self.phase("soft targets", teacher, self.answers, ["logits"], part=part)

    def projection(self, source: Model, target: Model, state: str) -> nn.Module:
        """A matrix from a state of one model to that of another, drawn from the seed; the identity for equal sizes."""
        size, wanted = state_width(source, state), state_width(target, state)
        if size == wanted:
            return nn.Identity()
        linear = nn.Linear(size, wanted, bias=False)
        nn.init.normal_(linear.weight, std=size**-0.5, generator=torch.Generator().manual_seed(self.seed))
        return linear


class NoDistillation(Objective):
    """Fine-tuning alone, for as many epochs as a distilled student gets in all: every comparison's baseline."""

    def phases(self, teacher: Teacher, student: Model) -> list[Phase]:
        epochs = self.settings.distillation_epochs + self.settings.prediction_epochs
        return [Phase("labels", epochs, self.settings.prediction_learning_rate, label_loss)]


class SoftTargets(Objective):
    """Soft targets at temperature T beside the labels (Hinton et al. 2015), for all epochs."""

    def phases(self, teacher: Teacher, student: Model) -> list[Phase]:
        return [self.soft_targets(teacher, "whole")]


def recovery_loss(teacher: Teacher | None, settings: Settings) -> LossFunction:
    """What a compressed model is trained on again: the labels, and its teacher's soft targets where it has one."""
    return label_loss if teacher is None else SoftTargets(settings).soft_targets(teacher).loss


def uniform_layers(teacher: Model, student: Model) -> list[tuple[int, int]]:
    """(student layer, teacher layer), counted from 0, evenly spread: counted from 1, layer m of M learns from layer
    m N / M of N, rounded up where M does not divide N (TinyBERT, Jiao et al. 2020, section 3.1)."""
    depth, count = len(encoder_layers(teacher)), len(encoder_layers(student))
    return [(layer, -(-(layer + 1) * depth // count) - 1) for layer in range(count)]


def named(states: Sequence[str], layers: Sequence[int]) -> list[str]:
    """Names of those states of those layers, each once: "query.0", "key.0", "query.1", ..."""
    return list(dict.fromkeys(f"{state}.{layer}" for layer in layers for state in states))


def total(terms: Iterable[Tensor]) -> Tensor:
    """Sum of a loss's terms, scalars (of shape ()), in their order."""
    return sum(terms, start=torch.zeros(()))


def shared_heads(teacher: Model, student: Model, layers: Sequence[tuple[int, int]], equal_for: str = "") -> list[int]:
    """By pair of layers the head counts' greatest common divisor; raises MethodRefused if `equal_for` needs as many."""
    ours, theirs = ([layer.num_heads for layer in encoder_layers(model)] for model in (student, teacher))
    for own, other in layers if equal_for else ():
        if ours[own] != theirs[other]:
            counts = f"teacher layer {other} has {theirs[other]} heads and student layer {own} has {ours[own]}"
            raise MethodRefused(f"{equal_for} compares head by head, but {counts}; choose minilmv2, mlkd or shd")
    return [math.gcd(ours[own], theirs[other]) for own, other in layers]


def scores_of(pair: str, states: States, layer: int, heads: int) -> Tensor:
    """`relation_scores` of a pair such as "query-key", of states (batch, tokens, hidden) by name."""
    first, second = (states[f"{name}.{layer}"] for name in pair.split("-"))
    return relation_scores(first, second, heads)
