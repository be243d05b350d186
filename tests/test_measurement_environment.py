"""What an environment says of itself, against the system's own answers and made-up processors."""

import json
import os
import platform
import subprocess
import sys
from pathlib import Path

import pytest

from edgemin_utils.measurement import environment


def leaves(value):
    if isinstance(value, dict):
        for key, item in value.items():
            yield key
            yield from leaves(item)
    else:
        yield value


def test_description_is_json_and_names_neither_host_nor_folder():
    found = environment.describe_environment()
    assert set(found) == {
        "git_revision",
        "python",
        "packages",
        "processor",
        "processor_flags",
        "available_cores",
        "torch_threads",
        "memory_bytes",
        "operating_system",
        "gpu",
    }
    assert json.loads(json.dumps(found)) == found
    texts = [str(leaf) for leaf in leaves(found)]
    assert platform.node() not in texts
    for folder in (str(Path.home()), str(Path.cwd()), sys.prefix):
        assert folder == "/" or not any(folder in text for text in texts)


def test_description_agrees_with_the_system():
    import numpy
    import torch

    found = environment.describe_environment()
    assert found["python"] == ".".join(map(str, sys.version_info[:3]))
    assert found["packages"]["numpy"] == numpy.__version__
    assert found["packages"]["torch"] == torch.__version__
    assert found["torch_threads"] == torch.get_num_threads()
    assert 1 <= found["available_cores"] <= os.cpu_count()
    assert found["gpu"] is None or torch.cuda.is_available()
    # Half a gigabyte to sixty-four terabytes.
    assert 2**29 < environment.available_memory_bytes() <= found["memory_bytes"] < 2**46


def test_absent_packages_are_left_out(monkeypatch):
    monkeypatch.setattr(environment, "PACKAGES", ("numpy", "no-such-package-of-this-study"))
    assert list(environment.package_versions()) == ["numpy"]


@pytest.mark.parametrize(
    "flags,int8,bfloat16",
    [
        ("fpu avx2", False, False),
        ("fpu avx2 avx512f avx512_vnni", True, False),
        ("avx2 avx_vnni", True, False),
        ("avx512f avx512_vnni avx512_bf16", True, True),
        ("amx_int8 amx_bf16", True, True),
        ("fp asimd asimddp bf16", True, True),
        ("", False, False),
    ],
)
def test_processor_flags_decide(monkeypatch, flags, int8, bfloat16):
    key = "Features" if "asimd" in flags else "flags"
    monkeypatch.setattr(environment, "_cpuinfo", lambda name: flags if name == key else None)
    monkeypatch.setattr(environment.platform, "system", lambda: "Linux")
    described = {
        "processor_flags": {name: name in environment.processor_flags() for name in environment.PROCESSOR_FLAGS}
    }
    assert environment.supports_int8_dot_product(described) is int8
    assert environment.has_native_bfloat16() is bfloat16


def test_a_flag_that_only_begins_alike_does_not_count(monkeypatch):
    monkeypatch.setattr(environment, "_cpuinfo", lambda name: "avx512_vnni_something avx2x")
    found = environment.describe_environment()
    assert not any(found["processor_flags"].values())


def test_processor_is_what_the_system_says(monkeypatch):
    assert environment.processor_model()
    listing = "processor\t: 0\nmodel name\t: Made-up CPU: 3\nflags\t\t: fpu avx2\n\nprocessor\t: 1\nflags\t\t: none\n"
    monkeypatch.setattr(environment.Path, "read_text", lambda path: listing)
    assert environment.processor_model() == "Made-up CPU: 3"
    assert environment.processor_flags() == {"fpu", "avx2"}


def git(folder: Path, *arguments: str) -> str:
    identity = ["-c", "user.name=Test", "-c", "user.email=test@example.org", "-c", "commit.gpgsign=false"]
    return subprocess.run(
        ["git", "-C", str(folder), *identity, *arguments], check=True, capture_output=True, text=True
    ).stdout.strip()


def test_revision_of_a_clean_and_a_changed_checkout(tmp_path):
    assert environment.git_revision(tmp_path) is None
    git(tmp_path, "init", "--quiet")
    assert environment.git_revision(tmp_path) is None  # no commit yet
    (tmp_path / "file.txt").write_text("one")
    (tmp_path / "package").mkdir()
    git(tmp_path, "add", ".")
    git(tmp_path, "commit", "--quiet", "-m", "first")
    revision = git(tmp_path, "rev-parse", "HEAD")
    assert environment.git_revision(tmp_path) == revision and len(revision) == 40
    (tmp_path / "outputs").mkdir()
    (tmp_path / "outputs" / "results.csv").write_text("1")  # what a program writes does not change it
    assert environment.git_revision(tmp_path) == revision
    assert environment.git_revision(tmp_path / "package") is None  # inside a checkout of something else
    (tmp_path / "file.txt").write_text("two")
    assert environment.git_revision(tmp_path) == revision + "+dirty"


def test_revision_without_git(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    assert environment.git_revision(tmp_path) is None


def test_container_limits_are_kept(monkeypatch):
    limits = {"memory.max": 2 * 10**9, "memory.current": 5 * 10**8}
    monkeypatch.setattr(environment, "_container_number", limits.get)
    monkeypatch.setattr(environment, "_container_file_cache", lambda: 0)
    assert environment.total_memory_bytes() == 2 * 10**9
    assert environment.available_memory_bytes() <= 15 * 10**8


def test_a_container_that_is_full_of_cached_files_is_not_full(monkeypatch):
    listing = "anon 1000\ninactive_file 400000000\nactive_file 7\n"
    monkeypatch.setattr(environment.Path, "read_text", lambda path: listing if path.name == "memory.stat" else "5" * 9)
    assert environment.available_memory_bytes() == 4 * 10**8


@pytest.mark.parametrize(
    "release, written",
    [("6.18.44-fc-v669", "6.18"), ("5.15.0-91-generic", "5.15"), ("23.6.0", "23.6"), ("10", "10"), ("", "")],
)
def test_operating_system_names_the_release_but_not_the_build(monkeypatch, release, written):
    monkeypatch.setattr(environment.platform, "system", lambda: "Linux")
    monkeypatch.setattr(environment.platform, "release", lambda: release)
    monkeypatch.setattr(environment.platform, "machine", lambda: "x86_64")
    assert environment.describe_environment()["operating_system"] == f"Linux {written} x86_64"


def test_importing_environment_memory_and_energy_is_cheap():
    code = (
        "import sys, edgemin_utils.measurement.environment, edgemin_utils.measurement.memory, "
        "edgemin_utils.measurement.energy\n"
        "edgemin_utils.measurement.environment.describe_environment()\n"
        "heavy = {'torch', 'transformers', 'datasets', 'scipy', 'pandas'} & set(sys.modules)\n"
        "sys.exit(f'imported {heavy}' if heavy else 0)"
    )
    child = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        cwd=Path(environment.__file__).resolve().parents[2],
    )
    assert child.returncode == 0, child.stderr
