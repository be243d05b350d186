"""The paper's path through the models of a task: its steps, its last model, and what each was made from.

`rows` are rows of `summary.summarize` of one task and dev split, with `key` as their index.
"""

from typing import NamedTuple

import pandas as pd

from edgemin_utils.chain import distillation_key


class PathStep(NamedTuple):
    """One step of the path: its name, and the keys of the model before it and of the one that it made."""

    name: str
    before: str | None
    after: str


def path_steps(rows: pd.DataFrame, main: str | None) -> list[PathStep]:
    """The steps of the path that are there: distillation (held against the same student without it), pruning,
    quantization.

    Args:
        main: the student that the study is about, see `variants.main_student`.
    """
    steps = []
    if main and main != "none":
        steps.append(PathStep("distillation", distillation_key("none"), distillation_key(main)))
    for key, row in rows[rows["main"]].iterrows():
        if row["pruned"] and not row["quantized"]:
            steps.append(PathStep("pruning with recovery", distillation_key(row["student"]), key))
        elif row["quantized"]:
            steps.append(PathStep("quantization", unquantized_key(rows, row), key))
    return steps


def last_of_path(rows: pd.DataFrame) -> str | None:
    """Key of the most compressed model on the path; None if there is only the teacher."""
    path = rows[rows["main"] & (rows["student"] != "")]
    return None if path.empty else path.index[-1]


def unquantized_key(rows: pd.DataFrame, row: pd.Series) -> str | None:
    """Key of the model that a quantized one was made from; None if it is not there."""
    same = rows[(rows["student"] == row["student"]) & (rows["pruned"] == row["pruned"]) & ~rows["quantized"]]
    found = same.index[[row.name.split("/", 1)[1].startswith(key.split("/", 1)[1] + "+") for key in same.index]]
    return found[0] if len(found) else None
