"""What a study's last `edgemin run` was asked for, in the study's folder; a note that stays true when the study moves
together with the folders that it names."""

import json
import os
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from edgemin_utils.paths import MODEL_SETTINGS, PATH_SETTINGS
from edgemin_utils.records import Run, write_json

STUDY_FILE = "study.json"


def write_study_file(runs: Sequence[Run], given: Mapping[str, Any], jobs: int, cluster: str = "") -> None:
    """Notes what a study is run for, `given` being the settings that differ from the profile's."""
    study, profile = runs[0].study, runs[0].settings.profile
    tasks, seeds = list(dict.fromkeys(run.task for run in runs)), list(dict.fromkeys(run.seed for run in runs))
    words = ["edgemin", "run", "--profile", profile, "--tasks", *tasks, "--seeds", *map(str, seeds)]
    for name, value in _relative_paths(given, Path.cwd()).items():
        words += ["--set", f"{name}={','.join(map(str, value)) if isinstance(value, list) else value}"]
    words += ["--output-dir", os.path.relpath(study), "--jobs", str(jobs), *(["--cluster", cluster] if cluster else [])]
    write_json(
        study / STUDY_FILE,
        {
            "command": shlex.join(words),
            "profile": profile,
            "tasks": tasks,
            "seeds": seeds,
            "overrides": _relative_paths(given, study),
            "paths": _paths(given),
        },
    )


def read_study_file(study: Path) -> dict[str, Any]:
    """What the study's last `edgemin run` was asked for: command, profile, tasks, seeds, overrides; empty if there was
    none or its note cannot be read."""
    try:
        content = json.loads((Path(study) / STUDY_FILE).read_text(encoding="utf-8"))
        overrides = dict(content["overrides"])
        for name in content["paths"]:
            overrides[name] = os.path.normpath(Path(study).absolute() / overrides[name])
        return {name: content[name] for name in ("command", "profile", "tasks", "seeds")} | {"overrides": overrides}
    except (OSError, ValueError, KeyError, TypeError):
        return {}


def _paths(overrides: Mapping[str, Any]) -> list[str]:
    """The names of the overrides that are paths."""
    return [
        name
        for name, value in overrides.items()
        if name in (*PATH_SETTINGS, *MODEL_SETTINGS) and value and os.path.isabs(value)
    ]


def _relative_paths(overrides: Mapping[str, Any], start: Path) -> dict[str, Any]:
    """`overrides` with paths as seen from `start`: a study's note stays true when it moves together with them."""
    return {**overrides, **{name: os.path.relpath(overrides[name], start) for name in _paths(overrides)}}
