"""A chain's costs, and the sheet of `edgemin measure`, from real fresh processes."""

import json
from unittest.mock import Mock

import numpy as np
import pandas as pd
import pytest
import torch
from small_models import small_model, small_rows

from edgemin_utils.checkpoints import save_model
from edgemin_utils.encoders import encoder_layers
from edgemin_utils.errors import ModelError
from edgemin_utils.measurement import costs, peers
from edgemin_utils.measurement.costs import measure_costs, measure_models, sheet_text
from edgemin_utils.measurement.measured import open_model
from edgemin_utils.quantization.schemes import quantize, save_quantized
from edgemin_utils.settings import load_settings

TEXTS, NAMES = [("the film was good",), ("a very dull story", "and the end")], "plain other cut int8 graph".split()
SETTINGS = load_settings("demo", {"latency_threads": [1], "latency_lengths": [16, 128], "latency_processes": 2})


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A plain model twice, a cut and a quantized one with their tokenizer, and a graph without one."""
    place = tmp_path_factory.mktemp("measured")
    model, tokenizer = small_model(layers=2), small_rows(40).tokenizer
    save_model(model, place / "plain", tokenizer)
    save_model(small_model(layers=2, seed=1), place / "other", tokenizer)
    save_quantized(quantize(small_model(layers=1), "onnx-float32"), place / "graph", "onnx-float32")
    encoder_layers(model)[0].keep_heads([1, 2])
    save_model(model, place / "cut", tokenizer)
    save_quantized(quantize(model, "int8"), place / "int8", "int8", tokenizer)
    return place


@pytest.fixture(scope="module")
def measured(folder):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(costs, "in_fresh_process", lambda module, asked, threads, what: costs._time(asked))
        patch.setattr(costs.gc, "freeze", lambda: None)
        patch.setattr(costs, "peak_memory", lambda source, runs: {"peak_bytes": len(str(source)), "runs": runs})
        return measure_costs({name: folder / name for name in NAMES}, TEXTS, SETTINGS, folder)


def test_models_of_equal_shapes_are_timed_once(measured):
    assert measured["timed_as"] == {name: "plain" if name == "other" else name for name in NAMES}
    rows = pd.DataFrame(measured["latency"])
    assert set(rows["input"]) == {"1x16", "dev rows"} and set(rows["process"]) == {0, 1}
    assert len(rows) == 2 * (5 + 4)  # the graph lies beside no tokenizer
    of = {name: group.drop(columns="model").to_dict("records") for name, group in rows.groupby("model")}
    assert of["other"] == of["plain"]
    assert [row["model"] for row in measured["memory"]] == [row["model"] for row in measured["energy"]] == NAMES
    assert [note.split()[0] for note in measured["notes"]] == ["1x128", "No"]
    assert json.loads(json.dumps(measured)) == measured


def test_rows_agree_with_the_raw_times_and_have_their_bound(measured, folder):
    times = pd.read_parquet(folder / costs.TIMES_FILE)
    assert list(times) == "model input threads nanoseconds process run".split() and "other" not in set(times["model"])
    for row in measured["latency"]:
        own = times[(times["model"] == row["timed_as"]) & (times["input"] == row["input"])]
        own = own[own["process"] == row["process"]]
        assert own["run"].tolist() == list(range(15)) and row["runs"] == 15
        assert row["median_ms"] == pytest.approx(np.median(own["nanoseconds"]) / 1e6)
        assert row["bound_ms"] > row["attention_ms"] > 0
    assert measured["protocol"] == {"name": "quick", "processes": 2, "runs": 15, "seconds": 0.0}
    assert measured["tokenizer"]["median_ms"] > 0
    assert all(row["cpu_seconds"] > 0 and row["input"] == "1x16" for row in measured["energy"])


def test_runs_and_seconds_are_those_of_all_processes_and_memory_of_those_asked_for(monkeypatch, folder):
    models = {name: folder / name for name in ("plain", "cut")}
    described = dict.fromkeys(models, {"bounds": {}, "energy": {}})
    process = Mock(return_value={"times": [], "described": described, "tokenizer": None, "notes": None})
    monkeypatch.setattr(costs, "in_fresh_process", process)
    monkeypatch.setattr(costs, "peak_memory", lambda source, runs: {"runs": runs})
    settings = load_settings("laptop", {"latency_threads": [1, 3], "latency_processes": 4})
    found = measure_costs(models, [], settings, memory_of=["cut"])
    assert found["memory"] == [{"model": "cut", "timed_as": "cut", "runs": settings.memory_runs}]
    protocol = {"name": "full", "warm_up": 10, "runs": 25, "seconds": 2.5}
    for place, (_, request, threads, _) in enumerate(call.args for call in process.call_args_list):
        assert (request["protocol"], request["threads"], threads) == (protocol, [1, 3], 3)
        assert request["describe"] == (place == 0)
    assert process.call_count == 4


def test_texts_are_cut_and_tokenized_as_the_model_was_trained(folder):
    encode = costs._encoder(folder / "plain", 5)
    tokenizer = small_rows(40).tokenizer
    for texts in TEXTS:
        wanted = tokenizer(*texts, truncation=True, max_length=5)
        found = encode(texts)
        assert found["input_ids"].tolist() == [wanted["input_ids"]] and found["input_ids"].shape == (1, 5)
        assert found["token_type_ids"].tolist() == [wanted["token_type_ids"]]
    assert costs._encoder(folder / "graph", 5) is None


def test_the_sheet_holds_everything_and_prints_it(folder):
    found = measure_models([str(folder / "plain"), str(folder / "graph")], [16], [1], "quick")
    assert json.loads(json.dumps(found))["baseline"] == "plain"
    assert [model["name"] for model in found["models"]] == ["plain", "graph"]
    assert found["models"][0]["operations"]["1x16"]["fvcore_ratio"] == pytest.approx(1, abs=0.01)
    medians = pd.DataFrame(found["latency"]).groupby(["model", "input", "process"])["median_ms"].first()
    for row in found["speed_ups"]:
        ratios = medians["plain", row["input"]] / medians[row["model"], row["input"]]
        assert row["ratio"] == pytest.approx(float(np.sqrt(ratios.prod()))) and row["low"] < row["ratio"] < row["high"]
    assert all(row["peak_bytes"] > row["baseline_bytes"] > 0 for row in found["memory"])
    assert found["memory"][1]["peak_bytes"] < found["memory"][0]["baseline_bytes"]  # a graph does without torch
    text = sheet_text(found)
    assert f"{found['models'][0]['size']['stored_weights']:,}" in text and max(map(len, text.splitlines())) < 200
    for part in ("file MB   MiB", "fvcore / formula", "attention %", "QUICK", "times as fast as plain", "graph"):
        assert part in text


def test_peers_answer_as_their_model_does_where_their_packages_are(folder, tmp_path):
    (made, notes), batch = peers.make_peers(str(folder / "plain"), tmp_path), costs.timing.fixed_inputs(1, 16, 60)
    assert "onnx-int8" in made and len(made) + len(notes) == 3 + ("openvino-int8" in made)
    assert all(open_model(made[name]).work(16) == ([], 0) for name in made if name != "onnx-int8")
    with torch.inference_mode():
        every = [open_model(source).predict(batch) for source in (folder / "plain", *made.values())]
    assert all(torch.allclose(torch.as_tensor(each).float(), every[0], atol=0.2) for each in every)
    if "openvino-int8" not in made:
        with pytest.raises(ModelError, match="pip install"):
            peers.OpenVinoModel(tmp_path / "any.xml")
