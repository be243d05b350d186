"""What every objective has in common: its shape, the student's states, maps between layers, learned projections."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import nn

from edgemin_utils.config import Settings
from edgemin_utils.distillation.losses import full_precision
from edgemin_utils.encoder_states import captured_states, state_width
from edgemin_utils.encoders import encoder_layers
from edgemin_utils.errors import MethodRefused, StageError
from edgemin_utils.training import Batch, Phase, model_inputs

# batch -> named teacher signals of the batch's rows (see teacher_signals)
SignalSource = Callable[[Batch], Mapping[str, torch.Tensor]]


def no_signals(batch: Batch) -> Mapping[str, torch.Tensor]:
    """Stands in place of `teacher_signals.signal_source` while only the fit of teacher and student is checked.

    Raises:
        StageError: always: a loss was computed in a lesson without a teacher's signals.
    """
    raise StageError("this lesson has no teacher signals; give it a source of them (teacher_signals.signal_source)")


@dataclass(frozen=True)
class Lesson:
    """One student and its teacher.

    Attributes:
        settings: of the student's stage.
        teacher, student: classifiers over one vocabulary.
        signals: where the teacher's signals of a batch come from; `no_signals` while only the fit of the two is
            checked.
        seed: of learned projections.
    """

    settings: Settings
    teacher: nn.Module
    student: nn.Module
    signals: SignalSource = no_signals
    seed: int = 0

    @property
    def epochs(self) -> float:
        """Of both phases together, for an objective that has one."""
        return self.settings.distillation_epochs + self.settings.prediction_epochs

    def projection(self, state: str, teacher_state: str) -> nn.Module:
        """A matrix from a student state to a teacher state (names as in `encoder_states.captured_states`), drawn
        from the seed. Where the two have one size nothing is projected and nothing learned."""
        size, wanted = state_width(self.student, state), state_width(self.teacher, teacher_state)
        if size == wanted:
            return nn.Identity()
        linear = nn.Linear(size, wanted, bias=False)
        generator = torch.Generator().manual_seed(self.seed)
        nn.init.normal_(linear.weight, std=size**-0.5, generator=generator)
        return linear


@dataclass(frozen=True)
class RelationView:
    """Which relations an objective matches, for looking at them: pairs of projections, how many heads, which layers."""

    pairs: tuple[str, ...]
    heads: int
    teacher_layer: int
    student_layer: int


class Objective(ABC):
    """What a student learns from."""

    def signals(self, lesson: Lesson) -> tuple[str, ...]:
        """Names of the teacher signals needed: "logits", "query.5", ... (layers counted from 0)."""
        return ()

    @abstractmethod
    def phases(self, lesson: Lesson) -> list[Phase]:
        """The training phases. Raises MethodRefused where teacher and student do not fit the objective."""

    def relations(self, lesson: Lesson) -> RelationView | None:
        """The relations between tokens that it matches, if it does."""
        return None


def student_states(
    model: nn.Module, batch: Batch, names: Sequence[str]
) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """Logits (batch, labels) and the named states of one forward pass, in float32 or float64."""
    with captured_states(model, names) as states:
        logits = model(**model_inputs(model, batch)).logits
    return full_precision(logits), {name: full_precision(states[name]) for name in names}


def in_full_precision(batch: Batch) -> torch.autocast:
    """Context in which a batch's losses are computed: autocast, where training uses it, is for the models alone.

    Args:
        batch: tensors (batch, tokens); only their device matters.
    """
    return torch.autocast(batch["input_ids"].device.type, enabled=False)


def uniform_layers(teacher: nn.Module, student: nn.Module) -> list[tuple[int, int]]:
    """(student layer, teacher layer) of every student layer, evenly spread, the last on the last.

    TinyBERT (Jiao et al. 2020, section 3.1): layer m of M learns from layer m N / M of N, counted from 1; rounded up
    where M does not divide N. Here both are counted from 0.
    """
    depth, count = len(encoder_layers(teacher)), len(encoder_layers(student))
    return [(layer, -(-(layer + 1) * depth // count) - 1) for layer in range(count)]


def require_equal_heads(lesson: Lesson, layers: Sequence[tuple[int, int]], method: str) -> None:
    """Raises MethodRefused where a student layer and its teacher layer have different numbers of attention heads."""
    teacher, student = encoder_layers(lesson.teacher), encoder_layers(lesson.student)
    for own, other in layers:
        if student[own].num_heads != teacher[other].num_heads:
            raise MethodRefused(
                f"{method} compares attention head by head, but teacher layer {other} has {teacher[other].num_heads} "
                f"heads and student layer {own} has {student[own].num_heads}; give the student as many heads, or "
                "choose minilmv2, mlkd or shd"
            )
