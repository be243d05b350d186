"""The code is laid out, linted and typed as `make lint` asks, by the same tools and settings."""

import subprocess
import sys

import pytest
from conftest import PROJECT


@pytest.mark.parametrize("command", ["ruff check .", "ruff format --check .", "mypy"])
def test_the_checker_finds_nothing(command):
    checked = subprocess.run([sys.executable, "-m", *command.split()], cwd=PROJECT, capture_output=True, text=True)
    assert checked.returncode == 0, checked.stdout + checked.stderr
