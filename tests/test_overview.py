"""The study at a glance, against the numbers that the example study was made from."""

import pytest
from example_study import COST, DISTILLED, NONE, NONE_PRUNED_INT8, PRUNED, PRUNED_INT8, TEACHER, WRONG, write_chain

from edgemin_utils import tables
from edgemin_utils.tables.overview import _Answer, _questions


@pytest.fixture(scope="module")
def glance(tmp_path_factory):
    """sst2 with one seed, mnli with two dev splits, a model missing and no times, qqp with two seeds."""
    folder = tmp_path_factory.mktemp("study")
    write_chain(folder, "sst2")
    write_chain(folder, "mnli", splits=("dev_matched", "dev_mismatched"), leave_out=(NONE_PRUNED_INT8, COST))
    write_chain(folder, "qqp", 0)
    write_chain(folder, "qqp", 1, wrong=WRONG | {TEACHER: 2, DISTILLED: 2, PRUNED: 6})
    return tables.overview_table(folder)


def test_a_column_answers_every_question_for_one_task(glance):
    said = glance.frame.set_index("quantity")["task sst2"]
    # 40 rows: 4, 14, 6 and 8 wrong; the records' intervals are 10 points down and 5 up.
    assert said["Dev rows"] == "40, 1 seed"
    assert said["Teacher, %"] == "90.0 [80.0, 95.0]"
    assert said["Student without distillation, %"] == "65.0 [55.0, 70.0]"
    assert said["Distilled + pruned + INT8, %"] == "80.0 [70.0, 85.0]"
    assert said["That in % of the teacher's"].startswith("88.9 [")
    assert said["Distillation, points"].startswith("+20.0 [+") and said["Quantization, points"] == "0.0 [0.0, 0.0]"
    assert said["Pruning with recovery, points"].startswith("-5.0 [-")
    # A million weights in FP32 against 400,000 in INT8; 12, 6, 5, 3 and 2 ms.
    assert said["MB of teacher and last model"] == "4.0, 0.4" and said["Times smaller"] == "10.00"
    assert said["Times fewer MACs at 1x128"] == "2.50"
    assert said["Times faster at 1x128"].startswith("6.00 [")
    assert said["Times faster by pruning"].startswith("1.20 [")
    assert said["Times faster by pruning, once quantized"].startswith("1.50 [")
    assert said["Times faster by quantization"].startswith("2.50 [")
    assert said["Interaction of pruning and quantization"].startswith(f"{(2 * 6) / (5 * 3):.2f}")


def test_several_seeds_are_taken_together(glance):
    said = glance.frame.set_index("quantity")["task qqp"]
    assert said["Dev rows"] == "40, 2 seeds"
    assert said["Distilled (MiniLMv2), %"].startswith("90.0 [")  # 85 and 95
    # 94.4 and 100 % of the teacher's; half a million weights, 6 ms
    assert said["Smallest model that keeps 97 %"] == "2.0 MB, 6.0 ms, 90.0 %"


def test_what_a_task_cannot_answer_is_blank_and_every_row_names_its_stage(glance):
    frame = glance.frame.set_index("quantity")
    assert list(frame)[:-1] == ["task sst2", "task mnli matched", "task mnli mismatched", "task qqp"]
    assert frame.loc["Times faster at 1x128", "task mnli matched"] == ""
    assert frame.loc["Interaction of pruning and quantization", "task mnli matched"] == ""
    assert frame.loc["Smallest model that keeps 97 %", "task sst2"] == ""
    stages = frame["stage"]
    assert stages["Distillation, points"] == DISTILLED and stages["Times smaller"] == PRUNED_INT8
    assert stages["Student without distillation, %"] == NONE and stages["Dev rows"] == ""


def test_each_task_keeps_the_order_of_its_own_questions():
    tasks = [[_Answer(name, "") for name in names] for names in ("ad", "abd", "cd", "be")]
    order = _questions(tasks)
    assert sorted(order) == list("abcde")
    for names in ("ad", "abd", "cd", "be"):
        assert [name for name in order if name in names] == list(names)


def test_it_opens_the_report_and_reads_well_as_markdown(glance):
    text = tables.as_markdown(glance)
    assert text.startswith("## At a glance (synthetic data)")
    assert "| Quantity" in text and "| mnli matched |" in " ".join(text.split()) and "| Stage" in text
