"""The losses that objectives are made of, as functions of tensors. Half precision is raised to float32 first."""

import functools
from collections.abc import Iterable

import torch
from torch.nn import functional

from edgemin_utils.data import NO_LABEL
from edgemin_utils.errors import ModelError


def full_precision(states: torch.Tensor) -> torch.Tensor:
    """The tensor, of any shape, in float32, or in float64 if it is."""
    return states if states.dtype == torch.float64 else states.float()


# ---- answers ---------------------------------------------------------------------------------------------------


def soft_target_divergence(
    teacher_logits: torch.Tensor, student_logits: torch.Tensor, temperature: float
) -> torch.Tensor:
    r"""T² · KL(softmax(teacher / T) || softmax(student / T)), mean over the batch, in nats.

    Hinton et al. 2015, section 2; the factor T² keeps the gradient's size independent of T.

    Args:
        teacher_logits, student_logits: (batch, labels).
    """
    teacher_log = (full_precision(teacher_logits) / temperature).log_softmax(-1)
    student_log = (full_precision(student_logits) / temperature).log_softmax(-1)
    return temperature**2 * functional.kl_div(student_log, teacher_log, log_target=True, reduction="batchmean")


def label_divergence(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Cross-entropy with the labels, mean over the batch, where a row labelled `NO_LABEL` counts as zero.

    Args:
        logits: (batch, labels).
        labels: (batch,), int64.
    """
    summed = functional.cross_entropy(full_precision(logits), labels, ignore_index=NO_LABEL, reduction="sum")
    return summed / len(labels)


def sum_of_terms(terms: Iterable[torch.Tensor]) -> torch.Tensor:
    """Sum of a loss's terms, at least one, added in their order; all of one shape."""
    return functools.reduce(torch.add, terms)


# ---- relations and attention ------------------------------------------------------------------------------------


def relation_scores(first: torch.Tensor, second: torch.Tensor, relation_heads: int) -> torch.Tensor:
    r"""Scaled dot products between the tokens of two states, by relation head.

    The heads' vectors are concatenated and split anew into `relation_heads` A_r vectors of size d_r, so that teacher
    and student need neither the same number of heads nor the same hidden size (MiniLMv2, Wang et al. 2021,
    section 3.1): :math:`A_a B_a^\top / \sqrt{d_r}`. With the layer's own number of heads, queries and keys give the
    scores from which it computes its attention.

    Args:
        first, second: (batch, tokens, hidden), floating point.

    Returns:
        (batch, relation_heads, tokens, tokens); rows are queries, columns keys.

    Raises:
        ModelError: `relation_heads` does not divide the hidden size.
    """
    batch, tokens, hidden = first.shape
    if hidden % relation_heads:
        raise ModelError(
            f"{relation_heads} relation heads do not divide the hidden size {hidden}; choose a divisor "
            "that teacher and student share"
        )
    size = hidden // relation_heads
    first, second = (
        full_precision(states).view(batch, tokens, relation_heads, size).transpose(1, 2) for states in (first, second)
    )
    return first @ second.transpose(-1, -2) / size**0.5


def log_attention(scores: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
    """Logarithm of the distribution over the keys, (batch, heads, tokens, tokens); padding as a key gets (almost) -inf.

    Args:
        scores: (batch, heads, tokens, tokens).
        attention_mask: (batch, tokens), 1 for real tokens.
    """
    keys = attention_mask.bool()[:, None, None, :]
    return scores.masked_fill(~keys, torch.finfo(scores.dtype).min).log_softmax(-1)


def relation_divergence(
    teacher_scores: torch.Tensor, student_scores: torch.Tensor, attention_mask: torch.Tensor
) -> torch.Tensor:
    r"""Mean KL(teacher || student) between relation distributions, over relation heads and real tokens.

    MiniLMv2 (Wang et al. 2021), section 3.1:
    :math:`\frac{1}{A_r |x|} \sum_a \sum_t D_{KL}(R^T_{a,t} \,\|\, R^S_{a,t})` with R the softmax of the scores over
    the keys. Padding takes no part: masked as a key, left out as a query.

    Args:
        teacher_scores, student_scores: (batch, relation_heads, tokens, tokens).
        attention_mask: (batch, tokens), 1 for real tokens.

    Returns:
        A scalar in nats.
    """
    return attention_divergence(
        log_attention(teacher_scores, attention_mask), log_attention(student_scores, attention_mask), attention_mask
    )


def attention_divergence(
    teacher_log: torch.Tensor, student_log: torch.Tensor, attention_mask: torch.Tensor
) -> torch.Tensor:
    """Mean KL(teacher || student) over heads and real tokens, from logarithms of distributions over the keys.

    Args:
        teacher_log, student_log: (batch, heads, tokens, tokens).
        attention_mask: (batch, tokens), 1 for real tokens.

    Returns:
        A scalar in nats.
    """
    real = attention_mask.bool()
    difference = (teacher_log - student_log).masked_fill(~real[:, None, None, :], 0.0)
    by_query = (teacher_log.exp() * difference).sum(-1).masked_fill(~real[:, None, :], 0.0)
    return by_query.sum() / (real.sum() * teacher_log.shape[1])


def attention_error(
    teacher_scores: torch.Tensor, student_scores: torch.Tensor, attention_mask: torch.Tensor
) -> torch.Tensor:
    r"""Mean squared difference of attention scores before the softmax, over heads and pairs of real tokens.

    TinyBERT (Jiao et al. 2020), equation 7: :math:`\frac{1}{h} \sum_i \mathrm{MSE}(A_i^S, A_i^T)`.

    Args:
        teacher_scores, student_scores: (batch, heads, tokens, tokens).
        attention_mask: (batch, tokens), 1 for real tokens.
    """
    real = attention_mask.bool()
    pairs = (real[:, None, :] & real[:, :, None])[:, None]
    squared = (teacher_scores - student_scores).masked_fill(~pairs, 0.0).square().sum()
    return squared / (pairs.sum() * teacher_scores.shape[1])


# ---- hidden states ---------------------------------------------------------------------------------------------


def hidden_state_error(teacher: torch.Tensor, student: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
    """Mean squared difference of hidden states over real tokens and units (TinyBERT, equations 8 and 9).

    Args:
        teacher, student: (batch, tokens, hidden).
        attention_mask: (batch, tokens), 1 for real tokens.
    """
    real = attention_mask.bool()
    difference = full_precision(teacher) - full_precision(student)
    return difference.masked_fill(~real[..., None], 0.0).square().sum() / (real.sum() * teacher.shape[-1])


def cosine_distance(teacher: torch.Tensor, student: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
    """1 - cosine between hidden states, mean over real tokens (DistilBERT, Sanh et al. 2019, section 3).

    Args:
        teacher, student: (batch, tokens, hidden).
        attention_mask: (batch, tokens), 1 for real tokens.
    """
    real = attention_mask.bool()
    distance = 1 - functional.cosine_similarity(full_precision(teacher), full_precision(student), dim=-1)
    return distance.masked_fill(~real, 0.0).sum() / real.sum()


def patience(teacher: torch.Tensor, student: torch.Tensor) -> torch.Tensor:
    r"""Squared distance of normalized vectors, mean over the batch (PKD, Sun et al. 2019, equation 7):
    :math:`\| h^S / \|h^S\|_2 - h^T / \|h^T\|_2 \|_2^2`.

    Args:
        teacher, student: (batch, hidden).
    """
    teacher, student = (functional.normalize(full_precision(vectors), dim=-1) for vectors in (teacher, student))
    return (teacher - student).square().sum(-1).mean()


# ---- relations between rows -------------------------------------------------------------------------------------


def sample_divergence(teacher: torch.Tensor, student: torch.Tensor) -> torch.Tensor:
    r"""Mean KL between the rows' similarity distributions within the batch (MLKD-BERT, Zhang et al. 2024):
    :math:`R = \mathrm{softmax}(C C^\top / \sqrt{d})` with one vector a row of the batch.

    Args:
        teacher, student: (batch, hidden); the hidden sizes may differ.
    """
    everyone = torch.ones(1, len(teacher), device=teacher.device)
    return relation_divergence(
        relation_scores(teacher[None], teacher[None], 1), relation_scores(student[None], student[None], 1), everyone
    )


def contrastive_loss(
    teacher: torch.Tensor, student: torch.Tensor, labels: torch.Tensor, temperature: float
) -> torch.Tensor:
    r"""Supervised InfoNCE over the 2b normalized vectors of the teacher and the student (MLKD-BERT):
    rows of one label attract, rows of different labels repel each other.

    .. math:: -\frac{1}{2b} \sum_i \frac{1}{|P(i)|} \sum_{p \in P(i)} \log
        \frac{\exp(z_i \cdot z_p / \tau)}{\sum_{a \neq i} \exp(z_i \cdot z_a / \tau)}

    P(i) are the other vectors of i's label.

    Args:
        teacher, student: (batch, hidden), of one size.
        labels: (batch,); rows labelled `NO_LABEL` take no part.
        temperature: tau.
    """
    known = labels != NO_LABEL
    vectors = functional.normalize(torch.cat([full_precision(states)[known] for states in (teacher, student)]), dim=-1)
    if not len(vectors):
        return full_precision(student).sum() * 0
    labels = labels[known].repeat(2)
    itself = torch.eye(len(labels), dtype=torch.bool, device=labels.device)
    similarity = (vectors @ vectors.T / temperature).masked_fill(itself, torch.finfo(vectors.dtype).min)
    log_share = similarity.log_softmax(-1)
    positive = (labels[:, None] == labels[None]) & ~itself
    return -(log_share.masked_fill(~positive, 0.0).sum(-1) / positive.sum(-1)).mean()
