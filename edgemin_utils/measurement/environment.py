"""What a number was measured on: processor, memory, versions, revision.

No host, user or folder name is recorded.
"""

import importlib.metadata
import platform
import re
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

PACKAGES = (
    "torch",
    "transformers",
    "datasets",
    "evaluate",
    "accelerate",
    "onnxruntime",
    "onnx",
    "fvcore",
    "scikit-learn",
    "scipy",
    "numpy",
    "pandas",
    "papermill",
)
# Instruction sets that decide how fast INT8 and bfloat16 arithmetic is; the last three are ARM's names.
PROCESSOR_FLAGS = (
    "avx2",
    "avx512f",
    "avx512_vnni",
    "avx_vnni",
    "avx512_bf16",
    "amx_int8",
    "amx_bf16",
    "asimddp",
    "i8mm",
    "bf16",
)
_INT8_DOT_PRODUCT_FLAGS = ("avx512_vnni", "avx_vnni", "amx_int8", "asimddp", "i8mm")
_BFLOAT16_FLAGS = ("avx512_bf16", "amx_bf16", "bf16")


def describe_environment() -> dict[str, Any]:
    """A JSON-ready description of the software and the machine that numbers come from.

    Returns:
        git_revision (None outside a checkout, "+dirty" behind it where files differ from the revision),
        python, packages (name -> version, what is not installed is left out), processor, processor_flags
        (name -> bool), available_cores (logical), torch_threads (None until torch is imported), memory_bytes,
        operating_system (see there), gpu (None where none is used).
    """
    flags = processor_flags()
    return {
        "git_revision": git_revision(),
        "python": platform.python_version(),
        "packages": package_versions(),
        "processor": processor_model(),
        "processor_flags": {name: name in flags for name in PROCESSOR_FLAGS},
        "available_cores": available_cores(),
        "torch_threads": _torch_threads(),
        "memory_bytes": total_memory_bytes(),
        "operating_system": operating_system(),
        "gpu": _gpu_name(),
    }


def supports_int8_dot_product(environment: Mapping[str, Any]) -> bool:
    """Whether the described processor multiplies and adds INT8 in one instruction (VNNI, AMX, ARM dot).

    Without it, dynamic INT8 is hardly faster than FP32.

    Args:
        environment: what `describe_environment` returned, here or on another machine.
    """
    return any(environment["processor_flags"].get(name, False) for name in _INT8_DOT_PRODUCT_FLAGS)


def int8_sentence(environment: Mapping[str, Any]) -> str:
    """What the described processor means for INT8, one sentence to stand wherever INT8 is timed.

    Args:
        environment: as for `supports_int8_dot_product`.
    """
    name = environment["processor"] or "This processor"
    if supports_int8_dot_product(environment):
        return f"{name} has INT8 dot-product instructions (VNNI or better)."
    return (
        f"{name} has no INT8 dot-product instructions (no VNNI): INT8 gains less time here than on processors that "
        "have them."
    )


def has_native_bfloat16() -> bool:
    """Whether this processor multiplies bfloat16 in hardware; without it bfloat16 is slower than FP32."""
    return not processor_flags().isdisjoint(_BFLOAT16_FLAGS)


def package_versions() -> dict[str, str]:
    """Distribution name -> installed version of the packages that numbers depend on."""
    versions = {}
    for name in PACKAGES:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return versions


def git_revision(folder: Path | None = None) -> str | None:
    """The commit of the checkout whose top folder is `folder` (default: the one that holds this package).

    Returns:
        40 hexadecimal digits, with "+dirty" where tracked or new files outside `outputs` differ; None where `folder`
        is not the top of a checkout, has no commit yet, or git is not installed.
    """
    top = Path(folder) if folder is not None else Path(__file__).resolve().parents[2]
    if _git(top, "rev-parse", "--show-prefix") != "":  # inside a checkout of something else
        return None
    revision = _git(top, "rev-parse", "--verify", "--quiet", "HEAD")
    if revision is None:
        return None
    return revision + ("+dirty" if _git(top, "status", "--porcelain", "--", ".", ":(exclude)outputs") else "")


def operating_system() -> str:
    """System, release and machine, e.g. "Linux 6.18 x86_64". What a release has behind its second number names one
    build of a kernel, often one provider's, and decides no number."""
    numbers = re.match(r"\d+(\.\d+)?", platform.release())
    return f"{platform.system()} {numbers[0] if numbers else platform.release()} {platform.machine()}"


def processor_model() -> str:
    """The processor's name as the system gives it, e.g. "AMD EPYC 9R14"."""
    return _cpuinfo("model name") or _sysctl("machdep.cpu.brand_string") or platform.processor() or platform.machine()


def processor_flags() -> frozenset[str]:
    """Instruction sets of this processor by Linux's names; empty where the system does not list them."""
    flags = (_cpuinfo("flags") or _cpuinfo("Features") or "").split()
    if not flags and platform.system() == "Darwin":
        # macOS names the features one by one; avx512vnni becomes avx512_vnni, ARM's DotProd is asimddp.
        names = {
            "hw.optional.avx2_0": "avx2",
            "hw.optional.avx512f": "avx512f",
            "hw.optional.avx512vnni": "avx512_vnni",
            "hw.optional.arm.FEAT_DotProd": "asimddp",
            "hw.optional.arm.FEAT_I8MM": "i8mm",
            "hw.optional.arm.FEAT_BF16": "bf16",
        }
        flags = [flag for key, flag in names.items() if _sysctl(key) == "1"]
    return frozenset(flags)


def available_cores() -> int:
    """Logical cores this process may use: its affinity and the container's quota are respected."""
    import joblib  # reads affinity and cgroup quotas on every system

    return int(joblib.cpu_count())


def total_memory_bytes() -> int:
    """Memory of the machine, or the container's limit where that is lower."""
    import psutil

    total = psutil.virtual_memory().total
    limit = _container_number("memory.max")
    return min(total, limit) if limit else total


def available_memory_bytes() -> int:
    """Memory that can be taken now without swapping, within the container's limit. Files that the system keeps in
    memory until somebody else needs it count as free."""
    import psutil

    available = psutil.virtual_memory().available
    limit, used = _container_number("memory.max"), _container_number("memory.current")
    if not limit or used is None:
        return available
    return max(0, min(available, limit - used + _container_file_cache()))


def _torch_threads() -> int | None:
    torch = sys.modules.get("torch")
    return torch.get_num_threads() if torch else None


def _gpu_name() -> str | None:
    torch = sys.modules.get("torch")
    return torch.cuda.get_device_name() if torch and torch.cuda.is_available() else None


def _git(folder: Path, *arguments: str) -> str | None:
    """What git prints for `arguments` in `folder`, or None where it fails."""
    try:
        answer = subprocess.run(["git", "-C", str(folder), *arguments], capture_output=True, text=True, timeout=20)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return answer.stdout.strip() if answer.returncode == 0 else None


def _cpuinfo(key: str) -> str | None:
    """First value of `key` in Linux's /proc/cpuinfo."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return None
    pairs = (line.partition(":") for line in lines)
    return next((value.strip() for name, _, value in pairs if name.strip() == key), None)


def _sysctl(key: str) -> str | None:
    """macOS's value of `key`."""
    if platform.system() != "Darwin":
        return None
    try:
        answer = subprocess.run(["sysctl", "-n", key], capture_output=True, text=True, timeout=20)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return answer.stdout.strip() or None if answer.returncode == 0 else None


def _container_number(name: str) -> int | None:
    """A number of the container's memory control group (version 2); None where there is none or no limit."""
    try:
        text = (Path("/sys/fs/cgroup") / name).read_text().strip()
    except OSError:
        return None
    return int(text) if text.isdigit() else None


def _container_file_cache() -> int:
    """Bytes of files in the container's memory that it would drop first; 0 where this is not said."""
    try:
        lines = Path("/sys/fs/cgroup/memory.stat").read_text().splitlines()
    except OSError:
        return 0
    pairs = (line.partition(" ") for line in lines)
    return next((int(value) for name, _, value in pairs if name == "inactive_file"), 0)
