"""Quantization: schemes that turn a float model into one of small integers, and training that imitates them.

`SCHEMES` holds every scheme by name. `quantize` makes the quantized form of a model; `load_model` reads any folder that
a stage left, plain, cut or quantized; `edge_graph` makes the graph of an edge bundle. `fake_quantization` is what
quantization-aware training runs under. The only package that touches `torch.ao` and ONNX Runtime's quantizers.
"""

from edgemin_utils.quantization.edge_graph import edge_graph
from edgemin_utils.quantization.fake import FORMATS, fake_quantization, linear_layers
from edgemin_utils.quantization.layers import layer_table
from edgemin_utils.quantization.registry import SCHEMES, find_scheme, load_model, quantize, save_quantized, scheme_of
from edgemin_utils.quantization.scheme import Scheme

__all__ = [
    "FORMATS",
    "SCHEMES",
    "Scheme",
    "edge_graph",
    "fake_quantization",
    "find_scheme",
    "layer_table",
    "linear_layers",
    "load_model",
    "quantize",
    "save_quantized",
    "scheme_of",
]
