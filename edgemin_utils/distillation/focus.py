r"""Learning to focus (LeaF, Guo et al. 2025): tokens that mislead the student are hidden from it while it is distilled.

Stage one, *confounding* tokens: those that move the student's loss but not the teacher's. With g_i the norm of the
gradient of the loss by token i's embedding, brought to 0..1 within the row, they have the least
:math:`\Delta_i = \hat g^T_i - \hat g^S_i`. Stage two, *causal attention distillation*: one contiguous run A of them is
hidden, and to the loss of the whole row x comes that of what is left, where the teacher sees no more than the student:

.. math:: L_{soft}(x) + w T^2 \mathrm{KL}(p^T(x \setminus A) \| p^S(x \setminus A)).

Read: the official code (RUCBM/LeaF: gradients, choice of tokens, distillation) and a summary of the paper. From there:
a tenth of the row's tokens (5 % in mathematics, 10 % in code), never the special ones. Deviations: it classifies, where
LeaF generates; the attention mask hides tokens, so that the others keep their places; the student's gradients are the
batch's at hand, not of a student before distillation; a token counts only if :math:`\Delta_i < 0` (there: in the lower
half of the row's range); of several runs the one around the least :math:`\Delta_i` is hidden (there: each in a copy of
the row), and only where the teacher's answer stays (there: both are right). A step costs about four of `logits`."""

from dataclasses import replace

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from edgemin_utils.distillation.losses import soft_target_divergence
from edgemin_utils.distillation.objective import Objective
from edgemin_utils.distillation.teacher import Teacher, student_states, teacher_signals
from edgemin_utils.training import Batch, Phase

SHARE = 0.1  # of a row's tokens that may be confounding


class FocusedAnswers(Objective):
    """Soft targets and labels, and soft targets without the tokens that mislead the student, for all epochs."""

    def phases(self, teacher: Teacher, student: PreTrainedModel) -> list[Phase]:
        signals = teacher.signals(names := ["logits", "gradient"])

        def loss(model: nn.Module, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
            own, theirs, mask = student_states(model, batch, names), signals(batch), batch["attention_mask"]
            fewer = mask.masked_fill(confounding_run(theirs["gradient"], own["gradient"], batch["input_ids"], mask), 0)
            left = {**batch, "attention_mask": fewer}
            wanted = teacher_signals(teacher.model.to(mask.device), left, ["logits"])["logits"]
            same = (wanted.argmax(-1) == theirs["logits"].argmax(-1))[:, None]
            left["attention_mask"] = fewer.where(same, mask)
            given = student_states(model, left, ["logits"])["logits"]
            answers, parts = self.answers(own, theirs, batch)
            focus = soft_target_divergence(wanted.where(same, theirs["logits"]), given, self.settings.temperature)
            return answers + self.settings.intermediate_weight * focus, {**parts, "focus": focus}

        return [replace(self.phase("soft targets and focus", teacher, self.answers, names), loss=loss)]


def confounding_run(teacher: Tensor, student: Tensor, ids: Tensor, attention_mask: Tensor) -> Tensor:
    """Which tokens (batch, tokens) are hidden, from gradient norms (batch, tokens, 1) of both models and token ids.
    The first token stays, and so does every one like the row's last, which ends texts."""
    ends = ids == ids.gather(1, attention_mask.sum(1, keepdim=True) - 1)
    free = attention_mask.bool() & ~ends & (torch.arange(ids.shape[1], device=ids.device) > 0)
    norms = torch.stack([teacher, student]).squeeze(-1)
    norms = norms - norms.masked_fill(~free, torch.inf).amin(-1, keepdim=True)
    most = norms.masked_fill(~free, -torch.inf).amax(-1, keepdim=True)
    difference = torch.sub(*(norms / most.clamp_min(torch.finfo(norms.dtype).tiny))).masked_fill(~free, torch.inf)
    at = (free.sum(1, keepdim=True) * SHARE).long()
    chosen = free & (difference <= difference.sort(1).values.gather(1, at)) & (difference < 0)
    breaks = (~chosen).cumsum(1)
    return chosen & (breaks == breaks.gather(1, difference.argmin(1, keepdim=True)))
