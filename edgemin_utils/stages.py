"""The stages of a chain: each takes a `Run`, computes what is not on disk yet and returns its record.

This is where data, models and records meet; how things are computed is in the modules that it calls. The content of
`results` is listed at each stage.
"""

import dataclasses
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from torch import nn
from transformers import PreTrainedTokenizerBase, set_seed

from edgemin_utils import quantization
from edgemin_utils.chain import TEACHER, distillation_key, scan_key
from edgemin_utils.checkpoints import load_model, save_model
from edgemin_utils.config import Settings
from edgemin_utils.cost import measure_chain
from edgemin_utils.data import TaskData, load_task_data, task_statistics
from edgemin_utils.distillation import find_objective
from edgemin_utils.distillation.objective import Lesson, RelationView
from edgemin_utils.distillation.relations import relation_matrices
from edgemin_utils.distillation.soft_targets import soft_target_loss
from edgemin_utils.encoders import encoder_layers, model_with_layers, scratch_model
from edgemin_utils.errors import ModelError
from edgemin_utils.evaluation import (
    OPERATION_LENGTHS,
    TokenizedTask,
    describe_trained,
    evaluate,
    load_stage_model,
    predictor,
    read_predictions,
    tokenized_task,
)
from edgemin_utils.measurement.latency import PROTOCOLS, fixed_inputs, measure_latency
from edgemin_utils.measurement.parameters import framework_parameters
from edgemin_utils.objectives import OBJECTIVES
from edgemin_utils.pruning import (
    accuracy_as_heads_go,
    find_criterion,
    parameters_of_units,
    plan_removal,
    removal_order,
    remove_units,
)
from edgemin_utils.records import Record, Run
from edgemin_utils.teacher_signals import signal_source
from edgemin_utils.tokenization import load_tokenizer, train_tokenizer
from edgemin_utils.training import LossFunction, Phase, batches, label_loss, train_phases

# Shortest input a model made from scratch takes, so that the fixed 1x128 inputs of the latency protocol fit.
FEWEST_POSITIONS = 128
TOKEN_LENGTH_SAMPLE = 5000


# ---- teacher ---------------------------------------------------------------------------------------------------


def fine_tune_teacher(run: Run) -> Record:
    """Stage `teacher/fine-tuned`.

    Results: data (also statistics and token_lengths), metrics, confusion, size, operations, model, training.
    """
    return run.run_stage(TEACHER, lambda folder: _fine_tune_teacher(run, folder))


def _fine_tune_teacher(run: Run, folder: Path) -> dict[str, Any]:
    settings = run.settings
    data = load_task_data(settings, run.task, run.seed)
    tokenizer, model = make_teacher(run, data)
    rows = tokenized_task(run, tokenizer, [model], data)
    phase = Phase("fine-tuning", settings.teacher_epochs, settings.teacher_learning_rate, label_loss,
                  batch_size=settings.teacher_batch_size)
    log = train_phases(model, rows.train, [phase], tokenizer, settings, run.seed, rows.holdout)
    save_model(model, folder, tokenizer)
    results = describe_trained(model, folder, rows, settings.evaluation_batch_size, log)
    results["data"]["statistics"] = task_statistics(data)
    results["data"]["token_lengths"] = list(rows.train["length"])[:TOKEN_LENGTH_SAMPLE]
    return results


def make_teacher(run: Run, data: TaskData) -> tuple[PreTrainedTokenizerBase, nn.Module]:
    """The tokenizer and the untrained (or pretrained) teacher that the settings name; new weights from the seed."""
    settings, labels = run.settings, data.task.labels
    set_seed(run.seed)
    if settings.teacher != "scratch":
        tokenizer = load_tokenizer(settings.teacher)
        return tokenizer, load_model(settings.teacher, labels, settings.attention_implementation, settings.dropout)
    texts = (text for column in data.task.text_columns for text in data.train[column])
    tokenizer = train_tokenizer(texts, settings.vocabulary_size)
    model = scratch_model(
        settings.teacher_family, settings.teacher_layers, settings.teacher_hidden_size, settings.teacher_heads,
        settings.teacher_intermediate_size, len(tokenizer), labels, max(settings.max_length, FEWEST_POSITIONS),
        tokenizer.pad_token_id, settings.dropout)
    return tokenizer, model


# ---- students --------------------------------------------------------------------------------------------------


def train_student(run: Run, key: str) -> Record:
    """Stage `distillation/<student>`: a student by its objective's name, or an undistilled one. Also distillation of a
    model that a step made before, as in a recipe that prunes first.

    Results: as the teacher's, and objective, source, demands (of the architectures), learnt_from (the teacher's key)
    and transfer_rows; with a relation objective also relations (one sentence's matrices) and teacher_layer (from 0).
    """
    return run.run_stage(key, lambda folder: _train_student(run, key, folder))


def _train_student(run: Run, key: str, folder: Path) -> dict[str, Any]:
    settings, stage = run.settings_of(key), run.stage(key)
    name = "none-pretrained" if stage.student == "none-pretrained" else settings.objective if stage.teacher else "none"
    objective, entry = find_objective(name), OBJECTIVES[name]
    tokenizer, teacher = load_stage_model(run, stage.teacher or TEACHER)
    if stage.source == TEACHER:
        start = teacher if stage.teacher in ("", TEACHER) else load_stage_model(run, TEACHER)[1]
        model = make_student(settings, run.seed, start, tokenizer, pretrained=name == "none-pretrained")
    else:
        model = load_stage_model(run, stage.source)[1]
    # Checked before the rows and the teacher's pass over them: a mismatch should not cost minutes.
    lesson = Lesson(settings, teacher, model, seed=run.seed)
    objective.phases(lesson)
    rows = tokenized_task(run, tokenizer, [teacher, model],
                          load_task_data(settings, run.task, run.seed, transfer=bool(stage.teacher)))
    signals, started = objective.signals(lesson), time.perf_counter()
    source = signal_source(teacher, rows.learnt_from, tokenizer, signals, settings.evaluation_batch_size,
                           settings.teacher_cache_gigabytes) if signals else None
    signal_seconds = time.perf_counter() - started
    view = objective.relations(lesson)
    looked_at = _look_at_relations(rows, view, {"teacher": teacher, "student before": model}) if view else {}
    phases = objective.phases(dataclasses.replace(lesson, signals=source))
    log = train_phases(model, rows.learnt_from, phases, tokenizer, settings, run.seed, rows.holdout)
    if view:
        looked_at["models"].update(_look_at_relations(rows, view, {"student after": model})["models"])
    save_model(model, folder, tokenizer)
    results = describe_trained(model, folder, rows, settings.evaluation_batch_size, log)
    results["seconds_by_part"]["teacher signals"] = signal_seconds
    return {**results, "objective": name, "source": entry.source, "demands": entry.demands,
            "learnt_from": stage.teacher, "transfer_rows": len(rows.transfer),
            **({"relations": looked_at, "teacher_layer": view.teacher_layer} if view else {})}


def make_student(settings: Settings, seed: int, teacher: nn.Module, tokenizer: PreTrainedTokenizerBase,
                 pretrained: bool = False) -> nn.Module:
    """The student before training, as `settings.student` names it; new weights from the seed.

    Args:
        pretrained: take the same layers, but from the checkpoint that the teacher came from instead of from the
            fine-tuned teacher.

    Raises:
        ModelError: the student's vocabulary is not the teacher's (relations are compared token by token), or the
            layers asked for do not exist.
    """
    labels, kind = list(teacher.config.id2label.values()), settings.student
    set_seed(seed)
    if pretrained or kind == "pretrained-layers":
        if settings.teacher == "scratch":
            raise ModelError("a scratch teacher has no pretrained layers; use student = teacher-layers or scratch, "
                             "and leave the baseline none-pretrained out")
        source = load_model(settings.teacher, labels, settings.attention_implementation, settings.dropout)
        return model_with_layers(source, settings.student_from_layers)
    if kind == "teacher-layers":
        return model_with_layers(teacher, settings.student_from_layers)
    if kind == "scratch":
        return scratch_model(
            settings.teacher_family, settings.student_layers, settings.student_hidden_size, settings.student_heads,
            settings.student_intermediate_size, teacher.config.vocab_size, labels,
            max(settings.max_length, FEWEST_POSITIONS), tokenizer.pad_token_id, settings.dropout)
    if load_tokenizer(kind).get_vocab() != tokenizer.get_vocab():
        raise ModelError(f"student {kind!r} has another vocabulary than the teacher; relations are compared token by "
                         "token, so choose a student with the teacher's tokenizer, or student = scratch")
    return load_model(kind, labels, settings.attention_implementation, settings.dropout)


def _look_at_relations(rows: TokenizedTask, view: RelationView, models: Mapping[str, nn.Module]) -> dict[str, Any]:
    """Relation matrices of the main dev split's first row of ordinary length, for the notebook to draw."""
    split = next(iter(rows.dev.values()))
    ordinary = next((place for place, length in enumerate(split["length"]) if 8 <= length <= 20), 0)
    sentence = split.select([ordinary])
    _, batch = next(batches(sentence, rows.tokenizer, 1))
    matrices = {}
    for name, model in models.items():
        layer = view.teacher_layer if name == "teacher" else view.student_layer
        matrices[name] = relation_matrices(model.cpu().eval(), batch, layer, view.pairs, view.heads)
    return {"tokens": rows.tokenizer.convert_ids_to_tokens(sentence[0]["input_ids"]), "heads": view.heads,
            "models": {name: {pair: np.round(matrix.numpy(), 5) for pair, matrix in pairs.items()}
                       for name, pairs in matrices.items()}}


# ---- pruning ---------------------------------------------------------------------------------------------------


def scan_heads(run: Run) -> Record:
    """Stage `pruning/<student>+head-scan`: importance of every head, and accuracy as heads are taken away.

    Results: importance (criterion -> layers x heads), curves (order -> [{removed, accuracy}]), rows, total_heads,
    split.
    """
    key = scan_key(run.settings.objective)
    return run.run_stage(key, lambda folder: _scan_heads(run))


def _scan_heads(run: Run) -> dict[str, Any]:
    settings = run.settings
    tokenizer, model = load_stage_model(run, distillation_key(settings.objective))
    rows = tokenized_task(run, tokenizer, [model])
    held_out, split = (rows.holdout, "hold-out") if len(rows.holdout) else (rows.train, "train")
    held_out = held_out.select(range(min(settings.scan_rows, len(held_out))))
    importance = {name: _importance(run, model, rows, name) for name in ("gradient", "magnitude")}
    orders = {name: removal_order(values) for name, values in importance.items()}
    for draw in range(1, settings.random_draws + 1):
        orders[f"random-{draw}"] = removal_order(_importance(run, model, rows, "random", seed=run.seed + draw))
    curves = {name: accuracy_as_heads_go(model, held_out, tokenizer, order, settings.evaluation_batch_size)
              for name, order in orders.items()}
    return {"importance": importance, "curves": curves, "rows": len(held_out), "split": split,
            "total_heads": sum(layer.num_heads for layer in encoder_layers(model)),
            "importance_rows": min(settings.importance_rows, len(rows.train))}


def _importance(run: Run, model: nn.Module, rows: TokenizedTask, criterion: str, units: str = "heads",
                seed: int | None = None) -> list[np.ndarray]:
    settings = run.settings
    chosen = rows.train.select(range(min(settings.importance_rows, len(rows.train))))
    return find_criterion(criterion)(model, chosen, rows.tokenizer, label_loss, settings.evaluation_batch_size,
                                     units, run.seed if seed is None else seed)


def prune_student(run: Run, key: str) -> Record:
    """Stage `pruning/<student>+<criterion>-...`: heads (and neurons) cut out for real, then recovery fine-tuning.

    Results: as a student's, and criterion, scope, ratio, importance, removed_heads, removed_neurons (numbers a
    layer), parameters_removed, metrics_before, metrics_after_cut (before recovery).
    """
    return run.run_stage(key, lambda folder: _prune_student(run, key, folder))


def _prune_student(run: Run, key: str, folder: Path) -> dict[str, Any]:
    settings, stage = run.settings_of(key), run.stage(key)
    tokenizer, model = load_stage_model(run, stage.source)
    teacher = load_stage_model(run, stage.teacher)[1] if stage.teacher else None
    rows = tokenized_task(run, tokenizer, [model] if teacher is None else [model, teacher])
    importance = _importance(run, model, rows, settings.pruning_criterion)
    heads = plan_removal(importance, settings.head_prune_ratio, settings.pruning_scope)
    neurons: list[list[int]] = [[] for _ in heads]
    if settings.feed_forward_prune_ratio:
        neurons = plan_removal(_importance(run, model, rows, settings.pruning_criterion, "neurons"),
                               settings.feed_forward_prune_ratio, settings.pruning_scope)
    by_formula = parameters_of_units(model, heads) + parameters_of_units(model, neurons, "neurons")
    before = framework_parameters(model)
    remove_units(model, heads)
    remove_units(model, neurons, "neurons")
    if before - framework_parameters(model) != by_formula:
        raise ModelError(f"{key}: the cut removed {before - framework_parameters(model)} parameters where the formula "
                         f"says {by_formula}")
    after_cut, _ = evaluate(model, rows, settings.evaluation_batch_size, None)
    phase = Phase("recovery", settings.recovery_epochs, settings.recovery_learning_rate,
                  _answer_loss(settings, teacher, rows))
    log = train_phases(model, rows.train, [phase], tokenizer, settings, run.seed, rows.holdout)
    save_model(model, folder, tokenizer)
    return {**describe_trained(model, folder, rows, settings.evaluation_batch_size, log),
            "criterion": settings.pruning_criterion, "scope": settings.pruning_scope,
            "ratio": settings.head_prune_ratio, "importance": importance, "removed_heads": heads,
            "removed_neurons": [len(numbers) for numbers in neurons], "parameters_removed": by_formula,
            "metrics_before": run.read(stage.source).results["metrics"], "metrics_after_cut": after_cut}


def _answer_loss(settings: Settings, teacher: nn.Module | None, rows: TokenizedTask) -> LossFunction:
    """What a compressed model is trained on again: the labels, and the teacher's soft targets where it has one."""
    if teacher is None:
        return label_loss
    signals = signal_source(teacher, rows.train, rows.tokenizer, ("logits",), settings.evaluation_batch_size,
                            settings.teacher_cache_gigabytes)
    return soft_target_loss(signals, settings.temperature, settings.soft_target_weight)


# ---- tuning ----------------------------------------------------------------------------------------------------


def tune_model(run: Run, key: str) -> Record:
    """Stage `tuning/<source>+...`: a model trained once more, as it is.

    Results: as a student's, and metrics_before.
    """
    return run.run_stage(key, lambda folder: _tune_model(run, key, folder))


def _tune_model(run: Run, key: str, folder: Path) -> dict[str, Any]:
    settings, stage = run.settings_of(key), run.stage(key)
    tokenizer, model = load_stage_model(run, stage.source)
    teacher = load_stage_model(run, stage.teacher)[1] if stage.teacher else None
    rows = tokenized_task(run, tokenizer, [model] if teacher is None else [model, teacher])
    phase = Phase("tuning", settings.tuning_epochs, settings.tuning_learning_rate,
                  _answer_loss(settings, teacher, rows))
    log = train_phases(model, rows.train, [phase], tokenizer, settings, run.seed, rows.holdout)
    save_model(model, folder, tokenizer)
    return {**describe_trained(model, folder, rows, settings.evaluation_batch_size, log),
            "metrics_before": run.read(stage.source).results["metrics"]}


# ---- quantization ----------------------------------------------------------------------------------------------


def quantize_model(run: Run, key: str) -> Record:
    """Stage `quantization/<source>+<scheme>`.

    Results: data, metrics, confusion, size, operations, model, scheme, layers (what is quantized and its bytes),
    size_before, agreement (share of predictions equal to the source's), quick_latency (a quick look, one thread).
    """
    return run.run_stage(key, lambda folder: _quantize_model(run, key, folder))


def _quantize_model(run: Run, key: str, folder: Path) -> dict[str, Any]:
    settings, source = run.settings_of(key), run.stage(key).source
    tokenizer, model = load_stage_model(run, source)
    rows = tokenized_task(run, tokenizer, [model])
    quantized = quantization.quantize(model, settings.quantization_scheme)
    quantization.save_quantized(quantized, folder, settings.quantization_scheme, tokenizer)
    # One row at a time, as it is timed: dynamic quantization takes one scale for all rows of a batch.
    results = describe_trained(quantized, folder, rows, 1, None)
    agreement = {}
    for split in rows.dev:
        old, new = (read_predictions(place, split)["prediction"] for place in (run.stage_folder(source), folder))
        agreement[split] = float((old.to_numpy() == new.to_numpy()).mean())
    return {**results, "scheme": settings.quantization_scheme, "layers": quantization.layer_table(model, quantized),
            "size_before": run.read(source).results["size"], "agreement": agreement,
            "quick_latency": _quick_look({"fp32": model, "int8": quantized})}


def _quick_look(models: Mapping[str, nn.Module]) -> list[dict[str, Any]]:
    """Median times on fixed inputs at batch 1 on one thread: a look, marked as such, not a result."""
    rows = []
    for length in OPERATION_LENGTHS:
        inputs = fixed_inputs(1, length, next(iter(models.values())).config.vocab_size)
        timed = measure_latency({name: predictor(model) for name, model in models.items()}, [inputs], 1,
                                PROTOCOLS["quick"])
        rows += [{"model": name, "input": f"1x{length}", **numbers} for name, numbers in timed.summary().items()]
    return rows


# ---- running them ----------------------------------------------------------------------------------------------

_MAKERS: Mapping[str, Callable[[Run, str], Record]] = {
    "distillation": train_student, "tuning": tune_model, "quantization": quantize_model}


def run_notebook_stages(run: Run, notebook: str) -> dict[str, Record]:
    """Key -> record of every stage that the notebook of that name makes, computed where it is not on disk."""
    return {key: run_stage(run, key) for key, stage in run.plan.items() if stage.notebook == notebook}


def run_stage(run: Run, key: str) -> Record:
    """The stage of that key, whatever its kind."""
    stage = run.stage(key)
    if stage.kind == "teacher":
        return fine_tune_teacher(run)
    if stage.kind == "pruning":
        return prune_student(run, key) if stage.keeps_model else scan_heads(run)
    if stage.kind == "measurement":
        return measure_chain(run)
    return _MAKERS[stage.kind](run, key)
