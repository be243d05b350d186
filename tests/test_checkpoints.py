"""Models on disk: cut ones come back as they were, and what does not fit is refused in a sentence."""

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from small_models import edit_json, logits, small_batch, small_model, unequal
from transformers import AutoModelForSequenceClassification

from edgemin_utils.checkpoints import load_model, save_model
from edgemin_utils.encoders import encoder_layers, set_labels
from edgemin_utils.errors import ModelError

HEADS = "BertModel BertForMaskedLM BertForPreTraining RobertaModel ElectraForPreTraining DistilBertForMaskedLM"


def edit_weights(folder, changes):
    weights = load_file(folder / "model.safetensors") | changes
    kept = {name: weight for name, weight in weights.items() if weight is not None}
    save_file(kept, folder / "model.safetensors", metadata={"format": "pt"})


def assert_refused(name_or_folder, message, labels=None):
    with pytest.raises(ModelError, match=message):
        load_model(name_or_folder, labels)


def test_cut_model_reloads_with_the_same_logits_and_can_be_trained_cut_and_saved_again(family, tmp_path):
    model, batch = unequal(family), small_batch()
    save_model(model, tmp_path / "once")
    before = torch.random.get_rng_state()
    reloaded = load_model(tmp_path / "once", dropout=0.3)
    assert {module.p for module in reloaded.modules() if isinstance(module, torch.nn.Dropout)} == {0.3}
    assert torch.equal(torch.random.get_rng_state(), before)  # no random weights first, which would take memory too
    assert all(value.device.type == "cpu" for value in (*reloaded.parameters(), *reloaded.buffers()))
    assert torch.equal(logits(reloaded, batch), logits(model, batch))
    assert reloaded.config.id2label == model.config.id2label
    reloaded.train()(**batch).loss.backward()
    assert encoder_layers(reloaded)[0].query.weight.grad.shape == (36, 48)
    encoder_layers(reloaded.eval())[1].keep_heads([1, 2])
    save_model(reloaded, tmp_path / "twice")
    assert torch.equal(logits(load_model(tmp_path / "twice"), batch), logits(reloaded, batch))


def test_a_cut_model_says_to_transformers_how_to_load_it(tmp_path):
    save_model(unequal(), tmp_path)
    with pytest.raises(ValueError, match=r"load this folder with edgemin_utils\.checkpoints\.load_model"):
        AutoModelForSequenceClassification.from_pretrained(tmp_path)


def test_a_new_head_depends_on_the_seed_alone(tmp_path):
    save_model(small_model(), tmp_path)
    heads = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        heads.append(load_model(tmp_path, labels=("a", "b", "c")).classifier.weight)
    assert heads[0].shape == (3, 48) and torch.equal(heads[0], heads[1]) and not torch.equal(heads[0], heads[2])


def test_a_head_whose_labels_stand_in_another_order_is_put_in_the_tasks(family, tmp_path):
    model, batch = small_model(family), small_batch()
    set_labels(model.config, ["positive", "negative"])
    save_model(model, tmp_path)
    ordered = logits(load_model(tmp_path, ["negative", "positive"]), batch)
    torch.testing.assert_close(ordered, logits(model, batch).flip(1))
    torch.testing.assert_close(logits(load_model(tmp_path), batch), logits(model, batch))


def test_configs_of_other_outputs_are_refused(tmp_path):
    save_model(small_model(), tmp_path)
    edit_json(tmp_path / "config.json", id2label={"1": "neg", "2": "pos"}, label2id={"neg": 1, "pos": 2})
    assert_refused(tmp_path, "does not number its labels from 0")
    edit_json(tmp_path / "config.json", problem_type="multi_label_classification")
    assert_refused(tmp_path, "one label a row")


@pytest.mark.parametrize("head", HEADS.split())
def test_a_pretrained_checkpoint_takes_a_new_head_and_says_that_it_is_not_fine_tuned(head, tmp_path):
    family = head.split("Model")[0].split("For")[0]
    getattr(transformers, head)(small_model(family.lower()).config).save_pretrained(tmp_path)
    assert load_model(tmp_path, labels=("a", "b")).config.num_labels == 2
    assert_refused(tmp_path, "is not fine-tuned.*use `edgemin train` first")


@pytest.mark.parametrize("name", ["bert.encoder.layer.0.output.adapters.one.weight", "qa_outputs.weight"])
def test_weights_that_have_no_place_are_refused(name, tmp_path):
    save_model(small_model(), tmp_path)
    edit_weights(tmp_path, {name: torch.zeros(3)})
    assert_refused(tmp_path, f"has weights that its family has no place for, as {name}")
    if "encoder" in name:  # training replaces the head alone
        assert_refused(tmp_path, "has no place for", ("a", "b"))
    else:
        load_model(tmp_path, labels=("a", "b"))


def test_missing_weights_and_weights_of_another_shape_are_named(tmp_path):
    save_model(small_model(), tmp_path)
    edit_json(tmp_path / "config.json", hidden_size=24)
    assert_refused(tmp_path, "do not fit")
    edit_json(tmp_path / "config.json", hidden_size=48)
    edit_weights(tmp_path, {"bert.encoder.layer.0.output.dense.weight": None})
    for labels in (None, ("a", "b")):
        assert_refused(tmp_path, r"do not fit its config.*bert\.encoder\.layer\.0\.output\.dense\.weight", labels)


@pytest.mark.parametrize("make, message", [(small_model, "cannot be loaded"), (unequal, "does not describe a cut")])
def test_damaged_weights_and_half_written_configs_are_named(make, message, tmp_path):
    save_model(make(), tmp_path)
    weights = next(tmp_path.glob("*.safetensors"))
    whole = weights.read_bytes()
    weights.write_bytes(whole[:-1000])
    assert_refused(tmp_path, "truncated or damaged")
    weights.write_bytes(whole)
    (tmp_path / "config.json").write_text('{"model_type":')
    assert_refused(tmp_path, f"{tmp_path}.*{message}")


def test_what_is_no_model_of_a_supported_family_is_refused_by_name(tmp_path, monkeypatch):
    assert_refused(tmp_path / "nothing", "there is no model folder")
    assert_refused(tmp_path, r"holds no config\.json")
    config = transformers.GPT2Config(n_layer=1, n_embd=8, n_head=2, vocab_size=10)
    set_labels(config, ["a", "b"])
    config.save_pretrained(tmp_path)
    assert_refused(tmp_path, "'gpt2' is not supported; supported families: bert, distilbert")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    assert_refused("distilbert-base-uncasedd", "Check the spelling, or give a folder")
