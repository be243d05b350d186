"""What an environment says of itself, against the system's own answers and made-up processors."""

import json
import os
import platform
import subprocess
import sys
from pathlib import Path

import pytest

from edgemin_utils import environment


def test_description_is_json_agrees_with_the_system_and_names_neither_host_nor_folder():
    import numpy
    import torch

    found = environment.describe_environment()
    text = json.dumps(found)
    assert json.loads(text) == found and f'"{platform.node()}"' not in text
    assert not any(folder in text for folder in (str(Path.home()), str(Path.cwd()), sys.prefix) if folder != "/")
    assert found["python"] == ".".join(map(str, sys.version_info[:3])) and found["processor"]
    assert found["packages"]["numpy"] == numpy.__version__ and found["packages"]["torch"] == torch.__version__
    assert found["torch_threads"] == torch.get_num_threads()
    assert 1 <= found["available_cores"] <= os.cpu_count()
    # Half a gigabyte to sixty-four terabytes.
    assert 2**29 < environment.available_memory_bytes() <= found["memory_bytes"] < 2**46


PROCESSORS = [("fpu avx2", False, False), ("avx2 avx512_vnni", True, False), ("avx2 avx_vnni", True, False)]
PROCESSORS += [("amx_int8 amx_bf16", True, True), ("fp asimd asimddp bf16", True, True), ("", False, False)]
PROCESSORS += [("avx512f avx512_vnni avx512_bf16", True, True), ("avx512_vnni_something avx2x", False, False)]


@pytest.mark.parametrize("flags,int8,bfloat16", PROCESSORS)
def test_processor_flags_decide(monkeypatch, tmp_path, flags, int8, bfloat16):
    key = "Features" if "asimd" in flags else "flags"
    listing = f"processor\t: 0\nmodel name\t: Made-up CPU: 3\n{key}\t\t: {flags}\n\nprocessor\t: 1\n{key}\t\t: none\n"
    (tmp_path / "cpuinfo").write_text(listing)
    read = environment._value_of
    monkeypatch.setattr(environment, "_value_of", lambda path, *rest: read(str(tmp_path / Path(path).name), *rest))
    monkeypatch.setattr(environment, "_output", lambda *command: None)
    found = environment.describe_environment()
    assert found["processor"] == "Made-up CPU: 3"
    assert environment.supports_int8_dot_product(found) is int8
    assert environment.has_native_bfloat16() is bfloat16
    assert environment.int8_sentence(found).startswith("Made-up CPU: 3 has " + ("INT8" if int8 else "no INT8"))


def test_apples_processors_have_linuxs_name(monkeypatch):
    monkeypatch.setattr(environment, "_value_of", lambda *place: None)
    for name, value in (("system", "Darwin"), ("machine", "arm64")):
        monkeypatch.setattr(environment.platform, name, lambda value=value: value)
    assert environment.processor_flags() == {"asimddp"}


def git(folder: Path, *arguments: str) -> str:
    identity = ["-c", "user.name=Test", "-c", "user.email=test@example.org", "-c", "commit.gpgsign=false"]
    command = ["git", "-C", str(folder), *identity, *arguments]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()


def test_revision_of_a_clean_and_a_changed_checkout(tmp_path):
    assert environment.git_revision(tmp_path) is None
    git(tmp_path, "init", "--quiet")
    assert environment.git_revision(tmp_path) is None  # no commit yet
    (tmp_path / "file.txt").write_text("one")
    (tmp_path / "package").mkdir()
    git(tmp_path, "add", ".")
    git(tmp_path, "commit", "--quiet", "-m", "first")
    revision = git(tmp_path, "rev-parse", "HEAD")
    (tmp_path / "outputs").mkdir()
    (tmp_path / "outputs" / "results.csv").write_text("1")  # what a program writes does not change it
    assert environment.git_revision(tmp_path) == revision and len(revision) == 40
    assert environment.git_revision(tmp_path / "package") is None  # inside a checkout of something else
    (tmp_path / "file.txt").write_text("two")
    assert environment.git_revision(tmp_path) == revision + "+dirty"


def test_container_limits_are_kept_and_cached_files_are_free(monkeypatch):
    limits = {("memory.max", ""): 2 * 10**9, ("memory.current", ""): 5 * 10**8}
    monkeypatch.setattr(environment, "_container_number", lambda name, key="": limits.get((name, key)))
    assert environment.total_memory_bytes() == 2 * 10**9
    assert environment.available_memory_bytes() <= 15 * 10**8
    monkeypatch.undo()
    listing = "anon 1000\ninactive_file 400000000\nactive_file 7\n"
    monkeypatch.setattr(environment.Path, "read_text", lambda path: listing if path.name == "memory.stat" else "5" * 9)
    assert environment.available_memory_bytes() == 4 * 10**8


@pytest.mark.parametrize("release, written", [("6.18.44-fc-v669", "6.18"), ("23.6.0", "23.6"), ("10", "10"), ("", "")])
def test_operating_system_names_the_release_but_not_the_build(monkeypatch, release, written):
    for name, value in (("system", "Linux"), ("release", release), ("machine", "x86_64")):
        monkeypatch.setattr(environment.platform, name, lambda value=value: value)
    assert environment.describe_environment()["operating_system"] == f"Linux {written} x86_64"


def test_importing_environment_and_memory_is_cheap():
    code = (
        "import sys, edgemin_utils.environment, edgemin_utils.measurement.memory\n"
        "edgemin_utils.environment.describe_environment()\n"
        "heavy = {'torch', 'transformers', 'datasets', 'scipy', 'pandas'} & set(sys.modules)\n"
        "sys.exit(f'imported {heavy}' if heavy else 0)"
    )
    child = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert child.returncode == 0, child.stderr
