"""Chains on a cluster, through joblib's Dask back end: a scheduler, and workers that each run one chain a thread."""

import contextlib
import uuid
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import joblib

from edgemin_utils.errors import SettingError
from edgemin_utils.execution import THREAD_VARIABLES, threads_per_chain
from edgemin_utils.paths import missing_paths, refuse_missing

LOCAL = "local"
_SECONDS_TO_ANSWER = 30
# A terminal's Ctrl-C reaches local workers too; they have to live until their kernels are stopped.
_DEAF_TO_CTRL_C = "import signal; signal.signal(signal.SIGINT, signal.SIG_IGN)"


@contextlib.contextmanager
def open_cluster(address: str, jobs: int) -> Iterator[Any]:
    """A `distributed.Client` of the cluster for as long as the context lasts.

    Args:
        address: of a Dask scheduler that runs, as in "tcp://10.0.0.5:8786"; or "local" for workers on this machine,
            which end with the context.
        jobs: how many workers "local" starts; they share the processor's cores.

    Raises:
        SettingError: Dask is not installed, no scheduler answers there, or it has no workers.
    """
    try:
        import distributed
    except ImportError:
        raise SettingError(
            "--cluster needs Dask, which is not installed; run pip install 'distributed>=2024.8', or "
            "leave --cluster out to run chains on this machine"
        ) from None
    with contextlib.ExitStack() as stack:
        if address == LOCAL:
            threads = stack.enter_context(threads_per_chain(jobs))
            address = stack.enter_context(
                distributed.LocalCluster(
                    n_workers=jobs,
                    threads_per_worker=1,
                    dashboard_address=None,
                    preload=[_DEAF_TO_CTRL_C],
                    env=dict.fromkeys(THREAD_VARIABLES, str(threads)),
                )
            )
        try:
            client = stack.enter_context(distributed.Client(address, timeout=_SECONDS_TO_ANSWER, set_as_default=False))
            client.wait_for_workers(1, timeout=_SECONDS_TO_ANSWER)
        except (OSError, ValueError) as error:  # TimeoutError is an OSError
            raise SettingError(
                f"no Dask scheduler with workers answers at {address} ({error}); start them with "
                "`dask scheduler` and `dask worker ADDRESS --nthreads 1`"
            ) from error
        yield client


def check_workers(client: Any, paths: Iterable[str]) -> None:
    """Sees that every worker imports this package and has `paths`.

    Raises:
        StorageError: one does not.
    """
    found = client.run(missing_paths, list(paths), on_error="return")
    refuse_missing(
        {
            f"worker {address}": [f"edgemin_utils ({answer})"] if isinstance(answer, Exception) else answer
            for address, answer in found.items()
        }
    )


def run_on_workers(client: Any, function: Callable[..., Any], calls: Iterable[tuple]) -> Iterator[Any]:
    """What `function` returns for each tuple of arguments, as they finish; functions and arguments are pickled."""
    with joblib.parallel_config(backend="dask", client=client):
        parallel = joblib.Parallel(return_as="generator_unordered", batch_size=1, pre_dispatch="all")
        yield from parallel(joblib.delayed(function)(*arguments) for arguments in calls)


def shared_event(client: Any) -> Any:
    """A new event, as of threading, that is the same one on every worker that it is sent to."""
    import distributed

    return distributed.Event(f"edgemin-{uuid.uuid4().hex}", client=client)
