r"""Patient knowledge distillation (Sun et al. 2019): the [CLS] vectors of intermediate layers, and soft targets.

.. math:: L = (1 - \alpha) CE(y, z^S) + \alpha L_{soft} + \beta \sum_j
          \left\| \frac{h^S_j}{\|h^S_j\|_2} - \frac{h^T_{I(j)}}{\|h^T_{I(j)}\|_2} \right\|_2^2

over the student's layers j but the last, which feeds the classifier (section 3.2); beta is `intermediate_weight`. The
layer map I is either *Skip* (every N / M-th teacher layer: 2, 4, 6, 8, 10 of 12 for a student of six layers) or *Last*
(the layers before the last one: 7 to 11), counted from 1 as in the paper.

Deviations: where hidden sizes differ, which the paper excludes, one learned projection brings the student's vectors to
the teacher's size. Skip rounds up where M does not divide N.
"""

import torch
from torch import nn

from edgemin_utils.distillation.losses import patience, sum_of_terms
from edgemin_utils.distillation.objective import Lesson, Objective, in_full_precision, student_states, uniform_layers
from edgemin_utils.distillation.soft_targets import answers_and
from edgemin_utils.encoders import encoder_layers
from edgemin_utils.errors import MethodRefused
from edgemin_utils.training import Batch, Phase


class PatientSkip(Objective):
    """PKD-Skip: evenly spread teacher layers."""

    def layers(self, teacher: nn.Module, student: nn.Module) -> list[tuple[int, int]]:
        """(student layer, teacher layer), counted from 0."""
        return uniform_layers(teacher, student)[:-1]

    def signals(self, lesson: Lesson) -> tuple[str, ...]:
        return ("logits", *(f"cls.{other}" for _, other in self.layers(lesson.teacher, lesson.student)))

    def phases(self, lesson: Lesson) -> list[Phase]:
        settings, layers = lesson.settings, self.layers(lesson.teacher, lesson.student)
        if not layers:
            raise MethodRefused(
                "pkd matches every layer but the last, and this student has no other; give it two layers or more"
            )
        project = lesson.projection("cls.0", "cls.0")

        def loss(model: nn.Module, batch: Batch) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
            logits, states = student_states(model, batch, [f"cls.{own}" for own, _ in layers])
            teacher = lesson.signals(batch)
            with in_full_precision(batch):
                distance = sum_of_terms(
                    patience(teacher[f"cls.{other}"], project(states[f"cls.{own}"])) for own, other in layers
                )
                return answers_and(distance, "[CLS] vectors", teacher["logits"], logits, batch["labels"], settings)

        return [
            Phase(
                "soft targets and [CLS] vectors",
                lesson.epochs,
                settings.prediction_learning_rate,
                loss,
                projections=project,
            )
        ]


class PatientLast(PatientSkip):
    """PKD-Last: the teacher layers before its last one."""

    def layers(self, teacher: nn.Module, student: nn.Module) -> list[tuple[int, int]]:
        """(student layer, teacher layer), counted from 0.

        Raises:
            MethodRefused: the student has more layers than its teacher.
        """
        deeper = len(encoder_layers(teacher)) - len(encoder_layers(student))
        if deeper < 0:
            raise MethodRefused(
                "pkd-last takes one teacher layer for each of the student's, and this student has "
                f"{-deeper} more than its teacher; choose pkd"
            )
        return [(layer, layer + deeper) for layer in range(len(encoder_layers(student)) - 1)]
