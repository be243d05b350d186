import json
import shlex

import numpy as np
import pandas as pd
import pytest
from example_study import (
    COST,
    DISTILLED,
    DISTILLED_INT8,
    NONE,
    NONE_INT8,
    PRUNED,
    PRUNED_INT8,
    TEACHER,
    WRONG,
    add_model,
    write_chain,
    write_compressed_teachers,
)

from edgemin_utils import cli, tables
from edgemin_utils.command_options import read_arguments
from edgemin_utils.errors import SettingError, StageError
from edgemin_utils.recommendation import BUNDLES, Budget, bundle_command, choose, distance, missed_limits, recommend
from edgemin_utils.tables.recommended import budget_models, bundle_stage, on_front, recommended_models

TUNED = "tuning/minilmv2+fine-tune"


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    """sst2 with one seed and a model that was not timed, qqp with two seeds, mnli with two dev splits."""
    folder = tmp_path_factory.mktemp("study")
    write_chain(folder, "sst2")
    add_model(folder, DISTILLED, TUNED, ["distill:minilmv2", "fine-tune:4"], wrong=5)
    write_chain(folder, "qqp", 0)
    write_chain(folder, "qqp", 1, wrong=WRONG | {TEACHER: 2})
    write_chain(folder, "mnli", splits=("dev_matched", "dev_mismatched"))
    return folder


@pytest.fixture(scope="module")
def records(study):
    return tables.read_study(study)


@pytest.fixture(scope="module")
def rows(records):
    """SST-2's candidates by key."""
    frame = tables.candidates(records)
    return frame[frame["task"] == "sst2"].set_index("key", drop=False)


def made_up(count, seed):
    """Candidates with numbers on a coarse grid, so that many are equal, some without a latency."""
    generator = np.random.default_rng(seed)
    frame = pd.DataFrame(
        {
            "key": [f"model {number}" for number in range(count)],
            "accuracy": generator.integers(60, 66, count).astype(float),
            "megabytes": generator.integers(1, 5, count).astype(float),
            "milliseconds": generator.integers(1, 5, count).astype(float),
        }
    )
    frame.loc[generator.random(count) < 0.2, "milliseconds"] = np.nan
    return frame


# ---- candidates --------------------------------------------------------------------------------------------------


def test_every_model_is_a_candidate_with_its_numbers(rows):
    assert set(rows["key"]) == {*WRONG, TUNED}
    assert rows["kind"].value_counts().to_dict() == {
        "quantized": 4,
        "pruned": 2,
        "student": 2,
        "teacher": 1,
        "tuned": 1,
    }
    row = rows.loc[PRUNED_INT8]
    assert (row["accuracy"], row["megabytes"], row["milliseconds"]) == pytest.approx((80.0, 0.4, 2.0))
    assert np.isnan(rows.loc[TUNED, "milliseconds"])


def test_the_front_by_hand(rows):
    # wrong of 40 / MB / ms: teacher 4/4/12, tuned 5/2/-, distilled 6/2/6, INT8 7/0.5/3, pruned + INT8 8/0.4/2; pruned
    # FP32 (8/1.6/5) gives way to both INT8 models, and the undistilled ones to their distilled twins.
    assert set(rows[rows["on_front"]]["key"]) == {TEACHER, TUNED, DISTILLED, DISTILLED_INT8, PRUNED_INT8}


def test_another_input_is_another_latency(records):
    frame = tables.candidates(records, "dev rows").set_index(["task", "key"])
    assert frame.loc[("sst2", TEACHER), "milliseconds"] == pytest.approx(3.0)
    assert frame["input"].unique().tolist() == ["dev rows"]


def test_a_few_bytes_are_no_gain():
    frame = pd.DataFrame(
        {"accuracy": [80.0, 82.0, 79.0], "megabytes": [53.20253, 53.202534, 53.1], "milliseconds": [4.0, 4.0, 4.0]}
    )
    assert on_front(frame).tolist() == [False, True, True]


def test_the_first_split_counts_and_is_named(records):
    frame = tables.candidates(records)
    assert set(frame.loc[frame["task"] == "mnli", "split"]) == {"dev_matched"}
    assert "mnli: accuracy on dev_matched." in tables.recommended_table(records).notes


def test_the_table_holds_each_tasks_front_best_first(records):
    table = recommended_models(records)
    assert list(dict.fromkeys(table["task"])) == ["sst2", "mnli", "qqp"]
    assert sorted(table["folder"]) == sorted(tables.candidates(records).query("on_front")["folder"])
    assert all(accuracy.is_monotonic_decreasing for _, accuracy in table.groupby("task")["accuracy"])
    quantized = table[table["model"] == "Distilled + pruned + INT8"]
    assert quantized["bundle_from"].iloc[0] == f"sst2/seed-0/{PRUNED}"
    assert list(tables.readable(table)) == ["Task", "Model", "Accuracy %", "Kept %", "MB", "1x128 (ms)"]


def test_budgets_name_the_smallest_and_the_fastest_that_keep_enough(records, tmp_path):
    # wrong of 40: teacher 4 (100 %), tuned 5 (97.2 %, 2 MB, not timed), distilled 6 (94.4 %).
    table = budget_models(records).query("task == 'sst2'")
    assert table[["at_least", "goal", "folder"]].values.tolist() == [
        [97, "smallest", f"sst2/seed-0/{TUNED}"],
        [97, "fastest", f"sst2/seed-0/{TEACHER}"],
        [95, "smallest", f"sst2/seed-0/{TUNED}"],
        [95, "fastest", f"sst2/seed-0/{TEACHER}"],
    ]
    # 39 right against 40: 97.5 %. Two INT8 models have equal files and times; the one that keeps more is named.
    wrong = dict.fromkeys(WRONG, 1) | {TEACHER: 0, NONE_INT8: 0}
    table = budget_models(write_chain(tmp_path, wrong=wrong))
    assert table[["at_least", "goal", "folder"]].values.tolist() == [
        [99, "smallest", f"sst2/seed-0/{NONE_INT8}"],
        [99, "fastest", f"sst2/seed-0/{NONE_INT8}"],
        [97, "smallest", f"sst2/seed-0/{PRUNED_INT8}"],
        [97, "fastest", f"sst2/seed-0/{PRUNED_INT8}"],
        [95, "smallest", f"sst2/seed-0/{PRUNED_INT8}"],
        [95, "fastest", f"sst2/seed-0/{PRUNED_INT8}"],
    ]
    shown = tables.readable(table)
    assert list(shown) == ["Task", "At least %", "Goal", "Model", "Accuracy %", "Kept %", "MB", "1x128 (ms)"]


def test_budgets_of_a_study_without_a_choice_are_empty(tmp_path):
    folder = write_chain(tmp_path, wrong=dict.fromkeys(WRONG, 20) | {TEACHER: 0})
    assert len(budget_models(folder)) == 0 and "(no rows)" in tables.as_markdown(tables.budget_table(folder))


# ---- the bundle's command ----------------------------------------------------------------------------------------


def test_a_quantized_models_bundle_is_built_from_its_float_stage(records):
    models = records.of_task("sst2")[0].models
    assert {key: bundle_stage(models[key]) for key in (TEACHER, PRUNED, TUNED, DISTILLED_INT8, PRUNED_INT8)} == {
        TEACHER: TEACHER,
        PRUNED: PRUNED,
        TUNED: TUNED,
        DISTILLED_INT8: DISTILLED,
        PRUNED_INT8: PRUNED,
    }


def test_a_bundle_of_the_compressed_teacher_is_built_from_its_float_stage(tmp_path):
    folder = write_chain(tmp_path)
    pruned, small, whole = write_compressed_teachers(folder)
    rows = tables.candidates(folder).set_index("key", drop=False)
    assert list(rows.loc[[small, whole], "bundle_from"]) == [f"sst2/seed-0/{pruned}", f"sst2/seed-0/{TEACHER}"]
    assert list(rows.loc[[pruned, small, TEACHER], "kind"]) == ["pruned", "quantized", "teacher"]
    assert list(rows.loc[[pruned, small, TEACHER], "student"]) == ["teacher", "teacher", ""]
    assert shlex.split(bundle_command(folder, rows.loc[small]))[-1] == f"bundles/sst2-{pruned.split('/')[1]}"


def test_the_command_names_a_folder_of_records(study, rows):
    words = shlex.split(bundle_command(study, rows.loc[PRUNED_INT8]))
    assert words[:2] == ["edgemin", "bundle"] and words[3] == "--output"
    assert words[2] == str(study / "sst2" / "seed-0" / PRUNED)
    assert words[4] == f"bundles/sst2-{PRUNED.split('/')[1]}" and len(words) == 5


@pytest.mark.parametrize(
    "scheme, options",
    [
        ("onnx-int4", ["--matrix-bits", "4"]),
        ("onnx-dynamic-int8-embeddings", []),
        ("onnx-int4-embeddings", ["--matrix-bits", "4", "--embedding-bits", "4"]),
    ],
)
def test_the_command_stores_in_four_bits_what_the_scheme_does(study, rows, scheme, options):
    row = {**rows.loc[PRUNED_INT8], "key": f"quantization/minilmv2+gradient-heads-0.2+{scheme}"}
    words = shlex.split(bundle_command(study, row))
    assert words[5:] == options and words[4].endswith("-int4") == bool(options)


# ---- the choice --------------------------------------------------------------------------------------------------


BUDGETS = [
    Budget(),
    Budget(megabytes=2),
    Budget(milliseconds=2),
    Budget(accuracy=63),
    Budget(megabytes=3, milliseconds=2),
    Budget(3, 3, 64),
    Budget(0.5, 0.5, 90),
    Budget(accuracy=99),
]


@pytest.mark.parametrize("budget", BUDGETS)
def test_the_choice_is_what_trying_every_model_finds(budget):
    for seed in range(5):
        frame = made_up(30, seed)
        models = frame.fillna({"milliseconds": np.inf}).to_dict("records")
        fitting = [
            model
            for model in models
            if (budget.megabytes is None or model["megabytes"] <= budget.megabytes)
            and (budget.milliseconds is None or model["milliseconds"] <= budget.milliseconds)
            and (budget.accuracy is None or model["accuracy"] >= budget.accuracy)
        ]
        front = {
            model["key"]
            for model in fitting
            if not any(
                other["accuracy"] >= model["accuracy"]
                and other["megabytes"] <= model["megabytes"]
                and other["milliseconds"] <= model["milliseconds"]
                and (other["accuracy"], -other["megabytes"], -other["milliseconds"])
                != (model["accuracy"], -model["megabytes"], -model["milliseconds"])
                for other in fitting
            )
        }
        choice = choose(frame, budget)
        assert choice.fitting == len(fitting)
        assert set(choice.front["key"]) == front
        assert choice.front["accuracy"].is_monotonic_decreasing
        assert (choice.nearest is None) == bool(fitting)
        if choice.nearest is not None:
            least = min(distance(missed_limits(model, budget)) for model in models)
            assert distance(choice.misses) == pytest.approx(least)


def test_the_nearest_by_hand():
    frame = pd.DataFrame(
        {"key": ["a", "b"], "accuracy": [90.0, 72.0], "megabytes": [30.0, 11.0], "milliseconds": [5.0, 5.0]}
    )
    choice = choose(frame, Budget(megabytes=10, milliseconds=6, accuracy=80))
    # a is 20 MB over 10 (2.0); b is 1 MB over 10 (0.1) and 8 points under 80 (0.1)
    assert choice.nearest["key"] == "b" and choice.front.empty and choice.fitting == 0
    assert [(miss.quantity, miss.by) for miss in choice.misses] == [
        ("megabytes", pytest.approx(1.0)),
        ("accuracy", pytest.approx(8.0)),
    ]
    assert distance(choice.misses) == pytest.approx(np.sqrt(0.02))


def test_an_untimed_model_is_left_out_of_latency_limits_only(rows):
    assert TUNED in set(choose(rows, Budget(accuracy=87)).front["key"])
    assert TUNED not in set(choose(rows, Budget(milliseconds=100)).front["key"])
    untimed = rows.assign(milliseconds=np.nan)
    assert choose(untimed, Budget(milliseconds=100)).nearest is None
    assert set(choose(untimed, Budget()).front["key"]) == {TEACHER, TUNED, DISTILLED_INT8, PRUNED_INT8}


def test_a_limit_that_is_met_exactly_is_met(rows):
    assert choose(rows, Budget(0.4, 2.0, 80.0)).front["key"].tolist() == [PRUNED_INT8]


@pytest.mark.parametrize(
    ("limits", "message"),
    [
        ((0, None, None), "0 MB"),
        ((None, -1, None), "-1 ms"),
        ((None, None, 0.8), "in percent"),
        ((None, None, 101), "in percent"),
        ((float("nan"), None, None), "nan MB"),
    ],
)
def test_budgets_that_cannot_be_meant(limits, message):
    with pytest.raises(SettingError, match=message):
        Budget(*limits)


def test_what_cannot_be_asked_is_refused(study, tmp_path):
    with pytest.raises(SettingError, match="no task 'sst'; did you mean 'sst2'"):
        recommend(study, Budget(), "sst")
    with pytest.raises(SettingError, match="timed at 1x64, only at 1x32, 1x128, dev rows"):
        recommend(study, Budget(), length=64)
    with pytest.raises(StageError, match="no model's record; `edgemin run`"):
        recommend(tmp_path, Budget())


def test_seeds_are_taken_together(study):
    advice = recommend(study, Budget(), "qqp")
    row = advice.tasks[0].choice.front.iloc[0]
    assert row["seeds"] == 2 and row["accuracy"] == pytest.approx(92.5)
    assert row["bundle_from"] == f"qqp/seed-0/{TEACHER}"


# ---- the command line --------------------------------------------------------------------------------------------


def run(capsys, *arguments):
    status = cli.main(["recommend", *map(str, arguments)])
    return status, capsys.readouterr().out


def test_text_shows_models_intervals_and_commands(study, capsys):
    status, text = run(
        capsys, "--output-dir", study, "--task", "sst2", "--max-mb", 0.6, "--max-ms", 3, "--min-accuracy", 75
    )
    assert status == 0
    assert "sst2 (synthetic data), at most 0.6 MB, at most 3 ms (1x128, one thread), at least 75 % accuracy" in text
    assert "2 of 10 models fit; 2 on the Pareto front" in text
    assert text.index("82.5 [72.5, 87.5]") < text.index("80.0 [70.0, 85.0]")
    commands = [line for line in text.splitlines() if line.startswith("edgemin bundle")]
    asked = [read_arguments(shlex.split(line)[1:]) for line in commands]
    assert {options.command for options in asked} == {"bundle"}
    assert [(options.model, options.output) for options in asked] == [
        (str(study / "sst2" / "seed-0" / key), f"{BUNDLES}/sst2-{key.split('/')[1]}") for key in (DISTILLED, PRUNED)
    ]
    assert "not measured, so the latency limit leaves them out: Distilled + fine-tuned" in " ".join(text.split())
    assert "Records without a model" in text and "noisy" not in text
    assert all(len(line) <= 120 for line in text.splitlines() if not line.startswith("edgemin "))


def test_text_without_limits_covers_every_task(study, capsys):
    status, text = run(capsys, "--output-dir", study, "--count", 1)
    assert status == 0 and text.count("without a limit") == 3 and text.count("\nTeacher ") == 3
    assert "means over seeds" in text and "the first 1 of them here (--count)" in " ".join(text.split())


def test_text_says_what_comes_nearest_and_what_it_misses(study, capsys):
    status, text = run(capsys, "--output-dir", study, "--task", "sst2", "--max-mb", 0.3, "--min-accuracy", 82)
    assert status == 1
    # pruned + INT8: 0.1 MB over 0.3 and 2 points under 82
    assert "0.1 MB (33.3 %) over 0.3 MB, 2 points (2.4 %) under 82 % accuracy" in " ".join(text.split())
    assert f"at distance {np.hypot(0.1 / 0.3, 2 / 82):.2f}" in text and "edgemin bundle" in text


def test_json_is_for_machines(study, capsys):
    status, text = run(capsys, "--output-dir", study, "--json", "--max-ms", 1.5, "--length", 32, "--count", 2)
    found = json.loads(text)
    assert (
        status == 0
        and found["input"] == "1x32"
        and found["budget"] == {"megabytes": None, "milliseconds": 1.5, "accuracy": None}
    )
    task = found["tasks"][0]
    assert (task["task"], task["models"], task["fitting"], task["synthetic"]) == ("sst2", 10, 4, True)
    assert [row["key"] for row in task["recommended"]] == [DISTILLED_INT8, PRUNED_INT8]
    assert task["recommended"][0]["milliseconds"] == 1.5 and task["nearest"] is None
    assert task["not_timed"] == ["Distilled + fine-tuned"]


def test_json_holds_the_nearest(study, capsys):
    status, text = run(capsys, "--output-dir", study, "--json", "--task", "sst2", "--max-mb", 0.2, "--length", "dev")
    task = json.loads(text)["tasks"][0]
    assert status == 1 and task["recommended"] == [] and task["nearest"]["key"] == PRUNED_INT8
    assert task["nearest"]["misses"] == [
        {"quantity": "megabytes", "limit": 0.2, "by": pytest.approx(0.2), "share": pytest.approx(1.0)}
    ]


def test_a_study_that_was_never_timed(tmp_path, capsys):
    write_chain(tmp_path, leave_out=(COST,))
    status, text = run(capsys, "--output-dir", tmp_path, "--max-ms", 5)
    assert status == 1 and "no model has been timed at 1x128" in text and "edgemin bundle" not in text
    status, text = run(capsys, "--output-dir", tmp_path, "--max-mb", 1)
    assert status == 0 and "Latency and memory are not measured." in text


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--task", "sst"], "did you mean 'sst2'?"),
        (["--max-mb", "big"], "'big' is not a number"),
        (["--length", "0"], "'0' is not a whole number of at least 1"),
        (["--min-accuracy", "0.9"], "in percent"),
        (["--max-gb", "1"], "unknown option '--max-gb'; did you mean '--max-mb'?"),
    ],
)
def test_refusals_are_one_line(study, arguments, message, capsys):
    assert cli.main(["recommend", "--output-dir", str(study), *arguments]) == 2
    error = capsys.readouterr().err
    assert message in error and error.startswith("edgemin: ") and error.count("\n") == 1


def test_no_study_is_named(tmp_path, capsys):
    assert cli.main(["recommend", "--output-dir", str(tmp_path / "nowhere")]) == 2
    assert "is not there; `edgemin run` makes it" in capsys.readouterr().err


def test_noise_is_kept(records):
    frame = tables.candidates(records).set_index(["task", "key"])
    assert frame.loc[("sst2", NONE), "milliseconds_noisy"] and not frame.loc[("sst2", TEACHER), "milliseconds_noisy"]
