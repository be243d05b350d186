"""The package's type hints hold, by the same checker and settings as `make lint`."""

import subprocess
import sys

from conftest import PROJECT


def test_mypy_finds_nothing():
    checked = subprocess.run([sys.executable, "-m", "mypy"], cwd=PROJECT, capture_output=True, text=True)
    assert checked.returncode == 0, checked.stdout + checked.stderr
