"""Tables of cuts: what one would take away and what it took, layer by layer, and accuracy before it, right after it and
after recovery."""

from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd

from edgemin_utils.number_text import percent, signed
from edgemin_utils.records import Record
from edgemin_utils.setting_values import whole_share
from edgemin_utils.tables.stage_tables import MB


def cut_of(record: Record) -> str:
    """The name of the cut that made a pruned model, as in "gradient-heads-0.2"."""
    return record.content["steps"][-1].removeprefix("prune:")


def chain_cuts_table(dense: Record, cuts: Sequence[Record]) -> pd.DataFrame:
    """Every cut of one model: what went, how much that is, and accuracy on the way; a refused one with its sentence.

    Args:
        dense: the record of the model that was cut.
        cuts: records of `pruning/...` stages that started from it.
    """
    rows = []
    for record in cuts:
        if record.refused:
            rows.append({"Cut": cut_of(record), "What went": f"refused: {record.refused}"})
            continue
        results, whole = record.results, dense.results["size"]["stored_weights"]
        for split, metrics in results["metrics"].items():
            before, after_cut = (results[name][split]["accuracy"] for name in ("metrics_before", "metrics_after_cut"))
            rows.append(
                {
                    "Cut": cut_of(record),
                    "What went": what_went(dense.results, results),
                    "Split": split,
                    "Weights removed": f"{results['parameters_removed']:,}",
                    "Removed %": f"{100 * results['parameters_removed'] / whole:.1f}",
                    "MB": f"{results['size']['model_bytes'] / MB:,.2f}",
                    "Before %": percent(before),
                    "After the cut %": percent(after_cut),
                    "After recovery % [95 % interval]": percent(
                        metrics["accuracy"], metrics["accuracy_low"], metrics["accuracy_high"]
                    ),
                    "Change (points)": signed(100 * (metrics["accuracy"] - before)),
                }
            )
    return pd.DataFrame(rows)


def rounds_table(cuts: Sequence[Record]) -> pd.DataFrame:
    """The rounds of iterative cuts, one row each; nothing for cuts made at once."""
    rows = []
    for record in cuts:
        rounds = record.results.get("rounds", [])
        for number, step in enumerate(rounds if len(rounds) > 1 else [], start=1):
            for split in step["metrics_after_cut"]:
                rows.append(
                    {
                        "Cut": cut_of(record),
                        "Round": number,
                        "Split": split,
                        "Weights removed so far": step["parameters_removed"],
                        "After the cut %": percent(step["metrics_after_cut"][split]["accuracy"]),
                        "After recovery %": percent(step["metrics_after_recovery"][split]["accuracy"]),
                    }
                )
    return pd.DataFrame(rows)


def what_went(dense: Mapping[str, Any], pruned: Mapping[str, Any]) -> str:
    """What a cut took away, in words: "6 of 36 heads, layer 2, 1,204 of 3,000 tokens".

    Args:
        dense, pruned: results of the records before and after.
    """
    heads, neurons = sum(map(len, pruned["removed_heads"])), sum(pruned["removed_neurons"])
    layers, tokens = pruned["removed_layers"], pruned["vocabulary"]
    parts = []
    if heads:
        parts.append(f"{heads:,} of {sum(dense['model']['heads']):,} heads")
    if neurons:
        parts.append(f"{neurons:,} of {sum(dense['model']['intermediate_sizes']):,} neurons")
    if layers:
        numbers = ", ".join(map(str, layers))
        parts.append(f"layer{'s' if len(layers) > 1 else ''} {numbers} (of {dense['model']['layers']})")
    if tokens and tokens["tokens_before"] > tokens["tokens_after"]:
        parts.append(f"{tokens['tokens_before'] - tokens['tokens_after']:,} of {tokens['tokens_before']:,} tokens")
    return ", ".join(parts) or "nothing"


def planned_cut_table(heads: Sequence[int], ratio: float, scope: str) -> pd.DataFrame:
    """What int(ratio x heads) removes, and what share that really is: layer by layer, or of all heads at once.

    Args:
        heads: heads of each layer before the cut.
        ratio: share asked for.
        scope: "layer" or "global", as `pruning.plan_removal`.
    """
    groups = [(f"layer {number}", count) for number, count in enumerate(heads)] if scope == "layer" else []
    rows = [_planned_row(name, count, ratio, whole_share(ratio, count)) for name, count in groups]
    total = sum(heads)
    gone = sum(row["Removed"] for row in rows) if scope == "layer" else whole_share(ratio, total)
    return pd.DataFrame([*rows, _planned_row("all layers", total, ratio, gone)])


def _planned_row(name: str, count: int, ratio: float, removed: int) -> dict[str, Any]:
    return {
        "Where": name,
        "Heads": count,
        "Ratio x heads": f"{ratio * count:.2f}",
        "Removed": removed,
        "Share removed %": f"{100 * removed / count:.1f}",
    }


def cut_by_layer_table(dense: Mapping[str, Any], pruned: Mapping[str, Any]) -> pd.DataFrame:
    """Which heads went, layer by layer; of a layer that went as a whole nothing is left.

    Args:
        dense, pruned: results of the student's record before and after pruning.
    """
    left = {name: iter(pruned["model"][name]) for name in ("heads", "intermediate_sizes")}
    rows = []
    for number, (heads, neurons, removed) in enumerate(
        zip(dense["model"]["heads"], dense["model"]["intermediate_sizes"], pruned["removed_heads"], strict=True)
    ):
        dropped = number in pruned["removed_layers"]
        rows.append(
            {
                "Layer": str(number),
                "Heads before": heads,
                "Removed heads": "the whole layer" if dropped else removed,
                "Heads after": 0 if dropped else next(left["heads"]),
                "Neurons before": neurons,
                "Neurons after": 0 if dropped else next(left["intermediate_sizes"]),
            }
        )
    return pd.DataFrame(rows)


def matrix_shapes_table(dense: Sequence[Any], pruned: Sequence[Any], dropped: Sequence[int] = ()) -> pd.DataFrame:
    """Shapes (rows x columns) of every layer's weight matrices, with an arrow where the cut changed them.

    Args:
        dense, pruned: `encoders.encoder_layers` of the model before and after.
        dropped: numbers of the dense model's layers that went as a whole.
    """
    names = ("query", "key", "value", "attention_output", "feed_forward_in", "feed_forward_out")
    rows, left = [], iter(pruned)
    for number, before in enumerate(dense):
        after = None if number in dropped else next(left)
        row = {"Layer": str(number)}
        for name in names:
            old = tuple(getattr(before, name).weight.shape)
            new = old if after is None else tuple(getattr(after, name).weight.shape)
            text = " x ".join(map(str, old))
            changed = text if old == new else f"{text} → {' x '.join(map(str, new))}"
            row[name.replace("_", " ")] = "gone" if after is None else changed
        rows.append(row)
    return pd.DataFrame(rows)


def ways_of_cutting(cuts: Sequence[Record]) -> dict[str, list[Mapping[str, Any]]]:
    """Cuts that differ only in how much they take, together: a name without the ratios -> their results.

    Random draws of one kind are together as well; refused cuts are left out.
    """
    ways: dict[str, list[Mapping[str, Any]]] = {}
    for record in cuts:
        if not record.refused:
            ways.setdefault(_way(record.results["cut"], record.results["criterion"]), []).append(record.results)
    return ways


def criterion_sentences(cuts: Sequence[Record]) -> list[str]:
    """How each criterion fares against random cuts of the same amount and kind, where there are any.

    Args:
        cuts: records of cuts of one model.
    """
    by_kind: dict[tuple, dict[str, list[Mapping[str, Any]]]] = {}
    for record in cuts:
        if not record.refused and record.results["criterion"]:
            cut = record.results["cut"]
            kind = tuple(
                value for name, value in sorted(cut.items()) if name not in ("pruning_criterion", "pruning_draw")
            )
            by_kind.setdefault(kind, {}).setdefault(record.results["criterion"], []).append(
                {"name": cut_of(record), **record.results}
            )
    sentences = []
    for criteria in by_kind.values():
        random = criteria.pop("random", [])
        for ranked in (result for results in criteria.values() for result in results if random):
            for split, metrics in ranked["metrics"].items():
                cut, recovered = (
                    100
                    * (
                        ranked[entry][split]["accuracy"]
                        - sum(each[entry][split]["accuracy"] for each in random) / len(random)
                    )
                    for entry in ("metrics_after_cut", "metrics")
                )
                sentences.append(
                    f"**{split}**: `{ranked['name']}` lies {signed(cut)} points from the mean of {len(random)} random "
                    f"cut{'s' if len(random) > 1 else ''} of the same size right after the cut and {signed(recovered)} "
                    f"after recovery ({metrics['rows']:,} rows)."
                )
    return sentences


def _way(cut: Mapping[str, Any], criterion: str) -> str:
    """A way of cutting without its amounts: "gradient heads and neurons, global, 4 rounds"."""
    settings = {
        "heads": "head_prune_ratio",
        "neurons": "feed_forward_prune_ratio",
        "layers": "pruned_layers",
        "vocabulary": "prune_vocabulary",
    }
    kinds = [name for name, setting in settings.items() if cut[setting]]
    if cut["pruned_layers"] and not cut["pruned_layers"].startswith("least"):
        orders = {"top": "top layers", "spaced": "spaced layers"}
        kinds[kinds.index("layers")] = orders.get(cut["pruned_layers"].partition("-")[0], "named layers")
    rounds = cut["pruning_rounds"]
    return ", ".join(
        [
            f"{criterion} {' and '.join(kinds)}".strip(),
            *(["global"] if cut["pruning_scope"] == "global" else []),
            *([f"{rounds} rounds"] if rounds > 1 else []),
            *([] if cut["recovery_distillation"] else ["labels alone"]),
            *([] if cut.get("recovery", True) else ["no recovery"]),
        ]
    )
