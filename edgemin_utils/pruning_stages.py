"""The stages of pruning: scans that mask heads, neurons or layers, and cuts for real with recovery.

What is cut and how is in the package `pruning`; here it meets a chain's rows, models and records.
"""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from torch import nn
from transformers import PreTrainedTokenizerBase

from edgemin_utils.chain import SCANNED_UNITS, scan_key
from edgemin_utils.checkpoints import save_model
from edgemin_utils.config import Settings
from edgemin_utils.data import unused_texts
from edgemin_utils.encoders import describe_model, encoder_layers
from edgemin_utils.errors import DataError
from edgemin_utils.evaluation import TokenizedTask, describe_trained, evaluate, load_stage_model, tokenized_task
from edgemin_utils.pruning import (
    ModelCut,
    accuracy_as_units_go,
    cut_tokenizer,
    find_criterion,
    layer_removal_order,
    removal_order,
    tokens_in_use,
    unit_count,
)
from edgemin_utils.pruning.importance import Importance
from edgemin_utils.quantization import fake_quantization
from edgemin_utils.records import Record, Run
from edgemin_utils.recovery import answer_loss, load_teacher
from edgemin_utils.tokenization import rows_in_other_tokens
from edgemin_utils.training import Phase, TrainingLog, label_loss, train_phases
from edgemin_utils.tuning import under_fake_quantization

# Points of a scan's curve at most; a student has too many neurons to look at each.
SCAN_POINTS = {"heads": 40, "neurons": 20, "layers": 40}


def importance_of(
    run: Run, settings: Settings, model: nn.Module, rows: TokenizedTask, criterion: str, units: str, draw: int = 1
) -> Importance:
    """Importance of a model's units by a criterion, on the first `importance_rows` train rows; `draw` matters to
    random draws alone, which differ from seed to seed and from draw to draw."""
    chosen = rows.train.select(range(min(settings.importance_rows, len(rows.train))))
    return find_criterion(criterion)(
        model, chosen, rows.tokenizer, label_loss, settings.evaluation_batch_size, units, 1000 * run.seed + draw
    )


# ---- scans -----------------------------------------------------------------------------------------------------


def scan_units(run: Run, key: str) -> Record:
    """Stage `pruning/<student>+head-scan`, `+neuron-scan` or `+layer-scan`: accuracy as units are masked one by one.

    Results: units, importance (criterion -> layers x units; of neurons, which are many, none is kept), curves (order
    -> [{removed, accuracy}]; an order is a criterion, "random-<draw>", or "top" for layers; layers are always tried
    by "leave-one-out" too, neurons never), rows, split, total
    (units that there are), importance_rows.
    """
    return run.run_stage(key, lambda folder: _scan_units(run, key))


def _scan_units(run: Run, key: str) -> dict[str, Any]:
    settings, source = run.settings_of(key), run.stage(key).source
    units = next(units for units in SCANNED_UNITS if key == scan_key(run.stage(key).student, units))
    tokenizer, model = load_stage_model(run, source)
    rows = tokenized_task(run, tokenizer, [model])
    held_out, split = (rows.holdout, "hold-out") if len(rows.holdout) else (rows.train, "train")
    held_out = held_out.select(range(min(settings.scan_rows, len(held_out))))
    ranked = layer_removal_order if units == "layers" else removal_order
    # Dropping a layer is no small change, which is all that a gradient tells of; there are few enough to try each.
    criteria = dict.fromkeys([*settings.scan_criteria, *(["leave-one-out"] if units == "layers" else [])])
    if units == "neurons":
        criteria.pop("leave-one-out", None)
    importance = {name: importance_of(run, settings, model, rows, name, units) for name in criteria}
    orders = {name: ranked(values) for name, values in importance.items()}
    if units == "layers":
        orders["top"] = [(number, 0) for number in range(len(encoder_layers(model)) - 1, 0, -1)]
    for draw in range(1, settings.random_draws + 1):
        orders[f"random-{draw}"] = ranked(importance_of(run, settings, model, rows, "random", units, draw))
    curves = {
        name: accuracy_as_units_go(
            model, held_out, tokenizer, order, settings.evaluation_batch_size, units, SCAN_POINTS[units]
        )
        for name, order in orders.items()
    }
    return {
        "units": units,
        "importance": {} if units == "neurons" else importance,
        "curves": curves,
        "rows": len(held_out),
        "split": split,
        "total": sum(unit_count(layer, units) for layer in encoder_layers(model)),
        "importance_rows": min(settings.importance_rows, len(rows.train)),
    }


# ---- cuts ------------------------------------------------------------------------------------------------------


def prune_student(run: Run, key: str) -> Record:
    """Stage `pruning/<source>+<cut>`: tokens, layers, heads and neurons of a student, or of the teacher itself, cut out
    for real, with recovery fine-tuning.

    Results: as a student's, and cut (its settings), criterion ("" where nothing is ranked), scope, ratio (of heads),
    importance (of heads, in the first round; none where no head is cut), layer_importance, removed_heads (numbers a
    layer of the source; none for a layer that went as a whole), removed_neurons (how many a layer), removed_layers
    (numbers), parameters_removed (by formula, which the count equals), vocabulary (tokens before and after, split ->
    dev rows that are cut into other tokens than before; None where it was not cut), metrics_before,
    metrics_after_cut (right after the last cut), rounds (of each round: parameters_removed so far, model,
    metrics_after_cut, metrics_after_recovery).
    """
    return run.run_stage(key, lambda folder: _prune_student(run, key, folder))


def _prune_student(run: Run, key: str, folder: Path) -> dict[str, Any]:
    settings, stage = run.settings_of(key), run.stage(key)
    tokenizer, model = load_stage_model(run, stage.source)
    teacher, cut = load_teacher(run, key), ModelCut(model)
    models = [model] if teacher is None else [model, teacher[1]]
    rows, vocabulary = tokenized_task(run, tokenizer, models), None
    if settings.prune_vocabulary:
        whole, tokenizer = rows, _cut_vocabulary(settings, cut, rows, run.seed)
        rows = tokenized_task(run, tokenizer, models, whole.data)
        vocabulary = _describe_vocabulary(whole, rows)
    loss = answer_loss(run, settings, teacher, models, rows.data)
    log, rounds, importance = TrainingLog(), [], dict[str, Any]()
    for number in range(1, settings.pruning_rounds + 1):
        looked_at = cut.cut_round(settings, _importance_by(run, settings, rows), number)
        importance = importance or looked_at
        after_cut, _ = evaluate(cut.model, rows, settings.evaluation_batch_size, None)
        name = "recovery" if settings.pruning_rounds == 1 else f"recovery {number}"
        epochs = settings.recovery_epochs / settings.pruning_rounds if settings.recovery else 0
        phase = Phase(name, epochs, settings.recovery_learning_rate, loss)
        with fake_quantization(cut.model, stage.fake_quantization):
            train_phases(cut.model, rows.train, [phase], tokenizer, settings, run.seed, rows.holdout, log)
        rounds.append(
            {
                "parameters_removed": cut.parameters_removed,
                "model": describe_model(cut.model),
                "metrics_after_cut": after_cut,
            }
        )
        if number < settings.pruning_rounds:
            rounds[-1]["metrics_after_recovery"], _ = evaluate(cut.model, rows, settings.evaluation_batch_size, None)
    save_model(cut.model, folder, tokenizer)
    results = describe_trained(cut.model, folder, rows, settings.evaluation_batch_size, log)
    rounds[-1]["metrics_after_recovery"] = results["metrics"]
    return {
        **results,
        **under_fake_quantization(cut.model, stage, rows, settings),
        **_describe_cut(stage.changes, settings),
        **cut.describe(),
        "vocabulary": vocabulary,
        "importance": importance.get("heads", []),
        "layer_importance": importance.get("layers", []),
        "metrics_before": run.read(stage.source).results["metrics"],
        "metrics_after_cut": rounds[-1]["metrics_after_cut"],
        "rounds": rounds,
    }


def _importance_by(run: Run, settings: Settings, rows: TokenizedTask) -> Callable[[nn.Module, str], Importance]:
    return lambda model, units: importance_of(
        run, settings, model, rows, settings.pruning_criterion, units, settings.pruning_draw
    )


def _cut_vocabulary(settings: Settings, cut: ModelCut, rows: TokenizedTask, seed: int) -> PreTrainedTokenizerBase:
    """The tokenizer without the tokens that are not needed; the cut's model loses their rows."""
    kept = tokens_in_use(
        rows.tokenizer,
        _vocabulary_texts(settings, rows, seed),
        settings.vocabulary_occurrences,
        settings.vocabulary_limit,
    )
    smaller = cut_tokenizer(rows.tokenizer, kept)
    cut.cut_vocabulary(kept)
    return smaller


def _vocabulary_texts(settings: Settings, rows: TokenizedTask, seed: int) -> list[str]:
    """The texts whose tokens are kept: a file's lines, or the train rows', with those not in use if asked for."""
    if settings.vocabulary_text is None:
        texts = [text for column in rows.data.task.text_columns for text in rows.data.train[column]]
        return texts + (unused_texts(settings, rows.data.task.name, seed) if settings.vocabulary_all_rows else [])
    path = Path(settings.vocabulary_text).expanduser()
    try:
        return path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(
            f"vocabulary_text {path} cannot be read as UTF-8 text ({error}); give a text file, or none for "
            "the train rows"
        ) from error


def _describe_vocabulary(whole: TokenizedTask, rows: TokenizedTask) -> dict[str, Any]:
    return {
        "tokens_before": len(whole.tokenizer),
        "tokens_after": len(rows.tokenizer),
        "rows_in_other_tokens": {
            split: rows_in_other_tokens(whole.dev[split], whole.tokenizer, rows.dev[split], rows.tokenizer)
            for split in rows.dev
        },
    }


def _describe_cut(changes: Mapping[str, Any], settings: Settings) -> dict[str, Any]:
    ranks = (
        settings.head_prune_ratio
        or settings.feed_forward_prune_ratio
        or (settings.pruned_layers or "").startswith("least")
    )
    return {
        "cut": dict(changes),
        "criterion": settings.pruning_criterion if ranks else "",
        "scope": settings.pruning_scope,
        "ratio": settings.head_prune_ratio,
    }
