r"""MLKD-BERT (Zhang et al. 2024): features and relations at several levels, in two stages.

Stage one, with student layer n learning from teacher layer m, evenly spread:

.. math:: L_1 = L_{EMB} + L_{MHA} + L_{FFN}

- :math:`L_{EMB}`: mean KL between the token similarities :math:`\mathrm{softmax}(E E^\top / \sqrt{d})` of the
  embeddings;
- :math:`L_{MHA}`: the same between the outputs of the attention heads, split into A_s parts, so that head counts may
  differ ("MHA-split"), summed over the layers;
- :math:`L_{FFN}`: :math:`\sum_n \mathrm{MSE}(H^S_n W_h, H^T_m)` between the layers' outputs.

Stage two:

.. math:: L_2 = L_{SS} + L_{SC} + L_{KD}

- :math:`L_{SS}`: mean KL between the similarities of the batch's rows, from their last [CLS] vectors;
- :math:`L_{SC}`: supervised InfoNCE over 2b such vectors, rows of one label being positives;
- :math:`L_{KD}`: soft targets.

Deviations: A_s is the student's number of heads where that divides the teacher's, as published, else their greatest
common divisor. The 2b vectors of :math:`L_{SC}` are taken to be the teacher's and the student's of the batch, at
temperature 0.1 (Khosla et al. 2020). Projections are learned only where sizes differ. :math:`L_{KD}` stands beside
the labels as in all objectives here; `soft_target_weight` 1 leaves them out.
"""

import math

import torch
from torch import nn

from edgemin_utils.distillation.losses import (
    contrastive_loss,
    hidden_state_error,
    relation_divergence,
    relation_scores,
    sample_divergence,
    sum_of_terms,
)
from edgemin_utils.distillation.objective import Lesson, Objective, in_full_precision, student_states, uniform_layers
from edgemin_utils.distillation.soft_targets import answer_loss
from edgemin_utils.encoders import encoder_layers
from edgemin_utils.training import Batch, Phase

CONTRASTIVE_TEMPERATURE = 0.1


def own_relations(teacher: torch.Tensor, student: torch.Tensor, heads: int, mask: torch.Tensor) -> torch.Tensor:
    """`relation_divergence` of the relations of two states, (batch, tokens, hidden) each, with themselves."""
    return relation_divergence(relation_scores(teacher, teacher, heads), relation_scores(student, student, heads), mask)


class MultiLevel(Objective):
    """Token relations and hidden states, then row relations and soft targets."""

    def signals(self, lesson: Lesson) -> tuple[str, ...]:
        layers = uniform_layers(lesson.teacher, lesson.student)
        return (
            "logits",
            "embeddings",
            f"cls.{len(encoder_layers(lesson.teacher)) - 1}",
            *dict.fromkeys(f"{state}.{other}" for _, other in layers for state in ("context", "hidden")),
        )

    def phases(self, lesson: Lesson) -> list[Phase]:
        return [self._tokens(lesson), self._rows(lesson)]

    def _tokens(self, lesson: Lesson) -> Phase:
        settings, layers = lesson.settings, uniform_layers(lesson.teacher, lesson.student)
        teacher_heads, heads = (
            [layer.num_heads for layer in encoder_layers(model)] for model in (lesson.teacher, lesson.student)
        )
        splits = [math.gcd(heads[own], teacher_heads[other]) for own, other in layers]
        project = lesson.projection("hidden.0", "hidden.0")
        names = ["embeddings", *(f"{state}.{own}" for own, _ in layers for state in ("context", "hidden"))]

        def loss(model: nn.Module, batch: Batch) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
            _, states = student_states(model, batch, names)
            teacher, mask = lesson.signals(batch), batch["attention_mask"]
            with in_full_precision(batch):
                embeddings = own_relations(teacher["embeddings"], states["embeddings"], 1, mask)
                heads = sum_of_terms(
                    own_relations(teacher[f"context.{other}"], states[f"context.{own}"], count, mask)
                    for (own, other), count in zip(layers, splits, strict=True)
                )
                hidden = sum_of_terms(
                    hidden_state_error(teacher[f"hidden.{other}"], project(states[f"hidden.{own}"]), mask)
                    for own, other in layers
                )
            return embeddings + heads + hidden, {
                "embeddings": embeddings,
                "attention heads": heads,
                "hidden states": hidden,
            }

        return Phase(
            "token relations",
            settings.distillation_epochs,
            settings.distillation_learning_rate,
            loss,
            evaluates=False,
            projections=project,
        )

    def _rows(self, lesson: Lesson) -> Phase:
        settings = lesson.settings
        own, theirs = (f"cls.{len(encoder_layers(model)) - 1}" for model in (lesson.student, lesson.teacher))
        project = lesson.projection(own, theirs)

        def loss(model: nn.Module, batch: Batch) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
            logits, states = student_states(model, batch, [own])
            teacher, labels = lesson.signals(batch), batch["labels"]
            with in_full_precision(batch):
                answers, parts = answer_loss(
                    teacher["logits"], logits, labels, settings.temperature, settings.soft_target_weight
                )
                similarity = sample_divergence(teacher[theirs], states[own])
                contrast = contrastive_loss(teacher[theirs], project(states[own]), labels, CONTRASTIVE_TEMPERATURE)
            return answers + similarity + contrast, {**parts, "row similarity": similarity, "row contrast": contrast}

        return Phase(
            "row relations", settings.prediction_epochs, settings.prediction_learning_rate, loss, projections=project
        )
