"""Whole cuts of one model, in rounds, and what can be done with the ragged models that they leave."""

import dataclasses

import numpy as np
import onnxruntime
import pytest
import torch
from small_models import FAMILY_NAMES, LABELS, small_batch, small_model, tokenized_sentences

from edgemin_utils.checkpoints import load_model, save_model
from edgemin_utils.config import load_settings
from edgemin_utils.cuts import read_cut
from edgemin_utils.encoders import describe_model, input_names, scratch_model
from edgemin_utils.errors import MethodRefused
from edgemin_utils.pruning import ModelCut, find_criterion
from edgemin_utils.training import Phase, label_loss, predict, train_phases

PLAIN = load_settings("demo", {"batch_size": 8})
RAGGED = "magnitude-heads-0.5-neurons-0.4-global"


def magnitude(model, units):
    return find_criterion("magnitude")(model, units=units)


def cut_model(name, model, importance=magnitude):
    """`model` after all rounds of the cut of that name."""
    settings, cut = dataclasses.replace(PLAIN, **read_cut(name)), ModelCut(model)
    for number in range(1, settings.pruning_rounds + 1):
        cut.cut_round(settings, importance, number)
    return cut


@pytest.mark.parametrize("family", FAMILY_NAMES)
@pytest.mark.parametrize(
    "name",
    [
        "magnitude-heads-0.5",
        "magnitude-neurons-0.3",
        RAGGED,
        "layers-top-1",
        "layers-0-2",
        "magnitude-layers-least-1",
        "magnitude-heads-0.5-neurons-0.4-multiple-16-layers-1-global-rounds-3",
    ],
)
def test_parameters_removed_equal_the_closed_formula_and_the_count(family, name):
    model = small_model(family)
    before = sum(p.numel() for p in model.parameters())
    cut = cut_model(name, model)
    shapes = describe_model(cut.model)
    assert before - sum(p.numel() for p in cut.model.parameters()) == cut.parameters_removed > 0
    # Hidden size 48, heads of 12, four heads and 96 neurons a layer.
    whole_layer = 4 * (4 * 12 * 48 + 3 * 12) + 96 * (2 * 48 + 1) + 6 * 48
    left = sum(
        heads * (4 * 12 * 48 + 3 * 12) + neurons * (2 * 48 + 1) + 6 * 48
        for heads, neurons in zip(shapes["heads"], shapes["intermediate_sizes"], strict=True)
    )
    assert cut.parameters_removed == 3 * whole_layer - left


def test_what_is_gone_is_told_in_the_sources_numbers():
    """Three rounds over four layers of eight heads whose importance is their own number; layer 1 goes as a whole."""

    def importance(model, units):
        assert units == "heads"
        return [np.array(cut.units["heads"][number], dtype=float) for number in cut.layers]

    settings = dataclasses.replace(PLAIN, **read_cut("magnitude-heads-0.5-layers-1-rounds-3"))
    cut = ModelCut(small_model(layers=4, heads=8))
    sizes = []
    for number in (1, 2, 3):
        cut.cut_round(settings, importance, number)
        sizes.append(describe_model(cut.model)["heads"])
    assert sizes == [[7, 7, 7, 7], [6, 6, 6, 6], [4, 4, 4]]  # int(0.5 x 8) = 4 in three rounds: 1, 2, 4
    assert cut.removed("heads") == [[0, 1, 2, 3], [], [0, 1, 2, 3], [0, 1, 2, 3]]
    assert cut.layers == [0, 2, 3] and cut.removed_layers() == [1]
    assert cut.describe()["removed_neurons"] == [0, 0, 0, 0]


def test_rounds_rank_anew_what_the_last_one_left():
    asked = []

    def importance(model, units):
        asked.append((units, describe_model(model)["heads"]))
        return magnitude(model, units)

    cut_model("magnitude-heads-0.5-rounds-2", small_model(), importance)
    assert asked == [("heads", [4, 4, 4]), ("heads", [3, 3, 3])]


def test_importance_is_asked_only_for_what_is_ranked():
    def importance(model, units):
        raise AssertionError(units)

    cut_model("layers-top-1-vocabulary", small_model(), importance)


def test_global_cut_leaves_one_group_of_neurons_in_every_layer():
    model = small_model()
    with torch.no_grad():
        for parameter in model.bert.encoder.layer[1].parameters():
            parameter *= 1e-9
    cut = cut_model("magnitude-heads-0.9-multiple-2-neurons-0.99-multiple-32-global", model)
    shapes = describe_model(cut.model)
    assert shapes["heads"] == [2, 2, 2] and shapes["intermediate_sizes"] == [32, 32, 32]


def test_a_cut_of_every_layer_is_refused():
    with pytest.raises(MethodRefused, match="at least one must stay"):
        cut_model("layers-0-1-2", small_model())


@pytest.mark.parametrize("family", FAMILY_NAMES)
def test_ragged_models_are_saved_reloaded_and_trained_further(family, tmp_path):
    rows, tokenizer = tokenized_sentences(32)
    torch.manual_seed(0)
    model = scratch_model(family, 3, 48, 4, 96, len(tokenizer), LABELS, 64, tokenizer.pad_token_id, dropout=0.0)
    cut = cut_model(f"{RAGGED}-rounds-2", model.eval())
    assert len(set(describe_model(cut.model)["intermediate_sizes"])) > 1
    save_model(cut.model, tmp_path, tokenizer)
    again = load_model(tmp_path)
    before = predict(again, rows, tokenizer)
    assert np.array_equal(before, predict(cut.model, rows, tokenizer))
    log = train_phases(again, rows, [Phase("recovery", 2, 1e-3, label_loss)], tokenizer, PLAIN, 0)
    assert log.history[-1]["loss"] < log.history[0]["loss"]
    assert describe_model(again) == describe_model(cut.model)
    save_model(again, tmp_path / "again", tokenizer)
    assert np.array_equal(predict(load_model(tmp_path / "again"), rows, tokenizer), predict(again, rows, tokenizer))
    assert not np.array_equal(predict(again, rows, tokenizer), before)


class Logits(torch.nn.Module):
    """A model as ONNX takes it: tensors in their order, logits out."""

    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, input_ids, attention_mask, token_type_ids=None):
        extra = {} if token_type_ids is None else {"token_type_ids": token_type_ids}
        return self.model(input_ids=input_ids, attention_mask=attention_mask, **extra).logits


@pytest.mark.filterwarnings(
    "ignore::torch.jit.TracerWarning", "ignore::DeprecationWarning", "ignore::FutureWarning", "ignore:Exporting aten"
)
@pytest.mark.parametrize("family, dynamo", [*((family, False) for family in FAMILY_NAMES), ("bert", True)])
def test_ragged_models_are_exported_to_onnx(family, dynamo, tmp_path):
    """By tracing, which is quick; and by torch.export, once."""
    model = cut_model("magnitude-heads-0.5-neurons-0.4-layers-1-global", small_model(family)).model.eval()
    batch = small_batch(rows=3, tokens=9) | {"token_type_ids": torch.zeros(3, 9, dtype=torch.long)}
    inputs = {name: batch[name] for name in input_names(model)}
    any_size = torch.export.Dim.DYNAMIC
    sizes = (
        {"dynamic_shapes": tuple({0: any_size, 1: any_size} for _ in inputs)}
        if dynamo
        else {"dynamic_axes": {name: {0: "rows", 1: "tokens"} for name in inputs}}
    )
    torch.onnx.export(
        Logits(model).eval(),
        tuple(inputs.values()),
        str(tmp_path / "model.onnx"),
        verbose=False,
        input_names=list(inputs),
        output_names=["logits"],
        dynamo=dynamo,
        **sizes,
    )
    session = onnxruntime.InferenceSession(str(tmp_path / "model.onnx"), providers=["CPUExecutionProvider"])
    for rows, length in ((3, 9), (2, 5)):
        other = small_batch(rows, length, seed=rows) | {"token_type_ids": torch.zeros(rows, length, dtype=torch.long)}
        chosen = {name: other[name] for name in inputs}
        with torch.inference_mode():
            expected = model(**chosen).logits.numpy()
        (found,) = session.run(None, {name: value.numpy() for name, value in chosen.items()})
        np.testing.assert_allclose(found, expected, atol=1e-5)
