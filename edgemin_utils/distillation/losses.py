"""The losses that objectives are made of; each gives a scalar, in float32 at least. `attention_mask` is (batch,
tokens), 1 for real tokens: padding takes no part, neither as a key nor as a query."""

import torch
from torch import Tensor
from torch.nn import functional

from edgemin_utils.errors import ModelError
from edgemin_utils.rows.tables import NO_LABEL


def full_precision(states: Tensor) -> Tensor:
    """The tensor, of any shape, in float32, or in float64 if it is."""
    return states if states.dtype == torch.float64 else states.float()


def mean_over(kept: Tensor, values: Tensor) -> Tensor:
    """Mean of the values where `kept`, whose shape is broadcast to theirs, is True."""
    return values.masked_fill(~kept, 0.0).sum() / kept.expand_as(values).sum()


def soft_target_divergence(teacher_logits: Tensor, student_logits: Tensor, temperature: float) -> Tensor:
    """T² KL(softmax(teacher / T) || softmax(student / T)), mean over logits (batch, labels) (Hinton et al. 2015)."""
    teacher_log = (full_precision(teacher_logits) / temperature).log_softmax(-1)
    student_log = (full_precision(student_logits) / temperature).log_softmax(-1)
    return temperature**2 * functional.kl_div(student_log, teacher_log, log_target=True, reduction="batchmean")


def label_divergence(logits: Tensor, labels: Tensor) -> Tensor:
    """Cross-entropy of logits (batch, labels) with labels (batch,), mean over all rows; a row of `NO_LABEL` adds 0."""
    summed = functional.cross_entropy(full_precision(logits), labels, ignore_index=NO_LABEL, reduction="sum")
    return summed / len(labels)


def relation_scores(first: Tensor, second: Tensor, relation_heads: int) -> Tensor:
    r"""Dot products :math:`A_a B_a^\top / \sqrt{d_r}` of the tokens of two states (batch, tokens, hidden), split anew
    into heads of size d_r: (batch, relation_heads, tokens, tokens); raises ModelError if these do not divide hidden."""
    if (hidden := first.shape[-1]) % relation_heads:
        raise ModelError(f"{relation_heads} relation heads do not divide the hidden size {hidden}; choose a divisor")
    first, second = (full_precision(x).unflatten(-1, (relation_heads, -1)).transpose(1, 2) for x in (first, second))
    return first @ second.mT / first.shape[-1] ** 0.5


def log_attention(scores: Tensor, attention_mask: Tensor) -> Tensor:
    """Logarithm of the softmax of scores (batch, heads, tokens, tokens) over the keys; padding gets (almost) -inf."""
    return scores.masked_fill(~attention_mask.bool()[:, None, None], torch.finfo(scores.dtype).min).log_softmax(-1)


def relation_divergence(teacher_scores: Tensor, student_scores: Tensor, attention_mask: Tensor) -> Tensor:
    """Mean KL of softmaxes over keys, of scores (batch, heads, tokens, tokens), in nats (MiniLMv2, section 3.1)."""
    teacher_log, student_log = (log_attention(scores, attention_mask) for scores in (teacher_scores, student_scores))
    return attention_divergence(teacher_log, student_log, attention_mask)


def attention_divergence(teacher_log: Tensor, student_log: Tensor, attention_mask: Tensor) -> Tensor:
    """As `relation_divergence`, from logarithms of distributions over the keys, (batch, heads, tokens, tokens)."""
    real = attention_mask.bool()[:, None]
    difference = (teacher_log - student_log).masked_fill(~real[:, :, None], 0.0)
    return mean_over(real, (teacher_log.exp() * difference).sum(-1))


def attention_error(teacher_scores: Tensor, student_scores: Tensor, attention_mask: Tensor) -> Tensor:
    """Mean squared error of real tokens' scores (batch, heads, tokens, tokens) (TinyBERT, Jiao et al. 2020, eq. 7)."""
    real = attention_mask.bool()[:, None]
    return mean_over(real[..., None, :] & real[..., None], (teacher_scores - student_scores).square())


def hidden_state_error(teacher: Tensor, student: Tensor, attention_mask: Tensor) -> Tensor:
    """Mean squared difference of states (batch, tokens, hidden) over real tokens and units (TinyBERT, eq. 8 and 9)."""
    return mean_over(attention_mask.bool()[..., None], (full_precision(teacher) - full_precision(student)).square())


def cosine_distance(teacher: Tensor, student: Tensor, attention_mask: Tensor) -> Tensor:
    """1 - cosine between states (batch, ..., hidden), mean over real tokens or rows (Sanh et al. 2019, section 3)."""
    distance = 1 - functional.cosine_similarity(full_precision(teacher), full_precision(student), dim=-1)
    return mean_over(attention_mask.bool(), distance)


def patience(teacher: Tensor, student: Tensor) -> Tensor:
    """Squared distance of normalized vectors (batch, hidden), mean over the batch (PKD, Sun et al. 2019, eq. 7)."""
    teacher, student = (functional.normalize(full_precision(vectors), dim=-1) for vectors in (teacher, student))
    return (teacher - student).square().sum(-1).mean()


def own_divergence(teacher: Tensor, student: Tensor, heads: int, mask: Tensor) -> Tensor:
    """`relation_divergence` of the relations of two states, (batch, tokens, hidden) each, with themselves."""
    return relation_divergence(relation_scores(teacher, teacher, heads), relation_scores(student, student, heads), mask)


def sample_divergence(teacher: Tensor, student: Tensor) -> Tensor:
    """Mean KL of the rows' similarities softmax(C C' / sqrt(d)), C (batch, any size) (MLKD-BERT, Zhang et al. 2024)."""
    return own_divergence(teacher[None], student[None], 1, torch.ones(1, len(teacher), device=teacher.device))


def contrastive_loss(teacher: Tensor, student: Tensor, labels: Tensor, temperature: float = 0.1) -> Tensor:
    """Supervised InfoNCE over the 2b normalized vectors (batch, hidden) of teacher and student (MLKD-BERT): mean over i
    of -log(exp(z_i z_p / T) / sum of exp(z_i z_a / T) over the others a), mean over the p of i's label, if any."""
    known = labels != NO_LABEL
    vectors = functional.normalize(torch.cat([full_precision(states)[known] for states in (teacher, student)]), dim=-1)
    if not len(vectors):
        return full_precision(student).sum() * 0
    labels = labels[known].repeat(2)
    itself = torch.eye(len(labels), dtype=torch.bool, device=labels.device)
    log_share = (vectors @ vectors.T / temperature).masked_fill(itself, torch.finfo(vectors.dtype).min).log_softmax(-1)
    positive = (labels[:, None] == labels[None]) & ~itself
    return -(log_share.masked_fill(~positive, 0.0).sum(-1) / positive.sum(-1)).mean()
