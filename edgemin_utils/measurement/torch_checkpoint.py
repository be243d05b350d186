"""Any torch classifier by folder or hub id. Apart from the rest of measuring, so that the fresh process in which memory
is measured imports little else."""

import json
from pathlib import Path

from transformers import PreTrainedModel

from edgemin_utils import checkpoints, quantization


def load_torch_model(source: str) -> PreTrainedModel:
    """A classifier in evaluation mode: plain, pruned or quantized. A checkpoint without a classification head gets a
    new one (random weights): what it costs does not depend on their values.

    Raises:
        ModelError: as `quantization.load_model`.
    """
    folder = Path(source).expanduser()
    if _is_of_this_package(folder):
        return quantization.load_model(folder)
    return checkpoints.load_model(source, list(checkpoints.load_config(source).id2label.values()))


def _is_of_this_package(folder: Path) -> bool:
    """Whether config.json has this package's entry, so that transformers' own loading would not do."""
    try:
        return "edgemin" in json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
