"""Objectives on what layers give out: DistilBERT's, patient distillation (PKD), and TinyBERT's.

- DistilBERT (Sanh et al. 2019, section 3): cosine of the last hidden states of every real token.
- PKD (Sun et al. 2019, section 3.2, equation 7): normalized [CLS] vectors of the student's layers but the last, which
  feeds the classifier; from every N / M-th teacher layer (*Skip*) or from those before its last one (*Last*).
- TinyBERT (Jiao et al. 2020, section 3.1, equations 7 to 9 and 11): embeddings, hidden states and attention scores
  before the softmax, layer by layer; then a second phase fits the answers.

Deviations: projections are learned where hidden sizes differ, which DistilBERT and PKD exclude; DistilBERT's original
learns from general text; Skip rounds up where M does not divide N; TinyBERT has no general distillation before and no
data augmentation, and its second phase is that of all objectives here.
"""

from typing import Any

from torch import Tensor, nn
from transformers import PreTrainedModel

from edgemin_utils.distillation import losses
from edgemin_utils.distillation.objective import Objective, named, require_equal_heads, scores_of, total, uniform_layers
from edgemin_utils.distillation.teacher import States, Teacher
from edgemin_utils.encoders import encoder_layers
from edgemin_utils.errors import MethodRefused
from edgemin_utils.training import Batch, Phase


class LastHiddenStates(Objective):
    """DistilBERT: soft targets, labels and the cosine of the last hidden states, for all epochs."""

    def phases(self, teacher: Teacher, student: PreTrainedModel) -> list[Phase]:
        last = "hidden.-1"
        project = self.projection(student, last, teacher, last)

        def cosine(own: States, theirs: States, batch: Batch) -> Tensor:
            return losses.cosine_distance(theirs[last], project(own[last]), batch["attention_mask"])

        return self.beside_answers("hidden states", teacher, cosine, [last], [last], project=project)


class PatientSkip(Objective):
    """PKD-Skip: soft targets, labels and [CLS] vectors of evenly spread teacher layers, for all epochs."""

    def layers(self, teacher: PreTrainedModel, student: PreTrainedModel) -> list[tuple[int, int]]:
        """(student layer, teacher layer), counted from 0; *Last* raises MethodRefused for a student that is deeper."""
        return uniform_layers(teacher, student)[:-1]

    def phases(self, teacher: Teacher, student: PreTrainedModel) -> list[Phase]:
        layers = self.layers(teacher.model, student)
        if not layers:
            raise MethodRefused("pkd matches every layer but the last, so give it two layers or more")
        project = self.projection(student, "cls.0", teacher, "cls.0")

        def distance(own: States, theirs: States, batch: Batch) -> Tensor:
            return total(losses.patience(theirs[f"cls.{two}"], project(own[f"cls.{one}"])) for one, two in layers)

        states = [named(["cls"], numbers) for numbers in zip(*layers, strict=True)]
        return self.beside_answers("[CLS] vectors", teacher, distance, *states, project=project)


class PatientLast(PatientSkip):
    """PKD-Last: the teacher layers before its last one."""

    def layers(self, teacher: PreTrainedModel, student: PreTrainedModel) -> list[tuple[int, int]]:
        count = len(encoder_layers(student))
        deeper = len(encoder_layers(teacher)) - count
        if deeper < 0:
            more = f"this student has {-deeper} more than its teacher"
            raise MethodRefused(f"pkd-last needs as many layers in the teacher, but {more}; choose pkd")
        return [(layer, layer + deeper) for layer in range(count - 1)]


class AllLayers(Objective):
    """TinyBERT: embeddings, hidden states and attention matrices, then soft targets."""

    def phases(self, teacher: Teacher, student: PreTrainedModel) -> list[Phase]:
        layers = uniform_layers(teacher.model, student)
        require_equal_heads(teacher.model, student, layers, "tinybert")
        heads = [layer.num_heads for layer in encoder_layers(student)]
        states = {"embeddings": "embeddings", "hidden": "hidden.0"}
        project = nn.ModuleDict({name: self.projection(student, one, teacher, one) for name, one in states.items()})

        def compare(own: States, theirs: States, batch: Batch) -> Any:
            mask, hidden, attention = batch["attention_mask"], [], []
            embeddings = losses.hidden_state_error(theirs["embeddings"], project["embeddings"](own["embeddings"]), mask)
            for layer, other in layers:
                projected = project["hidden"](own[f"hidden.{layer}"])
                hidden.append(losses.hidden_state_error(theirs[f"hidden.{other}"], projected, mask))
                both = ((theirs, other), (own, layer))
                wanted, given = (scores_of("query-key", *one, heads[layer]) for one in both)
                attention.append(losses.attention_error(wanted, given, mask))
            parts = {"embeddings": embeddings, "hidden states": total(hidden), "attention": total(attention)}
            return total(parts.values()), parts

        inside = ("hidden", "query", "key")
        own, theirs = (["embeddings", *named(inside, numbers)] for numbers in zip(*layers, strict=True))
        return [self.phase("layers", teacher, compare, own, theirs, project, "first"), self.soft_targets(teacher)]
