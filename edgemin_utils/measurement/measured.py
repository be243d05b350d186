"""A classifier from a folder, a hub id, an .onnx file or a bundle, seen as one kind of thing to be measured."""

import functools
import json
import math
import tempfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pandas as pd
import torch
from onnx import TensorProto

from edgemin_utils.encoders import input_names, longest_input
from edgemin_utils.errors import ModelError
from edgemin_utils.measurement.operations import Product, describe_costs, macs_of, products_of, size_of
from edgemin_utils.measurement.peers import OpenVinoModel
from edgemin_utils.quantization.schemes import load_model, quantized_entries
from edgemin_utils.quantization.sessions import INTEGER_TYPES, OnnxSession, make_session, session_options

_INTEGERS: dict[int, float] = {TensorProto.INT8: 1, TensorProto.UINT8: 1, TensorProto.INT4: 0.5, TensorProto.UINT4: 0.5}
_BYTES: dict[int, float] = {TensorProto.FLOAT: 4, TensorProto.DOUBLE: 8, TensorProto.FLOAT16: 2, **_INTEGERS}
# Ends of names of what belongs to integers and is no weight itself, and parts of names of operators on integers.
_SCALES = ("scale", "scales", "zero_point", "zero_points", "_zp")
_INTEGER_MARKS = "Integer QLinear QGemm NBits QAttention DynamicQuantize".split()


class TorchModel:
    """A classifier of torch modules, or a stage's .onnx file, called as it was evaluated. `longest` is most tokens."""

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


class GraphModel:
    """A classifier that is an .onnx file, alone or in a bundle; attributes and methods as of `TorchModel`."""

    def __init__(self, path: Path):
        self.path, self.folder = path, path.parent
        self.session = functools.lru_cache(lambda threads: OnnxSession(path, threads))
        self.session(1)  # what is no text classifier is refused now
        beside = [file for name in ("config.json", "bundle.json") if (file := self.folder / name).is_file()]
        notes = {name: value for file in beside for name, value in json.loads(file.read_text("utf-8")).items()}
        self.vocabulary_size: int = notes.get("vocab_size", 10)  # low numbers alone where nothing says how many
        self.longest: int | None = notes.get("max_length", notes.get("max_position_embeddings"))

    def predict(self, batch: Mapping[str, torch.Tensor]) -> Any:
        """As `TorchModel.predict`."""
        return self.session(torch.get_num_threads())(batch)

    def describe(self, lengths: Iterable[int]) -> dict[str, Any]:
        """As `describe_costs`, without parts; operations are macs and int8_macs of what ONNX Runtime ran."""
        weights, files = graph_weights(self.path), [self.path, *self.folder.glob(f"{self.path.name}*data")]
        stored, integer = int(weights["elements"].sum()), int(weights.loc[weights["integer"], "size"].sum())
        listed = sum(math.prod(tensor.dims) for tensor in onnx.load(self.path).graph.initializer)
        size = {"framework_parameters": listed, "stored_weights": stored, "paper_parameters": None}
        size |= {"integer_bytes": integer, "file_bytes": sum(file.stat().st_size for file in files)}
        fitting = [each for each in lengths if each <= (self.longest or each)]
        work = {f"1x{each}": macs_of(products_of_graph(self.path, 1, each)) for each in fitting}
        return {"model": {"family": "onnx"}, "size": size, "operations": work}

    def work(self, length: int) -> tuple[list[Product], int]:
        """As `TorchModel.work`."""
        weights = graph_weights(self.path)
        return products_of_graph(self.path, 1, length), int(weights.loc[~weights["table"], "size"].sum())


def open_model(source: str | Path) -> TorchModel | GraphModel | OpenVinoModel:
    """That of a folder, a hub id, an .onnx file or OpenVINO's .xml. Raises ModelError where none can be measured."""
    graph = graph_file(source)
    if graph and graph.suffix == ".xml":
        return OpenVinoModel(graph)
    return GraphModel(graph) if graph and not quantized_entries(source) else TorchModel(source)


def graph_file(source: str | Path) -> Path | None:
    """The .onnx file that the source is or holds, or the .xml that it is. Raises ModelError where it holds several."""
    path = Path(source).expanduser()
    if path.is_file() and path.suffix not in (".onnx", ".xml"):
        raise ModelError(f"{source} is a file, and not an .onnx file; give a model's folder, a hub id or an .onnx file")
    graphs = [path] if path.suffix in (".onnx", ".xml") else sorted(path.glob("*.onnx"))
    if len(graphs) > 1:
        raise ModelError(f"{source} holds several .onnx files; name one: {', '.join(item.name for item in graphs)}")
    return graphs[0] if graphs else None


def graph_weights(path: Path) -> pd.DataFrame:
    """A row for every initializer of more than one number, and all scales: elements (weights, 0 of scales), size
    (bytes), integer (is of integers or belongs to them), table (rows are looked up)."""
    graph, found = onnx.load(path).graph, list[tuple[int, int, bool, bool]]()
    for tensor in graph.initializer:
        count, kind, scale = math.prod(tensor.dims), tensor.data_type, tensor.name.endswith(_SCALES)
        if kind in _BYTES and (count > 1 or scale):
            used = [node for node in graph.node if tensor.name in node.input]
            table = any(node.op_type.startswith(("Gather", "EmbedLayer")) for node in used)
            # A byte may hold several weights.
            packing = [node for node in used if node.op_type in ("MatMulNBits", "GatherBlockQuantized")]
            bits = [item.i for node in packing for item in node.attribute if item.name == "bits"] or [4]
            each = 0 if scale else 8 // bits[0] if packing and kind == TensorProto.UINT8 else 1
            found.append((count * each, math.ceil(count * _BYTES[kind]), scale or kind in _INTEGERS, table))
    return pd.DataFrame(found, columns="elements size integer table".split())


def products_of_graph(path: Path, batch: int, length: int) -> list[Product]:
    """Every matrix product that ONNX Runtime runs on (batch, length) tokens. Raises ModelError where it runs none."""
    options, found = session_options(1), list[Product]()
    options.enable_profiling = True
    with tempfile.TemporaryDirectory() as place:
        options.profile_file_prefix = str(Path(place) / "profile")
        session = make_session(path, options)
        kinds = {item.name: INTEGER_TYPES.get(item.type, np.int64) for item in session.get_inputs()}
        try:
            session.run(None, {name: np.ones((batch, length), dtype=kind) for name, kind in kinds.items()})
        except Exception as error:  # ONNX Runtime has an exception class of its own for every status
            raise ModelError(f"{path} does not run on {batch} x {length} tokens: {str(error)[:200]}") from error
        events = json.loads(Path(session.end_profiling()).read_text(encoding="utf-8"))
    for event in events:
        if event.get("cat") == "Node" and event["name"].endswith("_kernel_time"):
            operator, taken, made = (event["args"][key] for key in ("op_name", "input_type_shape", "output_type_shape"))
            if taken and made and any(mark in operator for mark in ("MatMul", "Gemm", "Attention")):
                found += _products_of_node(operator, [*taken[0].values()][0], [*made[0].values()][0])
    return found


def _products_of_node(operator: str, taken: list[int], made: list[int]) -> list[Product]:
    precision = "int8" if any(mark in operator for mark in _INTEGER_MARKS) else "fp32"
    if "Attention" not in operator:
        outer, kind = (math.prod(made[:-2]), "attention") if len(made) > 3 else (1, "linear")
        return [Product(kind, precision, outer, math.prod(made[:-1]) // outer, taken[-1], made[-1])]
    rows, tokens, width = made
    own = [Product("linear", precision, 1, rows * tokens, taken[-1], 3 * width)]
    attention = [Product("attention", "fp32", rows, tokens, *ends) for ends in ((width, tokens), (tokens, width))]
    return attention if operator == "MultiHeadAttention" else own + attention
