"""ARC (Yu and Qiu 2024): the teacher's layers are replaced by lighter ones, after fine-grained attention distillation.

First MiniLMv2's relations of queries, keys and values, by its settings (the paper's "fine-grained self-attention
distillation"). Then the teacher's N layers are split into M groups in order, and student layer m stands in for group m
with probability 1/2 in every batch, else the group's frozen layers run. The hybrid learns the answers (soft targets and
labels); at last all groups are replaced, and the student goes on to learn them.

Read: the abstract alone (IEEE TETCI 9(1), 2025; no official code was found). The replacement is that of BERT-of-Theseus
(Xu et al. 2020, section 3, and its code's constant rate). Deviations: embeddings and classifier are the student's and
trained, where Theseus keeps the teacher's; learned projections lead into and out of a group where hidden sizes differ;
relations are learnt from the task's rows; both parts have half of the first phase's epochs each."""

import copy
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from edgemin_utils.distillation.objective import uniform_layers
from edgemin_utils.distillation.relations import Relations
from edgemin_utils.distillation.teacher import Teacher
from edgemin_utils.encoders import encoder_layers
from edgemin_utils.errors import MethodRefused
from edgemin_utils.training import Batch, Phase

REPLACED = 0.5  # probability that a student layer stands in for its group


class ReplacedLayers(Relations):
    """MiniLMv2's relations, then answers of teacher layers partly replaced by the student's, then soft targets."""

    def phases(self, teacher: Teacher, student: PreTrainedModel) -> list[Phase]:
        groups = teacher_groups(teacher.model, student)
        ways = {"up": (student, teacher.model), "down": (teacher.model, student)}
        project = nn.ModuleDict({way: self.projection(*models, "hidden.0") for way, models in ways.items()})

        def run(group: Any, _: nn.Module, inputs: Any, __: Tensor) -> Tensor:
            hidden = project["up"](inputs[0])
            for layer in group:
                hidden = layer(hidden, inputs[1])
            return project["down"](hidden)

        def loss(model: nn.Module, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
            replaced = (torch.rand(len(groups)) < REPLACED).tolist()
            with ExitStack() as stack:
                groups.to(batch["input_ids"].device)
                for layer, group, stands_in in zip(encoder_layers(model), groups, replaced, strict=True):
                    if not stands_in:
                        stack.enter_context(layer.module.register_forward_hook(partial(run, group)))
                return phase.loss(model, batch)

        phase = self.phase("replacement", teacher, self.answers, ["logits"], part="first", projections=project)
        relations, answers = super().phases(teacher, student)
        halves = (replace(each, epochs=each.epochs / 2) for each in (relations, replace(phase, loss=loss)))
        return [*halves, answers]


def teacher_groups(teacher: PreTrainedModel, student: PreTrainedModel) -> nn.ModuleList:
    """Frozen copies of the teacher's layers, a list for each student layer; raises MethodRefused where it has more."""
    frozen = copy.deepcopy(teacher).requires_grad_(False).eval()
    frozen.set_attn_implementation(student.config._attn_implementation)  # decides what masks the layers are given
    layers = [layer.module for layer in encoder_layers(frozen)]
    if (deeper := len(encoder_layers(student)) - len(layers)) > 0:
        raise MethodRefused(f"arc needs a teacher as deep; this student has {deeper} layers more; choose logits")
    ends = [other + 1 for _, other in uniform_layers(teacher, student)]
    return nn.ModuleList(nn.ModuleList(layers[start:end]) for start, end in pairwise([0, *ends]))
