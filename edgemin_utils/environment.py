"""What a number was measured on: processor, memory, versions, revision. No host, user or folder name is recorded."""

import contextlib
import importlib.metadata
import platform
import re
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import psutil

PACKAGES = """torch transformers datasets evaluate accelerate onnxruntime onnx fvcore scikit-learn scipy numpy pandas
    papermill""".split()
# What decides how fast INT8 and bfloat16 arithmetic is; the last three are ARM's names.
PROCESSOR_FLAGS = "avx2 avx512f avx512_vnni avx_vnni avx512_bf16 amx_int8 amx_bf16 asimddp i8mm bf16".split()
_INT8_DOT_PRODUCT_FLAGS = "avx512_vnni avx_vnni amx_int8 asimddp i8mm".split()


def describe_environment() -> dict[str, Any]:
    """A JSON-ready description of the software and the machine that numbers come from; torch_threads and gpu are None
    where torch was not imported. Of a system's release the first two numbers stay: the rest names one build."""
    flags, torch = processor_flags(), sys.modules.get("torch")
    found = {name: importlib.metadata.distributions(name=name) for name in PACKAGES}
    release = re.match(r"\d+(\.\d+)?", platform.release())
    processor = _value_of("/proc/cpuinfo", "model name", ":") or _output("sysctl", "-n", "machdep.cpu.brand_string")
    return {
        **{"git_revision": git_revision(), "python": platform.python_version()},
        "packages": {name: item.version for name, items in found.items() for item in list(items)[:1]},
        "processor": processor or platform.machine(),
        "processor_flags": {name: name in flags for name in PROCESSOR_FLAGS},
        **{"available_cores": available_cores(), "memory_bytes": total_memory_bytes()},
        "operating_system": f"{platform.system()} {release[0] if release else ''} {platform.machine()}",
        "torch_threads": torch.get_num_threads() if torch else None,
        "gpu": torch.cuda.get_device_name() if torch and torch.cuda.is_available() else None,
    }


def supports_int8_dot_product(environment: Mapping[str, Any]) -> bool:
    """Whether the described processor multiplies and adds INT8 in one instruction."""
    return any(environment["processor_flags"].get(name) for name in _INT8_DOT_PRODUCT_FLAGS)


def int8_sentence(environment: Mapping[str, Any]) -> str:
    """What the described processor means for INT8: one sentence to stand wherever INT8 is timed."""
    there = supports_int8_dot_product(environment)
    said = "INT8 dot-product instructions" if there else "no INT8 dot-product instructions: INT8 gains less time here"
    return f"{environment['processor']} has {said}."


def has_native_bfloat16() -> bool:
    """Whether this processor multiplies bfloat16 in hardware."""
    return not processor_flags().isdisjoint("avx512_bf16 amx_bf16 bf16".split())


def git_revision(folder: Path | None = None) -> str | None:
    """The commit (40 digits) of the checkout whose top is `folder` (default: the package's), with "+dirty" where files
    outside `outputs` differ; None where it is no top, has no commit, or git is not installed."""
    git = ("git", "-C", str(folder or Path(__file__).resolve().parents[1]))
    revision = _output(*git, "rev-parse", "--verify", "--quiet", "HEAD")
    if revision is None or _output(*git, "rev-parse", "--show-prefix") != "":  # inside a checkout of something else
        return None
    changed = _output(*git, "status", "--porcelain", "--", ".", ":(exclude)outputs")
    return revision + ("+dirty" if changed else "")


def processor_flags() -> frozenset[str]:
    """Instruction sets of this processor by Linux's names; empty where the system does not list them."""
    apples = "asimddp" if (platform.system(), platform.machine()) == ("Darwin", "arm64") else ""  # all of them
    flags = _value_of("/proc/cpuinfo", "flags", ":") or _value_of("/proc/cpuinfo", "Features", ":") or apples
    return frozenset(flags.split())


def available_cores() -> int:
    """Logical cores this process may use: its affinity and the container's quota are respected."""
    import joblib  # reads affinity and cgroup quotas on every system

    return int(joblib.cpu_count())


def total_memory_bytes() -> int:
    """Memory of the machine, or the container's limit where that is lower."""
    total = psutil.virtual_memory().total
    return min(total, _container_number("memory.max") or total)


def available_memory_bytes() -> int:
    """Memory that can be taken now without swapping, within the container's limit; cached files count as free."""
    free, limit = psutil.virtual_memory().available, _container_number("memory.max")
    used, cached = _container_number("memory.current"), _container_number("memory.stat", "inactive_file")
    return free if not limit or used is None else max(0, min(free, limit - used + (cached or 0)))


def _output(*command: str) -> str | None:
    with contextlib.suppress(OSError, subprocess.SubprocessError):
        return subprocess.run(command, capture_output=True, text=True, timeout=20, check=True).stdout.strip()
    return None


def _value_of(path: str, key: str, separator: str) -> str | None:
    """First value of `key` in lines "key<separator>value"; without a separator the whole file."""
    with contextlib.suppress(OSError):
        text = Path(path).read_text()
        pairs = (line.partition(separator) for line in text.splitlines()) if separator else [(key, "", text)]
        return next((value.strip() for name, _, value in pairs if name.strip() == key), None)
    return None


def _container_number(name: str, key: str = "") -> int | None:
    text = _value_of(f"/sys/fs/cgroup/{name}", key, " " if key else "") or ""
    return int(text) if text.isdigit() else None
