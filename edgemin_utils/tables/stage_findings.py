"""What a single stage's numbers say, in Markdown sentences that code writes from its record.

They hold for any task and profile: whether a step helped is decided from the numbers, and what the rows cannot tell is
said to be so.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from edgemin_utils.number_text import p_value_text, percent, signed
from edgemin_utils.tables.findings import effect_words
from edgemin_utils.tables.stage_tables import MB, MIB


def bullets(sentences: Sequence[str]) -> str:
    """Sentences as a Markdown list."""
    return "\n".join(f"- {sentence}" for sentence in sentences)


# ---- teacher ---------------------------------------------------------------------------------------------------


def data_sentences(data: Mapping[str, Any]) -> list[str]:
    """Where the rows come from, and what was left out of them.

    Args:
        data: the teacher's `results["data"]`.
    """
    cut, rows = sum(data["truncated_rows"].values()), sum(each["rows"] for each in data["statistics"].values())
    longest = (
        f"{cut:,} of {rows:,} rows were longer than the model takes and were cut." if cut else "No row had to be cut."
    )
    return [f"Rows: {data['source']}.", longest, *(f"{note}." for note in data["notes"])]


def teacher_sentences(results: Mapping[str, Any]) -> list[str]:
    """The teacher's accuracy beside that of always giving the most frequent label, and its most frequent error."""
    sentences, labels = [], results["data"]["labels"]
    for split, metrics in results["metrics"].items():
        counts = results["data"]["statistics"][split]["labels"]
        common = max(counts, key=counts.get)
        share = counts[common] / sum(counts.values())
        word = "more than" if metrics["accuracy_low"] > share else "which is not clearly more than"
        sentences.append(
            f"**{split}**: {100 * metrics['accuracy']:.1f} % of {metrics['rows']:,} rows are right (95 % interval "
            f"{100 * metrics['accuracy_low']:.1f} to {100 * metrics['accuracy_high']:.1f}), {word} the "
            f'{100 * share:.1f} % of always answering "{common}".'
        )
        sentences.append(_most_frequent_error(split, results["confusion"][split], labels))
    return sentences


def _most_frequent_error(split: str, matrix: Sequence[Sequence[int]], labels: Sequence[str]) -> str:
    counts = np.array(matrix)
    wrong = counts - np.diag(np.diag(counts))
    if not wrong.any():
        return f"**{split}**: no row is wrong."
    true, predicted = np.unravel_index(wrong.argmax(), wrong.shape)
    return (
        f'**{split}**: the most frequent error is "{labels[true]}" taken for "{labels[predicted]}", '
        f"{wrong[true, predicted]:,} of {counts[true].sum():,} such rows."
    )


# ---- every comparison ------------------------------------------------------------------------------------------


def comparison_sentences(step: str, tests: pd.DataFrame) -> list[str]:
    """Whether a step helped, harmed or made no difference that the rows can show, split by split.

    Args:
        step: "distillation", "pruning with recovery", "quantization", ... as the sentence's subject; or the name of
            a method that is set beside another.
        tests: `stage_tables.paired_tests` of the model without and the one with the step.
    """
    return [
        f"**{row['split']}**: {step} {effect_words(step, row['difference'], row['p_value'])}: "
        f"{signed(row['difference'])} points (95 % interval {signed(row['low'])} to {signed(row['high'])}, "
        f"p {p_value_text(row['p_value']).replace('<', '< ')}, McNemar, {row['rows']:,} rows, one seed)."
        for row in tests.to_dict("records")
    ]


def kept_sentences(name: str, teacher: Mapping[str, Mapping], student: Mapping[str, Mapping]) -> list[str]:
    """What share of the teacher's accuracy a model reaches.

    Args:
        teacher, student: split -> metrics.
    """
    return [
        f"**{split}**: {name} reaches {100 * metrics['accuracy'] / teacher[split]['accuracy']:.1f} % of the "
        f"teacher's accuracy ({percent(metrics['accuracy'])} % of {percent(teacher[split]['accuracy'])} %)."
        for split, metrics in student.items()
        if teacher[split]["accuracy"] > 0
    ]


# ---- distillation ----------------------------------------------------------------------------------------------


def relation_sentences(relations: Mapping[str, Any]) -> list[str]:
    """How far the student's relation matrices of the drawn sentence are from the teacher's, before and after.

    The distance is the mean over the tokens of half the summed absolute difference of two rows (total variation, 0 to
    1), taken after averaging over relation heads.

    Args:
        relations: `results["relations"]`; empty for an objective without relations.
    """
    if not relations:
        return ["This student was trained without a relation objective, so there are no relations to compare."]
    models, sentences = relations["models"], []
    for pair in models["teacher"]:
        before, after = (
            _total_variation(models["teacher"][pair], models[name][pair])
            for name in ("student before", "student after")
        )
        word = "nearer to" if after < before else "further from" if after > before else "as far from"
        sentences.append(
            f"{pair}: after training the student is {word} the teacher than before "
            f"(distance {before:.3g} before, {after:.3g} after)."
        )
    return sentences


def _total_variation(first: Any, second: Any) -> float:
    return float(np.abs(np.asarray(first) - np.asarray(second)).sum(axis=1).mean() / 2)


# ---- pruning ---------------------------------------------------------------------------------------------------


def importance_sentences(scan: Mapping[str, Any]) -> list[str]:
    """Whether the criteria rank the units alike, and what is left when half of the units are masked.

    Args:
        scan: results of a scan of heads, neurons or layers.
    """
    units, total = scan["units"], scan["total"]
    curves = scan["curves"]
    if max(map(len, curves.values())) < 2:
        return [f"There is {total:,} {units.removesuffix('s')} alone, which has to stay."]
    sentences = [*_rank_correlations(scan["importance"], units)]
    half = total // 2
    left = {name: _accuracy_near(curve, half) for name, curve in curves.items()}
    random = [value for name, value in left.items() if name.startswith("random")]
    whole = next(iter(curves.values()))[0]["accuracy"]
    shown = ", ".join(
        f"{percent(value)} % {'from the top' if name == 'top' else f'by {name}'}"
        for name, value in left.items()
        if not name.startswith("random")
    )
    chance = f", {percent(float(np.mean(random)))} % in a random order (mean of {len(random)})" if random else ""
    sentences.append(
        f"With half of the {units} masked ({half:,} of {total:,}) and no training in between, accuracy goes from "
        f"{percent(whole)} % to {shown}{chance}, on {scan['rows']:,} {scan['split']} rows."
    )
    return sentences


def _rank_correlations(importance: Mapping[str, Sequence[Sequence[float]]], units: str) -> list[str]:
    """The first criterion's ranks against each other one's; nothing where there are fewer than two."""
    from scipy.stats import spearmanr

    values = {name: np.concatenate([np.asarray(layer) for layer in layers]) for name, layers in importance.items()}
    if len(values) < 2:
        return []
    first, *others = values
    agreement = ", ".join(f"{name} {float(spearmanr(values[first], values[name]).statistic):+.2f}" for name in others)
    return [
        f"Rank correlation (Spearman) with {first} over all {len(values[first])} {units}: {agreement} "
        "(1: the same order, 0: unrelated)."
    ]


def _accuracy_near(curve: Sequence[Mapping[str, float]], removed: int) -> float:
    return min(curve, key=lambda point: abs(point["removed"] - removed))["accuracy"]


def cut_sentences(dense: Mapping[str, Any], pruned: Mapping[str, Any]) -> list[str]:
    """What the cut really removed: heads, neurons, layers, tokens, parameters by formula and by count, bytes.

    Args:
        dense, pruned: results of the student's record before and after pruning.
    """
    before, after = dense["size"], pruned["size"]
    heads, gone = sum(dense["model"]["heads"]), sum(map(len, pruned["removed_heads"]))
    neurons, neurons_gone = sum(dense["model"]["intermediate_sizes"]), sum(pruned["removed_neurons"])
    layers, tokens = pruned["removed_layers"], pruned["vocabulary"]
    counted = before["stored_weights"] - after["stored_weights"]
    same = "the same" if counted == pruned["parameters_removed"] else "**not** the same"
    sentences = []
    if pruned["ratio"]:
        sentences.append(
            f"{gone} of {heads} heads are gone: {100 * gone / heads:.1f} %, where the setting asks for "
            f"{100 * pruned['ratio']:g} %."
        )
    if neurons_gone:
        sentences.append(
            f"{neurons_gone:,} of {neurons:,} feed-forward neurons are gone ({100 * neurons_gone / neurons:.1f} %)."
        )
    if layers:
        sentences.append(
            f"{len(layers)} of {dense['model']['layers']} layers went as a whole: number "
            f"{', '.join(map(str, layers))}, counted from 0."
        )
    if tokens:
        sentences.append(_vocabulary_sentence(tokens, pruned["metrics"]))
    return [
        *sentences,
        f"Parameters removed: {pruned['parameters_removed']:,} by the formula, {counted:,} by counting before and "
        f"after ({same}). That is {100 * counted / before['stored_weights']:.1f} % of the model.",
        f"The saved file goes from {before['model_bytes'] / MB:.2f} MB to {after['model_bytes'] / MB:.2f} MB "
        f"({before['model_bytes'] / after['model_bytes']:.2f} times smaller).",
    ]


def _vocabulary_sentence(tokens: Mapping[str, Any], metrics: Mapping[str, Mapping[str, Any]]) -> str:
    gone = tokens["tokens_before"] - tokens["tokens_after"]
    if not gone:
        return f"The texts need every one of the {tokens['tokens_before']:,} tokens, so none is gone."
    rows = ", ".join(
        f"{count:,} of {metrics[split]['rows']:,} {split} rows"
        for split, count in tokens["rows_in_other_tokens"].items()
    )
    return (
        f"{gone:,} of {tokens['tokens_before']:,} tokens are gone "
        f"({100 * gone / tokens['tokens_before']:.1f} %); {rows} are now cut into other tokens than before."
    )


def recovery_sentences(pruned: Mapping[str, Any]) -> list[str]:
    """Accuracy before the cut, right after it and after recovery, in points.

    Args:
        pruned: results of the student's record after pruning.
    """
    sentences = []
    for split, metrics in pruned["metrics"].items():
        before, cut, after = (
            100 * each["accuracy"]
            for each in (pruned["metrics_before"][split], pruned["metrics_after_cut"][split], metrics)
        )
        sentences.append(
            f"**{split}**: {before:.1f} % before the cut, {cut:.1f} % right after it ({signed(cut - before)} "
            f"points), {after:.1f} % after recovery ({signed(after - cut)}; {signed(after - before)} in all)."
        )
    return sentences


# ---- quantization ----------------------------------------------------------------------------------------------


def size_sentences(results: Mapping[str, Any]) -> list[str]:
    """How much smaller the file is, and which part of the model takes most of it now.

    Args:
        results: of a quantization record.
    """
    before, after = results["size_before"]["model_bytes"], results["size"]["model_bytes"]
    parts = results["size"]["bytes_per_part"]
    largest = max(parts, key=parts.get)
    changed = [layer for layer in results["layers"] if layer["quantized"]]
    covered = sum(layer["parameters"] for layer in changed) / sum(layer["parameters"] for layer in results["layers"])
    return [
        f"{len(changed)} of {len(results['layers'])} modules that own weights were quantized; they hold "
        f"{100 * covered:.1f} % of the weights. Nothing was removed from any of them.",
        f"The saved file goes from {before / MB:.2f} MB ({before / MIB:.2f} MiB) to {after / MB:.2f} MB "
        f"({after / MIB:.2f} MiB): {before / after:.2f} times smaller.",
        f"The largest part is now {largest.replace('_', ' ')}, with "
        f"{100 * parts[largest] / sum(parts.values()):.1f} % of the bytes.",
    ]


def agreement_sentences(results: Mapping[str, Any]) -> list[str]:
    """On how many dev rows the quantized model gives another answer than the one that it was made from.

    Args:
        results: of a quantization record.
    """
    sentences = []
    for split, share in results["agreement"].items():
        rows = results["metrics"][split]["rows"]
        other = round((1 - share) * rows)
        sentences.append(
            f"**{split}**: the quantized model gives another answer than FP32 on {other:,} of {rows:,} "
            f"rows ({100 * (1 - share):.1f} %)."
        )
    return sentences


def counting_sentences(results: Mapping[str, Any]) -> list[str]:
    """The counting artefact: what the framework lists after quantization beside the weights that are stored.

    Args:
        results: of a quantization record.
    """
    size, before, parts = results["size"], results["size_before"], results["size"]["parts"]
    listed, stored = size["framework_parameters"], size["stored_weights"]
    if listed == stored:
        return [f"`model.parameters()` lists all {stored:,} weights that are stored, as before: it computes in FP32."]
    sentences = [
        f"`model.parameters()` lists {before['framework_parameters']:,} parameters before quantization and {listed:,} "
        f"after it, {before['framework_parameters'] / max(listed, 1):.2f} times fewer.",
        f"Yet {before['stored_weights']:,} weights are stored before and {stored:,} after: the {stored - listed:,} "
        "that the list leaves out lie in packed buffers or in the graph.",
    ]
    if listed == parts["embeddings"] + parts["norms"]:
        sentences.append(
            f"What it still lists is the embeddings and the norms alone ({parts['embeddings']:,} + "
            f"{parts['norms']:,} = {listed:,}). A count taken there looks like pruning and is none."
        )
    return sentences


def quick_latency_sentence(results: Mapping[str, Any]) -> str:
    """The quick look in one sentence, labelled as such.

    Args:
        results: of a quantization record.
    """
    frame = pd.DataFrame(results["quick_latency"])
    medians = frame.pivot(index="input", columns="model", values="median_ms").loc[frame["input"].unique()]
    ratios = medians["fp32"] / medians["quantized"]
    shown = ", ".join(
        f"{max(ratio, 1 / ratio):.2f} times {'faster' if ratio > 1 else 'slower'} at {name}"
        for name, ratio in ratios.items()
    )
    noisy = " At least one of the times is noisy." if frame["noisy"].any() else ""
    return (
        f"Quick look, not a result ({int(frame['runs'].iloc[0])} runs, {int(frame['threads'].iloc[0])} thread): "
        f"the quantized model is {shown}.{noisy} The analysis notebook measures all models in turn."
    )
