"""The tuning stage, and what every stage records that trains a model under fake quantization.

Quantization-aware training (a `quantize-aware` step) and every training behind it run under fake quantization: the
model computes with the numbers that its quantized form will have, and what is saved is the plain float model.
"""

from pathlib import Path
from typing import Any

from torch import nn

from edgemin_utils.chain import Stage
from edgemin_utils.checkpoints import save_model
from edgemin_utils.config import Settings
from edgemin_utils.evaluation import TokenizedTask, describe_trained, evaluate, load_stage_model, tokenized_task
from edgemin_utils.quantization import fake_quantization
from edgemin_utils.records import Record, Run
from edgemin_utils.recovery import answer_loss, load_teacher
from edgemin_utils.training import Phase, train_phases


def tune_model(run: Run, key: str) -> Record:
    """Stage `tuning/<source>+...`: a model trained once more, with fake quantization behind a quantize-aware step.

    Results: as a student's, and metrics_before; with fake quantization also fake_quantization (the number format),
    metrics_fake_quantized (of this model under it) and metrics_before_fake_quantized (of its source under it).
    """
    return run.run_stage(key, lambda folder: _tune_model(run, key, folder))


def _tune_model(run: Run, key: str, folder: Path) -> dict[str, Any]:
    settings, stage = run.settings_of(key), run.stage(key)
    tokenizer, model = load_stage_model(run, stage.source)
    teacher = load_teacher(run, key)
    models = [model] if teacher is None else [model, teacher[1]]
    rows = tokenized_task(run, tokenizer, models)
    before = under_fake_quantization(model, stage, rows, settings)
    phase = Phase(
        "tuning",
        settings.tuning_epochs,
        settings.tuning_learning_rate,
        answer_loss(run, settings, teacher, models, rows.data),
    )
    with fake_quantization(model, stage.fake_quantization):
        log = train_phases(model, rows.train, [phase], tokenizer, settings, run.seed, rows.holdout)
    save_model(model, folder, tokenizer)
    results = {
        **describe_trained(model, folder, rows, settings.evaluation_batch_size, log),
        **under_fake_quantization(model, stage, rows, settings),
        "metrics_before": run.read(stage.source).results["metrics"],
    }
    if before:
        results["metrics_before_fake_quantized"] = before["metrics_fake_quantized"]
    return results


def under_fake_quantization(model: nn.Module, stage: Stage, rows: TokenizedTask, settings: Settings) -> dict[str, Any]:
    """The entries of a record that a stage behind a quantize-aware step has beside the float model's metrics; none for
    any other stage."""
    if not stage.fake_quantization:
        return {}
    with fake_quantization(model, stage.fake_quantization):
        metrics, _ = evaluate(model, rows, settings.evaluation_batch_size, None)
    return {"fake_quantization": stage.fake_quantization, "metrics_fake_quantized": metrics}
