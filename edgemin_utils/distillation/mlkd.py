"""MLKD-BERT (Zhang et al. 2024): features and relations at several levels, in two stages.

Stage one, layers evenly spread: similarities of the embeddings' tokens (L_EMB), and of the heads' outputs, split into
parts so that head counts may differ (L_MHA); errors of the layers' outputs (L_FFN). Stage two: similarities of the
batch's rows by their last [CLS] vectors (L_SS), supervised contrast of them (L_SC), soft targets (L_KD).

Deviations: the parts are the greatest common divisor of both head counts (as published where the student's divides the
teacher's); L_SC has the batch's 2b vectors, at temperature 0.1 (Khosla et al. 2020); projections are learned only where
sizes differ; L_KD stands beside the labels."""

import math
from typing import Any

from transformers import PreTrainedModel

from edgemin_utils.distillation import losses
from edgemin_utils.distillation.objective import Objective, named, total, uniform_layers
from edgemin_utils.distillation.teacher import States, Teacher
from edgemin_utils.encoders import encoder_layers
from edgemin_utils.training import Batch, Phase

CONTRASTIVE_TEMPERATURE = 0.1
LAST = "cls.-1"


class MultiLevel(Objective):
    """Token relations and hidden states, then row relations and soft targets."""

    def phases(self, teacher: Teacher, student: PreTrainedModel) -> list[Phase]:
        layers = uniform_layers(teacher.model, student)
        ours, others = ([layer.num_heads for layer in encoder_layers(model)] for model in (student, teacher.model))
        project, project_rows = (self.projection(student, state, teacher, state) for state in ("hidden.0", LAST))

        def of_tokens(own: States, theirs: States, batch: Batch) -> Any:
            mask, heads, hidden = batch["attention_mask"], [], []
            for layer, other in layers:
                parts = math.gcd(ours[layer], others[other])
                heads.append(losses.own_divergence(theirs[f"context.{other}"], own[f"context.{layer}"], parts, mask))
                projected = project(own[f"hidden.{layer}"])
                hidden.append(losses.hidden_state_error(theirs[f"hidden.{other}"], projected, mask))
            embeddings = losses.own_divergence(theirs["embeddings"], own["embeddings"], 1, mask)
            found = {"embeddings": embeddings, "attention heads": total(heads), "hidden states": total(hidden)}
            return total(found.values()), found

        def of_rows(own: States, theirs: States, batch: Batch) -> Any:
            answers, parts = self.answers(own, theirs, batch)
            similarity = losses.sample_divergence(theirs[LAST], own[LAST])
            projected = project_rows(own[LAST])
            contrast = losses.contrastive_loss(theirs[LAST], projected, batch["labels"], CONTRASTIVE_TEMPERATURE)
            return answers + similarity + contrast, {**parts, "row similarity": similarity, "row contrast": contrast}

        own, theirs = (["embeddings", *named(["context", "hidden"], numbers)] for numbers in zip(*layers, strict=True))
        tokens = self.phase("token relations", teacher, of_tokens, own, theirs, project, "first")
        return [tokens, self.phase("row relations", teacher, of_rows, ["logits", LAST], None, project_rows, "last")]
