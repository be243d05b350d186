"""README and CONTRIBUTING say what is there, and the README's numbers follow from the published folder."""

import re

import pytest
from conftest import PROJECT

from edgemin_utils.cli import app
from edgemin_utils.names import LISTS
from edgemin_utils.results.comparisons import factorial_effects, summary
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


def test_every_number_follows_from_the_published_folder() -> None:
    frames = read_frames(PROJECT / "outputs" / "reference")
    frame, known = summary(frames), dict[str, set[str]]()
    columns = [(frame, "accuracy", 100), (frame, "kept", 100), (frame, "difference", 100), (frame, "faster", 1)]
    for each, name, factor in [*columns, (factorial_effects(frames), "difference", 100)]:
        ends = (factor * each[[name, f"{name}_low", f"{name}_high"]]).round(1) + 0.0  # a zero has no sign
        known.setdefault(name, set()).update("{:.1f} [{:.1f}, {:.1f}]".format(*row) for row in ends.to_numpy())
    assert set(re.findall(r"-?\d+\.\d \[[^]]+\]", README)) <= set.union(*known.values())
    assert len(rows := re.findall(r"^\| `([^`]+)` \| (.+) \|$", README, re.M)) == 6
    for name, (accuracy, kept, *sizes, faster) in ((name, cells.split(" | ")) for name, cells in rows):
        row = frame[frame["task"] == "sst2"].set_index("model").loc[LISTS[name][0] if name in LISTS else name]
        assert sizes == [f"{row['bytes'] / 1e6:.1f}", f"{row['ms_32']:.2f}", f"{row['ms_128']:.2f}"], name
        assert accuracy.startswith(f"{100 * row['accuracy']:.1f} ") and accuracy in known["accuracy"]
        assert name == "teacher" or (kept in known["kept"] and faster in known["faster"])
