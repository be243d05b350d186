"""The stages of a chain: each takes a `Run`, computes what is not on disk yet and returns its record.

This is where data, models and records meet; how things are computed is in the modules that it calls. The content of
`results` is listed at each stage.
"""

import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from torch import nn
from transformers import PreTrainedTokenizerBase, set_seed

from edgemin_utils.chain import TEACHER, distillation_key, scan_key
from edgemin_utils.checkpoints import load_model, save_model
from edgemin_utils.cost import measure_chain
from edgemin_utils.data import TaskData, load_task_data, task_statistics
from edgemin_utils.distillation import find_objective, relation_matrices
from edgemin_utils.encoders import encoder_layers, model_with_layers, scratch_model
from edgemin_utils.errors import ModelError
from edgemin_utils.evaluation import (
    TokenizedTask,
    describe_trained,
    evaluate,
    load_stage_model,
    tokenized_task,
)
from edgemin_utils.evaluation import read_predictions as read_predictions  # notebooks take it from here
from edgemin_utils.measurement.parameters import framework_parameters
from edgemin_utils.pruning import (
    accuracy_as_heads_go,
    find_criterion,
    parameters_of_units,
    plan_removal,
    removal_order,
    remove_units,
)
from edgemin_utils.quantization import fake_quantization
from edgemin_utils.quantization_stages import measure_sensitivity, quantize_model
from edgemin_utils.records import Record, Run
from edgemin_utils.teacher_signals import signal_source
from edgemin_utils.tokenization import load_tokenizer, train_tokenizer
from edgemin_utils.training import Phase, batches, label_loss, train_phases
from edgemin_utils.tuning import answer_loss, tune_model, under_fake_quantization

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
    phase = Phase("fine-tuning", settings.teacher_epochs, settings.teacher_learning_rate, label_loss)
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

    Results: as the teacher's; with a relation objective also relations (one sentence's matrices).
    """
    return run.run_stage(key, lambda folder: _train_student(run, key, folder))


def _train_student(run: Run, key: str, folder: Path) -> dict[str, Any]:
    settings, stage = run.settings_of(key), run.stage(key)
    name = "none-pretrained" if stage.student == "none-pretrained" else settings.objective if stage.teacher else "none"
    objective = find_objective(name)
    tokenizer, teacher = load_stage_model(run, stage.teacher or TEACHER)
    if stage.source == TEACHER:
        model = make_student(run, teacher, tokenizer, pretrained=name == "none-pretrained")
    else:
        model = load_stage_model(run, stage.source)[1]
    rows = tokenized_task(run, tokenizer, [teacher, model])
    signals, started = objective.signals(settings, teacher), time.perf_counter()
    # Checked before the teacher's pass over the rows: a mismatch should not cost minutes.
    objective.phases(settings, teacher, model, None)
    source = signal_source(teacher, rows.train, tokenizer, signals, settings.evaluation_batch_size,
                           settings.teacher_cache_gigabytes) if signals else None
    signal_seconds = time.perf_counter() - started
    relations = [name for name in signals if name != "logits"]
    looked_at = _look_at_relations(run, rows, {"teacher": teacher, "student before": model}) if relations else {}
    phases = objective.phases(settings, teacher, model, source)
    with fake_quantization(model, stage.fake_quantization):
        log = train_phases(model, rows.train, phases, tokenizer, settings, run.seed, rows.holdout)
    if relations:
        looked_at["models"].update(_look_at_relations(run, rows, {"student after": model})["models"])
    save_model(model, folder, tokenizer)
    results = describe_trained(model, folder, rows, settings.evaluation_batch_size, log)
    results["seconds_by_part"]["teacher signals"] = signal_seconds
    return {**results, **under_fake_quantization(model, stage, rows, settings), "objective": name,
            "source": objective.source, **({"relations": looked_at} if relations else {})}


def make_student(run: Run, teacher: nn.Module, tokenizer: PreTrainedTokenizerBase,
                 pretrained: bool = False) -> nn.Module:
    """The student before training, as `settings.student` names it.

    Args:
        pretrained: take the same layers, but from the checkpoint that the teacher came from instead of from the
            fine-tuned teacher.

    Raises:
        ModelError: the student's vocabulary is not the teacher's (relations are compared token by token), or the
            layers asked for do not exist.
    """
    settings, labels = run.settings, list(teacher.config.id2label.values())
    set_seed(run.seed)
    kind = settings.student
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


def _look_at_relations(run: Run, rows: TokenizedTask, models: Mapping[str, nn.Module]) -> dict[str, Any]:
    """Relation matrices of the main dev split's first row of ordinary length, for the notebook to draw."""
    settings, split = run.settings, next(iter(rows.dev.values()))
    ordinary = next((place for place, length in enumerate(split["length"]) if 8 <= length <= 20), 0)
    sentence = split.select([ordinary])
    _, batch = next(batches(sentence, rows.tokenizer, 1))
    matrices = {}
    for name, model in models.items():
        layer = settings.teacher_layer if name == "teacher" else settings.student_layer
        matrices[name] = relation_matrices(model.eval(), batch, layer, settings.relation_pairs,
                                           settings.relation_heads)
    return {"tokens": rows.tokenizer.convert_ids_to_tokens(sentence[0]["input_ids"]),
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
    layer), parameters_removed, metrics_before, metrics_after_cut (before recovery); behind a quantize-aware step also
    what `tune_model` lists for it.
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
                  answer_loss(settings, teacher, rows))
    with fake_quantization(model, stage.fake_quantization):
        log = train_phases(model, rows.train, [phase], tokenizer, settings, run.seed, rows.holdout)
    save_model(model, folder, tokenizer)
    return {**describe_trained(model, folder, rows, settings.evaluation_batch_size, log),
            **under_fake_quantization(model, stage, rows, settings),
            "criterion": settings.pruning_criterion, "scope": settings.pruning_scope,
            "ratio": settings.head_prune_ratio, "importance": importance, "removed_heads": heads,
            "removed_neurons": [len(numbers) for numbers in neurons], "parameters_removed": by_formula,
            "metrics_before": run.read(stage.source).results["metrics"], "metrics_after_cut": after_cut}


# ---- running them ----------------------------------------------------------------------------------------------

_MAKERS: Mapping[str, Callable[[Run, str], Record]] = {
    "distillation": train_student, "tuning": tune_model}


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
    if stage.kind == "quantization":
        return quantize_model(run, key) if stage.keeps_model else measure_sensitivity(run)
    if stage.kind == "measurement":
        return measure_chain(run)
    return _MAKERS[stage.kind](run, key)
