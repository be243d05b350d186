"""Why pruning and quantization interact on latency (C10): where the time of a forward goes, and what that predicts.

Two explanations are measured. Matrix products over a range of widths show whether a kernel's tiles go unfilled. And an
additive model: a forward's time is that of its matrix products, of attention and of the rest. Quantization shortens the
products alone. Attention is FP32 with and without it, so that the heads that are pruned take the same time from both, a
larger share of the shorter one.
"""

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional

from edgemin_utils.encoders import encoder_layers
from edgemin_utils.evaluation import predictor
from edgemin_utils.measurement.latency import LatencyResult, Protocol, fixed_inputs, measure_latency
from edgemin_utils.paper.architectures import PaperModels
from edgemin_utils.quantization import quantize
from edgemin_utils.statistics import functions_of_medians

PRODUCTS = ("query", "key", "value", "attention_output", "feed_forward_in", "feed_forward_out")
PRECISIONS, FORMS = ("fp32", "int8"), ("whole", "pruned")


# ---- the additive model -----------------------------------------------------------------------------------------


def time_parts(rows: int, models: PaperModels, threads: int, protocol: Protocol) -> LatencyResult:
    """Whole models, their products and their attention, all in the same rounds, on one row of `rows` tokens.

    The products of all layers run one after another, as in the model: one layer's weights, timed again and again, would
    stay in a cache where no model finds them. Variants: "model fp32 whole", "products int8 pruned", "attention pruned"
    and so on; attention, being FP32 in all models, has two.
    """
    of = {
        ("fp32", "whole"): models.student,
        ("fp32", "pruned"): models.pruned,
        ("int8", "whole"): models.quantized,
        ("int8", "pruned"): models.pruned_quantized,
    }
    inputs = fixed_inputs(1, rows, models.student.config.vocab_size)
    calls: dict[str, Callable[[Any], Any]] = {}
    for (precision, form), model in of.items():
        calls[f"model {precision} {form}"] = functools.partial(_call, predictor(model), inputs)
        calls[f"products {precision} {form}"] = _products(model, rows)
    calls |= {f"attention {form}": _attention(of["fp32", form], rows) for form in FORMS}
    return measure_latency(calls, [None], threads, protocol)


def additive_prediction(timed: LatencyResult, samples: int = 2000) -> dict[str, float | None]:
    r"""The interaction that the additive model predicts, with 95 % bootstrap intervals over the rounds of `time_parts`.

    With P the products, A attention and R the rest, a model's time is :math:`t_{q,p} = P_{q,p} + A_p + R_q`. R comes
    from the two unpruned models, :math:`R_q = t_{q,0} - P_{q,0} - A_0`; no pruned model's time is used.

    Returns:
        predicted, products_alone (attention as without pruning), attention_alone (products as without pruning),
        measured (of the models in the same rounds), each also with _low and _high.
    """
    found = functions_of_medians(
        [timed.of(name) for name in timed.names],
        lambda medians: _interactions(dict(zip(timed.names, medians, strict=True))),
        samples=samples,
    )
    names = ("predicted", "products_alone", "attention_alone", "measured")
    return {
        f"{name}{end}": value
        for name, item in zip(names, found, strict=True)
        for end, value in (("", item.value), ("_low", item.low), ("_high", item.high))
    }


def _interactions(ms: Mapping[str, float]) -> list[float]:
    """The four interactions of `additive_prediction` from the medians of `time_parts`."""
    rest = {precision: rest_of(ms, precision) for precision in PRECISIONS}

    def predicted(products: str, attention: str) -> float:
        pruned, whole = (
            {
                precision: ms[f"products {precision} {one}"] + ms[f"attention {other}"] + rest[precision]
                for precision in PRECISIONS
            }
            for one, other in ((products, attention), ("whole", "whole"))
        )
        return pruned["int8"] * whole["fp32"] / (pruned["fp32"] * whole["int8"])

    return [
        predicted("pruned", "pruned"),
        predicted("pruned", "whole"),
        predicted("whole", "pruned"),
        ms["model int8 pruned"] * ms["model fp32 whole"] / (ms["model fp32 pruned"] * ms["model int8 whole"]),
    ]


def rest_of(ms: Mapping[str, float], precision: str, form: str = "whole") -> float:
    """What neither products nor attention take of a model's time: norms, GELU, embeddings, the calls themselves."""
    return ms[f"model {precision} {form}"] - ms[f"products {precision} {form}"] - ms[f"attention {form}"]


def _call(predict: Callable[[Any], Any], inputs: Any, _: Any) -> Any:
    return predict(inputs)


def _products(model: nn.Module, rows: int) -> Callable[[Any], Any]:
    """A function that runs every matrix product of the encoder layers once, in the model's order."""
    modules = [getattr(layer, name) for layer in encoder_layers(model) for name in PRODUCTS]
    states = {size: torch.randn(1, rows, size) for size in {module.in_features for module in modules}}
    steps = [(module, states[module.in_features]) for module in modules]

    def run(_: Any) -> None:
        for module, given in steps:
            module(given)

    return run


def _attention(model: nn.Module, rows: int) -> Callable[[Any], Any]:
    """A function that runs the attention of every layer once, on queries, keys and values laid out as a model's are."""
    steps = [
        [torch.randn(1, rows, layer.num_heads, layer.head_size).transpose(1, 2) for _ in range(3)]
        for layer in encoder_layers(model)
    ]

    def run(_: Any) -> None:
        for query, key, value in steps:
            functional.scaled_dot_product_attention(query, key, value)

    return run


# ---- products over the width -------------------------------------------------------------------------------------


def time_products(
    rows: int, widths: Sequence[int], hidden_size: int, threads: int, protocol: Protocol
) -> list[dict[str, Any]]:
    """Times products of `rows` tokens over a range of widths, FP32 and dynamic INT8, in turns.

    Two directions: "into heads" is hidden size -> width, as query, key and value; "out of heads" is width -> hidden
    size, as the attention output. INT8 is torch's dynamic quantized linear layer, activations quantized in the call.
    """
    shapes = {("into heads", width): (hidden_size, width) for width in widths}
    shapes |= {("out of heads", width): (width, hidden_size) for width in widths}
    calls: dict[Any, Callable[[Any], Any]] = {}
    for key, (inputs, outputs) in shapes.items():
        layer, states = nn.Linear(inputs, outputs).eval(), torch.randn(1, rows, inputs)
        integer = quantize(nn.Sequential(layer), "dynamic-int8")
        calls[key, "fp32"] = functools.partial(_call, layer, states)
        calls[key, "int8"] = functools.partial(_call, integer, states)
    summary = measure_latency(calls, [None], threads, protocol).summary()
    return [
        {
            "direction": key[0],
            "width": key[1],
            "fp32_ms": summary[key, "fp32"]["median_ms"],
            "int8_ms": summary[key, "int8"]["median_ms"],
        }
        for key in shapes
    ]


def medians_ms(timed: LatencyResult) -> dict[str, float]:
    """Variant -> median milliseconds."""
    return {name: float(np.median(timed.of(name))) / 1e6 for name in timed.names}
