"""The edge bundle at the paper's sizes against what it is to beat, in size and latency; weights are random, since cost
does not depend on their values.

Three tables: against the teacher and the paper's final model, with the targets that were set before the bundle was
written; of the same compressed student under other runtimes, with the least that this machine's peaks allow; and of the
bundle's operators, which tells what stands between it and that. All are timed in turns on one thread.
"""

import argparse
import importlib
import importlib.util
import json
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pandas as pd
import torch
from rich.console import Console
from transformers import PreTrainedModel

from edgemin_utils import quantization
from edgemin_utils.bundle.classify import session_options
from edgemin_utils.checkpoints import save_model
from edgemin_utils.encoders import encoder_layers, input_names, is_exported, model_with_layers
from edgemin_utils.evaluation import predictor
from edgemin_utils.measurement.environment import describe_environment, int8_sentence
from edgemin_utils.measurement.latency import (
    PROTOCOLS,
    LatencyResult,
    Protocol,
    fixed_inputs,
    measure_latency,
    speed_ups,
)
from edgemin_utils.measurement.models import open_model
from edgemin_utils.measurement.parameters import saved_bytes
from edgemin_utils.measurement.roofline import Peaks, Work, measure_peaks, with_bound, work_of_model
from edgemin_utils.paper.architectures import build_models
from edgemin_utils.pruning import keep_vocabulary
from edgemin_utils.quantization.onnx_export import export_graph

# What the student is cut to: half its layers, half its neurons, a third of its vocabulary.
STUDENT_LAYERS, STUDENT_NEURONS, STUDENT_VOCABULARY = 6, 768, 10_000
LENGTHS, THREADS, LONGEST, WARM_UP = (32, 128), 1, 128, 10
# Operators that take less of a row's time are not shown.
SMALLEST_SHARE = 0.01
BUNDLE = "edge bundle"
# Forms of the bundle with fewer bits -> those of matrices and of the word embedding. The targets are not theirs.
FOUR_BIT_BUNDLES: Mapping[str, tuple[int, int]] = {"edge bundle, INT4 embeddings": (8, 4), "edge bundle, INT4": (4, 4)}
TEACHER, TEACHER_INT8, FINAL = (
    "teacher, PyTorch FP32",
    "teacher, ONNX Runtime dynamic INT8",
    "paper's final model, torch dynamic INT8",
)
# Against -> (times smaller, times faster) that were asked for.
TARGETS: Mapping[str, tuple[float, float]] = {TEACHER: (20, 8), TEACHER_INT8: (5, 2), FINAL: (5, 3)}


@dataclass(frozen=True)
class Contender:
    """One model under one runtime.

    Attributes:
        size: bytes of its file of weights.
        predict: from a batch of int64 tensors (batch, tokens) to logits.
        vocabulary: token numbers lie under it.
        work: of one row of so many tokens, for the roofline; None where it cannot be counted.
    """

    name: str
    size: int
    predict: Callable[[Mapping[str, torch.Tensor]], Any]
    vocabulary: int
    work: Callable[[int], Work] | None = None


def compressed_student(student: PreTrainedModel) -> PreTrainedModel:
    """The paper's student with every other layer, its first neurons and its first tokens; which ones does not matter
    to any cost."""
    count = len(encoder_layers(student))
    small = model_with_layers(student, range(0, count, max(1, count // STUDENT_LAYERS)))
    for layer in encoder_layers(small):
        layer.keep_neurons(range(min(STUDENT_NEURONS, layer.intermediate_size)))
    keep_vocabulary(small, range(min(STUDENT_VOCABULARY, small.config.vocab_size)))
    return small.eval()


# ---- contenders ---------------------------------------------------------------------------------------------------


def bundle_contenders(model: PreTrainedModel, folder: Path, longest: int = LONGEST) -> list[Contender]:
    """The model's graph as `edgemin bundle` writes it, in `folder`/bundle, and its forms of fewer bits."""
    made = []
    for name, (matrix_bits, embedding_bits) in {BUNDLE: (8, 8), **FOUR_BIT_BUNDLES}.items():
        path = (folder / "bundle" if name == BUNDLE else folder / name) / "model.onnx"
        path.parent.mkdir()
        graph = quantization.edge_graph(model, longest, False, matrix_bits, embedding_bits)
        path.write_bytes(graph.SerializeToString())
        made.append(_onnx_contender(name, path))
    return made


def torch_contender(name: str, model: PreTrainedModel, folder: Path, scheme: str = "") -> Contender:
    """A model as PyTorch runs it, or as one of the study's schemes does."""
    place = folder / f"contender-{len(list(folder.iterdir()))}"
    if scheme:
        model = quantization.quantize(model, scheme)
        quantization.save_quantized(model, place, scheme)
    else:
        save_model(model, place)
    opened = open_model(str(place)) if is_exported(model) else None  # its graph is counted
    return Contender(
        name,
        saved_bytes(place)["model_bytes"],
        predictor(model),
        model.config.vocab_size,
        lambda length: opened.work(1, length) if opened else work_of_model(model, 1, length),
    )


def _onnx_contender(name: str, path: Path) -> Contender:
    session = onnxruntime.InferenceSession(
        path.read_bytes(), session_options(THREADS), providers=["CPUExecutionProvider"]
    )
    names, opened = [item.name for item in session.get_inputs()], open_model(str(path))
    return Contender(
        name,
        path.stat().st_size,
        lambda batch: session.run(None, {key: batch[key].numpy() for key in names})[0],
        opened.vocabulary_size,
        lambda length: opened.work(1, length),
    )


def contenders_to_beat(teacher: PreTrainedModel, final: PreTrainedModel, folder: Path) -> list[Contender]:
    """What the targets name. `final` is the paper's pruned student, not yet quantized."""
    return [
        torch_contender(TEACHER, teacher, folder),
        torch_contender(TEACHER_INT8, teacher, folder, "onnx-dynamic-int8-embeddings"),
        torch_contender(FINAL, final, folder, "dynamic-int8"),
    ]


def same_student(student: PreTrainedModel, folder: Path, optional: bool) -> tuple[list[Contender], list[str]]:
    """The bundle's own model under other runtimes, and a word on each that is left out.

    Args:
        optional: also torch.compile (which takes a minute to compile), OpenVINO and NNCF where they are installed.
    """
    made = [
        torch_contender("student, PyTorch FP32", student, folder),
        torch_contender("student, torch dynamic INT8", student, folder, "dynamic-int8"),
        torch_contender("student, ONNX Runtime FP32", student, folder, "onnx-float32"),
        torch_contender("student, ONNX Runtime dynamic INT8", student, folder, "onnx-dynamic-int8-embeddings"),
    ]
    notes = []
    if not optional:
        return made, ["torch.compile, OpenVINO and NNCF are timed with --optional"]
    for make in (_compiled, _openvino_float, _openvino_int8):
        try:
            made.append(make(student, folder, made[0]))
        except _Absent as absent:
            notes.append(str(absent))
    return made, notes


class _Absent(Exception):
    """What is not installed, or does not work here."""


def _compiled(student: PreTrainedModel, folder: Path, eager: Contender) -> Contender:
    compiled, names = torch.compile(student), input_names(student)
    try:
        with torch.inference_mode():
            compiled(**{name: torch.ones((1, 8), dtype=torch.int64) for name in names})
    except Exception as error:  # the compiler's back ends raise kinds of their own
        raise _Absent(f"torch.compile does not work here: {str(error).splitlines()[0]}") from error
    return Contender(
        "student, torch.compile",
        eager.size,
        lambda batch: compiled(**{name: batch[name] for name in names}).logits,
        eager.vocabulary,
        eager.work,
    )


def _openvino_float(student: PreTrainedModel, folder: Path, eager: Contender) -> Contender:
    _optional("openvino")
    return _openvino_contender("student, OpenVINO FP32", _read_for_openvino(student, folder), student, folder)


def _openvino_int8(student: PreTrainedModel, folder: Path, eager: Contender) -> Contender:
    _, nncf = _optional("openvino", "nncf")
    rows = [
        {
            name: value.numpy()
            for name, value in fixed_inputs(1, 64, eager.vocabulary, seed, True).items()
            if name in input_names(student)
        }
        for seed in range(32)
    ]
    quantized = nncf.quantize(
        _read_for_openvino(student, folder),
        nncf.Dataset(rows),
        model_type=nncf.ModelType.TRANSFORMER,
        subset_size=len(rows),
    )
    return _openvino_contender("student, OpenVINO with NNCF INT8", quantized, student, folder)


def _optional(*packages: str) -> list[Any]:
    """Packages that the project does not ask for, imported."""
    absent = [name for name in packages if importlib.util.find_spec(name) is None]
    if absent:
        raise _Absent(f"{' and '.join(absent)} is not installed: python -m pip install {' '.join(absent)}")
    return [importlib.import_module(name) for name in packages]


def _read_for_openvino(student: PreTrainedModel, folder: Path) -> Any:
    (openvino,) = _optional("openvino")
    path = folder / "for-openvino.onnx"
    if not path.exists():
        path.write_bytes(export_graph(student).SerializeToString())
    return openvino.Core().read_model(path)


def _openvino_contender(name: str, model: Any, student: PreTrainedModel, folder: Path) -> Contender:
    (openvino,) = _optional("openvino")
    path = folder / f"openvino-{len(list(folder.iterdir()))}.xml"
    openvino.save_model(model, path, compress_to_fp16=False)
    # Without the hint, float arithmetic would be bfloat16 where the processor has it.
    compiled = openvino.Core().compile_model(
        model, "CPU", {"INFERENCE_NUM_THREADS": THREADS, "NUM_STREAMS": 1, "INFERENCE_PRECISION_HINT": "f32"}
    )
    names = input_names(student)
    return Contender(
        name,
        path.with_suffix(".bin").stat().st_size,
        lambda batch: compiled({key: batch[key].numpy() for key in names})[0],
        student.config.vocab_size,
    )


# ---- measuring ----------------------------------------------------------------------------------------------------


def time_contenders(
    contenders: Sequence[Contender], protocol: Protocol, lengths: Sequence[int] = LENGTHS
) -> dict[int, LatencyResult]:
    """Tokens of the row -> times of all contenders in turns, one thread."""
    found = {}
    for length in lengths:
        calls = {}
        for contender in contenders:
            batch = fixed_inputs(1, length, contender.vocabulary, token_type_ids=True)
            calls[contender.name] = lambda _, predict=contender.predict, batch=batch: predict(batch)
        found[length] = measure_latency(calls, [None], THREADS, protocol)
    return found


def targets_table(contenders: Sequence[Contender], times: Mapping[int, LatencyResult]) -> pd.DataFrame:
    """One row a target: against, what (size or latency on an input), theirs, ours, ratio, its 95 % interval (low,
    high; of latency alone), target, met."""
    sizes = {contender.name: contender.size for contender in contenders}
    rows = []
    for name, (smaller, faster) in TARGETS.items():
        rows.append(
            {
                "against": name,
                "what": "size, MB",
                "theirs": sizes[name] / 1e6,
                "ours": sizes[BUNDLE] / 1e6,
                "ratio": sizes[name] / sizes[BUNDLE],
                "low": np.nan,
                "high": np.nan,
                "target": smaller,
            }
        )
        for length, result in times.items():
            ratio = speed_ups(result, name)[BUNDLE]
            rows.append(
                {
                    "against": name,
                    "what": f"1x{length}, ms",
                    **{
                        whose: float(np.median(result.of(one))) / 1e6
                        for whose, one in (("theirs", name), ("ours", BUNDLE))
                    },
                    "ratio": ratio.value,
                    "low": ratio.low,
                    "high": ratio.high,
                    "target": faster,
                }
            )
    return pd.DataFrame(rows).assign(met=lambda table: table["ratio"] >= table["target"])


def contenders_table(contenders: Sequence[Contender], times: Mapping[int, LatencyResult], peaks: Peaks) -> pd.DataFrame:
    """One row a contender: name, MB, and for every input its median (ms), IQR, whether that is over 10 % of the
    median (noisy), the least that this machine's peaks allow (bound, ms) and how many times that the median is."""
    rows = []
    for contender in contenders:
        row: dict[str, Any] = {"name": contender.name, "MB": contender.size / 1e6}
        for length, result in times.items():
            found = result.summary()[contender.name]
            if contender.work is not None:
                found = with_bound(found, [contender.work(length)], peaks)
            row |= {
                f"{key} 1x{length}": found.get(key, np.nan)
                for key in ("median_ms", "iqr_ms", "noisy", "bound_ms", "of_bound")
            }
        rows.append(row)
    return pd.DataFrame(rows)


def operators_table(path: Path, vocabulary: int, length: int, runs: int = 30) -> pd.DataFrame:
    """Where the time of one row goes, by ONNX Runtime's own profile: operator (as fused when the graph is loaded),
    count in the graph, ms (median over the runs of the operator's sum in one) and share, the longest first."""
    options = session_options(THREADS)
    options.enable_profiling, options.profile_file_prefix = True, str(path.parent / "profile")
    session = onnxruntime.InferenceSession(path.read_bytes(), options, providers=["CPUExecutionProvider"])
    batch = fixed_inputs(1, length, vocabulary, token_type_ids=True)
    feed = {item.name: batch[item.name].numpy() for item in session.get_inputs()}
    for _ in range(WARM_UP + runs):
        session.run(None, feed)
    events = json.loads(Path(session.end_profiling()).read_text(encoding="utf-8"))
    kernels = pd.DataFrame(
        [
            {"operator": event["args"]["op_name"], "node": event["name"], "ms": event["dur"] / 1e3}
            for event in events
            if event["name"].endswith("_kernel_time")
        ]
    )
    kernels["run"] = kernels.groupby("node").cumcount()
    sums = kernels[kernels["run"] >= WARM_UP].groupby(["operator", "run"])["ms"].sum()
    found = sums.groupby("operator").median().sort_values(ascending=False).rename("ms").reset_index()
    counts = kernels.groupby("operator")["node"].nunique()
    return found.assign(count=found["operator"].map(counts), share=found["ms"] / found["ms"].sum())[
        ["operator", "count", "ms", "share"]
    ]


def main(arguments: Sequence[str]) -> None:
    """Builds all models, times them in turns and prints the tables."""
    parser = argparse.ArgumentParser(
        prog="python -m edgemin_utils.benchmark edge-bundle", description=__doc__.splitlines()[0]
    )
    parser.add_argument(
        "--full", action="store_true", help="at least 100 runs and 10 s a model (default: few runs, a look)"
    )
    parser.add_argument(
        "--optional", action="store_true", help="also torch.compile, OpenVINO and NNCF where they are installed"
    )
    options = parser.parse_args(arguments)
    protocol = PROTOCOLS["full" if options.full else "quick"]
    models = build_models()
    student = compressed_student(models.student)
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        others, notes = same_student(student, folder, options.optional)
        contenders = [
            *contenders_to_beat(models.teacher, models.pruned, folder),
            *others,
            *bundle_contenders(student, folder),
        ]
        times, peaks = time_contenders(contenders, protocol), measure_peaks(THREADS)
        operators = {
            length: operators_table(folder / "bundle" / "model.onnx", STUDENT_VOCABULARY, length) for length in LENGTHS
        }
    _print(contenders, times, peaks, operators, [*notes, f"{protocol.name} protocol, {THREADS} thread, all in turns"])


def _print(
    contenders: Sequence[Contender],
    times: Mapping[int, LatencyResult],
    peaks: Peaks,
    operators: Mapping[int, pd.DataFrame],
    notes: Sequence[str],
) -> None:
    environment, console = describe_environment(), Console()
    console = console if console.is_terminal else Console(width=200)

    def show(table: pd.DataFrame) -> None:
        console.print(
            table.to_string(index=False, na_rep="", float_format=lambda value: f"{value:.2f}"),
            highlight=False,
            markup=False,
        )

    show(targets_table(contenders, times))
    console.print()
    show(contenders_table(contenders, times, peaks))
    for length, table in operators.items():
        console.print(f"\n{BUNDLE}, 1x{length}: where the time goes", highlight=False)
        show(table[table["share"] >= SMALLEST_SHARE])
    console.print()
    speeds = [speed / 1e9 for speed in (peaks.fp32_macs_per_second, peaks.int8_macs_per_second)]
    for note in (
        *notes,
        f"student: {STUDENT_LAYERS} layers, {STUDENT_NEURONS} neurons, {STUDENT_VOCABULARY:,} tokens; random weights",
        f"peaks: {speeds[0]:.0f} FP32 and {speeds[1]:.0f} INT8 GMAC/s ({peaks.int8_kernel})",
        int8_sentence(environment),
    ):
        console.print(f"- {note}", highlight=False, markup=False)
