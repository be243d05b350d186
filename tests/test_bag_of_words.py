"""The bag-of-words baseline: its features by hand, what it can learn, and what it cannot."""

import pandas as pd
import pytest
from bag_of_words import bag_of_words_accuracy, features, grams

from edgemin_utils.errors import DataError


def test_grams_by_hand():
    assert grams("Not very good") == ["not", "very", "good", "not very", "very good"]


def test_pair_features_by_hand():
    found = features(("a b", "b a"))
    assert {"first:a", "first:a b", "second:b a", "both:a", "both:b", "one:a b", "one:b a", "overlap:10"} <= set(found)
    assert "longer:0" in found
    assert "overlap:2" in features(("a b", "b c d e"))


def sentences(rows: list[tuple[str, int]]) -> pd.DataFrame:
    return pd.DataFrame(rows, columns=["sentence", "label"])


def test_words_that_tell_the_label_are_learnt():
    frame = sentences([("a good film", 1), ("a bad film", 0), ("good plot", 1), ("bad plot", 0)] * 5)
    assert bag_of_words_accuracy({"train": frame, "dev": frame}, "sst2") == 1.0


def test_a_parity_over_distant_words_is_not():
    rows = [(f"{a} w {b}", int((a == "p") == (b == "q"))) for a in ("p", "r") for b in ("q", "s")] * 10
    assert bag_of_words_accuracy({"train": sentences(rows), "dev": sentences(rows)}, "sst2") <= 0.75


def test_pairs_use_the_matched_split():
    frame = pd.DataFrame({"premise": ["x y", "x z"] * 6, "hypothesis": ["x", "not x"] * 6, "label": [0, 2] * 6})
    splits = {"train": frame, "dev_matched": frame, "dev_mismatched": frame.assign(label=1)}
    assert bag_of_words_accuracy(splits, "mnli") == 1.0


def test_errors_name_what_is_missing():
    frame = sentences([("good", 1), ("bad", 0)])
    with pytest.raises(DataError, match="cola"):
        bag_of_words_accuracy({"train": frame, "dev": frame}, "cola")
    with pytest.raises(DataError, match="question1"):
        bag_of_words_accuracy({"train": frame, "dev": frame}, "qqp")
    with pytest.raises(DataError, match="dev split"):
        bag_of_words_accuracy({"train": frame}, "sst2")
