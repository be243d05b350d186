"""How far a running study is: one line a chain, with an estimate taken from the stages that are already finished."""

import contextlib
import json
import statistics
import threading
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from rich.console import Console
from rich.live import Live
from rich.table import Table

from edgemin_utils.records import RECORD_FILE

REFRESH_SECONDS = 1.0


def estimate_seconds_left(
    stages_left: Sequence[str], finished: Mapping[str, Sequence[float]], running_for: float = 0.0
) -> float | None:
    """Seconds that `stages_left` will take, going by stages that are finished, or None when nothing is.

    A stage is expected to take as long as the same stage did in other chains; failing that, as long as stages of
    its kind (pruning, quantization, ...); failing that, as long as the mean finished stage.

    Args:
        stages_left: stage keys, `<kind>/<variant>`, in the order in which they run.
        finished: stage key -> wall seconds of each time that it was finished.
        running_for: seconds that the first stage of `stages_left` has been running; taken off its share only.
    """
    if not stages_left:
        return 0.0
    everything = [seconds for times in finished.values() for seconds in times]
    if not everything:
        return None
    by_kind: dict[str, list[float]] = {}
    for key, times in finished.items():
        by_kind.setdefault(key.split("/", 1)[0], []).extend(times)
    expected = [
        statistics.fmean(finished.get(key) or by_kind.get(key.split("/", 1)[0]) or everything) for key in stages_left
    ]
    return max(0.0, expected[0] - running_for) + sum(expected[1:])


def duration(seconds: float) -> str:
    """Seconds as a reader says them: "8 s", "3 min 05 s", "2 h 10 min"."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"


@dataclass
class Line:
    """One line of the display: a chain, or the analysis of them all.

    Attributes:
        name: what the line is called.
        wanted: record folder -> (stage key, fingerprint) of every stage that belongs to the line.
        state: waiting, running, done, failed or stopped.
    """

    name: str
    wanted: Mapping[Path, tuple[str, str]]
    state: str = "waiting"
    notebook: str = ""
    started: float | None = None
    ended: float | None = None
    stage_started: float = 0.0
    seconds: dict[Path, float] = field(default_factory=dict)

    @property
    def stages_left(self) -> list[str]:
        """Keys of the line's stages that are not on disk yet."""
        return [key for folder, (key, _) in self.wanted.items() if folder not in self.seconds]

    def elapsed(self, now: float) -> float:
        """Seconds since the line began, up to `now` or to its end, on `time.monotonic`'s clock."""
        return 0.0 if self.started is None else (self.ended or now) - self.started


class Unwatched:
    """What a chain on another machine tells its progress to: nobody. The display sees its records on disk, and its
    results when it is through."""

    def begin(self, name: str, notebook: str) -> None:
        """As `StudyProgress.begin`."""

    def end(self, name: str, state: str) -> None:
        """As `StudyProgress.end`."""

    def say(self, text: str) -> None:
        """As `StudyProgress.say`."""


class StudyProgress:
    """The live display of a study; use it as a context manager and call `poll` now and then.

    On a terminal the lines are drawn over each other; elsewhere (a log, a pipe) each event is one plain line.
    `begin`, `end` and `say` may be called from any thread.
    """

    def __init__(self, lines: Iterable[Line], console: Console | None = None):
        self.lines = {line.name: line for line in lines}
        self.console = console or Console()
        self._lock = threading.RLock()
        self._seen: dict[Path, int] = {}
        self._live = Live(console=self.console, auto_refresh=False, transient=False)
        self._look_for_records()

    def __enter__(self) -> "StudyProgress":
        if self.console.is_terminal:
            self._live.start()
        return self

    def __exit__(self, *exception: object) -> None:
        if self.console.is_terminal:
            with contextlib.suppress(Exception):
                self._live.update(self.table(), refresh=True)
            self._live.stop()

    def begin(self, name: str, notebook: str) -> None:
        """A line starts executing a notebook."""
        self.poll()
        now = time.monotonic()
        with self._lock:
            line = self.lines[name]
            line.state, line.notebook, line.stage_started = "running", notebook, now
            line.started = line.started or now
        self._event(f"{name}: {notebook} started")

    def end(self, name: str, state: str) -> None:
        """A line is through: "done", "failed" or "stopped"."""
        self.poll()
        with self._lock:
            line = self.lines[name]
            line.state, line.ended = state, time.monotonic()
        worked = (
            f" after {duration(line.elapsed(line.ended))}" if line.started else ", as before" if state == "done" else ""
        )
        self._event(f"{name}: {state}{worked}")

    def say(self, text: str) -> None:
        """Prints text above the lines, as it is."""
        self.console.print(text, markup=False, highlight=False, soft_wrap=True)

    def poll(self) -> None:
        """Looks on disk for stages that were finished since the last call and draws the lines anew."""
        for name, key, seconds in self._look_for_records():
            self._runs_elsewhere(self.lines[name], seconds)
            self._event(f"{name}: {key} done in {duration(seconds)}; left: {self.left(self.lines[name])}")
        if self.console.is_terminal:
            self._live.update(self.table(), refresh=True)

    def _runs_elsewhere(self, line: Line, seconds: float) -> None:
        """A line that nobody began but that finished a stage runs on another machine."""
        with self._lock:
            if line.state == "waiting":
                line.state, line.started = "running", time.monotonic() - seconds

    def left(self, line: Line) -> str:
        """What is left of a line, in words."""
        if line.state in ("done", "failed", "stopped"):
            return ""
        running_for = time.monotonic() - line.stage_started if line.state == "running" else 0.0
        seconds = estimate_seconds_left(line.stages_left, self._finished(), running_for)
        if seconds is None:
            return "estimating"
        return f"about {duration(seconds)}" if line.stages_left else "almost done"

    def table(self) -> Table:
        """The display as it is now: a row a chain."""
        table = Table(box=None, pad_edge=False)
        for title in ("chain", "notebook", "stage", "stages", "elapsed", "left"):
            table.add_column(title, no_wrap=title != "stage")
        now = time.monotonic()
        with self._lock:
            for line in self.lines.values():
                left = line.stages_left
                stage = left[0] if line.state == "running" and left else ""
                table.add_row(
                    line.name,
                    line.notebook if line.state == "running" else line.state,
                    stage,
                    f"{len(line.seconds)}/{len(line.wanted)}",
                    duration(line.elapsed(now)) if line.started else "",
                    self.left(line),
                )
        return table

    def _event(self, text: str) -> None:
        if not self.console.is_terminal:
            self.say(text)

    def _finished(self) -> dict[str, list[float]]:
        finished: dict[str, list[float]] = {}
        for line in self.lines.values():
            for folder, seconds in line.seconds.items():
                finished.setdefault(line.wanted[folder][0], []).append(seconds)
        return finished

    def _look_for_records(self) -> list[tuple[str, str, float]]:
        """(line, stage key, wall seconds) of stages found finished that were not before."""
        found = []
        with self._lock:
            for line in self.lines.values():
                for folder, (key, fingerprint) in line.wanted.items():
                    seconds = None if folder in line.seconds else self._wall_seconds(folder, fingerprint)
                    if seconds is not None:
                        line.seconds[folder] = seconds
                        line.stage_started = time.monotonic()
                        found.append((line.name, key, seconds))
        return found

    def _wall_seconds(self, folder: Path, fingerprint: str) -> float | None:
        path = folder / RECORD_FILE
        with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
            modified = path.stat().st_mtime_ns
            if self._seen.get(path) != modified:
                self._seen[path] = modified
                content = json.loads(path.read_text(encoding="utf-8"))
                if content["fingerprint"] == fingerprint:
                    return float(content["wall_seconds"])
        return None
