"""What `make paper-numbers` leaves in `outputs/paper-numbers/`: a record, and tables and figures drawn from it."""

import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from scipy import stats

from edgemin_utils import figures
from edgemin_utils.atomic_folders import partial_folder, replace_folder
from edgemin_utils.config import project_folder
from edgemin_utils.errors import StageError
from edgemin_utils.figures.paper import listed_parameters, operation_ratios, paper_latency, product_widths, time_parts
from edgemin_utils.figures.style import StudyFigure
from edgemin_utils.measurement.environment import describe_environment
from edgemin_utils.paper import claims, counts, honest
from edgemin_utils.paper.accuracy import study_accuracy
from edgemin_utils.paper.architectures import HONEST_RECIPE, PaperModels
from edgemin_utils.paper.interaction import FORMS, PRECISIONS, rest_of
from edgemin_utils.paper.timing import STUDENT
from edgemin_utils.records import write_json
from edgemin_utils.reference import fill_marked_place, refuse_overlap
from edgemin_utils.tables import StudyRecords, Table, as_markdown, write_table

RECORD_FILE = "record.json"
RECORD_VERSION = 2
README_PLACE = "paper numbers"


def results_folder() -> Path:
    """Where `make paper-numbers` writes."""
    return project_folder() / "outputs" / "paper-numbers"


def reference_folder() -> Path:
    """Where the published run of it lies."""
    return project_folder() / "outputs" / "reference" / "paper-numbers"


def count_record(models: PaperModels) -> dict[str, Any]:
    """All that follows from shapes: counts, parts of the models, MAC ratios, the honest model; and the environment."""
    return {
        "record_version": RECORD_VERSION,
        "environment": describe_environment(),
        "counts": {name: count.as_record() for name, count in counts.every_count(models).items()},
        "listed": counts.listed_after_quantization(models),
        "parts": counts.weights_of_parts(models),
        "operation_ratios": {str(length): ratio for length, ratio in counts.ratios_over_length(models).items()},
        "largest_operation_ratio": counts.largest_operation_ratio(models),
        "honest": honest.honest_counts(models),
        "timing": None,
        **accuracy_record([]),
    }


def accuracy_record(studies: Sequence[Path | StudyRecords]) -> dict[str, list[dict[str, Any]]]:
    """What studies say of the paper's pipeline (accuracy) and of the honest recipe (honest_accuracy); of several
    studies the first that ran it on a task counts."""
    found: dict[str, list[dict[str, Any]]] = {}
    for name, recipe in (("accuracy", "paper"), ("honest_accuracy", HONEST_RECIPE)):
        rows: dict[str, dict[str, Any]] = {}
        for study in studies:
            for row in study_accuracy(study, recipe):
                rows.setdefault(row["task"], row)
        found[name] = list(rows.values())
    return found


def write_record(record: Mapping[str, Any], folder: Path) -> Path:
    """Writes the record into `folder`, made if need be, and gives its path."""
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / RECORD_FILE, record)
    return folder / RECORD_FILE


def read_record(folder: Path | None = None) -> dict[str, Any]:
    """The record of `make paper-numbers`: the newest run's, else the reference one.

    Raises:
        StageError: there is none, or another version of the package wrote it.
    """
    for place in (folder,) if folder else (results_folder(), reference_folder()):
        path = place / RECORD_FILE
        if path.is_file():
            try:
                record = json.loads(path.read_text(encoding="utf-8"))
            except ValueError:
                record = {}
            if record.get("record_version") == RECORD_VERSION:
                return record
            raise StageError(f"{path} is damaged or of another version of the package; run `make paper-numbers` again")
    raise StageError("the paper's numbers have not been measured here; run `make paper-numbers`")


def with_measurements(record: Mapping[str, Any], study: Path | StudyRecords) -> tuple[dict[str, Any], str]:
    """A record of counts with what `make paper-numbers` measured, and with the accuracy of a study.

    Returns:
        the record, and one sentence on what was measured where, or that it was not.
    """
    own = accuracy_record([study])
    try:
        measured = read_record()
    except StageError as error:
        return {**record, **own}, f"Latency and memory are not among these numbers: {error}."
    record = {
        **record,
        "environment": measured["environment"],
        "timing": measured["timing"],
        **{name: rows or measured[name] for name, rows in own.items()},
    }
    machine = measured["environment"]
    return record, (
        f"Latency and memory were measured by `make paper-numbers` on {machine['processor']}, "
        f"{machine['available_cores']} cores."
    )


# ---- tables ------------------------------------------------------------------------------------------------------


def every_table(record: Mapping[str, Any]) -> list[Table]:
    """The tables that a record allows: claims, counts and the honest model, and latency, memory, interaction and, where
    it was measured twice, repeatability."""
    made = [claims_table(record), counts_table(record), honest_table(record)]
    if record["timing"]:
        made += [latency_table(record), memory_table(record), interaction_table(record)]
        made += [repeatability_table(record)] if record["timing"]["repeated"] else []
    return made


def claims_table(record: Mapping[str, Any]) -> Table:
    """The fifteen claims with their verdicts."""
    found = {name: counts.Count(**count) for name, count in record["counts"].items()}
    rows = claims.claims_table(found, record["timing"], record["accuracy"])
    return Table(
        "claims",
        "The paper's claims",
        pd.DataFrame(claims.as_rows(rows)),
        claims.notes(record["timing"], record["environment"], record["accuracy"]),
    )


def counts_table(record: Mapping[str, Any]) -> Table:
    """Every number that the paper's way of counting gives, beside the honest one."""
    return Table("counts", "The paper's way of counting and ours", pd.DataFrame(list(record["counts"].values())))


def honest_table(record: Mapping[str, Any]) -> Table:
    """The claims held against the model of `recipe=honest`."""
    rows = honest.made_true(
        record["honest"], record["counts"]["final_file"]["honest"], record["timing"], record["honest_accuracy"]
    )
    return Table(
        "honest",
        "Claims made true",
        pd.DataFrame([asdict(row) for row in rows]),
        (
            honest.honest_note(record["honest"]),
            "Paper: the paper's final model, counted honestly. " + claims.notes(None, None)[0],
        ),
    )


def memory_table(record: Mapping[str, Any]) -> Table:
    """Peak memory of fresh processes."""
    rows = [
        {
            "model": row["model"],
            "process": row["process"],
            **{
                name: row[f"{key}_bytes"] / 1e6
                for name, key in (("imports_mb", "baseline"), ("peak_mb", "peak"), ("at_the_end_mb", "resident"))
            },
        }
        for row in record["timing"]["memory"]
    ]
    return Table(
        "memory",
        "Peak memory of a fresh process",
        pd.DataFrame(rows),
        (
            "Resident memory, MB of 10^6 bytes: after importing what the process needs, at its highest from "
            "there through loading and forwards of 1x128, and at the end.",
        ),
    )


def repeatability_table(record: Mapping[str, Any]) -> Table:
    """Every ratio of the runs of the latency protocol, side by side."""
    rows = [
        {
            "ratio": row["ratio"],
            "model": row["model"],
            "input": row["input"],
            **{f"run {number}": f"{value:.3f}" for number, value in enumerate(row["runs"], start=1)},
            "apart": f"{100 * row['disagreement']:.1f} %",
        }
        for row in record["timing"]["repeated"]
    ]
    return Table(
        "repeatability", "The latency protocol run again", pd.DataFrame(rows), (repeatability_sentence(record),)
    )


def repeatability_sentence(record: Mapping[str, Any]) -> str:
    """Which ratio the runs disagree on most, and how many of the later ones the first run's intervals do not hold."""
    rows = record["timing"]["repeated"]
    worst = max(rows, key=lambda row: row["disagreement"])
    name = " ".join(part for part in (worst["model"], worst["ratio"], f"at {worst['input']}") if part)
    outside = sum(not row["low"] <= min(row["runs"][1:]) <= max(row["runs"][1:]) <= row["high"] for row in rows)
    return (
        f"Over {len(worst['runs'])} runs of the latency protocol, one after the other, the {len(rows)} ratios "
        f"agree within {100 * worst['disagreement']:.1f} % (the worst: {name}); in {outside} of them a later "
        "run lies outside the first one's interval, which says how sure one run is of its own ratio, not what another "
        "would give."
    )


def latency_table(record: Mapping[str, Any]) -> Table:
    """Latency of the paper's models, speed-ups over teacher and student, distance from the bound."""
    timing = record["timing"]
    ratios = {
        name: {(row["model"], row["input"]): row for row in timing[name]} for name in ("over_teacher", "over_student")
    }
    rows = []
    for row in timing["latency"]:
        place = row["model"], row["input"]
        over = {name: rows_of.get(place, {}) for name, rows_of in ratios.items()}
        numbers = {
            name: row[name]
            for name in ("input", "model", "median_ms", "iqr_ms", "runs", "noisy", "bound_ms", "of_bound")
        }
        rows.append(
            {
                **numbers,
                **{
                    f"{name}{end}": over[name].get(key)
                    for name in ratios
                    for end, key in (("", "ratio"), ("_low", "low"), ("_high", "high"))
                },
            }
        )
    return Table(
        "latency", "Latency of the paper's models", pd.DataFrame(rows), claims.notes(timing, record["environment"])[1:]
    )


def interaction_table(record: Mapping[str, Any]) -> Table:
    """The interaction of pruning and quantization on latency, and what the additive model of its parts predicts."""
    parts = {row["input"]: row for row in record["timing"]["parts"]}
    rows = [
        {
            "input": row["input"],
            "interaction": row["ratio"],
            "interaction_low": row["low"],
            "interaction_high": row["high"],
            **{
                name: parts[row["input"]][name]
                for name in ("predicted", "predicted_low", "predicted_high", "attention_alone", "products_alone")
            },
        }
        for row in record["timing"]["interaction"]
    ]
    return Table(
        "interaction",
        "Interaction of pruning and quantization on latency",
        pd.DataFrame(rows),
        (
            "1: the gains multiply; over 1: together they gain less. Predicted: by adding up products, attention "
            "and the rest of the unpruned models; attention and products alone: if only they were pruned.",
            interaction_sentence(record),
        ),
    )


def interaction_sentence(record: Mapping[str, Any]) -> str:
    """What explains the interaction, one paragraph; every number from the record."""
    measured = {row["input"]: row for row in record["timing"]["interaction"]}
    parts = []
    for row in record["timing"]["parts"]:
        ms, whole = row["parts_ms"], measured[row["input"]]
        less = ms["attention whole"] - ms["attention pruned"]
        share = {precision: 100 * less / ms[f"model {precision} whole"] for precision in PRECISIONS}
        saved = {
            precision: 100 * (1 - ms[f"products {precision} pruned"] / ms[f"products {precision} whole"])
            for precision in PRECISIONS
        }
        moved = {precision: rest_of(ms, precision, "pruned") - rest_of(ms, precision) for precision in PRECISIONS}
        parts.append(
            f"at {row['input']} pruning takes {less:.2f} ms from attention, which is {share['fp32']:.1f} % of the FP32 "
            f"and {share['int8']:.1f} % of the INT8 student's time, and {saved['fp32']:.1f} % from the products in "
            f"FP32 and {saved['int8']:.1f} % in INT8; added up that predicts an interaction of {row['predicted']:.3f} "
            f"[{row['predicted_low']:.3f}, {row['predicted_high']:.3f}] (attention alone {row['attention_alone']:.3f}, "
            f"products alone {row['products_alone']:.3f}), where whole models show {whole['ratio']:.3f} "
            f"[{whole['low']:.3f}, {whole['high']:.3f}] and {row['measured']:.3f} "
            f"[{row['measured_low']:.3f}, {row['measured_high']:.3f}] in the rounds of the parts; the rest differs by "
            f"{moved['fp32']:+.2f} ms in FP32 and {moved['int8']:+.2f} ms in INT8"
        )
    return (
        "A forward's time is that of its products, of attention, which stays FP32, and of the rest, which the "
        f"prediction takes to be the same with and without pruning. Timed by themselves, {'; '.join(parts)}. "
        f"{width_sentence(record)}"
    )


def width_sentence(record: Mapping[str, Any]) -> str:
    """Two explanations held against the products of all widths: unfilled tiles, and a cost that no width changes."""
    parts = []
    for precision in ("fp32", "int8"):
        line = width_line(record["timing"]["products"], precision)
        parts.append(
            f"{precision.upper()} times lie {100 * line['scatter']:.1f} % off a straight line over the width "
            f"at the median ({100 * line['at_tiles']:+.1f} % at multiples of 64, "
            f"{100 * line['elsewhere']:+.1f} % elsewhere) "
            f"and {100 * line['fixed']:.0f} % of the time at width 384 does not depend on it"
        )
    return (
        f"Unfilled tiles would show as steps over the width, a fixed cost as time left at width 0: "
        f"{'; '.join(parts)}. The paper's cut leaves 320 units, a multiple of 64."
    )


def width_line(products: Sequence[Mapping[str, Any]], precision: str, whole: int = 384) -> dict[str, float]:
    """Straight lines through the times over the width, one an input and direction (Theil's and Sen's slopes, which a
    few disturbed times do not move); means over them.

    Returns:
        fixed (intercept as a share of the line's time at width `whole`), scatter (median distance from the line, as a
        share of it), at_tiles and elsewhere (median distance, with its sign, at multiples of 64 and at other widths).
    """
    rows = []
    for _, group in pd.DataFrame(products).groupby(["input", "direction"]):
        width, times = group["width"].to_numpy(), group[f"{precision}_ms"].to_numpy()
        slope, intercept = stats.theilslopes(times, width)[:2]
        off, tiles = times / (intercept + slope * width) - 1, width % 64 == 0
        rows.append(
            {
                "fixed": intercept / (intercept + slope * whole),
                "scatter": np.median(np.abs(off)),
                "at_tiles": np.median(off[tiles]),
                "elsewhere": np.median(off[~tiles]),
            }
        )
    return {name: float(value) for name, value in pd.DataFrame(rows).mean().items()}


# ---- writing -----------------------------------------------------------------------------------------------------


def every_figure(record: Mapping[str, Any]) -> dict[str, StudyFigure]:
    """Name -> figure, of all that a record allows."""
    parts, ratios = record["parts"], {int(length): ratio for length, ratio in record["operation_ratios"].items()}
    drawn = {
        "listed_parameters": listed_parameters(parts["student"], parts["final"], record["listed"]),
        "operation_ratios": operation_ratios(ratios, record["largest_operation_ratio"]),
    }
    if record["timing"]:
        longest = record["timing"]["interaction"][-1]["input"]
        drawn |= {
            "latency": paper_latency(record["timing"]["latency"], STUDENT),
            "time_parts": time_parts(parts_rows(record)),
            "products": product_widths(record["timing"]["products"], longest, 384, 320),
        }
    return drawn


def parts_rows(record: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Rows of input, precision, form, products, attention and rest (ms), of the four models of the two by two."""
    return [
        {
            "input": row["input"],
            "precision": precision,
            "form": form,
            "products": row["parts_ms"][f"products {precision} {form}"],
            "attention": row["parts_ms"][f"attention {form}"],
            "rest": rest_of(row["parts_ms"], precision, form),
        }
        for row in record["timing"]["parts"]
        for precision in PRECISIONS
        for form in FORMS
    ]


def figure_or_note(record: Mapping[str, Any], name: str) -> StudyFigure:
    """One of `every_figure`, or a note that it needs measuring."""
    return every_figure(record).get(name) or figures.note_figure(f"{name}: {claims.RUN_FIRST}")


def write_results(record: Mapping[str, Any], folder: Path) -> list[Path]:
    """Tables (csv, md, tex) and figures (svg, png) of a record; returns the paths."""
    written = [path for table in every_table(record) for path in write_table(table, folder / "tables")]
    for name, figure in every_figure(record).items():
        written += figures.save_figure(figure, folder / "figures", name)
    return written


def publish(folder: Path, destination: Path, readme: Path) -> None:
    """Copies a finished folder to the reference results and writes the claims into the README's marked place.

    Raises:
        StageError: the folder holds no measured record, one of the folders lies in the other, or the README has no such
            place.
    """
    refuse_overlap(folder, destination)
    record = read_record(folder)
    if not record["timing"] or record["timing"]["protocol"]["name"] == "quick":
        raise StageError(f"{folder} holds no full measurement; run `make paper-numbers` without --quick first")
    text = fill_marked_place(readme.read_text(encoding="utf-8"), README_PLACE, readme_section(record))
    with partial_folder(destination) as partial:
        replace_folder(Path(shutil.copytree(folder, partial / destination.name)), destination)
    readme.write_text(text, encoding="utf-8")


def readme_section(record: Mapping[str, Any]) -> str:
    """The claims table, what explains C10, and the honest model, as Markdown."""

    def markdown(table: Table) -> str:
        return as_markdown(Table(table.name, table.title, table.frame.drop(columns="function"), table.notes)).rstrip()

    claims_text, honest_text = (markdown(table) for table in (claims_table(record), honest_table(record)))
    picture = "![Where 11.94M comes from](outputs/reference/paper-numbers/figures/listed_parameters.png)"
    if not record["timing"]:
        measured = [f"- Latency and memory: {claims.RUN_FIRST}."]
    else:
        measured = [
            f"- C10: {interaction_sentence(record)}",
            *([f"- {repeatability_sentence(record)}"] if record["timing"]["repeated"] else []),
            "",
            picture,
        ]
    return "\n".join([claims_text, *measured, "", honest_text, ""])
