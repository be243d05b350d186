"""Peak memory of real child processes whose use of memory is known."""

import psutil
import pytest
from small_models import small_model

from edgemin_utils.checkpoints import save_model
from edgemin_utils.errors import ModelError
from edgemin_utils.measurement import memory

MB = 1_000_000
LOADERS = """
import os, signal, sys
import numpy

def holds_200_mb(folder):
    kept = numpy.ones(25_000_000)
    return lambda inputs: kept[0]

def checks_inputs(folder):
    def predict(inputs):
        assert sorted(inputs) == ["attention_mask", "input_ids"], sorted(inputs)
        assert all(array.shape == (1, 9) and array.dtype == numpy.int64 for array in inputs.values())
        assert os.environ["OMP_NUM_THREADS"] == "1" and folder == "anything"
        assert "torch" not in sys.modules, "torch was imported"
    numpy.ones(25_000_000).sum()  # freed again
    return predict

def fails(folder):
    raise ValueError("weights are damaged")

def is_killed(folder):
    os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.fixture
def loaders(tmp_path, monkeypatch):
    """A module of loaders that children find by the parent's module path."""
    (tmp_path / "memory_loaders.py").write_text(LOADERS)
    monkeypatch.syspath_prepend(str(tmp_path))
    return "memory_loaders"


def test_what_a_loader_keeps_or_frees_is_in_the_peak_and_a_large_parent_is_not(loaders):
    ballast = bytearray(400 * MB)
    ballast[::4096] = b"x" * len(ballast[::4096])
    assert memory.peak_resident_bytes() > max(400 * MB, 0.99 * psutil.Process().memory_info().rss)
    for loader in ("holds_200_mb", "checks_inputs"):
        found = memory.peak_memory("anything", length=9, loader=f"{loaders}:{loader}")
        assert 195 * MB < found["peak_bytes"] - found["baseline_bytes"] < 240 * MB
        assert found["peak_bytes"] < 330 * MB and found["runs"] == 1
    assert len(ballast) == 400 * MB


def test_a_saved_classifier_costs_at_least_its_weights(tmp_path):
    model = small_model(hidden_size=256, intermediate_size=512, vocabulary_size=20_000)
    weights = 4 * sum(parameter.numel() for parameter in model.parameters())
    save_model(model, tmp_path)
    found = memory.peak_memory(tmp_path, length=16)
    assert found["baseline_bytes"] > 50 * MB  # torch and transformers alone
    assert found["peak_bytes"] >= found["baseline_bytes"] + 0.9 * weights


def test_a_process_that_dies_is_reported(loaders):
    for loader, message in (
        ("fails", "some-model: its process failed: ValueError: weights"),
        ("is_killed", "signal 9"),
    ):
        with pytest.raises(ModelError, match=message):
            memory.peak_memory("some-model", loader=f"{loaders}:{loader}")
