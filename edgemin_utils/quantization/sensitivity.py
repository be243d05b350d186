"""What each linear layer loses when it alone is quantized."""

from typing import Any

import numpy as np
import torch
from datasets import Dataset
from torch.nn import functional
from tqdm.auto import tqdm
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from edgemin_utils.quantization.fake import FORMATS, fake_quantization, linear_layers
from edgemin_utils.training import predict


def layer_sensitivity(
    model: PreTrainedModel, rows: Dataset, tokenizer: PreTrainedTokenizerBase, batch_size: int = 64
) -> dict[str, Any]:
    """Every linear layer quantized alone, under fake quantization, in every number format: rows and accuracy of the
    float model, and layers, a list of layer, format, accuracy, agreement (share of rows with the float model's answer)
    and divergence (KL of the answer probabilities from the float model's, in nats, mean over the rows)."""
    labels, whole = np.asarray(rows["labels"]), predict(model, rows, tokenizer, batch_size)
    reference = functional.log_softmax(torch.from_numpy(whole).double(), dim=1)
    found = []
    pairs = [(name, number_format) for number_format in FORMATS for name in linear_layers(model)]
    for name, number_format in tqdm(pairs, desc="Sensitivity", unit="layer", leave=False):
        with fake_quantization(model, number_format, [name]):
            logits = predict(model, rows, tokenizer, batch_size)
        other, answers = functional.log_softmax(torch.from_numpy(logits).double(), dim=1), logits.argmax(1)
        shares = {"accuracy": (answers == labels).mean(), "agreement": (answers == whole.argmax(1)).mean()}
        row = {"layer": name, "format": number_format, **{key: float(share) for key, share in shares.items()}}
        divergence = functional.kl_div(other, reference, reduction="batchmean", log_target=True)
        found.append({**row, "divergence": max(0.0, float(divergence))})  # never negative but for rounding
    return {"rows": len(rows), "accuracy": float((whole.argmax(1) == labels).mean()), "layers": found}
