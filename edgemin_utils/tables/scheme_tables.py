"""Tables and sentences that compare quantization schemes, layers and orders of steps, as notebook 04 shows them.

Data frames made from what records hold; `stage_tables.show` draws them. A refused method keeps its row, with the
sentence that says why.
"""

from collections.abc import Mapping
from typing import Any

import pandas as pd

from edgemin_utils.number_text import percent, signed
from edgemin_utils.records import Record
from edgemin_utils.statistics import accuracy_interval
from edgemin_utils.tables.stage_tables import MB


def chain_schemes_table(source: Record, quantized: Mapping[str, Record]) -> pd.DataFrame:
    """Size, accuracy, agreement and a quick look at latency of one model under several schemes.

    Args:
        source: the float model's record.
        quantized: scheme -> the record of its quantized form, refused ones too.
    """
    before = source.results["size"]["model_bytes"]
    rows = [
        {
            "Scheme": "FP32 (PyTorch)",
            "MB": f"{before / MB:,.2f}",
            "Smaller": "1.00x",
            **_accuracies(source.results["metrics"]),
            "Note": "",
        }
    ]
    for scheme, record in quantized.items():
        results = record.results
        if record.refused:
            rows.append({"Scheme": scheme, "Note": f"refused: {record.refused}"})
            continue
        size = results["size"]["model_bytes"]
        agreement = {f"Same answer % ({split})": percent(share) for split, share in results["agreement"].items()}
        rows.append(
            {
                "Scheme": scheme,
                "MB": f"{size / MB:,.2f}",
                "Smaller": f"{before / size:.2f}x",
                **_accuracies(results["metrics"]),
                **agreement,
                **_quick_ratios(results["quick_latency"]),
                "Note": results["method"]["arithmetic"],
            }
        )
    frame = pd.DataFrame(rows).fillna("")
    return frame[[*(name for name in frame if name != "Note"), "Note"]]


def fused_graphs_table(quantized: Mapping[str, Record]) -> pd.DataFrame:
    """What was fused in each ONNX graph, and its most frequent operators.

    Args:
        quantized: scheme -> record; those of PyTorch and refused ones are left out.
    """
    rows = []
    for scheme, record in quantized.items():
        operators = record.results.get("method", {}).get("operators")
        if operators:
            most = ", ".join(f"{count} {name}" for name, count in list(operators.items())[:5])
            rows.append(
                {
                    "Scheme": scheme,
                    "Attention": record.results["method"]["fusion"],
                    "Operators": sum(operators.values()),
                    "Most frequent": most,
                }
            )
    return pd.DataFrame(rows)


def aware_table(records: Mapping[str, Record]) -> pd.DataFrame:
    """Accuracy with float and with imitated numbers, before and after training under fake quantization.

    Args:
        records: name -> record of a model that was trained behind a quantize-aware step.
    """
    rows = []
    for name, record in records.items():
        results = record.results
        for split, metrics in results["metrics"].items():
            before = results.get("metrics_before_fake_quantized", {}).get(split)
            rows.append(
                {
                    "Model": name,
                    "Imitates": results["fake_quantization"].upper(),
                    "Split": split,
                    "FP32 before %": percent(results["metrics_before"][split]["accuracy"]),
                    "Imitated before %": percent(before["accuracy"]) if before else "",
                    "FP32 after %": percent(metrics["accuracy"]),
                    "Imitated after %": percent(results["metrics_fake_quantized"][split]["accuracy"]),
                }
            )
    return pd.DataFrame(rows)


def chain_orders_table(models: Mapping[str, Record]) -> pd.DataFrame:
    """The same steps in several orders: accuracy, weights and bytes of what stands at the end.

    Args:
        models: recipe -> record of its last model, refused ones too.
    """
    rows = []
    for name, record in models.items():
        row = {"Recipe": name, "Steps": ", then ".join(record.content["steps"])}
        if record.refused:
            rows.append({**row, "Note": f"refused: {record.refused}"})
            continue
        size = record.results["size"]
        rows.append(
            {
                **row,
                **_accuracies(record.results["metrics"]),
                "Weights": f"{size['stored_weights']:,}",
                "MB": f"{size['model_bytes'] / MB:,.2f}",
            }
        )
    return pd.DataFrame(rows).fillna("")


def bundle_table(source: Record, quantized: Mapping[str, Record], bundle: Mapping[str, Any]) -> pd.DataFrame:
    """The edge bundle as one more row of `chain_schemes_table`.

    Args:
        bundle: content of its bundle.json, or {"refused": why}.
    """
    if "refused" in bundle:
        row = {"Scheme": "edge bundle", "Note": f"refused: {bundle['refused']}"}
    else:
        measured, before = bundle["measured"], source.results["size"]["model_bytes"]
        row = {
            "Scheme": "edge bundle",
            "MB": f"{measured['model_bytes'] / MB:,.2f}",
            "Smaller": f"{before / measured['model_bytes']:.2f}x",
            "Note": bundle["models"]["model.onnx"]["what"],
        }
        for split, found in measured["accuracy"].items():
            low_high = accuracy_interval(round(found["bundle"] * found["rows"]), found["rows"])
            row[f"Accuracy % ({split})"] = percent(found["bundle"], low_high.low, low_high.high)
            row[f"Same answer % ({split})"] = percent(found["agreement"])
        row |= _quick_ratios(measured["latency"], "pytorch", "bundle")
    frame = pd.concat([chain_schemes_table(source, quantized), pd.DataFrame([row])], ignore_index=True).fillna("")
    return frame[[*(name for name in frame if name != "Note"), "Note"]]


def bundle_sentences(bundle: Mapping[str, Any]) -> list[str]:
    """What the bundle costs and keeps, or why there is none."""
    if "refused" in bundle:
        return [f"There is no bundle: {bundle['refused']}."]
    measured = bundle["measured"]
    medians = {(row["model"], row["input"]): row for row in measured["latency"]}
    sentences = []
    for name in dict.fromkeys(row["input"] for row in measured["latency"]):
        ours, theirs = medians["bundle", name], medians["pytorch", name]
        sentences.append(
            f"{name}: {ours['median_ms']:.2f} ms on one thread (IQR {ours['iqr_ms']:.2f}, {ours['runs']} runs), where "
            f"the model that it was made from takes {theirs['median_ms']:.2f} ms in PyTorch, timed in turns."
        )
    total = sum(item["bytes"] for item in bundle["files"].values())
    return [
        *sentences,
        f"The whole folder has {total / MB:,.2f} MB in {len(bundle['files'])} files beside "
        f"bundle.json; {measured['model_bytes'] / MB:,.2f} MB of it are the model.",
    ]


def sensitivity_sentences(sensitivity: Mapping[str, Any]) -> list[str]:
    """Which layer loses most alone, in each number format.

    Args:
        sensitivity: results of a layer-sensitivity record.
    """
    frame, sentences = pd.DataFrame(sensitivity["layers"]), []
    for number_format, part in frame.groupby("format", sort=False):
        worst = part.loc[part["divergence"].idxmax()]
        changed = 100 * (worst["accuracy"] - sensitivity["accuracy"])
        sentences.append(
            f"{number_format.upper()}: `{worst['layer']}` moves the answers most when it alone is quantized "
            f"({worst['divergence']:.2g} nats; median of the {len(part)} layers {part['divergence'].median():.2g}). It "
            f"changes {100 * (1 - worst['agreement']):.1f} % of the answers and accuracy by {signed(changed)} points."
        )
    first, second = (
        set(part.nlargest(3, "divergence")["layer"]) for _, part in list(frame.groupby("format", sort=False))[:2]
    )
    sentences.append(f"Of the three most sensitive layers, {len(first & second)} are the same in both formats.")
    return sentences


def _accuracies(metrics: Mapping[str, Mapping[str, float]]) -> dict[str, str]:
    return {
        f"Accuracy % ({split})": percent(each["accuracy"], each["accuracy_low"], each["accuracy_high"])
        for split, each in metrics.items()
    }


def _quick_ratios(rows: list[Mapping[str, Any]], before: str = "fp32", after: str = "quantized") -> dict[str, str]:
    medians = {(row["input"], row["model"]): row["median_ms"] for row in rows}
    return {
        f"Faster at {name} (quick look)": f"{medians[name, before] / medians[name, after]:.2f}x"
        for name in dict.fromkeys(row["input"] for row in rows)
    }
