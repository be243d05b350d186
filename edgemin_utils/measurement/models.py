"""What `edgemin measure` measures: a classifier from a folder, a hub id or an .onnx file, seen as one kind of thing.

A `MeasuredModel` says how large it is, how much work one forward is, and how it is called on each back end.
"""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import nn
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

from edgemin_utils.bundle.classify import BUNDLE_FILE, TOKENIZER_FILE
from edgemin_utils.encoders import describe_model, input_names, longest_input, usable_positions
from edgemin_utils.errors import EdgeMINError, ModelError
from edgemin_utils.evaluation import predictor
from edgemin_utils.library_messages import quiet_transformers
from edgemin_utils.measurement import onnx_graphs
from edgemin_utils.measurement.memory import peak_memory
from edgemin_utils.measurement.onnx_session import OnnxSession
from edgemin_utils.measurement.operations import count_operations
from edgemin_utils.measurement.parameters import bytes_by_precision, count_parameters, has_packed_weights, saved_bytes
from edgemin_utils.measurement.roofline import Work, work_of_model
from edgemin_utils.measurement.torch_checkpoint import load_torch_model
from edgemin_utils.tokenization import load_tokenizer

Predict = Callable[[Mapping[str, torch.Tensor]], Any]
EAGER, COMPILED, ONNX = "PyTorch", "torch.compile", "ONNX Runtime"


class MeasuredModel(Protocol):
    """One model to be measured.

    Attributes:
        name: how tables call it.
        vocabulary_size, longest: token numbers lie under the first; most tokens, None where the model does not say.
        tokenizer: None where none lies beside it.
        int8: whether some weights are stored as integers.
    """

    name: str
    vocabulary_size: int
    longest: int | None
    tokenizer: PreTrainedTokenizerBase | None
    int8: bool

    def describe(self) -> dict[str, Any]:
        """back_end and, for a torch model, its architecture (see `encoders.describe_model`)."""

    def parameters(self) -> dict[str, Any]:
        """framework, stored, paper, parts (numbers by part) and part_bytes (part -> {"fp32", "int8"})."""

    def file_bytes(self) -> int | None:
        """Bytes of the saved model; None where it is not on this disk as a folder or file."""

    def operations(self, batch: int, length: int) -> dict[str, Any]:
        """As `operations.count_operations`; counts that a kind of model does not have are None."""

    def work(self, batch: int, length: int) -> Work:
        """What one forward has to do at least."""

    def predictors(self, threads: int, compiled: bool) -> dict[str, Predict]:
        """Back end -> function of a batch of int64 tensors."""

    def peak_memory(self, length: int, runs: int, threads: int) -> dict[str, Any]:
        """As `memory.peak_memory`."""


def open_models(sources: list[str]) -> list[MeasuredModel]:
    """Every source opened, under names that tell them apart.

    Args:
        sources: each a folder, a hub id or an .onnx file.

    Raises:
        ModelError: a source is missing or no classifier.
    """
    names = [Path(source).name or source for source in sources]
    return [
        open_model(source, name if names.count(name) == 1 else source)
        for source, name in zip(sources, names, strict=True)
    ]


def open_model(source: str, name: str = "") -> MeasuredModel:
    """The model in a folder (plain, pruned, quantized, or with one .onnx file), behind a hub id, or in an .onnx file.

    Raises:
        ModelError: the path is missing, or holds no model that can be measured.
    """
    path = Path(source).expanduser()
    if path.suffix == ".onnx":
        return OnnxModel(path, path.parent, name or path.name)
    if path.exists() and not path.is_dir():
        raise ModelError(f"{source} is a file, and not an .onnx file; give a model's folder, a hub id or an .onnx file")
    graphs = sorted(path.glob("*.onnx")) if path.is_dir() else []
    if graphs:
        if len(graphs) > 1:
            raise ModelError(
                f"{source} holds {len(graphs)} .onnx files; name the one to measure: "
                f"{', '.join(graph.name for graph in graphs)}"
            )
        return OnnxModel(graphs[0], path, name or path.name)
    return TorchModel(source, name or path.name)


class TorchModel(MeasuredModel):
    """A torch classifier: plain, of unequal layers, or quantized."""

    def __init__(self, source: str, name: str):
        self.source, self.name = source, name
        self.module = load_torch_model(source)
        self.vocabulary_size = self.module.config.vocab_size
        self.longest: int | None = longest_input(self.module)
        self.int8 = has_packed_weights(self.module)
        self.tokenizer = _tokenizer(source)

    def describe(self) -> dict[str, Any]:
        return {"back_end": EAGER, **describe_model(self.module)}

    def parameters(self) -> dict[str, Any]:
        return {**count_parameters(self.module), "part_bytes": bytes_by_precision(self.module)}

    def file_bytes(self) -> int | None:
        folder = Path(self.source).expanduser()
        return saved_bytes(folder)["model_bytes"] if folder.is_dir() else None

    def operations(self, batch: int, length: int) -> dict[str, Any]:
        return count_operations(self.module, batch, length)

    def work(self, batch: int, length: int) -> Work:
        return work_of_model(self.module, batch, length)

    def predictors(self, threads: int, compiled: bool) -> dict[str, Predict]:
        return {EAGER: predictor(self.module), **({COMPILED: self._compiled()} if compiled else {})}

    def _compiled(self) -> Predict:
        with quiet_transformers():
            return predictor(_Compiled(self.module))

    def peak_memory(self, length: int, runs: int, threads: int) -> dict[str, Any]:
        return peak_memory(
            self.source,
            loader="edgemin_utils.measurement.torch_checkpoint:load_torch_model",
            length=length,
            runs=runs,
            threads=threads,
            vocabulary_size=self.vocabulary_size,
            token_type_ids="token_type_ids" in input_names(self.module),
        )


class _Compiled:
    """A compiled model that still shows its config, as `evaluation.predictor` asks for."""

    def __init__(self, module: nn.Module):
        self.config = module.config
        self.compiled = torch.compile(module)

    def __call__(self, **inputs: torch.Tensor) -> Any:
        return self.compiled(**inputs)


class OnnxModel(MeasuredModel):
    """A classifier that is an .onnx file; a tokenizer and a config may lie beside it, or it may be that of a bundle."""

    def __init__(self, path: Path, folder: Path, name: str):
        self.path, self.name = path, name
        self.graph = onnx_graphs.read_graph(path)
        self.session = OnnxSession(path)
        self.weights = onnx_graphs.graph_weights(self.graph)
        config, bundle = _read_json(folder / "config.json"), _read_json(folder / BUNDLE_FILE)
        found = onnx_graphs.vocabulary_size(self.graph) or config.get("vocab_size")
        if found is None:
            raise ModelError(f"{path} does not show how many tokens it knows, and no config.json beside it says so")
        self.vocabulary_size = int(found)
        positions = usable_positions(config) if config.get("max_position_embeddings") else None
        self.longest: int | None = bundle.get("max_length", positions)
        self.int8 = any(weight.precision == "int8" and weight.elements for weight in self.weights)
        self.tokenizer: PreTrainedTokenizerBase | None = None
        if bundle:
            self.tokenizer = PreTrainedTokenizerFast(tokenizer_file=str(folder / TOKENIZER_FILE))
        elif (folder / "tokenizer_config.json").is_file():
            self.tokenizer = _tokenizer(str(folder))

    def describe(self) -> dict[str, Any]:
        return {"back_end": ONNX, "inputs": list(self.session.input_names)}

    def parameters(self) -> dict[str, Any]:
        return onnx_graphs.parameters_of_graph(self.graph)

    def file_bytes(self) -> int | None:
        return onnx_graphs.file_bytes(self.path)

    def operations(self, batch: int, length: int) -> dict[str, Any]:
        macs = sum(onnx_graphs.graph_macs(self.graph, batch, length).values())
        return {
            "batch": batch,
            "length": length,
            "macs": macs,
            "flops": 2 * macs,
            "closed_formula_macs": None,
            "fvcore_macs": None,
            "torch_flop_counter_macs": None,
            "fvcore_with_layer_norms": None,
            "fvcore_ratio": None,
            "torch_flop_counter_ratio": None,
            "note": "Counted from the graph's products; fvcore, torch's counter and the closed formula need a "
            "torch model.",
        }

    def work(self, batch: int, length: int) -> Work:
        macs = onnx_graphs.graph_macs(self.graph, batch, length)
        shares = (
            (weight, min(1.0, batch * length / weight.shape[0]) if weight.table and weight.shape else 1.0)
            for weight in self.weights
        )
        return Work(macs["fp32"], macs["int8"], sum(int(weight.size * share) for weight, share in shares))

    def predictors(self, threads: int, compiled: bool) -> dict[str, Predict]:
        return {ONNX: OnnxSession(self.path, threads)}

    def peak_memory(self, length: int, runs: int, threads: int) -> dict[str, Any]:
        return peak_memory(
            self.path,
            loader="edgemin_utils.measurement.onnx_session:load_with_process_threads",
            length=length,
            runs=runs,
            threads=threads,
            vocabulary_size=self.vocabulary_size,
        )


def _tokenizer(source: str) -> PreTrainedTokenizerBase | None:
    try:
        return load_tokenizer(source)
    except EdgeMINError:
        return None


def _read_json(path: Path) -> dict[str, Any]:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
