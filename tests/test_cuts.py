"""Names of cuts: that they say all of a cut, and nothing that does not matter to it."""

import dataclasses
import random

import pytest

from edgemin_utils.config import PRUNING_CRITERIA, load_settings
from edgemin_utils.cuts import CUT_SETTINGS, cut_name, read_cut
from edgemin_utils.errors import SettingError

PLAIN = load_settings("demo")


def drawn_settings(count):
    """Settings of cuts of every kind, drawn at random."""
    draw = random.Random(0)
    ratios = (0, 0.2, 0.25, 0.3333333333333333, 1e-05, 0.1234567891, 0.999)
    for _ in range(count):
        yield dataclasses.replace(
            PLAIN,
            pruning_criterion=draw.choice(PRUNING_CRITERIA),
            pruning_draw=draw.choice((1, 2, 10)),
            head_prune_ratio=draw.choice(ratios),
            kept_heads_multiple=draw.choice((1, 2)),
            feed_forward_prune_ratio=draw.choice(ratios),
            kept_neurons_multiple=draw.choice((1, 16, 32)),
            pruning_scope=draw.choice(("layer", "global")),
            prune_vocabulary=draw.random() < 0.3,
            vocabulary_all_rows=draw.random() < 0.5,
            vocabulary_occurrences=draw.choice((1, 3)),
            vocabulary_limit=draw.choice((None, 9, 11000)),
            pruned_layers=draw.choice((None, None, "top-1", "least-2", "spaced-0.25", "0", "0-2-4", "10")),
            pruning_rounds=draw.choice((1, 3)),
            recovery_distillation=draw.random() < 0.5,
            recovery=draw.random() < 0.8,
        )


def test_reading_a_name_gives_the_same_name_again_and_all_that_matters():
    names = {}
    for settings in drawn_settings(1500):
        name = cut_name(settings)
        cut = read_cut(name)
        assert cut.keys() == set(CUT_SETTINGS)
        assert cut_name(dataclasses.replace(PLAIN, **cut)) == name
        # What the name leaves out cannot matter: it differs only where the cut does not look.
        changed = {key for key in cut if cut[key] != getattr(settings, key)}
        idle = set()
        if not settings.head_prune_ratio:
            idle |= {"kept_heads_multiple"}
        if not settings.feed_forward_prune_ratio:
            idle |= {"kept_neurons_multiple"}
        if not settings.prune_vocabulary:
            idle |= {"vocabulary_all_rows", "vocabulary_occurrences", "vocabulary_limit"}
        if not (settings.head_prune_ratio or settings.feed_forward_prune_ratio):
            idle |= {"pruning_scope"}
            if settings.pruned_layers != "least-2":
                idle |= {"pruning_criterion", "pruning_draw"}
        if not settings.recovery:
            idle |= {"recovery_distillation"}
        if settings.pruning_criterion != "random":
            idle |= {"pruning_draw"}
        assert changed <= idle, name
        # Two cuts that differ never share a name.
        assert names.setdefault(name, cut) == cut
    assert len(names) > 700


@pytest.mark.parametrize(
    "name, changes",
    [
        ("gradient-heads-0.2", {}),
        ("magnitude-heads-0.25", {"pruning_criterion": "magnitude", "head_prune_ratio": 0.25}),
        ("gradient-heads-0.2-neurons-0.5", {"feed_forward_prune_ratio": 0.5}),
        ("random-heads-0.2-draw-2", {"pruning_criterion": "random", "pruning_draw": 2}),
        (
            "gradient-l2-neurons-0.25-multiple-16-global",
            {
                "pruning_criterion": "gradient-l2",
                "head_prune_ratio": 0.0,
                "feed_forward_prune_ratio": 0.25,
                "kept_neurons_multiple": 16,
                "pruning_scope": "global",
            },
        ),
        ("layers-0-2-4", {"head_prune_ratio": 0.0, "pruned_layers": "0-2-4"}),
        ("taylor-layers-least-1", {"head_prune_ratio": 0.0, "pruned_layers": "least-1", "pruning_criterion": "taylor"}),
        (
            "layers-spaced-0.5-vocabulary-all-rows-seen-2-most-10000",
            {
                "head_prune_ratio": 0.0,
                "pruned_layers": "spaced-0.5",
                "prune_vocabulary": True,
                "vocabulary_all_rows": True,
                "vocabulary_occurrences": 2,
                "vocabulary_limit": 10000,
            },
        ),
        ("leave-one-out-heads-0.2", {"pruning_criterion": "leave-one-out"}),
        (
            "layers-top-2-vocabulary-seen-3",
            {"head_prune_ratio": 0.0, "pruned_layers": "top-2", "prune_vocabulary": True, "vocabulary_occurrences": 3},
        ),
        ("gradient-heads-0.2-without-recovery", {"recovery": False}),
        ("gradient-heads-0.2-rounds-4-without-distillation", {"pruning_rounds": 4, "recovery_distillation": False}),
    ],
)
def test_names_as_they_are_written(name, changes):
    settings = load_settings("demo", changes)
    assert cut_name(settings) == name
    assert dataclasses.replace(PLAIN, **read_cut(name)) == settings


@pytest.mark.parametrize(
    "name",
    [
        "",
        "heads-0.2",
        "gradient-heads",
        "gradient-heads-0.2-sideways",
        "layers-least-1",
        "layers-01",
        "layers-spaced-0.50",
        "layers-spaced-1",
        "gradient",
        "rounds-2",
        "random-heads-0.2-draw-0",
    ],
)
def test_what_names_no_cut_is_refused(name):
    with pytest.raises(SettingError, match="names no cut.*criteria gradient, gradient-l2, taylor"):
        read_cut(name)


@pytest.mark.parametrize(
    "name, nearest",
    [
        ("gradiant-heads-0.2", "gradient"),
        ("gradient-l3-neurons-0.5", "gradient-l2"),
        ("tailor-layers-least-1", "taylor"),
        ("magnitud-vocabulary", "magnitude"),
    ],
)
def test_an_unknown_criterion_names_the_nearest(name, nearest):
    with pytest.raises(SettingError, match=f"did you mean '{nearest}'"):
        read_cut(name)


def test_a_ratio_of_one_is_refused():
    with pytest.raises(SettingError, match="would leave nothing"):
        read_cut("gradient-heads-1")
