"""Making the claims true: the model of `recipe=honest` at the paper's sizes, and the claims held against it.

The recipe cuts the paper's student and quantizes it whole: half of the layers, half of the neurons of those that stay,
all but 11,000 tokens of the vocabulary, then INT8 with the word embedding. What that costs depends on shapes alone and
is counted and timed here; what it loses in accuracy is read from studies that ran the recipe on real weights.
"""

import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers import BertTokenizer, PreTrainedModel

from edgemin_utils.chain import RECIPES
from edgemin_utils.encoders import encoder_layers
from edgemin_utils.measurement.operations import closed_formula_macs
from edgemin_utils.measurement.parameters import megabytes, stored_weights
from edgemin_utils.paper import claimed
from edgemin_utils.paper.accuracy import share_text
from edgemin_utils.paper.architectures import HONEST_RECIPE, PaperModels
from edgemin_utils.quantization import save_quantized
from edgemin_utils.quantization.onnx_model import ONNX_FILE

HONEST = "honest model"
MADE_TRUE, NOT_MADE_TRUE, NOT_MEASURED, NOT_RUN = "made true", "not made true", "not measured yet", "not run"
# Tokens of the input whose multiply-accumulates are compared.
LENGTH = 128
# Why the vocabulary has a limit rather than all tokens seen: train rows -> tokens of the 30,522 of bert-base-uncased
# (which MiniLM uses) that `vocabulary` would keep, with special tokens and characters. Counted with
# `pruning.tokens_in_use` on the train rows of GLUE at hand: a tenth of SST-2's, and about as many of MNLI and QQP as a
# tenth of theirs.
TOKENS_SEEN = {"SST-2": (6_735, 10_053), "MNLI": (32_272, 23_952), "QQP": (31_162, 19_543)}


@dataclass(frozen=True)
class MadeTrue:
    """One claim held against the honest model.

    Attributes:
        number: of the claim, C3 to C14.
        claim: what the model has to reach.
        paper: the paper's final model, counted honestly.
        honest: the honest model.
        verdict: one of the four above.
        function: what computed it.
    """

    number: str
    claim: str
    paper: str
    honest: str
    verdict: str
    function: str


def honest_counts(models: PaperModels) -> dict[str, Any]:
    """What follows from the shapes of the honest model, of the paper's final one, and of those they are held against.

    Returns:
        recipe (its steps), layers, neurons (a layer), vocabulary; parameters, file_bytes (the .onnx file, really
        written) and macs at 1x128 of the honest model; student_parameters, teacher_macs, final_parameters, final_macs.
    """
    layers = encoder_layers(models.honest)
    with tempfile.TemporaryDirectory() as place:
        save_honest(models.honest_quantized, Path(place))
        file_bytes = (Path(place) / ONNX_FILE).stat().st_size
    return {
        "recipe": list(RECIPES[HONEST_RECIPE]),
        "layers": len(layers),
        "neurons": layers[0].intermediate_size,
        "vocabulary": models.honest.config.vocab_size,
        "parameters": stored_weights(models.honest_quantized),
        "file_bytes": file_bytes,
        "macs": closed_formula_macs(models.honest_quantized, 1, LENGTH),
        "student_parameters": stored_weights(models.student),
        "teacher_macs": closed_formula_macs(models.teacher, 1, LENGTH),
        "final_parameters": stored_weights(models.pruned_quantized),
        "final_macs": closed_formula_macs(models.pruned_quantized, 1, LENGTH),
    }


def save_honest(model: PreTrainedModel, folder: Path) -> None:
    """Writes the quantized honest model as it would be deployed. With random weights no tokenizer belongs to it; a
    made-up one of as many tokens takes as much memory."""
    size = model.config.vocab_size
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    words = [*special, "a", "text", *(f"word{number}" for number in range(size - len(special) - 2))]
    tokenizer = BertTokenizer(vocab={word: number for number, word in enumerate(words)})
    save_quantized(model, folder, RECIPES[HONEST_RECIPE][-1].partition(":")[2], tokenizer)


# ---- the table --------------------------------------------------------------------------------------------------


def made_true(
    counts: Mapping[str, Any],
    final_file: str,
    timing: Mapping[str, Any] | None = None,
    accuracy: Sequence[Mapping[str, Any]] = (),
) -> list[MadeTrue]:
    """Every claim that a model can be held against.

    Args:
        counts: of `honest_counts`.
        final_file: size of the paper's final model's file, as `counts.final_file` gives it.
        timing: of `timing.measure_paper`; None where nothing was measured.
        accuracy: of `accuracy.study_accuracy` with this recipe; empty where no study ran it.
    """
    ratio = counts["teacher_macs"] / counts["macs"]
    fewer = counts["student_parameters"] / counts["parameters"]
    return [
        MadeTrue(
            "C3",
            "at most 11.94M parameters, all counted",
            f"{counts['final_parameters']:,}",
            f"{counts['parameters']:,} ({fewer:.2f}x fewer than the student)",
            _verdict(counts["parameters"] <= claimed.MOST_PARAMETERS),
            "honest.honest_counts",
        ),
        MadeTrue(
            "C4, C11",
            "a file of at most 33 MB",
            final_file,
            f"{megabytes(counts['file_bytes']):.2f} MB",
            _verdict(counts["file_bytes"] <= claimed.MOST_BYTES),
            "honest.honest_counts",
        ),
        MadeTrue(
            "C5",
            "2.6x fewer MACs than the teacher",
            f"{counts['teacher_macs'] / counts['final_macs']:.2f}x",
            f"{ratio:.2f}x ({counts['macs'] / 1e9:.3f} G at 1x{LENGTH}, eager attention, against "
            f"{counts['teacher_macs'] / 1e9:.3f} G)",
            _verdict(ratio >= claimed.FEWER_MACS),
            "honest.honest_counts",
        ),
        *_measured(timing),
        _accuracy(accuracy),
    ]


def _measured(timing: Mapping[str, Any] | None) -> list[MadeTrue]:
    claims = (
        ("C6", "CPU latency 44 % under the FP32 student's", "honest.latency_row"),
        ("C13", "latency 3-5x under the teacher's", "honest.speed_row"),
        ("C14", "memory 70 % under the teacher's, peak below 200 MB", "honest.memory_row"),
    )
    if timing is None:
        return [MadeTrue(number, claim, "", "", NOT_MEASURED, name) for number, claim, name in claims]
    rows = (latency_row(timing), speed_row(timing), memory_row(timing))
    return [
        MadeTrue(number, claim, paper, ours, _verdict(reached), name)
        for (number, claim, name), (paper, ours, reached) in zip(claims, rows, strict=True)
    ]


def latency_row(timing: Mapping[str, Any]) -> tuple[str, str, bool]:
    """C6: final model, honest model, and whether the interval of the latter lies at 44 % or above everywhere."""

    def text(row: Mapping[str, Any]) -> str:
        value, low, high = (100 * (1 - 1 / row[name]) for name in ("ratio", "low", "high"))
        return f"{value:.0f} % [{low:.0f}, {high:.0f}]"

    rows = _of(timing["over_student"], HONEST)
    return (*_texts(timing["over_student"], text), all(1 - 1 / row["low"] >= claimed.LOWER_LATENCY[1] for row in rows))


def speed_row(timing: Mapping[str, Any]) -> tuple[str, str, bool]:
    """C13: final model, honest model, and whether the interval of the latter lies at 3x or above everywhere."""
    ms = {(row["model"], row["input"]): row["median_ms"] for row in timing["latency"]}

    def text(row: Mapping[str, Any]) -> str:
        return f"{row['ratio']:.2f}x [{row['low']:.2f}, {row['high']:.2f}], {ms[row['model'], row['input']]:.1f} ms"

    rows = _of(timing["over_teacher"], HONEST)
    return (*_texts(timing["over_teacher"], text), all(row["low"] >= claimed.OVER_TEACHER for row in rows))


def memory_row(timing: Mapping[str, Any]) -> tuple[str, str, bool]:
    """C14: final model, honest model, and whether the latter's peak is 70 % lower and below 200 MB."""
    teacher, final, honest = (_of(timing["memory"], name)[0] for name in ("teacher", "final model", HONEST))

    def text(row: Mapping[str, Any]) -> str:
        return (
            f"peak {row['peak_bytes'] / 1e6:.0f} MB, {100 * (1 - row['peak_bytes'] / teacher['peak_bytes']):.0f} % "
            f"under the teacher's {teacher['peak_bytes'] / 1e6:.0f} MB; {row['baseline_bytes'] / 1e6:.0f} MB of it "
            f"imports ({row['process']})"
        )

    lower = 1 - honest["peak_bytes"] / teacher["peak_bytes"]
    return text(final), text(honest), lower >= claimed.LOWER_MEMORY and honest["peak_bytes"] < claimed.MOST_MEMORY


def _accuracy(rows: Sequence[Mapping[str, Any]]) -> MadeTrue:
    claim, function = "95 % of the teacher's accuracy kept", "accuracy.study_accuracy"
    if not rows:
        return MadeTrue("C7, C12", claim, "", "no study at hand ran the recipe", NOT_RUN, function)
    models = "" if all(row["papers_models"] for row in rows) else "on other models than the paper's: "
    ours = "; ".join(
        f"{row['task']} {share_text(row, 'accuracy')}, {share_text(row, 'kept')} of the teacher's "
        f"({row['profile']} profile, {_seeds(row)})"
        for row in rows
    )
    paper = "; ".join(
        f"{row['task']} {share_text(row, 'paper_accuracy')}, {share_text(row, 'paper_kept')} of the teacher's "
        f"(the same {_seeds(row)})"
        for row in rows
        if row.get("paper_accuracy") is not None
    )
    return MadeTrue(
        "C7, C12",
        claim,
        f"{models if paper else ''}{paper}",
        f"{models}{ours}",
        _verdict(all(row["kept_low"] is not None and row["kept_low"] >= claimed.KEPT_ACCURACY for row in rows)),
        function,
    )


def _seeds(row: Mapping[str, Any]) -> str:
    return f"{row['seeds']} seed{'s' * (row['seeds'] > 1)}"


def honest_note(counts: Mapping[str, Any]) -> str:
    """How the honest model is made, one sentence or two."""
    seen = ", ".join(f"{task} {tokens:,} ({rows:,} rows)" for task, (rows, tokens) in TOKENS_SEEN.items())
    return (
        f"recipe=honest is {', '.join(counts['recipe'])}. At the paper's sizes that leaves {counts['layers']} of "
        f"12 layers, {counts['neurons']} of 1,536 neurons a layer and {counts['vocabulary']:,} of 30,522 tokens. "
        f"The vocabulary is limited because the tokens that train rows need differ by task: {seen}; rarer words "
        "fall into shorter pieces. Its times are of ONNX Runtime's INT8, the others' of PyTorch: the runtime has a "
        "part in them."
    )


def _texts(rows: Sequence[Mapping[str, Any]], text: Any) -> tuple[str, str]:
    """What `text` says of the final and of the honest model on every input."""
    final, honest = (
        "; ".join(f"{row['input']}: {text(row)}" for row in _of(rows, name)) for name in ("final model", HONEST)
    )
    return final, honest


def _of(rows: Sequence[Mapping[str, Any]], model: str) -> list[Mapping[str, Any]]:
    return [row for row in rows if row["model"] == model]


def _verdict(reached: bool) -> str:
    return MADE_TRUE if reached else NOT_MADE_TRUE
