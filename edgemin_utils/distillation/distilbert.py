r"""DistilBERT's objective (Sanh et al. 2019, section 3): soft targets, task loss and the direction of hidden states.

.. math:: L = \alpha L_{soft} + (1 - \alpha) CE(y, z^S) + \beta (1 - \cos(W h^S_t, h^T_t))

with the last hidden states h of every real token t and `intermediate_weight` beta.

Deviations: the original is trained on general text, where masked language modelling stands in the task loss's place.
Its student has the teacher's hidden size; where the sizes differ here, W is a learned projection (otherwise there is
none).
"""

import torch
from torch import nn

from edgemin_utils.distillation.losses import cosine_distance
from edgemin_utils.distillation.objective import Lesson, Objective, in_full_precision, student_states
from edgemin_utils.distillation.soft_targets import answers_and
from edgemin_utils.encoders import encoder_layers
from edgemin_utils.training import Batch, Phase


class LastHiddenStates(Objective):
    """Soft targets, labels and the cosine of the last hidden states, for all epochs."""

    def signals(self, lesson: Lesson) -> tuple[str, ...]:
        return "logits", f"hidden.{len(encoder_layers(lesson.teacher)) - 1}"

    def phases(self, lesson: Lesson) -> list[Phase]:
        settings, (_, theirs) = lesson.settings, self.signals(lesson)
        own = f"hidden.{len(encoder_layers(lesson.student)) - 1}"
        project = lesson.projection(own, theirs)

        def loss(model: nn.Module, batch: Batch) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
            logits, states = student_states(model, batch, [own])
            teacher = lesson.signals(batch)
            with in_full_precision(batch):
                cosine = cosine_distance(teacher[theirs], project(states[own]), batch["attention_mask"])
                return answers_and(cosine, "hidden states", teacher["logits"], logits, batch["labels"], settings)

        return [
            Phase(
                "soft targets and hidden states",
                lesson.epochs,
                settings.prediction_learning_rate,
                loss,
                projections=project,
            )
        ]
