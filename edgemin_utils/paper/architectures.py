"""The paper's models with random weights: teacher, student, and what pruning and quantization make of the student; the
model of `recipe=honest` too."""

import copy
import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import nn
from transformers import PreTrainedModel

from edgemin_utils.chain import RECIPES
from edgemin_utils.config import load_settings
from edgemin_utils.cuts import read_cut
from edgemin_utils.encoders import encoder_layers, scratch_model
from edgemin_utils.pruning import ModelCut, find_criterion, remove_units
from edgemin_utils.quantization import quantize
from edgemin_utils.setting_values import whole_share

LABELS = ("negative", "positive")
VOCABULARY, POSITIONS = 30522, 512
HEAD_RATIO = 0.2
HONEST_RECIPE = "honest"


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
        honest, honest_quantized: what `recipe=honest` makes of the student, before and after its last step.
    """

    teacher: PreTrainedModel
    student: PreTrainedModel
    pruned: PreTrainedModel
    fifth: PreTrainedModel
    quantized: PreTrainedModel
    pruned_quantized: PreTrainedModel
    embeddings_quantized: PreTrainedModel
    honest: PreTrainedModel
    honest_quantized: PreTrainedModel


def build_models(seed: int = 0) -> PaperModels:
    """All models, with weights drawn from `seed`; takes some seconds, most of them to export the honest one, and
    about 0.8 GB."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        teacher = scratch_model("distilbert", 6, 768, 12, 3072, VOCABULARY, LABELS, POSITIONS).eval()
        student = scratch_model("bert", 12, 384, 12, 1536, VOCABULARY, LABELS, POSITIONS).eval()
        pruned, fifth = without_heads(student, heads_of_ratio(student)), without_heads(student, nearest_fifth(student))
        honest = honest_form(student)
    return PaperModels(
        teacher,
        student,
        pruned,
        fifth,
        quantize(student, "dynamic-int8"),
        quantize(pruned, "dynamic-int8"),
        quantize(student, "dynamic-int8-embeddings"),
        honest,
        quantize(honest, RECIPES[HONEST_RECIPE][-1].partition(":")[2]),
    )


def heads_of_ratio(model: nn.Module, ratio: float = HEAD_RATIO) -> list[int]:
    """How many heads the paper takes from each layer: int(ratio x heads)."""
    return [whole_share(ratio, layer.num_heads) for layer in encoder_layers(model)]


def nearest_fifth(model: nn.Module, ratio: float = HEAD_RATIO) -> list[int]:
    """How many heads go from each layer so that their number is nearest to `ratio` of all, spread evenly."""
    heads = [layer.num_heads for layer in encoder_layers(model)]
    each, more = divmod(round(ratio * sum(heads)), len(heads))
    return [each + (layer < more) for layer in range(len(heads))]


def honest_form(student: nn.Module) -> nn.Module:
    """A copy with all the cuts of `recipe=honest`. Which neurons go does not matter to any cost, and the vocabulary is
    as large as the recipe lets it be: no text is looked at. Biases and norms, which begin alike, are drawn from torch's
    global generator: an exported graph stores equal vectors once, and trained ones are not equal."""
    cut, plain = ModelCut(copy.deepcopy(student)), load_settings("paper")
    for name in (step.removeprefix("prune:") for step in RECIPES[HONEST_RECIPE] if step.startswith("prune:")):
        settings = dataclasses.replace(plain, **read_cut(name))
        if settings.prune_vocabulary and settings.vocabulary_limit is not None:
            cut.cut_vocabulary(range(settings.vocabulary_limit))
        cut.cut_round(settings, lambda model, units: find_criterion("magnitude")(model, units=units))
    with torch.no_grad():
        for vector in (parameter for parameter in cut.model.parameters() if parameter.dim() == 1):
            vector.add_(0.02 * torch.randn_like(vector))
    return cut.model


def without_heads(model: nn.Module, counts: Sequence[int]) -> nn.Module:
    """A copy without the first `counts[layer]` heads of every layer; which ones does not matter to any cost."""
    cut = copy.deepcopy(model)
    remove_units(cut, [list(range(count)) for count in counts])
    return cut
