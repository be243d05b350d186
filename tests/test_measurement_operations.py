"""Three counts of multiply-accumulates against each other, sums written out, and the paper's models."""

import pytest
import torch
from torch import nn
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    DistilBertConfig,
    DistilBertForSequenceClassification,
    ElectraConfig,
    ElectraForSequenceClassification,
    RobertaConfig,
    RobertaForSequenceClassification,
)

from edgemin_utils.encoders import encoder_layers
from edgemin_utils.errors import ModelError
from edgemin_utils.measurement import operations, parameters
from edgemin_utils.quantization import quantize

# torch announces that its eager quantization will go.
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore:torch.quantize_per:UserWarning")

STUDENT = BertConfig(
    hidden_size=384, num_hidden_layers=12, num_attention_heads=12, intermediate_size=1536, vocab_size=30522
)
SMALL = {
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 96,
    "vocab_size": 100,
}
SMALL_MODELS = {
    "bert": (BertForSequenceClassification, BertConfig(**SMALL)),
    "distilbert": (
        DistilBertForSequenceClassification,
        DistilBertConfig(dim=64, n_layers=2, n_heads=4, hidden_dim=96, vocab_size=100),
    ),
    "roberta": (RobertaForSequenceClassification, RobertaConfig(**SMALL)),
    "electra": (ElectraForSequenceClassification, ElectraConfig(**SMALL, embedding_size=32)),
}


def on_meta(model_class, config) -> nn.Module:
    with torch.device("meta"):
        return model_class(config)


def small(family: str, attention: str = "sdpa") -> nn.Module:
    torch.manual_seed(0)
    model = SMALL_MODELS[family][0](SMALL_MODELS[family][1])
    model.set_attn_implementation(attention)
    return model


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("family", SMALL_MODELS)
def test_three_counts_agree_in_every_family(family, attention):
    found = operations.count_operations(small(family, attention), batch=2, length=24)
    assert found["fvcore_ratio"] == pytest.approx(1, abs=0.001)
    assert found["torch_flop_counter_ratio"] == pytest.approx(1, abs=0.001)
    assert found["flops"] == 2 * found["macs"] == 2 * found["closed_formula_macs"]


def test_closed_formula_written_out():
    batch, length, hidden, feed_forward = 3, 24, 64, 96
    layer = length * (4 * hidden * hidden + 2 * hidden * feed_forward) + 2 * length * length * hidden
    head = hidden * hidden + hidden * 2
    assert operations.closed_formula_macs(small("bert"), batch, length) == batch * (2 * layer + head)
    # ELECTRA projects its smaller embeddings first.
    assert operations.closed_formula_macs(small("electra"), batch, length) == batch * (
        2 * layer + head + length * 32 * hidden
    )


def test_three_counts_agree_on_a_model_of_unequal_layers():
    model = small("bert")
    before = operations.closed_formula_macs(model, 1, 24)
    layers = encoder_layers(model)
    layers[0].keep_heads([1])
    layers[1].keep_heads([0, 2, 3])
    layers[1].keep_neurons(range(40))
    found = operations.count_operations(model, batch=1, length=24)
    assert found["fvcore_ratio"] == pytest.approx(1, abs=0.001)
    assert found["torch_flop_counter_ratio"] == pytest.approx(1, abs=0.001)
    # Four heads of size 16 are gone, and 56 neurons.
    gone = 4 * (24 * 4 * 64 * 16 + 2 * 24 * 24 * 16) + 24 * 2 * 64 * 56
    assert before - found["macs"] == gone


def test_tools_alone_miss_fused_attention():
    """Why fvcore has a handler here: without it the attention products are missing."""
    from fvcore.nn import FlopCountAnalysis

    model = small("bert").eval()
    with torch.no_grad():
        analysis = FlopCountAnalysis(operations._FromTokens(model), (torch.full((1, 24), 7),))
        analysis.unsupported_ops_warnings(False).uncalled_modules_warnings(False).tracer_warnings("none")
        counted = analysis.by_operator()
    assert set(counted) == {"linear", "layer_norm"}
    assert operations.fvcore_by_operator(model, 1, 24)["scaled_dot_product_attention"] == 2 * 2 * 24 * 24 * 64


def test_counting_leaves_the_model_as_it_was():
    model = small("bert").train()
    operations.count_operations(model, 1, 8)
    assert model.training
    assert model.config._attn_implementation == "sdpa"
    assert all(parameter.grad is None for parameter in model.parameters())


def test_attention_grows_with_the_square_of_the_length_and_everything_with_the_batch():
    model = on_meta(*SMALL_MODELS["bert"])
    one, two, four = (operations.closed_formula_macs(model, 1, length) for length in (32, 64, 128))
    head = 64 * 64 + 64 * 2
    # Second difference of a + b L + c L^2 leaves c alone.
    assert (four - head) - 2 * (two - head) == 2 * (2 * 2 * 64 * 64 * 64)
    assert (two - head) - 2 * (one - head) == 2 * (2 * 2 * 32 * 32 * 64)
    assert operations.closed_formula_macs(model, 5, 32) == 5 * one


@pytest.mark.parametrize(
    "model_class,config,expected",
    [
        (DistilBertForSequenceClassification, DistilBertConfig(), 5.594e9),
        (BertForSequenceClassification, STUDENT, 2.875e9),
    ],
)
def test_papers_models_at_one_row_of_128_tokens(model_class, config, expected):
    found = operations.count_operations(on_meta(model_class, config), 1, 128)
    # The expected values were taken with fvcore's count of layer norms, 5 an element.
    assert found["fvcore_with_layer_norms"] == pytest.approx(expected, abs=0.0005e9)
    hidden, layers = config.hidden_size, config.num_hidden_layers
    layer_norms = (1 + 2 * layers) * 128 * hidden * 5
    layer = 128 * 12 * hidden * hidden + 2 * 128 * 128 * hidden  # a feed-forward size of 4 x hidden
    for count in ("closed_formula_macs", "fvcore_macs", "torch_flop_counter_macs"):
        assert found[count] == layers * layer + hidden * hidden + 2 * hidden
        assert found[count] == found["fvcore_with_layer_norms"] - layer_norms


def test_papers_student_with_24_heads_removed():
    model = on_meta(BertForSequenceClassification, STUDENT)
    for layer in encoder_layers(model):
        layer.keep_heads(range(10))
    assert operations.closed_formula_macs(model, 1, 128) == pytest.approx(2.70e9, rel=0.005)


@pytest.mark.parametrize("scheme", ["dynamic-int8", "dynamic-int8-embeddings"])
@pytest.mark.parametrize("family", SMALL_MODELS)
def test_quantization_removes_no_operation(family, scheme):
    model = small(family).eval()
    encoder_layers(model)[0].keep_heads([1, 2])
    encoder_layers(model)[1].keep_neurons(range(40))
    quantized = quantize(model, scheme)
    found, before = operations.count_operations(quantized, 1, 24), operations.count_operations(model, 1, 24)
    for count in ("macs", "closed_formula_macs", "fvcore_macs", "torch_flop_counter_macs", "fvcore_with_layer_norms"):
        assert found[count] == before[count]
    assert abs(found["fvcore_ratio"] - 1) < 0.01 and abs(found["torch_flop_counter_ratio"] - 1) < 0.01
    assert "float twin" in found["note"] and before["note"] == ""


def test_tools_refuse_to_count_a_quantized_model_itself():
    quantized = quantize(small("bert").eval(), "dynamic-int8")
    with pytest.raises(ModelError, match="fvcore"):
        operations.fvcore_by_operator(quantized, 1, 24)
    with pytest.raises(ModelError, match="torch's FLOP counter"):
        operations.torch_flop_counter_macs(quantized, 1, 24)


def test_float_twin_takes_no_memory_and_leaves_the_model_alone():
    quantized = quantize(small("bert").eval(), "dynamic-int8-embeddings")
    before = parameters.bytes_by_part(quantized)
    twin = operations.float_twin(quantized)
    assert {parameter.device.type for parameter in twin.parameters()} == {"meta"}
    assert parameters.weights_by_part(twin) == parameters.weights_by_part(quantized)
    assert not parameters.has_packed_weights(twin) and parameters.bytes_by_part(quantized) == before


def test_macs_by_precision_are_the_linear_layers_and_the_attention_products():
    model = small("bert")
    whole = operations.closed_formula_macs(model, 2, 24)
    assert operations.macs_by_precision(model, 2, 24) == {"fp32": whole, "int8": 0}
    # Attention scores and weighted sums of 2 layers stay in FP32.
    assert operations.macs_by_precision(quantize(model, "dynamic-int8"), 2, 24)["fp32"] == 2 * 2 * 2 * 24 * 24 * 64
