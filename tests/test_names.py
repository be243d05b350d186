"""The language of model names: what reads back, what is spelled, what is refused, and what a study plans."""

import linecache

import pytest

from edgemin_utils import names
from edgemin_utils.errors import SettingError
from edgemin_utils.names import expand_models, main_path, plan_names, read_name, step_settings
from edgemin_utils.settings import load_settings

DEMO = load_settings("demo")
REFUSED = {"minilmv3": "did you mean 'minilmv2'", "minilmv2+heads-1.5": "heads-0.2", "heads-0.2": "begin with teacher"}
REFUSED |= {"minilmv2+none": "can only stand first", "minilmv2+int8+heads-0.2": "nothing can follow int8"}
REFUSED |= {"teacher+minilmv2": "cannot learn from itself", "assistant-none": "no step"}
REFUSED |= {"none+heads-0.2,temperature=3": "does not feel 'temperature'", "minilmv2,rounds": "has no '='"}
REFUSED |= {"minilmv2+heads-0.2,temperature=3,draw=2": "does not feel 'draw'"}
REFUSED |= {"minilmv2,relation_head=3": "did you mean 'relation_heads'", "minilmv2,student=" + "x" * 230: "too long"}


def test_every_model_of_every_list_reads_back_to_itself() -> None:
    for text in expand_models(names.LISTS):
        assert read_name(read_name(text, DEMO).text, DEMO) == read_name(text, DEMO)


def test_what_a_name_says_is_read_off_it() -> None:
    name = read_name("minilmv2+qat-int8+heads-0.2+int8", DEMO)
    assert (name.kind, name.distilled, name.taught, name.fake_format) == ("quantization", True, True, "int8")
    assert name.source is not None and name.source.text == "minilmv2+qat-int8+heads-0.2"
    plain = read_name("none+uncut", DEMO)
    assert (plain.kind, plain.distilled, plain.taught, plain.fake_format) == ("pruning", False, False, "")
    assert read_name("teacher+vocabulary-500", DEMO).taught


def test_a_setting_that_differs_from_the_profile_s_is_spelled_where_it_is_felt() -> None:
    changed = load_settings("demo", {"relation_heads": 4, "teacher_epochs": 1, "train_rows": 99, "criterion": "taylor"})
    assert list(plan_names(changed))[:3] == ["teacher", "none", "minilmv2,relation_heads=4"]
    assert read_name("minilmv2+heads-0.2", changed).text == "minilmv2,relation_heads=4+heads-0.2,criterion=taylor"
    assert read_name("logits", changed).text == "logits"  # it has no relations
    assert read_name("minilmv2,relation_heads=8", DEMO).text == "minilmv2"
    assert read_name("minilmv2,relation_heads=4", DEMO).text == "minilmv2,relation_heads=4"


def test_changes_of_a_step_are_spelled_in_a_folder_s_letters() -> None:
    random = read_name("minilmv2+heads-0.5,rounds=2,criterion=random,draw=3", DEMO)
    assert random.text == "minilmv2+heads-0.5,criterion=random,draw=3,rounds=2"
    assert (step_settings(random, DEMO).rounds, step_settings(random, DEMO).criterion) == (2, "random")
    layers = read_name("minilmv2,student=teacher-layers,student_from_layers=1_3", DEMO)
    assert step_settings(layers, DEMO).student_from_layers == [1, 3]
    assert "recovery_distillation=no" in read_name("minilmv2+heads-0.2,recovery_distillation=no", DEMO).text
    own = load_settings("demo", {"student": "/somewhere/my model"})
    assert read_name("minilmv2", own).text == "minilmv2,student=my-model"
    assert step_settings(read_name("minilmv2,student=my-model", own), own).student == "/somewhere/my model"
    assert read_name("minilmv2", load_settings("demo", {"student": "a/b"})).text == "minilmv2,student=a--b"


@pytest.mark.parametrize(("text", "said"), REFUSED.items())
def test_what_is_no_name_is_refused_in_one_sentence(text: str, said: str) -> None:
    with pytest.raises(SettingError, match=said):
        read_name(text, DEMO)


def test_the_plan_is_every_prefix_once_in_an_order_that_can_be_made() -> None:
    models = "none+heads-0.2,rounds=2+int8, none+heads-0.2,rounds=2+int4,minilmv2,relation_heads=4,logits-by-assistant"
    cut, others = "none+heads-0.2,rounds=2", ["minilmv2,relation_heads=4", "assistant-logits", "logits-by-assistant"]
    wanted = ["teacher", "none", cut, f"{cut}+int8", f"{cut}+int4", *others]
    assert list(plan_names(load_settings("demo", {"models": models}))) == wanted
    for name in plan_names(DEMO).values():
        assert name.source is None or name.source.text in plan_names(DEMO)


def test_the_main_path() -> None:
    assert main_path(DEMO) == ["teacher", "none", "minilmv2", "minilmv2+heads-0.2", "minilmv2+heads-0.2+int8"]
    tiny = load_settings("demo", {"models": "tinybert+neurons-0.5+onnx-int8,none"})
    assert main_path(tiny) == ["teacher", "none", "tinybert", "tinybert+neurons-0.5", "tinybert+neurons-0.5+onnx-int8"]
    assert main_path(load_settings("demo", {"models": "teacher+vocabulary"})) == ["teacher", "teacher+vocabulary"]


def test_who_learns_from_the_teacher() -> None:
    learning = ["minilmv2", "minilmv2+heads-0.2", "teacher+layers-top-1", "minilmv2+fine-tune"]
    alone = ["none", "none+heads-0.2", "minilmv2+int8", "none+fine-tune", "minilmv2+heads-0.2,recovery_epochs=0"]
    for text in [*learning, *alone, "minilmv2+heads-0.2,recovery_distillation=no"]:
        assert names.learns_from_teacher(read_name(text, DEMO), DEMO) == (text in learning), text


def test_methods_of_one_s_own_are_known_by_name_and_text(monkeypatch) -> None:
    cell = "SHARE = 2\nclass Half:\n    def quantize(self):\n        return SHARE\n"
    monkeypatch.setitem(linecache.cache, "<cell>", (len(cell), None, cell.splitlines(True), "<cell>"))
    for name in ("METHODS", "OWN_CODE", "CRITERIA"):
        monkeypatch.setattr(names, name, getattr(names, name).copy())
    defined: dict = {"__name__": "__main__"}
    exec(compile(cell, "<cell>", "exec"), defined)

    class Mine:
        """Half of the labels, half of something else."""

    names.register_method("mine", "distillation", Mine)
    names.register_method("half", "quantization", defined["Half"])
    names.register_method("by-name", "criterion", test_the_main_path)
    assert read_name("mine+heads-0.2+half", DEMO).distilled and names.METHODS["mine"].meaning.startswith("Half")
    assert names.CRITERIA[-1] == "by-name" and "class Mine" in names.OWN_CODE["mine"]
    assert names.OWN_CODE["half"] == "class Half:\n\n    def quantize(self):\n        return SHARE"
    for taken_or_none in ("minilmv2", "Mine", "Not a name"):
        with pytest.raises(SettingError, match=f"'{taken_or_none}' .*choose a new name"):
            names.register_method(taken_or_none, "distillation", Mine)
