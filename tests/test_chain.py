"""The plan of a chain: which stages settings ask for, what each starts from, and which notebook makes it."""

import pytest

from edgemin_utils.chain import (
    CHAIN_NOTEBOOKS,
    COST,
    TEACHER,
    main_path,
    plan_chain,
    recipe_ends,
    recipes,
    sensitivity_key,
)
from edgemin_utils.config import EVERY_SCHEME, load_settings
from edgemin_utils.errors import SettingError

STUDENT = "distillation/minilmv2"


def plan(**overrides):
    return plan_chain(load_settings("demo", overrides))


def test_every_stage_comes_after_what_it_needs_and_not_in_an_earlier_notebook():
    for overrides in (
        {},
        {"recipe": "paper,proposal,honest,edge"},
        {"recipe": "prune,distill,quantize-aware,quantize"},
        {"compared_objectives": "all", "compared_cuts": "magnitude-heads-0.5"},
    ):
        seen = {}
        for key, stage in plan(**overrides).items():
            assert all(needed in seen for needed in stage.upstream), key
            assert all(stage.notebook >= seen[needed].notebook for needed in stage.upstream), key
            seen[key] = stage
        assert key == COST and set(stage.upstream) == {key for key, stage in seen.items() if stage.keeps_model}


def test_a_chain_can_leave_its_costs_unmeasured_and_is_the_same_otherwise():
    whole = plan()
    assert plan(latency_protocol="none") == {key: stage for key, stage in whole.items() if key != COST}


def test_the_papers_recipe_is_the_main_path_and_adds_nothing():
    assert plan(recipe="paper").keys() == plan().keys()
    stages = plan()
    teacher, student, pruned, quantized = (stages[key] for key in main_path(load_settings("demo")))
    assert teacher.key == TEACHER and teacher.steps == ()
    assert student.steps == ("distill:minilmv2",)
    assert pruned.steps == ("distill:minilmv2", "prune:gradient-heads-0.2") and pruned.source == student.key
    assert quantized.steps == (*pruned.steps, "quantize:dynamic-int8") and quantized.quantized and quantized.pruned


def test_the_proposals_recipe_trains_with_fake_quantization_from_its_second_step_on():
    stages = plan(recipe="proposal")
    aware = stages["tuning/minilmv2+int8-aware"]
    pruned = stages["pruning/minilmv2+int8-aware+gradient-heads-0.2"]
    last = stages["quantization/minilmv2+int8-aware+gradient-heads-0.2+fine-tuned+dynamic-int8"]
    assert aware.source == STUDENT and aware.teacher == TEACHER and aware.fake_quantization == "int8"
    assert pruned.source == aware.key and pruned.fake_quantization == "int8"
    assert (
        pruned.notebook == "04_quantization" and stages["pruning/minilmv2+gradient-heads-0.2"].notebook == "03_pruning"
    )
    assert last.steps == (
        "distill:minilmv2",
        "quantize-aware:int8",
        "prune:gradient-heads-0.2",
        "fine-tune:soft-targets",
        "quantize:dynamic-int8",
    )


def test_the_honest_recipe_distils_again_after_its_deep_cuts_and_cuts_the_vocabulary_after_that():
    settings = load_settings("demo", {"recipe": "honest"})
    key, stages = recipe_ends(settings)["honest"], plan_chain(settings)
    assert stages[key].steps == (
        "distill:minilmv2",
        "prune:layers-spaced-0.5",
        "prune:gradient-neurons-0.5-multiple-32",
        "distill:minilmv2",
        "prune:vocabulary-most-11000",
        "quantize:onnx-dynamic-int8-embeddings",
    )
    again = stages["distillation/minilmv2+layers-spaced-0.5+gradient-neurons-0.5-multiple-32+minilmv2"]
    assert again.teacher == TEACHER and again.source.startswith("pruning/minilmv2+layers-spaced-0.5+gradient")
    # A limit that a cut does not have is no part of its fingerprint.
    assert "vocabulary_limit" not in stages["pruning/minilmv2+layers-spaced-0.5"].settings(settings)
    assert stages[stages[key].source].settings(settings)["vocabulary_limit"] == 11000


def test_the_edge_recipe_cuts_the_teachers_vocabulary_and_trains_nothing():
    settings = load_settings("demo", {"recipe": "edge"})
    stages, key = plan_chain(settings), recipe_ends(settings)["edge"]
    cut = "vocabulary-all-rows-most-12000-without-recovery"
    pruned, last = stages[f"pruning/teacher+{cut}"], stages[key]
    assert pruned.source == TEACHER and pruned.teacher == "" and pruned.upstream == (TEACHER,)
    assert "recovery_epochs" not in pruned.settings(settings) and pruned.notebook == "03_pruning"
    assert last.source == pruned.key and key == f"quantization/teacher+{cut}+{last.changes['quantization_scheme']}"
    assert last.steps[:2] == ("teacher", f"prune:{cut}") and last.student == "teacher"
    assert last.changes["quantization_scheme"] == "onnx-int4-gptq-embeddings"
    assert last.pruned and last.quantized and last.optional and not last.distilled
    # Nothing else is made for it, and what a chain makes without it is made as before but for the costs.
    before = plan()
    assert stages.keys() - before.keys() == {pruned.key, key}
    assert all(stages[name] == stage for name, stage in before.items() if name != COST)


def test_what_is_made_of_the_teacher_trains_as_a_distilled_student_does():
    order = "teacher+quantize-aware:int4+prune:layers-top-1+distill:logits+fine-tune+quantize"
    stages = plan(recipe=f"{order},teacher+quantize:onnx-dynamic-int8,teacher+prune:layers-top-1-without-distillation")
    made = [stage for stage in stages.values() if stage.student == "teacher"]
    assert [stage.key for stage in made[:2]] == ["tuning/teacher+int4-aware", "pruning/teacher+int4-aware+layers-top-1"]
    assert {
        stage.teacher
        for stage in made
        if stage.kind in ("tuning", "pruning", "distillation") and "without" not in stage.key
    } == {TEACHER}
    assert stages["quantization/teacher+onnx-dynamic-int8"].source == TEACHER
    assert stages["pruning/teacher+layers-top-1-without-distillation"].teacher == ""
    alone = plan(recipe="teacher+fine-tune,teacher+quantize", recovery_distillation=False)
    assert alone["tuning/teacher+fine-tuned"].teacher == ""


def test_an_order_may_prune_before_it_distils():
    stages = plan(recipe="prune,distill,quantize")
    distilled = stages["distillation/none+gradient-heads-0.2+minilmv2"]
    assert distilled.source == "pruning/none+gradient-heads-0.2" and distilled.teacher == TEACHER
    assert distilled.notebook == "03_pruning" and distilled.distilled and distilled.pruned


def test_orders_come_as_one_list_or_joined_by_plus():
    one = load_settings("demo", {"recipe": ["distill", "quantize"]})
    several = load_settings("demo", {"recipe": "proposal,prune+distill+quantize:dynamic-int8"})
    assert list(recipes(one).values()) == [("distill", "quantize")]
    assert recipes(several)["prune+distill+quantize:dynamic-int8"] == ("prune", "distill", "quantize:dynamic-int8")
    told = load_settings("demo", {"recipe": "prune:layers-top-1+quantize,prune:vocabulary+quantize"})
    assert list(recipes(told)) == ["prune:layers-top-1+quantize", "prune:vocabulary+quantize"]
    assert list(recipes(load_settings("demo", {"recipe": "teacher,quantize"})).values()) == [("teacher", "quantize")]


def test_every_scheme_is_set_beside_the_main_one_and_may_refuse():
    stages = plan(compared_schemes="all")
    pruned = main_path(load_settings("demo"))[2]
    made = {
        key.rsplit("+", 1)[1]: stage
        for key, stage in stages.items()
        if stage.source == pruned and stage.kind == "quantization" and stage.keeps_model
    }
    assert set(made) == set(EVERY_SCHEME)
    assert {name for name, stage in made.items() if not stage.optional} == {"dynamic-int8"}
    assert "calibration_rows" in made["onnx-static-int8-entropy"].settings(load_settings("demo"))
    assert "calibration_rows" not in made["onnx-dynamic-int8"].settings(load_settings("demo"))


def test_sensitivity_is_part_of_every_chain_and_does_not_depend_on_the_scheme():
    settings = load_settings("demo")
    stage = plan()[sensitivity_key(settings)]
    assert stage.source == main_path(settings)[2] and not stage.keeps_model and not stage.quantized
    assert set(stage.settings(settings)) == {"sensitivity_rows"}


def test_recipes_end_in_stages_of_the_plan():
    settings = load_settings("demo", {"recipe": "proposal,prune+distill+quantize"})
    ends = recipe_ends(settings)
    assert list(ends) == ["paper", "proposal", "prune+distill+quantize"] and ends["paper"] == main_path(settings)[-1]
    assert set(ends.values()) <= plan_chain(settings).keys()


@pytest.mark.parametrize(
    "order, message",
    [
        ("distill+quantize:dynamic-int4", "did you mean 'dynamic-int8'"),
        ("distill+quantize-aware:int7", "did you mean 'int8'"),
    ],
)
def test_a_step_of_an_unknown_scheme_or_format_names_the_nearest(order, message):
    with pytest.raises(SettingError, match=message):
        plan(recipe=order)


@pytest.mark.parametrize(
    "recipe, message",
    [
        ("propsal", "did you mean 'proposal'"),
        ("distill+prun", "did you mean 'prune'"),
        ("distill,quantize,prune", "cannot follow quantization"),
        ("teacher", "write it first and steps after it, as in teacher\\+quantize"),
        ("teacher,paper", "is no step"),
        ("prune,teacher,quantize", "write it first"),
        ("teacher+teacher+prune", "write it first"),
        ("teacher:fine-tuned+prune", "unknown recipe or step 'teacher:fine-tuned'; did you mean 'teacher'"),
        ("teacher+distill+quantize", "nothing has been cut that could learn from it"),
        ("teacher,quantize:dynamic-int8,prune", "cannot follow quantization"),
        ("distill,fine-tune:much,quantize", "fine-tune:much: this step is told nothing"),
    ],
)
def test_a_recipe_that_cannot_be_is_refused(recipe, message):
    with pytest.raises(SettingError, match=message):
        plan(recipe=recipe)


def test_compared_methods_are_optional_and_the_main_path_is_not():
    stages = plan(compared_objectives="all", compared_cuts="magnitude-heads-0.5")
    assert not any(stages[key].optional for key in main_path(load_settings("demo")))
    assert not stages["distillation/none"].optional
    assert stages["distillation/logits"].optional and stages["pruning/minilmv2+magnitude-heads-0.5"].optional


def test_a_stage_computes_under_its_own_changes():
    settings = load_settings("demo", {"compared_cuts": "magnitude-heads-0.5"})
    stage = plan_chain(settings)["pruning/minilmv2+magnitude-heads-0.5"]
    assert stage.apply(settings).head_prune_ratio == 0.5
    assert stage.settings(settings)["pruning_criterion"] == "magnitude"
    assert settings.head_prune_ratio == 0.2


def test_a_cut_that_ranks_nothing_does_not_depend_on_the_criterion():
    key = "pruning/minilmv2+layers-top-1-vocabulary"
    identities = [
        plan(compared_cuts="layers-top-1-vocabulary", **changes)[key].settings(load_settings("demo", changes))
        for changes in ({}, {"pruning_criterion": "magnitude"}, {"vocabulary_text": "words.txt"})
    ]
    assert identities[0] == identities[1] != identities[2]  # the text decides which tokens stay


def test_recovery_without_distillation_has_no_teacher():
    stages = plan(compared_cuts="gradient-heads-0.2-without-distillation,layers-top-1")
    alone, plain = (
        stages[f"pruning/minilmv2+{cut}"] for cut in ("gradient-heads-0.2-without-distillation", "layers-top-1")
    )
    assert alone.teacher == "" and alone.upstream == (STUDENT,)
    assert plain.teacher == TEACHER and "temperature" in plain.settings(load_settings("demo"))


def test_without_recovery_nothing_of_the_training_matters():
    cut = "pruning/minilmv2+layers-top-1-without-recovery"
    (stage,) = (stage for key, stage in plan(compared_cuts="layers-top-1-without-recovery").items() if key == cut)
    longer = load_settings("demo", {"recovery_epochs": 3, "recovery_learning_rate": 0.1, "temperature": 9})
    assert stage.teacher == "" and stage.settings(load_settings("demo")) == stage.settings(longer)
    assert "recovery" not in plan()["pruning/minilmv2+gradient-heads-0.2"].settings(longer)


def test_scans_do_not_depend_on_the_cut():
    changed = load_settings("demo", {"head_prune_ratio": 0.5, "pruning_rounds": 2, "recovery_epochs": 3})
    for units in ("head", "neuron", "layer"):
        key = f"pruning/minilmv2+{units}-scan"
        assert plan()[key].settings(load_settings("demo")) == plan_chain(changed)[key].settings(changed)
        assert "scan_rows" in plan()[key].settings(changed)


def test_the_notebooks_of_a_chain_are_those_of_its_stages():
    assert {stage.notebook for stage in plan().values()} == {*CHAIN_NOTEBOOKS, "05_analysis"}
