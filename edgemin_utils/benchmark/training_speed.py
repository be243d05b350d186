"""Training speed: examples per second of this study's loops against plain Trainer defaults, on the same rows.

`make benchmarks` runs it on the embedded corpora; behind `training-speed`, `--data-dir`, `--teacher` and the other
options of `edgemin run` set it on real rows and weights. Plain means what transformers' Trainer does when it is only
given model, rows and tokenizer: rows in random order, batches padded to their longest row, float32, and for
distillation the teacher run on every batch. The variants are trained in turn (A B C A B C), so that the ratios hold
when the machine's speed drifts.
"""

import argparse
import dataclasses
import statistics
import tempfile
import time
from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd
from rich.console import Console

from edgemin_utils.config import Settings, load_settings
from edgemin_utils.data import load_task_data
from edgemin_utils.distillation import find_objective
from edgemin_utils.distillation.objective import Lesson
from edgemin_utils.evaluation import TokenizedTask, tokenized_task
from edgemin_utils.measurement.environment import available_cores, describe_environment
from edgemin_utils.records import Run, open_run
from edgemin_utils.stages import make_student, make_teacher
from edgemin_utils.teacher_signals import signal_source
from edgemin_utils.training import Phase, label_loss, train_phases, training_precision

# What each variant changes of the settings.
VARIANTS: Mapping[str, Mapping[str, Any]] = {
    "plain Trainer": {"length_grouping": False, "training_precision": "float32", "teacher_cache_gigabytes": 0.0},
    "EdgeMIN, float32": {"length_grouping": True, "training_precision": "float32"},
    "EdgeMIN, auto precision": {"length_grouping": True, "training_precision": "auto"},
}


def fine_tuning_seconds(run: Run, settings: Settings, rows: TokenizedTask, seed: int) -> float:
    """Seconds of one epoch of teacher fine-tuning over `rows.train`."""
    _, model = make_teacher(run, rows.data)
    phase = Phase("fine-tuning", 1, settings.teacher_learning_rate, label_loss)
    started = time.perf_counter()
    train_phases(model, rows.train, [phase], rows.tokenizer, settings, seed)
    return time.perf_counter() - started


def distillation_seconds(run: Run, settings: Settings, rows: TokenizedTask, seed: int) -> tuple[float, float]:
    """Seconds of both distillation phases, the teacher's passes included, and the epochs that they make."""
    tokenizer, teacher = make_teacher(run, rows.data)
    student = make_student(settings, run.seed, teacher.eval(), tokenizer)
    objective, lesson = find_objective(settings.objective), Lesson(settings, teacher, student)
    started = time.perf_counter()
    source = signal_source(
        teacher,
        rows.train,
        tokenizer,
        objective.signals(lesson),
        settings.evaluation_batch_size,
        settings.teacher_cache_gigabytes,
    )
    phases = objective.phases(dataclasses.replace(lesson, signals=source))
    train_phases(student, rows.train, phases, tokenizer, settings, seed)
    return time.perf_counter() - started, sum(phase.epochs for phase in phases)


def compare_speeds(task: str, profile: str, overrides: Mapping[str, Any], repeats: int) -> pd.DataFrame:
    """One row a loop and variant: precision, examples_per_second (median over repeats) with the lowest and highest,
    and ratio to the plain Trainer (median of the ratios within a repeat)."""
    with tempfile.TemporaryDirectory() as folder:
        run = open_run(task, profile, 0, folder, overrides)
        tokenizer, model = make_teacher(run, load_task_data(run.settings, run.task, run.seed))
        rows = tokenized_task(run, tokenizer, [model])
        settings = {name: load_settings(profile, {**overrides, **changes}) for name, changes in VARIANTS.items()}
        speeds: dict[tuple[str, str], list[float]] = {}
        for repeat in range(repeats):
            for name, chosen in settings.items():
                seconds = fine_tuning_seconds(run, chosen, rows, repeat)
                speeds.setdefault(("teacher fine-tuning", name), []).append(len(rows.train) / seconds)
                seconds, epochs = distillation_seconds(run, chosen, rows, repeat)
                speeds.setdefault(("distillation", name), []).append(len(rows.train) * epochs / seconds)
    table = []
    for (loop, name), values in speeds.items():
        plain = speeds[(loop, "plain Trainer")]
        ratios = [value / base for value, base in zip(values, plain, strict=True)]
        table.append(
            {
                "loop": loop,
                "variant": name,
                "precision": training_precision(settings[name]),
                "examples_per_second": statistics.median(values),
                "lowest": min(values),
                "highest": max(values),
                "ratio": statistics.median(ratios),
            }
        )
    return pd.DataFrame(table).sort_values(["loop"], kind="stable", ascending=False).reset_index(drop=True)


def main(arguments: Sequence[str]) -> None:
    """Runs the comparison and prints it with what it was run on."""
    parser = argparse.ArgumentParser(
        prog="python -m edgemin_utils.benchmark training-speed",
        description=__doc__.splitlines()[0],
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("--task", default="mnli", help="task whose rows are trained on")
    parser.add_argument("--profile", default="demo", help="profile whose models and settings are used")
    parser.add_argument("--data-dir", default=None, help="folder of real rows")
    parser.add_argument("--teacher", default=None, help="hub id or folder of the teacher")
    parser.add_argument("--rows", type=int, default=1500, help="train rows")
    parser.add_argument("--epochs", type=float, default=1.0, help="epochs of each distillation phase")
    parser.add_argument("--repeats", type=int, default=3, help="times each variant is trained")
    options = parser.parse_args(arguments)
    overrides = {
        "train_fraction": 1.0,
        "train_rows": options.rows,
        "distillation_epochs": options.epochs,
        "prediction_epochs": options.epochs,
    }
    given = {"data_dir": options.data_dir, "teacher": options.teacher}
    overrides |= {name: value for name, value in given.items() if value}
    table = compare_speeds(options.task, options.profile, overrides, options.repeats)
    environment = describe_environment()
    console = Console(width=120)
    console.print(
        f"{options.task}, {options.profile} profile, {options.rows} rows, {options.repeats} repeats in turn; "
        f"{environment['processor']}, {available_cores()} cores",
        highlight=False,
    )
    console.print(table.to_string(index=False, float_format=lambda value: f"{value:.2f}"), highlight=False)
