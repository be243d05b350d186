"""A classifier in an .onnx file as ONNX Runtime runs it. Imports neither torch nor onnx: what a deployed model needs is
all that a fresh process should load when its memory is measured."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime

from edgemin_utils.errors import ModelError

INTEGER_TYPES = {"tensor(int64)": np.int64, "tensor(int32)": np.int32}


class OnnxSession:
    """Callable with a mapping of integer arrays or CPU tensors (batch, tokens); gives the first output as an array.

    Inputs of the file's signature that are not given are filled: the attention mask with ones, others (token types)
    with zeros. What the signature does not name is left out.

    Attributes:
        input_names: as the file's signature lists them.

    Raises:
        ModelError: the file is not there, ONNX Runtime cannot load it, or no input is called input_ids.
    """

    def __init__(self, path: str | os.PathLike, threads: int = 1):
        self.session = make_session(path, session_options(threads))
        self.types = {item.name: INTEGER_TYPES.get(item.type) for item in self.session.get_inputs()}
        self.input_names = tuple(self.types)
        if "input_ids" not in self.types or None in self.types.values():
            raise ModelError(
                f"{path} takes {', '.join(self.input_names)}; a text classifier takes integers, input_ids among them"
            )

    def __call__(self, inputs: Mapping[str, Any]) -> np.ndarray:
        """Logits, float32 (batch, labels), from integer arrays or tensors (batch, tokens); a mask left out stands for
        no padding, other inputs left out for zeros."""
        shape = np.shape(inputs["input_ids"])
        feed = {}
        for name, kind in self.types.items():
            if name in inputs:
                feed[name] = np.asarray(inputs[name], dtype=kind)
            else:
                feed[name] = np.full(shape, int(name == "attention_mask"), dtype=kind)
        return self.session.run(None, feed)[0]


def session_options(threads: int) -> onnxruntime.SessionOptions:
    """So many threads, which sleep between calls: spinning ones would take time from what is measured next."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.log_severity_level = 3
    return options


def make_session(path: str | os.PathLike, options: onnxruntime.SessionOptions) -> onnxruntime.InferenceSession:
    """ONNX Runtime's session of a file on the CPU. Raises ModelError when the file is missing or no ONNX model."""
    if not Path(path).is_file():
        raise ModelError(f"there is no file {path}; check the path")
    try:
        return onnxruntime.InferenceSession(os.fspath(path), options, providers=["CPUExecutionProvider"])
    except Exception as error:  # ONNX Runtime has an exception class of its own for every status
        raise ModelError(f"{path} cannot be loaded by ONNX Runtime: {str(error).splitlines()[0]}") from error


def load_with_process_threads(path: str) -> OnnxSession:
    """The file's session with as many threads as the environment asks for: the loader of `memory.peak_memory`."""
    return OnnxSession(path, int(os.environ.get("OMP_NUM_THREADS", "1")))
