"""Every scheme: what it computes, stores, loads and refuses. One small model, so that it is exported once."""

import builtins
import json
import re

import numpy as np
import pytest
import torch
from conftest import PROJECT
from safetensors.torch import load_file
from small_models import FAMILY_NAMES, small_batch, small_model, tokenized_sentences
from transformers import AutoModelForSequenceClassification

from edgemin_utils.config import EVERY_SCHEME
from edgemin_utils.encoders import describe_model, encoder_layers, input_names
from edgemin_utils.errors import MethodRefused, ModelError, SettingError
from edgemin_utils.measurement.memory import peak_memory
from edgemin_utils.measurement.operations import closed_formula_macs, count_operations, macs_by_precision
from edgemin_utils.measurement.parameters import (
    bytes_by_part,
    framework_parameters,
    saved_bytes,
    stored_weights,
    weights_by_part,
)
from edgemin_utils.quantization import SCHEMES, layer_table, load_model, onnx_schemes, quantize, save_quantized
from edgemin_utils.quantization.onnx_export import check_against, export_graph, fuse, operator_counts
from edgemin_utils.quantization.onnx_model import ONNX_FILE, OnnxClassifier
from edgemin_utils.quantization.onnx_schemes import _rows_reader
from edgemin_utils.quantization.torch_dynamic import QUANTIZED_WEIGHTS_FILE
from edgemin_utils.quantization.weight_only import INT4_WEIGHTS_FILE
from edgemin_utils.training import predict

WEIGHTS_FILES = {"dynamic": QUANTIZED_WEIGHTS_FILE, "onnx": ONNX_FILE, "weight": INT4_WEIGHTS_FILE}
ONNX_SCHEMES = [name for name in EVERY_SCHEME if name.startswith("onnx")]
# Their layers multiply integers; the kernels of ONNX Runtime do so with 4-bit weights too.
INTEGER_PRODUCTS = [name for name in EVERY_SCHEME if "int8" in name or name.startswith("onnx-int4")]
# What does not depend on the rows beside a row.
FREE_OF_THE_BATCH = [name for name in EVERY_SCHEME if "dynamic" not in name]


def logits(model, batch):
    with torch.inference_mode():
        return model(**{name: batch[name] for name in input_names(model) if name in batch}).logits


def single_rows(batch):
    return [
        {name: values[row : row + 1] for name, values in batch.items() if name != "labels"}
        for row in range(len(batch["input_ids"]))
    ]


@pytest.fixture(scope="module")
def model():
    return small_model(layers=2)


@pytest.fixture(scope="module")
def quantized(model):
    """Scheme -> the quantized form of `model`."""
    return {name: quantize(model, name, single_rows(small_batch(6))) for name in EVERY_SCHEME}


@pytest.fixture(scope="module")
def folders(quantized, tmp_path_factory):
    made = {}
    for name, one in quantized.items():
        made[name] = tmp_path_factory.mktemp(name)
        save_quantized(one, made[name], name)
    return made


def test_settings_know_every_scheme():
    assert tuple(SCHEMES) == EVERY_SCHEME


# ---- every scheme ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", EVERY_SCHEME)
def test_logits_stay_near_and_the_original_is_left_alone(name, model, quantized):
    batch = small_batch()
    wanted = logits(small_model(layers=2), batch)
    assert torch.equal(logits(model, batch), wanted)
    difference = float((logits(quantized[name], batch) - wanted).abs().max() / wanted.abs().max())
    if name == "onnx-float32":
        assert difference < 1e-5
    else:
        assert 0 < difference < (0.6 if "int4" in name else 0.1)


@pytest.mark.parametrize("name", EVERY_SCHEME)
def test_saved_and_reloaded_model_gives_the_same_logits(name, quantized, folders):
    reloaded = load_model(folders[name])
    for batch in (small_batch(), small_batch(1, 17), small_batch(2, 64)):
        assert torch.equal(logits(reloaded, batch), logits(quantized[name], batch))
    assert not reloaded.training and not list(folders[name].glob("*.bin")) and not list(folders[name].glob("*.pt"))


@pytest.mark.parametrize("name", EVERY_SCHEME)
def test_loading_draws_no_random_weights_first(name, folders):
    """A float model that is built only to be overwritten costs time and most of the peak memory."""
    before = torch.get_rng_state()
    reloaded = load_model(folders[name])
    assert torch.equal(torch.get_rng_state(), before)
    assert not any(tensor.is_meta for tensor in (*reloaded.parameters(), *reloaded.buffers()))


@pytest.mark.parametrize("name", EVERY_SCHEME)
def test_weights_layers_and_bytes_add_up(name, model, folders):
    reloaded = load_model(folders[name])
    table = layer_table(model, reloaded)
    assert sum(row["parameters"] for row in table) == stored_weights(reloaded) == framework_parameters(model)
    assert weights_by_part(reloaded) == weights_by_part(model)
    assert sum(row["bytes_after"] for row in table) == sum(bytes_by_part(reloaded).values())
    kinds = {row["kind"] for row in table if row["quantized"]}
    assert kinds == (
        set() if name == "onnx-float32" else {"Linear", "Embedding"} if "embeddings" in name else {"Linear"}
    )
    linear = [row for row in table if row["kind"] == "Linear"]
    assert len({row["quantized"] for row in linear}) == 1
    extra = saved_bytes(folders[name])["model_bytes"] - sum(bytes_by_part(reloaded).values())
    assert 0 < extra < 25_000  # names, shapes, operators, config.json


@pytest.mark.parametrize("name", EVERY_SCHEME)
def test_shape_and_operations_are_those_of_the_float_model(name, model, folders):
    reloaded = load_model(folders[name])
    assert describe_model(reloaded) == describe_model(model)
    counted = count_operations(reloaded, 1, 9)
    assert counted["macs"] == closed_formula_macs(model, 1, 9)
    integer = name in INTEGER_PRODUCTS
    alike = "dynamic-int8" if integer else "weight-int4"  # what its bound on this machine is computed from
    assert macs_by_precision(reloaded, 1, 9) == macs_by_precision(load_model(folders[alike]), 1, 9)
    assert bool(macs_by_precision(reloaded, 1, 9)["int8"]) == integer
    # PyTorch's INT4 computes in float32 and is counted as it is; no tool sees into ONNX Runtime.
    assert bool(counted["note"]) != name.startswith("weight-int4")
    assert counted["fvcore_macs"] is None or not name.startswith("onnx")


@pytest.mark.parametrize("name", FREE_OF_THE_BATCH)
def test_a_row_does_not_depend_on_the_rows_beside_it(name, quantized):
    batch = small_batch(4, 12)
    together = logits(quantized[name], batch)
    alone = torch.cat([logits(quantized[name], row) for row in single_rows(batch)])
    torch.testing.assert_close(together, alone, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", EVERY_SCHEME)
def test_damaged_weights_are_one_clear_error(name, folders, tmp_path):
    file = WEIGHTS_FILES[name.split("-")[0]]
    for path in folders[name].iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    content = (tmp_path / file).read_bytes()
    for damaged in (content[: len(content) // 2], b"", b"not a model"):
        (tmp_path / file).write_bytes(damaged)
        with pytest.raises(ModelError, match="truncated or damaged.*quantize anew"):
            load_model(tmp_path)
    (tmp_path / file).unlink()
    with pytest.raises(ModelError, match="quantize anew"):
        load_model(tmp_path)


def test_stock_loading_of_a_quantized_folder_says_how_to_load_it(folders):
    with pytest.raises(ValueError, match=r"load this folder with edgemin_utils\.quantization\.load_model"):
        AutoModelForSequenceClassification.from_pretrained(folders["dynamic-int8"])


def test_a_folder_of_an_unknown_scheme_names_it(folders, tmp_path):
    config = json.loads((folders["weight-int4"] / "config.json").read_text())
    config["edgemin"]["scheme"] = "weight-int3"
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(SettingError, match="did you mean 'weight-int4'"):
        load_model(tmp_path)


def test_unknown_scheme_names_the_nearest(model):
    with pytest.raises(SettingError, match="did you mean 'dynamic-int8'"):
        quantize(model, "dynamic-int7")


def test_the_readmes_scheme_of_ten_lines_works(model, tmp_path, monkeypatch):
    text = (PROJECT / "README.md").read_text().split("### A new scheme in ten lines")[1]
    defined = {}
    exec(re.search(r"```python\n(.*?)```", text, flags=re.DOTALL)[1], defined)
    monkeypatch.setitem(SCHEMES, "bfloat16", defined["Bfloat16"]())
    made = quantize(model, "bfloat16")
    save_quantized(made, tmp_path, "bfloat16")
    batch, reloaded = small_batch(), load_model(tmp_path)
    assert torch.equal(logits(reloaded, batch), logits(made, batch))
    assert (logits(made, batch).float() - logits(model, batch)).abs().max() < 0.05
    assert sum(bytes_by_part(reloaded).values()) == 2 * framework_parameters(model)
    assert SCHEMES["bfloat16"].describe(made)["arithmetic"] == "bfloat16 in PyTorch"


# ---- PyTorch ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["dynamic-int8", "dynamic-int8-embeddings", "weight-int4-embeddings"])
@pytest.mark.parametrize("family", FAMILY_NAMES)
def test_cut_models_of_every_family_come_back(family, name, tmp_path):
    cut, batch = small_model(family), small_batch()
    encoder_layers(cut)[0].keep_heads([1, 3])
    made = quantize(cut, name)
    save_quantized(made, tmp_path, name)
    assert torch.equal(logits(load_model(tmp_path), batch), logits(made, batch))


def test_weights_are_rounded_to_the_grid_of_one_scale_a_matrix(model, quantized):
    """Against symmetric rounding worked out with NumPy: w / scale rounded, scale = largest weight / 127.5."""
    weight = encoder_layers(model)[0].query.weight.detach().numpy()
    packed = encoder_layers(quantized["dynamic-int8"])[0].query.weight()
    scale = packed.q_scale()
    assert scale == pytest.approx(np.abs(weight).max() / 127.5, rel=1e-5)
    by_hand = np.clip(np.round(weight / np.float32(scale)), -128, 127)
    assert np.abs(by_hand - packed.int_repr().numpy()).max() <= 1  # a tie may round either way
    assert (by_hand == packed.int_repr().numpy()).mean() > 0.999
    assert np.abs(packed.dequantize().numpy() - weight).max() <= scale / 2 * 1.01


def test_packed_weights_vanish_from_the_framework_count_but_are_all_stored(model, quantized):
    linear = sum(
        parameter.numel()
        for module in model.modules()
        if isinstance(module, torch.nn.Linear)
        for parameter in module.parameters()
    )
    assert framework_parameters(quantized["dynamic-int8"]) == framework_parameters(model) - linear
    assert framework_parameters(quantized["onnx-float32"]) == 0


@pytest.mark.parametrize("name", ["dynamic-int8", "dynamic-int8-embeddings", "weight-int4", "weight-int4-embeddings"])
def test_bytes_are_those_of_the_stored_tensors(name, model, quantized, folders):
    stored = load_file(folders[name] / WEIGHTS_FILES[name.split("-")[0]]).values()
    assert sum(row["bytes_after"] for row in layer_table(model, quantized[name])) == sum(
        value.numel() * value.element_size() for value in stored
    )


def test_int4_takes_half_a_byte_a_weight_and_two_bytes_a_group(model, quantized):
    rows = {row["name"]: row for row in layer_table(model, quantized["weight-int4"])}
    row = rows["bert.encoder.layer.0.attention.self.query"]  # 48 x 48: two groups a row, 32 and 16
    assert row["bytes_after"] == 48 * 24 + 2 * 2 * 48 + 4 * 48


# ---- ONNX Runtime ----------------------------------------------------------------------------------------------


def test_what_was_fused_is_in_the_description(quantized):
    said = {name: SCHEMES[name].describe(quantized[name]) for name in ONNX_SCHEMES}
    assert said["onnx-dynamic-int8"]["operators"]["QAttention"] == said["onnx-float32"]["operators"]["Attention"] == 2
    assert said["onnx-static-int8-minmax"]["fused_attention"] == 0
    assert "as single products" in said["onnx-static-int8-minmax"]["fusion"]


def test_per_channel_has_a_scale_for_each_output(model, quantized):
    one, each = (
        {row["name"]: row["bytes_after"] for row in layer_table(model, quantized[name])}
        for name in ("onnx-dynamic-int8", "onnx-dynamic-int8-channels")
    )
    name = "bert.encoder.layer.0.intermediate.dense"
    assert each[name] - one[name] == 5 * (96 - 1)


def test_every_linear_layer_of_a_static_graph_multiplies_integers(quantized, tmp_path):
    """As ONNX Runtime makes it of the graph when it loads it: no product with float32 inputs but attention's."""
    import onnx
    import onnxruntime

    for name in (name for name in ONNX_SCHEMES if "static" in name):
        options = onnxruntime.SessionOptions()
        options.optimized_model_filepath, options.log_severity_level = str(tmp_path / f"{name}.onnx"), 3
        onnxruntime.InferenceSession(quantized[name].graph, options, providers=["CPUExecutionProvider"])
        counts = operator_counts(onnx.load(tmp_path / f"{name}.onnx"))
        assert counts["MatMulIntegerToFloat"] == 2 * 6 and counts["QGemm"] == 2
        assert counts.get("MatMul", 0) + counts.get("FusedMatMul", 0) == 2 * 2 and "Gemm" not in counts


def test_int8_weights_in_the_graph_are_on_the_symmetric_grid(model, quantized):
    """The first feed-forward matrix against NumPy: scale = largest weight / 127, zero point 0."""
    import onnx

    weight = encoder_layers(model)[0].feed_forward_in.weight.detach().numpy().T
    stored = {
        item.name: onnx.numpy_helper.to_array(item)
        for item in onnx.load_from_string(quantized["onnx-dynamic-int8"].graph).graph.initializer
    }
    scale = np.abs(weight).max() / np.float32(127)
    by_hand = np.clip(np.round(weight / scale), -127, 127)
    found = [value for value in stored.values() if value.dtype == np.int8 and value.shape == weight.shape]
    assert any(np.abs(value - by_hand).max() <= 1 and (value == by_hand).mean() > 0.999 for value in found)


def test_calibration_sees_exactly_the_given_rows_once_each():
    rows = single_rows(small_batch(5))
    reader = _rows_reader(rows, ("input_ids", "attention_mask", "token_type_ids"))
    seen = []
    while (row := reader.get_next()) is not None:
        assert set(row) == {"input_ids", "attention_mask", "token_type_ids"} and not row["token_type_ids"].any()
        seen.append(row["input_ids"])
    assert len(reader) == len(seen) == 5
    assert all(np.array_equal(one, row["input_ids"]) for one, row in zip(seen, rows, strict=True))
    reader.set_range(1, 3)
    assert [np.array_equal(reader.get_next()["input_ids"], rows[place]["input_ids"]) for place in (1, 2)] == [True] * 2
    assert reader.get_next() is None


def test_minmax_scales_are_the_range_of_the_calibration_rows(model):
    """The input of the first feed-forward layer, against a hook on the float model."""
    import onnx

    rows, seen = single_rows(small_batch(4, 10)), []
    hook = encoder_layers(model)[0].feed_forward_in.register_forward_hook(
        lambda _module, inputs, _output: seen.append(inputs[0])
    )
    for row in rows:
        logits(model, row)
    hook.remove()
    low, high = min(item.min() for item in seen), max(item.max() for item in seen)
    scale = float((max(high, 0) - min(low, 0)) / 255)
    made = quantize(model, "onnx-static-int8-minmax", rows)
    scales = [
        float(onnx.numpy_helper.to_array(item))
        for item in onnx.load_from_string(made.graph).graph.initializer
        if item.name.endswith("_scale") and not item.dims
    ]
    assert min(abs(found / scale - 1) for found in scales) < 1e-4


def test_calibration_rows_matter_and_are_needed(model, quantized):
    other = quantize(model, "onnx-static-int8-minmax", single_rows(small_batch(2, 5, seed=9)))
    batch = small_batch()
    assert not torch.equal(logits(other, batch), logits(quantized["onnx-static-int8-minmax"], batch))
    with pytest.raises(SettingError, match="calibrated on training rows"):
        quantize(model, "onnx-static-int8-minmax")


def test_a_session_has_the_threads_that_torch_has(quantized):
    one, before = quantized["onnx-float32"], torch.get_num_threads()
    try:
        for threads in (2, 1):
            torch.set_num_threads(threads)
            assert one.session().get_session_options().intra_op_num_threads == threads
            assert one.session() is one.session()
    finally:
        torch.set_num_threads(before)


def test_an_onnx_model_predicts_and_is_measured_like_a_torch_one(folders):
    rows, tokenizer = tokenized_sentences(12)
    reloaded = load_model(folders["onnx-float32"])
    assert isinstance(reloaded, OnnxClassifier) and reloaded.eval() is reloaded
    predicted = predict(reloaded, rows, tokenizer, 4)
    assert predicted.shape == (12, 2) and predicted.dtype == np.float32
    np.testing.assert_allclose(predicted, predict(small_model(layers=2), rows, tokenizer, 4), atol=1e-4)
    found = peak_memory(folders["onnx-float32"], loader="edgemin_utils.quantization:load_model", length=16)
    assert found["peak_bytes"] > found["baseline_bytes"]


def test_gptqs_rounding_changes_least_what_layers_compute_on_the_calibration_rows(model, quantized):
    """Of both feed-forward matrices in every layer: other integers on the same grid, and a smaller error."""
    import onnx

    layers, seen = encoder_layers(model), {}
    linear = [module for layer in layers for module in (layer.feed_forward_in, layer.feed_forward_out)]
    hooks = [
        module.register_forward_hook(lambda module, inputs, _output: seen.setdefault(module, []).append(inputs[0][0]))
        for module in linear
    ]
    for row in single_rows(small_batch(6)):  # those that the models were quantized with
        logits(model, row)
    for hook in hooks:
        hook.remove()
    errors, stored = [], []
    for name in ("onnx-int4-embeddings", "onnx-int4-gptq-embeddings"):
        graph = onnx.load_from_string(quantized[name].graph).graph
        constants = {item.name: onnx.numpy_helper.to_array(item) for item in graph.initializer}
        shapes = {tuple(module.weight.shape) for module in linear}
        taken = [
            [constants[place] for place in node.input[1:4]]
            for node in graph.node
            if node.op_type == "MatMulNBits"
            and tuple(next(item.i for item in node.attribute if item.name == side) for side in "NK") in shapes
        ]
        assert len(taken) == len(linear)
        stored.append(taken)
        errors.append([])
        for module, (packed, scales, zero_points) in zip(linear, taken, strict=True):
            outputs, width = module.weight.shape
            blocks = -(-width // 64)
            integers, zeros = (
                np.stack([values & 15, values >> 4], -1).reshape(outputs, -1)  # the lower half byte comes first
                for values in (packed, zero_points.reshape(outputs, -1))
            )
            steps, zeros = (np.repeat(each[:, :blocks], 64, 1) for each in (scales.reshape(outputs, -1), zeros))
            rounded = ((integers.astype(float) - zeros) * steps)[:, :width]
            change = torch.cat(seen[module]).numpy() @ (rounded - module.weight.detach().numpy()).T
            errors[-1].append(float(np.linalg.norm(change)))
    for nearest, calibrated in zip(*stored, strict=True):
        assert (nearest[0] != calibrated[0]).any()
        assert all(np.array_equal(*pair) for pair in zip(nearest[1:], calibrated[1:], strict=True))
    assert all(calibrated < nearest for nearest, calibrated in zip(*errors, strict=True))


# ---- refusals --------------------------------------------------------------------------------------------------


def test_a_build_without_quantized_kernels_is_refused(model, monkeypatch):
    engines = type("Engines", (), {"supported_engines": ["none"]})()
    monkeypatch.setattr(torch.backends, "quantized", engines)
    with pytest.raises(MethodRefused, match="no quantized CPU kernels"):
        quantize(model, "dynamic-int8")


@pytest.mark.parametrize(
    "name, missing",
    [("onnx-float32", "onnxscript"), ("onnx-dynamic-int8", "onnxruntime"), ("dynamic-int8", "torch.ao")],
)
def test_a_package_that_cannot_be_imported_is_a_refusal_that_names_it(name, missing, model, monkeypatch):
    real = builtins.__import__

    def without(imported, *arguments, **named):
        if imported.split(".")[0] == missing or imported.startswith(f"{missing}."):
            raise ImportError(f"No module named {imported!r}")
        return real(imported, *arguments, **named)

    if missing == "onnxscript":  # what exports
        monkeypatch.setattr(onnx_schemes, "_last_export", {})
    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(MethodRefused, match=rf"{name} .*{missing}"):
        quantize(model, name)


def test_a_graph_that_computes_something_else_is_refused(model):
    with pytest.raises(MethodRefused, match="does not compute what the model computes"):
        check_against(model, lambda inputs: logits(model, inputs) + 0.5)


def test_an_operator_that_this_runtime_does_not_have_is_a_refusal(model, monkeypatch):
    def refuse(*_arguments, **_named):
        raise RuntimeError("[ONNXRuntimeError] : 9 : NOT_IMPLEMENTED : no kernel for MatMulInteger\nmore")

    monkeypatch.setattr("onnxruntime.quantization.quantize_dynamic", refuse)
    with pytest.raises(MethodRefused, match="no kernel for MatMulInteger$"):
        quantize(model, "onnx-dynamic-int8")


# ---- other models, each exported anew -------------------------------------------------------------------------


@pytest.mark.parametrize("family", FAMILY_NAMES)
def test_the_fused_graph_computes_what_the_model_computes(family):
    other = small_model(family, layers=1)
    for layer in encoder_layers(other):
        layer.keep_heads([0, 1, 3])
    graph = export_graph(other)
    assert not any(node.metadata_props for node in graph.graph.node)  # no paths of the machine that exported
    fused = fuse(graph, other)
    assert operator_counts(fused)["Attention"] == 1
    session = _session(fused)
    check_against(other, lambda inputs: _run(session, inputs))
    # A mask with holes is no length: tokens 2 and 5 are left out.
    batch = small_batch(2, 9)
    batch["attention_mask"] = torch.ones_like(batch["input_ids"])
    batch["attention_mask"][:, [2, 5]] = 0
    torch.testing.assert_close(_run(session, batch), logits(other, batch), rtol=1e-4, atol=1e-5)


def test_attention_is_fused_in_layers_of_unequal_heads_too():
    ragged = small_model(layers=2)
    encoder_layers(ragged)[0].keep_heads([1, 3])
    made = quantize(ragged, "onnx-dynamic-int8")
    said = SCHEMES["onnx-dynamic-int8"].describe(made)
    assert said["fused_attention"] == 2 and said["fusion"] == "attention is one operator in each of the 2 layers"
    assert "INT8" in said["arithmetic"] and said["operators"]["MatMulInteger"] == 2 * 3 + 2
    batch = small_batch()
    assert (logits(made, batch) - logits(ragged, batch)).abs().max() < 0.1


def _session(graph):
    import onnxruntime

    return onnxruntime.InferenceSession(graph.SerializeToString(), providers=["CPUExecutionProvider"])


def _run(session, inputs):
    feed = {
        item.name: inputs.get(item.name, torch.zeros_like(inputs["input_ids"])).numpy() for item in session.get_inputs()
    }
    return torch.from_numpy(session.run(None, feed)[0])
