"""Weight counts against closed formulas and the paper's numbers; bytes against files on disk."""

import copy

import pytest
import torch
from safetensors import safe_open
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

from edgemin_utils import quantization
from edgemin_utils.encoders import encoder_layers
from edgemin_utils.errors import ModelError
from edgemin_utils.measurement import parameters

# torch announces that its eager quantization will go.
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore:torch.quantize_per:UserWarning")

SMALL = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 48,
    "vocab_size": 100,
    "max_position_embeddings": 40,
}
STUDENT = BertConfig(
    hidden_size=384, num_hidden_layers=12, num_attention_heads=12, intermediate_size=1536, vocab_size=30522
)


@pytest.fixture(scope="module")
def student():
    """The paper's student with random weights: what they are does not change how many they are."""
    with torch.device("meta"):
        model = BertForSequenceClassification(STUDENT)
    return model.to_empty(device="cpu").eval()


@pytest.fixture(scope="module")
def quantized_student(student):
    for parameter in student.parameters():
        nn.init.constant_(parameter, 0.5)
    return torch.ao.quantization.quantize_dynamic(student, {nn.Linear}, dtype=torch.qint8)


@pytest.fixture(scope="module")
def small_bert():
    torch.manual_seed(0)
    return BertForSequenceClassification(BertConfig(**SMALL)).eval()


def quantized_everywhere(model: nn.Module) -> nn.Module:
    """Linear layers to INT8 and embedding tables to 8 bits a weight."""
    qconfig = {
        nn.Linear: torch.ao.quantization.default_dynamic_qconfig,
        nn.Embedding: torch.ao.quantization.float_qparams_weight_only_qconfig,
    }
    return torch.ao.quantization.quantize_dynamic(copy.deepcopy(model), qconfig)


def test_papers_teacher_has_the_papers_number():
    with torch.device("meta"):
        teacher = DistilBertForSequenceClassification(DistilBertConfig())
    assert parameters.framework_parameters(teacher) == 66_955_010
    assert parameters.stored_weights(teacher) == 66_955_010


def test_papers_student_by_closed_formula(student):
    hidden, feed_forward = 384, 1536
    expected = {
        "embeddings": (30522 + 512 + 2) * hidden,
        "attention": 12 * 4 * (hidden * hidden + hidden),
        "feed_forward": 12 * (2 * hidden * feed_forward + feed_forward + hidden),
        "norms": 25 * 2 * hidden,
        "head": hidden * hidden + hidden + 2 * hidden + 2,
    }
    assert parameters.weights_by_part(student) == expected
    assert sum(expected.values()) == parameters.stored_weights(student) == 33_360_770


def test_papers_final_count_is_what_quantization_leaves_to_the_framework(student, quantized_student):
    assert parameters.framework_parameters(quantized_student) == 11_937_024
    for model in (student, quantized_student):
        assert parameters.paper_parameters(model) == 11_937_024
    assert 30522 * 384 + 512 * 384 + 2 * 384 + 25 * 2 * 384 == 11_937_024
    assert parameters.stored_weights(quantized_student) == 33_360_770
    assert parameters.weights_by_part(quantized_student) == parameters.weights_by_part(student)


def test_removing_24_heads_shows_in_the_honest_count_and_not_in_the_papers():
    with torch.device("meta"):
        pruned = BertForSequenceClassification(STUDENT)
    for layer in encoder_layers(pruned):
        layer.keep_heads(range(10))
    # Two of twelve heads of size 32 a layer: rows and biases of query, key, value, columns of the output.
    gone = 12 * 2 * 32 * (3 * (384 + 1) + 384)
    assert parameters.stored_weights(pruned) == 33_360_770 - gone == 32_178_818
    assert parameters.paper_parameters(pruned) == 11_937_024


def test_bytes_are_four_a_weight_in_fp32(student):
    assert parameters.bytes_by_part(student) == {
        part: 4 * count for part, count in parameters.weights_by_part(student).items()
    }


def test_bytes_of_quantized_linear_layers(student, quantized_student):
    weights, parts = parameters.weights_by_part(student), parameters.bytes_by_part(quantized_student)
    # One byte a weight, four a bias, eight for the scale of each of four projections in twelve layers.
    biases = 12 * 4 * 384
    assert parts["attention"] == (weights["attention"] - biases) + 4 * biases + 12 * 4 * 8
    assert parts["embeddings"] == 4 * weights["embeddings"]
    assert parts["norms"] == 4 * weights["norms"]


def test_quantized_embeddings_are_counted_with_a_scale_for_each_row(small_bert):
    quantized = quantized_everywhere(small_bert)
    assert parameters.stored_weights(quantized) == parameters.stored_weights(small_bert)
    assert parameters.framework_parameters(quantized) == parameters.weights_by_part(small_bert)["norms"]
    rows = SMALL["vocab_size"] + SMALL["max_position_embeddings"] + 2
    # 8 bits a weight, and for each row a FP32 scale and a FP32 zero point.
    assert parameters.bytes_by_part(quantized)["embeddings"] == rows * (SMALL["hidden_size"] + 8)


def test_bytes_of_one_tensor():
    values = torch.linspace(-1, 3, 50)
    assert parameters.tensor_bytes(values) == 200
    assert parameters.tensor_bytes(values.half()) == 100
    assert parameters.tensor_bytes(torch.quantize_per_tensor(values, 0.1, 0, torch.qint8)) == 50 + 8
    assert parameters.tensor_bytes(torch.quantize_per_tensor(values, 0.1, 3, torch.quint8)) == 50 + 16


def test_bytes_of_a_quantized_model_are_those_of_its_saved_weights(small_bert, tmp_path):
    for scheme in ("dynamic-int8", "dynamic-int8-embeddings"):
        quantized = quantization.quantize(small_bert, scheme)
        quantization.save_quantized(quantized, tmp_path / scheme, scheme)
        with safe_open(next((tmp_path / scheme).glob("*.safetensors")), "pt") as file:
            stored = [file.get_tensor(name) for name in file.keys()]
        assert sum(parameters.bytes_by_part(quantized).values()) == sum(
            tensor.numel() * tensor.element_size() for tensor in stored
        )


@pytest.mark.parametrize("scheme", ["dynamic-int8", "dynamic-int8-embeddings"])
def test_bytes_by_precision_add_up_to_bytes_by_part(small_bert, scheme):
    quantized = quantization.quantize(small_bert, scheme)
    by_precision = parameters.bytes_by_precision(quantized)
    assert {part: sum(sizes.values()) for part, sizes in by_precision.items()} == parameters.bytes_by_part(quantized)
    assert by_precision["norms"]["int8"] == 0 < by_precision["attention"]["int8"]
    # Biases stay in FP32: query, key, value and output of 2 layers.
    assert by_precision["attention"]["fp32"] == 2 * 4 * 32 * 4
    assert parameters.bytes_by_precision(small_bert)["head"]["int8"] == 0


def test_counts_come_together(small_bert):
    found = parameters.count_parameters(small_bert)
    assert found["framework"] == found["stored"] == sum(found["parts"].values())
    assert sum(found["part_bytes"].values()) == 4 * found["stored"]
    assert not parameters.has_packed_weights(small_bert)
    assert parameters.has_packed_weights(quantized_everywhere(small_bert))


def test_a_shared_weight_is_counted_once(small_bert):
    shared = copy.deepcopy(small_bert)
    layers = shared.bert.encoder.layer
    layers[1].attention.self.query = layers[0].attention.self.query
    assert parameters.stored_weights(small_bert) - parameters.stored_weights(shared) == 32 * 32 + 32
    assert sum(parameters.weights_by_part(shared).values()) == parameters.stored_weights(shared)


@pytest.mark.parametrize(
    "model_class,config",
    [
        (BertForSequenceClassification, BertConfig(**SMALL)),
        (RobertaForSequenceClassification, RobertaConfig(**SMALL)),
        (ElectraForSequenceClassification, ElectraConfig(**SMALL, embedding_size=16)),
        (
            DistilBertForSequenceClassification,
            DistilBertConfig(dim=32, n_layers=2, n_heads=4, hidden_dim=48, vocab_size=100, max_position_embeddings=40),
        ),
    ],
)
def test_parts_have_their_size_in_every_family(model_class, config):
    with torch.device("meta"):
        model = model_class(config)
    parts = parameters.weights_by_part(model)
    assert parts["attention"] == 2 * 4 * (32 * 32 + 32)
    assert parts["feed_forward"] == 2 * (2 * 32 * 48 + 48 + 32)
    assert parts["head"] == 32 * 32 + 32 + 2 * 32 + 2
    embedding_size = 16 if isinstance(config, ElectraConfig) else 32
    assert parts["norms"] == 2 * embedding_size + 4 * 2 * 32
    assert sum(parts.values()) == parameters.framework_parameters(model)


def test_a_weight_of_no_part_is_refused():
    with pytest.raises(ModelError, match="conv1.weight"):
        parameters.weights_by_part(nn.ModuleDict({"conv1": nn.Conv1d(2, 2, 1)}))


def test_saved_bytes_are_the_files_sizes(small_bert, tmp_path):
    small_bert.save_pretrained(tmp_path)
    (tmp_path / "vocab.txt").write_bytes(b"x" * 700)
    (tmp_path / "tokenizer_config.json").write_bytes(b"{}")
    (tmp_path / "record.json").write_bytes(b"y" * 5000)
    found = parameters.saved_bytes(tmp_path)
    model = (tmp_path / "model.safetensors").stat().st_size + (tmp_path / "config.json").stat().st_size
    assert found == {"model_bytes": model, "tokenizer_bytes": 702, "total": model + 702}
    # FP32 weights and a header.
    assert model > 4 * parameters.stored_weights(small_bert)


def test_a_folder_without_weights_is_refused(tmp_path):
    with pytest.raises(ModelError, match="no model weights"):
        parameters.saved_bytes(tmp_path)
    with pytest.raises(ModelError, match="no model weights"):
        parameters.saved_bytes(tmp_path / "absent")


def test_the_two_units():
    assert parameters.megabytes(133_500_000) == 133.5
    assert parameters.mebibytes(2 * 1024 * 1024) == 2
