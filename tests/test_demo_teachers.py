"""The embedded corpora are worth a study: the demo's teacher beats a bag of words on every task."""

import os

import pytest
from bag_of_words import bag_of_words_accuracy

from edgemin_utils.corpus import embedded_corpus
from edgemin_utils.records import open_run
from edgemin_utils.stages import fine_tune_teacher

MARGIN = 0.05


@pytest.mark.timeout(400)
@pytest.mark.parametrize("task, split", [("sst2", "dev"), ("mnli", "dev_matched"), ("qqp", "dev")])
def test_teacher_is_five_points_above_tf_idf_with_logistic_regression(task, split, tmp_path):
    teacher = fine_tune_teacher(open_run(task, "demo", 0, tmp_path)).results["metrics"][split]["accuracy"]
    assert teacher >= bag_of_words_accuracy(embedded_corpus(task), task) + MARGIN
    assert teacher < 1, "label noise keeps everything under 100 %"
    assert os.listdir(tmp_path) == [task]
