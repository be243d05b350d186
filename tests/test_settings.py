"""Settings: defaults of the profiles, values as text, and what cannot work."""

import pytest

from edgemin_utils.errors import SettingError
from edgemin_utils.settings import PROFILES, absolute_paths, changed_settings, load_settings, whole_share


@pytest.mark.parametrize("profile", PROFILES)
def test_every_profile_loads_and_says_what_it_changes(profile: str) -> None:
    assert changed_settings(load_settings(profile)) == {}
    assert changed_settings(load_settings(profile, {"train_rows": "2000"})) == {"train_rows": 2000}


@pytest.mark.parametrize(
    ("name", "text", "value"),
    [
        ("relation_heads", "4", 4),
        ("teacher_epochs", 3, 3.0),
        ("train_rows", "none", None),
        ("length_grouping", "no", False),
        ("student_from_layers", "1, 3,5", [1, 3, 5]),
        ("models", "path,none+int8", ["path", "none+int8"]),
    ],
)
def test_text_is_read_as_the_setting_s_type(name: str, text: object, value: object) -> None:
    assert getattr(load_settings("demo", {name: text}), name) == value


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        ({"relation_head": 4}, "did you mean 'relation_heads'"),
        ({"relation_heads": 1.5}, "takes int"),
        ({"relation_heads": True}, "takes int"),
        ({"batch_size": 0}, "at least 1"),
        ({"teacher_epochs": -1}, "at least 0"),
        ({"temperature": "hot"}, "takes float"),
        ({"temperature": 0}, "over 0"),
        ({"dropout": 1}, "under 1"),
        ({"student_hidden_size": 51}, "student_heads"),
        ({"scope": "everywhere"}, "known: global, layer"),
        ({"latency_threads": []}, "one number or more"),
        ({"relation_pairs": ["query-query"]}, "one weight a pair"),
        ({"relation_pairs": ["query-head"], "relation_weights": [1]}, "did you mean 'query-key'"),
        ({"data_source": "folder"}, "--data-dir"),
        ({"task_file": "mine.csv"}, "--text-columns"),
        ({"profile": "laptop"}, "a parameter of its own"),
        ({"head_prune_ratio": 0.4}, "minilmv2+heads-0.4"),
        ('{"train_rows": 200}', "-y 'overrides"),
    ],
)
def test_what_cannot_work_is_refused_in_one_sentence(overrides: dict, said: str) -> None:
    with pytest.raises(SettingError, match=said.replace("+", r"\+")):
        load_settings("demo", overrides)


def test_rows_of_one_s_own_are_all_used_unless_said() -> None:
    own = {"task_file": "mine.csv", "text_columns": "text"}
    assert load_settings("laptop").train_fraction == 0.1
    assert load_settings("laptop", own).train_fraction == 1.0
    assert load_settings("laptop", {**own, "train_fraction": 0.5}).train_fraction == 0.5
    assert load_settings("laptop", own).data_source == "file"


def test_paths_become_absolute_and_hub_ids_stay(tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "model").mkdir()
    same = {"student": "org/name", "train_rows": 5}
    changed = absolute_paths({"data_dir": "glue", "teacher": "model", **same})
    assert changed == {"data_dir": str(tmp_path / "glue"), "teacher": str(tmp_path / "model"), **same}


def test_shares_are_those_of_decimal_numbers() -> None:
    assert (whole_share(0.29, 100), whole_share(0.2, 12)) == (29, 2)  # the first is 28.999... in binary
