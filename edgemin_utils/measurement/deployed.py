"""A classifier as it is deployed without torch: an .onnx file and a tokenizer. Imports just what that needs, so that a
fresh process in which its memory is measured holds nothing else."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import tokenizers

from edgemin_utils.errors import ModelError
from edgemin_utils.measurement.onnx_session import load_with_process_threads


class DeployedClassifier:
    """The one .onnx file of a folder and the tokenizer.json beside it; a loader of `memory.peak_memory`.

    Raises:
        ModelError: one of the two is missing or damaged, or there are several .onnx files.
    """

    def __init__(self, folder: str):
        graphs, path = sorted(Path(folder).glob("*.onnx")), Path(folder) / "tokenizer.json"
        if len(graphs) != 1 or not path.is_file():
            raise ModelError(
                f"{folder} must hold one .onnx file and a tokenizer.json beside it; it has {len(graphs)} "
                f".onnx files and {'a' if path.is_file() else 'no'} tokenizer.json"
            )
        try:
            self.tokenizer = tokenizers.Tokenizer.from_file(str(path))
        except Exception as error:  # tokenizers raises bare exceptions
            raise ModelError(f"{path} cannot be read as a tokenizer: {error}") from error
        self.session = load_with_process_threads(str(graphs[0]))

    def __call__(self, inputs: Mapping[str, Any]) -> np.ndarray:
        """Logits, float32 (batch, labels), of int64 arrays (batch, tokens)."""
        return self.session(inputs)

    def logits_of(self, text: str) -> np.ndarray:
        """Logits, float32 (1, labels), of one text."""
        encoding = self.tokenizer.encode(text)
        return self.session(
            {
                "input_ids": np.array([encoding.ids]),
                "token_type_ids": np.array([encoding.type_ids]),
                "attention_mask": np.array([encoding.attention_mask]),
            }
        )


def load_deployed(folder: str) -> DeployedClassifier:
    """The classifier, having read one text already, so that what tokenizing needs is in memory too."""
    classifier = DeployedClassifier(folder)
    classifier.logits_of("a text")
    return classifier
