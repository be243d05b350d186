"""What an environment says of itself, against the system's own answers and made-up processors."""

import json
import os
import platform
import subprocess
import sys
from pathlib import Path

import numpy
import psutil
import pytest
import torch

from edgemin_utils import environment


def test_description_is_json_agrees_with_the_system_and_names_neither_host_nor_folder():
    found = environment.describe_environment()
    text = json.dumps(found)
    assert json.loads(text) == found and f'"{platform.node()}"' not in text
    assert not any(folder in text for folder in (str(Path.home()), str(Path.cwd()), sys.prefix) if folder != "/")
    assert found["python"] == ".".join(map(str, sys.version_info[:3])) and found["processor"]
    assert found["packages"]["numpy"] == numpy.__version__ and found["packages"]["torch"] == torch.__version__
    assert found["torch_threads"] == torch.get_num_threads()
    assert 1 <= found["available_cores"] <= os.cpu_count()
    assert 2**29 < found["memory_bytes"] < 2**46  # half a gigabyte to sixty-four terabytes


PROCESSORS = {"fpu avx2": False, "avx2 avx_vnni": True, "amx_int8 amx_bf16": True, "fp asimd asimddp bf16": True}
PROCESSORS |= {"avx512_vnni_something avx2x": False, "": False}


@pytest.mark.parametrize(("flags", "int8"), PROCESSORS.items())
def test_processor_flags_decide(monkeypatch, tmp_path, flags, int8):
    key = "Features" if "asimd" in flags else "flags"
    listing = f"processor\t: 0\nmodel name\t: Made-up CPU: 3\n{key}\t\t: {flags}\n\nprocessor\t: 1\n{key}\t\t: none\n"
    (tmp_path / "cpuinfo").write_text(listing)
    read = environment._value_of
    monkeypatch.setattr(environment, "_value_of", lambda path, *rest: read(str(tmp_path / Path(path).name), *rest))
    monkeypatch.setattr(environment, "_output", lambda *command: None)
    found = environment.describe_environment()
    assert found["processor"] == "Made-up CPU: 3"
    assert environment.int8_sentence(found).startswith("Made-up CPU: 3 has " + ("INT8" if int8 else "no INT8"))


def test_apples_processors_have_linuxs_name(monkeypatch):
    monkeypatch.setattr(environment, "_value_of", lambda *place: None)
    for name, value in (("system", "Darwin"), ("machine", "arm64")):
        monkeypatch.setattr(environment.platform, name, lambda value=value: value)
    assert environment.processor_flags() == {"asimddp"}


def test_revision_of_a_clean_and_a_changed_checkout(tmp_path):
    git = "git -c user.name=Test -c user.email=test@example.org -c commit.gpgsign=false -C".split() + [str(tmp_path)]
    assert environment.git_revision(tmp_path) is None
    subprocess.check_call([*git, "init", "--quiet"])
    assert environment.git_revision(tmp_path) is None  # no commit yet
    (tmp_path / "file.txt").write_text("one")
    subprocess.check_call([*git, "add", "."])
    subprocess.check_call([*git, "commit", "--quiet", "-m", "first"])
    revision = subprocess.check_output([*git, "rev-parse", "HEAD"], text=True).strip()
    (tmp_path / "outputs").mkdir()
    (tmp_path / "outputs" / "results.csv").write_text("1")  # what a program writes does not change it
    assert environment.git_revision(tmp_path) == revision and len(revision) == 40
    assert environment.git_revision(tmp_path / "outputs") is None  # inside a checkout of something else
    (tmp_path / "file.txt").write_text("two")
    assert environment.git_revision(tmp_path) == revision + "+dirty"


@pytest.mark.parametrize(("limit", "memory"), [(str(10**8), 10**8), ("max", psutil.virtual_memory().total)])
def test_a_containers_limit_is_kept(monkeypatch, limit, memory):
    monkeypatch.setattr(environment, "_value_of", lambda path, *_: limit if path.endswith("memory.max") else "")
    assert environment.describe_environment()["memory_bytes"] == memory


@pytest.mark.parametrize("release, written", [("6.18.44-fc-v669", "6.18"), ("10", "10"), ("", "")])
def test_operating_system_names_the_release_but_not_the_build(monkeypatch, release, written):
    for name, value in (("system", "Linux"), ("release", release), ("machine", "x86_64")):
        monkeypatch.setattr(environment.platform, name, lambda value=value: value)
    assert environment.describe_environment()["operating_system"] == f"Linux {written} x86_64"


def test_importing_environment_and_memory_is_cheap():
    code = "import sys, edgemin_utils.environment as it, edgemin_utils.measurement.memory; it.describe_environment()\n"
    code += "print({'torch', 'transformers', 'datasets', 'scipy', 'pandas'} & set(sys.modules))"
    assert subprocess.check_output([sys.executable, "-c", code], text=True) == "set()\n"
