"""The losses that objectives are made of; each gives a scalar, in float32 at least. `attention_mask` is (batch,
tokens), 1 for real tokens: padding takes no part, neither as a key nor as a query."""

import torch
from torch import Tensor
from torch.nn import functional

from edgemin_utils.errors import ModelError
from edgemin_utils.rows.labels import NO_LABEL


def full_precision(states: Tensor) -> Tensor:
    """The tensor, of any shape, in float32, or in float64 if it is."""
    return states if states.dtype == torch.float64 else states.float()


def soft_target_divergence(teacher_logits: Tensor, student_logits: Tensor, temperature: float) -> Tensor:
    """T² · KL(softmax(teacher / T) || softmax(student / T)) of logits (batch, labels), mean over the batch, in nats
    (Hinton et al. 2015, section 2; the factor T² keeps the gradient's size independent of T)."""
    teacher_log = (full_precision(teacher_logits) / temperature).log_softmax(-1)
    student_log = (full_precision(student_logits) / temperature).log_softmax(-1)
    return temperature**2 * functional.kl_div(student_log, teacher_log, log_target=True, reduction="batchmean")


def label_divergence(logits: Tensor, labels: Tensor) -> Tensor:
    """Cross-entropy of logits (batch, labels) with the labels (batch,), mean over the batch, where a row labelled
    `NO_LABEL` counts as zero."""
    summed = functional.cross_entropy(full_precision(logits), labels, ignore_index=NO_LABEL, reduction="sum")
    return summed / len(labels)


def relation_scores(first: Tensor, second: Tensor, relation_heads: int) -> Tensor:
    r"""Scaled dot products :math:`A_a B_a^\top / \sqrt{d_r}` of the tokens of two states (batch, tokens, hidden), by
    relation head: (batch, relation_heads, tokens, tokens), queries by keys. The heads' vectors are split anew into
    `relation_heads` of size d_r, so that teacher and student need neither as many heads nor the same hidden size
    (MiniLMv2, Wang et al. 2021, section 3.1). Raises ModelError where they do not divide it."""
    hidden = first.shape[-1]
    if hidden % relation_heads:
        divisor = "choose a divisor that teacher and student share"
        raise ModelError(f"{relation_heads} relation heads do not divide the hidden size {hidden}; {divisor}")
    first, second = (full_precision(x).unflatten(-1, (relation_heads, -1)).transpose(1, 2) for x in (first, second))
    return first @ second.mT / first.shape[-1] ** 0.5


def log_attention(scores: Tensor, attention_mask: Tensor) -> Tensor:
    """Logarithm of the softmax of scores (batch, heads, tokens, tokens) over the keys; padding gets (almost) -inf."""
    keys = attention_mask.bool()[:, None, None, :]
    return scores.masked_fill(~keys, torch.finfo(scores.dtype).min).log_softmax(-1)


def relation_divergence(teacher_scores: Tensor, student_scores: Tensor, attention_mask: Tensor) -> Tensor:
    """Mean KL(teacher || student) between the softmaxes over keys of scores (batch, relation_heads, tokens, tokens),
    over relation heads and real tokens, in nats (MiniLMv2, Wang et al. 2021, section 3.1)."""
    teacher_log, student_log = (log_attention(scores, attention_mask) for scores in (teacher_scores, student_scores))
    return attention_divergence(teacher_log, student_log, attention_mask)


def attention_divergence(teacher_log: Tensor, student_log: Tensor, attention_mask: Tensor) -> Tensor:
    """As `relation_divergence`, from logarithms of distributions over the keys, (batch, heads, tokens, tokens)."""
    real = attention_mask.bool()
    difference = (teacher_log - student_log).masked_fill(~real[:, None, None, :], 0.0)
    by_query = (teacher_log.exp() * difference).sum(-1).masked_fill(~real[:, None, :], 0.0)
    return by_query.sum() / (real.sum() * teacher_log.shape[1])


def attention_error(teacher_scores: Tensor, student_scores: Tensor, attention_mask: Tensor) -> Tensor:
    """Mean squared difference of scores (batch, heads, tokens, tokens) over heads and pairs of real tokens (TinyBERT,
    Jiao et al. 2020, equation 7)."""
    real = attention_mask.bool()
    pairs = (real[:, None, :] & real[:, :, None])[:, None]
    squared = (teacher_scores - student_scores).masked_fill(~pairs, 0.0).square().sum()
    return squared / (pairs.sum() * teacher_scores.shape[1])


def hidden_state_error(teacher: Tensor, student: Tensor, attention_mask: Tensor) -> Tensor:
    """Mean squared difference of states (batch, tokens, hidden) over real tokens and units (TinyBERT, eq. 8 and 9)."""
    real = attention_mask.bool()
    difference = full_precision(teacher) - full_precision(student)
    return difference.masked_fill(~real[..., None], 0.0).square().sum() / (real.sum() * teacher.shape[-1])


def cosine_distance(teacher: Tensor, student: Tensor, attention_mask: Tensor) -> Tensor:
    """1 - cosine between states (batch, tokens, hidden), mean over real tokens (Sanh et al. 2019, section 3)."""
    real = attention_mask.bool()
    distance = 1 - functional.cosine_similarity(full_precision(teacher), full_precision(student), dim=-1)
    return distance.masked_fill(~real, 0.0).sum() / real.sum()


def patience(teacher: Tensor, student: Tensor) -> Tensor:
    """Squared distance of normalized vectors (batch, hidden), mean over the batch (PKD, Sun et al. 2019, eq. 7)."""
    teacher, student = (functional.normalize(full_precision(vectors), dim=-1) for vectors in (teacher, student))
    return (teacher - student).square().sum(-1).mean()


def own_divergence(teacher: Tensor, student: Tensor, heads: int, mask: Tensor) -> Tensor:
    """`relation_divergence` of the relations of two states, (batch, tokens, hidden) each, with themselves."""
    return relation_divergence(relation_scores(teacher, teacher, heads), relation_scores(student, student, heads), mask)


def sample_divergence(teacher: Tensor, student: Tensor) -> Tensor:
    """Mean KL between the rows' similarity distributions within the batch, softmax(C C' / sqrt(d)) with one vector a
    row, (batch, hidden) (MLKD-BERT, Zhang et al. 2024); hidden sizes may differ."""
    return own_divergence(teacher[None], student[None], 1, torch.ones(1, len(teacher), device=teacher.device))


def contrastive_loss(teacher: Tensor, student: Tensor, labels: Tensor, temperature: float) -> Tensor:
    """Supervised InfoNCE over the 2b normalized vectors (batch, hidden) of teacher and student (MLKD-BERT): mean over i
    of -log(exp(z_i z_p / T) / sum of exp(z_i z_a / T) over the others a), mean over the p of i's label, if any."""
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
