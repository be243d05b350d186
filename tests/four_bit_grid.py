"""The 4-bit grid of ONNX Runtime's blocks, worked out with NumPy for the tests."""

import copy

import numpy as np
import torch
from torch import nn
from transformers import PreTrainedModel

BLOCK = 64


def grid_of_blocks(weights: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(integers (rows, width), scales (rows, blocks), zero points (rows, blocks)) of float32 weights (rows, width),
    whose blocks lie along the width: 16 numbers from the lowest weight to the highest, 0 among them."""
    scales, zero_points, integers = [], [], []
    for start in range(0, weights.shape[1], BLOCK):
        block = weights[:, start : start + BLOCK]
        low, high = np.minimum(block.min(1, keepdims=True), 0), np.maximum(block.max(1, keepdims=True), 0)
        scale = (high - low) / np.float32(15)
        zero_point = np.round(-low / scale)
        integers.append(np.clip(np.round(block / scale) + zero_point, 0, 15))
        scales.append(scale)
        zero_points.append(zero_point)
    return np.hstack(integers), np.hstack(scales), np.hstack(zero_points)


def rounded(weights: np.ndarray) -> np.ndarray:
    """What the integers stand for, float32 (rows, width)."""
    integers, scales, zero_points = (
        values if number == 0 else np.repeat(values, BLOCK, 1)[:, : weights.shape[1]]
        for number, values in enumerate(grid_of_blocks(weights))
    )
    return ((integers - zero_points) * scales).astype(np.float32)


def with_rounded_weights(model: PreTrainedModel, matrix_bits: int, embedding_bits: int) -> PreTrainedModel:
    """The float model with linear layers and a word embedding that are on the grid where they are to have 4 bits."""
    made = copy.deepcopy(model)
    word = made.get_input_embeddings()
    with torch.no_grad():
        for module in made.modules():
            bits = matrix_bits if isinstance(module, nn.Linear) else embedding_bits if module is word else 8
            if bits == 4:
                module.weight.copy_(torch.from_numpy(rounded(module.weight.numpy())))
    return made
