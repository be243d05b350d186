"""The FP32 model that the page sets beside a bundle."""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgemin_utils.errors import EdgeMINError, ModelError

FLOAT32_FILE = "model-float32.onnx"
TOKENIZER_FILE = "tokenizer.json"


@dataclass(frozen=True)
class Comparison:
    """An FP32 graph of the bundle's inputs and outputs, or why there is none.

    Attributes:
        graph: the .onnx file, or None.
        tokenizer: its tokenizer.json where it is not the bundle's (a bundle's vocabulary may have been cut), or None.
        missing: one sentence on why there is no graph; empty where there is one.
    """

    graph: Path | None = None
    tokenizer: Path | None = None
    missing: str = ""

    def files(self) -> dict[str, Path]:
        """What the page may load, by the name it asks for."""
        named = {"model.onnx": self.graph, TOKENIZER_FILE: self.tokenizer}
        return {name: path for name, path in named.items() if path is not None}

    def as_record(self) -> dict[str, Any]:
        """The same as JSON data: bytes and SHA-256 of each file, None for what there is not."""
        return {"graph": _described(self.graph), "tokenizer": _described(self.tokenizer), "missing": self.missing}


def find_comparison(bundle: Path, manifest: Mapping[str, Any], float32: Path | None, folder: Path) -> Comparison:
    """The FP32 model beside a bundle: the file given, else `model-float32.onnx` in the bundle, else exported from the
    model that the bundle was made from, if its folder is still there.

    Args:
        bundle: the bundle's folder.
        manifest: its bundle.json.
        float32: an .onnx file, or None.
        folder: where an exported graph is written.

    Raises:
        ModelError: the file that was given is not there.
    """
    if float32 is not None and not float32.is_file():
        raise ModelError(f"there is no file {float32}; --float32 names an .onnx file")
    stored = float32 or bundle / FLOAT32_FILE
    if stored.is_file():
        return Comparison(stored, _other_tokenizer(stored.parent, bundle))
    source = source_folder(manifest)
    if source is None:
        return Comparison(missing="There is no FP32 model to compare with: the model that this bundle was made from is "
                          f"not on this machine, and no {FLOAT32_FILE} lies in the bundle.")
    try:
        return Comparison(_export(source, folder), _other_tokenizer(source, bundle))
    except EdgeMINError as error:
        return Comparison(missing=f"There is no FP32 model to compare with: {error}.")


def source_folder(manifest: Mapping[str, Any]) -> Path | None:
    """The folder of the model that a bundle was made from, as its provenance names it; None if it is not here."""
    named = (manifest.get("provenance") or {}).get("model")
    folder = Path(named).expanduser() if isinstance(named, str) and named else None
    return folder if folder is not None and (folder / "config.json").is_file() else None


def _export(source: Path, folder: Path) -> Path:
    from edgemin_utils.quantization.registry import load_model, quantize  # imports torch

    quantize(load_model(source), "onnx-float32").save(folder)
    return folder / "model.onnx"


def _other_tokenizer(folder: Path, bundle: Path) -> Path | None:
    own, others = bundle / TOKENIZER_FILE, folder / TOKENIZER_FILE
    if not others.is_file() or not own.is_file() or others.read_bytes() == own.read_bytes():
        return None
    return others


def _described(path: Path | None) -> dict[str, Any] | None:
    if path is None:
        return None
    content = path.read_bytes()
    return {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
