"""Energy of CPU work, and peak memory of using one model in a fresh process: this module, run as a program."""

import json
import os
import pkgutil
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from edgemin_utils.errors import ModelError


def peak_memory(source: str | os.PathLike, runs: int = 1, loader: str = "") -> dict[str, Any]:
    """Medians over `runs` processes of resident memory: baseline_bytes (after imports) and peak_bytes (of a model that
    `loader`, a "module:function", has loaded and five forwards of 1 x 32 tokens on one thread); runs."""
    without_torch = {".onnx": "quantization.sessions:OnnxSession", ".xml": "measurement.peers:OpenVinoModel"}
    usual = without_torch.get(Path(source).suffix, "quantization.schemes:load_model")
    request = {"source": str(source), "loader": loader or f"edgemin_utils.{usual}"}
    answers = [in_fresh_process(__name__, request, 1, f"peak memory of {source}") for _ in range(runs)]
    return {**{key: int(statistics.median(item[key] for item in answers)) for key in answers[0]}, "runs": runs}


def in_fresh_process(module: str, request: Mapping[str, Any], threads: int, what: str) -> dict[str, Any]:
    """The JSON answer of a module, run as a program on so many threads. Raises ModelError when the process dies."""
    limits = dict.fromkeys("OMP_NUM_THREADS MKL_NUM_THREADS OPENBLAS_NUM_THREADS".split(), str(threads))
    # The child finds what its parent finds, also where nothing is installed.
    places = os.pathsep.join([str(Path(__file__).resolve().parents[2]), *filter(None, sys.path)])
    environment = {**os.environ, **limits, "PYTHONPATH": places}
    command, asked = [sys.executable, "-m", module], json.dumps(request)
    child = subprocess.run(command, input=asked, capture_output=True, text=True, env=environment)
    if child.returncode:
        killed = f"killed by signal {-child.returncode} (out of memory?)" if child.returncode < 0 else "no message"
        raise ModelError(f"{what}: its process failed: {(child.stderr.strip() or killed).splitlines()[-1]}")
    return json.loads(child.stdout.splitlines()[-1])  # behind what libraries print


def answer_request(answer: Callable[[dict[str, Any]], Mapping[str, Any]]) -> None:
    """What a program for `in_fresh_process` does."""
    print("\n" + json.dumps(answer(json.load(sys.stdin))))


def peak_resident_bytes() -> int:
    """The highest resident memory of this process so far."""
    if (status := Path("/proc/self/status")).is_file():  # Linux's ru_maxrss begins at the peak of the parent process
        return 1024 * int(status.read_text().partition("VmHWM:")[2].split()[0])
    import resource

    return int(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)  # in bytes on macOS


def _measure(request: dict[str, Any]) -> dict[str, int]:
    import numpy
    import psutil

    load = pkgutil.resolve_name(request["loader"])
    baseline = psutil.Process().memory_info().rss
    model, tokens = load(request["source"]), numpy.full((1, 32), 7, dtype=numpy.int64)
    inputs = {"input_ids": tokens, "attention_mask": numpy.ones_like(tokens)}
    torch = sys.modules.get("torch")  # a deployed model may run without it; importing it here would count
    for _ in range(5):
        if torch is None or not isinstance(model, torch.nn.Module):
            model(inputs)
        else:
            with torch.inference_mode():
                model(**{name: torch.from_numpy(array) for name, array in inputs.items()})
    return {"baseline_bytes": baseline, "peak_bytes": peak_resident_bytes()}


def cpu_energy(work: Callable[[], Any], repeats: int = 1, folder: Path = Path("/sys/class/powercap")) -> dict[str, Any]:
    """What one of `repeats` calls of `work` takes: cpu_seconds (of all threads) and joules (of all processor packages
    and all that ran on them; None where they cannot be read)."""
    before, started = read_packages(folder), time.process_time()
    for _ in range(repeats):
        work()
    seconds, after, joules = (time.process_time() - started) / repeats, read_packages(folder), None
    if before and before.keys() == after.keys():
        joules = sum((after[zone][0] - start) % wrap for zone, (start, wrap) in before.items()) / 1e6 / repeats
    return {"cpu_seconds": seconds, "joules": joules}


def read_packages(folder: Path) -> dict[str, tuple[int, ...]]:
    """Package zone -> (counter, value at which it wraps), in microjoules; empty where one cannot be read."""
    files = ("energy_uj", "max_energy_range_uj")
    try:
        zones = [zone for zone in folder.glob("intel-rapl:*") if (zone / "name").read_text().startswith("package")]
        return {zone.name: tuple(int((zone / file).read_text()) for file in files) for zone in zones}
    except (OSError, ValueError):
        return {}


if __name__ == "__main__":
    answer_request(_measure)
