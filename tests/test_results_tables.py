"""Tables: what they select, and how they are shown, written and printed."""

import re
from dataclasses import replace

import pandas as pd
import pytest
from example_study import CUT, MODELS, PATH, REFUSED, frames_of, write_frames

from edgemin_utils.errors import SettingError
from edgemin_utils.results import table as one_table
from edgemin_utils.results import tables
from edgemin_utils.results.tables import recommend_models

frames = frames_of({"sst2": ("dev",), "mnli": ("matched", "mismatched")}, worse=-2)


def test_the_headline_is_six_rows_a_task_on_its_main_split(frames):
    table = tables.headline(frames)
    assert table.groupby("label").size().to_dict() == {"mnli matched (synthetic)": 6, "sst2 (synthetic)": 6}
    rows = table[table["label"] == "sst2 (synthetic)"]
    assert tuple(rows["model"][:5]) == PATH
    assert rows["what"].tolist()[:3] == ["teacher", "student, not distilled", "student, distilled"]
    # minilmv2 now fails where the teacher does and nowhere else; quantized by ONNX it is the smallest such model.
    last = rows.iloc[5]
    # Forty rows that agree say less than that: by the rule of three up to 3 in 40 may differ.
    shown = ["smallest that keeps 98 %", "minilmv2+onnx-int8", "undecided"]
    assert last[["what", "model", "verdict"]].tolist() == shown
    assert last["kept"] == 1 and last["kept_low"] == pytest.approx(1 - 3 / 40)
    assert rows["verdict"].tolist()[:3] == ["", "worse", "better"]
    assert rows["faster"].tolist()[1:5] == pytest.approx([2, 2, 2.5, 5])


def test_a_shorter_study_has_as_much_of_the_path_as_it_made(tmp_path):
    models = ("teacher", "minilmv2", f"minilmv2+{CUT}", "minilmv2+uncut")
    frames = write_frames(tmp_path / "short", seeds=(0,), models=models, timed=False)
    assert list(tables.path_of(frames, "sst2").values()) == [*models[:3]]
    assert "Times faster" not in one_table.readable(tables.headline(frames))


def test_every_table_has_rows_and_names_synthetic_data(frames):
    assert len(tables.TABLES) <= 10
    for name, (title, table) in tables.TABLES.items():
        assert len(frame := table(frames)) and title, name
        assert frame["label"].str.endswith("(synthetic)").all(), name


def test_every_model_and_split_stands_in_the_long_table_with_its_refusal(frames):
    table = tables.selection(frames, "models")
    assert len(table) == len(MODELS) * 3 + 2
    refused = table[table["model"] == REFUSED]
    assert refused["refused"].str.contains("equal heads").all() and refused["accuracy"].isna().all()
    assert [*dict.fromkeys(tables.selection(frames, "objectives")["model"])] == ["none", "minilmv2", REFUSED]
    cuts = set(tables.selection(frames, "cuts")["model"])
    assert cuts == {name for name in MODELS if name.endswith(("+uncut", f"+{CUT}"))}
    assert set(tables.budgets(frames)["at_least"]) == {0.99, 0.98, 0.95}
    assert tables.selection(frames, "schemes")["compared_with"].isin([*MODELS]).all()


def test_sizes_and_costs_are_in_their_units(frames):
    table = tables.selection(frames, "sizes").query("label == 'sst2 (synthetic)'").set_index("model", drop=False)
    row = one_table.readable(table.loc[[f"minilmv2+{CUT}+int8"]]).iloc[0]
    assert (row["Weights"], row["Weights listed"], row["MB"], row["MiB"]) == ("400,000", "200,000", "0.40", "0.38")
    assert row["Times smaller"] == "10.00"
    cells = one_table.readable(tables.selection(frames, "costs"))
    assert {"MMACs 1x128", "ms 1x128", "Times faster", "Memory (MB)"} <= set(cells)
    assert "Noise" not in cells  # nothing was noisy, so the column is left out


def test_cells_have_units_intervals_and_signs():
    frame = pd.DataFrame({"accuracy": [0.85], "accuracy_low": [0.8], "accuracy_high": [0.9], "difference": [0.0123]})
    cells = one_table.readable(frame.assign(parameters=12345, p=0.0004, refused="", seeds=3))
    assert list(cells) == ["Accuracy %", "Difference (points)", "Weights", "p (Holm)", "Seeds"]
    assert cells.iloc[0].tolist() == ["85.0 [80.0, 90.0]", "+1.2", "12,345", "0.000", "3"]
    zero = pd.DataFrame({"difference": [-1e-9, None], "difference_low": [-0.01, None], "difference_high": [0.01, None]})
    assert one_table.readable(zero).iloc[:, 0].tolist() == ["0.0 [-1.0, +1.0]", ""]


def test_a_table_is_written_as_csv_md_and_tex(tmp_path):
    frame = pd.DataFrame({"model": ["a|b", "50_%"], "accuracy": [0.123456789, 0.5]})
    paths = one_table.write_table(frame, tmp_path, "small", "A small table")
    assert [path.name for path in paths] == ["small.csv", "small.md", "small.tex"]
    assert pd.read_csv(paths[0])["accuracy"].tolist() == pytest.approx([0.123457, 0.5])
    markdown, latex = (path.read_text() for path in paths[1:])
    assert markdown.startswith("## A small table\n\n|") and r"a\|b" in markdown and "12.3" in markdown
    assert r"\toprule" in latex and r"Accuracy \%" in latex and r"50\_\%" in latex and r"\begin{tabular}{lr}" in latex


def test_notebooks_show_text_left_numbers_right_and_no_index():
    page = one_table.show(pd.DataFrame({"model": ["a<b>"], "accuracy": [0.5]})).to_html()
    assert "&lt;b&gt;" in page and "50.0" in page and "row0_col0" in page
    assert "text-align: right" in page and "text-align: left" in page and "level0_row0" not in page


def test_a_study_ends_with_few_rows_on_a_terminal_and_how_to_read_them(frames):
    *tasks, reading = tables.terminal_table(frames.study).split("\n\n")
    assert len(tasks) == 2 and "made from" in reading
    for lines in (task.splitlines() for task in tasks):
        assert len(lines) - 3 <= 12 and max(map(len, lines)) <= 118
        assert re.search(r"minilmv2\+heads-0.2\+int8 +\d\d\.\d \[", "\n".join(lines))


def test_a_teacher_at_chance_is_said_beside_what_is_kept_of_it(frames):
    assert not tables.cautions(frames)
    rows = frames.predictions.assign(prediction=frames.predictions["label"].mode()[0])
    guessed = replace(frames, predictions=rows)
    assert tables.verdicts(guessed)[-2:] == tables.cautions(guessed)
    assert all(said.startswith("ATTENTION: the teacher on") for said in tables.cautions(guessed))


def test_limits_leave_what_keeps_them_all_and_the_commands_follow(frames):
    def rows_of(text):
        return [line.split()[0] for line in text.splitlines() if "  " in line and line.split()[0] in MODELS]

    study = frames.study
    text, fits = recommend_models(study, "sst2", max_mb=0.6, min_accuracy=70)
    assert fits and text.startswith(f"sst2 (synthetic): 3 of {len(frames.models('sst2')) - 1} models fit\n")
    assert rows_of(text) == ["minilmv2+onnx-int8", f"minilmv2+{CUT}+int8"]
    assert "90.0 [" in text and "0.50" in text and f"bundle {study}/sst2/seed-0/minilmv2 --output" in text
    assert "mnli matched (synthetic): 12 of 12" in recommend_models(study)[0]
    # Of 0.4 MB at 82.5 % (33 % over, 8 % under) and 0.5 MB at 90 % (67 % over) the first is nearer.
    text, fits = recommend_models(study, "sst2", max_mb=0.3, min_accuracy=90)
    assert not fits and "nothing fits; the nearest is" in text and rows_of(text) == [f"minilmv2+{CUT}+int8"]
    # Latency counts at the length that is asked for.
    said = [recommend_models(study, "sst2", None, 1.0, None, length) for length in (32, 128)]
    assert [fits for _, fits in said] == [True, False]


def test_the_command_names_the_float_model_and_its_bits(frames):
    folder, bits = f"{frames.study}/sst2/seed-0/minilmv2+{CUT}", {"+onnx-int4-gptq": " --scheme edge-int4"}
    bits |= {"": "", "+int8": "", "+edge-int8-int4": " --scheme edge-int8-int4"}
    for scheme, options in bits.items():
        command = tables.bundle_command(frames, "sst2", f"minilmv2+{CUT}{scheme}")
        assert command == f"edgemin bundle {folder} --output bundles/sst2-minilmv2+{CUT}{options}"


def test_what_cannot_be_asked_is_refused_in_a_sentence(frames):
    refused = {"limit of 0": {"max_mb": 0}, "limit of inf": {"max_ms": float("inf")}, "percent": {"min_accuracy": 0.9}}
    for message, asked in {**refused, "did you mean 'sst2'": {"task": "sst"}, "32 and 128": {"length": 64}}.items():
        with pytest.raises(SettingError, match=message):
            recommend_models(frames.study, **asked)


def test_where_nothing_was_timed_files_can_be_asked_for(tmp_path):
    untimed = write_frames(tmp_path / "untimed", seeds=(0,), models=("teacher", "minilmv2"), timed=False).study
    with pytest.raises(SettingError, match="05_analysis"):
        recommend_models(untimed, max_ms=5)
    assert "1 of 2 models fit" in recommend_models(untimed, max_mb=3)[0]
