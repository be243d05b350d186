"""Graphs of ONNX Runtime: fusion, the integers in them against NumPy, GPTQ, and sessions whose products are exact."""

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from small_models import FAMILY_NAMES, small_batch, small_model
from torch import nn
from transformers import AutoModelForSequenceClassification, ElectraConfig

from edgemin_utils.encoders import encoder_layers, input_names
from edgemin_utils.errors import ModelError
from edgemin_utils.quantization import int4, sessions
from edgemin_utils.quantization.int4 import BLOCK, block_integers, products_of_inputs, quantize_products, quantize_table
from edgemin_utils.quantization.onnx_graph import Graph, classifier_graph
from edgemin_utils.quantization.onnx_schemes import OnnxScheme
from edgemin_utils.quantization.schemes import layer_table, quantize, quiet_libraries
from edgemin_utils.quantization.sessions import OnnxSession, make_session, session_options

WIDTH, OUTPUTS, ROWS = 150, 5, 7  # two blocks of 64 and one of 22


def logits(model, batch):
    with torch.inference_mode():
        return model(**{name: batch[name] for name in input_names(model) if name in batch}).logits.float().numpy()


def single_rows(batch):
    """Inputs of single rows, without padding."""
    lengths, names = batch["attention_mask"].sum(1).tolist(), [name for name in batch if name != "labels"]
    return [{name: batch[name][[row], :length] for name in names} for row, length in enumerate(lengths)]


def attributes(node):
    return {item.name: helper.get_attribute_value(item) for item in node.attribute}


def run(graph, batch):
    return OnnxSession(graph.serialized())(batch)


@pytest.fixture(scope="module")
def ragged():
    """A model of 3 and 4 heads and of 96 and 40 neurons; no vector of it is equal to another."""
    model = small_model(layers=2)
    encoder_layers(model)[0].keep_heads([0, 1, 3])
    encoder_layers(model)[1].keep_neurons(range(40))
    torch.manual_seed(3)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    return model


@pytest.fixture(scope="module")
def matrix():
    return np.random.default_rng(0).normal(0.02, 0.1, (WIDTH, OUTPUTS)).astype(np.float32)


@pytest.mark.parametrize("attention", [True, False])
@pytest.mark.parametrize("family", FAMILY_NAMES)
def test_the_graph_computes_what_the_model_computes(family, attention):
    other = small_model(family, layers=2)
    encoder_layers(other)[0].keep_heads([0, 1, 3])
    graph = classifier_graph(other, attention)
    counts = graph.operators()
    assert counts["Attention" if attention else "MultiHeadAttention"] == 2 and counts["BiasGelu"] == 2
    assert counts["MatMul"] == 2 * (3 if attention else 4) + 2
    # A mask with holes is no length: tokens 2 and 5 are left out.
    batch = small_batch(2, 9)
    batch["attention_mask"] = torch.ones_like(batch["input_ids"])
    batch["attention_mask"][:, [2, 5]] = 0
    np.testing.assert_allclose(run(graph, batch), logits(other, batch), rtol=1e-4, atol=1e-5)


def test_an_electra_whose_embeddings_are_narrower_than_its_layers():
    config = ElectraConfig(vocab_size=60, embedding_size=16, hidden_size=48, num_hidden_layers=1, num_attention_heads=4)
    torch.manual_seed(0)
    model = AutoModelForSequenceClassification.from_config(config).eval()
    batch = small_batch(2, 9)
    np.testing.assert_allclose(run(classifier_graph(model), batch), logits(model, batch), rtol=1e-4, atol=1e-5)


def test_per_channel_has_a_scale_for_each_output_and_weights_are_on_the_symmetric_grid(ragged):
    """The first feed-forward matrix against NumPy: scale = largest weight / 127, zero point 0."""
    one, each = (quantize(ragged, name) for name in ("onnx-int8", "onnx-int8-channels"))
    sizes = [{row["name"]: row["bytes_after"] for row in layer_table(ragged, made)} for made in (one, each)]
    name = "bert.encoder.layer.0.intermediate.dense"
    assert sizes[1][name] - sizes[0][name] == 5 * (96 - 1)
    weight = encoder_layers(ragged)[0].feed_forward_in.weight.detach().numpy().T
    for made, axis in ((one, None), (each, 0)):
        scale = np.abs(weight).max(axis=axis, keepdims=axis is not None) / np.float32(127)
        by_hand = np.clip(np.round(weight / scale), -127, 127)
        stored = map(numpy_helper.to_array, onnx.load_from_string(made.graph).graph.initializer)
        found = [value for value in stored if value.dtype == np.int8 and value.shape == weight.shape]
        assert any(np.abs(value - by_hand).max() <= 1 and (value == by_hand).mean() > 0.995 for value in found)


def test_static_scales_are_the_range_of_the_calibration_rows_and_every_layer_multiplies_integers(ragged, tmp_path):
    """The input of the first feed-forward layer, against a hook on the float model; attention stays one operator."""
    rows, seen = single_rows(small_batch(4, 10)), []
    layer = encoder_layers(ragged)[0].feed_forward_in
    with layer.register_forward_hook(lambda _module, inputs, _output: seen.append(inputs[0])):
        for row in rows:
            logits(ragged, row)
    low, high = min(item.min() for item in seen), max(item.max() for item in seen)
    scale = float((max(high, 0) - min(low, 0)) / 255)
    made, other = quantize(ragged, "onnx-static-minmax", rows), quantize(ragged, "onnx-static-minmax", rows[:1])
    tensors = Graph(onnx.load_from_string(made.graph)).tensors().items()
    scales = [float(numpy_helper.to_array(item)) for name, item in tensors if name.endswith("_scale") and not item.dims]
    assert min(abs(found / scale - 1) for found in scales) < 1e-4
    assert not np.array_equal(logits(made, small_batch()), logits(other, small_batch()))
    options = session_options()
    options.optimized_model_filepath = str(tmp_path / "as_loaded.onnx")
    make_session(made.graph, options=options)
    counts = Graph(onnx.load(tmp_path / "as_loaded.onnx")).operators()
    assert counts["MatMulIntegerToFloat"] == 2 * 4 + 2 and counts["MultiHeadAttention"] == 2
    assert not {"MatMul", "Gemm"} & counts.keys()


def saturating_product(inputs, zero_point, weights):
    """U8S8 as x86 without VNNI computes it (vpmaddubsw): pairs of products along the width are added in 16 bits."""
    products = inputs.astype(np.int64)[:, :, None] * weights.astype(np.int64)[None]
    pairs = products.reshape(len(inputs), -1, 2, weights.shape[1]).sum(2).clip(-(2**15), 2**15 - 1)
    return pairs.sum(1) - int(zero_point) * weights.astype(np.int64).sum(0)


@pytest.fixture(scope="module")
def integer_product():
    """A graph that quantizes its input and multiplies it with int8 weights, many of them at the end of the range, and
    the weights."""
    weights = np.random.default_rng(0).integers(-127, 128, (256, 32)).astype(np.int8)
    weights[:, :8] = 127
    nodes = [helper.make_node("DynamicQuantizeLinear", ["x"], ["q", "scale", "zero"])]
    nodes += [helper.make_node("MatMulInteger", ["q", "weights", "zero"], ["y"])]
    kinds = {"y": TensorProto.INT32, "q": TensorProto.UINT8, "zero": TensorProto.UINT8}
    outputs = [helper.make_tensor_value_info(name, kind, None) for name, kind in kinds.items()]
    given = [helper.make_tensor_value_info("x", TensorProto.FLOAT, [None, 256])]
    made = helper.make_graph(nodes, "product", given, outputs, [numpy_helper.from_array(weights, "weights")])
    return helper.make_model(made, opset_imports=[helper.make_opsetid("", 18)], ir_version=10), weights


@pytest.mark.parametrize("vnni", [None, True, False])
def test_integer_products_are_exact_whatever_the_processor(integer_product, vnni, monkeypatch):
    """Where pairs would be added in 16 bits, sums of full-range products saturate; sessions say that they must not. The
    option changes nothing but speed on a processor with VNNI, so that it can be tried here (where None is what this
    processor gets). With weights of 7 bits nothing saturates either."""
    if vnni is not None:
        monkeypatch.setattr(sessions, "adds_in_32_bits", lambda: vnni)
        entry = session_options().get_session_config_entry(sessions.EXACT_PRODUCTS)
        assert entry == ("0" if vnni else "1")
    if vnni and not set(sessions.processor_flags()) & {"avx512_vnni", "avx_vnni", "amx_int8"}:
        return  # what this says is true of another processor
    graph, weights = integer_product
    states = np.random.default_rng(1).normal(size=(4, 256)).astype(np.float32)
    states[0] = np.abs(states[0]) + 3  # a row of large integers
    y, q, zero = make_session(graph.SerializeToString()).run(None, {"x": states})
    exact = (q.astype(np.int64) - int(zero)) @ weights.astype(np.int64)
    assert (saturating_product(q, zero, weights) != exact).sum() > 20  # the emulated instruction is not exact
    np.testing.assert_array_equal(y, exact)
    # Two products of 255 and 7-bit weights: 2 x 255 x 64 = 32,640 fits into 16 bits.
    halved = weights // 2
    exact = (q.astype(np.int64) - int(zero)) @ halved.astype(np.int64)
    np.testing.assert_array_equal(saturating_product(q, zero, halved), exact)


def test_processors_are_told_apart(monkeypatch):
    for machine, flags, wide in (
        ("x86_64", {"avx2"}, False),
        ("x86_64", {"avx512f", "avx512bw"}, False),
        ("x86_64", {"avx2", "avx_vnni"}, True),
        ("AMD64", {"avx512_vnni", "amx_int8"}, True),
        ("AMD64", set(), False),
        ("aarch64", set(), True),
    ):
        monkeypatch.setattr(sessions.platform, "machine", lambda machine=machine: machine)
        monkeypatch.setattr(sessions, "processor_flags", lambda flags=flags: flags)
        assert sessions.adds_in_32_bits.__wrapped__() == wide


def test_a_session_fills_what_is_not_given_and_says_what_is_wrong(ragged, tmp_path, integer_product):
    graph = classifier_graph(ragged)
    (path := tmp_path / "model.onnx").write_bytes(graph.serialized())
    session, ids = OnnxSession(path), small_batch(2, 9)["input_ids"]
    assert session.input_names == ("input_ids", "attention_mask", "token_type_ids")
    whole = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "token_type_ids": torch.zeros_like(ids)}
    np.testing.assert_array_equal(session({"input_ids": ids, "left": 1}), session(whole))
    with pytest.raises(ModelError, match="there is no file"):
        OnnxSession(tmp_path / "other.onnx")
    path.write_bytes(b"not a graph")
    with pytest.raises(ModelError, match="cannot be loaded by ONNX Runtime"):
        OnnxSession(path)
    with pytest.raises(ModelError, match="the graph takes x; a text classifier takes integers"):
        OnnxSession(integer_product[0].SerializeToString())


def grid_by_hand(weights):
    """(integers (rows, width), scales (rows, blocks), zero points (rows, blocks)) of float32 weights (rows, width),
    whose blocks lie along the width: 16 numbers from the lowest weight to the highest, 0 among them."""
    found = []
    for start in range(0, weights.shape[1], BLOCK):
        block = weights[:, start : start + BLOCK]
        low, high = np.minimum(block.min(1, keepdims=True), 0), np.maximum(block.max(1, keepdims=True), 0)
        scale = (high - low) / np.float32(15)
        zero_point = np.round(-low / scale)
        found.append((np.clip(np.round(block / scale) + zero_point, 0, 15), scale, zero_point))
    return tuple(np.hstack(parts) for parts in zip(*found, strict=True))


def on_grid(weights, integers=None):
    """What the integers stand for, float32 (rows, width)."""
    nearest, *grids = grid_by_hand(weights)
    scales, zero_points = (np.repeat(values, BLOCK, 1)[:, : weights.shape[1]] for values in grids)
    return (((nearest if integers is None else integers) - zero_points) * scales).astype(np.float32)


def halves(packed):
    """4-bit integers from bytes, the low half of each first."""
    return np.stack([packed & 15, packed >> 4], axis=-1).reshape(*packed.shape[:-1], -1)


def product_graph(matrix, table=None):
    """Given rows' product, and rows looked up."""
    stored = {"matrix": matrix} | ({} if table is None else {"table": table})
    nodes = [helper.make_node("MatMul", ["states", "matrix"], ["product"], name="linear")]
    inputs = [helper.make_tensor_value_info("states", TensorProto.FLOAT, ["n", len(matrix)])]
    if table is not None:
        nodes.append(helper.make_node("Gather", ["table", "ids"], ["rows"], name="look_up"))
        inputs.append(helper.make_tensor_value_info("ids", TensorProto.INT64, ["n"]))
    outputs = [helper.make_tensor_value_info(node.output[0], TensorProto.FLOAT, None) for node in nodes]
    tensors = [numpy_helper.from_array(value, name) for name, value in stored.items()]
    domains = [helper.make_opsetid("", 18), helper.make_opsetid("com.microsoft", 1)]
    made = helper.make_graph(nodes, "two", inputs, outputs, tensors)
    return Graph(helper.make_model(made, ir_version=10, opset_imports=domains))


@pytest.fixture(scope="module")
def looked_up(matrix):
    """float32 (ROWS, WIDTH) and the graph of rows looked up in it and of given rows' product, in 4 bits."""
    table = np.random.default_rng(5).normal(0.02, 0.1, (ROWS, WIDTH)).astype(np.float32)
    table[3] = np.abs(table[3])  # a row on one side of 0, which is still on its grid
    graph = product_graph(matrix, table)
    quantize_table(graph, graph.nodes[1])
    quantize_products(graph)
    return table, graph


def test_integers_scales_and_zero_points_are_those_worked_out_by_hand(looked_up, matrix):
    table, graph = looked_up
    stored, used = graph.tensors(), {node.op_type: node for node in graph.nodes}
    packed, scales, zero_points = (graph.array(name) for name in used["MatMulNBits"].input[1:4])
    found = [halves(packed).reshape(OUTPUTS, -1)[:, :WIDTH], scales.reshape(OUTPUTS, 3), halves(zero_points)[:, :3]]
    for one, wanted in zip(found, grid_by_hand(matrix.T), strict=True):
        np.testing.assert_allclose(one, wanted, rtol=1e-6)
    integers, _, scale, zero_point = used["GatherBlockQuantized"].input
    bytes_of = [np.frombuffer(stored[name].raw_data, np.uint8) for name in (integers, zero_point)]
    flat = [halves(bytes_of[0])[: ROWS * WIDTH].reshape(ROWS, WIDTH), graph.array(scale)]
    for one, wanted in zip([*flat, halves(bytes_of[1])[: ROWS * 3].reshape(ROWS, 3)], grid_by_hand(table), strict=True):
        np.testing.assert_allclose(one, wanted, rtol=1e-6)
    # 5 outputs of 3 blocks, each of 32 bytes and a scale, and 2 bytes of zero points; 7 rows of 150, none padded.
    sizes = [sum(len(stored[name].raw_data) for name in node.input if name in stored) for node in graph.nodes]
    assert sizes == [5 * (3 * (32 + 4) + 2), 525 + 4 * 21 + 11]


def test_operators_compute_with_the_rounded_weights(looked_up, matrix):
    table, graph = looked_up
    session, generator = make_session(graph.serialized()), np.random.default_rng(1)
    states = generator.integers(-127, 128, (4, WIDTH)).astype(np.float32)
    states[:, [5, 70, 140]] = 127  # so that every block's own scale is 1, and rounding to 8 bits changes nothing
    ids = np.array([3, 0, 6, 3])
    product, rows = session.run(["product", "rows"], {"ids": ids, "states": states})
    np.testing.assert_allclose(rows, on_grid(table)[ids], atol=1e-6)
    np.testing.assert_allclose(product, states @ on_grid(matrix.T).T, rtol=1e-4, atol=2e-3)
    # Inputs off that grid move by half a step of their block at most.
    states = generator.normal(size=(4, WIDTH)).astype(np.float32)
    largest = np.stack([np.abs(states[:, start : start + 64]).max(1) for start in (0, 64, 128)], 1)
    furthest = np.repeat(largest / 127, 64, 1)[:, :WIDTH] / 2 @ np.abs(on_grid(matrix.T).T)
    product = session.run(["product"], {"ids": ids, "states": states})[0]
    assert (np.abs(product - states @ on_grid(matrix.T).T) <= furthest + 1e-4).all()


def test_the_grid_is_that_of_onnx_runtimes_own_quantizer(matrix):
    from onnxruntime.quantization.matmul_nbits_quantizer import DefaultWeightOnlyQuantConfig, MatMulNBitsQuantizer

    config = DefaultWeightOnlyQuantConfig(block_size=BLOCK, is_symmetric=False, accuracy_level=4, bits=4)
    with quiet_libraries():
        quantizer = MatMulNBitsQuantizer(product_graph(matrix).model, algo_config=config)
        quantizer.process()
    theirs, mine = Graph(quantizer.model.model), product_graph(matrix)
    quantize_products(mine)
    (one,), (other,) = theirs.nodes, mine.nodes
    assert attributes(one) == attributes(other)
    for name, own, mask in zip(one.input[1:4], other.input[1:4], (None, None, 0x0F), strict=True):
        values = [theirs.array(name).reshape(-1), mine.array(own).reshape(-1)]
        if mask:  # three zero points an output take two bytes, of which the last half says nothing
            values = [np.delete(halves(value.reshape(OUTPUTS, 2)).reshape(OUTPUTS, 4), 3, 1) for value in values]
        np.testing.assert_array_equal(*values)


def test_uncorrelated_inputs_are_rounded_to_nearest(matrix):
    products = np.diag(np.random.default_rng(1).uniform(0.5, 2, WIDTH))
    nearest = grid_by_hand(matrix.T)[0].T
    np.testing.assert_array_equal(block_integers(matrix, products), nearest)
    np.testing.assert_array_equal(block_integers(matrix), nearest)


def test_a_second_weight_makes_good_for_the_first(monkeypatch):
    """Of two inputs with X^T X = [[a, b], [b, c]], the second weight that errs least is w2 + b / c (w1 - q1)."""
    monkeypatch.setattr(int4, "DAMPING", 0)
    generator = np.random.default_rng(2)
    weights = generator.uniform(-1, 1, (2, 500)).astype(np.float32)
    states = generator.normal(size=(50, 2)) @ np.array([[1, 0.9], [0, 0.4]])
    products = states.T @ states
    (scale,), (zero_point,) = int4.grid_of_blocks(weights, 2)
    first = np.clip(np.rint(weights[0] / scale) + zero_point, 0, 15)
    wanted = weights[1] + products[0, 1] / products[1, 1] * (weights[0] - (first - zero_point) * scale)
    second = np.clip(np.rint(wanted / scale) + zero_point, 0, 15)
    integers = block_integers(weights, products, 2)
    np.testing.assert_array_equal(integers, [first, second])
    assert (integers[1] != np.clip(np.rint(weights[1] / scale) + zero_point, 0, 15)).any()


def test_products_are_those_of_what_goes_into_each_layer(ragged):
    rows, graph = single_rows(small_batch(3, 9)), classifier_graph(ragged, attention=False)
    nodes = [node for node in graph.nodes if node.op_type == "MatMul"]
    found = products_of_inputs(graph, nodes, rows)
    assert len(nodes) == 2 * 4 + 2 == len(found)  # of a layer: query, key and value at once, two outputs, one between
    linear = [[layer.query, layer.key, layer.value] for layer in encoder_layers(ragged)]
    together = {id(module) for modules in linear for module in modules}
    linear += [[module] for module in ragged.modules() if isinstance(module, nn.Linear) and id(module) not in together]
    for modules in linear:
        matrix, seen = np.hstack([module.weight.detach().numpy().T for module in modules]), []
        # The pooler and the classifier see one vector a row, (1, width); the layers (1, tokens, width).
        hook = modules[0].register_forward_hook(
            lambda _module, inputs, _output, seen=seen: seen.append(inputs[0].flatten(0, -2).double().numpy())
        )
        for row in rows:
            logits(ragged, row)
        hook.remove()
        (name,) = {node.input[0] for node in nodes if np.array_equal(graph.array(node.input[1]), matrix)}
        np.testing.assert_allclose(found[name], sum(each.T @ each for each in seen), rtol=1e-3, atol=1e-4)


def test_layers_are_fitted_to_what_quantized_layers_before_them_give(ragged, monkeypatch):
    """As in the original: products of a later layer are taken in a graph whose earlier layers have 4 bits already."""
    seen, taken = [], int4.products_of_inputs

    def spy(graph, nodes, rows):
        counts = graph.operators()
        seen.append((counts.get("MatMulNBits", 0), counts.get("GatherBlockQuantized"), len(nodes)))
        return taken(graph, nodes, rows)

    monkeypatch.setattr(int4, "products_of_inputs", spy)
    rows = single_rows(small_batch(6))
    made = quantize(ragged, "onnx-int4-gptq", rows)
    assert seen == [(0, 1, 4), (4, 1, 4), (8, 1, 2)]  # two layers, then pooler and classifier; the table before all
    nearest = quantize(ragged, "onnx-int4-embeddings")
    found = ([logits(one, row) - logits(ragged, row) for row in rows] for one in (made, nearest))
    errors = [np.abs(np.concatenate(one)).mean() for one in found]
    assert errors[0] < errors[1]
    assert OnnxScheme(matrices=4).calibrated is False and OnnxScheme(matrices=4, compensated=True).calibrated
