from pathlib import Path

import pytest

from edgemin_utils.config import (
    PROFILES,
    STAGES,
    changed_from_profile,
    load_settings,
    nearest,
    setting_fields,
    settings_of_stage,
    study_folder,
)
from edgemin_utils.errors import SettingError


def test_an_unknown_compared_scheme_names_the_nearest():
    with pytest.raises(SettingError, match="did you mean 'weight-int4'"):
        load_settings("demo", {"compared_schemes": "all,weight-int3"})


def test_every_setting_has_a_meaning_and_known_stages():
    for name, item in setting_fields().items():
        assert item.metadata["meaning"], name
        assert set(item.metadata["stages"]) <= set(STAGES), name


def test_every_profile_loads_and_its_values_are_settings():
    for profile, changes in PROFILES.items():
        settings = load_settings(profile)
        assert settings.profile == profile and set(changes) <= set(setting_fields())
        assert changed_from_profile(settings) == {}


def test_text_from_the_command_line_is_read_as_the_settings_type():
    settings = load_settings(
        "demo",
        {
            "relation_weights": "1,2,3",
            "train_rows": "none",
            "teacher_epochs": "2.5",
            "length_grouping": "false",
            "student_from_layers": "1, 3",
            "batch_size": "16",
        },
    )
    assert settings.relation_weights == [1.0, 2.0, 3.0] and settings.train_rows is None
    assert settings.teacher_epochs == 2.5 and settings.length_grouping is False
    assert settings.student_from_layers == [1, 3] and settings.batch_size == 16


@pytest.mark.parametrize(
    "overrides, message",
    [
        ({"temprature": 1}, "unknown setting 'temprature'; did you mean 'temperature'"),
        ({"batch_size": "many"}, "'batch_size' takes int, not 'many'"),
        ({"batch_size": 2.5}, "takes int"),
        ({"batch_size": 0}, "at least 1"),
        ({"length_grouping": "perhaps"}, "takes bool"),
        ({"head_prune_ratio": 1}, "under 1"),
        ({"head_prune_ratio": -0.1}, "at least 0"),
        ({"train_fraction": 0}, "over 0"),
        ({"pruning_criterion": "gradiant"}, "did you mean 'gradient'"),
        ({"relation_pairs": "query-query"}, "one weight a pair"),
        ({"relation_pairs": "query,key,value"}, "joins two of"),
        ({"compared_objectives": "nothing"}, "unknown objective"),
        ({"data_source": "folder"}, "--data-dir"),
        ({"task_file": "reviews.csv"}, "--text-columns"),
        ({"temperature": 0}, "over 0"),
        ({"soft_target_weight": 1.5}, "from 0 to 1"),
        ({"recovery_epochs": -1}, "cannot be negative"),
        ({"corpus_seed": -1}, "cannot be negative"),
        ({"temperature": "nan"}, "takes float, not 'nan'"),
        ({"teacher_epochs": "inf"}, "takes float, not 'inf'"),
        ({"student_hidden_size": -4}, "at least 1"),
        ({"teacher_hidden_size": 63}, "teacher_hidden_size is 63 and teacher_heads is 4"),
        ({"max_length": 1}, "at least 4"),
        ({"latency_lengths": "0,32"}, "each at least 2"),
        ({"latency_lengths": ""}, "give one number or more"),
        ({"latency_threads": "-1"}, "each at least 0"),
    ],
)
def test_what_cannot_work_is_refused_with_a_reason(overrides, message):
    with pytest.raises(SettingError, match=message):
        load_settings("demo", overrides)


def test_a_prune_ratio_of_zero_is_allowed():
    assert load_settings("demo", {"head_prune_ratio": 0}).head_prune_ratio == 0


def test_unknown_profile_names_the_nearest():
    with pytest.raises(SettingError, match="did you mean 'laptop'"):
        load_settings("labtop")


def test_a_folder_or_file_decides_where_rows_come_from():
    assert load_settings("laptop").data_source == "hub"
    assert load_settings("laptop", {"data_dir": "glue"}).data_source == "folder"
    own = load_settings("demo", {"task_file": "reviews.csv", "text_columns": "text"})
    assert own.data_source == "file" and own.text_columns == ["text"]


def test_settings_of_a_stage_are_those_marked_for_it():
    assert "teacher_epochs" in settings_of_stage(load_settings(), "teacher")
    assert "teacher_epochs" not in settings_of_stage(load_settings(), "pruning")
    with pytest.raises(SettingError, match="did you mean 'teacher'"):
        settings_of_stage(load_settings(), "teachers")


def test_nearest_lists_all_when_nothing_is_near():
    assert nearest("xyz", ["alpha", "beta"]) == "known: alpha, beta"


def test_a_study_lies_in_the_project_unless_told_otherwise(tmp_path, monkeypatch):
    (tmp_path / "notebooks").mkdir()
    (tmp_path / "notebooks" / "01_teacher.ipynb").write_text("{}")
    for place in (tmp_path, tmp_path / "notebooks"):
        monkeypatch.chdir(place)
        assert study_folder("", "demo") == tmp_path / "outputs" / "demo"
    assert study_folder("elsewhere", "demo") == Path.cwd() / "elsewhere"
