"""An ONNX graph that is used like a torch classifier."""

import functools
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from transformers import PretrainedConfig
from transformers.modeling_outputs import SequenceClassifierOutput

from edgemin_utils.encoders import input_names, model_from_shapes

if TYPE_CHECKING:
    import onnx
    import onnxruntime

ONNX_FILE = "model.onnx"
_NOTES = "edgemin"


class OnnxClassifier(nn.Module):
    """A classifier that runs in ONNX Runtime on the CPU and is called like a torch model.

    It has no torch parameters. Its session has as many threads as torch has when it is called: it is made anew when
    that number changes, so that every back end is measured with the same.

    Args:
        graph: the serialized graph with `notes`, or the file that holds it.
        config: the classifier's.
        shapes: heads and feed-forward size of every layer.

    Raises:
        Exception: ONNX Runtime's, if the graph is damaged.
    """

    def __init__(self, graph: bytes | Path, config: PretrainedConfig, shapes: Mapping[str, Sequence[int]]):
        super().__init__()
        self.graph, self.config, self.shapes = graph, config, shapes
        self._threads = 0
        self._session: onnxruntime.InferenceSession | None = None
        self.notes: dict[str, Any] = json.loads(self.session().get_modelmeta().custom_metadata_map[_NOTES])

    def forward(
        self,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        token_type_ids: torch.Tensor | None = None,
    ) -> SequenceClassifierOutput:
        """Logits, float32 (batch, labels), from int64 tensors (batch, tokens); a mask left out stands for no padding,
        token types left out for zeros."""
        given = {
            "input_ids": input_ids,
            "attention_mask": torch.ones_like(input_ids) if attention_mask is None else attention_mask,
            "token_type_ids": torch.zeros_like(input_ids) if token_type_ids is None else token_type_ids,
        }
        feed = {name: given[name].numpy() for name in input_names(self)}
        return SequenceClassifierOutput(logits=torch.from_numpy(self.session().run(None, feed)[0]))

    @functools.cached_property
    def structure(self) -> nn.Module:
        """The torch modules that the graph was exported from, without weights."""
        with torch.device("meta"):
            return model_from_shapes(self.config, self.shapes)

    def stored_sizes(self) -> dict[str, tuple[int, int]]:
        """Name of a weight before the export -> (weights, bytes) in the graph."""
        return {name: (count, size) for name, (count, size) in self.notes["sizes"].items()}

    def save(self, folder: Path) -> None:
        """Writes the graph into `folder`."""
        (Path(folder) / ONNX_FILE).write_bytes(self.graph if isinstance(self.graph, bytes) else self.graph.read_bytes())

    def session(self) -> "onnxruntime.InferenceSession":
        """The session for torch's present number of threads."""
        threads = torch.get_num_threads()
        if self._session is None or threads != self._threads:
            self._session, self._threads = open_session(self.graph, threads), threads
        return self._session


def open_session(graph: bytes | Path, threads: int) -> "onnxruntime.InferenceSession":
    """A session on the CPU with that many threads."""
    import onnxruntime

    from edgemin_utils.measurement.onnx_session import session_options

    return onnxruntime.InferenceSession(
        graph if isinstance(graph, bytes) else str(graph), session_options(threads), providers=["CPUExecutionProvider"]
    )


def with_notes(graph: "onnx.ModelProto", notes: Mapping[str, Any]) -> bytes:
    """The serialized graph that carries `notes` (JSON data) in its metadata."""
    entry = graph.metadata_props.add()
    entry.key, entry.value = _NOTES, json.dumps(notes)
    return graph.SerializeToString()
