"""What the analysis does before it reads records: it measures every chain of a study, in one place."""

import dataclasses
from collections.abc import Callable

import pandas as pd

from edgemin_utils.errors import EdgeMINError
from edgemin_utils.records import Record, Run, open_chain


def chains_of(run: Run) -> list[Run]:
    """Every chain that has a folder in the run's study, each under the settings that it was last run with; the run
    itself comes first. A chain that does not say takes the run's settings."""
    found = [run]
    for folder in sorted(run.study.glob("*/seed-*")):
        number = folder.name.removeprefix("seed-")
        if number.isdigit() and (folder.parent.name, int(number)) != (run.task, run.seed):
            found.append(open_chain(folder) or dataclasses.replace(run, task=folder.parent.name, seed=int(number)))
    return found


def measure_chains(run: Run, measure: Callable[[Run], Record] | None = None) -> pd.DataFrame:
    """Measures latency and memory of every chain of the study, one after the other; what is on disk is not repeated.

    Args:
        run: any chain of the study.
        measure: what measures one chain, by default `cost.measure_chain`.

    Returns:
        one row a chain: task, seed, state ("measured", or why it could not be: a stage missing or stale).

    Raises:
        EdgeMINError: not one chain could be measured; it is the error of `run`'s own chain.
    """
    if measure is None:
        from edgemin_utils.cost import measure_chain  # imports torch

        measure = measure_chain
    rows, errors = [], []
    for chain in chains_of(run):
        try:
            measure(chain)
            state = "measured"
        except EdgeMINError as error:
            errors.append(error)
            state = f"not measured: {error}"
        rows.append({"task": chain.task, "seed": chain.seed, "state": state})
    if len(errors) == len(rows):
        raise errors[0]
    return pd.DataFrame(rows)
