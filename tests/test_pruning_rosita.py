"""ROSITA: the best product of low rank, what goes in which round, and factorized models saved and quantized."""

import copy
import dataclasses

import numpy as np
import pytest
import torch
from small_models import logits, small_batch, small_model, small_rows
from test_pruning_cut import magnitude

from edgemin_utils.checkpoints import load_model, save_model
from edgemin_utils.distillation.losses import hidden_state_error, label_divergence, soft_target_divergence
from edgemin_utils.distillation.teacher import Teacher, student_states
from edgemin_utils.encoders import describe_model
from edgemin_utils.measurement.operations import closed_formula_macs
from edgemin_utils.names import felt_settings, read_name
from edgemin_utils.pruning.rosita import factorize, layers_phase, rosita_rounds
from edgemin_utils.pruning.vocabulary import keep_vocabulary
from edgemin_utils.quantization import schemes
from edgemin_utils.settings import load_settings
from edgemin_utils.study import code_of
from edgemin_utils.training import BatchMaker

SETTINGS = load_settings("demo", {"batch_size": 8})


def test_the_product_is_off_by_the_singular_values_left_out(family):
    model, batch = small_model(family), small_batch()
    word, whole = model.get_input_embeddings(), logits(model, batch)
    table, padding, held = word.weight.detach().numpy().copy(), word.padding_idx, 60 * 48
    left_out = np.linalg.svd(table, compute_uv=False)
    for rank in (48, 30, 12):  # the later ones factorize a product
        before = model.num_parameters()
        gone, word = factorize(model, rank), model.get_input_embeddings()
        error = np.linalg.norm(table - word.weight.detach().numpy()) ** 2
        assert error == pytest.approx((left_out[rank:] ** 2).sum(), rel=1e-3, abs=1e-6)
        assert before - model.num_parameters() == gone == held - rank * (60 + 48) and word.table.padding_idx == padding
        held = rank * (60 + 48)
        if rank == 48:  # of full rank: the same answers
            torch.testing.assert_close(logits(model, batch), whole, atol=1e-4, rtol=1e-4)


def test_a_factorized_model_is_saved_reloaded_quantized_and_loses_words(family, tmp_path):
    model, batch = small_model(family), {**small_batch(), "token_type_ids": torch.zeros(3, 9, dtype=torch.int64)}
    macs = closed_formula_macs(model, 1, 9)
    factorize(model, 12)
    assert describe_model(model)["embedding_rank"] == [12]
    assert closed_formula_macs(model, 1, 9) - macs == 9 * 12 * 48
    save_model(model, tmp_path / "float")
    again, wanted = load_model(tmp_path / "float"), logits(model, batch)
    assert torch.equal(logits(again, batch), wanted) and describe_model(again) == describe_model(model)
    row = {name: value[:1] for name, value in batch.items() if name != "labels"}
    for scheme in ("int8-embeddings", "int4-embeddings", "onnx-float32", "onnx-int8-embeddings", "edge-int8"):
        schemes.save_quantized(schemes.quantize(model, scheme, [row]), tmp_path / scheme, scheme)
        given = schemes.load_model(tmp_path / scheme)(**{name: batch[name] for name in row}).logits
        close = 1e-4 if scheme == "onnx-float32" else 1.5
        torch.testing.assert_close(given, wanted, atol=close, rtol=0)
        sizes = schemes.stored_sizes(schemes.load_model(tmp_path / scheme))
        table = next(size for name, size in sizes.items() if name.endswith("word_embeddings.table.weight"))
        assert table[0] == 60 * 12 and (table[1] < 4 * table[0]) == (scheme != "onnx-float32")
    kept, ids = range(0, 60, 2), batch["input_ids"] // 2
    even = logits(again, {**batch, "input_ids": ids * 2})
    keep_vocabulary(again, kept)
    assert again.config.vocab_size == 30 and again.get_input_embeddings().weight.shape == (30, 48)
    if family != "roberta":  # whose positions count padding tokens, whose number changed
        torch.testing.assert_close(logits(again, {**batch, "input_ids": ids}), even, atol=1e-5, rtol=1e-5)


def test_what_goes_in_which_round():
    """Five layers of eight heads: round(0.4 x 0.5 x 5) = 1 layer, then one head a layer and round."""
    model, seen = small_model(layers=5, heads=8), []
    for cut in rosita_rounds(model, "0.5", SETTINGS, magnitude, None, None, 0):
        shapes = describe_model(cut.model)
        seen.append((shapes["heads"][0], shapes["intermediate_sizes"][0], *shapes.get("embedding_rank", [0])))
        assert shapes["layers"] == 4 and len(set(shapes["heads"])) == 1 and cut.phase is None
    assert seen == [(8, 96, 0), (7, 84, 42), (6, 72, 36), (5, 60, 30), (4, 48, 24)]
    assert (cut.round, cut.rounds, cut.removed) == (5, 5, [[4]])
    assert cut.parameters_removed == model.num_parameters() - cut.model.num_parameters()
    fewer = [cut.round for cut in rosita_rounds(small_model(layers=1), "0.2", SETTINGS, magnitude, None, None, 0)]
    assert fewer == [1]  # int(0.2 x 4) is no head, but neurons and rank go


def test_the_cut_in_depth_teaches_the_cuts_in_width():
    rows = small_rows(8)
    shallow, deep = (small_model(layers=layers, vocabulary_size=len(rows.tokenizer)) for layers in (3, 4))
    teacher, student = Teacher(deep, rows.tokenizer, rows, SETTINGS), copy.deepcopy(shallow)
    cuts = [(cut, cut.phase) for cut in rosita_rounds(student, "0.5", SETTINGS, magnitude, teacher, rows, 0)]
    (cut, first), (_, second), (_, third) = cuts
    assert first is None and second is third
    batch, names = BatchMaker(rows.train, rows.tokenizer)(range(4)), ["embeddings", "hidden.0", "hidden.1"]
    _, parts = second.loss(cut.model, batch)
    theirs, ours = (student_states(model, batch, names) for model in (shallow, cut.model))
    errors = [hidden_state_error(theirs[name], ours[name], batch["attention_mask"]).item() for name in names]
    assert parts["layers"].item() == pytest.approx(sum(errors), rel=1e-4)


def test_without_a_layer_to_drop_the_chains_teacher_teaches_through_projections():
    rows, settings = small_rows(8), dataclasses.replace(SETTINGS, intermediate_weight=0.5)
    size = len(rows.tokenizer)
    teacher = Teacher(small_model(layers=4, hidden_size=32, vocabulary_size=size), rows.tokenizer, rows, settings)
    student = small_model(layers=2, vocabulary_size=size)
    phase = layers_phase(student, settings, teacher, 0)
    batch = BatchMaker(rows.train, rows.tokenizer)(range(4))
    found, parts = phase.loss(student, batch)
    ours, theirs = (student_states(model, batch, ["logits"])["logits"] for model in (student, teacher.model))
    soft, hard = soft_target_divergence(theirs, ours, 2.0), label_divergence(ours, batch["labels"])
    assert found.item() == pytest.approx((0.5 * soft + 0.5 * hard + 0.5 * parts["layers"]).item(), rel=1e-4)
    assert sum(one.numel() for one in phase.projections.parameters()) == 2 * 48 * 32


@pytest.mark.parametrize("method, ranked", [("cofi", False), ("rosita", True)])
def test_names_feel_what_the_methods_use_and_fingerprints_hold_their_code(method, ranked):
    names = (read_name(f"{start}+{method}-0.5", SETTINGS) for start in ("teacher", "none"))
    taught, alone = (felt_settings(name, SETTINGS) for name in names)
    assert {"intermediate_weight", "recovery_epochs", "temperature"} <= {*taught} and "intermediate_weight" not in alone
    assert ("criterion" in taught) == ranked and "rounds" not in taught
    assert [f"pruning/{method}.py" in code_of("pruning", one) for one in (method, "heads")] == [True, False]
