"""Every scheme: what it computes, stores, loads and refuses. One small model, so that it is exported once."""

import json
import shutil
import sys
from unittest.mock import Mock

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from small_models import small_batch, small_model
from test_quantization_onnx import logits, single_rows
from transformers import AutoModelForSequenceClassification

from edgemin_utils import names
from edgemin_utils.encoders import describe_model
from edgemin_utils.errors import MethodRefused, ModelError, SettingError
from edgemin_utils.names import METHODS
from edgemin_utils.quantization import schemes
from edgemin_utils.quantization.onnx_schemes import ONNX_FILE
from edgemin_utils.quantization.schemes import SCHEMES, find_scheme, load_model, quantize, save_quantized

NAMES = tuple(SCHEMES)
ONNX = [name for name in NAMES if name.startswith(("onnx", "edge"))]
WEIGHTS = {name: ONNX_FILE if name in ONNX else schemes.WEIGHTS_FILE for name in NAMES}
# What does not depend on the rows beside a row.
FREE_OF_THE_BATCH = "int4 int4-embeddings onnx-float32 onnx-static-minmax onnx-int4 onnx-int4-gptq edge-int4".split()


@pytest.fixture(scope="module")
def model():
    return small_model(layers=2)


@pytest.fixture(scope="module")
def quantized(model):
    """Scheme -> the quantized form of `model`."""
    return {name: quantize(model, name, single_rows(small_batch(6))) for name in NAMES}


@pytest.fixture(scope="module")
def folders(quantized, tmp_path_factory):
    made = {name: tmp_path_factory.mktemp(name) for name in quantized}
    for name, one in quantized.items():
        save_quantized(one, made[name], name)
    return made


def test_names_know_every_scheme():
    assert {name for name, method in METHODS.items() if method.kind == "quantization"} == set(SCHEMES)
    for name in NAMES:
        assert find_scheme(name).calibrated == ("calibration_rows" in METHODS[name].own)


@pytest.mark.parametrize("name", NAMES)
def test_logits_stay_near_and_the_original_is_left_alone(name, model, quantized):
    batch = small_batch()
    wanted = logits(small_model(layers=2), batch)
    assert np.array_equal(logits(model, batch), wanted)
    difference = np.abs(logits(quantized[name], batch) - wanted).max() / np.abs(wanted).max()
    limit = 1e-5 if name == "onnx-float32" else 0.6 if "int4" in name or "qat" in name else 0.15
    assert difference < limit and (difference > 0 or name == "onnx-float32")
    assert name not in ONNX or quantized[name].notes["fused_attention"] == 2


@pytest.mark.parametrize("name", NAMES)
def test_saved_and_reloaded_model_gives_the_same_logits_and_draws_no_random_weights(name, quantized, folders):
    before = torch.get_rng_state()
    reloaded = load_model(folders[name])
    assert torch.equal(torch.get_rng_state(), before)
    assert not any(tensor.is_meta for tensor in (*reloaded.parameters(), *reloaded.buffers()))
    for batch in (small_batch(), small_batch(1, 17), small_batch(2, 64)):
        assert np.array_equal(logits(reloaded, batch), logits(quantized[name], batch))
    assert not reloaded.training and not list(folders[name].glob("*.bin")) and not list(folders[name].glob("*.pt"))


@pytest.mark.parametrize("name", NAMES)
def test_weights_and_bytes_add_up(name, model, folders):
    """The bytes that are told are those in the file, but for names, shapes and operators: of tensors, all of them."""
    reloaded, listed = load_model(folders[name]), sum(one.numel() for one in model.parameters())
    sizes = schemes.stored_sizes(reloaded)
    folded = 2 * 48 if name.startswith("edge") else 0  # token types that became part of the positions
    assert sum(count for count, _ in sizes.values()) + folded == listed
    linear = [sizes[f"{part}.weight"] for part, module in model.named_modules() if isinstance(module, torch.nn.Linear)]
    assert {size < 4 * count for count, size in linear} == {name != "onnx-float32"}
    count, size = sizes["bert.embeddings.word_embeddings.weight"]
    assert (size < 4 * count) == any(word in name for word in ("embeddings", "gptq", "edge", "bfloat"))
    stored, file = sum(size for _, size in sizes.values()), folders[name] / WEIGHTS[name]
    assert 0 < file.stat().st_size - stored < 17_000
    if name not in ONNX:
        assert stored == sum(value.numel() * value.element_size() for value in load_file(file).values())
    if name == "int4":  # 48 x 48: two groups a row, 32 and 16
        assert sizes["bert.encoder.layer.0.attention.self.query.weight"] == (48 * 48, 48 * 24 + 2 * 2 * 48)
    assert describe_model(reloaded) == describe_model(model)


@pytest.mark.parametrize("name", FREE_OF_THE_BATCH)
def test_a_row_does_not_depend_on_the_rows_beside_it(name, quantized):
    batch = small_batch(4, 12)
    alone = np.concatenate([logits(quantized[name], row) for row in single_rows(batch)])
    np.testing.assert_allclose(logits(quantized[name], batch), alone, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", ["int8", "int4-embeddings", "onnx-int8", "edge-int8-int4"])
def test_damaged_weights_are_one_clear_error(name, folders, tmp_path):
    shutil.copytree(folders[name], tmp_path, dirs_exist_ok=True)
    content = (tmp_path / WEIGHTS[name]).read_bytes()
    for damaged in (content[: len(content) // 2], b"", b"not a model"):
        (tmp_path / WEIGHTS[name]).write_bytes(damaged)
        with pytest.raises(ModelError, match="truncated or damaged.*quantize anew"):
            load_model(tmp_path)
    (tmp_path / WEIGHTS[name]).unlink()
    with pytest.raises(ModelError, match="quantize anew"):
        load_model(tmp_path)


def test_folders_and_names_that_cannot_be_used_say_what_can(model, folders, tmp_path):
    with pytest.raises(ValueError, match=r"load this folder with edgemin_utils\.quantization\.schemes\.load_model"):
        AutoModelForSequenceClassification.from_pretrained(folders["int8"])
    config = json.loads((folders["int4"] / "config.json").read_text())
    config["edgemin"]["scheme"] = "onnx-int3"
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(SettingError, match="did you mean 'onnx-int"):
        load_model(tmp_path)
    with pytest.raises(SettingError, match="did you mean 'int8'"):
        quantize(model, "int7")
    with pytest.raises(SettingError, match="calibrated on training rows"):
        quantize(model, "onnx-static-minmax")


def test_a_scheme_of_ones_own_is_a_class_with_one_method(model, tmp_path, monkeypatch):
    class Half(schemes.Scheme):
        def quantize(self, model, rows, longest):
            return model.to(torch.bfloat16)

    for module, known in ((schemes, "SCHEMES"), (names, "METHODS"), (names, "OWN_CODE")):
        monkeypatch.setattr(module, known, getattr(module, known).copy())
    schemes.register_scheme("half", Half())
    made = quantize(model, "half")
    save_quantized(made, tmp_path, "half")
    batch, reloaded = small_batch(), load_model(tmp_path)
    assert np.array_equal(logits(reloaded, batch), logits(made, batch))
    assert 0 < np.abs(logits(made, batch) - logits(model, batch)).max() < 0.05
    assert all(size == 2 * count for count, size in schemes.stored_sizes(reloaded).values())


def test_a_build_without_quantized_kernels_is_refused_before_anything_is_computed(model, monkeypatch):
    no_engine = RuntimeError("Didn't find engine for operation quantized::linear_prepack NoQEngine")
    monkeypatch.setattr(torch, "quantize_per_tensor", Mock(side_effect=no_engine))
    with pytest.raises(MethodRefused, match="no quantized CPU kernels"):
        quantize(model, "int8-embeddings")
    assert quantize(model, "int4")


def test_a_graph_that_computes_something_else_is_refused():
    model = small_model(layers=1)
    model.classifier.register_forward_hook(lambda _module, _inputs, output: 2 * output)  # what no graph knows of
    with pytest.raises(MethodRefused, match="does not compute what the model computes"):
        quantize(model, "onnx-float32")


def test_what_onnx_runtime_cannot_do_is_a_refusal(model, monkeypatch):
    refusal = RuntimeError("[ONNXRuntimeError] : 9 : NOT_IMPLEMENTED : no kernel for MatMulInteger\nmore")
    with monkeypatch.context() as patch:
        patch.setattr("onnxruntime.quantization.quantize_dynamic", Mock(side_effect=refusal))
        with pytest.raises(MethodRefused, match="no kernel for MatMulInteger$"):
            quantize(model, "onnx-int8")
    monkeypatch.setattr("edgemin_utils.quantization.onnx_schemes.pack_products", lambda graph, *_rows: None)
    with pytest.raises(MethodRefused, match="left 14 of 14 matrices, inputs of 0 layers in float32"):
        quantize(model, "onnx-int4")
    monkeypatch.setitem(sys.modules, "edgemin_utils.quantization.onnx_schemes", None)  # importing it fails
    with pytest.raises(MethodRefused, match="onnx-float32 does not work with this .* versions"):
        find_scheme("onnx-float32")


def test_a_session_has_the_threads_that_torch_has(quantized, monkeypatch):
    for threads in (2, 1):
        monkeypatch.setattr(torch, "get_num_threads", lambda threads=threads: threads)
        one = quantized["onnx-float32"].session()
        assert one.session.get_session_options().intra_op_num_threads == threads
        assert quantized["onnx-float32"].session() is one
