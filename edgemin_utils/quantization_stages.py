"""The quantization stages: a model in small integers, and what each of its layers would lose alone."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from torch import nn
from torch.nn import functional
from tqdm.auto import tqdm
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from edgemin_utils import quantization
from edgemin_utils.chain import sensitivity_key
from edgemin_utils.evaluation import (
    OPERATION_LENGTHS,
    TokenizedTask,
    describe_trained,
    load_stage_model,
    predictor,
    read_predictions,
    tokenized_task,
)
from edgemin_utils.measurement.latency import PROTOCOLS, fixed_inputs, measure_latency
from edgemin_utils.records import Record, Run
from edgemin_utils.training import batches, model_inputs, predict


def quantize_model(run: Run, key: str) -> Record:
    """Stage `quantization/<source>+<scheme>`.

    Results: data, metrics, confusion, size, operations, model, scheme, method (source, arithmetic, and of an ONNX graph
    its operators and what was fused), layers (what is quantized and its bytes), calibration_rows (of a calibrated
    scheme), size_before, agreement (share of predictions equal to the source's), quick_latency (a quick look, one
    thread, of `fp32`, the source in PyTorch, and `quantized`).
    """
    return run.run_stage(key, lambda folder: _quantize_model(run, key, folder))


def _quantize_model(run: Run, key: str, folder: Path) -> dict[str, Any]:
    settings, source = run.settings_of(key), run.stage(key).source
    tokenizer, model = load_stage_model(run, source)
    rows = tokenized_task(run, tokenizer, [model])
    name = settings.quantization_scheme
    scheme = quantization.find_scheme(name)
    calibration = _single_rows(model, rows, settings.calibration_rows) if scheme.calibrated else []
    quantization.save_quantized(quantization.quantize(model, name, calibration), folder, name, tokenizer)
    # What is looked at is what lies on disk.
    quantized = quantization.load_model(folder)
    # One row at a time, as it is timed: dynamic quantization takes one scale for all rows of a batch.
    results = describe_trained(quantized, folder, rows, 1, None)
    agreement = {}
    for split in rows.dev:
        old, new = (read_predictions(place, split)["prediction"] for place in (run.stage_folder(source), folder))
        agreement[split] = float((old.to_numpy() == new.to_numpy()).mean())
    return {
        **results,
        "scheme": name,
        "method": scheme.describe(quantized),
        "layers": quantization.layer_table(model, quantized),
        **({"calibration_rows": len(calibration)} if scheme.calibrated else {}),
        "size_before": run.read(source).results["size"],
        "agreement": agreement,
        "quick_latency": _quick_look({"fp32": model, "quantized": quantized}),
    }


def _single_rows(model: nn.Module, rows: TokenizedTask, count: int) -> list[dict[str, torch.Tensor]]:
    """The inputs of the first `count` train rows, one by one."""
    chosen = rows.train.select(range(min(count, len(rows.train))))
    return [model_inputs(model, batch) for _, batch in batches(chosen, rows.tokenizer, 1)]


def _quick_look(models: Mapping[str, PreTrainedModel]) -> list[dict[str, Any]]:
    """Median times on fixed inputs at batch 1 on one thread: a look, marked as such, not a result."""
    rows = []
    for length in OPERATION_LENGTHS:
        inputs = fixed_inputs(1, length, next(iter(models.values())).config.vocab_size)
        timed = measure_latency(
            {name: predictor(model) for name, model in models.items()}, [inputs], 1, PROTOCOLS["quick"]
        )
        rows += [{"model": name, "input": f"1x{length}", **numbers} for name, numbers in timed.summary().items()]
    return rows


# ---- sensitivity -----------------------------------------------------------------------------------------------


def measure_sensitivity(run: Run) -> Record:
    """Stage `quantization/<pruned student>+layer-sensitivity`: one linear layer quantized at a time, all others FP32.

    Results: rows, split, accuracy (of the float model on them), layers (see `layer_sensitivity`).
    """
    key = sensitivity_key(run.settings)
    return run.run_stage(key, lambda folder: _measure_sensitivity(run, key))


def _measure_sensitivity(run: Run, key: str) -> dict[str, Any]:
    settings = run.settings_of(key)
    tokenizer, model = load_stage_model(run, run.stage(key).source)
    rows = tokenized_task(run, tokenizer, [model])
    held_out, split = (rows.holdout, "hold-out") if len(rows.holdout) else (rows.train, "train")
    held_out = held_out.select(range(min(settings.sensitivity_rows, len(held_out))))
    return {
        "rows": len(held_out),
        "split": split,
        **layer_sensitivity(model, held_out, tokenizer, settings.evaluation_batch_size),
    }


def layer_sensitivity(
    model: nn.Module, rows: Dataset, tokenizer: PreTrainedTokenizerBase, batch_size: int
) -> dict[str, Any]:
    """What each linear layer loses when it alone is quantized, under fake quantization.

    Returns:
        accuracy: of the float model.
        layers: rows of layer, format ("int8": weights and inputs, "int4": weights), accuracy, agreement (share of rows
            with the float model's answer) and divergence (KL of the answer probabilities from the float model's, in
            nats, mean over the rows).
    """
    labels, float_logits = np.asarray(rows["labels"]), predict(model, rows, tokenizer, batch_size)
    found = []
    settings = [
        (name, number_format) for number_format in quantization.FORMATS for name in quantization.linear_layers(model)
    ]
    for name, number_format in tqdm(settings, desc="Sensitivity", unit="layer", leave=False):
        with quantization.fake_quantization(model, number_format, [name]):
            logits = predict(model, rows, tokenizer, batch_size)
        found.append(
            {
                "layer": name,
                "format": number_format,
                "accuracy": _share(logits.argmax(axis=1) == labels),
                "agreement": _share(logits.argmax(axis=1) == float_logits.argmax(axis=1)),
                "divergence": _divergence(float_logits, logits),
            }
        )
    return {"accuracy": _share(float_logits.argmax(axis=1) == labels), "layers": found}


def _share(hits: np.ndarray) -> float:
    return float(hits.mean())


def _divergence(reference: np.ndarray, other: np.ndarray) -> float:
    first, second = (functional.log_softmax(torch.from_numpy(logits).double(), dim=1) for logits in (reference, other))
    # Never negative but for rounding.
    return max(0.0, float((first.exp() * (first - second)).sum(dim=1).mean()))
