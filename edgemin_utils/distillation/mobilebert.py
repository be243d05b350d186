r"""MobileBERT (Sun et al. 2020): a student as deep and as wide between layers as its teacher, but thin within them.

Within a layer a bottleneck leads from the hidden size to a quarter of it, where attention and four feed-forward blocks
work, and back; the word embedding is a quarter as wide, and a token is read with both neighbours; scale and shift stand
in place of norms, relu in place of gelu (section 3). It learns layer by layer from the bottom (*progressive knowledge
transfer*): for l = 1, 2, ... in turn, everything below held still, over T tokens, N units and A heads

.. math:: L_l = \frac{1}{T N} \sum_{t, n} (H^T_{l,t,n} - H^S_{l,t,n})^2
    + \frac{1}{T A} \sum_{t, a} \mathrm{KL}(A^T_{l,t,a} \| A^S_{l,t,a});

then the answers. Read: summaries of the paper and the model's code in transformers. Deviations: there the teacher is a
BERT made for it (inverted bottlenecks, as wide between layers) and both learn from general text; here it is the task's
own, the student starts from random weights, and the embeddings are trained with the first layer."""

from dataclasses import replace
from functools import partial
from typing import cast

from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForSequenceClassification, PreTrainedModel

from edgemin_utils.distillation import losses
from edgemin_utils.distillation.layers import StackedLayers
from edgemin_utils.distillation.teacher import Teacher
from edgemin_utils.encoders import encoder_layers, longest_input, set_dropout, set_labels
from edgemin_utils.errors import MethodRefused
from edgemin_utils.training import Batch, LossFunction, Phase

THINNER, FEED_FORWARDS = 4, 4  # hidden size over that within a layer; feed-forward blocks of a layer


def bottleneck_student(teacher: PreTrainedModel, dropout: float) -> PreTrainedModel:
    """An untrained MobileBERT of the teacher's layers, heads, hidden size, vocabulary, positions and labels, drawn from
    torch's generator. Raises MethodRefused where a quarter of the hidden size is no multiple of the heads."""
    config = teacher.config
    inner, heads = config.hidden_size // THINNER, config.num_attention_heads
    if inner * THINNER != config.hidden_size or inner % heads:
        raise MethodRefused(f"{heads} heads do not divide a quarter of the hidden size {config.hidden_size}")
    sizes = {"intra_bottleneck_size": inner, "embedding_size": inner, "intermediate_size": THINNER * inner}
    sizes |= {"hidden_size": config.hidden_size, "num_hidden_layers": len(encoder_layers(teacher))}
    sizes |= {"num_attention_heads": heads, "num_feedforward_networks": FEED_FORWARDS}
    sizes |= {"vocab_size": config.vocab_size, "max_position_embeddings": longest_input(teacher)}
    made = AutoConfig.for_model("mobilebert", pad_token_id=config.pad_token_id, **sizes)
    set_labels(made, [*config.id2label.values()])
    student = AutoModelForSequenceClassification.from_config(made)
    set_dropout(student, dropout)
    return student


class BottleneckLayers(StackedLayers):
    """Hidden states and attention of one layer after the other, then soft targets."""

    state, what, phase_name, all_so_far = "hidden", "hidden states", "layer {}", False

    def distance(self, wanted: Tensor, given: Tensor, attention_mask: Tensor) -> Tensor:
        return losses.hidden_state_error(wanted, given, attention_mask)

    def phases(self, teacher: Teacher, student: PreTrainedModel) -> list[Phase]:
        first, *others, answers = super().phases(teacher, student)  # the embeddings are trained with the first layer
        numbered = enumerate(others, start=1)
        return [first, *(replace(one, loss=partial(_above, number, one.loss)) for number, one in numbered), answers]


def _above(number: int, loss: LossFunction, model: nn.Module, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
    """A loss whose gradient ends where layer `number` (from 0) of the model begins: what is below holds still."""
    layer = encoder_layers(cast(PreTrainedModel, model))[number].module
    with layer.register_forward_pre_hook(lambda _module, given: (given[0].detach(), *given[1:])):
        return loss(model, batch)
