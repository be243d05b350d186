"""A classifier from a folder, a bundle or a hub id, seen as one kind of thing to be measured."""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch

from edgemin_utils.encoders import input_names, longest_input
from edgemin_utils.errors import ModelError
from edgemin_utils.measurement.operations import Product, describe_costs, products_of, size_of
from edgemin_utils.measurement.peers import OpenVinoModel
from edgemin_utils.quantization.schemes import load_model


class TorchModel:
    """A classifier of torch modules, or a stage's or bundle's graph, called as when evaluated. `longest`: in tokens."""

    def __init__(self, source: str | Path):
        self.model, self.folder = load_model(source), Path(source).expanduser()
        self.names = input_names(self.model)
        self.vocabulary_size: int = self.model.config.vocab_size
        self.longest: int = longest_input(self.model)

    def predict(self, batch: Mapping[str, torch.Tensor]) -> Any:
        """Logits (batch, labels) of int64 (batch, tokens), with torch's present threads."""
        return self.model(**{name: batch[name] for name in self.names if name in batch}).logits

    def describe(self, lengths: Iterable[int]) -> dict[str, Any]:
        """As `describe_costs`."""
        return describe_costs(self.model, lengths, self.folder if self.folder.is_dir() else None)

    def work(self, length: int) -> tuple[list[Product], int]:
        """The products of a forward of one row, and the bytes of weights that it reads, without tables."""
        if getattr(self.model, "dtype", None) == torch.bfloat16:  # the bound is of products in FP32 and INT8
            return [], 0
        parts = size_of(self.model)["bytes_per_part"]
        return products_of(self.model, 1, length), sum(parts.values()) - parts["embeddings"]


def open_model(source: str | Path) -> TorchModel | OpenVinoModel:
    """That of a folder, a bundle, a hub id or OpenVINO's .xml file. Raises ModelError where none can be measured."""
    if (path := Path(source).expanduser()).suffix == ".xml":
        return OpenVinoModel(path)
    if path.is_file() or ((path / "bundle.json").is_file() and not (path / "config.json").is_file()):
        raise ModelError(f"{source} says nothing of its model; give a folder with config.json, or make the bundle anew")
    return TorchModel(source)
