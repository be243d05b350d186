"""The paper's claims C1 to C15: how each was counted, our count, and a verdict that follows from the numbers by rule.

A verdict says "reproduced" only where the honest count bears the claim out, and "only under the paper's counting" where
the paper's digits come out of its way of counting alone. What needs measuring is untested until it has been measured.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from edgemin_utils.measurement.environment import int8_sentence
from edgemin_utils.paper import timing as measured
from edgemin_utils.paper.accuracy import share_text
from edgemin_utils.paper.claimed import KEPT_ACCURACY, LOWER_LATENCY, LOWER_MEMORY, MOST_MEMORY, OVER_TEACHER
from edgemin_utils.paper.counts import Count

REPRODUCED, PAPER_ONLY, NOT_REPRODUCED, UNDECIDED, UNTESTED = (
    "reproduced",
    "reproduced only under the paper's counting",
    "not reproduced",
    "undecided here",
    "untested here",
)
RULES = (
    "Verdicts by rule: C1 to C5, C8, C9 and C11 by whether the paper's digits come out of the honest count, or of its "
    "own alone (C9: no feed-forward weights are left). C6, C13 and C14 are reproduced where the least that is claimed "
    f"({100 * LOWER_LATENCY[0]:.0f} %, {OVER_TEACHER:.0f}x, {100 * LOWER_MEMORY:.0f} % and a peak below "
    f"{MOST_MEMORY / 1e6:.0f} MB) is reached at every length; C13's 16 ms, which name neither length nor processor, "
    "are not judged. C10 is timed twice, the second time with the models' parts in the same rounds: reproduced where "
    "every interval leaves 1 out, not reproduced where none does, else undecided; models of other shapes, as in the "
    "overview of a study, can differ. C7 is a number of the paper's own models, which alone can test it. C12 is a "
    "share and so says something of any teacher: reproduced where its interval lies at "
    f"{100 * KEPT_ACCURACY:.0f} % or above on every task, not reproduced where it lies below on one, else undecided."
)
RUN_FIRST = "not measured yet: `make paper-numbers` measures it"


@dataclass(frozen=True)
class Claim:
    """One row of the claims table.

    Attributes:
        number: C1 to C15.
        claim: what is claimed.
        counted: how the paper counted it, as far as that can be found out.
        ours: the same quantity, counted honestly.
        verdict: one of the five above.
        function: what computed it, `module.function` of this package.
    """

    number: str
    claim: str
    counted: str
    ours: str
    verdict: str
    function: str


def claims_table(
    counts: Mapping[str, Count], timing: Mapping[str, Any] | None = None, accuracy: Sequence[Mapping[str, Any]] = ()
) -> list[Claim]:
    """All fifteen claims, in order.

    Args:
        counts: of `counts.every_count`.
        timing: of `timing.measure_paper`; None where nothing was measured.
        accuracy: of `accuracy.study_accuracy`; empty where no study was found.
    """
    return [
        _by_count("C1", "teacher: 66.96M parameters", counts["teacher_parameters"]),
        _by_count("C2", "student: 33.36M parameters", counts["student_parameters"]),
        _by_count(
            "C3", "final model: 11.94M parameters, 2.8x fewer", counts["final_parameters"], counts["parameter_ratio"]
        ),
        _by_count("C4", "final file: 65.09 MB, 1.96x smaller", counts["final_file"], counts["file_ratio"]),
        _by_count("C5", "2.6x fewer FLOPs (estimated)", counts["operation_ratio"]),
        latency_claim(timing),
        sst2_accuracy_claim(accuracy),
        _by_count("C8", "20 % of the heads removed", counts["removed_heads"]),
        _by_count("C9", "dynamic quantization prunes feed-forward layers implicitly", counts["feed_forward_weights"]),
        interaction_claim(timing),
        size_claim(counts),
        retention_claim(accuracy),
        speed_claim(timing),
        memory_claim(timing),
        Claim(
            "C15", "60-70 % less power on mobile", "not said", _energy_text(timing), UNTESTED, "timing.measure_paper"
        ),
    ]


def notes(
    timing: Mapping[str, Any] | None, environment: Mapping[str, Any] | None, accuracy: Sequence[Mapping[str, Any]] = ()
) -> tuple[str, ...]:
    """What a reader of the table must know."""
    lines = [
        "The paper's architectures are built from their sizes with random weights; no count and no time here "
        "depends on the weights' values. MB are 10^6 bytes, MiB 2^20.",
        RULES,
    ]
    if timing and environment:
        protocol = timing["protocol"]
        look = "a QUICK LOOK, no result: " if protocol["name"] == "quick" else ""
        lines.append(
            f"Times: {look}PyTorch (the honest model: ONNX Runtime), {timing['threads']} thread each, one row "
            f"a call, models in turn, at least {protocol['runs']} rounds, 95 % bootstrap intervals over "
            f"rounds. {int8_sentence(environment)}"
        )
    lines += [f"Accuracy: {name}." for name in dict.fromkeys(row["study"] for row in accuracy)]
    return tuple(lines)


def as_rows(claims: Sequence[Claim]) -> list[dict[str, str]]:
    """Every claim as a dictionary of its fields, for tables and JSON."""
    return [asdict(claim) for claim in claims]


# ---- by counting -------------------------------------------------------------------------------------------------


def _by_count(number: str, claim: str, *counts: Count) -> Claim:
    """A claim that counting alone decides."""
    counted = (f"{count.way}: {count.counted}" if count.counted else count.way for count in counts)
    return Claim(
        number,
        claim,
        "; ".join(dict.fromkeys(counted)),
        "; ".join(f"{count.honest} ({count.honest_way})" for count in counts),
        count_verdict(counts),
        ", ".join(f"counts.{count.function}" for count in counts),
    )


def count_verdict(counts: Sequence[Count]) -> str:
    """Whether the honest counts, or else the paper's own, give the digits that it printed."""
    if all(count.true for count in counts):
        return REPRODUCED
    return PAPER_ONLY if all(count.reproduced for count in counts) else NOT_REPRODUCED


def size_claim(counts: Mapping[str, Count]) -> Claim:
    """C11: the file goes 127 -> 66 -> 33 MB."""
    steps = [counts[name] for name in ("student_file", "quantized_file", "smallest_file")]
    sizes = [float(count.honest.removesuffix(" MB")) for count in steps]
    ours = (
        f"{' -> '.join(count.honest for count in steps)}: {sizes[0] / sizes[2]:.1f}x under the student, "
        f"{steps[2].honest_way}; the last step quantizes the word embedding too, which the pipeline does not"
    )
    return Claim(
        "C11",
        "size 5-10x smaller, 127 -> 66 -> 33 MB (proposal)",
        f"{steps[0].way}: {' -> '.join(count.counted for count in steps)}",
        ours,
        count_verdict(steps),
        ", ".join(f"counts.{c.function}" for c in steps),
    )


# ---- by measuring ------------------------------------------------------------------------------------------------


def latency_claim(timing: Mapping[str, Any] | None) -> Claim:
    """C6. Borne out where the final model's latency is at least 37 % under the student's at every length."""
    claim, counted = "CPU latency 37 % (SST-2) to 44 % under the FP32 student's", "not said: which input, threads, CPU"
    if timing is None:
        return Claim("C6", claim, counted, RUN_FIRST, UNTESTED, "timing.measure_paper")
    rows = _of(timing["over_student"], measured.FINAL)
    parts = [f"{row['input']}: {_less(row['ratio'])} % [{_less(row['low'])}, {_less(row['high'])}]" for row in rows]
    verdict = REPRODUCED if all(1 - 1 / row["ratio"] >= LOWER_LATENCY[0] for row in rows) else NOT_REPRODUCED
    return Claim("C6", claim, counted, "; ".join(parts), verdict, "claims.latency_claim")


def interaction_claim(timing: Mapping[str, Any] | None) -> Claim:
    """C10. Borne out where the interval of the interaction leaves 1 out at every length, by itself and in the rounds
    that time the models' parts."""
    claim, counted = 'pruning and quantization interact on CPU latency ("nuanced")', "not said"
    if timing is None:
        return Claim("C10", claim, counted, RUN_FIRST, UNTESTED, "timing.interaction")
    rows = timing["interaction"]
    again = {row["input"]: row for row in timing["parts"]}
    parts = [
        f"{row['input']}: {row['ratio']:.3f} [{row['low']:.3f}, {row['high']:.3f}], with the parts "
        f"{again[row['input']]['measured']:.3f} [{again[row['input']]['measured_low']:.3f}, "
        f"{again[row['input']]['measured_high']:.3f}], where products, attention and rest added up predict "
        f"{again[row['input']]['predicted']:.3f}"
        for row in rows
    ]
    intervals = [(row["low"], row["high"]) for row in rows]
    intervals += [(again[row["input"]]["measured_low"], again[row["input"]]["measured_high"]) for row in rows]
    apart = [not low <= 1 <= high for low, high in intervals]
    return Claim(
        "C10",
        claim,
        counted,
        f"{'; '.join(parts)} (1: the gains multiply; over 1: together they gain less)",
        REPRODUCED if all(apart) else UNDECIDED if any(apart) else NOT_REPRODUCED,
        "timing.interaction",
    )


def speed_claim(timing: Mapping[str, Any] | None) -> Claim:
    """C13. Borne out where the final model is at least three times as fast as the teacher at every length."""
    claim, counted = "latency 3-5x lower, about 16 ms a sample on a CPU (proposal)", "not said"
    if timing is None:
        return Claim("C13", claim, counted, RUN_FIRST, UNTESTED, "timing.measure_paper")
    rows = _of(timing["over_teacher"], measured.FINAL)
    times = {row["input"]: row["median_ms"] for row in _of(timing["latency"], measured.FINAL)}
    parts = [
        f"{row['input']}: {row['ratio']:.2f}x [{row['low']:.2f}, {row['high']:.2f}] over the teacher, "
        f"{times[row['input']]:.1f} ms"
        for row in rows
    ]
    verdict = REPRODUCED if all(row["ratio"] >= OVER_TEACHER for row in rows) else NOT_REPRODUCED
    return Claim("C13", claim, counted, "; ".join(parts), verdict, "claims.speed_claim")


def memory_claim(timing: Mapping[str, Any] | None) -> Claim:
    """C14. Borne out where the peak of a fresh process falls by 70 % and stays below 200 MB."""
    claim, counted = "memory 70-80 % lower, peak below 200 MB (proposal)", "not said"
    if timing is None:
        return Claim("C14", claim, counted, RUN_FIRST, UNTESTED, "timing.peak_memories")
    teacher, final = (_of(timing["memory"], name)[0] for name in (measured.TEACHER, measured.FINAL))
    lower = 1 - final["peak_bytes"] / teacher["peak_bytes"]
    ours = (
        f"peak {final['peak_bytes'] / 1e6:.0f} MB, {_lower(lower)} the teacher's "
        f"{teacher['peak_bytes'] / 1e6:.0f} MB, loading included; "
        f"{final['resident_bytes'] / 1e6:.0f} MB at the end, of which importing torch and "
        f"transformers takes {final['baseline_bytes'] / 1e6:.0f} MB"
    )
    borne_out = lower >= LOWER_MEMORY and final["peak_bytes"] < MOST_MEMORY
    return Claim("C14", claim, counted, ours, REPRODUCED if borne_out else NOT_REPRODUCED, "claims.memory_claim")


def _energy_text(timing: Mapping[str, Any] | None) -> str:
    if timing is None:
        return "no mobile device here"
    teacher, final = (_of(timing["energy"], name)[0] for name in (measured.TEACHER, measured.FINAL))
    joules = (
        "joules not measured (no RAPL)"
        if final["joules"] is None
        else f"{final['joules']:.3f} J a row against {teacher['joules']:.3f} J"
    )
    return (
        f"no mobile device here; on this CPU {final['cpu_seconds'] * 1e3:.1f} CPU-ms a row of {final['input']} "
        f"against the teacher's {teacher['cpu_seconds'] * 1e3:.1f}, {joules}"
    )


def _lower(share: float) -> str:
    return f"{abs(100 * share):.0f} % {'under' if share >= 0 else 'above'}"


def _less(ratio: float) -> str:
    """A speed-up as the percentage by which the latency is lower."""
    return f"{100 * (1 - 1 / ratio):.0f}"


def _of(rows: Sequence[Mapping[str, Any]], model: str) -> list[Mapping[str, Any]]:
    return [row for row in rows if row["model"] == model]


# ---- from studies ------------------------------------------------------------------------------------------------


def sst2_accuracy_claim(accuracy: Sequence[Mapping[str, Any]]) -> Claim:
    """C7. Tested only by a study of the paper's own models on real SST-2 rows."""
    rows = [row for row in accuracy if row["task"] == "sst2"]
    claim, counted, function = (
        "SST-2 accuracy 89.8 % (estimated)",
        "not measured by the paper",
        "accuracy.study_accuracy",
    )
    if not rows:
        return Claim("C7", claim, counted, "no study on SST-2 at hand", UNTESTED, function)
    row = next((row for row in rows if row["papers_models"]), rows[0])
    ours = (
        f"{row['profile']} study: {share_text(row, 'accuracy')}; without distillation ({row['undistilled_form']}): "
        f"{share_text(row, 'undistilled_accuracy')}"
    )
    if not row["papers_models"]:
        return Claim("C7", claim, counted, f"other models than the paper's: {ours}", UNTESTED, function)
    verdict = REPRODUCED if row["accuracy_high"] >= 0.898 else NOT_REPRODUCED
    return Claim("C7", claim, counted, ours, verdict, function)


def retention_claim(accuracy: Sequence[Mapping[str, Any]]) -> Claim:
    """C12. Borne out where the interval of what the final model keeps of the teacher's accuracy lies at 95 % or above
    on every task of the study, refuted where it lies below on one."""
    claim, counted, function = (
        "95-99 % of the teacher's accuracy kept (proposal)",
        "not measured by the paper",
        "accuracy.study_accuracy",
    )
    if not accuracy:
        return Claim("C12", claim, counted, "no study at hand", UNTESTED, function)
    parts = [
        f"{row['task']}: {share_text(row, 'kept')}, without distillation ({row['undistilled_form']}) "
        f"{share_text(row, 'undistilled_kept')}"
        for row in accuracy
    ]
    models = "" if all(row["papers_models"] for row in accuracy) else "on other models than the paper's: "
    if all(row["kept_low"] >= KEPT_ACCURACY for row in accuracy):
        verdict = REPRODUCED
    else:
        verdict = NOT_REPRODUCED if any(row["kept_high"] < KEPT_ACCURACY for row in accuracy) else UNDECIDED
    return Claim("C12", claim, counted, models + "; ".join(parts), verdict, function)
