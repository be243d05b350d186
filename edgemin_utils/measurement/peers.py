"""What a user would take instead of a smaller model: the whole one in ONNX Runtime INT8, bfloat16 or OpenVINO's INT8.
At its top nothing imports torch, which would count as memory of a model that runs without it."""

import functools
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from edgemin_utils.environment import processor_flags
from edgemin_utils.errors import ModelError

_WAY = "pip install 'edgemin[peers]' brings it, with NNCF"


def make_peers(source: str, folder: Path) -> tuple[dict[str, str], list[str]]:
    """Peer -> where it lies below `folder`, made of the float model `source`; and why others are not there."""
    from edgemin_utils.encoders import input_names, longest_input
    from edgemin_utils.measurement.latency import fixed_inputs
    from edgemin_utils.quantization.schemes import load_model, quantize, quiet_libraries, save_quantized

    model, schemes, notes = load_model(source), ["onnx-int8", "bfloat16"], list[str]()
    if processor_flags().isdisjoint({"amx_bf16", "avx512_bf16", "bf16"}):
        notes.append(f"{schemes.pop()} is left out: this processor has no instructions for it.")
    for scheme in schemes:
        save_quantized(quantize(model, scheme), folder / scheme, scheme)
    made = {scheme: str(folder / scheme) for scheme in schemes}
    try:
        import nncf
        import openvino
    except ImportError:
        return made, [*notes, f"OpenVINO is left out; {_WAY}."]
    size = 1, min(128, longest_input(model)), model.config.vocab_size
    rows = (fixed_inputs(*size, seed) for seed in range(32))
    inputs = [{name: row.get(name, 0 * row["input_ids"]) for name in input_names(model)} for row in rows]
    with quiet_libraries():
        graph = openvino.convert_model(model, example_input=inputs[0])
        graph = nncf.quantize(graph, nncf.Dataset(inputs), model_type=nncf.ModelType.TRANSFORMER)
        openvino.save_model(graph, folder / "openvino-int8.xml")
    made["openvino-int8"] = str(folder / "openvino-int8.xml")
    return made, [*notes, "OpenVINO's ranges come of random tokens: its times count here, not its answers."]


class OpenVinoModel:
    """A classifier that is an OpenVINO .xml file with its .bin; attributes and methods as of `measured.TorchModel`."""

    longest, vocabulary_size = None, 10  # the file says neither: low tokens alone

    def __init__(self, source: str | Path):
        try:
            import openvino
        except ImportError:
            raise ModelError(f"{source} needs OpenVINO; {_WAY}") from None
        self.path, self.folder, make = Path(source), Path(source).parent, openvino.Core().compile_model
        self.compiled = functools.cache(lambda threads: make(source, "CPU", {"INFERENCE_NUM_THREADS": threads}))
        self.names = [port.any_name for port in self.compiled(1).inputs]

    def predict(self, batch: Mapping[str, Any]) -> Any:
        """Logits (batch, labels) of int64 (batch, tokens), with torch's present threads."""
        torch, blank = sys.modules.get("torch"), np.zeros_like(np.asarray(batch["input_ids"]))
        given = {name: np.asarray(batch.get(name, blank)) for name in self.names}
        return self.compiled(torch.get_num_threads() if torch else 1)(given)[0]

    __call__ = predict

    def describe(self, lengths: Iterable[int]) -> dict[str, Any]:
        """The files' bytes alone."""
        size = sum(path.stat().st_size for path in (self.path, self.path.with_suffix(".bin")))
        return {"model": {"family": "openvino"}, "size": {"file_bytes": size}, "operations": {}}

    def work(self, length: int) -> tuple[list[Any], int]:
        """No products and no bytes, so no bound."""
        return [], 0
