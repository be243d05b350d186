r"""Squeezing-Heads Distillation (Bing et al. 2025): several attention heads squeezed into one by a linear combination.

Two neighbouring heads with attention matrices A_1, A_2 and outputs A_i X_i, where X_i is head i's part of the values
times its part of the output projection, are replaced by one matrix that acts on both (section 4.2):

.. math:: \tilde A = \alpha A_1 + (1 - \alpha) A_2, \qquad
          \alpha = \arg\min \| A_1 X_1 + A_2 X_2 - \tilde A (X_1 + X_2) \|_F^2

With :math:`D = A_1 - A_2` the minimum is :math:`\alpha = \langle D X_1, D (X_1 + X_2) \rangle / \| D (X_1 + X_2) \|^2`,
taken for every row and pair and kept within 0 and 1, so that each line stays a distribution. Pairs are merged until
the heads are as few as asked for. No parameter is learned. The student's attention is then pulled to the squeezed
matrices by KL, beside soft targets and labels, with `intermediate_weight`; layers are mapped evenly.

Deviations: where the *student* has more heads, which the paper excludes, the student's are squeezed (alpha held
constant). A last round that would leave too few heads merges only the first pairs. Attention is compared at
temperature 1.
"""

from collections.abc import Sequence

import torch
from torch import nn

from edgemin_utils.distillation.losses import attention_divergence, log_attention, relation_scores, sum_of_terms
from edgemin_utils.distillation.objective import Lesson, Objective, in_full_precision, student_states, uniform_layers
from edgemin_utils.distillation.soft_targets import answers_and
from edgemin_utils.encoders import EncoderLayer, encoder_layers
from edgemin_utils.training import Batch, Phase

STATES = ("query", "key", "value")


class SqueezedHeads(Objective):
    """Attention matrices with heads squeezed to the smaller count, soft targets and labels, for all epochs."""

    def signals(self, lesson: Lesson) -> tuple[str, ...]:
        layers = uniform_layers(lesson.teacher, lesson.student)
        return ("logits", *dict.fromkeys(f"{state}.{other}" for _, other in layers for state in STATES))

    def phases(self, lesson: Lesson) -> list[Phase]:
        settings, layers = lesson.settings, uniform_layers(lesson.teacher, lesson.student)
        teacher_layers = encoder_layers(lesson.teacher)

        def loss(model: nn.Module, batch: Batch) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
            logits, states = student_states(model, batch, [f"{state}.{own}" for own, _ in layers for state in STATES])
            teacher, mask, student_layers = lesson.signals(batch), batch["attention_mask"], encoder_layers(model)
            distances = []
            with in_full_precision(batch):
                for own, other in layers:
                    count = min(teacher_layers[other].num_heads, student_layers[own].num_heads)
                    theirs = (teacher[f"{state}.{other}"] for state in STATES)
                    ours = (states[f"{state}.{own}"] for state in STATES)
                    distances.append(
                        attention_divergence(
                            squeezed_attention(teacher_layers[other], tuple(theirs), mask, count),
                            squeezed_attention(student_layers[own], tuple(ours), mask, count),
                            mask,
                        )
                    )
                return answers_and(
                    sum_of_terms(distances), "attention", teacher["logits"], logits, batch["labels"], settings
                )

        return [Phase("soft targets and attention", lesson.epochs, settings.prediction_learning_rate, loss)]


def squeezed_attention(
    layer: EncoderLayer, projections: Sequence[torch.Tensor], attention_mask: torch.Tensor, count: int
) -> torch.Tensor:
    """Logarithm of a layer's attention with its heads squeezed to `count`, (batch, count, tokens, tokens).

    Args:
        projections: query, key and value of the layer, (batch, tokens, heads * head_size) each.
        attention_mask: (batch, tokens), 1 for real tokens.
    """
    query, key, value = projections
    log = log_attention(relation_scores(query, key, layer.num_heads), attention_mask)
    if layer.num_heads == count:
        return log
    with torch.no_grad():
        batch, tokens, _ = value.shape
        by_head = value.view(batch, tokens, layer.num_heads, layer.head_size)
        weight = layer.attention_output.weight.to(value).view(-1, layer.num_heads, layer.head_size)
        outputs = torch.einsum("bthd,ehd->bhte", by_head, weight)
    squeezed = squeeze_heads(log.exp(), outputs, attention_mask, count)
    return squeezed.clamp_min(torch.finfo(squeezed.dtype).tiny).log()


def squeeze_heads(
    attention: torch.Tensor, outputs: torch.Tensor, attention_mask: torch.Tensor, count: int
) -> torch.Tensor:
    """Attention matrices merged in neighbouring pairs, round by round, until `count` are left.

    Args:
        attention: (batch, heads, tokens, tokens), each line a distribution over the keys.
        outputs: X of every head, (batch, heads, tokens, hidden).
        attention_mask: (batch, tokens), 1 for real tokens; padding has no say in the combination.

    Returns:
        (batch, count, tokens, tokens); gradients flow to `attention`, not through the combination's shares.
    """
    real = attention_mask.bool()[:, None, :, None]
    while attention.shape[1] > count:
        merged = 2 * min(attention.shape[1] // 2, attention.shape[1] - count)
        first, second = attention[:, 0:merged:2], attention[:, 1:merged:2]
        x, both = outputs[:, 0:merged:2], outputs[:, 0:merged:2] + outputs[:, 1:merged:2]
        with torch.no_grad():
            share = _share_of_first(((first - second) * real), x, both)
        attention = torch.cat([share * first + (1 - share) * second, attention[:, merged:]], dim=1)
        outputs = torch.cat([both, outputs[:, merged:]], dim=1)
    return attention


def _share_of_first(difference: torch.Tensor, first: torch.Tensor, both: torch.Tensor) -> torch.Tensor:
    """Alpha of the module's docstring, (batch, pairs, 1, 1); one half where the two heads attend alike."""
    wanted, given = difference @ first, difference @ both
    squared = given.square().sum((-1, -2), keepdim=True)
    share = (wanted * given).sum((-1, -2), keepdim=True) / squared
    return torch.where(squared > 0, share, 0.5).clamp(0, 1)
