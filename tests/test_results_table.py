"""The one table: read from records, published, and read again."""

import json
import shutil

import example_study as made
import numpy as np
import pandas as pd
import pytest
from example_study import CUT, MODELS, REFUSED, ROWS, frames_of, write_frames, write_study

from edgemin_utils.errors import StageError
from edgemin_utils.results.table import COLUMNS, MOST_RUNS, publish, read_frames, read_results
from edgemin_utils.results.tables import headline, terminal_table, write_tables

frames = frames_of({"sst2": ("dev",), "mnli": ("matched", "mismatched")}, seeds=(0, 1))


def test_a_row_for_each_model_seed_and_split(frames):
    models = frames.results[frames.results["rows"] > 0]
    assert list(models) == COLUMNS and len(models) == len(MODELS) * 2 * 3  # two seeds; one split of sst2, two of mnli
    assert not models.duplicated(["task", "seed", "model", "split"]).any()
    assert frames.tasks == ["mnli", "sst2"] and frames.models("sst2")[:2] == ["teacher", "none"]
    assert frames.splits("mnli") == ["matched", "mismatched"]


@pytest.mark.parametrize("model", ["teacher", "none", f"minilmv2+{CUT}+int8"])
def test_numbers_are_those_of_the_records(frames, model):
    (row,) = frames.results.query("task == 'sst2' and seed == 1 and model == @model").to_dict("records")
    assert row["accuracy"] == pytest.approx(1 - made.wrong_of(model) / ROWS)
    assert (row["rows"], row["correct"]) == (ROWS, ROWS - made.wrong_of(model))
    assert (row["parameters"], row["bytes"]) == (made.weights_of(model), made.bytes_of(model))
    assert row["macs_128"] == 4 * row["macs_32"] == 10 * made.weights_of(model) * 128
    # The middle one of three processes, which are 0, 1 and 2 % slow; all cores are two.
    assert row["ms_128"] == pytest.approx(1.01 * made.milliseconds_of(model))
    assert row["ms_32_all"] == pytest.approx(0.4 * 1.01 * made.milliseconds_of(model) / 2)
    assert row["memory_bytes"] == 310_000_000 + made.bytes_of(model)
    assert row["synthetic"] and row["profile"] == "demo"


def test_a_refused_model_is_a_row_and_a_scan_is_none(frames):
    (row,) = frames.results.query(f"task == 'mnli' and seed == 0 and model == '{REFUSED}'").to_dict("records")
    assert "equal heads" in row["refused"] and row["split"] == "matched" and row["rows"] == 0
    assert np.isnan(row["accuracy"]) and not frames.results["model"].str.contains("scan").any()


def test_right_rows_pair_models_by_seed_and_row(frames):
    teacher, cut = frames.right_rows("sst2", "dev", "teacher", f"minilmv2+{CUT}")
    assert teacher.shape == cut.shape == (2, ROWS)
    # Seed 1 fails one row earlier than seed 0.
    assert [(~right).nonzero()[0].tolist() for right in teacher] == [[0, 1, 2, 3], [0, 1, 2, 39]]
    assert (~cut).sum(axis=1).tolist() == [8, 8]
    assert frames.right_rows("sst2", "dev", "teacher", "not there") == []


def test_medians_of_processes_are_of_raw_times(frames):
    own = "task == 'sst2' and seed == 0 and model == 'teacher' and input == '1x128' and threads == 1 and process == "
    by_hand = [np.median(frames.times.query(f"{own}{process}")["nanoseconds"]) / 1e6 for process in range(3)]
    np.testing.assert_allclose(frames.medians["sst2", 0, "teacher"], by_hand)
    np.testing.assert_allclose(by_hand, [12.0, 12.12, 12.24], rtol=1e-6)
    assert ("sst2", 0, "none", "1x128", 1) not in frames.medians  # timed as minilmv2


def test_tasks_say_that_their_rows_are_synthetic(frames, tmp_path):
    found = [frames.label("mnli", "mismatched"), frames.label("sst2")]
    assert found == ["mnli mismatched (synthetic)", "sst2 (synthetic)"]
    real = write_frames(tmp_path / "real", seeds=(0,), models=("teacher",), real=True)
    assert real.label("sst2") == "sst2"


def test_a_study_that_has_only_begun_can_be_read_and_one_without_models_cannot(tmp_path):
    with pytest.raises(StageError, match="edgemin run"):
        read_results(tmp_path)
    begun = write_study(tmp_path / "begun", seeds=(0,), models=("teacher",), timed=False)
    assert headline(read_frames(begun))["model"].tolist() == ["teacher"] and "teacher" in terminal_table(begun)


@pytest.fixture(scope="module")
def published(frames):
    study = frames.study
    notebooks = study / "mnli" / "seed-0" / "notebooks"
    notebooks.mkdir()
    cell = {"cell_type": "markdown", "metadata": {}, "source": [f"Study in {study}/sst2"]}
    notebook = {"cells": [cell], "metadata": {"papermill": {"input_path": str(study)}, "edgemin": {}}, "nbformat": 4}
    (notebooks / "01_teacher.ipynb").write_text(json.dumps(notebook))
    return publish(study, study.parent / "outputs" / "reference", draw)


def draw(frames, folder):
    write_tables(frames, folder / "tables")


def test_a_published_folder_says_the_same(frames, published):
    again = read_frames(published)
    pd.testing.assert_frame_equal(again.results, frames.results, check_dtype=False)
    order, rows = ["task", "split", "model", "seed", "row"], [frames.predictions, again.predictions]
    before, after = (each.astype(dict.fromkeys(order[:3], str)).sort_values(order, ignore_index=True) for each in rows)
    pd.testing.assert_frame_equal(after, before, check_dtype=False)
    assert again.times["run"].max() < MOST_RUNS and len(again.times) == len(frames.times)
    assert again.medians.keys() == frames.medians.keys()


def test_a_published_folder_names_no_folder_of_its_maker(frames, published):
    text = (published / "README.md").read_text()
    assert "edgemin run --profile demo --tasks mnli --set train_rows=2000 --seeds 0,1" in text
    assert "revision 0123456789" in text and "Example CPU (avx2)" in text and "torch 2.13.0" in text
    notebook = (published / "notebooks" / "01_teacher.ipynb").read_text()
    assert str(frames.study) not in notebook and "papermill" not in notebook and "Study in study/sst2" in notebook


def test_publishing_replaces_what_is_there_only_when_all_is_written(frames, published, tmp_path):
    bare = write_study(tmp_path / "bare", seeds=(0,), models=("teacher",))
    for place, said in {frames.study / "reference": "lies in the other", bare: "that is no publication"}.items():
        with pytest.raises(StageError, match=said):
            publish(frames.study, place, draw)
    with pytest.raises(ZeroDivisionError):
        publish(bare, published, lambda frames, folder: 1 / 0)
    assert (published / "tables" / "headline.md").is_file() and not [*published.parent.glob(".*partial-*")]
    path, revision = bare / "sst2" / "seed-0" / "teacher" / "record.json", made.ENVIRONMENT["git_revision"]
    path.write_text(path.read_text().replace(revision, f"{revision}+dirty"))
    with pytest.raises(StageError, match="dirty"):
        publish(bare, published, draw)


@pytest.mark.parametrize("same_teacher", [True, False])
def test_publishing_keeps_other_tasks_and_seeds_and_what_the_same_teacher_taught(
    same_teacher, frames, published, tmp_path
):
    new, alone = tmp_path / "new", shutil.copytree(published, tmp_path / "alone")
    answers = write_study(new, seeds=(1,), models=("teacher",)) / "sst2" / "seed-1" / "teacher" / "predictions.parquet"
    if not same_teacher:
        rows = pd.read_parquet(answers)
        rows.assign(prediction=1 - rows["prediction"]).to_parquet(answers)
    after = [read_frames(publish(new, alone, draw)) for _ in range(2)][-1]
    chains = after.results.groupby(["task", "seed"])["model"].agg(set).to_dict()
    left = chains["sst2", 0] if same_teacher else {"teacher", "tinybert"}
    assert chains["sst2", 1] == left and "none" in chains["sst2", 0] & chains["mnli", 1]
    assert len({len(each.predictions.query("task == 'mnli' or seed == 0")) for each in (frames, after)}) == 1
    assert len(after.right_rows("sst2", "dev", "teacher")[0]) == 2
    assert (alone / "README-before.md").read_text().count("# study") == 1
