import errno
import json
import re
from pathlib import Path

import pandas as pd
import pytest
from conftest import write_notebook
from example_study import COST, TEACHER, write_chain

from edgemin_utils import reference
from edgemin_utils.errors import StageError, StorageError
from edgemin_utils.records import find_records, open_chain, write_json
from edgemin_utils.reference import (
    chain_commands,
    fill_marked_place,
    publish_study,
    require_marked_place,
    results_place,
    results_section,
    write_readme,
)
from edgemin_utils.report import write_report


@pytest.fixture
def study(tmp_path):
    folder = tmp_path / "laptop"
    write_chain(folder)
    return folder


def test_published_study_has_the_records_and_no_weights(study, tmp_path):
    weights = next(study.rglob("record.json")).parent / "model.safetensors"
    weights.write_bytes(b"weights")
    write_json(study / "sst2" / "seed-0" / "chain.json", {"profile": "laptop", "overrides": {}})
    published = publish_study(study, tmp_path / "reference" / "laptop")
    assert [record.content for record in find_records(published)] == [record.content for record in find_records(study)]
    assert not list(published.rglob("*.safetensors"))
    text = (published / "README.md").read_text()
    assert "edgemin run --profile laptop --tasks sst2 --seeds 0\n" in text and TEACHER in text and COST in text
    predictions = pd.read_csv(next(published.rglob("predictions-*.csv")))
    assert list(predictions) == ["row", "label", "prediction"]


def test_the_report_drawn_again_from_published_records_is_the_same(study, tmp_path):
    published = publish_study(study, tmp_path / "laptop-reference")
    before = {path.relative_to(published): path.read_bytes() for path in (published / "report").rglob("*.*")}
    write_report(published)
    after = {path.relative_to(published): path.read_bytes() for path in (published / "report").rglob("*.*")}
    assert before == after and any(path.suffix == ".svg" for path in before)


def test_executed_notebooks_of_one_chain_go_along_and_name_no_folder_of_ones_own(study, tmp_path):
    own = tmp_path / "my rows"
    write_json(study / "sst2" / "seed-0" / "chain.json", {"profile": "laptop", "overrides": {"data_dir": str(own)}})
    code = f"output_dir = {str(study)!r}\noverrides = {{'data_dir': {str(own)!r}}}"
    for folder in (study, study / "sst2" / "seed-0", study / "qqp" / "seed-0"):
        path = folder / "notebooks" / "05_analysis.ipynb"
        write_notebook(path, code)
        executed = json.loads(path.read_text())
        executed["metadata"]["papermill"] = {"input_path": str(tmp_path / "another clone" / "05_analysis.ipynb")}
        path.write_text(json.dumps(executed))
    published = publish_study(study, tmp_path / "reference" / "laptop")
    found = sorted(path.relative_to(published) for path in published.rglob("*.ipynb"))
    assert found == [Path("qqp/seed-0/notebooks/05_analysis.ipynb")]
    for path in (*published.rglob("*.ipynb"), published / "report" / "report.html"):
        text = path.read_text()
        assert str(tmp_path) not in text and "outputs/laptop" in text and "DATA_DIR" in text
    small = publish_study(study, tmp_path / "small" / "laptop", pages=False)
    assert not list(small.rglob("*.ipynb")) and not list(small.rglob("*.html"))
    before = (published / "report" / "report.html").read_bytes()
    write_report(published)
    assert (published / "report" / "report.html").read_bytes() == before


def test_links_between_published_chapters_lead_to_where_they_lie(study, tmp_path):
    chapters = study / "sst2" / "seed-0" / "notebooks"
    for folder, name in ((study / "notebooks", "05_analysis"), (chapters, "01_teacher"), (chapters, "02_distillation")):
        code = "# [1](01_teacher.ipynb) [2](02_distillation.ipynb) [5](05_analysis.ipynb)"
        write_notebook(folder / f"{name}.ipynb", code)
    published = publish_study(study, tmp_path / "reference" / "laptop")
    chapter = (published / "sst2" / "seed-0" / "notebooks" / "01_teacher.ipynb").read_text()
    report = (published / "report" / "report.html").read_text()
    for place, links in (
        (published / "sst2" / "seed-0" / "notebooks", re.findall(r"\[\d\]\((.*?)\)", chapter)),
        (published / "report", [link for link in re.findall(r"\[\d\]\((.*?)\)", report) if "analysis" not in link]),
    ):
        assert len(links) > 1 and all((place / link).resolve().is_file() for link in links)


def test_publishing_again_leaves_nothing_old(study, tmp_path):
    destination = tmp_path / "reference"
    publish_study(study, destination)
    (destination / "old.txt").write_text("old")
    publish_study(study, destination)
    assert not (destination / "old.txt").exists()


@pytest.mark.parametrize("written", ["records", "page"])
def test_a_full_disk_while_publishing_is_one_sentence_and_keeps_what_was_published(
    study, tmp_path, monkeypatch, written
):
    published = publish_study(study, tmp_path / "reference" / "laptop")
    before = sorted(published.rglob("*"))

    def full(*_given):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(reference, {"records": "_copy_record", "page": "_describe"}[written], full)
    with pytest.raises(StorageError, match="is full"):
        publish_study(study, published)
    assert sorted(published.rglob("*")) == before and not list(tmp_path.glob("reference/.*"))


def test_a_study_without_records_is_refused(tmp_path):
    with pytest.raises(StageError, match="holds no records"):
        publish_study(tmp_path / "study", tmp_path / "reference")


def test_commands_name_no_folder_of_ones_own_and_join_seeds_of_the_same_settings(tmp_path):
    overrides = {
        "data_source": "folder",
        "data_dir": str(tmp_path),
        "teacher": str(tmp_path),
        "student": "prajjwal1/bert-tiny",
        "train_rows": 9,
        "compared_objectives": ["none"],
    }
    folders = [tmp_path / "laptop" / "qqp" / f"seed-{seed}" for seed in range(3)]
    for folder, rows in zip(folders, (9, 8, 9), strict=True):
        folder.mkdir(parents=True)
        write_json(folder / "chain.json", {"profile": "laptop", "overrides": {**overrides, "train_rows": rows}})
    assert chain_commands(folders) == [
        f"edgemin run --profile laptop --tasks qqp --seeds {seeds} --data-dir DATA_DIR --teacher TEACHER_DIR "
        f"--student prajjwal1/bert-tiny --set train_rows={rows} --set compared_objectives=none"
        for seeds, rows in (("0 2", 9), ("1", 8))
    ]


def test_a_commands_paths_are_words_and_its_source_of_rows_is_said(tmp_path):
    folders = []
    for task, overrides in (
        ("sst2", {"data_source": "hub", "max_length": 64}),
        ("own", {"data_source": "file", "task_file": "/own/rows.csv", "assistant": "/own/model", "transfer_rows": 3}),
    ):
        folders.append(tmp_path / "study" / task / "seed-0")
        folders[-1].mkdir(parents=True)
        write_json(folders[-1] / "chain.json", {"profile": "demo", "overrides": overrides})
    assert chain_commands(folders) == [
        "edgemin run --profile demo --tasks sst2 --seeds 0 --set data_source=hub --set max_length=64",
        "edgemin run --profile demo --tasks own --seeds 0 --task-file TASK_FILE --set assistant=ASSISTANT_DIR --set "
        "transfer_rows=3",
    ]


@pytest.mark.parametrize("place", ["", "inside", ".."])
def test_a_study_is_not_published_over_itself(study, place):
    before = sorted(study.rglob("*"))
    with pytest.raises(StageError, match="cannot be published to .*--output-dir"):
        publish_study(study, study / place)
    assert sorted(study.rglob("*")) == before


def test_readme_gets_numbers_only_between_its_marks(study, tmp_path):
    readme = tmp_path / "README.md"
    readme.write_text("before\n<!-- laptop results -->\nstale numbers\n<!-- end of laptop results -->\nafter\n")
    write_readme(readme, study)
    text = readme.read_text()
    assert text.startswith("before\n") and text.endswith("\nafter\n") and "stale numbers" not in text
    assert (
        results_section(study).removeprefix("#").replace("\n##", "\n#").rstrip() in text
    )  # no heading above the place
    write_readme(readme, study)
    assert readme.read_text() == text
    accuracy = next(record for record in find_records(study) if record.key == TEACHER)
    split = next(iter(accuracy.results["metrics"].values()))
    assert f"{100 * split['accuracy']:.1f}" in text
    with pytest.raises(StageError, match="no place marked <!-- demo results -->"):
        fill_marked_place(text, "demo results", "x")


def test_headings_stand_one_level_under_the_one_above_their_place():
    text = "# Title\n\n## Chapter\n\n<!-- x -->\nold\n<!-- end of x -->\n\n## Next\n"
    filled = fill_marked_place(text, "x", "## Table\n\n| # |\n\n### Notes\n#no heading\n")
    assert filled == text.replace("old", "### Table\n\n| # |\n\n#### Notes\n#no heading")
    assert fill_marked_place(filled, "x", "plain") == text.replace("old", "plain")


def test_nothing_is_published_that_the_readme_has_no_place_for(tmp_path):
    readme = tmp_path / "README.md"
    readme.write_text("<!-- laptop results -->\n<!-- end of laptop results -->\n")
    require_marked_place(readme, results_place(tmp_path / "laptop"))
    with pytest.raises(StageError, match="no place marked <!-- demo results -->"):
        require_marked_place(readme, results_place(tmp_path / "demo"))


def test_the_readme_of_a_study_says_what_was_kept_and_what_was_not_run(study, tmp_path):
    chain = next(study.glob("*/seed-*/teacher")).parent

    def described(**overrides):
        asked = {"teacher": str(tmp_path / "some-checkpoint"), **overrides}
        write_json(chain / "chain.json", {"profile": "laptop", "overrides": asked})
        return (publish_study(study, tmp_path / "reference" / "laptop") / "README.md").read_text()

    not_run = f"not run: {chain.parent.name}, {chain.name}: "
    text = described()
    assert "TEACHER_DIR was a folder with the checkpoint `some-checkpoint`." in text and "measurement (1)" not in text
    assert "Revision" in text and ("raw latencies" in text) == any(study.rglob("latency.npz"))
    for path in chain.glob("*/*/record.json"):
        if path.parts[-3] in ("distillation", "measurement"):
            path.unlink()
    text, planned = described(), [stage.kind for stage in open_chain(chain).plan.values()]
    assert f"{not_run}distillation ({planned.count('distillation')})" in text and "teacher (" not in text
    assert "measurement (1)" in text
    assert "measurement (1)" not in described(latency_protocol="none")


def test_a_chain_with_all_its_stages_is_not_said_to_lack_any(study):
    write_json(study / "sst2" / "seed-0" / "chain.json", {"profile": "demo", "overrides": {}})
    chain = open_chain(study / "sst2" / "seed-0")
    for key in chain.plan:
        (study / "sst2" / "seed-0" / key).mkdir(parents=True, exist_ok=True)
        (study / "sst2" / "seed-0" / key / "record.json").touch()
    assert reference._not_run([study / "sst2" / "seed-0" / "chain.json"]) == []
