"""The graph of an edge bundle: it computes what the model computes, and nothing that no answer needs."""

import numpy as np
import onnxruntime
import pytest
import torch
from four_bit_grid import with_rounded_weights
from onnx import numpy_helper
from small_models import small_batch, small_model

from edgemin_utils.encoders import encoder_layers, input_names
from edgemin_utils.errors import SettingError
from edgemin_utils.measurement.onnx_graphs import graph_macs, graph_weights, parameters_of_graph, vocabulary_size
from edgemin_utils.quantization import edge_graph
from edgemin_utils.quantization.edge_graph import quantize_rows

LONGEST = 24
FOUR_BITS = ((8, 4), (4, 8), (4, 4))


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
    """A model of unequal layers, its graph for single texts, that for pairs, and (matrix bits, embedding bits) -> that
    of other bits."""
    model = unequal("bert")
    return (
        model,
        edge_graph(model, LONGEST, pair=False),
        edge_graph(model, LONGEST, pair=True),
        {bits: edge_graph(model, LONGEST, False, *bits) for bits in FOUR_BITS},
    )


@pytest.fixture(params=["bert", "roberta"])
def made(request, bert, roberta):
    return bert[:2] if request.param == "bert" else roberta


@pytest.fixture(scope="module")
def roberta():
    model = unequal("roberta")
    return model, edge_graph(model, LONGEST, pair=False)


def run(graph, batch):
    session = onnxruntime.InferenceSession(graph.SerializeToString(), providers=["CPUExecutionProvider"])
    return session.run(None, {item.name: batch[item.name].numpy() for item in session.get_inputs()})[0]


def test_answers_are_those_of_the_model_but_for_rounding(made):
    model, graph = made
    batch = small_batch(4, 12)
    batch["input_ids"] = torch.where(batch["attention_mask"].bool(), batch["input_ids"], model.config.pad_token_id)
    with torch.inference_mode():
        wanted = model(batch["input_ids"], batch["attention_mask"]).logits.numpy()
    found = run(graph, batch)
    assert np.abs(found - wanted).max() < 0.05 * np.abs(wanted).max() + 0.02
    # Padding is no part of an answer, but for the scale that the rows of a batch share.
    alone = run(graph, {name: batch[name][2:3, :10] for name in ("input_ids", "attention_mask")})
    assert np.abs(alone - wanted[2:3]).max() < 0.05 * np.abs(wanted).max() + 0.02


def test_inputs_are_ids_and_mask_alone_and_attention_is_fused_in_unequal_layers(made):
    _, graph = made
    assert [item.name for item in graph.graph.input] == ["input_ids", "attention_mask"]
    assert [item.name for item in graph.graph.output] == ["logits"]
    heads = [
        {item.name: item.i for item in node.attribute}["num_heads"]
        for node in graph.graph.node
        if node.op_type == "QAttention"
    ]
    assert heads == [3, 4]


def test_the_last_layer_is_computed_for_the_first_token_alone(made):
    """MACs by formula: behind the last attention one token is left of ten."""
    model, graph = made
    tokens, hidden, head = 10, 48, 12
    first, second = encoder_layers(model)
    projections = 3 * tokens * hidden * head * (3 + 4)
    assert (first.num_heads, second.num_heads) == (3, 4)
    behind_first = tokens * (3 * head * hidden + 2 * hidden * 96)
    behind_second = 1 * (4 * head * hidden + 2 * hidden * 40)
    classifier = hidden * hidden + hidden * 2
    macs = graph_macs(graph, 1, tokens)
    assert macs["int8"] == projections + behind_first + behind_second + classifier
    assert macs["fp32"] == 2 * tokens * tokens * head * (3 + 4)


def test_every_matrix_is_int8_and_positions_that_no_input_reaches_are_gone(made):
    model, graph = made
    weights = {weight.name: weight for weight in graph_weights(graph)}
    matrices = [
        weight
        for weight in weights.values()
        if weight.elements and min(weight.shape, default=0) > 2 and len(weight.shape) == 2
    ]
    assert len(matrices) == 2 * 4 + 2 + 1 and {weight.precision for weight in matrices} == {"int8"}  # head of 2: below
    reserved = 2 if model.config.model_type == "roberta" else 0
    tables = sorted(weight.shape for weight in weights.values() if weight.table and weight.elements)
    assert tables == sorted([(60, 48), (LONGEST + reserved, 48)])
    assert vocabulary_size(graph) == 60
    stored = sum(parameter.numel() for parameter in model.parameters())
    assert len(graph.SerializeToString()) < stored + 20_000
    scales = [item for item in graph.graph.initializer if item.name.endswith("_scale") and len(item.dims) == 1]
    assert sum(item.dims[0] for item in scales if item.dims) >= 48  # one an output, not one a matrix


def test_a_pair_keeps_its_token_types(bert):
    model, _, graph, _ = bert
    assert [item.name for item in graph.graph.input] == list(input_names(model))
    batch = small_batch(2, 10)
    batch["token_type_ids"] = (torch.arange(10) >= 5).long().repeat(2, 1)
    with torch.inference_mode():
        wanted, single = (
            model(batch["input_ids"], batch["attention_mask"], token_type_ids=types).logits.numpy()
            for types in (batch["token_type_ids"], torch.zeros_like(batch["token_type_ids"]))
        )
    error = np.abs(run(graph, batch) - wanted).max()
    assert error < 0.05 * np.abs(wanted).max() + 0.02 and error < np.abs(single - wanted).max() / 2


def test_rows_of_a_table_are_rounded_each_by_its_own_scale():
    table = np.array([[1.0, -2.54, 0.01], [0.0, 0.0, 0.0], [100.0, 50.0, -127.0]], dtype=np.float32)
    integers, scales = quantize_rows(table)
    assert integers.dtype == np.int8 and scales.dtype == np.float32 and scales.shape == (3, 1)
    assert scales[:, 0].tolist() == pytest.approx([0.02, 0.0, 1.0])
    assert integers.tolist() == [[50, -127, 0], [0, 0, 0], [100, 50, -127]]
    assert np.abs(integers * scales - table).max() <= scales.max() / 2


def test_sums_and_norms_stand_apart(made):
    _, graph = made
    operators = [node.op_type for node in graph.graph.node]
    assert "SkipLayerNormalization" not in operators and operators.count("LayerNormalization") == 5
    assert operators.count("BiasGelu") == 2
    floats = [numpy_helper.to_array(item) for item in graph.graph.initializer if item.data_type == 1]
    assert max(value.size for value in floats) < 60 * 48


# ---- 4 bits -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("bits", FOUR_BITS, ids=str)
def test_four_bits_change_the_weights_they_are_for_and_nothing_else(bert, bits):
    model, eight, graph = bert[0], bert[1], bert[3][bits]
    batch = small_batch(4, 12)
    with torch.inference_mode():
        wanted, unrounded = (
            one(batch["input_ids"], batch["attention_mask"]).logits.numpy()
            for one in (with_rounded_weights(model, *bits), model)
        )
    found = run(graph, batch)
    assert np.abs(found - wanted).max() < 0.05 * np.abs(wanted).max() + 0.02 < np.abs(found - unrounded).max()
    assert graph_macs(graph, 1, 10) == graph_macs(eight, 1, 10) and vocabulary_size(graph) == 60
    assert parameters_of_graph(graph)["parts"] == parameters_of_graph(eight)["parts"]
    assert [item.name for item in graph.graph.input] == [item.name for item in eight.graph.input]
    sizes = {weight.shape: weight.size for weight in graph_weights(graph) if weight.table and weight.elements}
    assert sizes == {(60, 48): 60 * 48 // (8 // bits[1]), (LONGEST, 48): LONGEST * 48}
    assert len(graph.SerializeToString()) < len(eight.SerializeToString())


def test_other_bits_are_refused(bert):
    with pytest.raises(SettingError, match="embeddings of a bundle have 8 or 4 bits, and not 2"):
        edge_graph(bert[0], LONGEST, False, embedding_bits=2)
