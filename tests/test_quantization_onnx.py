"""Graphs of ONNX Runtime: fusion, the integers in them against NumPy, GPTQ, sessions whose products are exact, and edge
bundles, which compute what the model computes, and nothing that no answer needs."""

import numpy as np
import onnx
import pytest
import torch
from onnx import helper, numpy_helper
from small_models import small_batch, unequal
from transformers import AutoModelForSequenceClassification, ElectraConfig

from edgemin_utils.encoders import encoder_layers, input_names, state_width
from edgemin_utils.errors import ModelError
from edgemin_utils.quantization import onnx_schemes, sessions
from edgemin_utils.quantization.fake import linear_layers
from edgemin_utils.quantization.onnx_graph import Graph, classifier_graph
from edgemin_utils.quantization.onnx_schemes import BLOCK, block_integers, pack_products, pack_table, products_of_inputs
from edgemin_utils.quantization.schemes import quantize, quiet_libraries, stored_sizes
from edgemin_utils.quantization.sessions import OnnxSession, make_session, session_options

WIDTH, OUTPUTS, ROWS = 150, 5, 7  # two blocks of 64 and one of 22
MATRIX = np.random.default_rng(0).normal(0.02, 0.1, (WIDTH, OUTPUTS)).astype(np.float32)
LONGEST = 24  # input of an edge bundle


def logits(model, batch):
    with torch.inference_mode():
        return model(**{name: batch[name] for name in input_names(model) if name in batch}).logits.float().numpy()


def single_rows(batch):
    """Inputs of single rows, without padding."""
    lengths, names = batch["attention_mask"].sum(1).tolist(), [name for name in batch if name != "labels"]
    return [{name: batch[name][[row], :length] for name in names} for row, length in enumerate(lengths)]


def inputs_of(model, module, rows):
    """What goes into a module, float64 (tokens of all rows, width)."""
    seen = []
    with module.register_forward_pre_hook(lambda _module, inputs: seen.append(inputs[0].flatten(0, -2).double())):
        for row in rows:
            logits(model, row)
    return torch.cat(seen).numpy()


def attributes(node):
    return {item.name: helper.get_attribute_value(item) for item in node.attribute}


def parsed(text, **tensors):
    """A graph from ONNX's own notation, and its stored tensors."""
    model = onnx.parser.parse_model(f'<ir_version: 10, opset_import: ["": 18, "com.microsoft": 1]> {text}')
    model.graph.initializer.extend(numpy_helper.from_array(value, name) for name, value in tensors.items())
    return Graph(model)


@pytest.fixture(scope="module")
def ragged():
    return unequal()


@pytest.mark.parametrize("attention", [True, False])
def test_the_graph_computes_what_the_model_computes(family, attention):
    other = unequal(family)
    graph = classifier_graph(other, attention)
    counts = graph.operators()
    assert counts["Attention" if attention else "MultiHeadAttention"] == 2 and counts["BiasGelu"] == 2
    assert counts["MatMul"] == 2 * (3 if attention else 4) + 2
    # A mask with holes is no length: tokens 2 and 5 are left out.
    batch = small_batch(2, 9) | {"attention_mask": torch.tensor([[1, 1, 0, 1, 1, 0, 1, 1, 1]] * 2)}
    found = OnnxSession(graph.serialized())(batch)
    np.testing.assert_allclose(found, logits(other, batch), rtol=1e-4, atol=1e-5)


def test_an_electra_whose_embeddings_are_narrower_than_its_layers():
    config = ElectraConfig(vocab_size=60, embedding_size=16, hidden_size=48, num_hidden_layers=1, num_attention_heads=4)
    torch.manual_seed(0)
    model = AutoModelForSequenceClassification.from_config(config).eval()
    assert state_width(model, "embeddings") == 16
    session, batch = OnnxSession(classifier_graph(model).serialized()), small_batch(2, 9)
    np.testing.assert_allclose(session(batch), logits(model, batch), rtol=1e-4, atol=1e-5)


def test_per_channel_has_a_scale_for_each_output_and_weights_are_on_the_symmetric_grid(ragged):
    """The first feed-forward matrix against NumPy: scale = largest weight / 127, zero point 0."""
    one, each = (quantize(ragged, name) for name in ("onnx-int8", "onnx-int8-channels"))
    sizes = [stored_sizes(made)["bert.encoder.layer.0.intermediate.dense.weight"][1] for made in (one, each)]
    assert sizes[1] - sizes[0] == 5 * (96 - 1)
    weight = encoder_layers(ragged)[0].feed_forward_in.weight.detach().numpy().T
    for made, axis in ((one, None), (each, 0)):
        scale = np.abs(weight).max(axis=axis, keepdims=axis is not None) / np.float32(127)
        by_hand = np.clip(np.round(weight / scale), -127, 127)
        stored = map(numpy_helper.to_array, onnx.load_from_string(made.graph).graph.initializer)
        found = [value for value in stored if value.dtype == np.int8 and value.shape == weight.shape]
        assert any(np.abs(value - by_hand).max() <= 1 and (value == by_hand).mean() > 0.995 for value in found)


def test_static_scales_are_the_range_of_the_calibration_rows_and_every_layer_multiplies_integers(ragged, tmp_path):
    """The input of the first feed-forward layer, against a hook on the float model; attention stays one operator."""
    rows = single_rows(small_batch(4, 10))
    seen = inputs_of(ragged, encoder_layers(ragged)[0].feed_forward_in, rows)
    scale = (max(seen.max(), 0) - min(seen.min(), 0)) / 255
    made = quantize(ragged, "onnx-static-minmax", rows)
    tensors = Graph(onnx.load_from_string(made.graph)).tensors().items()
    scales = [float(numpy_helper.to_array(item)) for name, item in tensors if name.endswith("_scale") and not item.dims]
    assert min(abs(found / scale - 1) for found in scales) < 1e-4
    options = session_options()
    options.optimized_model_filepath = str(tmp_path / "as_loaded.onnx")
    make_session(made.graph, options=options)
    counts = Graph(onnx.load(tmp_path / "as_loaded.onnx")).operators()
    assert counts["MatMulIntegerToFloat"] == 2 * 4 + 2 and counts["MultiHeadAttention"] == 2
    assert not {"MatMul", "Gemm"} & counts.keys()


@pytest.fixture(scope="module")
def integer_product():
    """A graph that quantizes its input and multiplies it with int8 weights, many at the end of the range, and these."""
    weights = np.random.default_rng(0).integers(-127, 128, (256, 32)).astype(np.int8)
    weights[:, :8] = 127
    text = """product (float[n, 256] x) => (int32[n, 32] y, uint8[n, 256] q, uint8 zero)
        { q, scale, zero = DynamicQuantizeLinear(x)  y = MatMulInteger(q, weights, zero) }"""
    return parsed(text, weights=weights).serialized(), weights


@pytest.mark.parametrize("asked", [False, True])
def test_integer_products_are_exact_whatever_the_processor(integer_product, asked, monkeypatch):
    """Pairs of products added in 16 bits would saturate; what forbids that changes on VNNI nothing but speed."""
    if asked:
        monkeypatch.setattr(sessions, "adds_in_32_bits", lambda: False)
    graph, weights = integer_product
    states = np.random.default_rng(1).normal(size=(4, 256)).astype(np.float32)
    states[0] = np.abs(states[0]) + 3  # a row of large integers
    y, q, zero = make_session(graph).run(None, {"x": states})
    pairs = (q[:, :, None].astype(np.int64) * weights).reshape(4, 128, 2, 32).sum(2)
    assert (pairs >= 2**15).sum() > 20  # where vpmaddubsw would saturate
    np.testing.assert_array_equal(y, (q.astype(np.int64) - int(zero)) @ weights.astype(np.int64))


def test_sessions_know_processors_that_add_in_32_bits(monkeypatch):
    monkeypatch.setattr(sessions, "adds_in_32_bits", sessions.adds_in_32_bits.__wrapped__)
    cases = [("x86_64", {"avx2", "avx512f", "avx512bw"}, False), ("x86_64", {"avx2", "avx_vnni"}, True)]
    for machine, flags, wide in [*cases, ("AMD64", {"avx512_vnni", "amx_int8"}, True), ("aarch64", set(), True)]:
        monkeypatch.setattr(sessions.platform, "machine", lambda machine=machine: machine)
        monkeypatch.setattr(sessions, "processor_flags", lambda flags=flags: flags)
        assert session_options().get_session_config_entry(sessions.EXACT_PRODUCTS) == ("0" if wide else "1")


def test_a_session_fills_what_is_not_given_and_says_what_is_wrong(ragged, integer_product):
    session, ids = OnnxSession(classifier_graph(ragged).serialized()), small_batch(2, 9)["input_ids"]
    assert tuple(session.types) == ("input_ids", "attention_mask", "token_type_ids")
    whole = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "token_type_ids": torch.zeros_like(ids)}
    np.testing.assert_array_equal(session({"input_ids": ids, "left": 1}), session(whole))
    with pytest.raises(ModelError, match="the graph takes x; a text classifier takes integers"):
        OnnxSession(integer_product[0])


def grid_by_hand(weights):
    """(integers (rows, width), scales, zero points (rows, blocks)): 16 numbers from a block's lowest to its highest."""
    found = []
    for block in np.split(weights, range(BLOCK, weights.shape[1], BLOCK), axis=1):
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


def two_operators(table):
    """Given rows' product, and rows looked up."""
    text = f"""two (float[n, {WIDTH}] states, int64[n] ids) => (float[n, {OUTPUTS}] product, float[n, {WIDTH}] rows)
        {{ product = MatMul(states, matrix)  rows = Gather(table, ids) }}"""
    return parsed(text, matrix=MATRIX, table=table)


@pytest.fixture(scope="module")
def looked_up():
    """float32 (ROWS, WIDTH) and the graph of rows looked up in it and of given rows' product, in 4 bits."""
    table = np.random.default_rng(5).normal(0.02, 0.1, (ROWS, WIDTH)).astype(np.float32)
    table[3] = np.abs(table[3])  # a row on one side of 0, which is still on its grid
    graph = two_operators(table)
    pack_table(graph, graph.nodes[1])
    pack_products(graph)
    return table, graph


def test_integers_scales_and_zero_points_are_those_worked_out_by_hand_and_by_onnx_runtime(looked_up):
    from onnxruntime.quantization.matmul_nbits_quantizer import DefaultWeightOnlyQuantConfig, MatMulNBitsQuantizer

    table, graph = looked_up
    config = DefaultWeightOnlyQuantConfig(block_size=BLOCK, is_symmetric=False, accuracy_level=4, bits=4)
    with quiet_libraries():
        quantizer = MatMulNBitsQuantizer(two_operators(table).model, algo_config=config)
        quantizer.process()
    nodes = []
    for each in (graph, Graph(quantizer.model.model)):
        nodes += [node for node in each.nodes if node.op_type == "MatMulNBits"]
        packed, scales, zero_points = (each.array(name) for name in nodes[-1].input[1:4])
        found = [halves(packed).reshape(OUTPUTS, -1)[:, :WIDTH], scales.reshape(OUTPUTS, 3)]
        found.append(halves(zero_points.reshape(OUTPUTS, 2))[:, :3])  # the last half of two bytes says nothing
        np.testing.assert_allclose(np.hstack(found), np.hstack(grid_by_hand(MATRIX.T)), rtol=1e-6)
    assert attributes(nodes[0]) == attributes(nodes[1])
    integers, _, scale, zero_point = graph.nodes[1].input
    stored = {name: np.frombuffer(item.raw_data, np.uint8) for name, item in graph.tensors().items()}
    found = [halves(stored[integers])[: ROWS * WIDTH].reshape(ROWS, WIDTH), graph.array(scale)]
    found.append(halves(stored[zero_point])[: ROWS * 3].reshape(ROWS, 3))
    np.testing.assert_allclose(np.hstack(found), np.hstack(grid_by_hand(table)), rtol=1e-6)
    # 5 outputs of 3 blocks, each of 32 bytes and a scale, and 2 bytes of zero points; 7 rows of 150, none padded.
    sizes = [sum(stored[name].size for name in node.input if name in stored) for node in graph.nodes]
    assert sizes == [5 * (3 * (32 + 4) + 2), 525 + 4 * 21 + 11]


def test_operators_compute_with_the_rounded_weights(looked_up):
    table, graph = looked_up
    states = np.random.default_rng(1).integers(-127, 128, (4, WIDTH)).astype(np.float32)
    states[:, [5, 70, 140]] = 127  # so that every block's own scale is 1, and rounding to 8 bits changes nothing
    ids = np.array([3, 0, 6, 3])
    product, rows = make_session(graph.serialized()).run(None, {"ids": ids, "states": states})
    np.testing.assert_allclose(rows, on_grid(table)[ids], atol=1e-6)
    np.testing.assert_allclose(product, states @ on_grid(MATRIX.T).T, rtol=1e-4, atol=2e-3)


def test_uncorrelated_inputs_are_rounded_to_nearest():
    products = np.diag(np.random.default_rng(1).uniform(0.5, 2, WIDTH))
    np.testing.assert_array_equal(block_integers(MATRIX, products), grid_by_hand(MATRIX.T)[0].T)


def test_a_second_weight_makes_good_for_the_first(monkeypatch):
    """Of two inputs with X^T X = [[a, b], [b, c]], the second weight that errs least is w2 + b / c (w1 - q1)."""
    monkeypatch.setattr(onnx_schemes, "DAMPING", 0)
    monkeypatch.setattr(onnx_schemes, "BLOCK", 2)
    generator = np.random.default_rng(2)
    weights = generator.uniform(-1, 1, (2, 500)).astype(np.float32)
    states = generator.normal(size=(50, 2)) @ np.array([[1, 0.9], [0, 0.4]])
    products = states.T @ states
    (scale,), (zero_point,) = onnx_schemes.grid_of_blocks(weights)
    first = np.clip(np.rint(weights[0] / scale) + zero_point, 0, 15)
    wanted = weights[1] + products[0, 1] / products[1, 1] * (weights[0] - (first - zero_point) * scale)
    second = np.clip(np.rint(wanted / scale) + zero_point, 0, 15)
    integers = block_integers(weights, products)
    np.testing.assert_array_equal(integers, [first, second])
    assert (integers[1] != np.clip(np.rint(weights[1] / scale) + zero_point, 0, 15)).any()


def test_products_are_those_of_what_goes_into_each_layer(ragged):
    rows, graph = single_rows(small_batch(3, 9)), classifier_graph(ragged, attention=False)
    nodes = [node for node in graph.nodes if node.op_type == "MatMul"]
    found = products_of_inputs(graph, nodes, rows)
    assert len(nodes) == 2 * 4 + 2 == len(found)  # of a layer: query, key and value at once, two outputs, one between
    states = {node.input[1]: node.input[0] for node in nodes}
    for name, module in linear_layers(ragged).items():
        seen = inputs_of(ragged, module, rows)
        products = found[states[graph.names[f"{name}.weight"]]]
        np.testing.assert_allclose(products, seen.T @ seen, rtol=1e-3, atol=1e-4)


def test_layers_are_fitted_to_what_quantized_layers_before_them_give(ragged, monkeypatch):
    """As in the original: products of a later layer are taken in a graph whose earlier layers have 4 bits already."""
    seen, taken = [], onnx_schemes.products_of_inputs

    def spy(graph, nodes, rows):
        counts = graph.operators()
        seen.append((counts.get("MatMulNBits", 0), counts.get("GatherBlockQuantized"), len(nodes)))
        return taken(graph, nodes, rows)

    monkeypatch.setattr(onnx_schemes, "products_of_inputs", spy)
    rows = single_rows(small_batch(6))
    made = quantize(ragged, "onnx-int4-gptq", rows)
    assert seen == [(0, 1, 4), (4, 1, 4), (8, 1, 2)]  # two layers, then pooler and classifier; the table before all
    nearest = quantize(ragged, "onnx-int4-embeddings")
    found = ([logits(one, row) - logits(ragged, row) for row in rows] for one in (made, nearest))
    errors = [np.abs(np.concatenate(one)).mean() for one in found]
    assert errors[0] < errors[1]


def made_by(scheme, model, pair=False):
    types = (torch.arange(12) >= 5).long().repeat(6, 1) * int(pair)
    return quantize(model, scheme, single_rows(small_batch(6, 12) | {"token_type_ids": types}), LONGEST)


@pytest.fixture(scope="module")
def edges(ragged):
    """Scheme -> its classifier for single texts; "pair": the first one's for pairs."""
    made = {name: made_by(name, ragged) for name in "edge-int8 edge-int8-int4 edge-int4".split()}
    return made | {"pair": made_by("edge-int8", ragged, pair=True)}


@pytest.fixture(scope="module", params=["bert", "roberta", "distilbert"])
def made(request):
    """A model of unequal layers and its INT8 graph."""
    model = unequal(request.param)
    return model, Graph(onnx.load_from_string(made_by("edge-int8", model).graph))


def test_answers_are_those_of_the_model_but_for_rounding(made):
    model, graph = made
    session, batch = OnnxSession(graph.serialized()), small_batch(4, 12)
    batch["input_ids"] = torch.where(batch["attention_mask"].bool(), batch["input_ids"], model.config.pad_token_id)
    wanted = logits(model, batch)
    assert np.abs(session(batch) - wanted).max() < 0.05 * np.abs(wanted).max() + 0.02
    # Padding is no part of an answer, but for the scale that the rows of a batch share.
    alone = session({name: batch[name][2:3, :10] for name in ("input_ids", "attention_mask")})
    assert np.abs(alone - wanted[2:3]).max() < 0.05 * np.abs(wanted).max() + 0.02


def test_inputs_are_ids_and_mask_alone_and_layers_are_fused(made):
    _, graph = made
    assert [item.name for item in graph.model.graph.input] == ["input_ids", "attention_mask"]
    assert [item.name for item in graph.model.graph.output] == ["logits"]
    assert [attributes(node)["num_heads"] for node in graph.nodes if node.op_type == "QAttention"] == [3, 4]
    # Sums and norms stand apart.
    assert "SkipLayerNormalization" not in graph.operators() and graph.operators()["LayerNormalization"] == 5
    # Of positions none that no input reaches, nor those that RoBERTa reserves for padding.
    assert {(60, 48), (LONGEST, 48)} <= {tuple(item.dims) for item in graph.tensors().values()}


def test_the_last_layer_is_computed_for_the_first_token_alone(made):
    """Tokens in the inputs of all products, in the graph's order: behind the last attention one is left of ten."""
    model, graph = made
    names = [node.input[0] for node in graph.nodes if node.op_type in ("QAttention", "MatMulInteger")]
    shown = onnx.ModelProto.FromString(graph.serialized())
    shown.graph.output.extend(onnx.ValueInfoProto(name=name) for name in names)
    session = OnnxSession(shown.SerializeToString())
    found = session.session.run(names, session.feed({"input_ids": small_batch(1, 10)["input_ids"]}))
    tokens = [value.shape[1] if value.ndim == 3 else 1 for value in found]
    # Two layers of attention, its output and two of feed-forward; then what the family puts before its labels.
    assert tokens[:8] == [10] * 5 + [1] * 3 and set(tokens[8:]) == {1}


def test_a_pair_keeps_its_token_types(ragged, edges):
    model, made = ragged, edges["pair"]
    assert tuple(made.session().types) == input_names(model)
    batch = small_batch(2, 10) | {"token_type_ids": (torch.arange(10) >= 5).long().repeat(2, 1)}
    wanted = logits(model, batch)
    single = logits(model, {**batch, "token_type_ids": torch.zeros_like(batch["token_type_ids"])})
    error = np.abs(logits(made, batch) - wanted).max()
    assert error < 0.05 * np.abs(wanted).max() + 0.02 and error < np.abs(single - wanted).max() / 2


def test_rows_of_a_table_are_rounded_each_by_its_own_scale():
    table = np.array([[1.0, -2.54, 0.01], [0.0, 0.0, 0.0], [100.0, 50.0, -127.0]], dtype=np.float32)
    integers, scales = onnx_schemes.quantize_rows(table)
    assert integers.dtype == np.int8 and scales.dtype == np.float32 and scales.shape == (3, 1)
    assert scales[:, 0].tolist() == pytest.approx([0.02, 0.0, 1.0])
    assert integers.tolist() == [[50, -127, 0], [0, 0, 0], [100, 50, -127]]


def test_sizes_are_told_as_stored(ragged, edges):
    """Table and positions with their scales, token types that became part of the positions, matrices by bits."""
    sizes = {name: stored_sizes(one) for name, one in edges.items()}
    names = ("word", "position", "token_type")
    word, positions, types = (f"bert.embeddings.{name}_embeddings.weight" for name in names)
    assert sizes["edge-int8"][word] == (60 * 48, 60 * (48 + 4))
    assert sizes["edge-int8-int4"][word] == sizes["edge-int4"][word] == (60 * 48, 60 * 24 + 60 * 4 + 30)
    assert all(one[positions] == (LONGEST * 48, LONGEST * (48 + 4)) for one in sizes.values())
    assert sizes["edge-int8"][types] == (0, 0) and sizes["pair"][types] == (96, 4 * 96)
    for name, module in linear_layers(ragged).items():
        outputs, width = module.weight.shape
        assert sizes["edge-int8"][f"{name}.weight"] == (outputs * width, outputs * (width + 5))
        assert sizes["edge-int4"][f"{name}.weight"][1] == outputs * (-(-width // 64) * 36 + 1)
    assert len(edges["edge-int4"].graph) < len(edges["edge-int8-int4"].graph) < len(edges["edge-int8"].graph)
