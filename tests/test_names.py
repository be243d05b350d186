"""The language of model names: what reads back, what is spelled, what is refused, and what a study plans."""

import linecache

import pytest

from edgemin_utils import names
from edgemin_utils.errors import SettingError
from edgemin_utils.names import (
    LISTS,
    METHODS,
    OWN_CODE,
    expand_models,
    felt_settings,
    learns_from_teacher,
    main_path,
    plan_names,
    read_name,
    register_method,
    step_settings,
)
from edgemin_utils.settings import CRITERIA, load_settings

DEMO = load_settings("demo")
PAPER_PATH = ["teacher", "none", "minilmv2", "minilmv2+heads-0.2", "minilmv2+heads-0.2+int8"]


def test_every_model_of_every_list_reads_back_to_itself() -> None:
    for text in expand_models(LISTS):
        name = read_name(text, DEMO)
        assert read_name(name.text, DEMO) == name


def test_what_a_name_says_is_read_off_it() -> None:
    name = read_name("minilmv2+qat-int8+heads-0.2+int8", DEMO)
    assert (name.kind, name.distilled, name.pruned, name.quantized) == ("quantization", True, True, True)
    assert name.fake_format == "int8"
    assert name.source is not None and name.source.text == "minilmv2+qat-int8+heads-0.2"
    plain = read_name("none+uncut", DEMO)
    assert (plain.distilled, plain.pruned, plain.quantized, plain.taught) == (False, False, False, False)
    assert read_name("teacher+vocabulary-500", DEMO).taught
    assert not read_name("none+onnx-float32", DEMO).quantized


def test_a_setting_that_differs_from_the_profile_s_is_spelled_where_it_is_felt() -> None:
    changed = load_settings("demo", {"relation_heads": 4, "teacher_epochs": 1, "train_rows": 99, "criterion": "taylor"})
    assert list(plan_names(changed))[:3] == ["teacher", "none", "minilmv2,relation_heads=4"]
    assert read_name("minilmv2+heads-0.2", changed).text == "minilmv2,relation_heads=4+heads-0.2,criterion=taylor"
    assert read_name("logits", changed).text == "logits"  # it has no relations
    assert read_name("minilmv2,relation_heads=8", DEMO).text == "minilmv2"
    assert read_name("minilmv2,relation_heads=4", DEMO).text == "minilmv2,relation_heads=4"


def test_changes_of_a_step_are_its_settings() -> None:
    name = read_name("minilmv2+heads-0.5,rounds=2,criterion=random,draw=3", DEMO)
    settings = step_settings(name, DEMO)
    assert (settings.rounds, settings.criterion, settings.draw) == (2, "random", 3)
    assert name.text == "minilmv2+heads-0.5,criterion=random,draw=3,rounds=2"


def test_lists_booleans_and_paths_are_spelled_in_a_folder_s_letters() -> None:
    layers = read_name("minilmv2,student=teacher-layers,student_from_layers=1_3", DEMO)
    assert step_settings(layers, DEMO).student_from_layers == [1, 3]
    assert "recovery_distillation=no" in read_name("minilmv2+heads-0.2,recovery_distillation=no", DEMO).text
    own = load_settings("demo", {"student": "/somewhere/my model"})
    assert read_name("minilmv2", own).text == "minilmv2,student=my-model"
    assert step_settings(read_name("minilmv2,student=my-model", own), own).student == "/somewhere/my model"
    hub = load_settings("demo", {"student": "org/name"})
    assert read_name("minilmv2", hub).text == "minilmv2,student=org--name"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("minilmv3", "did you mean 'minilmv2'"),
        ("minilmv2+heads", "heads-0.2"),
        ("minilmv2+heads-1.5", "heads-0.2"),
        ("minilmv2+heads-0", "heads-0.2"),
        ("minilmv2+layers-middle", "layers-top-1"),
        ("heads-0.2", "begin with teacher"),
        ("minilmv2+none", "can only stand first"),
        ("minilmv2+int8+heads-0.2", "nothing can follow int8"),
        ("minilmv2+sensitivity+int8", "nothing can follow"),
        ("teacher+minilmv2", "cannot learn from itself"),
        ("assistant-none", "no step"),
        ("none,temperature=3", "does not feel 'temperature'"),
        ("minilmv2,relation_head=3", "did you mean 'relation_heads'"),
        ("minilmv2,rounds", "has no '='"),
        ("minilmv2+int8,calibration_rows=3", "does not feel"),
        ("minilmv2,student=" + "x" * 230, "too long"),
    ],
)
def test_what_is_no_name_is_refused_in_one_sentence(text: str, said: str) -> None:
    with pytest.raises(SettingError, match=said):
        read_name(text, DEMO)


def test_the_plan_is_every_prefix_once_in_an_order_that_can_be_made() -> None:
    models = "minilmv2+heads-0.2+int8,minilmv2+heads-0.2+int4,minilmv2-by-assistant"
    assert list(plan_names(load_settings("demo", {"models": models}))) == [
        *("teacher", "minilmv2", "minilmv2+heads-0.2", "minilmv2+heads-0.2+int8", "minilmv2+heads-0.2+int4"),
        *("assistant-minilmv2", "minilmv2-by-assistant"),
    ]
    for name in plan_names(DEMO).values():
        assert name.source is None or name.source.text in plan_names(DEMO)


def test_models_given_as_text_keep_their_settings() -> None:
    settings = load_settings("demo", {"models": "teacher,minilmv2,relation_heads=4,none+heads-0.2,rounds=2+int8"})
    assert list(plan_names(settings))[-1] == "none+heads-0.2,rounds=2+int8"
    assert "minilmv2,relation_heads=4" in plan_names(settings)


def test_the_main_path() -> None:
    assert main_path(DEMO) == PAPER_PATH
    tiny = load_settings("demo", {"models": "tinybert+neurons-0.5+onnx-int8,none"})
    assert main_path(tiny) == ["teacher", "none", "tinybert", "tinybert+neurons-0.5", "tinybert+neurons-0.5+onnx-int8"]
    assert main_path(load_settings("demo", {"models": "teacher+vocabulary"})) == ["teacher", "teacher+vocabulary"]


def test_who_learns_from_the_teacher() -> None:
    def learns(text: str) -> bool:
        return learns_from_teacher(read_name(text, DEMO), DEMO)

    assert learns("minilmv2") and learns("minilmv2+heads-0.2") and learns("teacher+layers-top-1")
    assert not learns("none") and not learns("none+heads-0.2") and not learns("minilmv2+int8")
    assert not learns("minilmv2+heads-0.2,recovery_distillation=no")
    assert not learns("minilmv2+heads-0.2,recovery_epochs=0")


def test_felt_settings_leave_out_what_cannot_matter() -> None:
    plain, taught = read_name("none+heads-0.2", DEMO), read_name("minilmv2+heads-0.2", DEMO)
    assert "temperature" in felt_settings(taught, DEMO) and "temperature" not in felt_settings(plain, DEMO)
    assert "draw" not in felt_settings(taught, DEMO)
    assert "calibration_rows" in felt_settings(read_name("none+onnx-static-minmax", DEMO), DEMO)


def test_methods_of_one_s_own(monkeypatch) -> None:
    monkeypatch.setattr("edgemin_utils.names.METHODS", METHODS)

    class Mine:
        """Half of the labels, half of something else."""

    def by_name() -> None:
        """A criterion."""

    register_method("mine", "distillation", Mine)
    register_method("by-name", "criterion", by_name)
    try:
        assert read_name("mine+heads-0.2,criterion=by-name", DEMO).distilled
        assert METHODS["mine"].meaning.startswith("Half") and "class Mine" in OWN_CODE["mine"]
        with pytest.raises(SettingError, match="choose a new name"):
            register_method("minilmv2", "distillation", Mine)
    finally:
        METHODS.pop("mine"), OWN_CODE.pop("mine"), OWN_CODE.pop("by-name"), CRITERIA.remove("by-name")


def test_a_class_of_a_notebook_cell_is_known_by_its_text(monkeypatch) -> None:
    cell = "SHARE = 2\nclass Half:\n    def quantize(self):\n        return SHARE\n"
    monkeypatch.setitem(linecache.cache, "<cell>", (len(cell), None, cell.splitlines(True), "<cell>"))
    monkeypatch.setattr(names, "OWN_CODE", {})
    monkeypatch.setattr(names, "METHODS", dict(names.METHODS))
    defined: dict = {"__name__": "__main__"}
    exec(compile(cell, "<cell>", "exec"), defined)
    names.register_method("half", "quantization", defined["Half"])
    assert names.OWN_CODE["half"] == "class Half:\n\n    def quantize(self):\n        return SHARE"
