"""Tasks: GLUE's facts, tasks made from a file, and the errors of both."""

import os
import subprocess
import sys

import pytest

from edgemin_utils.config import load_settings
from edgemin_utils.errors import DataError, SettingError
from edgemin_utils.tasks import TASKS, custom_task, find_task, resolve_task, sort_labels


def file_settings(path, **overrides):
    return load_settings("demo", {"task_file": str(path), "text_columns": "text", **overrides})


def write_reviews(path, labels, header="text,label"):
    path.write_text(header + "\n" + "".join(f"text {i},{label}\n" for i, label in enumerate(labels)), "utf-8")
    return path


def test_glue_tasks_have_the_label_order_of_the_hub():
    # As the dataset card of nyu-mll/glue lists the ClassLabel names.
    assert find_task("sst2").labels == ("negative", "positive")
    assert find_task("mnli").labels == ("entailment", "neutral", "contradiction")
    assert find_task("qqp").labels == ("not_duplicate", "duplicate")


def test_main_dev_split_and_metrics():
    assert [TASKS[name].main_dev_split for name in ("sst2", "mnli", "qqp")] == ["dev", "dev_matched", "dev"]
    assert find_task("mnli").splits == ("train", "dev_matched", "dev_mismatched")
    assert "f1" in find_task("qqp").metrics


def test_column_names_of_hub_and_tsv():
    assert find_task("mnli").column_names("premise") == ("premise", "sentence1")
    assert find_task("mnli").column_names("label") == ("label", "gold_label")
    assert find_task("sst2").column_names("label") == ("label",)


def test_unknown_task_names_the_nearest():
    with pytest.raises(SettingError, match="unknown task 'sst-2'; did you mean 'sst2'"):
        find_task("sst-2")


@pytest.mark.parametrize(
    ("labels", "expected"),
    [
        ({"good", "bad"}, ("bad", "good")),
        ({"10", "9", "-1"}, ("-1", "9", "10")),
        ({"10", "9", "few"}, ("10", "9", "few")),
        ({"nan", "1", "0"}, ("0", "1", "nan")),
        ({"0.5", "0", "1e1"}, ("0", "0.5", "1e1")),
    ],
)
def test_label_order(labels, expected):
    assert sort_labels(labels) == expected


def test_custom_task_from_names(tmp_path):
    task = custom_task(file_settings(write_reviews(tmp_path / "my reviews (v2).csv", ["good", "bad", "meh"] * 2)))
    assert task.name == "my-reviews-v2"
    assert task.labels == ("bad", "good", "meh")
    assert task.is_from_file
    assert task.main_dev_split == "dev"


def test_custom_task_from_numbers_and_named_label_column(tmp_path):
    path = write_reviews(tmp_path / "stars.csv", [10, 9, 10, 2], header="text,stars")
    task = custom_task(file_settings(path, label_column="stars"))
    assert task.labels == ("2", "9", "10")
    assert resolve_task(file_settings(path, label_column="stars"), "stars") == task


def test_an_edited_file_is_read_again(tmp_path):
    path = write_reviews(tmp_path / "reviews.csv", ["a", "b"])
    assert custom_task(file_settings(path)).labels == ("a", "b")
    write_reviews(path, ["a", "b", "c"])
    assert custom_task(file_settings(path)).labels == ("a", "b", "c")


def test_custom_task_errors(tmp_path):
    with pytest.raises(DataError, match=r"no file .*absent\.csv"):
        custom_task(file_settings(tmp_path / "absent.csv"))
    path = write_reviews(tmp_path / "reviews.csv", ["a", "b"])
    with pytest.raises(DataError, match="no column 'labels'; .* are 'text', 'label'; did you mean 'label'"):
        custom_task(file_settings(path, label_column="labels"))
    with pytest.raises(DataError, match="only the label 'a'"):
        custom_task(file_settings(write_reviews(tmp_path / "one.csv", ["a", "a"])))
    with pytest.raises(DataError, match="line 3: column 'label' is empty"):
        custom_task(file_settings(write_reviews(tmp_path / "hole.csv", ["a", "", "b"])))
    with pytest.raises(DataError, match="50 different values in 50 rows"):
        custom_task(file_settings(write_reviews(tmp_path / "prices.csv", [i / 7 for i in range(50)])))
    (tmp_path / "folder.csv").mkdir()
    with pytest.raises(DataError, match="is not a file"):
        custom_task(file_settings(tmp_path / "folder.csv"))
    (tmp_path / "reviews.xlsx").write_bytes(b"PK")
    with pytest.raises(DataError, match="cannot read files ending in '.xlsx'; give one of .tsv, .csv"):
        custom_task(file_settings(tmp_path / "reviews.xlsx"))


def test_custom_task_setting_errors(tmp_path):
    path = write_reviews(tmp_path / "reviews.csv", ["a", "b"])
    with pytest.raises(SettingError, match="must be different columns"):
        custom_task(file_settings(path, label_column="text"))
    with pytest.raises(SettingError, match="must be different columns"):
        custom_task(file_settings(path, text_columns="text,text"))
    with pytest.raises(SettingError, match="cannot be called 'row'"):
        custom_task(file_settings(path, text_columns="row"))
    with pytest.raises(SettingError, match=r"unknown task 'sst2'; the task that .*csv makes is called 'reviews'"):
        resolve_task(file_settings(path), "sst2")


def test_importing_is_cheap():
    code = (
        "import sys, edgemin_utils.tasks, edgemin_utils.data, edgemin_utils.sources\n"
        "print([name for name in ('torch', 'datasets', 'transformers', 'pandas') if name in sys.modules])"
    )
    result = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )
    assert result.stdout.strip() == "[]"
