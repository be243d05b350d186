"""Figures: what is drawn is what the data say, axes have units, labels can be read and told apart."""

import itertools
import re

import matplotlib
import numpy as np
import pandas as pd
import pytest
from example_study import CUT, PATH, frames_of, scan, write_frames
from matplotlib.figure import Figure

from edgemin_utils.figures import chapters, study, style
from edgemin_utils.results.comparisons import summary

UNITS = re.compile(r"\(|layer|head|token|epoch|loss|claimed|times as fast|masked|ms|relative|student|teacher|^$")
PHASES = (("relations", range(1, 11), "query-query"), ("soft targets", range(11, 16), "labels"))
HISTORY = [{"phase": name, "epoch": n / 5, "loss": 3 / n, part: 1 / n} for name, steps, part in PHASES for n in steps]
TRAINING = {"phases": [{"name": name} for name, *_ in PHASES], "history": HISTORY}
TRAINING["evaluations"] = [{"phase": "soft targets", "epoch": 3.0, "loss": 0.1, "accuracy": 0.875}]
PAIRS = dict.fromkeys(("query-query", "key-key", "value-value"), np.full((4, 4), 0.25).tolist())
STAGES = ("student before", "student after relations", "student after soft targets", "teacher")
RELATIONS = {"tokens": ["[CLS]", "a", "film", "[SEP]"], "models": dict.fromkeys(STAGES, PAIRS)}
PARTS = itertools.product(range(2), ("attention.self.query", "output.dense"), (("int8", 0.001), ("int4", 0.02)))
LAYERS = [(f"bert.encoder.layer.{n}.{part}", form, 0.9 - loss, loss) for n, part, (form, loss) in PARTS]
LAYERS = pd.DataFrame(LAYERS, columns="layer format accuracy divergence".split()).to_dict("records")
SENSITIVITY = {"layers": LAYERS, "accuracy": 0.9, "rows": 256, "split": "hold-out"}


def cut_results(share, accuracy, after):
    dev = {"accuracy": accuracy, "accuracy_low": 0.8, "accuracy_high": 0.95, "rows": 500}
    size, after_cut = {"stored_weights": 1000 - share}, {"dev": {"accuracy": after}}
    return {"size": size, "metrics": {"dev": dev}, "metrics_after_cut": after_cut}


CUTS = {"heads": [cut_results(200, 0.85, 0.7), cut_results(100, 0.88, 0.8)], "layers": [cut_results(500, 0.7, 0.5)]}
BYTES = {"teacher": {"embeddings": 4e6, "attention": 2e6}, "minilmv2+int8": {"embeddings": 2e6, "attention": 1e5}}
WIDTHS = [{"width": width, "input": "1x32", "faster": width / 256} for width in (64, 256, 768)]
CHECKS = [("C1", "parameters", 66.96, *[66.955] * 3), ("C3", "final parameters", 11.94, *[32.18] * 3)]
CHECKS += [("C13", "times as fast", 3, 4.5, 3.6, 6.0), ("C15", "% less power", 60, None, None, None)]
CHECKS = pd.DataFrame(CHECKS, columns="number quantity claimed ours ours_low ours_high".split())
TIMED = [("teacher", 12.0, 4.0, "teacher"), ("minilmv2", 6.0, 3.0, "minilmv2"), ("none", 6.0, 3.0, "minilmv2")]
TIMED = pd.DataFrame(TIMED, columns="model median_ms bound_ms timed_as".split()).assign(input="1x128", threads=1)
frames = frames_of({"sst2": ("dev",), "mnli": ("matched", "mismatched")}, seeds=(0, 1))


@pytest.fixture(scope="module")
def drawn(frames):
    of_data = {chapters.loss_curves: TRAINING, chapters.relation_matrices: RELATIONS, study.claims_figure: CHECKS}
    of_data |= {chapters.importance_heatmaps: scan()["importance"], chapters.removal_curves: [scan()]}
    of_data |= {chapters.bytes_by_part: BYTES, chapters.layer_sensitivity: SENSITIVITY, chapters.width_sweep: WIDTHS}
    of_data |= {study.roofline: {"latency": TIMED.to_dict("records")}}
    of_data |= dict.fromkeys((study.accuracy_over, study.accuracies, study.factorial_interaction), frames)
    figures = {draw.__name__: draw(data) for draw, data in of_data.items()}
    figures |= {"cut_curves": chapters.cut_curves(cut_results(0, 0.9, 0.9), CUTS)}
    return figures | {"sizes": study.accuracy_over(frames, "bytes"), "speed_ups": study.speed_ups(frames, "sst2")}


def test_a_figure_is_saved_twice_and_described(drawn, tmp_path):
    svg, png = style.save_figure(figure := drawn["accuracies"], tmp_path, "accuracies")
    picture, look = figure._repr_png_()
    assert svg.read_bytes().startswith(b"<?xml") and look["alt"] == figure.description
    assert png.read_bytes().startswith(b"\x89PNG") and picture.startswith(b"\x89PNG")


def test_axes_say_their_unit_and_nothing_reaches_out_of_the_picture_or_overlaps(drawn):
    for name, figure in drawn.items():
        assert len(figure.description) > 40 and not figure.is_note, name
        for label in (label for axes in figure.axes for label in (axes.get_xlabel(), axes.get_ylabel())):
            assert UNITS.search(label), (name, label)
        figure.draw_without_rendering()
        used, (width, height) = figure.get_tightbbox(), figure.get_size_inches()
        assert min(used.x0, used.y0) >= -0.05 and used.x1 <= width + 0.05 and used.y1 <= height + 0.05, name
        labels = [label for axes in figure.axes for label in (axes.title, axes.xaxis.label, axes.yaxis.label)]
        boxes = [label.get_window_extent() for label in labels if label.get_text()]
        assert not any(one.overlaps(other) for one, other in itertools.combinations(boxes, 2)), name


def test_colours_come_with_markers_and_drawing_leaves_the_sessions_own_style_alone():
    assert len({tuple(style.look(number).values()) for number in range(21)}) == 21
    with matplotlib.rc_context({"font.size": 23.0, "axes.grid": True}):
        chapters.width_sweep(WIDTHS)
        assert matplotlib.rcParams["font.size"] == 23.0 and matplotlib.rcParams["axes.grid"]


def test_points_of_the_trade_are_the_models_and_numbers_those_of_the_front(drawn, frames):
    figure = drawn["accuracy_over"]
    assert [axes.get_title() for axes in figure.axes] == ["mnli matched (synthetic)", "sst2 (synthetic)"]
    axes = figure.axes[1]
    points = [point for line in axes.get_lines() if line.get_marker() in "*oD^" for point in line.get_xydata()]
    rows = summary(frames).query("task == 'sst2' and accuracy == accuracy")[["ms_128", "accuracy"]]
    assert sorted(np.round(points, 6).tolist()) == sorted(np.round(rows.to_numpy() * [1, 100], 6).tolist())
    listed = next(text.get_text() for text in axes.texts if "\n" in text.get_text())
    assert listed.splitlines()[0] == "1  teacher" and f"minilmv2+{CUT}+int8" in listed


def test_intervals_of_accuracies_are_the_tables(drawn, frames):
    first, axes = drawn["accuracies"].axes
    assert [label.get_text() for label in first.get_yticklabels()] == list(PATH)
    row = summary(frames).query("task == 'sst2' and model == 'minilmv2'").iloc[0]
    ends = [np.sort(segment[:, 0]) for each in axes.collections for segment in each.get_segments()]
    assert any(np.allclose(each, 100 * row[["accuracy_low", "accuracy_high"]].astype(float)) for each in ends)


def test_speed_ups_are_written_beside_their_bars_and_the_roofline_draws_timed_models_alone(drawn):
    texts = [text.get_text() for text in drawn["speed_ups"].axes[0].texts]
    assert texts[0] == "" and texts[-1].startswith("5.00x [")
    axes = drawn["roofline"].axes[0]
    assert [label.get_text() for label in axes.get_yticklabels()] == ["teacher", "minilmv2"]
    assert [text.get_text().strip() for text in axes.texts] == ["3.0x", "2.0x"]


def test_claims_are_shares_of_what_was_claimed(drawn):
    axes = drawn["claims_figure"].axes[0]
    assert [label.get_text()[:3] for label in axes.get_yticklabels()] == ["C1 ", "C3 ", "C13"]  # power was not measured
    ours = next(line for line in axes.get_lines() if line.get_marker() == "o")
    np.testing.assert_allclose(np.asarray(ours.get_xdata(), float), [66.955 / 66.96, 32.18 / 11.94, 1.5])


def test_cuts_are_joined_in_order_of_size(drawn):
    lines = [line for line in drawn["cut_curves"].axes[0].get_lines() if line.get_label() == "heads"]
    np.testing.assert_allclose(lines[0].get_xydata(), [[10, 88], [20, 85]])


def test_loss_curves_show_parts_and_the_hold_out(drawn):
    first, second = drawn["loss_curves"].axes
    assert first.get_ylabel() == "KL divergence (nats)" and second.get_ylabel() == "loss"
    assert [text.get_text() for text in second.texts] == ["87.5 %"]


def test_relations_have_a_row_a_model_and_one_scale(drawn):
    *panels, _ = drawn["relation_matrices"].axes
    assert len(panels) == 12 and len({axes.collections[0].get_clim() for axes in panels}) == 1
    assert [axes.get_ylabel() for axes in panels[::3]] == list(RELATIONS["models"])
    assert [axes.get_title() for axes in panels[:4]] == ["query-query", "key-key", "value-value", ""]


def test_many_layers_share_rows():
    every = [(number, row) for number in range(20) for row in SENSITIVITY["layers"]]
    layers = [{**row, "layer": row["layer"].replace(".1.", f".{number}.")} for number, row in every]
    axes = chapters.layer_sensitivity({**SENSITIVITY, "layers": layers}).axes[0]
    assert {label.get_text() for label in axes.get_yticklabels()} == {"*.attention.self.query", "*.output.dense"}


def test_where_there_is_nothing_to_draw_a_note_says_so(tmp_path):
    frames = write_frames(tmp_path / "study", seeds=(0,), models=("teacher", "none"), timed=False)
    notes = [study.accuracy_over(frames), study.factorial_interaction(frames), study.speed_ups(frames, "sst2")]
    notes += [study.roofline({}), chapters.relation_matrices({}), chapters.removal_curves([])]
    notes += [chapters.loss_curves({"history": [], "phases": []}), chapters.layer_sensitivity({"layers": []})]
    assert all(note.is_note and isinstance(note, Figure) and note.description for note in notes)
    written = study.write_figures(frames, tmp_path / "figures")
    assert {path.stem for path in written} == {"accuracies", "accuracy_over_size"}
