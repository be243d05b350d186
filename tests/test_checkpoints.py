"""Models on disk: cut ones come back as they were, and what does not fit is refused in a sentence."""

import json

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from small_models import FAMILY_NAMES, logits, small_batch, small_model
from transformers import AutoModelForSequenceClassification

from edgemin_utils.checkpoints import load_model, save_model
from edgemin_utils.encoders import encoder_layers, set_labels
from edgemin_utils.errors import ModelError


def cut_model(**sizes):
    model = small_model(**sizes)
    encoder_layers(model)[0].keep_heads([1])
    return model


def edit_config(folder, **changes):
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


@pytest.mark.parametrize("family", FAMILY_NAMES)
def test_cut_model_reloads_with_the_same_logits_and_can_be_trained_cut_and_saved_again(family, tmp_path):
    model, batch = cut_model(family=family), small_batch()
    encoder_layers(model)[2].keep_neurons(range(7))
    save_model(model, tmp_path / "once")
    torch.manual_seed(0)
    before = torch.random.get_rng_state()
    reloaded = load_model(tmp_path / "once", dropout=0.3)
    assert {module.p for module in reloaded.modules() if isinstance(module, torch.nn.Dropout)} == {0.3}
    # No random weights first: they would take as much memory again.
    assert torch.equal(torch.random.get_rng_state(), before)
    assert all(value.device.type == "cpu" for value in (*reloaded.parameters(), *reloaded.buffers()))
    assert torch.equal(logits(reloaded, batch), logits(model, batch))
    assert reloaded.config.id2label == model.config.id2label
    reloaded.train()(**batch).loss.backward()
    assert encoder_layers(reloaded)[0].query.weight.grad.shape == (12, 48)
    encoder_layers(reloaded.eval())[1].keep_heads([1, 2])
    save_model(reloaded, tmp_path / "twice")
    assert torch.equal(logits(load_model(tmp_path / "twice"), batch), logits(reloaded, batch))


def test_plain_model_is_a_plain_transformers_folder_and_a_cut_one_says_how_to_load_it(tmp_path):
    model, batch = small_model(), small_batch()
    save_model(model, tmp_path)
    stock = AutoModelForSequenceClassification.from_pretrained(tmp_path).eval()
    assert torch.equal(logits(stock, batch), logits(model, batch))
    assert torch.equal(logits(load_model(tmp_path), batch), logits(model, batch))
    save_model(cut_model(), tmp_path / "cut")
    with pytest.raises(ValueError, match=r"load this folder with edgemin_utils\.checkpoints\.load_model"):
        AutoModelForSequenceClassification.from_pretrained(tmp_path / "cut")


def test_a_new_head_depends_on_the_seed_alone(tmp_path):
    save_model(small_model(), tmp_path)
    heads = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        loaded = load_model(tmp_path, labels=("a", "b", "c"))
        assert loaded.config.num_labels == 3 and loaded.classifier.out_features == 3
        heads.append(loaded.classifier.weight.detach())
    assert torch.equal(heads[0], heads[1]) and not torch.equal(heads[0], heads[2])


@pytest.mark.parametrize("family", FAMILY_NAMES)
def test_a_head_whose_labels_stand_in_another_order_is_put_in_the_tasks(family, tmp_path):
    model, batch = small_model(family), small_batch()
    set_labels(model.config, ["positive", "negative"])
    save_model(model, tmp_path)
    ordered = logits(load_model(tmp_path, ["negative", "positive"]), batch)
    torch.testing.assert_close(ordered, logits(model, batch).flip(1))
    torch.testing.assert_close(logits(load_model(tmp_path), batch), logits(model, batch))


def test_configs_of_other_outputs_are_refused(tmp_path):
    save_model(small_model(), tmp_path)
    edit_config(tmp_path, id2label={"1": "neg", "2": "pos"}, label2id={"neg": 1, "pos": 2})
    with pytest.raises(ModelError, match="does not number its labels from 0"):
        load_model(tmp_path)
    edit_config(tmp_path, problem_type="multi_label_classification")
    with pytest.raises(ModelError, match="one label a row"):
        load_model(tmp_path)


SIZES = {"vocab_size": 60, "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}


HEADS = "BertModel BertForMaskedLM BertForPreTraining RobertaModel ElectraForPreTraining DistilBertForMaskedLM"


@pytest.mark.parametrize("head", HEADS.split())
def test_a_pretrained_checkpoint_takes_a_new_head_and_says_that_it_is_not_fine_tuned(head, tmp_path):
    family = head.split("Model")[0].split("For")[0]
    config = getattr(transformers, f"{family}Config")(**SIZES)
    getattr(transformers, head)(config).save_pretrained(tmp_path)
    assert load_model(tmp_path, labels=("a", "b")).config.num_labels == 2
    with pytest.raises(ModelError, match="is not fine-tuned.*use `edgemin train` first"):
        load_model(tmp_path)


@pytest.mark.parametrize("name", ["bert.encoder.layer.0.output.adapters.one.weight", "qa_outputs.weight"])
def test_weights_that_have_no_place_are_refused(name, tmp_path):
    save_model(small_model(), tmp_path)
    path = tmp_path / "model.safetensors"
    save_file({**load_file(path), name: torch.zeros(3)}, path, metadata={"format": "pt"})
    with pytest.raises(ModelError, match=f"1 weights for which its family has no place, such as {name}"):
        load_model(tmp_path)
    if "encoder" in name:  # they are no head that training replaces
        with pytest.raises(ModelError, match="has no place"):
            load_model(tmp_path, labels=("a", "b"))
    else:
        load_model(tmp_path, labels=("a", "b"))


def test_missing_weights_and_weights_of_another_shape_are_named(tmp_path):
    save_model(small_model(), tmp_path)
    path = tmp_path / "model.safetensors"
    weights = load_file(path)
    gone = weights.pop("bert.encoder.layer.0.output.dense.weight")
    save_file(weights, path, metadata={"format": "pt"})
    for labels in (None, ("a", "b")):
        with pytest.raises(ModelError, match=r"do not fit its config.*bert\.encoder\.layer\.0\.output\.dense\.weight"):
            load_model(tmp_path, labels)
    save_file({**weights, "bert.encoder.layer.0.output.dense.weight": gone}, path, metadata={"format": "pt"})
    edit_config(tmp_path, hidden_size=24)
    with pytest.raises(ModelError, match="do not fit"):
        load_model(tmp_path)


@pytest.mark.parametrize("make, message", [(small_model, "cannot be loaded"), (cut_model, "does not describe a cut")])
def test_damaged_weights_and_half_written_configs_are_named(make, message, tmp_path):
    save_model(make(), tmp_path)
    weights = next(tmp_path.glob("*.safetensors"))
    whole = weights.read_bytes()
    weights.write_bytes(whole[:-1000])
    with pytest.raises(ModelError, match="truncated or damaged"):
        load_model(tmp_path)
    weights.write_bytes(whole)
    path = tmp_path / "config.json"
    path.write_text(path.read_text()[:40])
    with pytest.raises(ModelError, match=f"{tmp_path}.*{message}"):
        load_model(tmp_path)


def test_what_is_no_model_of_a_supported_family_is_refused_by_name(tmp_path, monkeypatch):
    with pytest.raises(ModelError, match="there is no model folder"):
        load_model(tmp_path / "nothing")
    with pytest.raises(ModelError, match=r"holds no config\.json"):
        load_model(tmp_path)
    config = transformers.GPT2Config(n_layer=1, n_embd=8, n_head=2, vocab_size=10)
    set_labels(config, ["a", "b"])
    config.save_pretrained(tmp_path)
    with pytest.raises(ModelError, match="'gpt2' is not supported; supported families: bert, distilbert"):
        load_model(tmp_path)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(ModelError, match="Check the spelling, or give a folder"):
        load_model("distilbert-base-uncasedd")
