"""Loading splits: shuffling, subsampling, the hold-out, dev rows, fingerprints and notes."""

import json
import os
import shutil
import statistics
import subprocess
import sys
from collections import Counter

import pandas
import pytest

from edgemin_utils.config import load_settings
from edgemin_utils.data import (
    data_fingerprint,
    load_task_data,
    rows_trained_on,
    split_by_label,
    task_statistics,
    unused_texts,
)
from edgemin_utils.errors import DataError, MethodRefused, SettingError


@pytest.fixture
def glue(tmp_path):
    """An SST-2 folder whose 200 train rows are grouped by label (150 positive) and whose 20 dev rows alternate."""
    folder = tmp_path / "glue" / "SST-2"
    folder.mkdir(parents=True)
    write_tsv(folder / "train.tsv", [(f"train text {index}", int(index < 150)) for index in range(200)])
    write_tsv(folder / "dev.tsv", [(f"dev text {index}", index % 2) for index in range(20)])
    return tmp_path / "glue"


def write_tsv(path, rows):
    path.write_text("sentence\tlabel\n" + "".join(f"{text}\t{label}\n" for text, label in rows), "utf-8")


def load(glue, seed=0, **overrides):
    return load_task_data(load_settings("demo", {"data_dir": str(glue), **overrides}), "sst2", seed)


def own_settings(path, **overrides):
    return load_settings("demo", {"task_file": str(path), "text_columns": "text", **overrides})


def write_own(path, rows):
    pandas.DataFrame(rows, columns=["text", "label"]).to_csv(path, index=False)
    return path


def test_columns_types_and_source_rows(glue):
    data = load(glue)
    for rows in (data.train, data.holdout, *data.dev.values()):
        assert rows.column_names == ["sentence", "label", "row"]
        assert rows.features["label"].names == ["negative", "positive"]
    assert all(type(label) is int for label in data.train["label"])
    # `row` leads back to the line of the file.
    assert all(text == f"train text {row}" for text, row in zip(data.train["sentence"], data.train["row"], strict=True))
    assert list(data.dev) == ["dev"]
    assert data.dev["dev"]["row"] == list(range(20))


def test_train_and_holdout_partition_the_train_split(glue):
    data = load(glue, holdout_fraction=0.1)
    rows = list(data.train["row"]) + list(data.holdout["row"])
    assert sorted(rows) == list(range(200))
    # 10 % of 150 positive and of 50 negative rows.
    assert sorted(data.holdout["label"]) == [0] * 5 + [1] * 15
    assert list(data.train["row"]) != sorted(data.train["row"])


@pytest.mark.parametrize("fraction, holdout, rows", [(1.0, 0.1, 180), (0.5, 0.1, 100), (0.9, 0.5, 90), (0.5, 0, 100)])
def test_rows_trained_on_are_known_without_reading_them(glue, fraction, holdout, rows):
    overrides = {"train_fraction": fraction, "holdout_fraction": holdout}
    assert len(load(glue, **overrides).train) == rows
    assert rows_trained_on(load_settings("demo", overrides), 200) == rows


def test_the_seed_decides_train_and_not_dev(glue):
    first, again, other = load(glue, 1, dev_rows=7), load(glue, 1, dev_rows=7), load(glue, 2, dev_rows=7)
    assert list(first.train["row"]) == list(again.train["row"])
    assert list(first.holdout["row"]) == list(again.holdout["row"])
    assert list(first.train["row"]) != list(other.train["row"])
    assert list(first.dev["dev"]["row"]) == list(other.dev["dev"]["row"])
    assert first.fingerprint == other.fingerprint


def test_no_holdout(glue):
    data = load(glue, holdout_fraction=0)
    assert (len(data.train), len(data.holdout)) == (200, 0)
    assert data.holdout.column_names == data.train.column_names


@pytest.mark.parametrize(
    ("overrides", "used"),
    [
        ({"train_fraction": 0.1}, 20),
        ({"train_fraction": 0.299}, 59),
        ({"train_rows": 33}, 33),
        ({"train_fraction": 0.29}, 58),
        ({"train_fraction": 0.5, "train_rows": 30}, 30),
        ({"train_fraction": 0.1, "train_rows": 150}, 20),
        ({"train_rows": 10_000}, 200),
    ],
)
def test_subsampling(glue, overrides, used):
    data = load(glue, **overrides)
    aside = round(0.05 * used)
    # The hold-out comes from rows that are not used, if there are any.
    assert (len(data.train), len(data.holdout)) == (used if used < 200 else used - aside, aside)
    assert not set(data.train["row"]) & set(data.holdout["row"])
    assert (f"train: {used} of 200 rows used" in data.notes) == (used < 200)


def test_a_smaller_sample_is_part_of_a_larger_one(glue):
    small, large = (load(glue, train_rows=rows, holdout_fraction=0) for rows in (20, 60))
    assert list(large.train["row"])[:20] == list(small.train["row"])


def test_dev_rows_keep_their_order(glue):
    data = load(glue, dev_rows=7)
    rows = list(data.dev["dev"]["row"])
    assert len(set(rows)) == 7
    assert rows == sorted(rows)
    assert rows != list(range(7))
    assert "dev: 7 of 20 rows used" in data.notes


def test_too_small_a_sample_is_refused(glue):
    with pytest.raises(DataError, match="the 1 train rows drawn out of 200 hold fewer than two labels; raise"):
        load(glue, train_rows=1)
    with pytest.raises(DataError, match="the 0 train rows drawn out of 200"):
        load(glue, train_fraction=0.001)


@pytest.mark.parametrize(
    ("counts", "fraction", "expected"),
    [
        ({0: 100, 1: 40}, 0.05, {0: 5, 1: 2}),  # the rounded share of each label
        ({0: 100, 1: 3}, 0.05, {0: 5, 1: 1}),  # at least one row
        ({0: 100, 1: 1}, 0.05, {0: 5}),  # the only row stays
        ({0: 2, 1: 2}, 0.99, {0: 1, 1: 1}),  # and never all of them
    ],
)
def test_split_by_label(counts, fraction, expected):
    frame = pandas.DataFrame({"label": [label for label, count in counts.items() for _ in range(count)]})
    frame["row"] = range(len(frame))
    rest, share = split_by_label(frame.sample(frac=1, random_state=0), fraction)
    assert share["label"].value_counts().to_dict() == expected
    assert sorted([*rest["row"], *share["row"]]) == list(range(len(frame)))


# ---- a task of one's own ---------------------------------------------------------------------------------------


def test_own_file_gives_up_the_same_dev_rows_for_every_seed(tmp_path):
    rows = [(f"text {index}", "ab"[index % 2]) for index in range(50)]
    settings = own_settings(write_own(tmp_path / "own.csv", rows))
    first, other = (load_task_data(settings, "own", seed) for seed in (0, 1))
    rows = list(first.dev["dev"]["row"])
    assert len(rows) == 10
    assert rows == sorted(rows) == list(other.dev["dev"]["row"])
    assert sorted([*rows, *first.train["row"], *first.holdout["row"]]) == list(range(50))
    assert sorted(first.dev["dev"]["label"]) == [0] * 5 + [1] * 5
    assert "dev: 10 of 50 rows held out, no dev file was given" in first.notes


def test_rare_labels_are_reported(tmp_path):
    rows = [(f"text {index}", "ab"[index % 2]) for index in range(40)] + [("alone", "c")]
    data = load_task_data(own_settings(write_own(tmp_path / "own.csv", rows)), "own", 0)
    assert "holdout: no row with label 'c' (train has one, which it keeps)" in data.notes
    small = load_task_data(own_settings(tmp_path / "own.csv", train_rows=5, holdout_fraction=0), "own", 0)
    assert "train: no row with label 'c' among those drawn" in small.notes


def test_dev_rows_that_repeat_train_rows_are_counted(tmp_path):
    train = write_own(tmp_path / "own.csv", [(f"text {index}", "ab"[index % 2]) for index in range(20)])
    dev = write_own(tmp_path / "dev.csv", [("text 3", "b"), ("text 5", "b"), ("new", "a")])
    data = load_task_data(own_settings(train, dev_file=str(dev)), "own", 0)
    assert "dev: 2 of 3 rows have the text of a train row, which flatters the numbers" in data.notes


def test_repeated_rows_are_not_counted_for_glue(glue):
    write_tsv(glue / "SST-2" / "dev.tsv", [("train text 3", 1), ("new", 0)])
    assert load(glue).notes == ()


def test_rows_too_few_for_a_dev_split(tmp_path):
    with pytest.raises(DataError, match="every label has a single row"):
        load_task_data(own_settings(write_own(tmp_path / "own.csv", [("x", "a"), ("y", "b")])), "own", 0)


# ---- embedded --------------------------------------------------------------------------------------------------


def test_embedded_tasks_load_and_are_called_synthetic():
    for name in ("sst2", "mnli", "qqp"):
        data = load_task_data(load_settings("demo", {"train_rows": 60}), name, 0)
        assert "synthetic" in data.source
        assert tuple(data.dev) == data.task.dev_splits
        assert set(data.train["label"]) == set(range(len(data.task.labels)))


def test_unknown_task():
    with pytest.raises(SettingError, match="unknown task 'qpp'; did you mean 'qqp'"):
        load_task_data(load_settings("demo"), "qpp", 0)


# ---- fingerprints ----------------------------------------------------------------------------------------------


def test_the_fingerprint_follows_content_and_not_paths(glue, tmp_path):
    settings = load_settings("demo", {"data_dir": str(glue)})
    before = data_fingerprint(settings, "sst2")
    assert len(before) == 16
    assert int(before, 16) >= 0
    assert load(glue).fingerprint == before
    shutil.copytree(glue, tmp_path / "moved")
    assert data_fingerprint(load_settings("demo", {"data_dir": str(tmp_path / "moved")}), "sst2") == before
    write_tsv(glue / "SST-2" / "dev.tsv", [("another dev text", 1)])
    assert data_fingerprint(settings, "sst2") != before


@pytest.mark.parametrize(
    "change",
    [{"train_fraction": 0.5}, {"train_rows": 9}, {"dev_rows": 9}, {"holdout_fraction": 0.2}, {"corpus_seed": 1}],
)
def test_the_fingerprint_follows_the_settings_that_draw_rows(change):
    assert data_fingerprint(load_settings("demo", change), "sst2") != data_fingerprint(load_settings("demo"), "sst2")


def test_the_fingerprint_ignores_other_settings_and_knows_the_task():
    default = data_fingerprint(load_settings("demo"), "sst2")
    assert data_fingerprint(load_settings("demo", {"teacher_epochs": 1, "max_length": 20}), "sst2") == default
    assert data_fingerprint(load_settings("demo"), "qqp") != default
    assert data_fingerprint(load_settings("paper"), "sst2") != default  # the hub; asked without a network


def test_the_fingerprint_of_a_file_covers_columns_and_dev(tmp_path):
    frame = pandas.DataFrame({"text": ["a", "b"], "other": ["c", "d"], "label": ["x", "y"]})
    frame.to_csv(tmp_path / "own.csv", index=False)
    frame.to_csv(tmp_path / "dev.csv", index=False)
    prints = {
        data_fingerprint(own_settings(tmp_path / "own.csv", **overrides), "own")
        for overrides in (
            {},
            {"text_columns": "other"},
            {"text_columns": "text,other"},
            {"dev_file": str(tmp_path / "dev.csv")},
        )
    }
    assert len(prints) == 4


def test_the_fingerprint_needs_no_model_library_and_is_the_same_in_every_process():
    code = (
        "import sys\nfrom edgemin_utils.config import load_settings\n"
        "from edgemin_utils.data import data_fingerprint\n"
        "print(data_fingerprint(load_settings('demo'), 'mnli'))\n"
        "print([name for name in ('torch', 'datasets', 'transformers') if name in sys.modules])"
    )
    result = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "PYTHONHASHSEED": "7"},
    )
    assert result.stdout.split("\n")[:2] == [data_fingerprint(load_settings("demo"), "mnli"), "[]"]


# ---- statistics ------------------------------------------------------------------------------------------------


def test_statistics(glue):
    write_tsv(glue / "SST-2" / "dev.tsv", [("one", 1), ("one two", 1), ("one two  three four ", 0)])
    data = load(glue, holdout_fraction=0)
    table = task_statistics(data)
    assert table["train"]["rows"] == 200
    assert table["train"]["labels"] == {"negative": 50, "positive": 150}
    lengths = [1, 2, 4]
    # With three values the 90 % quantile lies 80 % of the way from the second to the third.
    assert table["dev"]["words"] == pytest.approx(
        {"median": statistics.median(lengths), "p90": 2 + 0.8 * 2, "p99": 2 + 0.98 * 2, "longest": 4}
    )
    assert table["holdout"] == {
        "rows": 0,
        "labels": {"negative": 0, "positive": 0},
        "words": {"median": None, "p90": None, "p99": None, "longest": None},
    }
    assert json.loads(json.dumps(table)) == table


def test_statistics_of_pairs_count_both_texts(tmp_path):
    frame = pandas.DataFrame({"a": ["one two", "one"], "b": ["three", "two"], "label": ["x", "y"]})
    frame.to_csv(tmp_path / "own.csv", index=False)
    settings = own_settings(
        tmp_path / "own.csv", text_columns="a,b", dev_file=str(tmp_path / "own.csv"), holdout_fraction=0
    )
    words = task_statistics(load_task_data(settings, "own", 0))["train"]["words"]
    assert (words["median"], words["longest"]) == (2.5, 3)


# ---- transfer text ---------------------------------------------------------------------------------------------


def test_unused_texts_are_those_of_the_train_rows_outside_train_and_holdout():
    settings = load_settings("demo", {"train_rows": 100, "holdout_fraction": 0.2})
    for task in ("sst2", "qqp"):
        data, texts = load_task_data(settings, task, 3), unused_texts(settings, task, 3)
        whole = load_task_data(load_settings("demo", {"holdout_fraction": 0}), task, 3)
        columns = data.task.text_columns
        known = [text for rows in (data.train, data.holdout) for column in columns for text in rows[column]]
        assert Counter(texts) + Counter(known) == Counter(text for column in columns for text in whole.train[column])


def test_transfer_rows_are_unused_train_rows_without_their_labels():
    settings = load_settings("demo", {"train_rows": 100, "holdout_fraction": 0.2, "transfer_rows": 50})
    data = load_task_data(settings, "sst2", 0, transfer=True)
    assert 0 < len(data.transfer) <= 50 and set(data.transfer["label"]) == {-1}
    labelled = {text for rows in (data.train, data.holdout, data.dev["dev"]) for text in rows["sentence"]}
    assert not labelled & set(data.transfer["sentence"])
    assert not set(data.transfer["row"]) & {*data.train["row"], *data.holdout["row"]}
    assert any("texts without labels" in note for note in data.notes)
    # The labelled rows are what they are without it, and it is only read where it is asked for.
    plain = load_task_data(load_settings("demo", {"train_rows": 100, "holdout_fraction": 0.2}), "sst2", 0)
    assert plain.train["row"] == data.train["row"] and plain.fingerprint == data.fingerprint
    assert len(plain.transfer) == 0 == len(load_task_data(settings, "sst2", 0).transfer)


def test_transfer_texts_come_from_a_file_of_ones_own(tmp_path):
    file = tmp_path / "texts.csv"
    settings = load_settings("demo", {"transfer_file": str(file)})
    known = load_task_data(load_settings("demo"), "sst2", 0).dev["dev"]["sentence"][0]
    file.write_text(f'sentence\nfirst words\n""\n"{known}"\nlast words\n')
    data = load_task_data(settings, "sst2", 0, transfer=True)
    assert data.transfer["sentence"] == ["first words", "last words"] and data.transfer["label"] == [-1, -1]
    assert "transfer: 1 texts left out that labelled rows hold too" in data.notes
    file.write_text("text\nfirst words\n")
    with pytest.raises(DataError, match="no column 'sentence'"):
        load_task_data(settings, "sst2", 0, transfer=True)


def test_transfer_rows_need_rows_that_are_not_in_use():
    with pytest.raises(MethodRefused, match="every train row of SST-2 is in use"):
        load_task_data(load_settings("demo", {"transfer_rows": 5}), "sst2", 0, transfer=True)
