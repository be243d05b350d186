"""Tables of cuts, from records as the stage writes them."""

from pathlib import Path

import pandas as pd
import pytest
from torch import nn

from edgemin_utils.cuts import read_cut
from edgemin_utils.records import Record
from edgemin_utils.tables import cut_tables


def metrics(accuracy):
    return {
        "dev": {"accuracy": accuracy, "accuracy_low": accuracy - 0.03, "accuracy_high": accuracy + 0.03, "rows": 200}
    }


def record(name, criterion="", after_cut=0.6, accuracy=0.8, **results):
    content = {"stage": "pruning", "variant": f"minilmv2+{name}", "steps": ["distill:minilmv2", f"prune:{name}"]}
    plain = {
        "removed_heads": [[], []],
        "removed_neurons": [0, 0],
        "removed_layers": [],
        "vocabulary": None,
        "parameters_removed": 100,
        "size": {"model_bytes": 3_600_000, "stored_weights": 900},
        "cut": read_cut(name),
        "criterion": criterion,
        "metrics_before": metrics(0.85),
        "metrics_after_cut": metrics(after_cut),
        "metrics": metrics(accuracy),
        "rounds": [],
    }
    return Record(Path("."), {**content, "results": plain | results})


DENSE = Record(
    Path("."),
    {
        "stage": "distillation",
        "variant": "minilmv2",
        "steps": ["distill:minilmv2"],
        "results": {
            "size": {"stored_weights": 1000},
            "metrics": metrics(0.85),
            "model": {"heads": [4, 4], "intermediate_sizes": [16, 16], "layers": 2},
        },
    },
)
REFUSED = Record(
    Path("."),
    {
        "stage": "pruning",
        "variant": "minilmv2+layers-top-2",
        "results": {"refused": "no layer"},
        "steps": ["distill:minilmv2", "prune:layers-top-2"],
    },
)


def test_one_row_a_cut_with_what_went_and_accuracy_on_the_way():
    cuts = [
        record("gradient-heads-0.25-neurons-0.25", "gradient", removed_heads=[[0], [3]], removed_neurons=[4, 4]),
        record(
            "layers-1-vocabulary",
            removed_layers=[1],
            accuracy=0.9,
            vocabulary={"tokens_before": 3000, "tokens_after": 1800},
        ),
        REFUSED,
    ]
    table = cut_tables.chain_cuts_table(DENSE, cuts).set_index("Cut")
    both = table.loc["gradient-heads-0.25-neurons-0.25"]
    assert both["What went"] == "2 of 8 heads, 8 of 32 neurons" and both["Removed %"] == "10.0" and both["MB"] == "3.60"
    assert both["Before %"] == "85.0" and both["After the cut %"] == "60.0" and both["Change (points)"] == "-5.0"
    assert both["After recovery % [95 % interval]"] == "80.0 [77.0, 83.0]"
    assert table.loc["layers-1-vocabulary", "What went"] == "layer 1 (of 2), 1,200 of 3,000 tokens"
    assert table.loc["layers-1-vocabulary", "Change (points)"] == "+5.0"
    assert table.loc["layers-top-2", "What went"] == "refused: no layer" and pd.isna(table.loc["layers-top-2", "MB"])


def test_rounds_have_their_rows_and_single_cuts_none():
    rounds = [
        {
            "parameters_removed": 50 * number,
            "metrics_after_cut": metrics(0.7),
            "metrics_after_recovery": metrics(0.7 + 0.05 * number),
        }
        for number in (1, 2)
    ]
    table = cut_tables.rounds_table(
        [record("gradient-heads-0.5-rounds-2", rounds=rounds), REFUSED, record("gradient-heads-0.5", rounds=rounds[:1])]
    )
    assert table["Cut"].tolist() == ["gradient-heads-0.5-rounds-2"] * 2
    assert table["Weights removed so far"].tolist() == [50, 100]
    assert table["After recovery %"].tolist() == ["75.0", "80.0"]


def test_cuts_that_differ_in_their_ratio_lie_on_one_curve():
    names = {
        "gradient-heads-0.2": "gradient",
        "gradient-heads-0.5": "gradient",
        "random-heads-0.5-draw-2": "random",
        "random-heads-0.5": "random",
        "gradient-heads-0.5-global-rounds-2": "gradient",
        "layers-top-1": "",
        "layers-0": "",
        "magnitude-layers-least-1": "magnitude",
        "vocabulary-without-distillation": "",
        "vocabulary-without-recovery": "",
    }
    ways = cut_tables.ways_of_cutting([*(record(name, criterion) for name, criterion in names.items()), REFUSED])
    assert {name: len(results) for name, results in ways.items()} == {
        "gradient heads": 2,
        "random heads": 2,
        "gradient heads, global, 2 rounds": 1,
        "top layers": 1,
        "named layers": 1,
        "magnitude layers": 1,
        "vocabulary, labels alone": 1,
        "vocabulary, no recovery": 1,
    }


def test_criteria_are_held_against_the_mean_of_random_draws_of_the_same_size():
    cuts = [
        record("gradient-heads-0.5", "gradient", 0.7, 0.84),
        record("random-heads-0.5", "random", 0.5, 0.8),
        record("random-heads-0.5-draw-2", "random", 0.6, 0.82),
        record("taylor-heads-0.2", "taylor"),
        record("layers-top-1"),
        REFUSED,
    ]
    (sentence,) = cut_tables.criterion_sentences(cuts)
    assert "`gradient-heads-0.5` lies +15.0 points from the mean of 2 random cuts" in sentence
    assert "+3.0 after recovery (200 rows)" in sentence
    assert cut_tables.criterion_sentences(cuts[:1]) == []


def test_a_cut_that_found_nothing_to_remove_says_so():
    assert cut_tables.what_went(DENSE.results, record("gradient-heads-0.1", "gradient").results) == "nothing"


@pytest.mark.parametrize("layers, words", [([0, 1], "layers 0, 1 (of 2)"), ([0], "layer 0 (of 2)")])
def test_layers_in_words(layers, words):
    assert cut_tables.what_went(DENSE.results, record("layers-0", removed_layers=layers).results) == words


def test_twenty_percent_of_twelve_heads_is_two_in_each_of_twelve_layers():
    table = cut_tables.planned_cut_table([12] * 12, 0.2, "layer")
    assert table["Removed"].tolist() == [2] * 12 + [24]
    assert table["Share removed %"].iloc[-1] == "16.7"


def test_twenty_percent_of_all_heads_together():
    table = cut_tables.planned_cut_table([12] * 12, 0.2, "global")
    assert table["Where"].tolist() == ["all layers"] and table["Removed"].tolist() == [28]
    assert table["Share removed %"].tolist() == ["19.4"]


def test_cut_by_layer_names_the_heads():
    dense = {"model": {"heads": [4, 4], "intermediate_sizes": [8, 8]}}
    pruned = {
        "model": {"heads": [3, 4], "intermediate_sizes": [8, 6]},
        "removed_heads": [[2], []],
        "removed_layers": [],
    }
    table = cut_tables.cut_by_layer_table(dense, pruned)
    assert table["Removed heads"].tolist() == [[2], []] and table["Heads after"].tolist() == [3, 4]
    assert table["Neurons after"].tolist() == [8, 6]


def test_a_dropped_layer_has_its_line():
    dense = {"model": {"heads": [4, 4, 4], "intermediate_sizes": [8, 8, 8]}}
    pruned = {
        "model": {"heads": [3, 4], "intermediate_sizes": [8, 6]},
        "removed_heads": [[2], [], []],
        "removed_layers": [1],
    }
    table = cut_tables.cut_by_layer_table(dense, pruned)
    assert table["Removed heads"].tolist() == [[2], "the whole layer", []]
    assert table["Heads after"].tolist() == [3, 0, 4] and table["Neurons after"].tolist() == [8, 0, 6]


def test_shapes_that_changed_have_an_arrow():
    class Layer:
        def __init__(self, width):
            self.query = self.key = self.value = nn.Linear(8, width)
            self.attention_output = nn.Linear(width, 8)
            self.feed_forward_in, self.feed_forward_out = nn.Linear(8, 16), nn.Linear(16, 8)

    row = cut_tables.matrix_shapes_table([Layer(8)], [Layer(6)]).iloc[0]
    assert row["query"] == "8 x 8 → 6 x 8" and row["attention output"] == "8 x 8 → 8 x 6"
    assert row["feed forward in"] == "16 x 8"
    rows = cut_tables.matrix_shapes_table([Layer(8), Layer(8)], [Layer(6)], dropped=[0])
    assert rows["query"].tolist() == ["gone", "8 x 8 → 6 x 8"]
