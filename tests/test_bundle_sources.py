"""What a bundle is made from: stages of a study, other checkpoints, and labels in the order of a model's outputs."""

import json
import shutil
from pathlib import Path
from types import SimpleNamespace

import pandas as pd
import pytest
from example_bundle import MAX_LENGTH, source_of, write_bundle, write_model

from edgemin_utils.bundle.classify import Bundle
from edgemin_utils.bundle.making import judge, make_bundle
from edgemin_utils.bundle.sources import labels_of_outputs, open_source
from edgemin_utils.checkpoints import load_model, save_model
from edgemin_utils.errors import ModelError, SettingError, StageError
from edgemin_utils.measurement.evaluate import PREDICTIONS_FILE
from edgemin_utils.quantization.schemes import quantize, save_quantized
from edgemin_utils.rows.splits import load_task_data
from edgemin_utils.rows.tokens import load_tokenizer, tokenize_rows
from edgemin_utils.study import Chain, open_chain
from edgemin_utils.training import batches, model_inputs, predict

MODELS = ["minilmv2+int8", "minilmv2+edge-int8"]


@pytest.fixture(scope="module")
def chain(tmp_path_factory) -> Chain:
    """A chain whose every float stage holds the same small model, which has learnt nothing."""
    place = tmp_path_factory.mktemp("study")
    settings = {"models": MODELS, "train_rows": 60, "dev_rows": 40, "holdout_fraction": 0, "max_length": MAX_LENGTH}
    chain = open_chain("sst2", "demo", 0, place / "study", settings)
    write_model(place / "model")
    model, tokenizer = load_model(place / "model"), load_tokenizer(str(place / "model"))
    rows = tokenize_rows(load_task_data(chain.settings, "sst2", 0), tokenizer, MAX_LENGTH, configs=[model.config])
    inputs = [model_inputs(model, batch) for _, batch in batches(rows.train, tokenizer, 1)]
    for stage in chain.plan.values():
        with stage:
            if stage.kind == "quantization":
                quantized = quantize(model, stage.step.method, inputs, MAX_LENGTH)
                save_quantized(quantized, stage.folder, stage.step.method, tokenizer)
                logits = predict(quantized, rows.dev["dev"], tokenizer, 1)
            else:
                save_model(model, stage.folder, tokenizer)
                logits = predict(model, rows.dev["dev"], tokenizer)
            frame = pd.DataFrame({"split": "dev", "row": rows.dev["dev"]["row"], "label": rows.dev["dev"]["labels"]})
            frame.assign(logit_0=logits[:, 0], logit_1=logits[:, 1]).to_parquet(stage.folder / PREDICTIONS_FILE)
            stage.record({"accuracy": float((logits.argmax(axis=1) == frame["label"]).mean())})
    return chain


def test_a_stage_knows_its_rows(chain):
    source = open_source(str(chain.folder / "minilmv2"))
    assert source.provenance["source"] == "sst2/seed-0/minilmv2" and source.rows.limit == MAX_LENGTH
    assert source.synthetic and source.labels == ("negative", "positive") and not source.scheme
    assert len(source.logits["dev"]) == len(source.rows.dev["dev"]) == 40
    with pytest.raises(StageError, match="knows its own rows; leave out task mnli, data_dir"):
        open_source(str(chain.folder / "minilmv2"), "mnli", {"data_dir": "elsewhere"})


def test_an_edge_stage_brings_its_graph_and_is_compared_with_its_float_model(chain, tmp_path):
    source = open_source(str(chain.folder / "minilmv2+edge-int8"))
    content = make_bundle(source, tmp_path / "bundle", max_drop=100)
    graph = (chain.folder / "minilmv2+edge-int8" / "model.onnx").read_bytes()
    assert content["scheme"] == "edge-int8" and (tmp_path / "bundle" / "model.onnx").read_bytes() == graph
    assert content["provenance"]["float_source"] == "sst2/seed-0/minilmv2"
    assert content["provenance"]["fingerprint"] == chain.read("minilmv2").fingerprint
    # The program gives what the stage predicted.
    stored = chain.read("minilmv2+edge-int8").results["accuracy"]
    assert content["measured"]["accuracy"]["dev"]["bundle"] == pytest.approx(stored)
    texts = [(text,) for text in source.rows.data.dev["dev"]["sentence"]]
    assert content["measured"]["accuracy"]["dev"]["rows"] == 40 == len(Bundle(tmp_path / "bundle").logits(texts))
    made_anew = make_bundle(source, tmp_path / "four", "edge-int4", max_drop=100)
    assert made_anew["measured"]["model_bytes"] < len(graph)


def test_what_holds_no_float_model_names_the_way_out(chain, tmp_path):
    with pytest.raises(ModelError, match=f"bundle the float model it came from: {chain.folder / 'minilmv2'}"):
        open_source(str(chain.folder / "minilmv2+int8"))
    copy = Path(shutil.copytree(chain.folder / "minilmv2+int8", tmp_path / "copy"))
    (copy / "record.json").unlink()
    with pytest.raises(ModelError, match="was quantized by int8 already; bundle the float model"):
        open_source(str(copy), "sst2")
    with pytest.raises(SettingError, match="is no stage of a study; name the rows to judge it on with --task"):
        open_source(str(copy))


def test_rows_that_changed_are_refused(chain):
    path = chain.folder / "teacher" / PREDICTIONS_FILE
    pd.read_parquet(path).iloc[1:].to_parquet(path, index=False)
    with pytest.raises(StageError, match="the rows of dev are not those that"):
        open_source(str(path.parent))


def test_a_checkpoint_that_is_not_fine_tuned_says_so(tmp_path):
    folder = write_model(tmp_path / "model")
    model, tokenizer = load_model(folder), load_tokenizer(str(folder))
    model.bert.save_pretrained(tmp_path / "encoder")
    tokenizer.save_pretrained(tmp_path / "encoder")
    with pytest.raises(ModelError, match="edgemin train"):
        source_of(tmp_path / "encoder", "sentence")


def labels_in(names, labels=("neg", "pos"), problem=None):
    config = SimpleNamespace(id2label=names, problem_type=problem)
    return labels_of_outputs(config, SimpleNamespace(title="reviews", labels=labels), "m")


@pytest.mark.parametrize(
    ("names", "labels", "note"),
    [
        ({0: "neg", 1: "pos"}, ("neg", "pos"), ""),
        ({0: "pos", 1: "neg"}, ("pos", "neg"), ""),
        ({0: " NEG", 1: "Pos"}, ("neg", "pos"), ""),
        ({0: "LABEL_0", 1: "LABEL_1"}, ("neg", "pos"), "LABEL_0 is neg, LABEL_1 is pos"),
        ({0: "LABEL_1", 1: "LABEL_0"}, ("pos", "neg"), "LABEL_1 is pos, LABEL_0 is neg"),
    ],
)
def test_labels_follow_the_models_outputs(names, labels, note):
    found, said = labels_in(names)
    assert found == labels and said.endswith(note) and bool(said) == bool(note)


@pytest.mark.parametrize(
    ("names", "labels", "message"),
    [
        ({1: "neg", 2: "pos"}, ("neg", "pos"), r"of m numbers its labels 1 neg, 2 pos; correct id2label"),
        ({0: "ham", 1: "spam"}, ("neg", "pos"), "m answers with ham, spam, and the labels of reviews are neg, pos"),
        ({0: "neg", 1: "pos"}, ("neg", "other", "pos"), "m answers with neg, pos, and the labels of reviews are"),
        ({0: "LABEL_0", 1: "LABEL_2"}, ("neg", "pos"), "m answers with LABEL_0, LABEL_2"),
        ({0: "pos", 1: "POS"}, ("neg", "pos"), "m answers with pos, POS"),
    ],
)
def test_labels_that_are_not_the_tasks_are_refused(names, labels, message):
    with pytest.raises(ModelError, match=message):
        labels_in(names, labels)
    with pytest.raises(ModelError, match="m gives a row several labels at once"):
        labels_in({0: "neg", 1: "pos"}, problem="multi_label_classification")


def test_labels_in_another_order_are_judged_by_name(tmp_path):
    """The same weights under names that stand the other way round are right where they were wrong."""
    bundle, folder = Bundle(write_bundle(tmp_path / "bundle", "sentence")), tmp_path / "model"
    found = judge(bundle, source_of(folder, "sentence"), max_drop=100)["dev"]
    config = json.loads((folder / "config.json").read_text())
    config |= {"id2label": {"0": "Positive", "1": "NEGATIVE"}, "label2id": {"Positive": 0, "NEGATIVE": 1}}
    (folder / "config.json").write_text(json.dumps(config))
    source = source_of(folder, "sentence")
    assert source.labels == ("positive", "negative") and source.rows.task.labels == ("negative", "positive")
    turned = judge(bundle, source, max_drop=100)["dev"]
    assert turned["agreement"] == found["agreement"] > 0.9
    assert [turned[name] for name in ("bundle", "pytorch")] == [1 - found[name] for name in ("bundle", "pytorch")]
