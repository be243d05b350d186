"""Labels as people write them, and tasks made from files."""

import os
import subprocess
import sys

import pandas
import pytest

from edgemin_utils.errors import DataError, SettingError
from edgemin_utils.rows.labels import NO_LABEL, UNKNOWN, find_classes, label_ids, label_texts, spelling_notes
from edgemin_utils.rows.splits import load_task_data, rows_fingerprint
from edgemin_utils.rows.tables import Table
from edgemin_utils.rows.tasks import TASKS, own_task_name, resolve_task
from edgemin_utils.settings import load_settings


def texts(*values, fold=False):
    return label_texts(Table("own.csv", {"label": list(values)}), "label", fold)


def own(path, **overrides):
    return load_settings("demo", {"task_file": str(path), "text_columns": "text", **overrides})


def write_rows(path, labels):
    rows = {"text": [f"number {index} of a film" for index in range(len(labels))], "label": labels}
    pandas.DataFrame(rows).to_csv(path, index=False)
    return path


def load(path, **overrides):
    return load_task_data(own(path, **overrides), own_task_name(str(path)), 0)


def test_equal_numbers_are_one_label():
    assert texts(1, 1.0, "1", " 1.00 ", "+1", 1.5, "1.50", "007", None, float("nan"), " yes ", "-0.0", True) == [
        *["1"] * 5, "1.5", "1.5", "007", "", "nan", "yes", "0", "True"
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("values", "classes"),
    [
        (["good", "bad"], ("bad", "good")),
        (["10", "9", "few"], ("10", "9", "few")),
        (["0", "1", "2", "-1", "nan", "NULL", "None", "N/A", "-", ""], ("0", "1", "2")),
        (["1", "-1"], ("-1", "1")),  # two classes, as sentiment is often written
        (["yes", "no", "-"], ("no", "yes")),
    ],
)
def test_classes_and_their_order(values, classes):
    assert find_classes(texts(*values), "own.csv") == classes


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (["a", "a", "-1"], "own.csv holds only the label 'a', and 1 rows without one; a task needs at least two"),
        ([None, ""], "only the label '', and 2 rows without one"),
        ([index / 7 for index in range(50)], "50 different values in 50 rows, too many for classes"),
    ],
)
def test_columns_that_are_no_classes(values, message):
    with pytest.raises(DataError, match=message):
        find_classes(texts(*values), "own.csv")


@pytest.mark.parametrize("value", [["billing", "login"], ["refund"], "['billing', 'login']", '["a"]', {"a": 1}])
def test_several_labels_a_row_are_refused(value):
    with pytest.raises(DataError, match="own.csv, row 1: 'label' is .*; a row must have one label, not a list"):
        texts("refund", value)
    assert texts("[OTHER]") == ["[OTHER]"]


def test_ids_of_names_numbers_and_markers():
    # In the order of the dataset card of nyu-mll/glue.
    assert TASKS["mnli"].labels == ("entailment", "neutral", "contradiction")
    assert TASKS["qqp"].labels == ("not_duplicate", "duplicate")
    ids = label_ids(["negative", "1", "-1", "", "x"], TASKS["sst2"].labels, True)
    assert ids == [0, 1, NO_LABEL, NO_LABEL, UNKNOWN]
    assert label_ids(["1", "2", "-1"], ("1", "2"), False) == [0, 1, NO_LABEL]
    assert label_ids(["1", "-1"], ("-1", "1"), False) == [1, 0]


def test_spellings_are_named_and_folded(tmp_path):
    path = write_rows(tmp_path / "own.csv", ["Pos", "neg", " pos ", "POS", "neg"] * 6)
    data = load(path)
    assert data.task.labels == ("POS", "Pos", "neg", "pos")
    said = "taken apart; --set fold_labels=true joins them: 'POS' (6 rows), 'Pos' (6 rows), 'pos' (6 rows)"
    assert f"train: labels that differ only in case or blanks are {said}" in data.notes
    folded = load(path, fold_labels="true")
    assert folded.task.labels == ("neg", "pos") and not any("differ" in note for note in folded.notes)
    assert folded.fingerprint != data.fingerprint
    assert spelling_notes(["a", "b", "None", "none"], "train") == []


def test_rows_without_a_label_or_text_are_left_out_and_counted(tmp_path):
    path = write_rows(tmp_path / "own.csv", ["0", "1", "2"] * 10 + ["-1", ""])
    path.write_text(path.read_text().replace("number 3 of a film", " "))
    data = load(path)
    assert data.task.labels == ("0", "1", "2")
    left_out = "without a label ('', '-1'; a class called so needs another name) left out"
    assert f"train: 2 of 32 rows {left_out}" in data.notes
    assert "train: 1 of 32 rows with an empty text left out" in data.notes
    path.write_text("text,label\n,a\n ,b\n")
    with pytest.raises(DataError, match="no usable row is left; train: 2 of 2 rows with an empty text left out"):
        load(path)


def test_numbers_in_train_and_decimals_in_dev(tmp_path):
    train = write_rows(tmp_path / "own.csv", [0, 1] * 10)
    dev = write_rows(tmp_path / "dev.csv", [0.0, 1.0])
    data = load(train, dev_file=str(dev))
    assert data.task.labels == ("0", "1") and data.dev["dev"]["label"] == [0, 1]
    write_rows(dev, [0, 2])
    with pytest.raises(DataError, match=r"dev\.csv, line 3: unknown label '2'; known: 0, 1 in train"):
        load(train, dev_file=str(dev))


def test_names_of_tasks_survive_any_script(tmp_path):
    names = ["отзывы.csv", "评论.csv", "कि.csv", "की.csv", "★.csv", "♥.csv", "my reviews (v2).csv", "a/../x.csv"]
    made = [own_task_name(name) for name in names]
    assert len(set(made)) == len(names) and made[0] == "отзывы" and made[-2:] == ["my-reviews-v2", "x"]
    assert all(name.replace("-", "").replace("_", "") and not set(name) & set(' /\\.:*?"<>|') for name in made)
    assert len(own_task_name("长" * 300 + ".csv").encode()) < 200
    # Two files of one name are told apart by what is in them.
    prints = []
    for folder, labels in (("a", ["x", "y"]), ("b", ["x", "z"])):
        (tmp_path / folder).mkdir()
        prints.append(rows_fingerprint(own(write_rows(tmp_path / folder / "x.csv", labels)), "x"))
    assert prints[0] != prints[1]


def test_settings_that_make_no_task(tmp_path):
    path = write_rows(tmp_path / "own.csv", ["a", "b"])
    for overrides in ({"label_column": "text"}, {"text_columns": "text,text"}):
        with pytest.raises(SettingError, match="must be different columns"):
            resolve_task(own(path, **overrides), "own")
    with pytest.raises(SettingError, match="cannot be called 'label' or 'row'"):
        resolve_task(own(path, text_columns="row"), "own")
    with pytest.raises(SettingError, match=r"unknown task 'sst2'; the task that .*csv makes is called 'own'"):
        resolve_task(own(path), "sst2")
    with pytest.raises(SettingError, match="unknown task 'sst-2'; did you mean 'sst2'"):
        resolve_task(load_settings("demo"), "sst-2")
    with pytest.raises(DataError, match="no column 'labels'; .*did you mean 'label'"):
        resolve_task(own(path, label_column="labels"), "own")


def test_importing_is_cheap():
    rooms = ", ".join(f"edgemin_utils.rows.{name}" for name in ("splits", "tokens"))
    code = f"import sys, {rooms}\nprint({{'torch', 'datasets', 'transformers', 'pandas'}} & {{*sys.modules}})"
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment)
    assert result.stdout.strip() == "set()"
