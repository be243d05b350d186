"""Tables of single stages, as notebooks 01 to 04 show them: data frames made from what records hold.

`show` draws any of them. Headers carry the unit; accuracies are in percent with their interval in brackets.
"""

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
from pandas.io.formats.style import Styler

from edgemin_utils.config import EVERY_TRAINED_STAGE, Settings, load_settings, setting_fields
from edgemin_utils.errors import DataError
from edgemin_utils.number_text import p_value_text, percent, with_interval
from edgemin_utils.objectives import OBJECTIVES, read_student
from edgemin_utils.records import Record, Run
from edgemin_utils.statistics import compare_predictions

MB = 1e6
MIB = 2**20


# ---- how a table is shown --------------------------------------------------------------------------------------


def show(frame: pd.DataFrame, digits: int = 2) -> Styler:
    """A small table for a notebook: numbers to the right with thousands separators, text to the left, no row index.

    Args:
        digits: decimals of columns that hold fractions.
    """
    cells = pd.DataFrame({name: [_cell(value, digits) for value in frame[name]] for name in frame}, dtype=object)
    # Styles are tied to cells by this name: two tables on one page must not share it, the same table must keep it.
    name = hashlib.sha256(cells.to_csv().encode()).hexdigest()[:10]
    sides = {header: [{"selector": "", "props": f"text-align: {_side(cells[header])}"}] for header in cells}
    return cells.style.hide(axis="index").format(escape="html").set_uuid(name).set_table_styles(sides)


def _cell(value: Any, digits: int) -> str:
    if isinstance(value, str):
        return value
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, Sequence):
        return ", ".join(map(str, value)) or "none"
    if value is None or pd.isna(value):
        return ""
    return f"{value:,}" if isinstance(value, int) or hasattr(value, "bit_count") else f"{value:,.{digits}f}"


def _side(texts: pd.Series) -> str:
    return "right" if all(text[:1] in "+-<0123456789" for text in texts) else "left"


# ---- settings and data -----------------------------------------------------------------------------------------


def settings_table(run: Run, key: str, training_loop: bool = True) -> pd.DataFrame:
    """The settings that change what the stage `key` computes: value, unit, meaning; `*` behind a value that is not the
    profile's. Sizes of a model from scratch are left out where the model comes from elsewhere.

    Args:
        training_loop: whether the settings that every training loop shares are among them.
    """
    default, known, idle = load_settings(run.settings.profile), setting_fields(), _without_effect(run.settings)
    rows = []
    for name, value in run.stage(key).settings(run.settings).items():
        shared = set(known[name].metadata["stages"]) >= set(EVERY_TRAINED_STAGE)
        if name in idle or (shared and not training_loop):
            continue
        changed = "" if value == getattr(default, name) else " *"
        rows.append(
            {
                "Setting": name,
                "Value": _setting_text(value) + changed,
                "Unit": known[name].metadata["unit"],
                "Meaning": known[name].metadata["meaning"],
            }
        )
    return pd.DataFrame(rows)


def _setting_text(value: Any) -> str:
    if isinstance(value, list):
        return ", ".join(map(_setting_text, value)) or "none"
    if isinstance(value, float):
        return f"{value:g}"
    # Of a checkpoint's folder the name says enough; where it lies is the reader's own affair.
    return Path(value).name if isinstance(value, str) and Path(value).is_absolute() else str(value)


def _without_effect(settings: Settings) -> set[str]:
    """Settings that describe a kind of model which the chain does not have."""
    idle = set()
    if settings.teacher != "scratch":
        idle |= {
            "vocabulary_size",
            "teacher_family",
            "teacher_layers",
            "teacher_hidden_size",
            "teacher_heads",
            "teacher_intermediate_size",
        }
    if settings.student != "scratch":
        idle |= {"student_layers", "student_hidden_size", "student_heads", "student_intermediate_size"}
    if settings.student not in ("teacher-layers", "pretrained-layers"):
        idle |= {"student_from_layers"}
    return idle


def data_table(data: Mapping[str, Any]) -> pd.DataFrame:
    """Rows, rows cut at the longest input and words a row of every split.

    Args:
        data: the teacher's `results["data"]`.
    """
    rows = []
    for split, numbers in data["statistics"].items():
        words = numbers["words"]
        rows.append(
            {
                "Split": split,
                "Rows": numbers["rows"],
                "Rows cut": data["truncated_rows"].get(split, 0),
                "Words (median)": words["median"],
                "Words (90 % quantile)": words["p90"],
                "Words (longest)": words["longest"],
            }
        )
    return pd.DataFrame(rows)


def example_rows(rows: pd.DataFrame, labels: Sequence[str], each: int = 2) -> pd.DataFrame:
    """The first `each` rows of every label, the label by its name.

    Args:
        rows: text columns, `label` (int) and `row`.
        labels: names in id order.
    """
    chosen = rows.groupby("label", sort=True).head(each).sort_values(["label", "row"], kind="stable")
    texts = {name.capitalize(): chosen[name].tolist() for name in rows if name not in ("label", "row")}
    return pd.DataFrame(texts | {"Label": [labels[number] for number in chosen["label"]]})


# ---- accuracy --------------------------------------------------------------------------------------------------


def metrics_table(metrics: Mapping[str, Mapping[str, Mapping[str, float]]]) -> pd.DataFrame:
    """Metrics of several models on every dev split, accuracy with its 95 % interval.

    Args:
        metrics: model's name -> split -> a record's metrics.
    """
    rows = []
    for name, by_split in metrics.items():
        for split, numbers in by_split.items():
            rows.append(
                {
                    "Model": name,
                    "Split": split,
                    "Rows": numbers["rows"],
                    "Accuracy % [95 % interval]": percent(
                        numbers["accuracy"], numbers["accuracy_low"], numbers["accuracy_high"]
                    ),
                    "F1 %": percent(numbers["f1"]),
                    "Matthews correlation": f"{numbers['matthews_correlation']:.3f}",
                }
            )
    return pd.DataFrame(rows)


def paired_tests(
    first: Mapping[str, pd.DataFrame], second: Mapping[str, pd.DataFrame], samples: int = 2000
) -> pd.DataFrame:
    """How the second model's accuracy differs from the first's on the same rows, split by split.

    Args:
        first, second: split -> predictions as `stages.read_predictions` reads them (row, label, prediction).
        samples: bootstrap resamples behind the interval.

    Returns:
        split, rows, difference, low, high (percentage points), only_first, only_second (rows that one model alone
        gets right), p_value (exact McNemar test).

    Raises:
        DataError: the two were not made on the same rows.
    """
    rows = []
    for split, before in first.items():
        after = second[split]
        if before["row"].tolist() != after["row"].tolist() or before["label"].tolist() != after["label"].tolist():
            raise DataError(f"{split}: the two models did not answer the same rows; run both stages again")
        found = compare_predictions(before["prediction"], after["prediction"], before["label"], samples=samples)
        rows.append(
            {
                "split": split,
                "rows": found["rows"],
                **{name: 100 * found[name] for name in ("difference", "low", "high")},
                **{name: found[name] for name in ("only_first", "only_second", "p_value")},
            }
        )
    return pd.DataFrame(rows)


def paired_tests_table(tests: Mapping[str, pd.DataFrame]) -> pd.DataFrame:
    """`paired_tests` of several comparisons (name -> frame), as text."""
    rows = []
    for name, frame in tests.items():
        for row in frame.to_dict("records"):
            rows.append(
                {
                    "Comparison": name,
                    "Split": row["split"],
                    "Difference (points) [95 % interval]": with_interval(
                        row["difference"], row["low"], row["high"], sign="+"
                    ),
                    "Only first right": row["only_first"],
                    "Only second right": row["only_second"],
                    "p (McNemar)": p_value_text(row["p_value"]),
                }
            )
    return pd.DataFrame(rows)


# ---- training and models ---------------------------------------------------------------------------------------


def training_table(records: Mapping[str, Record]) -> pd.DataFrame:
    """Every training phase of several models: epochs, steps, seconds and rows a second."""
    rows = []
    for name, record in records.items():
        for phase in record.results["training"]["phases"]:
            rows.append(
                {
                    "Model": name,
                    "Phase": phase["name"],
                    "Epochs": f"{phase['epochs']:g}",
                    "Steps": phase["steps"],
                    "Seconds": f"{phase['seconds']:,.1f}",
                    "Rows a second": round(phase["examples_per_second"]),
                    "Precision": phase["precision"],
                }
            )
    return pd.DataFrame(rows)


def models_table(records: Mapping[str, Record]) -> pd.DataFrame:
    """Shape and size of several models: layers, heads, weights wherever they are stored, bytes of the saved file."""
    rows = []
    for name, record in records.items():
        model, size = record.results["model"], record.results["size"]
        rows.append(
            {
                "Model": name,
                "Layers": model["layers"],
                "Hidden size": model["hidden_size"],
                "Heads a layer": _run_lengths(model["heads"]),
                "Feed-forward size": _run_lengths(model["intermediate_sizes"]),
                "Weights": size["stored_weights"],
                "MB": f"{size['model_bytes'] / MB:,.2f}",
                "MiB": f"{size['model_bytes'] / MIB:,.2f}",
            }
        )
    return pd.DataFrame(rows)


def _run_lengths(numbers: Sequence[int]) -> str:
    """Equal numbers once, unequal ones in full: "6" or "6, 5, 6"."""
    return f"{numbers[0]:,}" if len(set(numbers)) == 1 else ", ".join(f"{number:,}" for number in numbers)


def heads_table(records: Mapping[str, Record], relation_heads: int | None) -> pd.DataFrame:
    """Attention heads of several models, and beside them the relation heads that their relations are made from.

    Args:
        relation_heads: number of relation heads; None for an objective without relations.
    """
    rows = []
    for name, record in records.items():
        model = record.results["model"]
        heads, row = model["heads"][0], {"Model": name, "Hidden size": model["hidden_size"]}
        row |= {"Attention heads": heads, "Size of an attention head": model["hidden_size"] // heads}
        if relation_heads:
            row |= {"Relation heads": relation_heads, "Size of a relation head": model["hidden_size"] // relation_heads}
        rows.append(row)
    return pd.DataFrame(rows)


# ---- distillation objectives -----------------------------------------------------------------------------------


def chain_objectives_table(students: Mapping[str, Record], tests: Mapping[str, pd.DataFrame]) -> pd.DataFrame:
    """Every student of a chain: how it learnt, what that demands, weights, accuracy, training time; or why there is
    none.

    Args:
        students: student's name -> its record.
        tests: student's name -> `paired_tests` of the student without distillation and this one, where both exist.
    """
    rows = []
    for name, record in students.items():
        results, row = record.results, {"Student": name}
        if student := read_student(name):  # a study of another version may have others
            entry = OBJECTIVES[student.objective]
            row |= {"Source": entry.source, "Demands": entry.demands}
        if record.refused:
            rows.append({**row, "Refused because": record.refused})
            continue
        row |= {
            "Weights": f"{results['size']['stored_weights']:,}",
            "Training s": f"{sum(phase['seconds'] for phase in results['training']['phases']):,.1f}",
        }
        for split, metrics in results["metrics"].items():
            row[f"{split}: accuracy %"] = percent(
                metrics["accuracy"], metrics["accuracy_low"], metrics["accuracy_high"]
            )
        for test in tests[name].to_dict("records") if name in tests else ():
            row[f"{test['split']}: points over none"] = with_interval(
                test["difference"], test["low"], test["high"], sign="+"
            )
        rows.append(row)
    frame = pd.DataFrame(rows)
    last = [name for name in ("Demands", "Refused because") if name in frame]
    return frame[[name for name in frame if name not in last] + last].astype(object).where(frame.notna(), None)


# ---- quantization ----------------------------------------------------------------------------------------------


def quantized_parts_table(results: Mapping[str, Any]) -> pd.DataFrame:
    """Weights and bytes of each part before and after quantization, and the share of the file each part takes.

    Args:
        results: of a quantization record.
    """
    before, after = results["size_before"]["bytes_per_part"], results["size"]["bytes_per_part"]
    weights = results["size"]["parts"]
    whole = sum(before.values()), sum(after.values())
    rows = [_part_row(part, weights[part], before[part], after[part], whole) for part in before]
    return pd.DataFrame([*rows, _part_row("all", sum(weights.values()), *whole, whole)])


def _part_row(part: str, weights: int, before: int, after: int, whole: tuple[int, int]) -> dict[str, Any]:
    return {
        "Part": part.replace("_", " "),
        "Weights": weights,
        "MB before": f"{before / MB:.3f}",
        "Share before %": f"{100 * before / whole[0]:.1f}",
        "MB after": f"{after / MB:.3f}",
        "Share after %": f"{100 * after / whole[1]:.1f}",
        "Smaller": f"{before / max(after, 1):.2f}x",
    }


def quantized_layers_table(layers: Sequence[Mapping[str, Any]]) -> pd.DataFrame:
    """Every module that owns weights: whether it was quantized, and its bytes before and after.

    Args:
        layers: `results["layers"]` of a quantization record.
    """
    return pd.DataFrame(
        [
            {
                "Module": layer["name"],
                "Kind": layer["kind"],
                "Quantized": "yes" if layer["quantized"] else "no",
                "Weights": layer["parameters"],
                "Bytes before": layer["bytes_before"],
                "Bytes after": layer["bytes_after"],
            }
            for layer in layers
        ]
    )


def quantized_models_table(sources: Mapping[str, Record], quantized: Mapping[str, Record]) -> pd.DataFrame:
    """Size and answers of several models in FP32 and quantized.

    Args:
        sources, quantized: name -> the FP32 model's record, and that of its quantized form.
    """
    rows = []
    for name, record in quantized.items():
        before, after = sources[name].results, record.results
        sizes = before["size"]["model_bytes"], after["size"]["model_bytes"]
        for split, metrics in after["metrics"].items():
            rows.append(
                {
                    "Model": name,
                    "Split": split,
                    "FP32 MB": f"{sizes[0] / MB:,.2f}",
                    "Quantized MB": f"{sizes[1] / MB:,.2f}",
                    "Smaller": f"{sizes[0] / sizes[1]:.2f}x",
                    "FP32 accuracy %": percent(before["metrics"][split]["accuracy"]),
                    "Quantized accuracy %": percent(metrics["accuracy"]),
                    "Same answer %": percent(after["agreement"][split]),
                }
            )
    return pd.DataFrame(rows)


def quick_latency_table(rows: Sequence[Mapping[str, Any]]) -> pd.DataFrame:
    """A quick look at latency: median and interquartile range of both forms, and the ratio of the medians.

    Args:
        rows: `results["quick_latency"]` of a quantization record.
    """
    frame = pd.DataFrame(rows)
    shown = []
    for name, group in frame.groupby("input", sort=False):
        by_model = group.set_index("model")
        medians, spread = by_model["median_ms"], by_model["iqr_ms"]
        shown.append(
            {
                "Input (quick look)": name,
                "Threads": int(group["threads"].iloc[0]),
                "Runs": int(group["runs"].iloc[0]),
                **{
                    f"{title} ms (IQR)": f"{medians[model]:.2f} ({spread[model]:.2f})"
                    for model, title in (("fp32", "FP32"), ("quantized", "Quantized"))
                },
                "FP32 / quantized": f"{medians['fp32'] / medians['quantized']:.2f}x",
            }
        )
    return pd.DataFrame(shown)
