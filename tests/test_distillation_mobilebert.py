"""MobileBERT: the thin student, its layer-by-layer loss by NumPy, and what is not done to it."""

import numpy as np
import pytest
import torch
from scipy.special import rel_entr, softmax
from small_models import small_batch, small_model
from test_distillation_objectives import REAL, asked

from edgemin_utils.distillation.mobilebert import bottleneck_student
from edgemin_utils.distillation.objective import find_objective
from edgemin_utils.encoders import captured_states, encoder_layers
from edgemin_utils.errors import MethodRefused
from edgemin_utils.measurement.operations import count_operations
from edgemin_utils.pruning.cut import rounds
from edgemin_utils.quantization.onnx_graph import classifier_graph
from edgemin_utils.settings import load_settings
from edgemin_utils.training import model_inputs

SETTINGS = load_settings("demo")


@pytest.fixture(scope="module")
def student():
    torch.manual_seed(3)
    return bottleneck_student(small_model(), 0.0).eval()


def test_the_student_is_as_deep_and_wide_as_its_teacher_and_thin_within(student):
    layers, inner = encoder_layers(student), 48 // 4
    assert len(layers) == 3 and {layer.num_heads for layer in layers} == {4}
    assert [tuple(getattr(layers[0], name).weight.shape) for name in ("query", "value", "feed_forward_in")] == [
        (inner, inner), (inner, 48), (4 * inner, inner)
    ]  # fmt: skip
    blocks = 4 * (2 * 4 * inner**2)  # four feed-forward blocks
    attention = 3 * inner**2 + 48 * inner + 2 * 7 * inner  # query, key, value, output; two heads' products of 7 tokens
    by_hand = 7 * (3 * (3 * 48 * inner + attention + blocks) + 3 * inner * 48) + 48 * 48 + 2 * 48
    found = count_operations(student, 1, 7)
    assert found["macs"] == by_hand == found["fvcore"] == found["torch"]
    with pytest.raises(MethodRefused, match="6 heads do not divide a quarter of the hidden size 36"):
        bottleneck_student(small_model(hidden_size=36, heads=6), 0.1)


def test_each_layer_learns_its_teacher_s_states_and_attention_while_what_is_below_holds_still(student):
    teacher, student, batch = small_model().double(), student.double(), small_batch()
    phases = find_objective("mobilebert", SETTINGS).phases(asked(teacher), student)
    assert [phase.name for phase in phases] == ["layer 1", "layer 2", "layer 3", "soft targets"]
    states = []
    for model in (teacher, student):
        with torch.no_grad(), captured_states(model, ["query.1", "key.1", "hidden.1"]) as seen:
            model(**model_inputs(model, batch))
        states.append({name: value.numpy() for name, value in seen.items()})
    error = ((states[0]["hidden.1"] - states[1]["hidden.1"])[REAL] ** 2).mean()
    divergences = list[float]()
    for row, count in enumerate(REAL.sum(1)):
        heads = [[np.split(seen[name][row, :count], 4, axis=1) for name in ("query.1", "key.1")] for seen in states]
        scores = [[q @ k.T / q.shape[1] ** 0.5 for q, k in zip(*each, strict=True)] for each in heads]
        theirs, ours = (softmax(np.stack(each), axis=-1) for each in scores)
        divergences += rel_entr(theirs, ours).sum(-1).flatten().tolist()
    loss, parts = phases[1].loss(student, batch)
    assert parts["hidden states"].item() == pytest.approx(error) and loss.item() == pytest.approx(
        error + np.mean(divergences)
    )
    student.zero_grad()
    loss.backward()
    moved = {name.split(".layer.")[-1][0] for name, value in student.named_parameters() if value.grad is not None}
    assert moved == {"1"}  # neither the embeddings nor layers 0 and 2
    phases[0].loss(student, batch)[0].backward()
    assert student.get_input_embeddings().weight.grad is not None


def test_what_is_not_made_of_it_is_refused(student):
    with pytest.raises(MethodRefused, match="the cut knows nothing of MobileBERT"):
        next(rounds(student, "heads", "0.5", SETTINGS, lambda model, units: []))
    with pytest.raises(MethodRefused, match="the graph knows nothing"):
        classifier_graph(student)
