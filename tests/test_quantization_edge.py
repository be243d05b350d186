"""The graph of an edge bundle: it computes what the model computes, and nothing that no answer needs."""

import copy

import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper
from small_models import small_batch, small_model
from test_quantization_onnx import attributes, logits, on_grid, single_rows
from torch import nn

from edgemin_utils.encoders import encoder_layers, input_names
from edgemin_utils.quantization.onnx_graph import Graph
from edgemin_utils.quantization.onnx_schemes import quantize_rows
from edgemin_utils.quantization.schemes import quantize, stored_sizes
from edgemin_utils.quantization.sessions import OnnxSession, make_session

LONGEST = 24


def inputs(pair=False):
    types = (torch.arange(12) >= 5).long().repeat(6, 1) * int(pair)
    return single_rows(small_batch(6, 12) | {"token_type_ids": types})


def unequal(family):
    """Layers of 3 and 4 heads and of 96 and 40 neurons, and biases that are not zero."""
    model = small_model(family, layers=2)
    encoder_layers(model)[0].keep_heads([0, 1, 3])
    encoder_layers(model)[1].keep_neurons(range(40))
    torch.manual_seed(7)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.dim() == 1:
                parameter.normal_(float("Norm.weight" in name), 0.1)
    return model


@pytest.fixture(scope="module")
def bert():
    """A model of unequal layers, and scheme -> its classifier for single texts; "pair": the first one's for pairs."""
    model = unequal("bert")
    made = {name: quantize(model, name, inputs(), LONGEST) for name in "edge-int8 edge-int8-int4 edge-int4".split()}
    return model, {**made, "pair": quantize(model, "edge-int8", inputs(pair=True), LONGEST)}


@pytest.fixture(scope="module", params=["bert", "roberta", "distilbert"])
def made(request, bert):
    """A model of unequal layers and its INT8 graph."""
    if request.param == "bert":
        return bert[0], Graph(onnx.load_from_string(bert[1]["edge-int8"].graph))
    model = unequal(request.param)
    return model, Graph(onnx.load_from_string(quantize(model, "edge-int8", inputs(), LONGEST).graph))


def test_answers_are_those_of_the_model_but_for_rounding(made):
    model, graph = made
    session, batch = OnnxSession(graph.serialized()), small_batch(4, 12)
    batch["input_ids"] = torch.where(batch["attention_mask"].bool(), batch["input_ids"], model.config.pad_token_id)
    wanted = logits(model, batch)
    assert np.abs(session(batch) - wanted).max() < 0.05 * np.abs(wanted).max() + 0.02
    # Padding is no part of an answer, but for the scale that the rows of a batch share.
    alone = session({name: batch[name][2:3, :10] for name in ("input_ids", "attention_mask")})
    assert np.abs(alone - wanted[2:3]).max() < 0.05 * np.abs(wanted).max() + 0.02


def test_inputs_are_ids_and_mask_alone_and_attention_is_fused_in_unequal_layers(made):
    _, graph = made
    assert [item.name for item in graph.model.graph.input] == ["input_ids", "attention_mask"]
    assert [item.name for item in graph.model.graph.output] == ["logits"]
    assert [attributes(node)["num_heads"] for node in graph.nodes if node.op_type == "QAttention"] == [3, 4]
    # Sums and norms stand apart.
    assert "SkipLayerNormalization" not in graph.operators() and graph.operators()["LayerNormalization"] == 5


def test_the_last_layer_is_computed_for_the_first_token_alone(made):
    """Tokens in the inputs of all products, in the graph's order: behind the last attention one is left of ten."""
    model, graph = made
    names = [node.input[0] for node in graph.nodes if node.op_type in ("QAttention", "MatMulInteger")]
    shown = onnx.ModelProto.FromString(graph.serialized())
    shown.graph.output.extend(onnx.ValueInfoProto(name=name) for name in names)
    session = OnnxSession(shown.SerializeToString())
    ids = small_batch(1, 10)["input_ids"]
    found = make_session(shown.SerializeToString()).run(names, session.feed({"input_ids": ids}))
    tokens = [value.shape[1] if value.ndim == 3 else 1 for value in found]
    # Two layers of attention, its output and two of feed-forward; then what the family puts before its labels.
    assert tokens[:8] == [10] * 5 + [1] * 3 and set(tokens[8:]) == {1}


def test_every_matrix_is_int8_and_positions_that_no_input_reaches_are_gone(made):
    model, graph = made
    arrays = {name: numpy_helper.to_array(item) for name, item in graph.tensors().items()}
    integers = [value for value in arrays.values() if value.dtype == np.int8 and value.ndim == 2]
    assert len(integers) == 2 * 4 + 2 + 2 and max(v.size for v in arrays.values() if v.dtype == np.float32) < 60 * 48
    assert {(60, 48), (LONGEST, 48)} <= {value.shape for value in integers}  # none that RoBERTa reserves for padding
    scales = [value for name, value in arrays.items() if name.endswith("_scale") and value.ndim == 1]
    assert sum(value.size for value in scales) >= 48  # one an output, not one a matrix
    stored = sum(parameter.numel() for parameter in model.parameters())
    assert len(graph.serialized()) < stored + 20_000


def test_a_pair_keeps_its_token_types(bert):
    model, made = bert[0], bert[1]["pair"]
    assert made.session().input_names == input_names(model)
    batch = small_batch(2, 10)
    batch["token_type_ids"] = (torch.arange(10) >= 5).long().repeat(2, 1)
    wanted = logits(model, batch)
    single = logits(model, {**batch, "token_type_ids": torch.zeros_like(batch["token_type_ids"])})
    error = np.abs(logits(made, batch) - wanted).max()
    assert error < 0.05 * np.abs(wanted).max() + 0.02 and error < np.abs(single - wanted).max() / 2


def test_rows_of_a_table_are_rounded_each_by_its_own_scale():
    table = np.array([[1.0, -2.54, 0.01], [0.0, 0.0, 0.0], [100.0, 50.0, -127.0]], dtype=np.float32)
    integers, scales = quantize_rows(table)
    assert integers.dtype == np.int8 and scales.dtype == np.float32 and scales.shape == (3, 1)
    assert scales[:, 0].tolist() == pytest.approx([0.02, 0.0, 1.0])
    assert integers.tolist() == [[50, -127, 0], [0, 0, 0], [100, 50, -127]]
    assert np.abs(integers * scales - table).max() <= scales.max() / 2


def test_a_four_bit_table_changes_the_table_and_nothing_else(bert):
    model, made = bert[0], bert[1]
    rounded, batch = copy.deepcopy(model), small_batch(4, 12)
    with torch.no_grad():
        table = rounded.get_input_embeddings().weight
        table.copy_(torch.from_numpy(on_grid(table.numpy())))
    wanted, unrounded, found = (logits(one, batch) for one in (rounded, model, made["edge-int8-int4"]))
    assert np.abs(found - wanted).max() < 0.05 * np.abs(wanted).max() + 0.02 < np.abs(found - unrounded).max()


def test_sizes_are_told_as_stored(bert):
    """Table and positions with their scales, token types that became part of the positions, matrices by bits."""
    model, made = bert
    sizes = {name: stored_sizes(one) for name, one in made.items()}
    names = ("word", "position", "token_type")
    word, positions, types = (f"bert.embeddings.{name}_embeddings.weight" for name in names)
    assert sizes["edge-int8"][word] == (60 * 48, 60 * (48 + 4))
    assert sizes["edge-int8-int4"][word] == sizes["edge-int4"][word] == (60 * 48, 60 * 24 + 60 * 4 + 30)
    assert all(one[positions] == (LONGEST * 48, LONGEST * (48 + 4)) for one in sizes.values())
    assert sizes["edge-int8"][types] == (0, 0) and sizes["pair"][types] == (96, 4 * 96)
    linear = [name for name, module in model.named_modules() if isinstance(module, nn.Linear)]
    for name in linear:
        outputs, width = model.get_submodule(name).weight.shape
        assert sizes["edge-int8"][f"{name}.weight"] == (outputs * width, outputs * (width + 5))
        assert sizes["edge-int4"][f"{name}.weight"][1] == outputs * (-(-width // 64) * 36 + 1)
    file = len(made["edge-int4"].graph)
    assert file < len(made["edge-int8-int4"].graph) < len(made["edge-int8"].graph)
    assert 0 < file - sum(size for _, size in sizes["edge-int4"].values()) < 17_000
