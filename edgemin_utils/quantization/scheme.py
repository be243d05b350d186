"""What a quantization scheme is."""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import PretrainedConfig


class Scheme(ABC):
    """A way of quantizing a classifier; one subclass a method, one instance a line of `registry.SCHEMES`.

    What it makes is called like the float model and can be saved and loaded; it is never trained.

    Attributes:
        arithmetic: what its layers compute with, for the record.
        calibrated: whether it looks at training rows.
        needs: packages that it imports when it is used.
    """

    arithmetic = ""
    calibrated = False
    needs: tuple[str, ...] = ()

    @property
    def source(self) -> str:
        """Where the method comes from, for the record."""
        return ""

    @abstractmethod
    def quantize(self, model: nn.Module, rows: Sequence[Mapping[str, torch.Tensor]]) -> nn.Module:
        """The quantized form of a model.

        Args:
            model: a float classifier on the CPU in evaluation mode, the scheme's own to change.
            rows: what a calibrated scheme takes its ranges from: inputs of one training row each, tensors of shape
                (1, tokens).

        Raises:
            MethodRefused: the method does not work for this model, on this machine or with these versions.
        """

    @abstractmethod
    def save(self, quantized: nn.Module, folder: Path) -> None:
        """Writes the weights into `folder`, without pickle. config.json and the tokenizer are written beside."""

    @abstractmethod
    def load(
        self, folder: Path, config: PretrainedConfig, shapes: Mapping[str, Sequence[int]], attention_implementation: str
    ) -> nn.Module:
        """What `save` wrote.

        Args:
            config, shapes: what config.json says of the model, as `encoders.model_from_shapes` takes it.

        Raises:
            Exception: of any kind, where the weights are damaged; `load_model` makes one sentence of it.
        """

    def describe(self, quantized: nn.Module) -> dict[str, Any]:
        """What a record says of the method and of this model: source, arithmetic, and what else is worth knowing."""
        return {"source": self.source, "arithmetic": self.arithmetic}
