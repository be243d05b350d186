r"""MiniLM and MiniLMv2: relations between the tokens inside one self-attention layer, then soft targets.

MiniLMv2 (Wang et al. 2021, section 3.1) matches, for weighted pairs of queries, keys and values A, B split into A_r
relation heads, the distributions :math:`\mathrm{softmax}(A_a B_a^\top / \sqrt{d_r})` of one teacher layer and one
student layer by KL. MiniLM (Wang et al. 2020, sections 3.1 and 3.2) is the case of the last layers, the pairs query-key
(the attention distribution itself) and value-value, and as many relation heads as attention heads, which must agree.

Deviations: the originals distil on general text and leave answers to fine-tuning; here the task's own rows are used,
and a second phase fits the answers. Their mean is over a row's tokens, then over rows; here over the batch's tokens."""

from collections.abc import Sequence
from typing import Any

from torch import Tensor
from transformers import PreTrainedModel as Model

from edgemin_utils.distillation.losses import relation_divergence
from edgemin_utils.distillation.objective import Objective, RelationView, named, scores_of, shared_heads, total
from edgemin_utils.distillation.teacher import States, Teacher, teacher_signals
from edgemin_utils.encoders import encoder_layers, layer_number, state_width
from edgemin_utils.errors import MethodRefused
from edgemin_utils.training import Batch, Phase


class Relations(Objective):
    """MiniLMv2: the relations that the settings name, with their weights, then soft targets."""

    def relations(self, teacher: Teacher, student: Model) -> RelationView:
        """What is matched; raises MethodRefused where a layer is not there, or the heads do not divide a size."""
        settings, heads = self.settings, self.settings.relation_heads
        layers = layer_number(teacher.model, settings.teacher_layer), layer_number(student, settings.student_layer)
        for role, model, layer in zip(("teacher", "student"), (teacher.model, student), layers, strict=True):
            if (width := state_width(model, f"query.{layer}")) % heads:
                wrong = f"relation_heads = {heads} does not divide the {role}'s hidden size {width}"
                raise MethodRefused(f"{wrong}; choose a divisor that teacher and student share")
        return RelationView(tuple(settings.relation_pairs), heads, *layers, tuple(settings.relation_weights))

    def phases(self, teacher: Teacher, student: Model) -> list[Phase]:
        view = self.relations(teacher, student)
        projections = "-".join(view.pairs).split("-")

        def compare(own: States, theirs: States, batch: Batch) -> Any:
            parts, sides = {}, ((theirs, view.teacher_layer), (own, view.student_layer))
            for pair in view.pairs:
                wanted, given = (scores_of(pair, *side, view.heads) for side in sides)
                parts[pair] = relation_divergence(wanted, given, batch["attention_mask"])
            return total(weight * part for weight, part in zip(view.weights, parts.values(), strict=True)), parts

        own, theirs = (named(projections, [layer]) for layer in (view.student_layer, view.teacher_layer))
        return [self.phase("relations", teacher, compare, own, theirs, part="first"), self.soft_targets(teacher)]


class AttentionAndValues(Relations):
    """MiniLM: attention distributions and value relations of the last layers, then soft targets."""

    def relations(self, teacher: Teacher, student: Model) -> RelationView:
        layer, other = len(encoder_layers(student)) - 1, len(encoder_layers(teacher.model)) - 1
        (heads,) = shared_heads(teacher.model, student, [(layer, other)], equal_for="minilm")
        return RelationView(("query-key", "value-value"), heads, other, layer)


def relation_matrices(model: Model, batch: Batch, layer: int, pairs: Sequence[str], heads: int) -> dict[str, Tensor]:
    """Pair -> relation distributions of the batch's first row, averaged over `heads`, (tokens, tokens)."""
    number, tokens = layer_number(model, layer), int(batch["attention_mask"][0].sum())
    found = teacher_signals(model, batch, named("-".join(pairs).split("-"), [number]))
    states = {name: value[:1, :tokens] for name, value in found.items()}
    return {pair: scores_of(pair, states, number, heads).softmax(-1)[0].mean(0) for pair in pairs}
