"""Peak memory of real child processes whose use of memory is known."""

import os
import sys
from pathlib import Path

import pytest
from transformers import BertConfig, BertForSequenceClassification

from edgemin_utils.checkpoints import save_model
from edgemin_utils.errors import ModelError, SettingError
from edgemin_utils.measurement import memory

MB = 1_000_000
LOADERS = """
import os, signal, sys, time
import numpy

def holds_200_mb(folder):
    kept = numpy.ones(25_000_000)
    return lambda inputs: kept[0]

def frees_200_mb(folder):
    numpy.ones(25_000_000).sum()
    return lambda inputs: None

def checks_inputs(folder):
    def predict(inputs):
        assert sorted(inputs) == ["attention_mask", "input_ids", "token_type_ids"], sorted(inputs)
        assert all(array.shape == (2, 9) and array.dtype == numpy.int64 for array in inputs.values())
        assert 5 <= inputs["input_ids"].min() and inputs["input_ids"].max() < 30
        assert os.environ["OMP_NUM_THREADS"] == "3"
        assert "torch" not in sys.modules, "torch was imported"
    return predict

def fails(folder):
    raise ValueError("weights are damaged")

def is_killed(folder):
    os.kill(os.getpid(), signal.SIGKILL)

def never_ends(folder):
    time.sleep(60)
"""


@pytest.fixture
def loaders(tmp_path, monkeypatch):
    """A module of loaders that children find by the parent's module path."""
    (tmp_path / "memory_loaders.py").write_text(LOADERS)
    monkeypatch.syspath_prepend(str(tmp_path))
    return "memory_loaders"


def test_what_a_loader_keeps_is_in_the_peak_and_in_the_end(loaders):
    found = memory.peak_memory("anything", loader=f"{loaders}:holds_200_mb", vocabulary_size=50)
    assert 195 * MB < found["peak_bytes"] - found["baseline_bytes"] < 240 * MB
    assert 195 * MB < found["resident_bytes"] - found["baseline_bytes"] < 240 * MB
    assert found["cpu_seconds"] >= 0 and found["runs"] == len(found["processes"]) == 1


def test_what_a_loader_frees_is_in_the_peak_alone(loaders):
    found = memory.peak_memory("anything", loader=f"{loaders}:frees_200_mb", vocabulary_size=50, runs=2)
    assert 195 * MB < found["peak_bytes"] - found["baseline_bytes"] < 240 * MB
    assert found["resident_bytes"] - found["baseline_bytes"] < 60 * MB
    peaks = [item["peak_bytes"] for item in found["processes"]]
    assert found["peak_bytes"] == pytest.approx(sum(peaks) / 2, abs=1)


def test_a_large_parent_does_not_count(loaders):
    ballast = bytearray(400 * MB)
    ballast[::4096] = b"x" * len(ballast[::4096])
    assert memory.peak_resident_bytes() > 400 * MB
    found = memory.peak_memory("anything", loader=f"{loaders}:holds_200_mb", vocabulary_size=50)
    assert found["peak_bytes"] < 330 * MB
    assert len(ballast) == 400 * MB


def test_inputs_threads_and_a_process_without_torch(loaders):
    memory.peak_memory(
        "anything",
        loader=f"{loaders}:checks_inputs",
        batch=2,
        length=9,
        threads=3,
        vocabulary_size=30,
        token_type_ids=True,
    )


def test_a_saved_classifier_costs_at_least_its_weights(tmp_path):
    config = BertConfig(
        hidden_size=256, num_hidden_layers=2, num_attention_heads=4, intermediate_size=512, vocab_size=20_000
    )
    model = BertForSequenceClassification(config)
    weights = 4 * sum(parameter.numel() for parameter in model.parameters())
    save_model(model, tmp_path)
    found = memory.peak_memory(tmp_path, length=16, forwards=2)
    assert found["baseline_bytes"] > 50 * MB  # torch and transformers alone
    assert found["peak_bytes"] >= found["baseline_bytes"] + 0.9 * weights
    assert found["cpu_seconds"] > 0


@pytest.mark.parametrize(
    "loader,message",
    [
        ("fails", "failed: ValueError: weights are damaged"),
        ("is_killed", r"was killed by signal 9 \(out of memory\?\)"),
        ("absent", "no attribute 'absent'"),
    ],
)
def test_a_process_that_dies_is_reported(loaders, loader, message):
    with pytest.raises(ModelError, match=message):
        memory.peak_memory("some-model", loader=f"{loaders}:{loader}", vocabulary_size=50)


def test_a_process_that_never_ends_is_stopped(loaders):
    with pytest.raises(ModelError, match="some-model: its process took over 1 s"):
        memory.peak_memory("some-model", loader=f"{loaders}:never_ends", vocabulary_size=50, timeout_seconds=1)


def test_a_folder_without_a_vocabulary_size_is_refused(loaders, tmp_path):
    with pytest.raises(ModelError, match="give vocabulary_size"):
        memory.peak_memory(tmp_path, loader=f"{loaders}:frees_200_mb")


def test_wrong_requests_are_refused():
    with pytest.raises(SettingError, match="module:function"):
        memory.peak_memory("some-model", loader="edgemin_utils.checkpoints")
    for wrong in ({"runs": 0}, {"forwards": 0}, {"threads": 0}):
        with pytest.raises(SettingError, match=f"got .*{next(iter(wrong))} 0"):
            memory.peak_memory("some-model", **wrong)


def test_peak_is_never_under_what_is_resident():
    assert memory.peak_resident_bytes() >= 0.99 * memory.resident_bytes() > 0
    if sys.platform == "linux":
        pages = int(Path(f"/proc/{os.getpid()}/statm").read_text().split()[1])
        assert memory.resident_bytes() == pytest.approx(pages * os.sysconf("SC_PAGE_SIZE"), rel=0.05)
