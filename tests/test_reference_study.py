"""The reference study: every part can be planned, and the run picks, resumes and stops as it says."""

import json

import pytest

from edgemin_utils import reference_study
from edgemin_utils.chain import plan_chain
from edgemin_utils.config import changed_from_profile, load_settings, project_folder
from edgemin_utils.errors import EdgeMINError
from edgemin_utils.records import CHAIN_FILE
from edgemin_utils.reference import chain_commands, fill_marked_place, results_place, results_section
from edgemin_utils.reference_study import PARTS, PROFILE, run_reference
from edgemin_utils.tasks import TASKS


@pytest.mark.parametrize("part", PARTS, ids=lambda part: f"{part.study}-{part.task}-{'-'.join(map(str, part.seeds))}")
def test_every_part_can_be_planned(part):
    plan = plan_chain(load_settings(PROFILE, part.settings))
    assert {"teacher/fine-tuned", "distillation/minilmv2", "distillation/none"} <= set(plan)
    assert ("measurement/cost" in plan) == (part.study == PROFILE and 0 in part.seeds)  # the others' shapes are theirs


def test_parts_share_no_chain_and_cover_every_task():
    chains = [(part.study, part.task, seed) for part in PARTS for seed in part.seeds]
    assert len(chains) == len(set(chains))
    assert {task for study, task, _ in chains if study == PROFILE} == set(TASKS)
    for task in TASKS:
        assert {seed for study, name, seed in chains if (study, name) == (PROFILE, task)} == {0, 1, 2}


def test_what_is_published_is_what_the_parts_make(tmp_path):
    """The commands beside the published records are those of the parts, chain for chain."""
    expected = {}
    for part in PARTS:
        overrides = changed_from_profile(load_settings(PROFILE, {**part.settings, "data_dir": "/d", "teacher": "/t"}))
        for seed in part.seeds:
            folder = tmp_path / part.study / part.task / f"seed-{seed}"
            folder.mkdir(parents=True)
            (folder / CHAIN_FILE).write_text(json.dumps({"profile": PROFILE, "overrides": overrides}))
            expected.setdefault(part.study, []).append(folder)
    for study, folders in expected.items():
        commands = {frozenset(command.split()) for command in chain_commands(folders)}
        text = (project_folder() / "outputs" / "reference" / study / "README.md").read_text()
        published = {frozenset(line.split()) for line in text.splitlines() if line.startswith("    edgemin run ")}
        assert published == commands


@pytest.mark.parametrize("study", sorted({part.study for part in PARTS}))
def test_the_readme_says_what_the_published_records_say(study):
    folder, text = project_folder() / "outputs" / "reference" / study, (project_folder() / "README.md").read_text()
    assert fill_marked_place(text, results_place(folder), results_section(folder)) == text


class Result:
    def __init__(self, complete):
        self.complete = complete


def test_only_what_is_asked_for_runs(monkeypatch, tmp_path):
    asked = []
    monkeypatch.setattr(
        reference_study,
        "run_study",
        lambda profile, tasks, seeds, settings, study, jobs, console, analysis: (
            asked.append((tasks, seeds, settings["data_dir"], study, analysis)) or Result(True)
        ),
    )
    assert run_reference("rows", "weights", tmp_path, tasks=["mnli"], seeds=[1]) == [tmp_path / "laptop"]
    chain = (["mnli"], [1], "rows", tmp_path / "laptop")
    assert asked == [(*chain, False), (*chain, True)]
    asked.clear()
    run_reference("rows", "weights", tmp_path, tasks=["mnli", "qqp"])
    assert [analysis for *_, analysis in asked] == [False] * 4 + [True] and asked[-1][:2] == (["mnli"], [0])
    studies = run_reference("rows", "weights", tmp_path, tasks=["sst2"], seeds=[0])
    assert studies == [tmp_path / "laptop", tmp_path / "laptop-13470-rows"]


def test_a_failed_part_stops_the_rest_and_is_named(monkeypatch, tmp_path):
    asked = []
    monkeypatch.setattr(reference_study, "run_study", lambda *given, **more: asked.append(given) or Result(False))
    with pytest.raises(EdgeMINError, match=f"stopped at {PARTS[0].task}.*takes it up again"):
        run_reference("rows", "weights", tmp_path)
    assert len(asked) == 1
