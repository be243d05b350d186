"""Objectives and students by name, and which stages and settings a name brings into a chain."""

import dataclasses
import re

import pytest
from conftest import PROJECT
from small_models import small_batch, small_model

from edgemin_utils import objectives
from edgemin_utils.chain import TEACHER, plan_chain
from edgemin_utils.config import load_settings
from edgemin_utils.distillation import Objective, find_objective
from edgemin_utils.distillation.objective import Lesson
from edgemin_utils.errors import SettingError
from edgemin_utils.objectives import EVERY_OBJECTIVE, OBJECTIVES, SIGNAL_SETTINGS, read_student
from edgemin_utils.records import Run
from edgemin_utils.teacher_signals import teacher_signals


def plan(**overrides):
    return plan_chain(load_settings("demo", overrides))


@pytest.mark.parametrize("name", OBJECTIVES)
def test_every_entry_is_implemented_sourced_and_feels_known_settings(name):
    entry = OBJECTIVES[name]
    assert isinstance(find_objective(name), Objective) and entry.source and entry.demands
    assert set(entry.settings) <= set(SIGNAL_SETTINGS)


def test_all_are_the_papers_world():
    assert EVERY_OBJECTIVE == (
        "none",
        "logits",
        "distilbert",
        "pkd",
        "pkd-last",
        "tinybert",
        "minilm",
        "minilmv2",
        "mlkd",
        "shd",
    )


@pytest.mark.parametrize(
    "name, objective, changes, assistant",
    [
        ("none", "none", {}, ""),
        ("none-pretrained", "none-pretrained", {}, ""),
        ("pkd-last", "pkd-last", {"objective": "pkd-last"}, ""),
        ("minilmv2-layer-3", "minilmv2", {"objective": "minilmv2", "teacher_layer": 3}, ""),
        ("minilm-transfer-500", "minilm", {"objective": "minilm", "transfer_rows": 500}, ""),
        (
            "minilmv2-layer-0-transfer-9-by-assistant",
            "minilmv2",
            {"objective": "minilmv2", "teacher_layer": 0, "transfer_rows": 9},
            "minilmv2-assistant",
        ),
        ("mlkd-assistant", "mlkd", {"objective": "mlkd"}, ""),
    ],
)
def test_a_students_name_says_how_it_learns(name, objective, changes, assistant):
    student = read_student(name)
    assert (student.objective, student.changes, student.assistant) == (objective, changes, assistant)
    assert student.is_assistant == (name == "mlkd-assistant")


@pytest.mark.parametrize(
    "name",
    [
        "minilmv3",
        "pkd-layer-1",
        "none-transfer-5",
        "none-by-assistant",
        "minilmv2-layer-",
        "minilmv2-by-assistant-layer-1",
        "",
    ],
)
def test_what_names_no_student_is_refused(name):
    assert read_student(name) is None
    for setting in ("objective", "compared_objectives"):
        with pytest.raises(SettingError, match="unknown objective"):
            load_settings("demo", {setting: name if setting == "objective" else [name]})


def test_a_recipe_that_distils_by_an_unknown_objective_is_refused():
    with pytest.raises(SettingError, match="did you mean 'minilmv2'"):
        plan(recipe="prune+distill:minilm2")


def test_the_sweep_has_a_student_for_every_objective_that_learns_from_the_teacher():
    stages = plan(compared_objectives="all")
    for name in EVERY_OBJECTIVE:
        stage = stages[f"distillation/{name}"]
        assert stage.teacher == ("" if name == "none" else TEACHER)
        assert stage.steps == (() if name == "none" else (f"distill:{name}",))
        assert stage.optional == (name not in ("none", "minilmv2"))


def test_an_assistant_of_its_own_size_learns_first_and_teaches():
    stages = plan(compared_objectives="minilmv2-by-assistant", assistant_layers=3)
    assistant, student = (stages[f"distillation/minilmv2{name}"] for name in ("-assistant", "-by-assistant"))
    assert assistant.teacher == TEACHER and student.teacher == assistant.key and student.source == TEACHER
    settings = load_settings("demo", {"assistant_layers": 3})
    assert assistant.apply(settings).student_layers == 3 and student.apply(settings).student_layers == 2
    assert assistant.apply(settings).student_hidden_size == settings.student_hidden_size
    laptop = load_settings("laptop", {"compared_objectives": "minilmv2-by-assistant"})
    assert plan_chain(laptop)["distillation/minilmv2-assistant"].apply(laptop).student_from_layers == [1, 2, 4, 5]


def test_the_main_student_may_come_by_an_assistant():
    stages = plan(objective="minilmv2-by-assistant")
    assert stages["pruning/minilmv2-by-assistant+gradient-heads-0.2"].source == "distillation/minilmv2-by-assistant"
    assert not stages["distillation/minilmv2-assistant"].optional


@pytest.mark.parametrize(
    "change, touched",
    [
        ({"relation_heads": 24}, {"minilmv2", "minilmv2-by-assistant", "minilmv2-assistant", "minilmv2-layer-0"}),
        ({"teacher_layer": 1}, {"minilmv2", "minilmv2-by-assistant", "minilmv2-assistant"}),
        ({"intermediate_weight": 2.0}, {"distilbert", "pkd", "pkd-last", "shd"}),
        ({"assistant_layers": 3}, {"minilmv2-by-assistant", "minilmv2-assistant"}),
        (
            {"distillation_learning_rate": 1e-4},
            {
                "tinybert",
                "minilm",
                "minilmv2",
                "mlkd",
                "minilmv2-by-assistant",
                "minilmv2-assistant",
                "minilmv2-layer-0",
            },
        ),
    ],
)
def test_a_setting_makes_only_those_students_anew_that_feel_it(tmp_path, change, touched):
    compared = {"compared_objectives": "all,minilmv2-by-assistant,minilmv2-layer-0"}
    old, new = (Run(load_settings("demo", {**compared, **changes}), "sst2", 0, tmp_path) for changes in ({}, change))
    students = [key for key in old.plan if key.startswith("distillation/")]
    assert {key.split("/")[1] for key in students if old.fingerprint(key) != new.fingerprint(key)} == touched


def test_every_distilled_student_feels_transfer_text_and_only_its_content_counts(tmp_path):
    first, second, third = (tmp_path / name for name in ("a.csv", "b.csv", "c.csv"))
    first.write_text("sentence\nsome words\n")
    second.write_text("sentence\nsome words\n")
    third.write_text("sentence\nother words\n")
    runs = [
        Run(load_settings("demo", {"transfer_file": str(path), "compared_objectives": "none"}), "sst2", 0, tmp_path)
        for path in (first, second, third)
    ]
    prints = [[run.fingerprint(f"distillation/{name}") for name in ("minilmv2", "none")] for run in runs]
    assert prints[0] == prints[1] and prints[0][0] != prints[2][0] and prints[0][1] == prints[2][1]


def test_the_readmes_objective_works_as_it_stands_there():
    readme = (PROJECT / "README.md").read_text(encoding="utf-8")
    code = next(block for block in re.findall(r"```python\n(.*?)```", readme, flags=re.DOTALL) if "class " in block)
    scope = {}
    exec(code, scope)
    teacher, student, batch = small_model(), small_model(seed=1), small_batch()
    objective, lesson = scope["FirstLayer"](), Lesson(load_settings("demo"), teacher, student)
    names = objective.signals(lesson)
    lesson = dataclasses.replace(lesson, signals=lambda rows: teacher_signals(teacher, rows, names))
    loss, parts = objective.phases(lesson)[0].loss(student, batch)
    assert set(parts) == {"soft targets", "labels", "first layer"} and float(loss.detach()) > 0
    line = re.search(r'"first-layer": (ObjectiveEntry\(.*\)),', readme)[1]
    entry = eval(line, vars(objectives))
    assert set(entry.settings) <= set(SIGNAL_SETTINGS) and entry.implementation.endswith(":FirstLayer")
