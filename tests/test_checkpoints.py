import json

import pytest
import torch
from small_models import FAMILY_NAMES, small_batch, small_model
from transformers import AutoModelForSequenceClassification, BertForSequenceClassification, GPT2Config

from edgemin_utils.checkpoints import load_model, save_model
from edgemin_utils.encoders import encoder_layers, set_labels
from edgemin_utils.errors import ModelError


def logits(model, batch):
    with torch.inference_mode():
        return model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits


@pytest.mark.parametrize("family", FAMILY_NAMES)
def test_cut_model_reloads_with_the_same_logits_and_can_be_trained(family, tmp_path):
    model, batch = small_model(family), small_batch()
    encoder_layers(model)[0].keep_heads([1])
    encoder_layers(model)[2].keep_neurons(range(7))
    save_model(model, tmp_path)
    reloaded = load_model(tmp_path)
    assert torch.equal(logits(reloaded, batch), logits(model, batch))
    assert reloaded.config.id2label == model.config.id2label
    reloaded.train()(**batch).loss.backward()
    assert encoder_layers(reloaded)[0].query.weight.grad.shape == (12, 48)


def test_loading_a_cut_model_makes_no_random_weights_first(tmp_path):
    """They would take as much memory again, and count in the peak of a process that only loads and answers."""
    model = small_model()
    encoder_layers(model)[0].keep_heads([1])
    save_model(model, tmp_path)
    torch.manual_seed(0)
    before = torch.random.get_rng_state()
    reloaded = load_model(tmp_path)
    assert torch.equal(torch.random.get_rng_state(), before)
    assert all(value.device.type == "cpu" for value in (*reloaded.parameters(), *reloaded.buffers()))


def test_a_cut_model_can_be_cut_and_saved_again(tmp_path):
    model, batch = small_model(), small_batch()
    encoder_layers(model)[0].keep_heads([1, 2])
    save_model(model, tmp_path / "once")
    again = load_model(tmp_path / "once")
    encoder_layers(again)[0].keep_heads([1])
    save_model(again, tmp_path / "twice")
    assert torch.equal(logits(load_model(tmp_path / "twice"), batch), logits(again, batch))


def test_plain_model_is_a_plain_transformers_folder(tmp_path):
    model, batch = small_model(), small_batch()
    save_model(model, tmp_path)
    stock = AutoModelForSequenceClassification.from_pretrained(tmp_path).eval()
    assert torch.equal(logits(stock, batch), logits(model, batch))
    assert torch.equal(logits(load_model(tmp_path), batch), logits(model, batch))


def test_stock_loading_of_a_cut_folder_says_how_to_load_it(tmp_path):
    model = small_model()
    encoder_layers(model)[0].keep_heads([1])
    save_model(model, tmp_path)
    with pytest.raises(ValueError, match=r"load this folder with edgemin_utils\.checkpoints\.load_model"):
        AutoModelForSequenceClassification.from_pretrained(tmp_path)
    with pytest.raises(OSError):
        BertForSequenceClassification.from_pretrained(tmp_path)


def test_dropout_and_labels_are_set_when_loading(tmp_path):
    model = small_model(dropout=0.1)
    save_model(model, tmp_path)
    loaded = load_model(tmp_path, labels=("a", "b", "c"), dropout=0.3)
    assert loaded.config.num_labels == 3 and loaded.classifier.out_features == 3
    assert {module.p for module in loaded.modules() if isinstance(module, torch.nn.Dropout)} == {0.3}
    encoder_layers(model)[0].keep_heads([1])
    save_model(model, tmp_path / "cut")
    cut = load_model(tmp_path / "cut", dropout=0.3)
    assert {module.p for module in cut.modules() if isinstance(module, torch.nn.Dropout)} == {0.3}


def test_a_new_head_depends_on_the_seed_alone(tmp_path):
    save_model(small_model(), tmp_path)
    heads = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        heads.append(load_model(tmp_path, labels=("a", "b", "c")).classifier.weight.detach())
    assert torch.equal(heads[0], heads[1]) and not torch.equal(heads[0], heads[2])


def test_missing_folder_and_folder_without_config_are_named(tmp_path):
    with pytest.raises(ModelError, match="there is no model folder"):
        load_model(tmp_path / "nothing")
    with pytest.raises(ModelError, match="holds no config.json"):
        load_model(tmp_path)


@pytest.mark.parametrize("cut", [False, True])
def test_truncated_weights_are_named(tmp_path, cut):
    model = small_model()
    if cut:
        encoder_layers(model)[0].keep_heads([1])
    save_model(model, tmp_path)
    weights = next(tmp_path.glob("*.safetensors"))
    weights.write_bytes(weights.read_bytes()[:-1000])
    with pytest.raises(ModelError, match="truncated or damaged"):
        load_model(tmp_path)


@pytest.mark.parametrize("cut, message", [(False, "cannot be loaded as a model"), (True, "does not describe a cut")])
def test_a_half_written_config_is_named(tmp_path, cut, message):
    model = small_model()
    if cut:
        encoder_layers(model)[0].keep_heads([1])
    save_model(model, tmp_path)
    path = tmp_path / "config.json"
    path.write_text(path.read_text()[:40])
    with pytest.raises(ModelError, match=f"{tmp_path}.*{message}"):
        load_model(tmp_path)


def test_weights_that_do_not_fit_the_config_are_named(tmp_path):
    save_model(small_model(), tmp_path)
    path = tmp_path / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "hidden_size": 24}))
    with pytest.raises(ModelError, match="do not fit"):
        load_model(tmp_path)


def test_unsupported_family_is_refused_by_name(tmp_path):
    config = GPT2Config(n_layer=1, n_embd=8, n_head=2, vocab_size=10)
    set_labels(config, ["a", "b"])
    config.save_pretrained(tmp_path)
    with pytest.raises(ModelError, match="'gpt2' is not supported; supported families: bert, distilbert"):
        load_model(tmp_path)


def test_unreachable_hub_or_misspelt_id_names_the_way_out(monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(ModelError, match="Check the spelling, or give a folder"):
        load_model("distilbert-base-uncasedd")
