"""What the analysis does before it reads records: it measures every chain of a study, in one place."""

import dataclasses
from collections.abc import Callable

import pandas as pd

from edgemin_utils.chain import COST
from edgemin_utils.errors import EdgeMINError
from edgemin_utils.records import Record, Run, open_chain


def chains_of(run: Run) -> dict[tuple[str, int], Run | EdgeMINError]:
    """(task, seed) of every chain that has a folder in the run's study -> the chain under the settings that it was last
    run with, or why it cannot be opened; the run itself comes first. A chain that does not say takes the run's
    settings."""
    found: dict[tuple[str, int], Run | EdgeMINError] = {(run.task, run.seed): run}
    for folder in sorted(run.study.glob("*/seed-*")):
        task, number = folder.parent.name, folder.name.removeprefix("seed-")
        if number.isdigit() and (task, int(number)) not in found:
            try:
                chain = open_chain(folder) or dataclasses.replace(run, task=task, seed=int(number))
            except EdgeMINError as error:
                found[task, int(number)] = error
            else:
                found[task, int(number)] = chain
    return found


def measure_chains(run: Run, measure: Callable[[Run], Record] | None = None) -> pd.DataFrame:
    """Measures latency and memory of every chain of the study, one after the other; what is on disk is not repeated.

    Args:
        run: any chain of the study.
        measure: what measures one chain, by default `cost.measure_chain`.

    Returns:
        one row a chain: task, seed, state ("measured", or why it was not: a stage missing or stale, a chain whose
        settings cannot be used here, or settings that leave measuring out).

    Raises:
        EdgeMINError: not one chain could be measured, though one was to be; it is the first such chain's error.
    """
    if measure is None:
        from edgemin_utils.cost import measure_chain  # imports torch

        measure = measure_chain
    rows, errors, measured = [], [], 0
    for (task, seed), chain in chains_of(run).items():
        state = "measured"
        try:
            if isinstance(chain, EdgeMINError):
                raise chain
            if COST in chain.plan:
                measure(chain)
                measured += 1
            else:
                state = "not measured: latency_protocol=none"
        except EdgeMINError as error:
            errors.append(error)
            state = f"not measured: {error}"
        rows.append({"task": task, "seed": seed, "state": state})
    if errors and not measured:
        raise errors[0]
    return pd.DataFrame(rows)
