"""The FP32 model that the page sets beside a bundle."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgemin_utils.bundle.classify import MODEL_FILE, TOKENIZER_FILE
from edgemin_utils.errors import EdgeMINError, ModelError
from edgemin_utils.records import RECORD_FILE

FLOAT32_FILE = "model-float32.onnx"


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
        named = {MODEL_FILE: self.graph, TOKENIZER_FILE: self.tokenizer}
        return {name: path for name, path in named.items() if path is not None}

    def as_record(self) -> dict[str, Any]:
        """The same as JSON data: bytes and SHA-256 of each file, None for what there is not."""
        return {"graph": _described(self.graph), "tokenizer": _described(self.tokenizer), "missing": self.missing}


def find_comparison(bundle: Path, manifest: Mapping[str, Any], float32: Path | None, folder: Path) -> Comparison:
    """The FP32 model beside a bundle: the one given, else `model-float32.onnx` in the bundle, else exported from the
    stage that the bundle was made from, if it is still there as it was.

    Args:
        bundle: the bundle's folder.
        manifest: its bundle.json.
        float32: an .onnx file or the folder of a float model, or None.
        folder: where an exported graph is written.

    Raises:
        ModelError: what was given is not there, or its graph cannot be made.
    """
    if float32 is not None:
        if not float32.exists():
            raise ModelError(f"there is no {float32}; --float32 names an .onnx file or a model's folder")
        graph = _export(float32, folder) if float32.is_dir() else float32
        return Comparison(graph, _other_tokenizer(float32 if float32.is_dir() else float32.parent, bundle))
    if (bundle / FLOAT32_FILE).is_file():
        return Comparison(bundle / FLOAT32_FILE)
    source = source_folder(bundle, manifest)
    if source is None:
        return Comparison(
            missing="There is no FP32 model to compare with: the one that this bundle was made from was "
            "not found; name it with --float32."
        )
    try:
        return Comparison(_export(source, folder), _other_tokenizer(source, bundle))
    except EdgeMINError as error:
        return Comparison(missing=f"There is no FP32 model to compare with: {error}.")


def source_folder(bundle: Path, manifest: Mapping[str, Any]) -> Path | None:
    """The stage that a bundle in a study's folder was made from, as its provenance names it; None if it is not there
    or is no longer the same."""
    provenance = manifest.get("provenance") or {}
    source, fingerprint = provenance.get("source"), provenance.get("fingerprint")
    # A bundle may come from anywhere: what it names is looked for in the folders above it alone.
    if not isinstance(source, str) or not fingerprint or Path(source).is_absolute() or ".." in Path(source).parts:
        return None
    for study in bundle.absolute().parents:
        try:
            record = json.loads((study / source / RECORD_FILE).read_text(encoding="utf-8"))
        except (OSError, ValueError):
            continue
        if isinstance(record, dict) and record.get("fingerprint") == fingerprint:
            return study / source
    return None


def _export(source: Path, folder: Path) -> Path:
    from edgemin_utils import quantization  # imports torch
    from edgemin_utils.quantization.onnx_model import ONNX_FILE

    quantization.save_quantized(
        quantization.quantize(quantization.load_model(source), "onnx-float32"), folder, "onnx-float32"
    )
    return folder / ONNX_FILE


def _other_tokenizer(folder: Path, bundle: Path) -> Path | None:
    """The tokenizer in `folder`, unless it has none or it cuts texts into the same tokens as the bundle's."""
    own, other = _rules(bundle / TOKENIZER_FILE), _rules(folder / TOKENIZER_FILE)
    return folder / TOKENIZER_FILE if other is not None and other != own else None


def _rules(path: Path) -> dict[str, Any] | None:
    """tokenizer.json without the limits that a bundle sets and the page sets anew."""
    try:
        rules = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return {name: rule for name, rule in rules.items() if name not in ("truncation", "padding")}


def _described(path: Path | None) -> dict[str, Any] | None:
    if path is None:
        return None
    content = path.read_bytes()
    return {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
