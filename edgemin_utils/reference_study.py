"""The reference study: the chains, settings and seeds behind `outputs/reference`, and the run that makes them.

`make reference DATA_DIR=... TEACHER_DIR=...` runs all of it, part by part, builds the bundles of `recipe=edge`,
publishes the studies and the bundles; then come the settings search, the paper's numbers and the page on scale. It
takes hours on two cores; what is on disk is not run again, so it can be stopped and taken up at any time.
"""

import argparse
import shutil
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rich.console import Console

from edgemin_utils.chain import RECIPES
from edgemin_utils.config import project_folder
from edgemin_utils.errors import EdgeMINError
from edgemin_utils.records import find_records
from edgemin_utils.reference import publish_study, refuse_overlap, write_readme
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
        study: name of the study that they belong to, and of its folder.
    """

    task: str
    seeds: tuple[int, ...]
    settings: Mapping[str, Any] = field(default_factory=dict)
    study: str = PROFILE


# 10 % of SST-2's train rows, as many of MNLI's and QQP's as the paper's 10 % can be had of in small folders.
_ROWS = {"sst2": 6735, "mnli": 6400, "qqp": 6400}
# Set beside edge: what is usually done to a model that is to be small, and the same recipe with plain rounding.
_WHOLE_TEACHER = "teacher+quantize:onnx-dynamic-int8-embeddings"
_ROUNDED = "teacher+prune:vocabulary-all-rows-most-12000-without-recovery+quantize:onnx-int4-embeddings"
_RECIPES = ["proposal", "honest", "edge", _ROUNDED, _WHOLE_TEACHER]
# The same steps in two orders (relations need head counts that fit, so the cut is one of neurons), and a third.
_ORDERS = [
    "distill+prune:gradient-neurons-0.5-multiple-32+quantize",
    "prune:gradient-neurons-0.5-multiple-32+distill+quantize",
    "distill+quantize-aware+quantize",
]
# Beside MiniLMv2: no distillation, and what gained most on SST-2.
_OBJECTIVES = ["none", "mlkd", "tinybert"]
_CUTS = ["gradient-heads-0.4", "gradient-neurons-0.5-multiple-32"]
_SST2_CUTS = [
    "magnitude-heads-0.2",
    "gradient-l2-heads-0.2",
    "taylor-heads-0.2",
    "random-heads-0.2",
    *_CUTS[:1],
    "gradient-neurons-0.25-multiple-32",
    *_CUTS[1:],
    "layers-top-1",
    "vocabulary",
]
_UNTIMED: Mapping[str, Any] = {"scan_rows": 32, "random_draws": 1, "latency_protocol": "none"}
# The curves are drawn for seed 0, and its models are timed, which have the shapes of the other seeds'.
_FURTHER_SEED: Mapping[str, Any] = {**_UNTIMED, "sensitivity_rows": 32}
# Timed by the full protocol with one thread: about thirty models, twenty minutes of an idle machine.
_TIMED: Mapping[str, Any] = {"latency_threads": [1], "memory_runs": 2}
# The other tasks' models have the shapes of SST-2's; a look at their times is enough.
_QUICK: Mapping[str, Any] = {"latency_protocol": "quick", "latency_threads": [1], "memory_runs": 1}


def _part(task: str, seeds: tuple[int, ...], rows: int | None = None, study: str = PROFILE, **settings: Any) -> Part:
    return Part(task, seeds, {"train_fraction": 1.0, "train_rows": rows or _ROWS[task], **settings}, study)


PARTS: Sequence[Part] = (
    *(
        _part(
            "sst2",
            seeds,
            compared_objectives=["all", "none-pretrained"],
            compared_cuts=_SST2_CUTS,
            compared_schemes=["all"],
            recipe=[*_RECIPES, *_ORDERS],
            **costs,
        )
        for seeds, costs in (((0,), _TIMED), ((1, 2), _FURTHER_SEED))
    ),
    *(
        _part(
            task,
            (0,),
            compared_objectives=_OBJECTIVES,
            compared_cuts=[*_CUTS, "vocabulary"],
            compared_schemes=["all"],
            recipe=_RECIPES,
            scan_rows=256,
            **_QUICK,
        )
        for task in ("mnli", "qqp")
    ),
    *(
        _part(task, (1, 2), compared_objectives=_OBJECTIVES, recipe=_RECIPES, **_FURTHER_SEED)
        for task in ("mnli", "qqp")
    ),
    _part("sst2", (0, 1, 2), 13_470, "laptop-13470-rows", compared_objectives=["none"], **_UNTIMED),
)


def run_reference(
    data_dir: str,
    teacher: str,
    output_dir: Path,
    tasks: Sequence[str] = (),
    seeds: Sequence[int] = (),
    jobs: int = 1,
    console: Console | None = None,
) -> list[Path]:
    """Runs the parts of the reference study that are not on disk yet.

    Args:
        data_dir: folder of GLUE's rows.
        teacher: hub id or folder of the teacher's checkpoint.
        output_dir: folder that the studies' folders lie in.
        tasks, seeds: only these; empty means all.
        jobs: chains side by side.

    Returns:
        the folders of the studies that parts were run of.

    Raises:
        EdgeMINError: a chain failed; the same call takes it up again. Also what `run_study` raises.
    """
    chosen = [
        (part, numbers)
        for part in PARTS
        if not tasks or part.task in tasks
        if (numbers := [seed for seed in part.seeds if not seeds or seed in seeds])
    ]
    # A study's parts are analysed together, once all are there; the details drawn are those of its first chain.
    first = dict[str, tuple[Part, list[int]]]()
    for part, numbers in chosen:
        first.setdefault(part.study, (part, numbers))
    for (part, numbers), analysis in [*((each, False) for each in chosen), *((each, True) for each in first.values())]:
        result = run_study(
            PROFILE,
            [part.task],
            numbers,
            {**part.settings, "data_dir": data_dir, "teacher": teacher},
            output_dir / part.study,
            jobs,
            console,
            analysis=analysis,
        )
        if not result.complete:
            raise EdgeMINError(
                f"the reference study stopped at {part.task}: what failed is shown above; the same "
                "command takes it up again"
            )
    return [output_dir / name for name in first]


def publish_bundles(study: Path, destination: Path) -> list[Path]:
    """Builds the bundle of every cut teacher of seed 0 that `recipe=edge` left in a study, in `bundles` beside the
    study, and copies its bundle.json to `destination/<task>`.

    Raises:
        MethodRefused: a bundle loses more accuracy than bundles may.
    """
    from edgemin_utils.bundle.making import make_bundle  # imports torch
    from edgemin_utils.bundle.sources import open_source

    cut = tuple(RECIPES["edge"][1:2])
    published = []
    for record in find_records(study):
        if record.seed == 0 and record.content["stage"] == "pruning" and tuple(record.content["steps"][1:]) == cut:
            bundle = study.parent / "bundles" / record.task
            make_bundle(open_source(str(record.folder)), bundle, matrix_bits=4, embedding_bits=4)
            (destination / record.task).mkdir(parents=True, exist_ok=True)
            published.append(destination / record.task / "bundle.json")
            shutil.copyfile(bundle / "bundle.json", published[-1])
    return published


def input_options(module: str, description: str) -> argparse.ArgumentParser:
    """Options of a command that makes reference results: where rows, the teacher's checkpoint and its output lie."""
    parser = argparse.ArgumentParser(
        prog=f"python -m edgemin_utils.{module}",
        description=description,
        allow_abbrev=False,
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("--data-dir", required=True, metavar="DIR", help="GLUE's rows, one folder a task")
    parser.add_argument("--teacher", required=True, metavar="ID_OR_DIR", help="the teacher's checkpoint")
    parser.add_argument("--output-dir", metavar="DIR", help="folder of what is trained (none: outputs in the project)")
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the reference study, publishes it and prints where it lies."""
    parser = input_options("reference_study", __doc__.splitlines()[0])
    parser.add_argument("--tasks", nargs="+", choices=tuple(TASKS), default=[], help="only these tasks")
    parser.add_argument("--seeds", nargs="+", type=int, default=[], help="only these seeds")
    parser.add_argument("--jobs", type=int, default=1, help="chains side by side")
    options = parser.parse_args(arguments)
    console, outputs = Console(), project_folder() / "outputs"
    folder = Path(options.output_dir).expanduser().absolute() if options.output_dir else outputs
    try:
        for name in {part.study for part in PARTS}:
            refuse_overlap(folder / name, outputs / "reference" / name)
        for study in run_reference(
            options.data_dir, options.teacher, folder, options.tasks, options.seeds, options.jobs, console
        ):
            publish_bundles(study, outputs / "reference" / "bundles")
            # One study's executed notebooks and report show what a chain looks like; the repository stays small.
            destination = publish_study(study, outputs / "reference" / study.name, pages=study.name == PROFILE)
            write_readme(project_folder() / "README.md", destination)
            console.print(f"reference results: {destination}", highlight=False)
    except EdgeMINError as error:
        console.print(f"edgemin: {error}", highlight=False, markup=False)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
