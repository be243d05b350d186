r"""MiniLM and MiniLMv2: relations between the tokens inside one self-attention layer, then soft targets.

MiniLMv2 (Wang et al. 2021, section 3.1) matches, for pairs of queries, keys and values A, B split into A_r relation
heads, the distributions :math:`R_a = \mathrm{softmax}(A_a B_a^\top / \sqrt{d_r})` of one teacher layer and one student
layer:

.. math:: L = \sum_{(A, B)} \alpha_{AB} \frac{1}{A_r |x|} \sum_a \sum_t D_{KL}(R^T_{a,t} \| R^S_{a,t})

MiniLM (Wang et al. 2020, sections 3.1 and 3.2) is the case of the last layers, of the pairs query-key (the attention
distribution itself) and value-value, and of as many relation heads as attention heads, which must therefore agree.

The originals distil a pretrained model on general text and leave answers to fine-tuning. Here the task's own rows are
used, and a second phase fits soft targets and labels.
"""

from collections.abc import Sequence

import torch
from torch import nn

from edgemin_utils.distillation.losses import relation_divergence, relation_scores, sum_of_terms
from edgemin_utils.distillation.objective import (
    Lesson,
    Objective,
    RelationView,
    SignalSource,
    in_full_precision,
    require_equal_heads,
    student_states,
)
from edgemin_utils.distillation.soft_targets import prediction_phase
from edgemin_utils.encoder_states import captured_states, state_width
from edgemin_utils.encoders import encoder_layers, layer_number
from edgemin_utils.errors import MethodRefused
from edgemin_utils.training import Batch, LossFunction, Phase, model_inputs


class Relations(Objective):
    """MiniLMv2: the relations that the settings name."""

    def relations(self, lesson: Lesson) -> RelationView:
        """The pairs, relation heads and layers that are matched."""
        settings = lesson.settings
        return RelationView(
            tuple(settings.relation_pairs),
            settings.relation_heads,
            layer_number(lesson.teacher, settings.teacher_layer),
            layer_number(lesson.student, settings.student_layer),
        )

    def weights(self, lesson: Lesson) -> Sequence[float]:
        """One weight a pair."""
        return lesson.settings.relation_weights

    def check(self, lesson: Lesson) -> None:
        """Raises MethodRefused where the relation heads do not divide a model's states."""
        view = self.relations(lesson)
        for role, model, layer in (
            ("teacher", lesson.teacher, view.teacher_layer),
            ("student", lesson.student, view.student_layer),
        ):
            width = state_width(model, f"query.{layer}")
            if width % view.heads:
                raise MethodRefused(
                    f"relation_heads = {view.heads} does not divide the {role}'s hidden size {width}; "
                    "choose a divisor that teacher and student share"
                )

    def signals(self, lesson: Lesson) -> tuple[str, ...]:
        view = self.relations(lesson)
        names = tuple(f"{name}.{view.teacher_layer}" for name in projections_of(view.pairs))
        return names + (("logits",) if lesson.settings.prediction_epochs else ())

    def phases(self, lesson: Lesson) -> list[Phase]:
        self.check(lesson)
        settings, view = lesson.settings, self.relations(lesson)
        loss = relation_loss(lesson.signals, view, self.weights(lesson))
        relations = Phase(
            "relations", settings.distillation_epochs, settings.distillation_learning_rate, loss, evaluates=False
        )
        return [relations, prediction_phase(lesson, settings.prediction_epochs)]


class AttentionAndValues(Relations):
    """MiniLM: attention distributions and value relations of the last layers."""

    def relations(self, lesson: Lesson) -> RelationView:
        teacher, student = encoder_layers(lesson.teacher), encoder_layers(lesson.student)
        return RelationView(("query-key", "value-value"), student[-1].num_heads, len(teacher) - 1, len(student) - 1)

    def weights(self, lesson: Lesson) -> Sequence[float]:
        return (1.0, 1.0)

    def check(self, lesson: Lesson) -> None:
        view = self.relations(lesson)
        require_equal_heads(lesson, [(view.student_layer, view.teacher_layer)], "minilm")


def projections_of(pairs: Sequence[str]) -> list[str]:
    """The projections that pairs such as "query-key" are made of, each once."""
    return sorted({part for pair in pairs for part in pair.split("-")})


def relation_loss(signals: SignalSource, view: RelationView, weights: Sequence[float]) -> LossFunction:
    """Weighted sum of `relation_divergence` over the view's pairs of projections.

    The signals hold "query.<teacher layer>" and so on.
    """
    projections = projections_of(view.pairs)

    def loss(model: nn.Module, batch: Batch) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        _, student = student_states(model, batch, [f"{name}.{view.student_layer}" for name in projections])
        signalled, parts = signals(batch), dict[str, torch.Tensor]()
        teacher = {name: signalled[f"{name}.{view.teacher_layer}"] for name in projections}
        with in_full_precision(batch):
            for pair in view.pairs:
                first, second = pair.split("-")
                parts[pair] = relation_divergence(
                    relation_scores(teacher[first], teacher[second], view.heads),
                    relation_scores(
                        student[f"{first}.{view.student_layer}"], student[f"{second}.{view.student_layer}"], view.heads
                    ),
                    batch["attention_mask"],
                )
        return sum_of_terms(weight * parts[pair] for weight, pair in zip(weights, view.pairs, strict=True)), parts

    return loss


def relation_matrices(
    model: nn.Module, batch: Batch, layer: int, pairs: Sequence[str], relation_heads: int
) -> dict[str, torch.Tensor]:
    """Relation distributions of the batch's first row, averaged over relation heads, for looking at.

    Returns:
        Pair -> (tokens, tokens) float32; each row sums to 1.
    """
    number = layer_number(model, layer)
    names = [f"{name}.{number}" for name in projections_of(pairs)]
    with torch.inference_mode(), captured_states(model, names) as states:
        model(**model_inputs(model, batch))
    tokens = int(batch["attention_mask"][0].sum())
    result = {}
    for pair in pairs:
        first, second = (states[f"{name}.{number}"][:1, :tokens] for name in pair.split("-"))
        result[pair] = relation_scores(first, second, relation_heads).softmax(-1)[0].mean(0)
    return result
