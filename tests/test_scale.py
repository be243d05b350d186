"""What the paper profile needs: the work against hand counts, memory against a real forward, the page against code."""

import re
from pathlib import Path

import pytest
import torch
from small_models import small_model

from edgemin_utils import scale
from edgemin_utils.config import load_settings
from edgemin_utils.encoders import scratch_model
from edgemin_utils.scale import Device, Load

PROJECT = Path(__file__).resolve().parent.parent
REFERENCE = PROJECT / "outputs" / "reference" / "scale"


def test_a_step_takes_three_forwards_and_no_less_time_than_without_arithmetic():
    load = Load("a", "student", rows=100, epochs=3, batch_size=32, teacher_rows_on_device=300)
    forward = {"teacher": 7.0, "student": 2.0}
    assert load.steps == 12  # 4 batches, the last of 4 rows, three times
    assert load.flops(forward) == 3 * 100 * 3 * 2 + 300 * 7
    device = Device("d", peak_flops=1000, share=0.5, memory_bytes=1)
    assert scale.seconds_on(device, load, forward, step_seconds=0.1) == 3900 / 500
    assert scale.seconds_on(device, load, forward, step_seconds=2) == 24


def test_the_paper_chain_trains_what_its_settings_say():
    settings = load_settings("paper")
    kept, by_batch = (scale.training_loads(settings, 1000, tokens, 768) for tokens in (10, 10**4))
    assert {load.stage: (load.model, load.epochs) for load in kept} == {
        "teacher/fine-tuned": ("teacher", 3),
        "distillation/minilmv2": ("student", 6),
        "distillation/none": ("student", 6),
        "pruning/minilmv2+gradient-heads-0.2": ("student", 1),
        "pruning/none+gradient-heads-0.2": ("student", 1),
    }
    assert [load.teacher_rows_on_cpu for load in kept] == [0, 1000, 0, 1000, 0]
    assert [load.teacher_rows_on_device for load in by_batch] == [0, 6000, 0, 0, 0]
    # Eight students, two of them looked at right after the cut too; one teacher, and its answers to train rows.
    flops = scale.predicted_flops(settings, kept, 50, {"teacher": 7.0, "student": 2.0})
    assert flops == 10 * 50 * 2 + (50 + 2000) * 7


def test_padding_counts_as_tokens():
    assert scale.padded_tokens([5] * 40, 8) == 5
    assert scale.padded_tokens([2, 4], 2) == 4 and scale.padded_tokens([1, 2, 3, 4], 2) == (2 * 2 + 2 * 4) / 4


def test_memory_is_what_autograd_keeps_of_a_real_forward():
    model = scratch_model("bert", 2, 24, 4, 48, 100, ("a", "b"), 64, dropout=0.1).train()
    own, kept = {value.untyped_storage().data_ptr() for value in model.parameters()}, {}

    def keep(tensor):
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        logits = model(input_ids=torch.ones(4, 16, dtype=torch.int64)).logits
    parts = scale.training_bytes(model, 4, 16)
    assert parts["activations"] == sum(storage.nbytes() for address, storage in kept.items() if address not in own)
    weights = sum(value.numel() for value in model.parameters())
    assert (parts["weights"], parts["gradients"], parts["moments"]) == (4 * weights, 4 * weights, 8 * weights)
    assert logits.requires_grad and next(model.parameters()).device.type == "cpu"


def test_speeds_are_measured_by_the_own_loop():
    measured = scale.measure_here({"student": small_model(layers=1)}, steps=1, batch_size=2)
    assert measured["peak_flops"] > 1e8 and set(measured["models"]) == {"student"}
    speeds = measured["models"]["student"]
    assert speeds["prediction_rows_per_second"] > 1 and speeds["training_rows_per_second"] > 1
    assert 0 < speeds["step_seconds"] < 10


def test_predictions_run_at_the_slower_model_s_speed():
    speeds = {
        "teacher": {"prediction_rows_per_second": 3.0, "forward_flops": 100},
        "student": {"prediction_rows_per_second": 5.0, "forward_flops": 40},
    }
    assert scale.cpu_speed({"models": speeds}) == 200


def test_a_tasks_row_is_worked_out_from_made_up_measurements(monkeypatch):
    """1,000 of 10,000 train rows at 12 tokens: a forward is 2 x 12 x 350 M = 8.4 GFLOP of the teacher, 2.4 GFLOP of the
    student.

    Teacher 3 x 1000 x 3 epochs x 8.4 G = 75.6 T; two students 3 x 1000 x 6 x 2.4 G = 43.2 T each; two cut ones
    3 x 1000 x 1 x 2.4 G = 7.2 T each: 176.4 TFLOP. In batches of 32: 32 x (3 + 6 + 6 + 1 + 1) = 544 steps.
    """
    monkeypatch.setattr(scale, "GLUE_ROWS", {"sst2": (10_000, 50)})
    monkeypatch.setattr(scale, "DEVICES", (Device("slow", 1e12, 0.5, 1), Device("fast", 1e15, 0.5, 1)))
    macs = {"of the teacher": 350e6, "of the student": 100e6}
    monkeypatch.setattr(scale, "closed_formula_macs", lambda model, batch, tokens: macs[model] * batch * tokens)
    speed = {"forward_flops": 1e9, "step_seconds": 0.01}
    measured = {
        "row_lengths": {"sst2": {"real": 10.0, "padded": 12.0}},
        "models": {
            "teacher": {"prediction_rows_per_second": 2.0, **speed},
            "student": {"prediction_rows_per_second": 5.0, **speed},
        },
    }
    table = scale.scale_table(measured, {"teacher": "of the teacher", "student": "of the student"})
    (row,) = table.to_dict("records")
    assert row == {
        "task": "sst2",
        "rows": 1000,
        "tokens": 12.0,
        "steps": 544,
        "pflop": pytest.approx(0.1764),
        "slow": pytest.approx(352.8 / 3600),  # 176.4 T over half of 1 TFLOP/s
        "fast": pytest.approx(5.44 / 3600),  # 544 steps of 10 ms; the arithmetic takes 0.35 s
        # Ten passes of 50 dev rows, and the teacher's of 2,050 rows: 1.2 T + 17.22 T at the slower 2 GFLOP/s.
        "cpu_hours": pytest.approx(9210 / 3600),
    }


def test_the_page_in_the_readme_is_what_the_code_writes():
    text = (PROJECT / "README.md").read_text(encoding="utf-8")
    place = re.search(r"<!-- scale -->\n(.*?)<!-- end of scale -->", text, re.DOTALL)[1]
    assert place.strip() == scale.scale_section(scale.read_measured(REFERENCE)).strip()
    assert "extrapolated" in place and "T4, float32" in place
