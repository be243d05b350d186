import itertools
import json
import re

import matplotlib
import numpy as np
import pandas as pd
import pytest
from example_study import (
    COST,
    NONE_PRUNED_INT8,
    TEACHER,
    cut_results,
    importance,
    quantized_layers,
    relations,
    scan_results,
    training,
    write_chain,
)
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.collections import PathCollection
from matplotlib.colors import to_hex, to_rgb
from matplotlib.patches import FancyArrowPatch
from matplotlib.transforms import Bbox

from edgemin_utils import figures, tables
from edgemin_utils.figures.pareto import KIND_STYLES, place_labels, step_front
from edgemin_utils.figures.study import LARGEST_BUBBLE, _area
from edgemin_utils.figures.style import (
    CYCLE,
    STAGE_COLOURS,
    STEP_MARKERS,
    STUDENT_COLOURS,
    model_style,
    new_figure,
    numbered_clip_paths,
    three_digits,
    wrapped_name,
)
from edgemin_utils.tables.recommended import KINDS, on_front

BEFORE = {"embeddings": 1.6e6, "attention": 0.6e6, "feed_forward": 1.2e6, "norms": 1e4, "head": 2e4}
AFTER = BEFORE | {"attention": 0.15e6, "feed_forward": 0.3e6}


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    folder = tmp_path_factory.mktemp("study")
    write_chain(folder, "sst2")
    write_chain(folder, "mnli", splits=("dev_matched", "dev_mismatched"), leave_out=(NONE_PRUNED_INT8,))
    write_chain(folder, "qqp")
    return folder


@pytest.fixture(scope="module")
def summary(study):
    return tables.summarize(study)


def scanned_students() -> dict:
    """Four students of three teacher layers, one of them through an assistant, and one without a teacher."""

    def results(accuracy, **more):
        return {
            "metrics": {
                "dev": {"accuracy": accuracy, "accuracy_low": accuracy - 0.02, "accuracy_high": accuracy + 0.01}
            },
            "transfer_rows": 0,
            **more,
        }

    return {
        "minilmv2": results(0.8, teacher_layer=3),
        "minilmv2-layer-1": results(0.82, teacher_layer=1),
        "minilmv2-layer-0": results(0.78, teacher_layer=0),
        "none": results(0.7),
        "minilmv2-by-assistant": results(0.9, teacher_layer=2),
    }


@pytest.fixture(scope="module")
def drawn(study, summary):
    return {
        "label_balance": figures.label_balance(
            {"train": {"negative": 2600, "positive": 3400}, "dev": {"negative": 500, "positive": 480}}
        ),
        "lengths": figures.token_length_histogram(np.random.default_rng(0).poisson(18, 2000).tolist(), 48),
        "curves": figures.training_curves(training(False)),
        "curves of two phases": figures.training_curves(training(True)),
        "confusion": figures.confusion_matrix(
            [[300, 20, 10], [30, 280, 15], [9, 11, 325]], ["entailment", "neutral", "contradiction"]
        ),
        "relations": figures.relation_matrices(relations()),
        "objective losses": figures.objective_loss_curves(training(True)),
        "losses without parts": figures.objective_loss_curves(training(False)),
        "teacher layers": figures.teacher_layer_scan(scanned_students()),
        "importance": figures.importance_heatmaps(importance()),
        "importance of many heads": figures.importance_heatmaps(
            {"gradient": np.random.default_rng(0).random((12, 12)), "magnitude": np.ones((12, 12))}
        ),
        "importance of four criteria": figures.importance_heatmaps(
            {
                name: scores
                for first in ("", "other ")
                for name, scores in ((first + name, scores) for name, scores in importance().items())
            }
        ),
        "removal": figures.removal_curves(scan_results()),
        "cuts": figures.cut_curves(*cut_results()),
        "bytes": figures.bytes_by_part(BEFORE, AFTER),
        "quantized layers": figures.quantized_layers(quantized_layers()),
        "sensitivity": figures.layer_sensitivity(sensitivity(2)),
        "sensitivity of many layers": figures.layer_sensitivity(sensitivity(12)),
        "trade": figures.accuracy_over_latency(summary),
        "accuracy": figures.accuracy_by_stage(summary),
        "cost": figures.cost_by_stage(summary),
        "effects": figures.factorial_effects_figure(tables.factorial_effects(study)),
        "pipeline": figures.pipeline_picture(summary),
        "pareto": figures.pareto_picture(many_models()),
        "comparison": figures.method_comparison(many_methods()),
    }


LONG_METHOD = "distill, prune (gradient-neurons-0.5-multiple-32), quantize (onnx-int4-gptq-embeddings)"


def many_methods() -> pd.DataFrame:
    """Twelve methods on one task, one of them refused, and two on a task with two dev splits."""
    methods = [*(f"method-{number}" for number in range(10)), LONG_METHOD, "refused-method"]
    runs = [("sst2", "dev", methods), *(("mnli", f"dev_{name}", methods[:2]) for name in ("matched", "mismatched"))]
    rows = [
        {
            "task": task,
            "split": split,
            "method": method,
            "accuracy": np.nan if method == "refused-method" else (80 if task == "sst2" else 60) + number,
            "training_seconds": np.nan if method == "refused-method" else (100 if task == "sst2" else 900) + number,
        }
        for task, split, names in runs
        for number, method in enumerate(names)
    ]
    frame = pd.DataFrame(rows)
    return frame.assign(synthetic=False, accuracy_low=frame["accuracy"] - 1, accuracy_high=frame["accuracy"] + 1)


def many_models(count=30) -> pd.DataFrame:
    """Candidates of every kind close together, more than ten of them on the front, three not timed."""
    generator = np.random.default_rng(0)
    megabytes = np.exp(generator.uniform(2, 4, count))
    accuracy = 70 + 4 * np.log(megabytes) + generator.normal(0, 1, count)
    frame = pd.DataFrame(
        {
            "task": "sst2",
            "split": "dev",
            "synthetic": True,
            "key": [str(number) for number in range(count)],
            "model": [f"Distilled + pruned (gradient-heads-0.{number}) + INT8" for number in range(count)],
            "kind": [list(KIND_STYLES)[number % len(KIND_STYLES)] for number in range(count)],
            "distilled": generator.random(count) < 0.7,
            "student": ["minilmv2", "none", "teacher"] * (count // 3),
            "accuracy": accuracy,
            "accuracy_low": accuracy - 1,
            "accuracy_high": accuracy + 1,
            "megabytes": megabytes,
            "input": "1x128",
            "milliseconds": [*[np.nan] * 3, *megabytes[3:] / 3 * np.exp(generator.normal(0, 0.3, count - 3))],
        }
    )
    return frame.assign(on_front=on_front(frame))


def sensitivity(layers: int) -> dict:
    names = [
        f"bert.encoder.layer.{number}.{part}"
        for number in range(layers)
        for part in ("attention.self.query", "attention.output.dense", "intermediate.dense", "output.dense")
    ]
    rows = [
        {
            "layer": name,
            "format": number_format,
            "accuracy": 0.9 - 0.001 * place,
            "agreement": 0.99,
            "divergence": 0.0 if place == 0 else 10 ** (-6 + place / 20),
        }
        for number_format in ("int8", "int4")
        for place, name in enumerate([*names, "classifier"])
    ]
    return {"layers": rows, "accuracy": 0.9, "rows": 256, "split": "hold-out"}


NAMES = (
    "label_balance",
    "lengths",
    "curves",
    "curves of two phases",
    "confusion",
    "relations",
    "objective losses",
    "losses without parts",
    "teacher layers",
    "importance",
    "importance of many heads",
    "importance of four criteria",
    "removal",
    "cuts",
    "bytes",
    "quantized layers",
    "sensitivity",
    "sensitivity of many layers",
    "trade",
    "accuracy",
    "cost",
    "effects",
    "pipeline",
    "pareto",
    "comparison",
)


def texts_of(figure):
    """Every visible text with its extent in pixels, after layout."""
    renderer = FigureCanvasAgg(figure).get_renderer()
    figure.draw(renderer)
    found = []
    for text in figure.findobj(matplotlib.text.Text):
        if text.get_visible() and text.get_text().strip():
            box = text.get_window_extent(renderer)
            if box.width > 0 and box.height > 0:
                found.append((text, box))
    return found


@pytest.mark.parametrize("name", NAMES)
def test_nothing_is_cut_off(drawn, name):
    figure = drawn[name]
    inside = figure.bbox.padded(1.0)
    shown = [(text, box) for text, box in texts_of(figure) if not is_hidden_tick(text, figure)]
    assert shown
    for text, box in shown:
        assert inside.x0 <= box.x0 and box.x1 <= inside.x1 and inside.y0 <= box.y0 and box.y1 <= inside.y1, (
            text.get_text(),
            box,
        )


def is_hidden_tick(text, figure):
    """Tick labels outside an axis' limits and those of shared inner axes exist but are not drawn."""
    for axes in figure.axes:
        for axis in (axes.xaxis, axes.yaxis):
            labels = [tick.label1 for tick in (*axis.get_major_ticks(), *axis.get_minor_ticks())] + [
                tick.label2 for tick in (*axis.get_major_ticks(), *axis.get_minor_ticks())
            ]
            if text in labels:
                low, high = sorted(axis.get_view_interval())
                place = next(
                    tick.get_loc()
                    for tick in (*axis.get_major_ticks(), *axis.get_minor_ticks())
                    if text in (tick.label1, tick.label2)
                )
                return not low - 1e-9 <= place <= high + 1e-9 or not axes.axison
    return False


@pytest.mark.parametrize("name", NAMES)
def test_axis_labels_do_not_run_into_each_other(drawn, name):
    figure = drawn[name]
    boxes = dict((id(text), box) for text, box in texts_of(figure))
    labels = [
        label
        for axes in figure.axes
        for label in (axes.xaxis.label, axes.yaxis.label, axes.title)
        if id(label) in boxes
    ]
    for first, second in itertools.combinations(labels, 2):
        assert not boxes[id(first)].padded(-1).overlaps(boxes[id(second)].padded(-1)), (first, second)


@pytest.mark.parametrize("name", [name for name in NAMES if name != "pipeline"])
def test_every_axis_is_named(drawn, name):
    figure = drawn[name]
    outer = [axes for axes in figure.axes if axes.axison and axes.get_label() != "<colorbar>"]
    assert outer
    for axes in outer:
        sharing = [other for other in outer if other in axes.get_shared_y_axes().get_siblings(axes)]
        assert axes.get_ylabel() or any(other.get_ylabel() for other in sharing)
        sharing = [other for other in outer if other in axes.get_shared_x_axes().get_siblings(axes)]
        assert axes.get_xlabel() or any(other.get_xlabel() for other in sharing)


@pytest.mark.parametrize(
    ("name", "units"),
    [
        ("trade", ("(ms)", "(%)")),
        ("accuracy", ("(%)",)),
        ("cost", ("(MB)", "(ms)", "(millions)")),
        ("bytes", ("MB",)),
        ("lengths", ("(tokens)",)),
        ("curves", ("(%)", "epochs")),
        ("removal", ("(%)", "of 12")),
        ("effects", ("percentage points", "ratio")),
        ("objective losses", ("nats", "step")),
        ("teacher layers", ("(%)", "counted from 0")),
        ("pareto", ("(ms)", "(MB)", "(%)", "log scale")),
        ("comparison", ("(%)", "(s)")),
    ],
)
def test_units_stand_on_the_axes(drawn, name, units):
    labels = " ".join(label for axes in drawn[name].axes for label in (axes.get_xlabel(), axes.get_ylabel()))
    for unit in units:
        assert unit in labels


@pytest.mark.parametrize("name", NAMES)
def test_text_can_be_read_at_column_width(drawn, name):
    assert min(text.get_fontsize() for text, _ in texts_of(drawn[name])) >= 5
    assert drawn[name].get_size_inches()[0] <= 9


def test_synthetic_data_is_called_synthetic(drawn):
    for name in ("trade", "accuracy", "cost", "effects", "pipeline", "pareto"):
        assert any("synthetic" in text.get_text() for text, _ in texts_of(drawn[name])), name


def test_palette_is_distinct_also_without_colour_vision():
    # Machado et al. 2009, severity 1.0: protanopia, deuteranopia, tritanopia, on linear RGB
    views = [
        np.eye(3),
        np.array([[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]]),
        np.array([[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.011820, 0.042940, 0.968881]]),
        np.array([[1.255528, -0.076749, -0.178779], [-0.078411, 0.930809, 0.147602], [0.004733, 0.691367, 0.303900]]),
    ]
    linear = {
        colour: np.array(
            [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in to_rgb(colour)]
        )
        for colour in figures.PALETTE.values()
    }
    for view in views:
        seen = {colour: np.clip(view @ value, 0, 1) ** (1 / 2.2) for colour, value in linear.items()}
        for first, second in itertools.combinations(seen, 2):
            assert np.linalg.norm(seen[first] - seen[second]) > 0.09, (first, second)
    assert len(set(STUDENT_COLOURS.values())) == len(STUDENT_COLOURS)
    assert len(set(STEP_MARKERS.values())) == 4 and len(set(STAGE_COLOURS)) == 4 and len(set(CYCLE)) == len(CYCLE)


def test_every_model_has_a_look_of_its_own(summary):
    looks = {row["model"]: tuple(model_style(row).values()) for row in summary.to_dict("records")}
    assert len(set(looks.values())) == len(looks) == 9


def test_bubble_area_is_proportional_to_the_file():
    assert _area(4.0, 4.0) == LARGEST_BUBBLE
    assert _area(1.0, 4.0) == pytest.approx(LARGEST_BUBBLE / 4)


def test_points_stand_where_the_numbers_are(drawn, summary):
    axes = drawn["trade"].axes[0]
    rows = summary[summary["task"] == "sst2"]
    bubbles = [item for item in axes.collections if isinstance(item, PathCollection)]
    places = sorted(tuple(bubble.get_offsets()[0]) for bubble in bubbles)
    wanted = sorted(zip(rows["latency_1x128"], rows["accuracy"], strict=True))
    np.testing.assert_allclose(places, wanted)


def test_labels_of_a_crowded_front_lie_on_nothing(drawn):
    front = many_models().query("on_front")
    assert len(front) > 10
    for axes, column in zip(drawn["pareto"].axes, ("milliseconds", "megabytes"), strict=True):
        labels = [
            (text, matplotlib.text.Text.get_window_extent(text))  # an annotation's own takes in its line
            for text, _ in texts_of(drawn["pareto"])
            if text in axes.texts
        ]
        assert sorted(int(text.get_text()) for text, _ in labels) == [
            number
            for number, value in enumerate(front.sort_values("accuracy", ascending=False)[column], start=1)
            if pd.notna(value)
        ]
        for (_, first), (_, second) in itertools.combinations(labels, 2):
            assert not first.overlaps(second)
        points = axes.transData.transform(many_models()[[column, "accuracy"]].dropna())
        for text, box in labels:
            assert not any(box.contains(*point) for point in points), text.get_text()


def test_the_step_line_is_the_best_accuracy_up_to_each_value():
    frame = many_models()
    for column in ("milliseconds", "megabytes"):
        places, heights = step_front(frame.dropna(subset=[column]), column)
        for value in frame[column].dropna():
            reached = heights[np.searchsorted(places, value, side="right") - 1]
            assert reached == pytest.approx(frame.loc[frame[column] <= value, "accuracy"].max(), abs=0.01)


def test_every_kind_has_a_colour_and_a_shape_of_its_own(drawn):
    assert set(KIND_STYLES) == set(KINDS.values())
    for part in ("color", "marker"):
        assert len({style[part] for style in KIND_STYLES.values()}) == len(KIND_STYLES)
    texts = [text.get_text() for text, _ in texts_of(drawn["pareto"])]
    assert "3 of 30 models not timed" in texts and {*KIND_STYLES, "not distilled", "compressed teacher"} <= set(texts)
    without = figures.pareto_picture(many_models().query("student != 'teacher'"))
    assert "compressed teacher" not in [text.get_text() for text, _ in texts_of(without)]


def test_a_front_without_latencies_still_has_its_sizes(tmp_path):
    frame = tables.candidates(write_chain(tmp_path, leave_out=(COST,)))
    texts = [text.get_text() for text, _ in texts_of(figures.pareto_picture(frame))]
    assert "9 of 9 models not timed" in texts and "1  Teacher" in texts
    assert [axes.get_xlabel() for axes in figures.pareto_picture(frame).axes] == ["file (MB), log scale"]
    assert "on the Pareto front of accuracy and file" in texts
    assert len(texts_of(figures.pareto_picture(frame.head(0)))) == 1


def test_stacked_bars_add_up(drawn):
    texts = {text.get_text() for text, _ in texts_of(drawn["bytes"])}
    assert "3.43 MB" in texts and "2.08 MB" in texts  # the sums of BEFORE and AFTER


def test_pipeline_holds_the_numbers_of_the_records(drawn):
    texts = "\n".join(text.get_text() for text, _ in texts_of(drawn["pipeline"]))
    for wanted in (
        "90.0 % accuracy",
        "95 % interval 80.0 to 95.0",
        "0.40 M weights, 0.4 MB",
        "2.00 ms, 1x128, one thread",
        "65.0 % accuracy",
        "quantize",
    ):
        assert wanted in texts
    assert "checkpoint" not in texts


def test_a_student_of_the_checkpoint_does_not_come_from_the_teacher(drawn, summary):
    """An arrow from the teacher down to a student starts under the teacher's box; the checkpoint's has its own row."""
    student = summary[summary["student"] == "none"].iloc[[0]].assign(student="none-pretrained", model="From checkpoint")
    figure = figures.pipeline_picture(pd.concat([student, summary], ignore_index=True))
    texts = {text.get_text(): text for text, _ in texts_of(figure)}
    origin, teacher = texts["pretrained checkpoint"].get_position(), texts["Teacher"].get_position()
    assert origin[0] == teacher[0] and origin[1] < teacher[1]
    lowest = min(text.get_position()[1] for name, text in texts.items() if name == "Student without\ndistillation")
    assert origin[1] < lowest
    arrows = [
        sum(isinstance(patch, FancyArrowPatch) for patch in each.axes[0].patches)
        for each in (drawn["pipeline"], figure)
    ]
    assert arrows[1] == arrows[0] + 1
    assert {to_hex(text.get_color()) for text in texts.values() if text.get_fontweight() == "bold"} == {"#222222"}


def test_a_method_is_compared_within_its_task_only(drawn):
    figure = drawn["comparison"]
    assert [axes.get_title() for axes in figure.axes] == ["sst2", "", "", ""]
    labels = [[label.get_text() for label in axes.get_yticklabels()] for axes in (figure.axes[0], figure.axes[2])]
    assert len(labels[0]) == 12 and labels[1] == ["method-0", "method-1"]
    bars = [[patch.get_width() for patch in axes.patches] for axes in (figure.axes[1], figure.axes[3])]
    assert bars[0] == [*range(100, 111), 0] and bars[1] == [900, 901]
    texts = [text.get_text() for text, _ in texts_of(figure)]
    assert "mnli matched" in texts and "mnli mismatched" in texts and texts.count("refused") == 1
    assert not any("mean" in text for text in texts)


def test_clip_paths_are_named_by_their_number_whatever_matplotlib_called_them():
    drawn = b'<g clip-path="url(#%s)"/><g clip-path="url(#%s)"/><clipPath id="%s"/><clipPath id="%s"/><path id="m01"/>'
    one, other = (b"p0123456789", b"pabcdef0123"), (b"pffffffffff", b"p0000000000")
    named = [numbered_clip_paths(drawn % (*names, *names)) for names in (one, other)]
    expected = (b"clip-path-0", b"clip-path-1")
    assert named == [drawn % (*expected, *expected)] * 2


def test_every_clip_path_of_a_saved_figure_is_there(drawn, tmp_path):
    figures.save_figure(drawn["comparison"], tmp_path, "comparison")
    text = (tmp_path / "comparison.svg").read_text()
    used = re.findall(r"url\(#([^)]+)\)", text)
    assert used and set(used) <= set(re.findall(r'<clipPath id="(clip-path-\d+)"', text))


def test_names_are_broken_between_words_only(drawn):
    label = drawn["comparison"].axes[0].get_yticklabels()[10].get_text()
    assert label.count("\n") == 2 and label.replace("\n", " ") == LONG_METHOD
    assert wrapped_name("onnx-int4-gptq-embeddings", 20) == "onnx-int4-gptq-embeddings"
    assert wrapped_name("onnx-int4-gptq-embeddings", 18) == "onnx-int4-gptq-\nembeddings"  # far too long for a line
    assert wrapped_name("Distilled + onnx-int4", 12, "  ") == "Distilled +\n  onnx-int4"


def test_a_label_stands_nearest_to_its_own_marker():
    """The lower marker has no label; left of the upper one there would be room, but nearer to the lower one."""
    figure = new_figure(3)
    axes = figure.add_subplot()
    axes.set(xlim=(0, 1), ylim=(0, 1))
    renderer = FigureCanvasAgg(figure).get_renderer()
    figure.draw(renderer)
    own = axes.transData.transform((0.5, 0.5))
    below = own - (0, 14)
    # Everything above and beside the upper marker is taken up to far away; only lower left is free near it.
    wall = Bbox.from_extents(own[0] - 70, own[1] - 4, own[0] + 70, own[1] + 30)
    points = axes.transData.inverted().transform([own, below])
    extents = {}
    for name, every in (("alone", points[:1]), ("both", points)):
        (label,) = place_labels(axes, [(0.5, 0.5, "4")], [wall], renderer, every)
        label.update_positions(renderer)
        box = matplotlib.text.Text.get_window_extent(label, renderer)
        extents[name] = np.array([(box.x0 + box.x1) / 2, (box.y0 + box.y1) / 2])
    assert extents["alone"][1] < own[1]
    assert np.linalg.norm(extents["both"] - own) < np.linalg.norm(extents["both"] - below)


def test_curves_that_coincide_can_all_be_seen():
    curve = [{"removed": number, "accuracy": 0.9 - 0.1 * number} for number in range(3)]
    names = ("gradient", "magnitude", "leave-one-out", "top")
    scan = scan_results() | {"units": "layers", "total": 3, "curves": dict.fromkeys(names, curve)}
    lines = figures.removal_curves(scan).axes[0].lines
    for part in ("get_linewidth", "get_markersize"):
        sizes = [getattr(line, part)() for line in lines]
        assert sizes == sorted(sizes, reverse=True) and len(set(sizes)) == len(names)
    assert [line.is_dashed() for line in lines] == [False, True, True, True]


def test_models_in_one_place_are_hollow_and_drawn_with_unlike_edges(drawn):
    bubbles = [item for item in drawn["trade"].axes[0].collections if isinstance(item, PathCollection)]
    assert all(len(bubble.get_facecolor()) == 0 for bubble in bubbles)
    dashed = [bubble.get_linestyle()[0][1] is not None for bubble in bubbles]
    assert dashed == sorted(dashed) and any(dashed) and not all(dashed)


def test_missing_pieces_leave_a_note(tmp_path):
    write_chain(tmp_path, leave_out=(COST,))
    frame = tables.summarize(tmp_path)
    shown = [text.get_text() for text, _ in texts_of(figures.accuracy_over_latency(frame))]
    assert len(shown) == 1 and "not measured" in shown[0]
    texts = [text.get_text() for text, _ in texts_of(figures.cost_by_stage(frame))]
    assert not any("latency" in text or "memory" in text or "not measured" in text for text in texts)
    assert {"file (MB)", "stored weights\n(millions)"} <= set(texts)
    texts_of(figures.pipeline_picture(frame))
    empty = tables.summarize(tmp_path / "nothing")
    for draw in (
        figures.accuracy_over_latency,
        figures.accuracy_by_stage,
        figures.cost_by_stage,
        figures.pipeline_picture,
    ):
        assert len(texts_of(draw(empty))) == 1
    for figure in (
        figures.factorial_effects_figure(tables.factorial_effects(tmp_path / "nothing")),
        figures.relation_matrices({}),
        figures.teacher_layer_scan({"minilmv2": scanned_students()["minilmv2"]}),
        figures.objective_loss_curves({"phases": [], "history": []}),
        figures.removal_curves({"units": "layers", "curves": {"top": [{"removed": 0, "accuracy": 1.0}]}}),
        figures.cut_curves({}, {}),
        figures.token_length_histogram([], 8),
        figures.training_curves({"phases": [], "history": [], "evaluations": []}),
    ):
        assert len(texts_of(figure)) == 1


def test_teacher_alone_can_be_drawn(tmp_path):
    write_chain(
        tmp_path,
        leave_out=tuple(key for key in tables.summarize(write_chain(tmp_path / "whole"))["key"] if key != TEACHER),
    )
    frame = tables.summarize(tmp_path)
    for draw in (
        figures.accuracy_over_latency,
        figures.accuracy_by_stage,
        figures.cost_by_stage,
        figures.pipeline_picture,
    ):
        assert texts_of(draw(frame))


def test_a_scan_of_teacher_layers_shows_those_that_differ_in_nothing_else():
    axes = figures.teacher_layer_scan(scanned_students()).axes[0]
    line = axes.containers[0].lines[0]
    assert line.get_xdata().tolist() == [0, 1, 3]
    assert line.get_ydata() == pytest.approx([78, 82, 80])
    assert any(each.get_ydata()[0] == pytest.approx(70) for each in axes.lines if len(set(each.get_ydata())) == 1)


def test_each_phase_has_its_panel_and_each_part_its_curve():
    figure = figures.objective_loss_curves(training(True))
    assert [axes.get_title() for axes in figure.axes] == ["relations", "predictions"]
    assert [line.get_label() for line in figure.axes[0].lines] == ["query-query", "key-key", "value-value"]
    assert [line.get_label() for line in figure.axes[1].lines] == ["loss"]


def test_saved_files_have_the_same_bytes_each_time(tmp_path, summary):
    first = [path.read_bytes() for path in figures.save_figure(figures.cost_by_stage(summary), tmp_path / "a", "cost")]
    with matplotlib.rc_context({"font.size": 20, "svg.hashsalt": "other"}):
        again = figures.save_figure(figures.cost_by_stage(summary), tmp_path / "b", "cost")
    assert [path.name for path in again] == ["cost.svg", "cost.png"]
    assert [path.read_bytes() for path in again] == first
    assert b"<dc:date>" not in first[0]


def test_figures_leave_pyplot_and_settings_alone(summary):
    from matplotlib import pyplot

    before, settings = (
        pyplot.get_fignums(),
        json.dumps({name: str(value) for name, value in matplotlib.rcParams.items()}),
    )
    figure = figures.accuracy_by_stage(summary)
    assert pyplot.get_fignums() == before
    assert json.dumps({name: str(value) for name, value in matplotlib.rcParams.items()}) == settings
    picture, size = figure._repr_png_()
    assert picture.startswith(b"\x89PNG") and size["width"] == 700
    assert size["alt"].startswith("Every model's accuracy with its 95 % interval")


@pytest.mark.parametrize(
    ("value", "text"), [(0.4, "0.400"), (12.0, "12.0"), (190.4, "190"), (1280.0, "1,280"), (0.0475, "0.0475")]
)
def test_three_digits(value, text):
    assert three_digits(value) == text


def test_layers_that_differ_in_number_only_are_one_bar():
    layers = [
        {
            "name": f"bert.encoder.layer.{number}.attention.self.query",
            "kind": "Linear",
            "quantized": True,
            "parameters": 100,
            "bytes_before": 400,
            "bytes_after": 100,
        }
        for number in range(12)
    ]
    figure = figures.quantized_layers(layers)
    assert [label.get_text() for label in figure.axes[0].get_yticklabels()] == ["layer.*.attention.self.query (12x)"]
    widths = [patch.get_width() for patch in figure.axes[0].patches]
    assert widths == pytest.approx([4.8, 1.2])


def test_sensitive_layers_have_a_row_each_or_share_one_in_a_deep_model():
    few, many = (figures.layer_sensitivity(sensitivity(layers)) for layers in (2, 12))
    labels = [label.get_text() for label in few.axes[0].get_yticklabels()]
    assert labels[0] == "0.attention.self.query" and len(labels) == 9 and labels[-1] == "classifier"
    assert [label.get_text() for label in many.axes[0].get_yticklabels()][:2] == [
        "layer.*.attention.self.query",
        "layer.*.attention.output.dense",
    ]
    assert few.axes[0].get_xscale() == "log"


def test_confusion_matrix_shows_counts_and_shares():
    texts = {text.get_text() for text, _ in texts_of(figures.confusion_matrix([[3, 1], [0, 4]], ["no", "yes"]))}
    assert {"3\n75.0 %", "1\n25.0 %", "0\n0.0 %", "4\n100.0 %"} <= texts


def test_many_labels_and_long_sentences_stay_inside():
    wide = figures.relation_matrices(
        {
            "tokens": [f"token{number}" for number in range(40)],
            "models": {
                name: {pair: np.eye(40).tolist() for pair in ("query-query", "key-key", "value-value")}
                for name in ("teacher", "student before", "student after")
            },
        }
    )
    many = figures.label_balance({"train": {f"label {number}": 10 + number for number in range(7)}})
    for figure in (wide, many):
        inside = figure.bbox.padded(1.0)
        for text, box in texts_of(figure):
            if not is_hidden_tick(text, figure):
                assert inside.x0 <= box.x0 and box.x1 <= inside.x1, text.get_text()


def test_uneven_heads_after_a_cut_can_be_drawn():
    figure = figures.importance_heatmaps({"gradient": [[0.1, 0.4, 0.2], [0.3, 0.1]]})
    assert pd.notna(figure.axes[0].get_title())
    assert texts_of(figure)
