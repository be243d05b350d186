"""Peak memory of using one model, in a fresh process that holds nothing else.

Run as `python -m edgemin_utils.measurement.memory --model FOLDER`, this module is that process: it imports
what the loader needs, notes the resident memory (the import baseline), loads the model, runs some forwards
and prints the peak as one line of JSON. `peak_memory` starts it and reads the answer.
"""

import argparse
import importlib
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from edgemin_utils.errors import ModelError, SettingError

DEFAULT_LOADER = "edgemin_utils.checkpoints:load_model"
_FIRST_ORDINARY_TOKEN = 5
_THREAD_VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")


def peak_memory(
    folder: str | os.PathLike,
    *,
    loader: str = DEFAULT_LOADER,
    batch: int = 1,
    length: int = 128,
    forwards: int = 5,
    threads: int = 1,
    runs: int = 1,
    vocabulary_size: int | None = None,
    token_type_ids: bool = False,
    timeout_seconds: float = 600,
) -> dict[str, Any]:
    """Peak resident memory of loading a model and running it, each run in a process of its own.

    Args:
        folder: handed to the loader.
        loader: "module:function"; the function takes the folder and returns a torch model or a callable that
            predicts from a dict of int64 numpy arrays (input_ids, attention_mask, token_type_ids if asked
            for).
        batch, length, forwards: size and number of forwards.
        threads: threads of torch and of the linear-algebra libraries.
        runs: processes; the medians over them are returned, and each one's own numbers.
        vocabulary_size: token numbers stay under it; None takes it from the folder's config.json.

    Returns:
        baseline_bytes (resident after the loader's imports), peak_bytes (highest resident memory until the
        end, so it covers imports and loading too), resident_bytes (at the end), cpu_seconds (of one forward,
        all threads), runs, and processes: a list with one dict of the same numbers a process.

    Raises:
        SettingError: a loader not of the form module:function; runs, forwards or threads under 1.
        ModelError: the process failed, was killed, or ran longer than `timeout_seconds`.
    """
    if ":" not in loader:
        raise SettingError(f"loader {loader!r} must have the form module:function, as in {DEFAULT_LOADER!r}")
    if min(runs, forwards, threads) < 1:
        raise SettingError(
            f"peak memory needs at least one process, one forward and one thread; got "
            f"runs {runs}, forwards {forwards}, threads {threads}"
        )
    command = [
        sys.executable,
        "-m",
        "edgemin_utils.measurement.memory",
        "--model",
        os.fspath(folder),
        "--loader",
        loader,
        "--batch",
        str(batch),
        "--length",
        str(length),
        "--forwards",
        str(forwards),
        "--threads",
        str(threads),
    ]
    command += ["--vocabulary-size", str(vocabulary_size)] if vocabulary_size is not None else []
    command += ["--token-type-ids"] if token_type_ids else []
    processes = [_measure_in_child(command, threads, folder, timeout_seconds) for _ in range(runs)]
    medians = {key: type(processes[0][key])(statistics.median(item[key] for item in processes)) for key in processes[0]}
    return {**medians, "runs": runs, "processes": processes}


def peak_resident_bytes() -> int:
    """The highest resident memory of this process so far.

    Linux's ru_maxrss is not used: a new process inherits there the peak of the one that started it, so a
    notebook with a large model in memory would be measured instead of the child.
    """
    try:
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    except OSError:
        pass
    import psutil

    memory = psutil.Process().memory_info()
    if hasattr(memory, "peak_wset"):  # Windows
        return int(memory.peak_wset)
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return int(peak if sys.platform == "darwin" else peak * 1024)


def resident_bytes() -> int:
    """Resident memory of this process now."""
    import psutil

    return int(psutil.Process().memory_info().rss)


def _measure_in_child(
    command: list[str], threads: int, folder: str | os.PathLike, timeout_seconds: float
) -> dict[str, Any]:
    """The numbers one child prints."""
    environment = {**os.environ, **dict.fromkeys(_THREAD_VARIABLES, str(threads))}
    package_parent = str(Path(__file__).resolve().parents[2])
    environment["PYTHONPATH"] = os.pathsep.join([package_parent, *(entry for entry in sys.path if entry)])
    try:
        child = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=timeout_seconds)
    except subprocess.TimeoutExpired:
        raise ModelError(f"peak memory of {folder}: its process took over {timeout_seconds:g} s") from None
    if child.returncode != 0:
        messages = child.stderr.strip().splitlines() or ["no message"]
        ending = (
            f"was killed by signal {-child.returncode} (out of memory?)"
            if child.returncode < 0
            else f"failed: {messages[-1]}"
        )
        raise ModelError(f"peak memory of {folder}: its process {ending}")
    return json.loads(child.stdout.strip().splitlines()[-1])


def _run_child(arguments: argparse.Namespace) -> dict[str, Any]:
    """What the measuring process does."""
    module_name, _, function_name = arguments.loader.partition(":")
    load = getattr(importlib.import_module(module_name), function_name)
    if "torch" in sys.modules:
        sys.modules["torch"].set_num_threads(arguments.threads)
    baseline = resident_bytes()
    predict = _as_predictor(load(arguments.model), arguments.threads)
    inputs = _numpy_inputs(arguments)
    started = time.process_time()
    for _ in range(arguments.forwards):
        predict(inputs)
    cpu_seconds = (time.process_time() - started) / arguments.forwards
    return {
        "baseline_bytes": baseline,
        "peak_bytes": peak_resident_bytes(),
        "resident_bytes": resident_bytes(),
        "cpu_seconds": cpu_seconds,
    }


def _as_predictor(loaded: Any, threads: int) -> Callable[[dict[str, Any]], Any]:
    """A torch model as a function of numpy arrays; any other callable as it is."""
    torch = sys.modules.get("torch")  # a deployed model may run without it; importing it here would count
    if torch is None or not isinstance(loaded, torch.nn.Module):
        return loaded
    torch.set_num_threads(threads)
    loaded.eval()

    def predict(inputs: dict[str, Any]) -> Any:
        with torch.inference_mode():
            return loaded(**{name: torch.from_numpy(array) for name, array in inputs.items()})

    return predict


def _numpy_inputs(arguments: argparse.Namespace) -> dict[str, Any]:
    """int64 (batch, length) arrays of ordinary tokens."""
    import numpy

    vocabulary_size = arguments.vocabulary_size
    if vocabulary_size is None:
        config = Path(arguments.model) / "config.json"
        if not config.is_file():
            raise ModelError(
                f"{arguments.model} has no config.json to take the vocabulary's size from; give vocabulary_size"
            )
        vocabulary_size = int(json.loads(config.read_text(encoding="utf-8"))["vocab_size"])
    shape = (arguments.batch, arguments.length)
    first = min(_FIRST_ORDINARY_TOKEN, vocabulary_size - 1)
    tokens = numpy.random.default_rng(0).integers(first, vocabulary_size, shape, dtype=numpy.int64)
    inputs = {"input_ids": tokens, "attention_mask": numpy.ones_like(tokens)}
    if arguments.token_type_ids:
        inputs["token_type_ids"] = numpy.zeros_like(tokens)
    return inputs


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description="Peak resident memory of one model in this process (JSON).")
    parser.add_argument("--model", required=True, help="folder handed to the loader")
    parser.add_argument("--loader", default=DEFAULT_LOADER, help="module:function that loads it")
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--length", type=int, default=128, help="tokens")
    parser.add_argument("--forwards", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--vocabulary-size", type=int, default=None)
    parser.add_argument("--token-type-ids", action="store_true")
    return parser


if __name__ == "__main__":
    print(json.dumps(_run_child(_parser().parse_args())))
