"""What follows from the shapes of the paper's models alone: parameters, files, operations; the paper's way and ours."""

import io
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch
from torch import nn

from edgemin_utils.encoders import encoder_layers
from edgemin_utils.measurement.operations import closed_formula_macs
from edgemin_utils.measurement.parameters import (
    framework_parameters,
    mebibytes,
    megabytes,
    part_of,
    stored_weights,
    weights_by_part,
)
from edgemin_utils.paper.architectures import HEAD_RATIO, PaperModels, heads_of_ratio, nearest_fifth

LENGTHS = (8, 16, 32, 64, 128, 256, 512)


@dataclass(frozen=True)
class Count:
    """One number of the paper.

    Attributes:
        quantity: what is counted.
        claimed: as the paper prints it.
        counted: the paper's way, to the digits that it printed; "" where no way gives its number.
        way: how that was counted.
        honest: our count.
        honest_way: how ours was counted.
        honest_digits: ours to the digits that the paper printed.
        function: what computed both.
    """

    quantity: str
    claimed: str
    counted: str
    way: str
    honest: str
    honest_way: str
    honest_digits: str
    function: str

    @property
    def reproduced(self) -> bool:
        """Whether the paper's way gives the paper's digits."""
        return self.counted == self.claimed

    @property
    def true(self) -> bool:
        """Whether the honest count gives the paper's digits."""
        return self.honest_digits == self.claimed

    def as_record(self) -> dict[str, Any]:
        """Its fields by name, in JSON's types."""
        return asdict(self)


def every_count(models: PaperModels) -> dict[str, Count]:
    """Name -> count, of every number that needs no clock."""
    functions = (
        teacher_parameters,
        student_parameters,
        final_parameters,
        parameter_ratio,
        student_file,
        quantized_file,
        final_file,
        file_ratio,
        smallest_file,
        removed_heads,
        operation_ratio,
        feed_forward_weights,
    )
    return {function.__name__: function(models) for function in functions}


# ---- parameters -------------------------------------------------------------------------------------------------


def teacher_parameters(models: PaperModels) -> Count:
    """66.96M parameters of the teacher."""
    return _parameters("Teacher's parameters", "66.96M", models.teacher, "teacher_parameters")


def student_parameters(models: PaperModels) -> Count:
    """33.36M parameters of the student."""
    return _parameters("Student's parameters", "33.36M", models.student, "student_parameters")


def final_parameters(models: PaperModels) -> Count:
    """11.94M parameters of the pruned, quantized student."""
    return _parameters(
        "Final model's parameters",
        "11.94M",
        models.pruned_quantized,
        "final_parameters",
        "model.parameters() after quantize_dynamic: embeddings and layer norms alone; INT8 weights are "
        "in packed buffers",
    )


def parameter_ratio(models: PaperModels) -> Count:
    """2.8 times fewer parameters than the student."""
    listed = framework_parameters(models.student) / framework_parameters(models.pruned_quantized)
    stored = stored_weights(models.student) / stored_weights(models.pruned_quantized)
    return Count(
        "Fewer parameters than the student",
        "2.8x",
        f"{listed:.1f}x",
        "listed before / listed after",
        f"{stored:.2f}x",
        "stored before / stored after",
        f"{stored:.1f}x",
        "parameter_ratio",
    )


def listed_after_quantization(models: PaperModels) -> dict[str, int]:
    """What 11.94M is made of: name of a table, or "layer norms" -> weights that are still listed."""
    shown: dict[str, int] = {}
    for name, parameter in models.pruned_quantized.named_parameters():
        part = "layer norms" if "norm" in name.lower() else name.rsplit(".", 2)[-2].replace("_", " ")
        shown[part] = shown.get(part, 0) + parameter.numel()
    return shown


def weights_of_parts(models: PaperModels) -> dict[str, dict[str, int]]:
    """Model -> part -> weights stored, for the picture of where 11.94M comes from."""
    return {"student": weights_by_part(models.student), "final": weights_by_part(models.pruned_quantized)}


def _parameters(quantity: str, claimed: str, model: nn.Module, function: str, way: str = "model.parameters()") -> Count:
    return Count(
        quantity,
        claimed,
        f"{framework_parameters(model) / 1e6:.2f}M",
        way,
        f"{stored_weights(model):,}",
        "all weights, wherever they are stored",
        f"{stored_weights(model) / 1e6:.2f}M",
        function,
    )


# ---- files ------------------------------------------------------------------------------------------------------


def student_file(models: PaperModels) -> Count:
    """127 MB for the student."""
    return _file("Student's file", "127 MB", 0, models.student, "student_file")


def quantized_file(models: PaperModels) -> Count:
    """66 MB for the quantized student."""
    return _file("Quantized student's file", "66 MB", 0, models.quantized, "quantized_file")


def final_file(models: PaperModels) -> Count:
    """65.09 MB for the pruned, quantized student."""
    return _file("Final model's file", "65.09 MB", 2, models.pruned_quantized, "final_file")


def smallest_file(models: PaperModels) -> Count:
    """33 MB, which the proposal names: the word embedding in 8 bits too."""
    ratio = pickled_bytes(models.teacher) / pickled_bytes(models.embeddings_quantized)
    count = _file("File with 8-bit embeddings too", "33 MB", 0, models.embeddings_quantized, "smallest_file")
    return replace(count, honest_way=f"{ratio:.1f}x under the teacher's file")


def file_ratio(models: PaperModels) -> Count:
    """1.96 times smaller than the student's file."""
    student, final = pickled_bytes(models.student), pickled_bytes(models.pruned_quantized)
    teacher = pickled_bytes(models.teacher)
    return Count(
        "Smaller than the student",
        "1.96x",
        f"{student / final:.2f}x",
        "student's file / final file",
        f"{student / final:.2f}x",
        f"the same; over the teacher's file it is {teacher / final:.2f}x",
        f"{student / final:.2f}x",
        "file_ratio",
    )


def pickled_bytes(model: nn.Module) -> int:
    """Bytes that `torch.save(model)` writes: the whole module, as the paper saved it."""
    buffer = io.BytesIO()
    torch.save(model, buffer)
    return buffer.tell()


def _file(quantity: str, claimed: str, digits: int, model: nn.Module, function: str) -> Count:
    size = pickled_bytes(model)
    return Count(
        quantity,
        claimed,
        f"{mebibytes(size):.{digits}f} MB",
        "torch.save(model), in MiB (2^20 bytes)",
        f"{megabytes(size):.2f} MB",
        "the same file, in MB (10^6 bytes)",
        f"{megabytes(size):.{digits}f} MB",
        function,
    )


# ---- heads and operations ----------------------------------------------------------------------------------------


def removed_heads(models: PaperModels) -> Count:
    """20 % of the attention heads removed."""
    heads = sum(layer.num_heads for layer in encoder_layers(models.student))
    asked, cut, near = HEAD_RATIO, sum(heads_of_ratio(models.student)), sum(nearest_fifth(models.student))
    left = sum(layer.num_heads for layer in encoder_layers(models.pruned))
    return Count(
        "Attention heads removed",
        "20 %",
        f"{100 * asked:.0f} %",
        f"the ratio asked for; int({asked:g} x 12) = 2 heads in each of 12 layers",
        f"{100 * (heads - left) / heads:.1f} %",
        f"{cut} of {heads} heads are gone; 20 % would be {asked * heads:.1f}, the nearest whole number {near} "
        f"is {100 * near / heads:.1f} %",
        f"{100 * (heads - left) / heads:.0f} %",
        "removed_heads",
    )


def operation_ratio(models: PaperModels) -> Count:
    """2.6 times fewer FLOPs than the teacher."""
    ratios = ratios_over_length(models)
    return Count(
        "Fewer FLOPs than the teacher",
        "2.6x",
        "",
        "no counting found that gives it; called an estimate",
        f"{ratios[128]:.2f}x",
        f"MACs of teacher / final model at 1x128; {min(ratios.values()):.2f}x to {max(ratios.values()):.2f}x from "
        f"{min(ratios)} to {max(ratios)} tokens, and quantization removes none",
        f"{ratios[128]:.1f}x",
        "operation_ratio",
    )


def ratios_over_length(models: PaperModels) -> dict[int, float]:
    """Tokens -> MACs of the teacher over those of the final model, at batch 1."""
    return {
        length: closed_formula_macs(models.teacher, 1, length) / closed_formula_macs(models.pruned_quantized, 1, length)
        for length in LENGTHS
    }


def largest_operation_ratio(models: PaperModels) -> float:
    """What the ratio of the encoders' operations cannot exceed at any length: that of the products with their weights.
    The attention products, which have none, are as many in the student as in the teacher, and pull it down."""
    teacher, final = (sum(layer_products(model)) for model in (models.teacher, models.pruned_quantized))
    return teacher / final


def layer_products(model: nn.Module) -> list[int]:
    """MACs of each encoder layer's weight products for one token."""
    names = ("query", "key", "value", "attention_output", "feed_forward_in", "feed_forward_out")
    return [
        sum(getattr(layer, name).in_features * getattr(layer, name).out_features for name in names)
        for layer in encoder_layers(model)
    ]


def feed_forward_weights(models: PaperModels) -> Count:
    """No feed-forward weights left after quantization."""
    before, after = (weights_by_part(model)["feed_forward"] for model in (models.student, models.quantized))
    listed = sum(
        parameter.numel() for name, parameter in models.quantized.named_parameters() if part_of(name) == "feed_forward"
    )
    return Count(
        "Feed-forward weights left after quantization",
        "0",
        f"{listed:,}",
        "what model.parameters() lists of them",
        f"{after:,} of {before:,}",
        "stored in packed INT8 buffers",
        f"{after:,}",
        "feed_forward_weights",
    )
