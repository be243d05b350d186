"""The paper's numbers derived again, honest counts beside its own, verdicts by one rule; weights are random."""

import contextlib
import copy
import json
import tempfile
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from transformers import BertTokenizer, PreTrainedModel

from edgemin_utils import checkpoints, environment, study
from edgemin_utils.encoders import encoder_layers, scratch_model
from edgemin_utils.errors import MethodRefused
from edgemin_utils.measurement.costs import measure_costs
from edgemin_utils.measurement.operations import closed_formula_macs, part_of, saved_bytes, size_of
from edgemin_utils.names import LISTS, read_name
from edgemin_utils.pruning.cut import remove_units, rounds
from edgemin_utils.quantization.schemes import quantize, save_quantized
from edgemin_utils.results.comparisons import ends, summary
from edgemin_utils.results.table import Frames
from edgemin_utils.results.tables import path_of
from edgemin_utils.settings import load_settings, whole_share
from edgemin_utils.statistics import Estimate, contrast_of_latencies

LABELS, VOCABULARY, POSITIONS, HEAD_RATIO = ("negative", "positive"), 30522, 512, 0.2
PAPERS_PARAMETERS = (66_955_010, 33_360_770)  # teacher's and student's, with two labels
HONEST = LISTS["honest"][0]
# Quantized models and their schemes; those of PyTorch are left out where it has no kernels for them.
SCHEMES = {"int8": "int8", "final": "int8", "int8_embeddings": "int8-embeddings", "honest": HONEST.rpartition("+")[2]}
_UNCOUNTED = dict.fromkeys("stored listed feed_forward ff_listed pickled".split(), np.nan)
INPUTS, LENGTHS = ("1x32", "1x128"), (8, 16, 32, 64, 128, 256, 512)
VERDICTS = "reproduced|reproduced only under the paper's counting|undecided here|not reproduced".split("|")
REPRODUCED, PAPER_ONLY, UNDECIDED, NOT_REPRODUCED = VERDICTS
MADE_TRUE = {REPRODUCED: "made true", UNDECIDED: UNDECIDED, NOT_REPRODUCED: "not made true"}
_CLAIMS = tomllib.loads((Path(__file__).parent / "paper.toml").read_text(encoding="utf-8"))
Costs = Mapping[str, Any] | None


def build_models(seed: int = 0) -> dict[str, PreTrainedModel]:
    """The teacher (distilbert-base-uncased), the student (MiniLM-L12-H384-uncased), pruned, and those of `SCHEMES`."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        teacher = scratch_model("distilbert", 6, 768, 12, 3072, VOCABULARY, LABELS, POSITIONS).eval()
        student = scratch_model("bert", 12, 384, 12, 1536, VOCABULARY, LABELS, POSITIONS).eval()
        pruned, honest = copy.deepcopy(student), honest_form(student)
    remove_units(pruned, [range(whole_share(HEAD_RATIO, layer.num_heads)) for layer in encoder_layers(student)])
    models = {"teacher": teacher, "student": student, "pruned": pruned}
    for name, scheme in SCHEMES.items():
        with contextlib.suppress(MethodRefused):
            models[name] = quantize({"final": pruned, "honest": honest}.get(name, student), scheme)
    return models


def honest_form(student: PreTrainedModel) -> PreTrainedModel:
    """A copy with the cuts of the list `honest`, of any units, and no equal biases: a graph stores equals once."""
    settings, model = load_settings("paper"), copy.deepcopy(student)
    for step in read_name(HONEST, settings).steps:
        if step.kind == "pruning":
            own = load_settings("paper", {name: value for name, value in step.changes if name == "multiple"})
            kept = range(int(step.value)) if step.method == "vocabulary" else ()
            for cut in rounds(model, step.method, step.value, own, _any_importance, kept):
                model = cut.model
    for vector in (parameter.data for parameter in model.parameters() if parameter.dim() == 1):
        vector.add_(0.02 * torch.randn_like(vector))
    return model


def _any_importance(model: PreTrainedModel, units: str) -> list[np.ndarray]:
    name = "num_heads" if units == "heads" else "intermediate_size"
    return [np.arange(getattr(layer, name), dtype=float) for layer in encoder_layers(model)]


def count(models: Mapping[str, PreTrainedModel]) -> dict[str, Any]:
    """Every number that needs no clock: name of a model -> stored and listed weights, feed_forward and ff_listed of
    these, macs (tokens -> count), heads, pickled (bytes of `torch.save`, as the paper saved; of `honest` .onnx)."""
    found = dict[str, Any]()
    for name, model in models.items():
        size, listed = size_of(model), model.named_parameters()
        found[name] = {"stored": size["stored_weights"], "listed": size["framework_parameters"]}
        found[name] |= {"feed_forward": size["parts"]["feed_forward"]}
        found[name] |= {"ff_listed": sum(weight.numel() for part, weight in listed if part_of(part) == "feed_forward")}
        found[name] |= {"macs": {str(length): closed_formula_macs(model, 1, length) for length in LENGTHS}}
        with tempfile.TemporaryDirectory() as place:
            if name == "honest":
                _save(name, model, Path(place))
            else:
                torch.save(model, Path(place) / "archive.pt")
                found[name]["heads"] = sum(layer.num_heads for layer in encoder_layers(model))
            found[name]["pickled"] = saved_bytes(place)
    return found


def _save(name: str, model: PreTrainedModel, folder: Path) -> None:
    words = "[PAD] [UNK] [CLS] [SEP] [MASK]".split()
    words += [f"word{number}" for number in range(model.config.vocab_size - len(words))]
    tokenizer = BertTokenizer(vocab={word: number for number, word in enumerate(words)}) if name == "honest" else None
    if name in SCHEMES:
        save_quantized(model, folder, SCHEMES[name], tokenizer)
    else:
        checkpoints.save_model(model, folder)


def read_or_measure(folder: Path, protocol: str = "full", processes: int = 5, replace: bool = False) -> dict[str, Any]:
    """From `folder/paper.json` if there: counts, costs (None with protocol none), left_out (for want of kernels)."""
    if (path := folder / "paper.json").is_file() and not replace:
        found = json.loads(path.read_text(encoding="utf-8"))
        if found["costs"] or protocol == "none":
            return found
    models = build_models()
    found = {"counts": count(models), "costs": None}
    if protocol != "none":
        asked = {"latency_protocol": protocol, "latency_processes": processes, "latency_threads": [1]}
        settings = load_settings("paper", {**asked, "latency_lengths": [32, 128], "memory_runs": 1})
        with tempfile.TemporaryDirectory() as place:
            folders = {name: Path(place) / name for name in models if name != "int8_embeddings"}
            for name, own in folders.items():
                _save(name, models[name], own)
            claimed = [name for name in folders if name in ("teacher", "final", "honest")]  # of memory
            found["costs"] = measure_costs(folders, [], settings, memory_of=claimed)
            found["costs"]["environment"] = environment.describe_environment()
    missing = ", ".join(name for name in SCHEMES if name not in models)
    found["left_out"] = missing and f"left out, since this PyTorch build has no quantized CPU kernels: {missing}"
    folder.mkdir(parents=True, exist_ok=True)
    study.write_json(path, found)
    return found


def _contrast(costs: Costs, models: Sequence[str], exponents: Sequence[int], name: str) -> Estimate | None:
    rows = [row for row in costs["latency"] if row["input"] == name and row["threads"] == 1] if costs else []
    medians = [[row["median_ms"] for row in rows if row["model"] == model] for model in models]
    return contrast_of_latencies(medians, exponents) if all(medians) else None


def judge(found: Estimate | None, bears_out: Sequence[Sequence[float]], counted: float = np.nan) -> str:
    """The one rule: reproduced where the interval lies within a range that bears the claim out, undecided here where it
    reaches into one; else not, or only under the paper's counting where what that counted lies within one."""
    if found is None or found.low is None or found.high is None:
        return UNDECIDED
    if any(low <= found.low and found.high <= high for low, high in bears_out):
        return REPRODUCED
    if any(found.low <= high and low <= found.high for low, high in bears_out):
        return UNDECIDED
    return PAPER_ONLY if any(low <= counted <= high for low, high in bears_out) else NOT_REPRODUCED


def claim_checks(numbers: Mapping[str, Any], frames: Frames | None = None) -> pd.DataFrame:
    """A row for every number of C1 to C15, with `counted` where the paper's count differs; C7 and C12 need frames."""
    counts, costs = numbers["counts"], numbers["costs"]
    teacher, student, pruned = (counts[name] for name in "teacher student pruned".split())
    int8, final, smallest = (counts.get(name, _UNCOUNTED) for name in "int8 final int8_embeddings".split())
    return _checks(
        "paper",
        *((each["stored"] / 1e6, each["listed"] / 1e6) for each in (teacher, student, final)),
        (student["stored"] / final["stored"], student["listed"] / final["listed"]),
        (final["pickled"] / 1e6, final["pickled"] / 2**20),
        student["pickled"] / final["pickled"],
        teacher["macs"]["128"] / pruned["macs"]["128"],  # quantization removes no operation
        *_latencies(costs, "final"),
        _accuracy(frames) if frames else None,
        100 * (1 - pruned["heads"] / student["heads"]),
        (int8["feed_forward"], int8["ff_listed"]),
        *(_contrast(costs, ["student", "pruned", "int8", "final"], [1, -1, -1, 1], name) for name in INPUTS),
        *((each["pickled"] / 1e6, each["pickled"] / 2**20) for each in (student, int8, smallest)),
        (student["pickled"] / smallest["pickled"], teacher["pickled"] / smallest["pickled"]),
        _kept(frames),
        *(_contrast(costs, ["teacher", "final"], [1, -1], name) for name in INPUTS),
        *_memory(costs, "final"),
        None,
    )


def honest_checks(numbers: Mapping[str, Any], frames: Frames | None = None) -> pd.DataFrame:
    """The claims that a model can be held against, held against the one that is to make them true."""
    (teacher, honest), costs = (numbers["counts"][name] for name in ("teacher", "honest")), numbers["costs"]
    sizes = (honest["stored"] / 1e6, honest["pickled"] / 1e6, teacher["macs"]["128"] / honest["macs"]["128"])
    faster = (_contrast(costs, ["teacher", "honest"], [1, -1], name) for name in INPUTS)
    kept, memory = _kept(frames, HONEST), _memory(costs, "honest")
    return _checks("honest", *sizes, *_latencies(costs, "honest"), kept, *faster, *memory)


def _checks(table: str, *found: Any) -> pd.DataFrame:
    """Of a table of claims and, in its order, estimates, counts, (count, the paper's count), or task -> estimate."""
    rows = list[dict[str, Any]]()
    for (number, quantity, claimed, bears_out, form), value in zip(_CLAIMS[table], found, strict=True):
        for task, each in (value if isinstance(value, dict) else {"": value}).items():
            ours, counted = each if type(each) is tuple else (each, np.nan)
            if isinstance(ours, int | float):  # an exact count, or NaN where there is none
                ours = None if np.isnan(ours) else Estimate(ours, ours, ours)
            row = {"number": number, "quantity": quantity + task, "claimed": claimed, "counted": counted, "form": form}
            rows.append({**row, **ends("ours", ours), "verdict": judge(ours, bears_out, counted)})
    return pd.DataFrame(rows)


def counts_table(numbers: Mapping[str, Any]) -> pd.DataFrame:
    """The paper's models counted: weights, files and MACs."""
    counts = pd.json_normalize([{"model": name, **each} for name, each in numbers["counts"].items()], sep="_")
    counts = counts.rename(columns={"stored": "parameters", "listed": "parameters_listed", "pickled": "bytes"})
    return counts.assign(mib=counts["bytes"])["model parameters parameters_listed bytes mib macs_32 macs_128".split()]


def claims_table(checks: pd.DataFrame, said: Mapping[str, str] | None = None) -> pd.DataFrame:
    """Checks as text, with claim, the worst verdict of a claim's checks; `said` words them anew, as `MADE_TRUE`."""
    rows, names = checks.to_dict("records"), ("claimed", "counted", "ours")
    table = checks[["number", "quantity"]].assign(**{name: [_text(row, name) for row in rows] for name in names})
    worst = checks["verdict"].map(VERDICTS.index).groupby(checks["number"]).transform("max")
    verdicts = {"verdict": checks["verdict"], "claim": worst.map(VERDICTS.__getitem__)}
    return table.replace({"ours": {"": "not measured here"}}).assign(**verdicts).replace(dict(said or {}))


def _text(row: Mapping[str, Any], name: str) -> str:
    texts = [row["form"].format(row[end]) for end in (name, f"{name}_low", f"{name}_high") if pd.notna(row.get(end))]
    spread = len(texts) == 3 and row[f"{name}_low"] < row[f"{name}_high"]
    return "{} [{}, {}]".format(*texts) if spread else "".join(texts[:1])


def _latencies(costs: Costs, model: str) -> list[Estimate | None]:
    """Of C6: percent under the teacher's latency on each input, and under the student's on the best."""
    ratios = [_contrast(costs, [base, model], [1, -1], name) for base in ("teacher", "student") for name in INPUTS]
    less = [Estimate(*(100 * (1 - 1 / end) for end in each if end)) if each and each.low else None for each in ratios]
    return [*less[: len(INPUTS)], max(filter(None, less[len(INPUTS) :]), default=None)]


def _memory(costs: Costs, model: str) -> tuple[Estimate | None, Estimate | None]:
    """Of C14: percent under the teacher's peak, and the peak (MB), which repeats within about 2 %."""
    peaks = {row["model"]: row["peak_bytes"] / 1e6 for row in costs["memory"]} if costs else {}
    if model not in peaks:
        return None, None
    value, low, high = (peaks[model] * share for share in (1, 0.98, 1.02))
    return Estimate(*(100 * (1 - each / peaks["teacher"]) for each in (value, high, low))), Estimate(value, low, high)


def _percent(frames: Frames, task: str, model: str, name: str) -> Estimate | None:
    """Of a model, or the paper's final one, on a task's main dev split; None where missing or rows are synthetic."""
    model = model or path_of(frames, task).get("... and quantized", "")
    rows = summary(frames).query("task == @task and model == @model and main and accuracy == accuracy")
    if rows.empty or frames.results.query("task == @task")["synthetic"].any():
        return None
    return Estimate(*(100 * float(rows[f"{name}{end}"].iloc[0]) for end in ("", "_low", "_high")))


def _accuracy(frames: Frames) -> Estimate | None:
    """Of C7, which the paper's own models alone can test."""
    known = frames.results.query("task == 'sst2'").drop_duplicates("model").set_index("model")["parameters"]
    both = ["teacher", path_of(frames, "sst2").get("student, distilled", "")]
    return _percent(frames, "sst2", "", "accuracy") if (*known.reindex(both),) == PAPERS_PARAMETERS else None


def _kept(frames: Frames | None, model: str = "") -> dict[str, Estimate | None]:
    """Of C12, a share and so something that any teacher can test: for each task of the study."""
    every = {task: _percent(frames, task, model, "kept") for task in frames.tasks} if frames else {}
    return {f", {task}": share for task, share in every.items() if share} or {"": None}
