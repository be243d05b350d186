"""The paper's own numbers, derived again: what it counted, beside it the honest count, and a verdict by one rule. Its
models are built from their sizes with random weights: no count and no time here depends on values."""

import copy
import io
import itertools
import json
import tempfile
import tomllib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import pandas as pd
import torch
from transformers import BertTokenizer, PreTrainedModel

from edgemin_utils import statistics
from edgemin_utils.checkpoints import save_model
from edgemin_utils.encoders import encoder_layers, scratch_model
from edgemin_utils.environment import describe_environment
from edgemin_utils.measurement.costs import measure_costs
from edgemin_utils.measurement.operations import closed_formula_macs
from edgemin_utils.measurement.parameters import part_of, saved_bytes, size_of
from edgemin_utils.names import LISTS, read_name
from edgemin_utils.pruning.cut import remove_units, rounds
from edgemin_utils.quantization.schemes import quantize, save_quantized
from edgemin_utils.results.comparisons import ends, summary
from edgemin_utils.results.table import Frames
from edgemin_utils.results.tables import path_of
from edgemin_utils.settings import load_settings, whole_share
from edgemin_utils.statistics import Estimate
from edgemin_utils.study import write_json

LABELS, VOCABULARY, POSITIONS, HEAD_RATIO = ("negative", "positive"), 30522, 512, 0.2
PAPERS_PARAMETERS = (66_955_010, 33_360_770)  # teacher's and student's, with two labels
HONEST = LISTS["honest"][0]
INPUTS, LENGTHS = ("1x32", "1x128"), (8, 16, 32, 64, 128, 256, 512)
VERDICTS = "reproduced|reproduced only under the paper's counting|undecided here|not reproduced".split("|")
REPRODUCED, PAPER_ONLY, UNDECIDED, NOT_REPRODUCED = VERDICTS
MADE_TRUE = {REPRODUCED: "made true", UNDECIDED: UNDECIDED, NOT_REPRODUCED: "not made true"}
_CLAIMS = tomllib.loads((Path(__file__).parent / "paper.toml").read_text(encoding="utf-8"))
Ranges = Sequence[Sequence[float]]
Costs = Mapping[str, Any] | None


def build_models(seed: int = 0) -> dict[str, PreTrainedModel]:
    """The paper's models: teacher (distilbert-base-uncased), student (microsoft/MiniLM-L12-H384-uncased), that one
    pruned (2 of 12 heads a layer), int8 and final (student and pruned in dynamic INT8), int8_embeddings (the word
    embedding too); and honest, what that list of `names.LISTS` makes of the student."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        teacher = scratch_model("distilbert", 6, 768, 12, 3072, VOCABULARY, LABELS, POSITIONS).eval()
        student = scratch_model("bert", 12, 384, 12, 1536, VOCABULARY, LABELS, POSITIONS).eval()
        pruned, honest = copy.deepcopy(student), honest_form(student)
    remove_units(pruned, [range(whole_share(HEAD_RATIO, layer.num_heads)) for layer in encoder_layers(student)])
    quantized = {"int8": (student, "int8"), "final": (pruned, "int8"), "int8_embeddings": (student, "int8-embeddings")}
    quantized["honest"] = honest, HONEST.rpartition("+")[2]
    made = {name: quantize(model, scheme) for name, (model, scheme) in quantized.items()}
    return {"teacher": teacher, "student": student, "pruned": pruned, **made}


def honest_form(student: PreTrainedModel) -> PreTrainedModel:
    """A copy with the cuts of the list `honest`, whichever units go. Biases and norms, which begin alike, are drawn
    anew: an exported graph stores equal vectors once."""
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
    """Every number that needs no clock: name of a model -> stored, listed (weights), feed_forward (weights stored
    there), ff_listed (those listed), macs (tokens -> count), heads, and pickled (bytes of `torch.save`, as the paper
    saved; of `honest` the .onnx file and its config)."""
    found: dict[str, Any] = {}
    for name, model in models.items():
        size, named = size_of(model), model.named_parameters()
        found[name] = {"stored": size["stored_weights"], "listed": size["framework_parameters"]}
        found[name] |= {"macs": {str(length): closed_formula_macs(model, 1, length) for length in LENGTHS}}
        found[name] |= {"feed_forward": size["parts"]["feed_forward"]}
        found[name] |= {"ff_listed": sum(weight.numel() for each, weight in named if part_of(each) == "feed_forward")}
        with tempfile.TemporaryDirectory() as place, io.BytesIO() as buffer:
            if name == "honest":
                _save_honest(model, Path(place))
                found[name]["pickled"] = saved_bytes(place)["file_bytes"]
            else:
                torch.save(model, buffer)
                heads = sum(layer.num_heads for layer in encoder_layers(model))
                found[name] |= {"pickled": buffer.tell(), "heads": heads}
    return found


def listed_after_quantization(models: Mapping[str, PreTrainedModel]) -> dict[str, int]:
    """What 11.94M is made of: name of a table, or "layer norms" -> weights that are still listed."""
    shown: dict[str, int] = {}
    for name, parameter in models["final"].named_parameters():
        part = "layer norms" if "norm" in name.lower() else name.rsplit(".", 2)[-2].replace("_", " ")
        shown[part] = shown.get(part, 0) + parameter.numel()
    return shown


def _save_honest(model: PreTrainedModel, folder: Path) -> None:
    words = "[PAD] [UNK] [CLS] [SEP] [MASK]".split()
    words += [f"word{number}" for number in range(model.config.vocab_size - len(words))]
    tokenizer = BertTokenizer(vocab={word: number for number, word in enumerate(words)})
    save_quantized(model, folder, HONEST.rpartition("+")[2], tokenizer)


def measure(models: Mapping[str, PreTrainedModel], protocol: str = "full", processes: int = 5) -> dict[str, Any]:
    """Latency (one thread, 1x32 and 1x128) and peak memory, as `measure_costs` gives them, and the machine."""
    asked = {"latency_protocol": protocol, "latency_processes": processes, "latency_threads": [1]}
    settings = load_settings("paper", {**asked, "latency_lengths": [32, 128], "memory_runs": 1})
    with tempfile.TemporaryDirectory() as place:
        folders = {name: Path(place) / name for name in "teacher student pruned int8 final honest".split()}
        _save_honest(models["honest"], folders["honest"])
        for name in ("teacher", "student", "pruned"):
            save_model(models[name], folders[name])
        for name in ("int8", "final"):
            save_quantized(models[name], folders[name], "int8")
        claimed = "teacher final honest".split()  # the models of whose memory a claim speaks
        return {**measure_costs(folders, [], settings, memory_of=claimed), "environment": describe_environment()}


def read_or_measure(folder: Path, protocol: str = "full", processes: int = 5, replace: bool = False) -> dict[str, Any]:
    """From `folder/paper.json` where an earlier call left them: counts (of `count`), listed (of
    `listed_after_quantization`) and costs (of `measure`; None with protocol none)."""
    path = folder / "paper.json"
    if path.is_file() and not replace:
        found = json.loads(path.read_text(encoding="utf-8"))
        if found["costs"] or protocol == "none":
            return found
    models = build_models()
    found = {"counts": count(models), "listed": listed_after_quantization(models)}
    found["costs"] = None if protocol == "none" else measure(models, protocol, processes)
    folder.mkdir(parents=True, exist_ok=True)
    write_json(path, found)
    return found


def _contrast(costs: Costs, models: Sequence[str], exponents: Sequence[int], name: str) -> Estimate | None:
    rows = [row for row in costs["latency"] if row["input"] == name and row["threads"] == 1] if costs else []
    medians = [[row["median_ms"] for row in rows if row["model"] == model] for model in models]
    return statistics.contrast_of_latencies(medians, exponents) if all(medians) else None


def interaction(costs: Costs, name: str = "1x128") -> Estimate | None:
    """Latency with pruning and INT8 over what the two gains multiplied would give: over 1 they gain less together."""
    return _contrast(costs, ["student", "pruned", "int8", "final"], [1, -1, -1, 1], name)


@dataclass(frozen=True)
class Check:
    """One number of a claim, C1 to C15: what is counted, with its unit; the paper's number; ranges of estimates that
    bear it out; our estimate; what the paper's way of counting gives, where it differs; how a number is written."""

    number: str
    quantity: str
    claimed: float
    bears_out: Ranges
    ours: Estimate | None
    counted: float | None = None
    form: str = "{:,.0f}"

    @property
    def verdict(self) -> str:
        """By `judge`; the paper's counting counts where ours does not bear the claim out."""
        found = judge(self.ours, self.bears_out)
        by_paper = self.counted is not None and judge(exact(self.counted), self.bears_out) == REPRODUCED
        return PAPER_ONLY if found == NOT_REPRODUCED and by_paper else found

    def text(self, found: Estimate | float | None) -> str:
        """An estimate with its interval, or a number."""
        if found is None:
            return "not measured here"
        value, low, high = found if isinstance(found, Estimate) else exact(found)
        said = self.form.format(value)
        return said if low is None or low == high else f"{said} [{self.form.format(low)}, {self.form.format(high)}]"


def exact(value: float) -> Estimate:
    """A count, whose interval is itself."""
    return Estimate(value, value, value)


def judge(found: Estimate | None, bears_out: Ranges) -> str:
    """The one rule: reproduced where the interval lies within a range that bears the claim out, not reproduced where it
    lies outside all of them, else undecided here."""
    if found is None or found.low is None or found.high is None:
        return UNDECIDED
    if any(low <= found.low and found.high <= high for low, high in bears_out):
        return REPRODUCED
    return UNDECIDED if any(found.low <= high and low <= found.high for low, high in bears_out) else NOT_REPRODUCED


def claim_checks(numbers: Mapping[str, Any], frames: Frames | None = None) -> list[Check]:
    """Every check of C1 to C15, of `read_or_measure`'s numbers and, for what the pipeline gets right, real frames."""
    counts, costs = numbers["counts"], numbers["costs"]
    names = "teacher student int8 final int8_embeddings".split()
    teacher, student, int8, final, smallest = (counts[name] for name in names)
    return _checks(
        "paper",
        *((each["stored"] / 1e6, each["listed"] / 1e6) for each in (teacher, student, final)),
        (student["stored"] / final["stored"], student["listed"] / final["listed"]),
        (final["pickled"] / 1e6, final["pickled"] / 2**20),
        student["pickled"] / final["pickled"],
        teacher["macs"]["128"] / final["macs"]["128"],
        *_latencies(costs, "final"),
        _accuracy(frames),
        100 * (1 - final["heads"] / student["heads"]),
        (int8["feed_forward"], int8["ff_listed"]),
        *(interaction(costs, name) for name in INPUTS),
        *((each["pickled"] / 1e6, each["pickled"] / 2**20) for each in (student, int8, smallest)),
        (student["pickled"] / smallest["pickled"], teacher["pickled"] / smallest["pickled"]),
        _kept(frames, _final_of),
        *(_contrast(costs, ["teacher", "final"], [1, -1], name) for name in INPUTS),
        *_memory(costs, "final"),
        None,
    )


def honest_checks(numbers: Mapping[str, Any], frames: Frames | None = None) -> list[Check]:
    """The claims that a model can be held against, held against the one that is to make them true."""
    (teacher, honest), costs = (numbers["counts"][name] for name in ("teacher", "honest")), numbers["costs"]
    sizes = (honest["stored"] / 1e6, honest["pickled"] / 1e6, teacher["macs"]["128"] / honest["macs"]["128"])
    faster = (_contrast(costs, ["teacher", "honest"], [1, -1], name) for name in INPUTS)
    kept = _kept(frames, lambda frames, task: HONEST)
    return _checks("honest", *sizes, *_latencies(costs, "honest"), kept, *faster, *_memory(costs, "honest"))


def _checks(table: str, *found: Any) -> list[Check]:
    """Of a table of claims and, in its order, estimates, counts, (count, the paper's count), or task -> estimate."""
    checks = list[Check]()
    for (number, quantity, claimed, bears_out, form), value in zip(_CLAIMS[table], found, strict=True):
        for task, each in (value if isinstance(value, dict) else {"": value}).items():
            ours, counted = each if type(each) is tuple else (each, None)
            ours = exact(ours) if isinstance(ours, int | float) else ours
            checks.append(Check(number, quantity + task, claimed, bears_out, ours, counted, form))
    return checks


def counts_table(numbers: Mapping[str, Any]) -> pd.DataFrame:
    """The paper's models counted: weights, files and MACs."""
    return pd.DataFrame(
        {"model": name, "parameters": each["stored"], "parameters_listed": each["listed"], "bytes": each["pickled"]}
        | {"mib": each["pickled"], "macs_32": each["macs"]["32"], "macs_128": each["macs"]["128"]}
        for name, each in numbers["counts"].items()
    )


def claims_table(checks: Iterable[Check], said: Mapping[str, str] = MappingProxyType({})) -> pd.DataFrame:
    """A row a check: number, quantity, claimed, counted (the paper's way), ours, verdict, and claim, the worst verdict
    of the claim's checks. `said` words them anew: `MADE_TRUE` for the honest model."""
    rows = [
        {"number": check.number, "quantity": check.quantity, "ours": check.text(check.ours), "verdict": check.verdict}
        | {"claimed": "" if np.isnan(check.claimed) else check.form.format(check.claimed)}
        | {"counted": "" if check.counted is None else check.text(check.counted)}
        for check in checks
    ]
    table = pd.DataFrame(rows, columns="number quantity claimed counted ours verdict".split())
    worst = table["verdict"].map(VERDICTS.index).groupby(table["number"]).transform("max")
    table["claim"] = worst.map(lambda place: VERDICTS[place])
    return table.replace({"verdict": dict(said), "claim": dict(said)})


def claimed_numbers(checks: Iterable[Check]) -> pd.DataFrame:
    """The same as numbers, for `figures.study.claims_figure`: number, quantity, claimed, ours, low, high."""
    rows = [
        {"number": check.number, "quantity": check.quantity, "claimed": check.claimed, **ends("ours", check.ours)}
        for check in checks
        if check.claimed  # C9's is zero, and has no share
    ]
    return pd.DataFrame(rows).rename(columns={"ours_low": "low", "ours_high": "high"})


def _latencies(costs: Costs, model: str) -> list[Estimate | None]:
    """Of C6: percent under the teacher's latency on each input, and under the student's on the best."""
    less = dict[tuple[str, str], Estimate]()
    for base, name in itertools.product(("teacher", "student"), INPUTS):
        ratio = _contrast(costs, [base, model], [1, -1], name)
        if ratio and ratio.low and ratio.high:
            less[base, name] = Estimate(*(100 * (1 - 1 / end) for end in ratio if end))
    best = max((each for (base, _), each in less.items() if base == "student"), default=None)
    return [*(less.get(("teacher", name)) for name in INPUTS), best]


def _memory(costs: Costs, model: str) -> tuple[Estimate | None, Estimate | None]:
    """Of C14: percent under the teacher's peak, and the peak (MB), which repeats within about 2 %."""
    if not costs:
        return None, None
    peaks = {row["model"]: row["peak_bytes"] / 1e6 for row in costs["memory"]}
    value, low, high = (peaks[model] * share for share in (1, 0.98, 1.02))
    return Estimate(*(100 * (1 - each / peaks["teacher"]) for each in (value, high, low))), Estimate(value, low, high)


def _of_study(frames: Frames, task: str, model: str) -> pd.Series | None:
    """The row of `summary` of a model on a task's main dev split; None where it is missing or rows are synthetic."""
    rows = summary(frames).query("task == @task and model == @model and accuracy == accuracy")
    rows = rows[rows["split"] == frames.splits(task)[0]]
    return rows.iloc[0] if len(rows) and not frames.results.query("task == @task")["synthetic"].any() else None


def _percent(row: pd.Series, name: str) -> Estimate:
    return Estimate(*(100 * float(row[f"{name}{end}"]) for end in ("", "_low", "_high")))


def _final_of(frames: Frames, task: str) -> str:
    return path_of(frames, task).get("... and quantized", "")


def _accuracy(frames: Frames | None) -> Estimate | None:
    """Of C7, which the paper's own models alone can test."""
    if not frames or "sst2" not in frames.tasks or not (final := _final_of(frames, "sst2")):
        return None
    rows = [_of_study(frames, "sst2", name) for name in ("teacher", final.split("+")[0], final)]
    sizes = [row["parameters"] for row in rows if row is not None]
    return _percent(rows[2], "accuracy") if rows[2] is not None and sizes[:2] == [*PAPERS_PARAMETERS] else None


def _kept(frames: Frames | None, model: Callable[[Frames, str], str]) -> dict[str, Estimate | None]:
    """Of C12, a share and so something that any teacher can test: for each task of the study."""
    rows = {task: _of_study(frames, task, model(frames, task)) for task in frames.tasks} if frames else {}
    return {f", {task}": _percent(row, "kept") for task, row in rows.items() if row is not None} or {"": None}
