"""What a number was measured on: processor, memory, versions, revision. No host, user or folder name is recorded."""

import contextlib
import os
import platform
import re
import subprocess
import sys
from collections.abc import Iterator, Mapping
from importlib.metadata import distributions
from pathlib import Path
from typing import Any

import psutil

PACKAGES = """torch transformers datasets evaluate accelerate onnxruntime onnx fvcore scikit-learn scipy numpy pandas
    papermill""".split()
# What decides how fast INT8 and bfloat16 arithmetic is; the last three are ARM's names.
PROCESSOR_FLAGS = "avx2 avx512f avx512_vnni avx_vnni avx512_bf16 amx_int8 amx_bf16 asimddp i8mm bf16".split()


def describe_environment() -> dict[str, Any]:
    """A JSON-ready description of software and machine; torch_threads and gpu are None where torch was not imported."""
    flags, torch = processor_flags(), sys.modules.get("torch")
    limit = re.findall(r"^\d+$", _value_of("/sys/fs/cgroup/memory.max"))  # a container's, perhaps below the machine's
    release = re.match(r"\d+(\.\d+)?", platform.release())  # the rest names one build
    processor = _value_of("/proc/cpuinfo", "model name") or _output("sysctl", "-n", "machdep.cpu.brand_string")
    return {
        **{"git_revision": git_revision(), "python": platform.python_version()},
        "packages": {name: each.version for name in PACKAGES for each in [*distributions(name=name)][:1]},
        "processor": processor or platform.machine(),
        "processor_flags": {name: name in flags for name in PROCESSOR_FLAGS},
        "available_cores": available_cores(),
        "memory_bytes": min([psutil.virtual_memory().total, *map(int, limit)]),
        "operating_system": f"{platform.system()} {release[0] if release else ''} {platform.machine()}",
        "torch_threads": torch.get_num_threads() if torch else None,
        "gpu": torch.cuda.get_device_name() if torch and torch.cuda.is_available() else None,
    }


def int8_sentence(environment: Mapping[str, Any]) -> str:
    """What the described processor means for INT8: one sentence to stand wherever INT8 is timed."""
    flags = environment["processor_flags"]
    there = any(flags.get(name) for name in "avx512_vnni avx_vnni amx_int8 asimddp i8mm".split())
    said = "INT8 dot-product instructions" if there else "no INT8 dot-product instructions: INT8 gains less time here"
    return f"{environment['processor']} has {said}."


def git_revision(folder: Path | None = None) -> str | None:
    """The commit (40 digits) of the checkout whose top is `folder` (default: the package's), with "+dirty" where files
    outside `outputs` differ; None where it is no top, has no commit, or git is not installed."""
    git = ("git", "-C", str(folder or Path(__file__).resolve().parents[1]))
    revision = _output(*git, "rev-parse", "--verify", "--quiet", "HEAD")
    if revision is None or _output(*git, "rev-parse", "--show-prefix") != "":  # inside a checkout of something else
        return None
    return revision + ("+dirty" if _output(*git, "status", "--porcelain", "--", ".", ":(exclude)outputs") else "")


def processor_flags() -> frozenset[str]:
    """Instruction sets of this processor by Linux's names; empty where the system does not list them."""
    apples = "asimddp" if (platform.system(), platform.machine()) == ("Darwin", "arm64") else ""  # all of them
    return frozenset((_value_of("/proc/cpuinfo", "flags") or _value_of("/proc/cpuinfo", "Features") or apples).split())


def available_cores() -> int:
    """Logical cores this process may use: its affinity and the container's quota are respected."""
    import joblib  # reads affinity and cgroup quotas on every system

    return int(joblib.cpu_count())


def _output(*command: str) -> str | None:
    with contextlib.suppress(OSError, subprocess.SubprocessError):
        return subprocess.run(command, capture_output=True, text=True, timeout=20, check=True).stdout.strip()
    return None


def _value_of(path: str, key: str = "") -> str:
    """The first value of `key` in lines "key: value"; without a key the first line; else empty."""
    with contextlib.suppress(OSError):
        found = re.search(rf"^{key}\b[ \t:]*(.*?)[ \t]*$", Path(path).read_text(), re.MULTILINE)
        return found[1] if found else ""
    return ""


def launched_processes() -> int:
    """How many processes the launcher that started this one says there are; 1 without a launcher."""
    return int(os.environ.get("WORLD_SIZE") or 1)


@contextlib.contextmanager
def joined_processes() -> Iterator[None]:
    """Joins the processes that a launcher started, if one did, for as long as the context lasts."""
    with contextlib.ExitStack() as afterwards:
        if launched_processes() > 1:
            import torch
            from accelerate import PartialState

            afterwards.callback(PartialState(cpu=not torch.cuda.is_available()).destroy_process_group)
        yield


def is_main_process() -> bool:
    """Whether this process is the one that writes."""
    return _group() is None or _group().get_rank() == 0


def from_main_process(value: Any) -> Any:
    """The main process's `value`, in every process, once all of them are here."""
    if _group() is None:
        return value
    values = [None] * _group().get_world_size()
    _group().all_gather_object(values, value)
    return values[0]


def _group() -> Any:
    """torch.distributed if this process has joined others, else None."""
    distributed = getattr(sys.modules.get("torch"), "distributed", None)
    return distributed if distributed and distributed.is_available() and distributed.is_initialized() else None
