"""README and CONTRIBUTING say what is there, and the README's numbers follow from the published folder."""

import re

import pytest
from conftest import PROJECT

from edgemin_utils.cli import app
from edgemin_utils.names import LISTS
from edgemin_utils.results.comparisons import summary
from edgemin_utils.results.table import read_frames

README, CONTRIBUTING = ((PROJECT / name).read_text(encoding="utf-8") for name in ("README.md", "CONTRIBUTING.md"))
both = pytest.mark.parametrize("text", [README, CONTRIBUTING], ids=["README", "CONTRIBUTING"])


@both
def test_linked_and_named_files_exist(text: str) -> None:
    linked = re.findall(r"\]\(((?!https?:)[^)#]+)", text)
    named = re.findall(r"`((?:edgemin_utils|notebooks|tests|outputs/reference)/[\w./-]*)`", text)
    assert [name for name in {*linked, *named} if not (PROJECT / name).exists()] == []
    assert len(CONTRIBUTING.splitlines()) <= 100
    rooms = ", ".join(re.findall(r"^    edgemin_utils/([\w, ]+?)  ", text, re.M)).split(", ")
    package = PROJECT / "edgemin_utils"
    assert all((package / room).is_dir() or (package / f"{room}.py").is_file() for room in rooms)


@both
def test_every_command_that_is_named_exists(text: str) -> None:
    targets = re.findall(r"^([a-z-]+):", (PROJECT / "Makefile").read_text(), re.M)
    assert set(re.findall(r"(?:`|^    )make ([a-z-]+)", text, re.M)) <= set(targets)
    commands = {str(item.name or item.callback.__name__) for item in app.registered_commands if item.callback}
    assert set(re.findall(r"(?:\.venv/bin/|`)edgemin (\w+)", text)) <= commands
    assert not re.findall(r"^    (?:edgemin|pip|python|pytest) .*", text, re.M)  # without an activated environment


def test_every_number_of_the_table_follows_from_the_published_folder() -> None:
    frame = summary(read_frames(PROJECT / "outputs" / "reference"))
    rows = re.findall(r"^\| `([^`]+)` \| (.+) \|$", README, re.M)
    assert len(rows) == 6
    for name, cells in rows:
        model = LISTS[name][0] if name in LISTS else name
        of = {row["task"]: row for row in frame[frame["model"] == model].to_dict("records")}
        ends = [[100 * of[task][f"accuracy{end}"] for end in ("", "_low", "_high")] for task in ("sst2", "mnli", "qqp")]
        shown = ["{:.1f} [{:.1f}, {:.1f}]".format(*each) for each in ends]
        faster = 1.0 if model == "teacher" else of["mnli"]["faster"]
        assert cells.split(" | ") == [*shown, f"{of['mnli']['bytes'] / 1e6:.1f}", f"{faster:.1f}"], name
