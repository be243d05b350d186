"""Tables and sentences of single stages, held to values worked out by hand."""

import re
from pathlib import Path

import pandas as pd
import pytest
from scipy import stats

from edgemin_utils.errors import DataError
from edgemin_utils.records import Record, open_run
from edgemin_utils.tables import stage_findings, stage_tables

METRICS = {
    "accuracy": 0.8,
    "f1": 0.75,
    "matthews_correlation": 0.6,
    "rows": 50,
    "accuracy_low": 0.67,
    "accuracy_high": 0.89,
}
BYTES_BEFORE = {"embeddings": 400, "attention": 400, "feed_forward": 1000, "norms": 40, "head": 160}
BYTES_AFTER = {"embeddings": 400, "attention": 110, "feed_forward": 260, "norms": 40, "head": 40}
PARTS = {"embeddings": 100, "attention": 100, "feed_forward": 250, "norms": 10, "head": 40}


def record(**results) -> Record:
    return Record(Path("somewhere"), {"results": results, "stage": "x", "variant": "y"})


def predictions(answers: list[int], labels: list[int]) -> dict[str, pd.DataFrame]:
    return {"dev": pd.DataFrame({"row": range(len(labels)), "label": labels, "prediction": answers})}


def quantization_results(**changes) -> dict:
    size = {
        "framework_parameters": 110,
        "stored_weights": 500,
        "parts": PARTS,
        "bytes_per_part": BYTES_AFTER,
        "model_bytes": 1_000_000,
    }
    layers = [
        {
            "name": "word",
            "kind": "Embedding",
            "quantized": False,
            "parameters": 100,
            "bytes_before": 400,
            "bytes_after": 400,
        },
        {
            "name": "query",
            "kind": "Linear",
            "quantized": True,
            "parameters": 300,
            "bytes_before": 1200,
            "bytes_after": 310,
        },
    ]
    latency = [
        {"model": model, "input": name, "median_ms": median, "iqr_ms": 0.1, "runs": 30, "threads": 1, "noisy": False}
        for name, fp32, int8 in (("1x32", 1.0, 2.0), ("1x128", 6.0, 4.0))
        for model, median in (("fp32", fp32), ("quantized", int8))
    ]
    before = {
        "framework_parameters": 500,
        "stored_weights": 500,
        "model_bytes": 2_000_000,
        "bytes_per_part": BYTES_BEFORE,
    }
    return {
        "size": size,
        "size_before": before,
        "layers": layers,
        "agreement": {"dev": 0.96},
        "metrics": {"dev": METRICS},
        "quick_latency": latency,
    } | changes


# ---- how a table is shown --------------------------------------------------------------------------------------


def test_numbers_are_written_with_separators_and_stand_to_the_right():
    frame = pd.DataFrame({"Name": ["a", "b"], "Rows": [1234567, 8], "Share": [0.5, None], "Cut": [[1, 2], []]})
    page = stage_tables.show(frame).to_html()
    assert "1,234,567" in page and "0.50" in page and "1, 2" in page and "none" in page
    sides = dict(re.findall(r"\.(col\d)[^{]*\{\s*text-align: (\w+)", page))
    assert sides == {"col0": "left", "col1": "right", "col2": "right", "col3": "left"}


def test_text_from_rows_is_shown_as_text():
    page = stage_tables.show(pd.DataFrame({"Sentence": ["<b>bold & brave</b>"]})).to_html()
    assert "&lt;b&gt;bold &amp; brave&lt;/b&gt;" in page


def test_the_same_table_has_the_same_html_and_another_one_another_name():
    first, second = pd.DataFrame({"A": [1]}), pd.DataFrame({"A": [2]})
    assert stage_tables.show(first).to_html() == stage_tables.show(first).to_html()
    assert stage_tables.show(first).uuid != stage_tables.show(second).uuid


@pytest.mark.parametrize("texts, side", [(["1.0", "+2", "-3"], "right"), (["1.0", "none"], "left")])
def test_a_column_of_numbers_is_known_by_its_text(texts, side):
    assert f"text-align: {side}" in stage_tables.show(pd.DataFrame({"A": texts})).to_html()


# ---- settings and data -----------------------------------------------------------------------------------------


def test_settings_table_marks_what_differs_from_the_profile(tmp_path):
    run = open_run("sst2", "demo", 0, tmp_path, {"teacher_epochs": 2.5})
    table = stage_tables.settings_table(run, "teacher/fine-tuned").set_index("Setting")
    assert table.loc["teacher_epochs", "Value"] == "2.5 *" and table.loc["teacher_epochs", "Unit"] == "epochs"
    assert "*" not in table.loc["weight_decay", "Value"]
    assert "head_prune_ratio" not in table.index  # it reaches another stage
    own = stage_tables.settings_table(run, "teacher/fine-tuned", training_loop=False)["Setting"].tolist()
    assert "teacher_epochs" in own and "weight_decay" not in own


def test_settings_of_a_model_that_the_chain_does_not_have_are_left_out(tmp_path):
    scratch = open_run("sst2", "demo", 0, tmp_path, {"student": "scratch"})
    names = stage_tables.settings_table(scratch, "distillation/minilmv2")["Setting"].tolist()
    assert "student_layers" in names and "student_from_layers" not in names
    taken = open_run("sst2", "demo", 0, tmp_path, {"student": "teacher-layers", "teacher": str(tmp_path)})
    names = stage_tables.settings_table(taken, "distillation/minilmv2")["Setting"].tolist()
    assert "student_layers" not in names and "student_from_layers" in names
    table = stage_tables.settings_table(taken, "teacher/fine-tuned").set_index("Setting")
    assert "teacher_layers" not in table.index and table.loc["teacher", "Value"] == f"{tmp_path.name} *"


def test_data_table_has_one_row_a_split():
    words = {"median": 7.0, "p90": 11.0, "p99": 14.0, "longest": 17.0}
    table = stage_tables.data_table(
        {
            "statistics": {
                "train": {"rows": 90, "labels": {}, "words": words},
                "dev": {"rows": 10, "labels": {}, "words": words},
            },
            "truncated_rows": {"train": 3, "dev": 0},
        }
    )
    assert table["Rows"].tolist() == [90, 10] and table["Rows cut"].tolist() == [3, 0]


def test_examples_hold_the_first_rows_of_every_label():
    rows = pd.DataFrame({"sentence": list("abcdef"), "label": [1, 0, 1, 1, 0, 1], "row": range(6)})
    table = stage_tables.example_rows(rows, ("no", "yes"), each=2)
    assert table["Sentence"].tolist() == ["b", "e", "a", "c"]
    assert table["Label"].tolist() == ["no", "no", "yes", "yes"]


# ---- accuracy --------------------------------------------------------------------------------------------------


def test_metrics_table_has_one_row_a_model_and_split():
    table = stage_tables.metrics_table({"Teacher": {"matched": METRICS, "mismatched": METRICS}})
    assert table["Split"].tolist() == ["matched", "mismatched"]
    assert table["Accuracy % [95 % interval]"].tolist() == ["80.0 [67.0, 89.0]"] * 2
    assert table["Matthews correlation"].tolist() == ["0.600"] * 2


def test_paired_tests_count_the_rows_that_one_model_alone_gets_right():
    labels = [1] * 20
    first = predictions([1] * 10 + [0] * 10, labels)
    second = predictions([1] * 9 + [0] + [1] * 8 + [0] * 2, labels)
    row = stage_tables.paired_tests(first, second).iloc[0]
    assert row["difference"] == pytest.approx(35.0)
    assert (row["only_first"], row["only_second"]) == (1, 8)
    assert row["p_value"] == pytest.approx(2 * stats.binom.cdf(1, 9, 0.5))
    assert row["low"] < 35.0 < row["high"]


def test_models_that_answered_different_rows_are_not_compared():
    with pytest.raises(DataError, match="dev: the two models did not answer the same rows"):
        stage_tables.paired_tests(predictions([1, 0], [1, 0]), predictions([1, 0], [0, 0]))


def test_paired_tests_as_text():
    test = pd.DataFrame(
        [
            {
                "split": "dev",
                "rows": 20,
                "difference": -35.0,
                "low": -55.0,
                "high": -10.0,
                "only_first": 8,
                "only_second": 1,
                "p_value": 0.0004,
            }
        ]
    )
    row = stage_tables.paired_tests_table({"a, then b": test}).iloc[0]
    assert row["Difference (points) [95 % interval]"] == "-35.0 [-55.0, -10.0]"
    assert row["p (McNemar)"] == "<0.001" and row["Comparison"] == "a, then b"


@pytest.mark.parametrize(
    "difference, p_value, words",
    [
        (5.0, 0.01, "distillation helped: +5.0 points"),
        (5.0, 0.2, "did not help measurably"),
        (-5.0, 0.01, "did not help, accuracy fell: -5.0 points"),
        (0.0, 1.0, "did not help measurably"),
    ],
)
def test_a_step_helps_only_where_the_rows_can_tell(difference, p_value, words):
    test = pd.DataFrame(
        [
            {
                "split": "dev",
                "rows": 20,
                "difference": difference,
                "low": -6.0,
                "high": 8.0,
                "only_first": 1,
                "only_second": 2,
                "p_value": p_value,
            }
        ]
    )
    (sentence,) = stage_findings.comparison_sentences("distillation", test)
    assert words in sentence and "20 rows" in sentence


def test_share_kept_of_the_teacher():
    (sentence,) = stage_findings.kept_sentences("it", {"dev": {"accuracy": 0.8}}, {"dev": {"accuracy": 0.76}})
    assert "reaches 95.0 %" in sentence and "(76.0 % of 80.0 %)" in sentence


def test_teacher_is_held_against_the_most_frequent_label():
    results = {
        "data": {"labels": ["no", "yes"], "statistics": {"dev": {"labels": {"no": 15, "yes": 35}}}},
        "metrics": {"dev": METRICS},
        "confusion": {"dev": [[9, 6], [4, 31]]},
    }
    accuracy, error = stage_findings.teacher_sentences(results)
    assert 'which is not clearly more than the 70.0 % of always answering "yes"' in accuracy  # 67 % to 89 %
    assert '"no" taken for "yes", 6 of 15 such rows' in error
    sure = results | {"metrics": {"dev": METRICS | {"accuracy_low": 0.71}}, "confusion": {"dev": [[15, 0], [0, 35]]}}
    accuracy, error = stage_findings.teacher_sentences(sure)
    assert "more than the 70.0 %" in accuracy and "not clearly" not in accuracy
    assert "no row is wrong" in error


def test_rows_that_were_cut_are_told():
    data = {
        "source": "synthetic corpus",
        "notes": ["train: 5 rows used"],
        "truncated_rows": {"train": 2, "dev": 1},
        "statistics": {"train": {"rows": 90}, "dev": {"rows": 10}},
    }
    sentences = stage_findings.data_sentences(data)
    assert sentences[1].startswith("3 of 100 rows were longer") and sentences[2] == "train: 5 rows used."
    whole = stage_findings.data_sentences(data | {"truncated_rows": {"train": 0, "dev": 0}})
    assert whole[1] == "No row had to be cut."


# ---- models ----------------------------------------------------------------------------------------------------


def model_record(heads=(4, 4), weights=1000, megabytes=2.0) -> Record:
    return record(
        model={"layers": len(heads), "hidden_size": 64, "heads": list(heads), "intermediate_sizes": [128] * len(heads)},
        size={"stored_weights": weights, "model_bytes": megabytes * 1e6},
    )


def test_models_table_spells_out_unequal_layers():
    table = stage_tables.models_table({"even": model_record(), "cut": model_record((4, 3))})
    assert table["Heads a layer"].tolist() == ["4", "4, 3"]
    assert table["MB"].tolist() == ["2.00"] * 2 and table["MiB"].tolist() == ["1.91"] * 2


def test_relation_heads_are_free_of_attention_heads():
    row = stage_tables.heads_table({"Teacher": model_record()}, 16).iloc[0]
    assert (row["Size of an attention head"], row["Size of a relation head"]) == (16, 4)
    assert "Relation heads" not in stage_tables.heads_table({"Teacher": model_record()}, None)


def test_chain_objectives_table_has_a_row_for_each_student_and_the_reason_of_each_refusal():
    trained = record(
        size={"stored_weights": 500},
        metrics={"dev": METRICS},
        training={"phases": [{"seconds": 2.0}, {"seconds": 3.5}]},
    )
    test = stage_tables.paired_tests(predictions([0, 0, 0, 0], [0, 1, 1, 0]), predictions([0, 1, 1, 0], [0, 1, 1, 0]))
    students = {"none": trained, "minilmv2-layer-2": trained, "tinybert": record(refused="unequal heads")}
    table = stage_tables.chain_objectives_table(students, {"minilmv2-layer-2": test}).set_index("Student")
    assert list(table)[-2:] == ["Demands", "Refused because"]
    assert table["Training s"].tolist() == ["5.5", "5.5", None]
    assert table["dev: points over none"]["minilmv2-layer-2"].startswith("+50.0 [")
    assert table["dev: accuracy %"]["none"] == "80.0 [67.0, 89.0]"
    refused = table.loc["tinybert"]
    assert refused["Refused because"] == "unequal heads" and "equal head counts" in refused["Demands"]
    assert table["Source"]["minilmv2-layer-2"] == "MiniLMv2, Wang et al. 2021"
    assert stage_tables.show(table).to_html()


def test_training_table_has_one_row_a_phase():
    phase = {
        "name": "relations",
        "epochs": 0.5,
        "steps": 7,
        "seconds": 2.0,
        "examples_per_second": 99.6,
        "precision": "float32",
    }
    table = stage_tables.training_table({"Student": record(training={"phases": [phase, phase | {"name": "soft"}]})})
    assert table["Phase"].tolist() == ["relations", "soft"] and table["Rows a second"].tolist() == [100, 100]


def test_distance_of_relations_is_the_total_variation():
    teacher, before, after = [[0.5, 0.5], [0.5, 0.5]], [[1.0, 0.0], [0.5, 0.5]], [[0.5, 0.5], [0.6, 0.4]]
    models = {
        "teacher": {"query-query": teacher},
        "student before": {"query-query": before},
        "student after": {"query-query": after},
    }
    (sentence,) = stage_findings.relation_sentences({"tokens": ["a", "b"], "models": models})
    assert "nearer to the teacher" in sentence and "distance 0.25 before, 0.05 after" in sentence
    assert "without a relation objective" in stage_findings.relation_sentences({})[0]


# ---- pruning ---------------------------------------------------------------------------------------------------


def test_importance_sentences_compare_the_criteria():
    curve = [{"removed": number, "accuracy": 0.9 - 0.1 * number} for number in range(4)]
    scan = {
        "importance": {"gradient": [[1.0, 2.0], [3.0, 4.0]], "magnitude": [[4.0, 3.0], [2.0, 1.0]]},
        "curves": {
            "gradient": curve,
            "magnitude": curve,
            "random-1": [{"removed": 2, "accuracy": 0.5}],
            "random-2": [{"removed": 2, "accuracy": 0.6}],
        },
        "units": "heads",
        "total": 4,
        "rows": 100,
        "split": "hold-out",
    }
    correlation, half = stage_findings.importance_sentences(scan)
    assert "-1.00" in correlation
    assert "from 90.0 % to 70.0 % by gradient, 70.0 % by magnitude, 55.0 % in a random order (mean of 2)" in half
    alone = {"units": "layers", "total": 1, "importance": {}, "curves": {"top": curve[:1]}}
    assert stage_findings.importance_sentences(alone) == ["There is 1 layer alone, which has to stay."]


def test_cut_sentences_count_twice():
    dense = {
        "model": {"heads": [12] * 12, "intermediate_sizes": [1536] * 12},
        "size": {"stored_weights": 33_360_770, "model_bytes": 133_500_000},
    }
    # 24 heads of size 32 in a model of hidden size 384: 4 x 32 x 384 weights and 3 x 32 biases each.
    removed = 24 * (4 * 32 * 384 + 3 * 32)
    pruned = {
        "removed_heads": [[0, 1]] * 12,
        "removed_neurons": [0] * 12,
        "parameters_removed": removed,
        "ratio": 0.2,
        "removed_layers": [],
        "vocabulary": None,
        "size": {"stored_weights": 32_178_818, "model_bytes": 128_700_000},
    }
    heads, parameters, file = stage_findings.cut_sentences(dense, pruned)
    assert "24 of 144 heads are gone: 16.7 %, where the setting asks for 20 %" in heads
    assert "1,181,952 by the formula, 1,181,952 by counting before and after (the same)" in parameters
    assert "3.5 % of the model" in parameters and "1.04 times smaller" in file
    wrong = pruned | {"parameters_removed": removed + 1, "removed_neurons": [100] * 12}
    sentences = stage_findings.cut_sentences(dense, wrong)
    assert "1,200 of 18,432 feed-forward neurons" in sentences[1] and "**not** the same" in sentences[2]


def test_cut_sentences_name_layers_and_tokens():
    dense = {
        "model": {"heads": [4] * 4, "intermediate_sizes": [8] * 4, "layers": 4},
        "size": {"stored_weights": 1000, "model_bytes": 4_000_000},
    }
    tokens = {"tokens_before": 500, "tokens_after": 400, "rows_in_other_tokens": {"dev": 30}}
    pruned = {
        "removed_heads": [[]] * 4,
        "removed_neurons": [0] * 4,
        "parameters_removed": 300,
        "ratio": 0,
        "removed_layers": [1, 3],
        "vocabulary": tokens,
        "metrics": {"dev": {"rows": 200}},
        "size": {"stored_weights": 700, "model_bytes": 2_800_000},
    }
    layers, vocabulary, *_ = stage_findings.cut_sentences(dense, pruned)
    assert layers == "2 of 4 layers went as a whole: number 1, 3, counted from 0."
    assert "100 of 500 tokens are gone (20.0 %); 30 of 200 dev rows are now cut into other tokens" in vocabulary
    whole = pruned | {"vocabulary": tokens | {"tokens_after": 500}}
    assert "need every one of the 500 tokens" in stage_findings.cut_sentences(dense, whole)[1]


def test_recovery_in_points():
    pruned = {
        "metrics_before": {"dev": {"accuracy": 0.9}},
        "metrics_after_cut": {"dev": {"accuracy": 0.7}},
        "metrics": {"dev": {"accuracy": 0.85}},
    }
    (sentence,) = stage_findings.recovery_sentences(pruned)
    assert "70.0 % right after it (-20.0 points), 85.0 % after recovery (+15.0; -5.0 in all)" in sentence


# ---- quantization ----------------------------------------------------------------------------------------------


def test_parts_add_up():
    table = stage_tables.quantized_parts_table(quantization_results()).set_index("Part")
    assert table.loc["all", "Weights"] == 500 and table.loc["all", "Smaller"] == f"{2000 / 850:.2f}x"
    assert table.loc["embeddings", "Smaller"] == "1.00x" and table.loc["embeddings", "Share before %"] == "20.0"
    shares = table["Share after %"].astype(float)
    assert shares.drop("all").sum() == pytest.approx(100, abs=0.3)


def test_every_layer_is_listed():
    table = stage_tables.quantized_layers_table(quantization_results()["layers"])
    assert table["Quantized"].tolist() == ["no", "yes"] and table["Bytes after"].tolist() == [400, 310]


def test_quantized_models_stand_beside_their_sources():
    source = record(size={"model_bytes": 2_000_000}, metrics={"dev": METRICS})
    results = quantization_results(metrics={"dev": METRICS | {"accuracy": 0.78}})
    row = stage_tables.quantized_models_table({"a": source}, {"a": record(**results)}).iloc[0]
    assert (row["FP32 MB"], row["Quantized MB"], row["Smaller"]) == ("2.00", "1.00", "2.00x")
    assert (row["FP32 accuracy %"], row["Quantized accuracy %"], row["Same answer %"]) == ("80.0", "78.0", "96.0")


def test_quick_look_is_labelled_and_gives_the_ratio():
    results = quantization_results()
    table = stage_tables.quick_latency_table(results["quick_latency"])
    assert table["FP32 / quantized"].tolist() == ["0.50x", "1.50x"]
    sentence = stage_findings.quick_latency_sentence(results)
    assert sentence.startswith("Quick look, not a result (30 runs, 1 thread)")
    assert "2.00 times slower at 1x32, 1.50 times faster at 1x128" in sentence and "noisy" not in sentence


def test_size_sentences_name_what_is_left():
    modules, file, largest = stage_findings.size_sentences(quantization_results())
    assert modules.startswith("1 of 2 modules") and "75.0 % of the weights" in modules
    assert "2.00 MB (1.91 MiB) to 1.00 MB (0.95 MiB): 2.00 times smaller" in file
    assert f"embeddings, with {100 * 400 / 850:.1f} %" in largest


def test_counting_artefact_is_named_where_it_is_one():
    drop, stored, left = stage_findings.counting_sentences(quantization_results())
    assert "500 parameters before quantization and 110 after it, 4.55 times fewer" in drop
    assert "500 weights are stored before and 500 after: the 390" in stored
    assert "100 + 10 = 110" in left
    size = quantization_results()["size"] | {"framework_parameters": 10}
    assert len(stage_findings.counting_sentences(quantization_results(size=size))) == 2


def test_agreement_is_told_in_rows():
    (sentence,) = stage_findings.agreement_sentences(quantization_results())
    assert "2 of 50 rows (4.0 %)" in sentence


def test_bullets():
    assert stage_findings.bullets(["a", "b"]) == "- a\n- b"
