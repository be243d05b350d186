"""What the paper profile needs on one GPU: its arithmetic counted, this CPU's speed measured, the rest extrapolated.

    python -m edgemin_utils.scale             # measures here, about a minute, and prints the page
    python -m edgemin_utils.scale --publish   # also into outputs/reference/scale and the README's place

The method, in three steps. *Work*: a training step takes three forwards' operations (one forward, and two products a
weight on the way back), each forward counted by the closed formula at the mean length of a padded batch of GLUE's own
rows. *Time*: work over (a device's peak x the share of it that training reaches), but never less than the steps times
what a step costs without arithmetic; both the share and that cost are measured here, on the CPU, by this package's own
training loop, and a GPU's share is an assumption that stands in the table. *Memory*: weights, gradients, AdamW's two
moments, and the tensors that autograd keeps for the way back, counted without computing them.
"""

import argparse
import json
import math
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from datasets import Dataset
from transformers import PreTrainedModel

from edgemin_utils.chain import TEACHER, plan_chain
from edgemin_utils.config import Settings, load_settings, project_folder
from edgemin_utils.data import rows_trained_on
from edgemin_utils.encoders import scratch_model
from edgemin_utils.errors import EdgeMINError, StageError
from edgemin_utils.measurement.environment import describe_environment
from edgemin_utils.measurement.operations import closed_formula_macs, float_twin
from edgemin_utils.measurement.roofline import measure_peaks
from edgemin_utils.paper.architectures import LABELS, POSITIONS, VOCABULARY
from edgemin_utils.progress import duration
from edgemin_utils.records import read_record, write_json
from edgemin_utils.reference import fill_marked_place
from edgemin_utils.tokenization import train_tokenizer
from edgemin_utils.training import GroupedByLength, Phase, label_loss, predict, train_phases

PLACE = "scale"
MEASURED_FILE = "measured.json"
# Rows of GLUE's train and dev splits (Wang et al. 2018, table 1, as distributed on the hub), MNLI's two dev splits
# together.
GLUE_ROWS = {"sst2": (67349, 872), "mnli": (392702, 9815 + 9832), "qqp": (363846, 40430)}
# What training takes of a forward's operations: itself, the gradient of the inputs and that of the weights.
FORWARDS_A_STEP = 3
MEASURED_TOKENS = 32
TEACHER_HIDDEN_SIZE = 768


@dataclass(frozen=True)
class Device:
    """A processor to extrapolate to.

    Attributes:
        name: with the arithmetic that `training_precision = auto` takes there.
        peak_flops: floating-point operations a second, without sparsity, by its data sheet.
        share: of the peak that training reaches; assumed.
        memory_bytes: of the device.
    """

    name: str
    peak_flops: float
    share: float
    memory_bytes: float


DEVICES = (Device("T4, float32", 8.1e12, 0.35, 16e9), Device("H100 SXM, bfloat16", 989e12, 0.35, 80e9))


@dataclass(frozen=True)
class Load:
    """One stage's training: `rows` x `epochs` in batches of `batch_size` through `model` ("teacher" or "student"),
    and the rows that the teacher reads for it on the device (beside every batch) and on the CPU (once, kept)."""

    stage: str
    model: str
    rows: int
    epochs: float
    batch_size: int
    teacher_rows_on_device: float = 0
    teacher_rows_on_cpu: float = 0

    @property
    def steps(self) -> int:
        """Optimizer steps."""
        return math.ceil(math.ceil(self.rows / self.batch_size) * self.epochs)

    def flops(self, forward_flops: Mapping[str, float]) -> float:
        """Floating-point operations on the device, given those of one row's forward through each model."""
        own = FORWARDS_A_STEP * self.rows * self.epochs * forward_flops[self.model]
        return own + self.teacher_rows_on_device * forward_flops["teacher"]


# ---- the work ---------------------------------------------------------------------------------------------------


def paper_models() -> dict[str, PreTrainedModel]:
    """Teacher and student of the paper with random weights."""
    return {
        "teacher": scratch_model("distilbert", 6, TEACHER_HIDDEN_SIZE, 12, 3072, VOCABULARY, LABELS, POSITIONS),
        "student": scratch_model("bert", 12, 384, 12, 1536, VOCABULARY, LABELS, POSITIONS),
    }


def training_loads(settings: Settings, train_rows: int, tokens: float, hidden_size: int) -> list[Load]:
    """Every stage of a chain that trains, under `settings`.

    Args:
        train_rows: rows trained on.
        tokens: real tokens a row, mean.
        hidden_size: the teacher's; decides with `tokens` whether its states are kept or computed batch by batch.
    """
    kept = train_rows * tokens * 3 * hidden_size * 4 <= settings.teacher_cache_gigabytes * 1e9
    loads = []
    for key, stage in plan_chain(settings).items():
        if not stage.keeps_model or stage.kind == "quantization":
            continue
        epochs = {
            "teacher": settings.teacher_epochs,
            "pruning": settings.recovery_epochs,
            "tuning": settings.tuning_epochs,
            "distillation": settings.distillation_epochs + settings.prediction_epochs,
        }[stage.kind]
        by_batch = bool(stage.teacher) and stage.kind == "distillation" and not kept
        batch_size = settings.teacher_batch_size if key == TEACHER else None
        loads.append(
            Load(
                key,
                "teacher" if key == TEACHER else "student",
                train_rows,
                epochs,
                batch_size or settings.batch_size,
                train_rows * epochs if by_batch else 0,
                train_rows if stage.teacher and not by_batch else 0,
            )
        )
    return loads


def seconds_on(device: Device, load: Load, forward_flops: Mapping[str, float], step_seconds: float) -> float:
    """Seconds that a load takes there: its arithmetic, or its steps at `step_seconds` each if that is longer."""
    return max(load.flops(forward_flops) / (device.peak_flops * device.share), load.steps * step_seconds)


def predicted_flops(
    settings: Settings, loads: Sequence[Load], dev_rows: int, forward_flops: Mapping[str, float]
) -> float:
    """Floating-point operations of the forwards that run on the CPU in every case: the dev rows through each model
    kept (twice where heads are cut: right after it, and after recovery), and the teacher's kept answers."""
    plan = plan_chain(settings).values()
    passes = sum(1 + (stage.kind == "pruning") for stage in plan if stage.keeps_model and stage.key != TEACHER)
    teacher_rows = dev_rows + sum(load.teacher_rows_on_cpu for load in loads)
    return passes * dev_rows * forward_flops["student"] + teacher_rows * forward_flops["teacher"]


def padded_tokens(lengths: Sequence[int], batch_size: int) -> float:
    """Mean tokens a row, padding included, in batches of rows of like length."""
    order = list(GroupedByLength(lengths, batch_size, seed=0))
    batches = [
        [lengths[row] for row in order[start : start + batch_size]] for start in range(0, len(order), batch_size)
    ]
    return sum(len(batch) * max(batch) for batch in batches) / len(lengths)


def training_bytes(model: PreTrainedModel, batch_size: int, tokens: int) -> dict[str, int]:
    """Bytes of training `model` in float32 by AdamW, without the framework's own: weights, gradients, moments (two a
    weight) and activations (what autograd keeps of one batch of `batch_size` rows of `tokens`)."""
    count = sum(parameter.numel() for parameter in model.parameters())
    twin = float_twin(model).requires_grad_(True).train()
    own = {parameter.untyped_storage()._cdata for parameter in twin.parameters()}
    kept: dict[int, torch.UntypedStorage] = {}  # held, so that no two storages get one address

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in own:
            kept[storage._cdata] = storage
        return tensor

    # Without a mask: whether it hides anything is asked of its values, which a tensor without memory has not.
    inputs = torch.ones(batch_size, tokens, dtype=torch.int64, device="meta")
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        loss = twin(input_ids=inputs).logits.sum()
    activations = sum(storage.nbytes() for storage in kept.values())
    del loss
    return {"weights": 4 * count, "gradients": 4 * count, "moments": 8 * count, "activations": activations}


# ---- measuring --------------------------------------------------------------------------------------------------


def measure_here(models: Mapping[str, PreTrainedModel], steps: int = 4, batch_size: int = 32) -> dict[str, Any]:
    """Speed of training and prediction on one core of this machine, in float32 and by processor time, so that what
    else runs here slows nothing down.

    Returns:
        peak_flops (operations a second of torch.mm); of each model training_rows_per_second and
        prediction_rows_per_second at `MEASURED_TOKENS` tokens, forward_flops of such a row, and step_seconds (of a
        twin as deep but 24 wide, on two rows of two tokens: a step without arithmetic to speak of); tokens,
        batch_size, environment.
    """
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        measured: dict[str, Any] = {
            "tokens": MEASURED_TOKENS,
            "batch_size": batch_size,
            "peak_flops": 2 * measure_peaks(1).fp32_macs_per_second,
            "environment": describe_environment(),
            "models": {},
        }
        for name, model in models.items():
            config = model.config
            layers = getattr(config, "n_layers", None) or config.num_hidden_layers
            narrow = scratch_model(config.model_type, layers, 24, 12, 24, 100, LABELS, POSITIONS)
            step, prediction = _step_and_prediction_seconds(model, steps, batch_size, MEASURED_TOKENS)
            measured["models"][name] = {
                "training_rows_per_second": batch_size / step,
                "prediction_rows_per_second": batch_size / prediction,
                "forward_flops": 2 * closed_formula_macs(model, 1, MEASURED_TOKENS),
                "step_seconds": _step_and_prediction_seconds(narrow, 10 * steps, 2, 2)[0],
            }
    finally:
        torch.set_num_threads(before)
    return measured


def _step_and_prediction_seconds(
    model: PreTrainedModel, steps: int, batch_size: int, tokens: int
) -> tuple[float, float]:
    """Processor seconds of a training step, set-up left out, and of the prediction of as many rows."""
    tokenizer = train_tokenizer(["only for padding"], 50)
    settings = load_settings("demo", {"batch_size": batch_size, "training_precision": "float32"})
    phase = Phase("speed", 1, 1e-5, label_loss)

    def train(count: int) -> float:
        rows, started = _random_rows(model, count * batch_size, tokens), time.process_time()
        train_phases(model, rows, [phase], tokenizer, settings, 0)
        return time.process_time() - started

    first, more = train(1), train(1 + steps)
    rows, started = _random_rows(model, steps * batch_size, tokens), time.process_time()
    predict(model, rows, tokenizer, batch_size)
    # On a tiny model the set-up's own scatter can exceed a step.
    return max(more - first, 1e-6) / steps, max(time.process_time() - started, 1e-6) / steps


def _random_rows(model: PreTrainedModel, count: int, tokens: int) -> Dataset:
    random = np.random.default_rng(0)
    return Dataset.from_dict(
        {
            "input_ids": random.integers(5, model.config.vocab_size, size=(count, tokens)).tolist(),
            "attention_mask": [[1] * tokens] * count,
            "length": [tokens] * count,
            "labels": random.integers(0, 2, size=count).tolist(),
        }
    )


# ---- the page ---------------------------------------------------------------------------------------------------


def row_lengths(reference: Path, batch_size: int) -> dict[str, dict[str, float]]:
    """Task -> mean tokens of GLUE's train rows, as the teachers of the reference study saw them: real ones, and padded
    in batches of `batch_size`."""
    lengths = {
        task: read_record(reference / task / "seed-0" / TEACHER).results["data"]["token_lengths"] for task in GLUE_ROWS
    }
    return {
        task: {"real": float(np.mean(sample)), "padded": padded_tokens(sample, batch_size)}
        for task, sample in lengths.items()
    }


def scale_table(measured: Mapping[str, Any], models: Mapping[str, PreTrainedModel]) -> pd.DataFrame:
    """One row a task: rows, tokens a row (padded), steps, pflop (10^15 operations of training), hours of each device
    by name, and cpu_hours of the predictions that run on the CPU, at this machine's measured speed."""
    settings, table = load_settings("paper"), []
    speed = cpu_speed(measured)
    for task, tokens in measured["row_lengths"].items():
        train, dev = GLUE_ROWS[task]
        rows = rows_trained_on(settings, train)
        forward = {name: 2 * closed_formula_macs(model, 1, round(tokens["padded"])) for name, model in models.items()}
        loads = training_loads(settings, rows, tokens["real"], TEACHER_HIDDEN_SIZE)
        hours = {
            device.name: sum(
                seconds_on(device, load, forward, measured["models"][load.model]["step_seconds"]) for load in loads
            )
            / 3600
            for device in DEVICES
        }
        table.append(
            {
                "task": task,
                "rows": rows,
                "tokens": tokens["padded"],
                "steps": sum(load.steps for load in loads),
                "pflop": sum(load.flops(forward) for load in loads) / 1e15,
                **hours,
                "cpu_hours": predicted_flops(settings, loads, dev, forward) / speed / 3600,
            }
        )
    return pd.DataFrame(table)


def cpu_speed(measured: Mapping[str, Any]) -> float:
    """Floating-point operations a second that predicting reached here, the slower of the two models."""
    return min(model["prediction_rows_per_second"] * model["forward_flops"] for model in measured["models"].values())


def scale_section(measured: Mapping[str, Any]) -> str:
    """The README's place: what the paper profile needs, with the method, as Markdown."""
    models = paper_models()
    table = scale_table(measured, models)
    shown = pd.DataFrame(
        {
            "Task": table["task"],
            "Train rows": table["rows"].map("{:,}".format),
            "Tokens a row": table["tokens"].map("{:.1f}".format),
            "Steps": table["steps"].map("{:,}".format),
            "Training, PFLOP": table["pflop"].map("{:.2f}".format),
            **{device.name: (3600 * table[device.name]).map(duration) for device in DEVICES},
            "Predictions on the CPU": (3600 * table["cpu_hours"]).map(duration),
        }
    )
    return "\n\n".join([_markdown(shown), *_method(measured), _markdown(memory_table(models, 32)), MEMORY_NOTE])


def memory_table(models: Mapping[str, PreTrainedModel], batch_size: int) -> pd.DataFrame:
    """MB (10^6 bytes) of training each model, at two lengths."""
    rows = []
    for name, model in models.items():
        for tokens in (32, 128):
            parts = training_bytes(model, batch_size, tokens)
            rows.append(
                {
                    "Model": name,
                    "Batch": f"{batch_size}x{tokens}",
                    **{f"{part.capitalize()}, MB": f"{size / 1e6:,.0f}" for part, size in parts.items()},
                    "Together, MB": f"{sum(parts.values()) / 1e6:,.0f}",
                }
            )
    return pd.DataFrame(rows)


MEMORY_NOTE = (
    "Memory of one training step in float32 with AdamW, by count, attention's probabilities among it, which fused GPU "
    "kernels do not keep. The framework, its allocator and in distillation the teacher's weights come on top. "
    "Several processes divide the batch and with it the activations; each has all weights and moments, and the "
    "gradients twice."
)


def _method(measured: Mapping[str, Any]) -> list[str]:
    peak, environment = measured["peak_flops"], measured["environment"]
    speeds = []
    for name, model in measured["models"].items():
        reached = FORWARDS_A_STEP * model["forward_flops"] * model["training_rows_per_second"]
        speeds.append(
            f"the {name} trains on {model['training_rows_per_second']:.1f} rows/s ({reached / 1e9:.0f} GFLOP/s, "
            f"{100 * reached / peak:.0f} % of the peak) and predicts {model['prediction_rows_per_second']:.1f} rows/s; "
            f"a step of a twin as deep but 24 wide takes {1e3 * model['step_seconds']:.0f} ms"
        )
    devices = "; ".join(
        f"{device.name}: {device.peak_flops / 1e12:,.1f} TFLOP/s by its data sheet, of which {100 * device.share:.0f} "
        f"% are assumed to be reached, {device.memory_bytes / 1e9:.0f} GB"
        for device in DEVICES
    )
    return [
        "These times are extrapolated; nothing of it ran on those devices. Each stage takes the longer of two: its "
        "operations over what the device reaches, and its steps times the time of a step without arithmetic. "
        "Operations (1 PFLOP = 10^15) are three forwards a row and epoch by the closed formula, at the mean padded "
        "length of GLUE's rows, and the teacher's where it reads each batch; a cut student counts as whole. Measured "
        f"on one core of {environment['processor']}, by processor time, float32, {measured['batch_size']}x"
        f"{measured['tokens']}, peak {peak / 1e9:.0f} GFLOP/s: {'; '.join(speeds)}. {devices}.",
        "Predictions (the dev rows of every model, the teacher's answers that are kept) run on the CPU whatever the "
        f"GPU is; their time is one core's at the {cpu_speed(measured) / 1e9:.0f} GFLOP/s that predicting reached "
        "here, quantized models counted as float ones. Scans, layer sensitivity and the timing of models come on top.",
    ]


def _markdown(table: pd.DataFrame) -> str:
    return table.to_markdown(index=False, disable_numparse=True)


def main(arguments: Sequence[str] | None = None) -> int:
    """Measures, prints the page and publishes it if asked; gives the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m edgemin_utils.scale",
        description="What the paper profile needs on one GPU, extrapolated from what is measured here.",
    )
    parser.add_argument(
        "--publish",
        action="store_true",
        help="write the measurement to outputs/reference/scale and the page into the README's marked place",
    )
    parser.add_argument(
        "--keep-measurement", action="store_true", help="write the page from the last measurement (default: measure)"
    )
    options = parser.parse_args(arguments)
    try:
        print(_scale(options.publish, options.keep_measurement))
    except EdgeMINError as error:
        print(f"scale: {error}", file=sys.stderr)
        return 2
    return 0


def _scale(publish: bool, keep_measurement: bool) -> str:
    """Measures, unless the last measurement is to be kept, and gives the page; writes it to the README if asked."""
    project = project_folder()
    folder = project / "outputs" / ("reference/scale" if publish else "scale")
    folder.mkdir(parents=True, exist_ok=True)
    if not keep_measurement:
        lengths = row_lengths(project / "outputs" / "reference" / "laptop", load_settings("paper").batch_size)
        write_json(folder / MEASURED_FILE, {**measure_here(paper_models()), "row_lengths": lengths})
    section = scale_section(read_measured(folder))
    if publish:
        readme = project / "README.md"
        readme.write_text(fill_marked_place(readme.read_text(encoding="utf-8"), PLACE, section), encoding="utf-8")
    return section


def read_measured(folder: Path) -> dict[str, Any]:
    """What was measured before.

    Raises:
        StageError: nothing was, in that folder.
    """
    try:
        return json.loads((folder / MEASURED_FILE).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise StageError(f"{folder} holds no {MEASURED_FILE}; leave --keep-measurement out to measure") from None


if __name__ == "__main__":
    sys.exit(main())
