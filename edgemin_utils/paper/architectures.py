"""The paper's models with random weights: teacher, student, and what pruning and quantization make of the student."""

import copy
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import nn
from transformers import PreTrainedModel

from edgemin_utils.encoders import encoder_layers, scratch_model
from edgemin_utils.pruning import remove_units
from edgemin_utils.quantization import quantize

LABELS = ("negative", "positive")
VOCABULARY, POSITIONS = 30522, 512
HEAD_RATIO = 0.2


@dataclass(frozen=True)
class PaperModels:
    """The paper's models by name.

    Attributes:
        teacher: distilbert-base-uncased.
        student: microsoft/MiniLM-L12-H384-uncased.
        pruned: the student without int(0.2 x 12) = 2 heads in each layer, the paper's cut.
        fifth: the student without the number of heads that is nearest to 20 % of all.
        quantized, pruned_quantized: linear layers in dynamic INT8, the second being the paper's final model.
        embeddings_quantized: the student with its word embedding in 8 bits too.
    """

    teacher: PreTrainedModel
    student: PreTrainedModel
    pruned: nn.Module
    fifth: nn.Module
    quantized: nn.Module
    pruned_quantized: nn.Module
    embeddings_quantized: nn.Module


def build_models(seed: int = 0) -> PaperModels:
    """All models, with weights drawn from `seed`; takes some seconds and about 0.8 GB."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        teacher = scratch_model("distilbert", 6, 768, 12, 3072, VOCABULARY, LABELS, POSITIONS).eval()
        student = scratch_model("bert", 12, 384, 12, 1536, VOCABULARY, LABELS, POSITIONS).eval()
        pruned, fifth = without_heads(student, heads_of_ratio(student)), without_heads(student, nearest_fifth(student))
    return PaperModels(teacher, student, pruned, fifth, quantize(student, "dynamic-int8"),
                       quantize(pruned, "dynamic-int8"), quantize(student, "dynamic-int8-embeddings"))


def heads_of_ratio(model: nn.Module, ratio: float = HEAD_RATIO) -> list[int]:
    """How many heads the paper takes from each layer: int(ratio x heads)."""
    return [int(ratio * layer.num_heads) for layer in encoder_layers(model)]


def nearest_fifth(model: nn.Module, ratio: float = HEAD_RATIO) -> list[int]:
    """How many heads go from each layer so that their number is nearest to `ratio` of all, spread evenly."""
    heads = [layer.num_heads for layer in encoder_layers(model)]
    each, more = divmod(round(ratio * sum(heads)), len(heads))
    return [each + (layer < more) for layer in range(len(heads))]


def without_heads(model: nn.Module, counts: Sequence[int]) -> nn.Module:
    """A copy without the first `counts[layer]` heads of every layer; which ones does not matter to any cost."""
    cut = copy.deepcopy(model)
    remove_units(cut, [list(range(count)) for count in counts])
    return cut
