"""The reference study: every part can be planned, and the run picks, resumes and stops as it says."""

import pytest

from edgemin_utils import reference_study
from edgemin_utils.chain import plan_chain
from edgemin_utils.config import load_settings
from edgemin_utils.errors import EdgeMINError
from edgemin_utils.reference_study import PARTS, PROFILE, run_reference


@pytest.mark.parametrize("part", PARTS, ids=lambda part: f"{part.task}-{'-'.join(map(str, part.seeds))}")
def test_every_part_can_be_planned(part):
    plan = plan_chain(load_settings(PROFILE, part.settings))
    assert {"teacher/fine-tuned", "distillation/minilmv2", "distillation/none", "measurement/cost"} <= set(plan)


def test_parts_share_no_chain_and_cover_three_seeds_of_every_task():
    chains = [(part.task, seed) for part in PARTS for seed in part.seeds]
    assert len(chains) == len(set(chains))
    assert {task: sorted(seed for other, seed in chains if other == task) for task, _ in chains} == {
        "sst2": [0, 1, 2],
        "mnli": [0, 1, 2],
        "qqp": [0, 1, 2],
    }


class Result:
    def __init__(self, complete):
        self.complete = complete


def test_only_what_is_asked_for_runs(monkeypatch, tmp_path):
    asked = []
    monkeypatch.setattr(
        reference_study,
        "run_study",
        lambda profile, tasks, seeds, settings, study, jobs, console: (
            asked.append((tasks, seeds, settings["data_dir"], study)) or Result(True)
        ),
    )
    assert run_reference("rows", "weights", tmp_path, tasks=["qqp"], seeds=[0, 2]) == tmp_path
    assert asked == [(["qqp"], [0], "rows", tmp_path), (["qqp"], [2], "rows", tmp_path)]


def test_a_failed_part_stops_the_rest_and_is_named(monkeypatch, tmp_path):
    asked = []
    monkeypatch.setattr(reference_study, "run_study", lambda *given: asked.append(given) or Result(False))
    with pytest.raises(EdgeMINError, match=f"stopped at {PARTS[0].task}.*takes it up again"):
        run_reference("rows", "weights", tmp_path)
    assert len(asked) == 1
