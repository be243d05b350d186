"""The published results: every number of the table comes from the predictions and times beside it."""

import re

import numpy as np
import pandas as pd
import pytest
from conftest import PROJECT

from edgemin_utils.names import read_name
from edgemin_utils.settings import load_settings

FOLDER = PROJECT / "outputs" / "reference"
KEY = ["task", "seed", "split", "model"]


@pytest.fixture(scope="module")
def results() -> pd.DataFrame:
    return pd.read_csv(FOLDER / "results.csv")


def test_accuracies_come_from_the_predictions(results: pd.DataFrame) -> None:
    predictions = pd.read_parquet(FOLDER / "predictions.parquet")
    predictions["right"] = predictions["prediction"] == predictions["label"]
    found = predictions.groupby(KEY, observed=True)["right"].agg(["sum", "count", "mean"]).reset_index()
    merged = results[results["accuracy"].notna()].merge(found.astype({"split": str, "model": str, "task": str}), on=KEY)
    assert len(merged) == results["accuracy"].notna().sum()
    assert (merged["correct"] == merged["sum"]).all() and (merged["rows"] == merged["count"]).all()
    assert np.allclose(merged["accuracy"], merged["mean"], atol=1e-9)


def test_latencies_come_from_the_times(results: pd.DataFrame) -> None:
    place = ["task", "seed", "model"]
    times = pd.read_parquet(FOLDER / "times.parquet").query("threads == 1")
    medians = times.groupby([*place, "input", "process"], observed=True)["nanoseconds"].median()
    medians = medians.groupby(level=[*place, "input"], observed=True).median()
    for input_name, column in (("1x32", "ms_32"), ("1x128", "ms_128")):
        chosen = medians.xs(input_name, level="input")
        timed = results.drop_duplicates(place).set_index(place)[column].dropna()
        shared = timed.index.intersection(chosen.index)
        assert len(shared) > 10
        assert np.allclose(timed[shared], chosen[shared] / 1e6, rtol=1e-3)


def test_every_model_s_name_reads_back(results: pd.DataFrame) -> None:
    settings = load_settings("laptop")
    for text in results["model"].unique():
        assert read_name(text, settings).text == text


def test_what_is_published_is_small_and_speaks_of_the_project_alone() -> None:
    for path in FOLDER.rglob("*"):
        if path.suffix in (".md", ".csv", ".json", ".ipynb", ".tex", ".html"):
            found = re.search(r"(?<![\w/.:*])/(?:home|root|tmp|work)/|\+dirty", path.read_text(encoding="utf-8"))
            assert not found, path
