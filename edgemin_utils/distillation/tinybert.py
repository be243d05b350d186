r"""TinyBERT (Jiao et al. 2020, section 3.1): embeddings, hidden states and attention matrices, then answers.

Phase one, with student layer m learning from teacher layer g(m), evenly spread (equations 7 to 9 and 11):

.. math:: L = \mathrm{MSE}(E^S W_e, E^T) + \sum_m \left( \mathrm{MSE}(H^S_m W_h, H^T_{g(m)})
          + \frac{1}{h} \sum_i \mathrm{MSE}(A^S_{m,i}, A^T_{g(m),i}) \right)

A are the scaled scores before the softmax. Phase two fits the answers.

Deviations: the projections W_e and W_h are learned only where sizes differ. Phase two is the soft-target phase that
all two-phase objectives have here, beside the labels; TinyBERT's own is `temperature` 1 and `soft_target_weight` 1.
There is neither general distillation before nor data augmentation.
"""

import torch
from torch import nn

from edgemin_utils.distillation.losses import attention_error, hidden_state_error, relation_scores, sum_of_terms
from edgemin_utils.distillation.objective import (
    Lesson,
    Objective,
    in_full_precision,
    require_equal_heads,
    student_states,
    uniform_layers,
)
from edgemin_utils.distillation.soft_targets import prediction_phase
from edgemin_utils.encoders import encoder_layers
from edgemin_utils.training import Batch, Phase

STATES = ("hidden", "query", "key")


class AllLayers(Objective):
    """Embeddings, hidden states and attention matrices, then soft targets."""

    def signals(self, lesson: Lesson) -> tuple[str, ...]:
        layers = uniform_layers(lesson.teacher, lesson.student)
        return ("logits", "embeddings", *dict.fromkeys(f"{state}.{other}" for _, other in layers for state in STATES))

    def phases(self, lesson: Lesson) -> list[Phase]:
        settings, layers = lesson.settings, uniform_layers(lesson.teacher, lesson.student)
        require_equal_heads(lesson, layers, "tinybert")
        heads = [layer.num_heads for layer in encoder_layers(lesson.student)]
        project = nn.ModuleDict(
            {
                "embeddings": lesson.projection("embeddings", "embeddings"),
                "hidden": lesson.projection("hidden.0", "hidden.0"),
            }
        )
        names = ["embeddings", *(f"{state}.{own}" for own, _ in layers for state in STATES)]

        def loss(model: nn.Module, batch: Batch) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
            _, own_states = student_states(model, batch, names)
            teacher, mask = lesson.signals(batch), batch["attention_mask"]
            with in_full_precision(batch):
                embeddings = hidden_state_error(
                    teacher["embeddings"], project["embeddings"](own_states["embeddings"]), mask
                )
                hidden = sum_of_terms(
                    hidden_state_error(teacher[f"hidden.{other}"], project["hidden"](own_states[f"hidden.{own}"]), mask)
                    for own, other in layers
                )
                attention = sum_of_terms(
                    attention_error(
                        relation_scores(teacher[f"query.{other}"], teacher[f"key.{other}"], heads[own]),
                        relation_scores(own_states[f"query.{own}"], own_states[f"key.{own}"], heads[own]),
                        mask,
                    )
                    for own, other in layers
                )
            return embeddings + hidden + attention, {
                "embeddings": embeddings,
                "hidden states": hidden,
                "attention": attention,
            }

        inside = Phase(
            "layers",
            settings.distillation_epochs,
            settings.distillation_learning_rate,
            loss,
            evaluates=False,
            projections=project,
        )
        return [inside, prediction_phase(lesson, settings.prediction_epochs)]
