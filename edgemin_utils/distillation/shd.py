r"""Squeezing-Heads Distillation (Bing et al. 2025): several attention heads squeezed into one by a linear combination.

Two neighbouring heads with attention matrices A_i and outputs A_i X_i, where X_i is head i's part of the values times
its part of the output projection, become :math:`\tilde A = \alpha A_1 + (1 - \alpha) A_2` with the alpha that minimises
:math:`\| A_1 X_1 + A_2 X_2 - \tilde A (X_1 + X_2) \|_F^2` (section 4.2), by row and pair, kept within 0 and 1, so that
each line stays a distribution. Pairs are merged until the heads are as few as asked for. No parameter is learned. The
student's attention is pulled to the squeezed matrices by KL, beside the answers; layers are mapped evenly.

Deviations: where the *student* has more heads, which the paper excludes, the student's are squeezed. A last round that
would leave too few heads merges only the first pairs. Attention is compared at temperature 1.
"""

from collections.abc import Sequence

import torch
from torch import Tensor
from transformers import PreTrainedModel

from edgemin_utils.distillation.losses import attention_divergence, log_attention, relation_scores
from edgemin_utils.distillation.objective import Objective, named, total, uniform_layers
from edgemin_utils.distillation.teacher import States, Teacher
from edgemin_utils.encoders import EncoderLayer, encoder_layers
from edgemin_utils.training import Batch, Phase

STATES = ("query", "key", "value")


class SqueezedHeads(Objective):
    """Attention matrices with heads squeezed to the smaller count, soft targets and labels, for all epochs."""

    def phases(self, teacher: Teacher, student: PreTrainedModel) -> list[Phase]:
        layers = uniform_layers(teacher.model, student)
        models = (encoder_layers(teacher.model), encoder_layers(student))

        def attention(own: States, theirs: States, batch: Batch) -> Tensor:
            distances, mask = [], batch["attention_mask"]
            for layer, other in layers:
                both = [(models[0][other], theirs, other), (models[1][layer], own, layer)]
                count = min(one.num_heads for one, _, _ in both)
                states = [(one, [found[f"{state}.{number}"] for state in STATES]) for one, found, number in both]
                wanted, given = (squeezed_attention(*one, mask, count) for one in states)
                distances.append(attention_divergence(wanted, given, mask))
            return total(distances)

        states = [named(STATES, numbers) for numbers in zip(*layers, strict=True)]
        return self.beside_answers("attention", teacher, attention, *states)


def squeezed_attention(layer: EncoderLayer, projections: Sequence[Tensor], mask: Tensor, count: int) -> Tensor:
    """Logarithm of a layer's attention squeezed to `count` heads, (batch, count, tokens, tokens), from its query, key
    and value, (batch, tokens, heads * head_size)."""
    query, key, value = projections
    log = log_attention(relation_scores(query, key, layer.num_heads), mask)
    if layer.num_heads == count:
        return log
    with torch.no_grad():
        by_head = [x.unflatten(-1, (layer.num_heads, -1)) for x in (value, layer.attention_output.weight.to(value))]
        outputs = torch.einsum("bthd,ehd->bhte", *by_head)
    squeezed = squeeze_heads(log.exp(), outputs, mask, count)
    return squeezed.clamp_min(torch.finfo(squeezed.dtype).tiny).log()


def squeeze_heads(attention: Tensor, outputs: Tensor, attention_mask: Tensor, count: int) -> Tensor:
    """Attention (batch, heads, tokens, tokens) merged in neighbouring pairs until `count` are left; `outputs` are the
    heads' X, (batch, heads, tokens, hidden). Padding has no say in the shares, and no gradient flows through them."""
    real = attention_mask.bool()[:, None, :, None]
    while attention.shape[1] > count:
        merged = 2 * min(attention.shape[1] // 2, attention.shape[1] - count)
        first, second = attention[:, 0:merged:2], attention[:, 1:merged:2]
        x, both = outputs[:, 0:merged:2], outputs[:, 0:merged:2] + outputs[:, 1:merged:2]
        with torch.no_grad():
            # Alpha, with D = A_1 - A_2: <D X_1, D (X_1 + X_2)> / |D (X_1 + X_2)|², or a half where heads are alike.
            wanted, given = (((first - second) * real) @ outputs_of for outputs_of in (x, both))
            squared = given.square().sum((-1, -2), keepdim=True)
            share = (wanted * given).sum((-1, -2), keepdim=True) / squared
            share = torch.where(squared > 0, share, 0.5).clamp(0, 1)
        attention = torch.cat([share * first + (1 - share) * second, attention[:, merged:]], dim=1)
        outputs = torch.cat([both, outputs[:, merged:]], dim=1)
    return attention
