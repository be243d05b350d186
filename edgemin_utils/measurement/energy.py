"""Energy of CPU work: RAPL's package counters where they can be read, and CPU-seconds always."""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

RAPL_FOLDER = Path("/sys/class/powercap")
NOT_MEASURED = "not measured"
_MICROJOULES = 1e6


def cpu_energy(work: Callable[[], Any], repeats: int = 1, folder: Path = RAPL_FOLDER) -> dict[str, Any]:
    """Runs `work` `repeats` times and says what that took.

    Args:
        work: takes nothing; what it returns is dropped.
        folder: Linux's power-capping folder. Its counters are readable by the administrator alone on most
        systems.

    Returns:
        repeats; wall_seconds; cpu_seconds (all threads of this process, user and system); joules (all
        processor packages, everything that ran on them meanwhile, so the machine should be idle otherwise) or
        None; source, "RAPL package counters" or "not measured". Work so long that a counter wraps twice is
        counted too low (a wrap takes several minutes at full load).
    """
    before = read_packages(folder)
    wall, cpu = time.perf_counter(), time.process_time()
    for _ in range(repeats):
        work()
    cpu, wall = time.process_time() - cpu, time.perf_counter() - wall
    joules = _joules_between(before, read_packages(folder))
    return {
        "repeats": repeats,
        "wall_seconds": wall,
        "cpu_seconds": cpu,
        "joules": joules,
        "source": NOT_MEASURED if joules is None else "RAPL package counters",
    }


def forward_energy(predict: Callable[[Any], Any], inputs: Any, threads: int, repeats: int) -> dict[str, Any]:
    """What one forward takes on the processor: `cpu_energy` of `repeats` forwards after a warm-up, divided by them.

    Args:
        predict: a function from a batch to logits.
        threads: that torch computes with meanwhile; its former number is put back.

    Returns:
        threads, repeats; cpu_seconds, wall_seconds and joules (None where not measured) of one forward; source.
    """
    import torch  # the rest of this module is for processes without it, too

    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        with torch.inference_mode():
            predict(inputs)
            found = cpu_energy(lambda: predict(inputs), repeats)
    finally:
        torch.set_num_threads(before)
    return {
        "threads": threads,
        "repeats": repeats,
        "source": found["source"],
        **{
            name: None if found[name] is None else found[name] / repeats
            for name in ("cpu_seconds", "wall_seconds", "joules")
        },
    }


def read_packages(folder: Path = RAPL_FOLDER) -> dict[str, tuple[int, int]]:
    """Package zone -> (counter, value at which it wraps), both in microjoules; empty where none can be
    read."""
    packages = {}
    try:
        for zone in sorted(Path(folder).glob("intel-rapl:*")):
            if (zone / "name").read_text().startswith("package"):
                packages[zone.name] = (
                    int((zone / "energy_uj").read_text()),
                    int((zone / "max_energy_range_uj").read_text()),
                )
    except (OSError, ValueError):
        return {}  # one package alone would understate the energy
    return packages


def _joules_between(before: dict[str, tuple[int, int]], after: dict[str, tuple[int, int]]) -> float | None:
    if not before or before.keys() != after.keys():
        return None
    used = 0
    for zone, (start, wrap) in before.items():
        used += after[zone][0] - start + (wrap if after[zone][0] < start else 0)
    return used / _MICROJOULES
