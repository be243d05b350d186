r"""ROSITA: embeddings factorized, depth and width cut in rounds with distillation (Liu, Lin and Yuan 2021).

The word embedding becomes a product of low rank (its best one, Eckart and Young 1936):

.. math:: E \approx (U_k \Sigma_k)\, V_k^\top, \qquad \|E - U_k \Sigma_k V_k^\top\|_F^2 = \sum_{i > k} \sigma_i^2

with `k (tokens + size)` parameters instead of `tokens * size`. First the last layer goes, one a round, and the answers
of the teacher are learned; the model of that depth is then the teacher of the rounds in which heads go, one a layer and
round, the same share of neurons, and rank: its answers and, beside them, its embeddings and layers, by their mean
squared error. Of `rosita-0.8` four fifths of the width go, and 0.4 as much, 32 %, of the layers (in the paper 12 heads,
3072 neurons, 768 dimensions and 12 layers became 2, 512, 128 and 8).

Deviations from the paper and its code (llyx97/Rosita): importance is by the setting `criterion` on hold-out rows, not
by the products of weights and gradients met in training; rounds share `recovery_epochs` evenly, where the paper cuts in
the first part of training; labels count beside the soft targets; there is no data augmentation; without a layer to drop
the teacher stays the chain's, with a learned projection where sizes differ. Of a small vocabulary a product of high
rank holds more weights than the table; the count of what went is then negative."""

import copy
from collections.abc import Iterator
from dataclasses import replace

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from edgemin_utils.distillation.losses import hidden_state_error
from edgemin_utils.distillation.objective import Objective, total, uniform_layers
from edgemin_utils.distillation.teacher import States, Teacher
from edgemin_utils.encoders import FactorizedEmbedding, encoder_layers, word_table
from edgemin_utils.pruning.cut import Cut, plan_removal
from edgemin_utils.pruning.importance import Ranking, unit_count
from edgemin_utils.rows.tokens import Rows
from edgemin_utils.settings import Settings, whole_share
from edgemin_utils.training import Batch, Phase

DEPTH = 0.4  # of the share of the width that goes, what goes of the layers


@torch.no_grad()
def factorize(model: PreTrainedModel, rank: int) -> int:
    """Makes the word embedding the best product of this rank, in place; returns how many parameters that takes away."""
    word = model.get_input_embeddings()
    left, values, right = torch.linalg.svd(word.weight, full_matrices=False)
    product = FactorizedEmbedding(len(left), rank, right.shape[1], word_table(model).padding_idx)
    product.table.weight.copy_(left[:, :rank] * values[:rank])
    product.widen.weight.copy_(right[:rank].T)
    model.set_input_embeddings(product)
    return sum(parameter.numel() for parameter in word.parameters()) - rank * sum(word.weight.shape)


def layers_phase(model: PreTrainedModel, settings: Settings, teacher: Teacher, seed: int) -> Phase:
    """The phase that learns a teacher's answers and, beside them, its embeddings and layers."""
    objective, pairs = Objective(settings, seed), [("embeddings", "embeddings")]
    pairs += [(f"hidden.{own}", f"hidden.{other}") for own, other in uniform_layers(teacher.model, model)]
    sizes = {"embeddings": "embeddings", "hidden": "hidden.0"}
    project = nn.ModuleDict({name: objective.projection(model, teacher.model, one) for name, one in sizes.items()})

    def distance(own: States, theirs: States, batch: Batch) -> Tensor:
        given = {name: project[name.partition(".")[0]](states) for name, states in own.items() if name != "logits"}
        return total(hidden_state_error(theirs[two], given[one], batch["attention_mask"]) for one, two in pairs)

    phase = objective.with_answers("layers", teacher, distance, *zip(*pairs, strict=True), projections=project)
    return replace(phase, name="layers")


def rosita_rounds(
    model: PreTrainedModel, value: str, settings: Settings, by: Ranking, teacher: Teacher | None, rows: Rows, seed: int
) -> Iterator[Cut]:
    """The same `Cut` after each round, as `cut.rounds` gives it; `value` is the share of the width that goes."""
    ratio, depth, kinds = float(value), len(encoder_layers(model)), ("heads", "neurons")
    dropped = min(depth - 1, round(DEPTH * ratio * depth))
    heads = max(unit_count(layer, "heads") for layer in encoder_layers(model)[: depth - dropped])
    width, size = max(1, whole_share(ratio, heads)), model.get_input_embeddings().weight.shape[1]
    cut = Cut(model, "rosita", dropped + width, removed=[[]])
    for last in range(depth - 1, depth - dropped - 1, -1):
        cut.round, cut.removed = cut.round + 1, [[last, *cut.removed[0]]]
        cut.remove("layers", [last])
        yield cut
    if teacher and dropped:
        teacher = Teacher(copy.deepcopy(cut.model), rows.tokenizer, rows, settings)
    cut.phase = layers_phase(cut.model, settings, teacher, seed) if teacher else None
    counts = {kind: [unit_count(layer, kind) for layer in encoder_layers(cut.model)] for kind in kinds}
    for number in range(1, width + 1):
        cut.round, values = dropped + number, {kind: by(cut.model, kind) for kind in kinds}
        for kind in kinds:
            cut.remove(kind, plan_removal(values[kind], ratio, "layer", 1, counts[kind], (number, width)))
        before, rank = cut.model.num_parameters(), size - whole_share(ratio, size) * number // width
        cut.count(before, factorize(cut.model, rank))
        yield cut
