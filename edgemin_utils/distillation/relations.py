r"""MiniLM and MiniLMv2: relations between the tokens inside one self-attention layer, then soft targets.

MiniLMv2 (Wang et al. 2021, section 3.1) matches, for weighted pairs of queries, keys and values A, B split into A_r
relation heads, the distributions :math:`\mathrm{softmax}(A_a B_a^\top / \sqrt{d_r})` of one teacher layer and one
student layer by KL. MiniLM (Wang et al. 2020, sections 3.1 and 3.2) is the case of the last layers, the pairs query-key
(the attention distribution itself) and value-value, and as many relation heads as attention heads, which must agree.
The originals distil on general text and leave answers to fine-tuning; here the task's own rows are used, and a second
phase fits soft targets and labels.
"""

from collections.abc import Sequence

from torch import Tensor
from transformers import PreTrainedModel

from edgemin_utils.distillation.losses import relation_divergence
from edgemin_utils.distillation.objective import Objective, RelationView, named, require_equal_heads, scores_of, total
from edgemin_utils.distillation.teacher import States, Teacher, teacher_signals
from edgemin_utils.encoders import encoder_layers, layer_number, state_width
from edgemin_utils.errors import MethodRefused
from edgemin_utils.training import Batch, Phase


class Relations(Objective):
    """MiniLMv2: the relations that the settings name, with their weights, or with `weights`, one a pair."""

    weights: Sequence[float] | None = None

    def relations(self, teacher: Teacher, student: PreTrainedModel) -> RelationView:
        """What is matched; raises MethodRefused where a layer is not there, or the heads do not divide a size."""
        settings = self.settings
        layers = layer_number(teacher.model, settings.teacher_layer), layer_number(student, settings.student_layer)
        for role, model, layer in zip(("teacher", "student"), (teacher.model, student), layers, strict=True):
            width = state_width(model, f"query.{layer}")
            if width % settings.relation_heads:
                wrong = f"{settings.relation_heads} does not divide the {role}'s hidden size {width}"
                raise MethodRefused(f"relation_heads = {wrong}; choose a divisor that teacher and student share")
        return RelationView(tuple(settings.relation_pairs), settings.relation_heads, *layers)

    def phases(self, teacher: Teacher, student: PreTrainedModel) -> list[Phase]:
        view, weights = self.relations(teacher, student), self.weights or self.settings.relation_weights

        def compare(own: States, theirs: States, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
            parts, sides = {}, ((theirs, view.teacher_layer), (own, view.student_layer))
            for pair in view.pairs:
                wanted, given = (scores_of(pair, *side, view.heads) for side in sides)
                parts[pair] = relation_divergence(wanted, given, batch["attention_mask"])
            return total(weight * part for weight, part in zip(weights, parts.values(), strict=True)), parts

        layers = view.student_layer, view.teacher_layer
        own, theirs = (named(projections_of(view.pairs), [layer]) for layer in layers)
        return [self.phase("relations", teacher, compare, own, theirs, part="first"), self.soft_targets(teacher)]


class AttentionAndValues(Relations):
    """MiniLM: attention distributions and value relations of the last layers."""

    weights = (1.0, 1.0)

    def relations(self, teacher: Teacher, student: PreTrainedModel) -> RelationView:
        ours = encoder_layers(student)
        last = len(ours) - 1, len(encoder_layers(teacher.model)) - 1
        require_equal_heads(teacher.model, student, [last], "minilm")
        return RelationView(("query-key", "value-value"), ours[-1].num_heads, last[1], last[0])


def projections_of(pairs: Sequence[str]) -> list[str]:
    """The projections that pairs such as "query-key" are made of, each once."""
    return sorted({part for pair in pairs for part in pair.split("-")})


def relation_matrices(
    model: PreTrainedModel, batch: Batch, layer: int, pairs: Sequence[str], relation_heads: int
) -> dict[str, Tensor]:
    """Pair -> relation distributions of the batch's first row, averaged over relation heads, (tokens, tokens)."""
    number, tokens = layer_number(model, layer), int(batch["attention_mask"][0].sum())
    found = teacher_signals(model, batch, named(projections_of(pairs), [number]))
    states = {name: value[:1, :tokens] for name, value in found.items()}
    return {pair: scores_of(pair, states, number, relation_heads).softmax(-1)[0].mean(0) for pair in pairs}
