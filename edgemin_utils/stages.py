"""The stages of a chain: each takes a `Run`, computes what is not on disk yet and returns its record.

This is where data, models and records meet; how things are computed is in the modules that it calls. The content of
`results` is listed at each stage.
"""

import dataclasses
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from torch import nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase, set_seed

from edgemin_utils.chain import TEACHER
from edgemin_utils.checkpoints import load_model, save_model
from edgemin_utils.config import Settings
from edgemin_utils.cost import measure_chain
from edgemin_utils.data import TaskData, load_task_data, task_statistics
from edgemin_utils.distillation import find_objective
from edgemin_utils.distillation.objective import Lesson, RelationView
from edgemin_utils.distillation.relations import relation_matrices
from edgemin_utils.encoders import model_with_layers, scratch_model
from edgemin_utils.errors import MethodRefused, ModelError
from edgemin_utils.evaluation import TokenizedTask, describe_trained, load_stage_model, tokenized_task
from edgemin_utils.evaluation import read_predictions as read_predictions  # notebooks take it from here
from edgemin_utils.objectives import OBJECTIVES
from edgemin_utils.processes import is_main_process
from edgemin_utils.pruning_stages import prune_student, scan_units
from edgemin_utils.quantization import fake_quantization
from edgemin_utils.quantization_stages import measure_sensitivity, quantize_model
from edgemin_utils.records import Record, Run
from edgemin_utils.teacher_signals import signal_source
from edgemin_utils.tokenization import load_tokenizer, rows_in_other_tokens, train_tokenizer
from edgemin_utils.training import Phase, batches, label_loss, train_phases
from edgemin_utils.tuning import tune_model, under_fake_quantization

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
    phase = Phase(
        "fine-tuning",
        settings.teacher_epochs,
        settings.teacher_learning_rate,
        label_loss,
        batch_size=settings.teacher_batch_size,
    )
    log = train_phases(model, rows.train, [phase], tokenizer, settings, run.seed, rows.holdout)
    if not is_main_process():
        return {}  # its part is done; the main process evaluates and writes
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
        settings.teacher_family,
        settings.teacher_layers,
        settings.teacher_hidden_size,
        settings.teacher_heads,
        settings.teacher_intermediate_size,
        len(tokenizer),
        labels,
        max(settings.max_length, FEWEST_POSITIONS),
        tokenizer.pad_token_id,
        settings.dropout,
    )
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
    teacher_tokenizer, teacher = load_stage_model(run, stage.teacher or TEACHER)
    if stage.source == TEACHER:
        start = teacher if stage.teacher in ("", TEACHER) else load_stage_model(run, TEACHER)[1]
        tokenizer, model = (
            teacher_tokenizer,
            make_student(settings, run.seed, start, teacher_tokenizer, pretrained=name == "none-pretrained"),
        )
    else:
        tokenizer, model = load_stage_model(run, stage.source)
    # Checked before the rows and the teacher's pass over them: a mismatch should not cost minutes.
    lesson = Lesson(settings, teacher, model, seed=run.seed)
    objective.phases(lesson)
    # The same rows for both, each through its own tokenizer: a vocabulary may have been cut before.
    rows = tokenized_task(
        run, tokenizer, [teacher, model], load_task_data(settings, run.task, run.seed, transfer=bool(stage.teacher))
    )
    teacher_rows = (
        rows if tokenizer is teacher_tokenizer else tokenized_task(run, teacher_tokenizer, [teacher, model], rows.data)
    )
    signals, started = objective.signals(lesson), time.perf_counter()
    if any(signal != "logits" and not signal.startswith("cls.") for signal in signals):
        _refuse_other_tokens(name, teacher_rows, rows)
    source = (
        signal_source(
            teacher,
            teacher_rows.learnt_from,
            teacher_tokenizer,
            signals,
            settings.evaluation_batch_size,
            settings.teacher_cache_gigabytes,
        )
        if signals
        else None
    )
    signal_seconds = time.perf_counter() - started
    view, place = objective.relations(lesson), _ordinary_row(teacher_rows, rows)
    looked_at = _look_at_relations(teacher_rows, place, view, {"teacher": teacher}) if view else {}
    if view:
        looked_at["models"] |= _look_at_relations(rows, place, view, {"student before": model})["models"]
    phases = objective.phases(dataclasses.replace(lesson, signals=source) if source else lesson)
    with fake_quantization(model, stage.fake_quantization):
        log = train_phases(model, rows.learnt_from, phases, tokenizer, settings, run.seed, rows.holdout)
    if not is_main_process():
        return {}
    if view:
        looked_at["models"] |= _look_at_relations(rows, place, view, {"student after": model})["models"]
    save_model(model, folder, tokenizer)
    results = describe_trained(model, folder, rows, settings.evaluation_batch_size, log)
    results["seconds_by_part"]["teacher signals"] = signal_seconds
    return {
        **results,
        **under_fake_quantization(model, stage, rows, settings),
        "objective": name,
        "source": entry.source,
        "demands": entry.demands,
        "learnt_from": stage.teacher,
        "transfer_rows": len(rows.transfer),
        **({"relations": looked_at, "teacher_layer": view.teacher_layer} if view else {}),
    }


def make_student(
    settings: Settings,
    seed: int,
    teacher: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    pretrained: bool = False,
) -> PreTrainedModel:
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
            raise ModelError(
                "a scratch teacher has no pretrained layers; use student = teacher-layers or scratch, "
                "and leave the baseline none-pretrained out"
            )
        source = load_model(settings.teacher, labels, settings.attention_implementation, settings.dropout)
        return model_with_layers(source, settings.student_from_layers)
    if kind == "teacher-layers":
        return model_with_layers(teacher, settings.student_from_layers)
    if kind == "scratch":
        return scratch_model(
            settings.teacher_family,
            settings.student_layers,
            settings.student_hidden_size,
            settings.student_heads,
            settings.student_intermediate_size,
            teacher.config.vocab_size,
            labels,
            max(settings.max_length, FEWEST_POSITIONS),
            tokenizer.pad_token_id,
            settings.dropout,
        )
    if load_tokenizer(kind).get_vocab() != tokenizer.get_vocab():
        raise ModelError(
            f"student {kind!r} has another vocabulary than the teacher; relations are compared token by "
            "token, so choose a student with the teacher's tokenizer, or student = scratch"
        )
    return load_model(kind, labels, settings.attention_implementation, settings.dropout)


def _refuse_other_tokens(objective: str, teacher: TokenizedTask, student: TokenizedTask) -> None:
    """An objective that matches token by token needs rows that both tokenizers cut into the same tokens."""
    other = rows_in_other_tokens(teacher.learnt_from, teacher.tokenizer, student.learnt_from, student.tokenizer)
    if other:
        raise MethodRefused(
            f"objective {objective!r} compares teacher and student token by token, but since the vocabulary was cut "
            f"{other:,} of {len(student.learnt_from):,} train rows have other tokens than before; use an objective on "
            "logits, or keep the train rows' tokens (vocabulary_text = none)"
        )


def _ordinary_row(teacher: TokenizedTask, student: TokenizedTask) -> int:
    """Place of the main dev split's first row of ordinary length that has as many tokens for both."""
    lengths = (next(iter(rows.dev.values()))["length"] for rows in (teacher, student))
    return next(
        (place for place, (one, other) in enumerate(zip(*lengths, strict=True)) if 8 <= one <= 20 and one == other), 0
    )


def _look_at_relations(
    rows: TokenizedTask, place: int, view: RelationView, models: Mapping[str, nn.Module]
) -> dict[str, Any]:
    """Relation matrices of one row of the main dev split, for the notebook to draw."""
    sentence = next(iter(rows.dev.values())).select([place])
    _, batch = next(batches(sentence, rows.tokenizer, 1))
    matrices = {}
    for name, model in models.items():
        layer = view.teacher_layer if name == "teacher" else view.student_layer
        matrices[name] = relation_matrices(model.cpu().eval(), batch, layer, view.pairs, view.heads)
    return {
        "tokens": rows.tokenizer.convert_ids_to_tokens(sentence[0]["input_ids"]),
        "heads": view.heads,
        "models": {
            name: {pair: np.round(matrix.numpy(), 5) for pair, matrix in pairs.items()}
            for name, pairs in matrices.items()
        },
    }


# ---- running them ----------------------------------------------------------------------------------------------

# By a stage's kind and whether it leaves a model. Teacher, sensitivity and cost are one stage a chain.
_MAKERS: Mapping[tuple[str, bool], Callable[[Run, str], Record]] = {
    ("teacher", True): lambda run, key: fine_tune_teacher(run),
    ("distillation", True): train_student,
    ("tuning", True): tune_model,
    ("pruning", True): prune_student,
    ("pruning", False): scan_units,
    ("quantization", True): quantize_model,
    ("quantization", False): lambda run, key: measure_sensitivity(run),
    ("measurement", False): lambda run, key: measure_chain(run),
}


def run_notebook_stages(run: Run, notebook: str) -> dict[str, Record]:
    """Key -> record of every stage that the notebook of that name makes, computed where it is not on disk."""
    return {key: run_stage(run, key) for key, stage in run.plan.items() if stage.notebook == notebook}


def train_teacher_and_students(run: Run) -> Iterator[Record]:
    """The records of the teacher and of every student that needs nothing but models of these two kinds, one after the
    other, computed where they are not on disk. This is the part of a chain that several processes can share; cuts,
    quantization and measurement are for one."""
    trained: set[str] = set()
    for key, stage in run.plan.items():
        if stage.kind in ("teacher", "distillation") and trained.issuperset(stage.upstream):
            yield run_stage(run, key)
            trained.add(key)


def run_stage(run: Run, key: str) -> Record:
    """The stage of that key, whatever its kind."""
    stage = run.stage(key)
    return _MAKERS[stage.kind, stage.keeps_model](run, key)
