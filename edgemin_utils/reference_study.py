"""The reference study: the chains, settings and seeds of `outputs/reference/laptop`, and the run that makes them.

`make reference DATA_DIR=... TEACHER_DIR=...` runs all of it, part by part, and publishes it, then measures and
publishes the paper's numbers. It takes hours on two cores; what is on disk is not run again, so it can be stopped and
taken up at any time.
"""

import argparse
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rich.console import Console

from edgemin_utils.config import project_folder, study_folder
from edgemin_utils.errors import EdgeMINError
from edgemin_utils.reference import publish_study, write_readme
from edgemin_utils.study import run_study
from edgemin_utils.tasks import TASKS

PROFILE = "laptop"


@dataclass(frozen=True)
class Part:
    """Chains of one task with the same settings.

    Attributes:
        task: the task.
        seeds: one chain each.
        settings: what differs from the laptop profile.
    """

    task: str
    seeds: tuple[int, ...]
    settings: Mapping[str, Any] = field(default_factory=dict)


# 10 % of SST-2's train rows, as many of MNLI's and QQP's as the paper's 10 % can be had of in small folders.
_ROWS = {"sst2": 6735, "mnli": 6400, "qqp": 6400}
_RECIPES = ["paper", "proposal", "honest", "edge"]
_CUTS = ["gradient-heads-0.4", "gradient-neurons-0.5-multiple-32", "vocabulary"]
_SST2_CUTS = [
    "magnitude-heads-0.2",
    "gradient-l2-heads-0.2",
    "taylor-heads-0.2",
    "random-heads-0.2",
    *_CUTS[:1],
    "gradient-neurons-0.25-multiple-32",
    *_CUTS[1:2],
    "layers-top-1",
    *_CUTS[2:],
]


def _part(task: str, seeds: tuple[int, ...], **settings: Any) -> Part:
    return Part(task, seeds, {"train_fraction": 1.0, "train_rows": _ROWS[task], **settings})


PARTS: Sequence[Part] = (
    _part(
        "sst2",
        (0,),
        compared_objectives=["all", "none-pretrained"],
        compared_cuts=_SST2_CUTS,
        compared_schemes=["all"],
        recipe=_RECIPES,
    ),
    *(
        _part(
            task,
            (0,),
            compared_objectives=["none", "logits", "tinybert"],
            compared_cuts=_CUTS,
            compared_schemes=["all"],
            recipe=_RECIPES,
            scan_rows=256,
        )
        for task in ("mnli", "qqp")
    ),
    _part("sst2", (1, 2), compared_objectives=["all"]),
    *(_part(task, (1, 2), scan_rows=256, compared_objectives=["none"], factorial=False) for task in ("mnli", "qqp")),
)


def run_reference(
    data_dir: str,
    teacher: str,
    output_dir: str | None = None,
    tasks: Sequence[str] = (),
    seeds: Sequence[int] = (),
    jobs: int = 1,
    console: Console | None = None,
) -> Path:
    """Runs the parts of the reference study that are not on disk yet and returns the study's folder.

    Args:
        data_dir: folder of GLUE's rows.
        teacher: hub id or folder of the teacher's checkpoint.
        output_dir: the study's folder; none means `outputs/laptop`.
        tasks, seeds: only these; empty means all.
        jobs: chains side by side.

    Raises:
        EdgeMINError: a chain failed; the same call takes it up again. Also what `run_study` raises.
    """
    study = study_folder(output_dir, PROFILE)
    for part in PARTS:
        chosen = [seed for seed in part.seeds if not seeds or seed in seeds]
        if not chosen or (tasks and part.task not in tasks):
            continue
        result = run_study(
            PROFILE,
            [part.task],
            chosen,
            {**part.settings, "data_dir": data_dir, "teacher": teacher},
            study,
            jobs,
            console,
        )
        if not result.complete:
            raise EdgeMINError(
                f"the reference study stopped at {part.task}: what failed is shown above; the same "
                "command takes it up again"
            )
    return study


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the reference study, publishes it and prints where it lies."""
    parser = argparse.ArgumentParser(
        prog="python -m edgemin_utils.reference_study",
        description=__doc__.splitlines()[0],
        allow_abbrev=False,
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("--data-dir", required=True, metavar="DIR", help="GLUE's rows, one folder a task")
    parser.add_argument("--teacher", required=True, metavar="ID_OR_DIR", help="the teacher's checkpoint")
    parser.add_argument("--output-dir", metavar="DIR", help="the study's folder (none: outputs/laptop)")
    parser.add_argument("--tasks", nargs="+", choices=tuple(TASKS), default=[], help="only these tasks")
    parser.add_argument("--seeds", nargs="+", type=int, default=[], help="only these seeds")
    parser.add_argument("--jobs", type=int, default=1, help="chains side by side")
    options = parser.parse_args(arguments)
    console = Console()
    try:
        study = run_reference(
            options.data_dir, options.teacher, options.output_dir, options.tasks, options.seeds, options.jobs, console
        )
        destination = publish_study(study, project_folder() / "outputs" / "reference" / study.name)
        write_readme(project_folder() / "README.md", destination)
    except EdgeMINError as error:
        console.print(f"edgemin: {error}", highlight=False, markup=False)
        return 1
    console.print(f"reference results: {destination}", highlight=False)
    return 0


if __name__ == "__main__":
    sys.exit(main())
