"""The settings search on few rows: what is trained and judged, that it resumes, and what its table says."""

import numpy as np
import pandas as pd
import pytest
from sklearn.metrics import accuracy_score
from tiny_chain import tiny_run

from edgemin_utils import settings_search
from edgemin_utils.chain import TEACHER
from edgemin_utils.data import load_task_data
from edgemin_utils.settings_search import TRIALS, Trial, search, search_table, titled_table, trial_run
from edgemin_utils.tables import write_table

STUDENT = "distillation/minilmv2"
CUT = "vocabulary-seen-2-without-recovery"
CHOSEN = (
    Trial(TEACHER, TEACHER),
    Trial(f"pruning/teacher+{CUT}", TEACHER, {"recipe": [f"teacher+prune:{CUT}+quantize:dynamic-int8"]}),
    Trial(STUDENT, STUDENT),
    Trial(STUDENT, STUDENT, {"prediction_learning_rate": 2e-3}),
)


@pytest.fixture
def tiny(monkeypatch):
    monkeypatch.setattr(
        settings_search, "trial_run", lambda trial, folder, data_dir, teacher: tiny_run(folder, **trial.changes)
    )


@pytest.mark.parametrize("trial", TRIALS, ids=lambda trial: f"{trial.model}-{dict(trial.changes)}")
def test_every_trial_is_a_model_of_its_chain_and_has_a_baseline(trial, tmp_path):
    assert trial_run(trial, tmp_path, "rows", "weights").stage(trial.model).keeps_model
    assert any(other.model == trial.baseline and not other.changes for other in TRIALS)


def test_models_are_judged_on_the_holdout_and_not_trained_twice(tiny, tmp_path, monkeypatch):
    found = list(search(CHOSEN, tmp_path, "rows", "weights"))
    assert len({path for _, path in found}) == len(CHOSEN)
    run = tiny_run(tmp_path)
    labels = load_task_data(run.settings, "sst2", 0).holdout["label"]
    table = search_table(found)
    for (_, path), accuracy in zip(found, table["accuracy"], strict=True):
        answers = np.load(path)
        assert answers["label"].tolist() == list(labels) and len(labels) == 24
        assert accuracy == pytest.approx(100 * accuracy_score(answers["label"], answers["prediction"]))
    monkeypatch.setattr(settings_search, "run_stage", lambda run, key: pytest.fail(f"{key} was run again"))
    again = list(search(CHOSEN, tmp_path, "rows", "weights"))
    pd.testing.assert_frame_equal(search_table(again), table)
    written = write_table(titled_table(again, tmp_path), tmp_path / "published")
    assert [path.name for path in written] == ["sst2.csv", "sst2.md", "sst2.tex"]
    assert pd.read_csv(written[0])["accuracy"].tolist() == pytest.approx(list(table["accuracy"]))
    said = written[1].read_text()
    assert "prediction_learning_rate=0.002" in said and "Processor: " in said and "left out" not in said


def test_the_table_sets_trials_against_the_unchanged_model(tmp_path):
    # 40 rows: the student has 6 wrong, changed it has the first 2 of them right: 4 points in 40, p = 2 * 0.5 ** 2.
    labels = np.zeros(40, dtype=int)
    found = []
    for number, (trial, wrong) in enumerate(zip(CHOSEN, (4, 12, 6, 4), strict=True)):
        path = tmp_path / f"{number}.npz"
        np.savez(path, label=labels, prediction=np.where(np.arange(40) < wrong, 1, 0))
        found.append((trial, path))
    table = search_table(found)
    assert table["accuracy"].tolist() == pytest.approx([90.0, 70.0, 85.0, 90.0])
    assert table["changed_settings"].tolist()[2:] == ["none", "prediction_learning_rate=0.002"]
    assert np.isnan(table.loc[0, "difference"]) and np.isnan(table.loc[2, "difference"])
    assert table.loc[1, ["compared_with", "difference"]].tolist() == [TEACHER, pytest.approx(-20.0)]
    assert table.loc[3, "difference"] == pytest.approx(5.0) and table.loc[3, "p_value"] == pytest.approx(0.5)
