"""The sheet of `edgemin measure` as text: one table a quantity, its unit in the header, and what a reader must know."""

import textwrap
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from tabulate import tabulate

MB, MIB = 1e6, 2**20
WIDTH = 120


def sheet_text(sheet: Mapping[str, Any]) -> str:
    """All tables of a sheet (see `measurement.sheet.measure_models`) for a terminal."""
    parts = [
        _parameters(sheet),
        _bytes(sheet),
        _operations(sheet),
        _latency(sheet),
        _speed_ups(sheet),
        _throughput(sheet),
        _memory(sheet),
        _machine(sheet),
    ]
    return "\n\n".join(part for part in parts if part)


def _block(title: str, rows: Sequence[Mapping[str, Any]], note: str = "") -> str:
    if not rows:
        return ""
    names = list(rows[0])
    cells = [[_text(row[name]) for name in names] for row in rows]
    sides = [
        "right" if all(row[place][:1] in "-+0123456789" or not row[place] for row in cells) else "left"
        for place in range(len(names))
    ]
    table = tabulate(cells, headers=names, tablefmt="simple", disable_numparse=True, colalign=sides)
    return "\n".join([title, table, *([textwrap.fill(note, WIDTH)] if note else [])])


def _text(value: Any) -> str:
    if value is None:
        return "-"
    return f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else str(value)


def _parameters(sheet: Mapping[str, Any]) -> str:
    rows = []
    for model in sheet["models"]:
        counts = model["parameters"]
        rows.append(
            {
                "Model": model["name"],
                "Listed": counts["framework"],
                "Stored": counts["stored"],
                "Paper's count": counts["paper"],
                **{part.replace("_", " "): number for part, number in counts["parts"].items()},
            }
        )
    return _block(
        "Parameters",
        _aligned(rows),
        "Listed: what the framework lists, blind to packed INT8 weights (of an .onnx file: the elements of "
        "all initializers). Stored: all weights wherever they are; the parts add up to it. Paper's count: "
        "what is listed once all linear layers are dynamically quantized.",
    )


def _aligned(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """The same columns in every row."""
    names = dict.fromkeys(name for row in rows for name in row)
    return [{name: row.get(name) for name in names} for row in rows]


def _bytes(sheet: Mapping[str, Any]) -> str:
    rows = []
    for model in sheet["models"]:
        size = model["bytes"]
        file = "-" if size["file"] is None else f"{size['file'] / MB:,.2f} ({size['file'] / MIB:,.2f} MiB)"
        rows.append(
            {
                "Model": model["name"],
                "File MB": file,
                "If all FP32": f"{size['fp32'] / MB:,.2f}",
                "Stored": f"{size['stored'] / MB:,.2f}",
                **{
                    part.replace("_", " "): _part_bytes(sizes)
                    for part, sizes in model["parameters"]["part_bytes"].items()
                },
            }
        )
    return _block(
        "Bytes (MB = 10^6 bytes)",
        _aligned(rows),
        "By part: what is stored in floating point + what is stored as integers with their scales.",
    )


def _part_bytes(sizes: Mapping[str, int]) -> str:
    texts = [f"{sizes['fp32'] / MB:,.2f}"] if sizes["fp32"] or not sizes["int8"] else []
    return " + ".join([*texts, *([f"{sizes['int8'] / MB:,.2f} INT8"] if sizes["int8"] else [])])


def _operations(sheet: Mapping[str, Any]) -> str:
    rows, notes = [], []
    for model in sheet["models"]:
        for name, item in model["operations"].items():
            rows.append(
                {
                    "Model": model["name"],
                    "Input": name,
                    "MMACs": f"{item['macs'] / 1e6:,.2f}",
                    "MFLOPs": f"{item['flops'] / 1e6:,.2f}",
                    "Closed formula": _mega(item["closed_formula_macs"]),
                    "fvcore": _mega(item["fvcore_macs"]),
                    "torch's counter": _mega(item["torch_flop_counter_macs"]),
                    "fvcore / formula": _ratio(item["fvcore_ratio"]),
                    "counter / formula": _ratio(item["torch_flop_counter_ratio"]),
                }
            )
            notes += [f"{model['name']}: {item['note']}"] if item["note"] else []
    return _block(
        "Operations of one forward (1 MAC = 2 FLOPs; the three counts in MMACs)", rows, " ".join(dict.fromkeys(notes))
    )


def _mega(value: float | None) -> str:
    return "-" if value is None else f"{value / 1e6:,.2f}"


def _ratio(value: float | None) -> str:
    return "-" if value is None else f"{value:.4f}"


def _latency(sheet: Mapping[str, Any]) -> str:
    protocol = sheet["protocol"]
    rows = [
        {
            "Input": row["input"],
            "Threads": row["threads"],
            "Model": row["model"],
            "Back end": row["back_end"],
            "Median ms": f"{row['median_ms']:.3f}" + ("*" if row["noisy"] else ""),
            "IQR ms": f"{row['iqr_ms']:.3f}",
            "p90 ms": f"{row['p90_ms']:.3f}",
            "N": row["runs"],
            "Bound ms": f"{row['bound_ms']:.3f}",
            "Times the bound": f"{row['of_bound']:.1f}",
        }
        for row in _in_order(sheet["latency"])
    ]
    title = "Latency of one row"
    if protocol["name"] == "quick":
        title += " (QUICK LOOK: too few runs for a result)"
    return _block(
        title,
        rows,
        f"All models take turns, one call each a round; at least {protocol['runs']} rounds"
        + (f" and {protocol['seconds']:g} s a variant on average" if protocol["seconds"] else "")
        + ". Bound: the least time at this machine's measured peak speed and bandwidth. * interquartile "
        "range over 10 % of the median.",
    )


def _in_order(rows: Iterable[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """Rows of the same input and threads together, in their own order."""
    rows = list(rows)
    places = dict.fromkeys((row["threads"], row["input"]) for row in rows)
    order = {place: number for number, place in enumerate(places)}
    return sorted(rows, key=lambda row: order[row["threads"], row["input"]])


def _speed_ups(sheet: Mapping[str, Any]) -> str:
    rows = [
        {
            "Input": row["input"],
            "Threads": row["threads"],
            "Model": row["model"],
            "Back end": row["back_end"],
            "Over": row["baseline"],
            "Times as fast [95 % interval]": f"{row['ratio']:.2f} [{row['low']:.2f}, {row['high']:.2f}]",
        }
        for row in _in_order(sheet["speed_ups"])
    ]
    return _block("Speed-ups (ratio of medians; bootstrap over rounds, both models of a round together)", rows)


def _throughput(sheet: Mapping[str, Any]) -> str:
    rows = sheet["throughput"]
    if not rows:
        return ""
    batches = list(dict.fromkeys(row["batch"] for row in rows))
    found = {(row["model"], row["batch"]): row for row in rows}
    table = [
        {
            "Model": name,
            **{
                f"batch {batch}": f"{found[name, batch]['rows_per_second']:,.1f}"
                + ("*" if found[name, batch]["noisy"] else "")
                for batch in batches
            },
        }
        for name in dict.fromkeys(row["model"] for row in rows)
    ]
    return _block(f"Throughput (rows a second; {rows[0]['length']} tokens, threads: {rows[0]['threads']})", table)


def _memory(sheet: Mapping[str, Any]) -> str:
    rows = []
    for model in sheet["models"]:
        memory, energy = model.get("memory"), model["energy"]
        joules = "not measured" if energy["joules"] is None else f"{energy['joules']:.4f}"
        measured = (
            {}
            if memory is None
            else {
                "Peak MB": f"{memory['peak_bytes'] / MB:,.1f}",
                "Imports alone MB": f"{memory['baseline_bytes'] / MB:,.1f}",
                "Above imports MB": f"{(memory['peak_bytes'] - memory['baseline_bytes']) / MB:,.1f}",
            }
        )
        rows.append(
            {
                "Model": model["name"],
                **measured,
                "Joules a row": joules,
                "CPU-seconds a row": f"{energy['cpu_seconds']:.5f}",
            }
        )
    energy = sheet["models"][0]["energy"]
    return _block(
        "Memory of a fresh process, and energy",
        rows,
        f"Energy of one row of {energy['input']}, threads: {energy['threads']}; joules from RAPL where it "
        "can be read, for all that ran on the processor meanwhile.",
    )


def _machine(sheet: Mapping[str, Any]) -> str:
    environment = sheet["environment"]
    flags = ", ".join(name for name, there in environment["processor_flags"].items() if there)
    lines = [
        f"Machine: {environment['processor']}, {environment['available_cores']} cores "
        f"({flags or 'no flags known'}), "
        f"{environment['memory_bytes'] / 1e9:.0f} GB, {environment['operating_system']}, Python "
        f"{environment['python']}; "
        + ", ".join(f"{name} {version}" for name, version in environment["packages"].items())
        + "."
    ]
    for threads, peaks in sheet["peaks"].items():
        largest = peaks["bandwidth"][-1]
        lines.append(
            f"Peak with {threads} thread(s): {peaks['fp32_macs_per_second'] / 1e9:.1f} GMAC/s FP32 "
            f"(torch.mm), {peaks['int8_macs_per_second'] / 1e9:.1f} GMAC/s INT8 ({peaks['int8_kernel']}), "
            f"{largest[1] / 1e9:.1f} GB/s from memory."
        )
    if any(model["int8"] for model in sheet["models"]):
        lines.append(sheet["int8_note"])
    return "\n".join(textwrap.fill(line, WIDTH, subsequent_indent="  ") for line in [*lines, *sheet["notes"]])
