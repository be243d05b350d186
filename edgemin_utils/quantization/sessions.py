"""The one place that makes ONNX Runtime sessions, without torch and onnx (bundle/classify.py, which stands alone, does
it itself). x86 without VNNI adds pairs of U8S8 products in 16 bits, where they saturate: there an exact, slower way is
taken."""

import functools
import os
import platform
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from onnxruntime import InferenceSession, SessionOptions

from edgemin_utils.environment import processor_flags
from edgemin_utils.errors import ModelError

INTEGER_TYPES = {"tensor(int64)": np.int64, "tensor(int32)": np.int32}
EXACT_PRODUCTS = "session.x64quantprecision"


@functools.cache
def adds_in_32_bits() -> bool:
    """Whether this processor is known to add products of 8-bit integers in 32 bits: all but x86 without VNNI."""
    x86 = platform.machine().lower() in "x86_64 amd64 x86 i386 i686".split()
    return not x86 or not processor_flags().isdisjoint({"avx512_vnni", "avx_vnni", "amx_int8"})


def session_options(threads: int = 1) -> SessionOptions:
    """So many threads (0: all cores) that do not spin between calls, and products that are exact on this processor."""
    options = SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.add_session_config_entry(EXACT_PRODUCTS, "0" if adds_in_32_bits() else "1")
    options.log_severity_level = 4  # what fails is raised
    return options


def make_session(graph: bytes | str | os.PathLike, options: SessionOptions | None = None) -> InferenceSession:
    """A session on the CPU; raises ModelError where the file is missing or none that ONNX Runtime can run."""
    name = "the graph" if isinstance(graph, bytes) else os.fspath(graph)
    if not isinstance(graph, bytes) and not Path(graph).is_file():
        raise ModelError(f"there is no file {name}; check the path")
    try:
        return InferenceSession(graph, options or session_options(), ["CPUExecutionProvider"])
    except Exception as error:  # ONNX Runtime has an exception class of its own for every status
        raise ModelError(f"{name} cannot be loaded by ONNX Runtime: {str(error).splitlines()[0]}") from error


class OnnxSession:
    """A text classifier's graph, called with integers (batch, tokens) by name; a mask not given is ones, others zeros,
    and what it does not name is left out. Raises ModelError as `make_session`, or where it takes no input_ids."""

    def __init__(self, graph: bytes | str | os.PathLike, threads: int = 1):
        self.session = make_session(graph, session_options(threads))
        self.types = {item.name: INTEGER_TYPES.get(item.type) for item in self.session.get_inputs()}
        if "input_ids" not in self.types or None in self.types.values():
            name = "the graph" if isinstance(graph, bytes) else graph
            raise ModelError(f"{name} takes {', '.join(self.types)}; a text classifier takes integers, as input_ids")

    def feed(self, inputs: Mapping[str, Any]) -> dict[str, np.ndarray]:
        """The arrays that the session takes, from those given."""
        filled = {name: np.full(np.shape(inputs["input_ids"]), name == "attention_mask") for name in self.types}
        return {name: np.asarray(inputs.get(name, filled[name]), dtype=kind) for name, kind in self.types.items()}

    def __call__(self, inputs: Mapping[str, Any]) -> np.ndarray:
        """The first output: logits, float32 (batch, labels)."""
        return self.session.run(None, self.feed(inputs))[0]
