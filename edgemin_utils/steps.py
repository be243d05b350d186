"""The steps of a chain as functions, for crossing orders and `edgemin train`: each does what its chapter shows."""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import pandas as pd
import torch
from datasets import Dataset
from torch import nn
from transformers import PreTrainedModel, set_seed
from transformers import PreTrainedTokenizerBase as Tokenizer

from edgemin_utils import checkpoints
from edgemin_utils.distillation.mobilebert import bottleneck_student
from edgemin_utils.distillation.objective import Objective, find_objective, recovery_loss
from edgemin_utils.distillation.relations import relation_matrices
from edgemin_utils.distillation.teacher import Teacher
from edgemin_utils.encoders import model_with_layers, scratch_model
from edgemin_utils.environment import is_main_process
from edgemin_utils.errors import DataError, MethodRefused, ModelError
from edgemin_utils.measurement.costs import measure_costs
from edgemin_utils.measurement.evaluate import PREDICTIONS_FILE, answer, evaluate
from edgemin_utils.names import TEACHER, main_path
from edgemin_utils.pruning.cofi import cofi_rounds
from edgemin_utils.pruning.cut import Cut, rounds, scan_units
from edgemin_utils.pruning.importance import importance_by
from edgemin_utils.pruning.rosita import rosita_rounds
from edgemin_utils.pruning.vocabulary import cut_tokenizer, tokens_in_use
from edgemin_utils.quantization.fake import fake_quantization, layer_sensitivity
from edgemin_utils.quantization.schemes import find_scheme, load_model, quantize, save_quantized
from edgemin_utils.rows.splits import TaskData, load_task_data, task_statistics
from edgemin_utils.rows.tokens import Rows, check_vocabulary, load_tokenizer, tokenize_rows, train_tokenizer
from edgemin_utils.settings import Settings
from edgemin_utils.study import Chain, Costs, Record, Stage, read_record, say_once
from edgemin_utils.training import Phase, TrainingLog, batches, label_loss, model_inputs, train

_READ: dict[tuple[Any, ...], TaskData] = {}


def read_rows(stage: Stage) -> TaskData:
    """The rows of a stage's chain as text, read once; with transfer texts where a student learns from another model."""
    chain, settings = stage.chain, stage.settings
    transfer = bool(stage.teacher) and stage.kind == "distillation"
    key = chain.rows_fingerprint, chain.task, chain.seed, transfer and (settings.transfer_rows, settings.transfer_file)
    if key not in _READ:
        _READ[key] = load_task_data(settings, chain.task, chain.seed, transfer)
    return _READ[key]


def load_rows(stage: Stage, tokenizer: Tokenizer, *models: nn.Module) -> Rows:
    """The rows of a stage's chain, tokenized and cut to what these models and the one that it learns from can take."""
    teachers = [load_stage_model(stage, stage.teacher)[1]] if stage.teacher else []
    configs, data = [model.config for model in (*models, *teachers)], read_rows(stage)
    rows = tokenize_rows(data, tokenizer, stage.settings.max_length, configs=configs)
    for note in [note for note in rows.notes if note not in data.notes]:  # which are said where rows are read
        say_once(f"{stage.chain.task}: {note}")
    return rows


def load_stage_model(stage: Stage, name: str = "") -> tuple[Tokenizer, PreTrainedModel]:
    """Tokenizer and model that a finished stage of the chain left: the one that `stage` starts from, or `name`."""
    folder = stage.chain.read(name or stage.source).folder
    return load_tokenizer(str(folder)), load_model(folder, stage.settings.attention_implementation)


def held_out(rows: Rows) -> Dataset:
    """The rows on which things are looked at: the hold-out rows, or the train rows where none are kept aside."""
    return rows.holdout if len(rows.holdout) else rows.train


def load_teacher(stage: Stage, rows: Rows) -> Teacher | None:
    """The model that a stage learns from, as its student sees it; None where it learns from labels alone."""
    if not stage.teacher:
        return None
    tokenizer, model = load_stage_model(stage, stage.teacher)
    same = tokenizer.get_vocab() == rows.tokenizer.get_vocab()
    return Teacher(model, rows.tokenizer if same else tokenizer, rows, stage.settings)


def make_teacher_model(stage: Stage) -> tuple[Tokenizer, PreTrainedModel]:
    """Tokenizer and untrained (or pretrained) teacher that the settings name; new weights from the seed."""
    settings, data, name = stage.settings, read_rows(stage), stage.settings.teacher
    set_seed(stage.chain.seed)
    if name != "scratch":
        return load_tokenizer(name), _load_checkpoint(settings, name, data.task.labels)
    tokenizer = train_tokenizer(data.texts, settings.vocabulary_size)
    return tokenizer, _scratch(settings, "teacher", tokenizer, data.task.labels)


def train_stage(stage: Stage, model: PreTrainedModel, rows: Rows, *phases: Phase, **more: Any) -> TrainingLog:
    """Trains a stage's model, behind a `qat` step under fake quantization; `more` is `train`'s log and after_phase."""
    precision = "float32" if stage.read_name.fake_format else None
    with fake_quantization(model, stage.read_name.fake_format):
        return train(model, rows, phases, stage.settings, stage.chain.seed, precision=precision, **more)


def make_teacher(stage: Stage) -> None:
    """Chapter 1: fine-tunes the teacher."""
    tokenizer, model = make_teacher_model(stage)
    rows, settings = load_rows(stage, tokenizer, model), stage.settings
    epochs, rate = settings.teacher_epochs, settings.teacher_learning_rate
    phase = Phase("fine-tuning", epochs, rate, label_loss, batch_size=settings.teacher_batch_size)
    statistics = {"statistics": task_statistics(rows.data), "token_lengths": list(rows.train["length"])[:5000]}
    save_trained(stage, model, rows, train_stage(stage, model, rows, phase), **statistics)


def save_trained(stage: Stage, model: PreTrainedModel, rows: Rows, log: TrainingLog, **more: Any) -> None:
    """Saves a trained model into its stage, and records what the dev rows say, as it is and under fake quantization."""
    if not is_main_process():
        return
    checkpoints.save_model(model, stage.folder, rows.tokenizer)
    size = stage.settings.evaluation_batch_size
    if stage.read_name.fake_format:
        with fake_quantization(model, stage.read_name.fake_format):
            more["metrics_fake_quantized"], _ = answer(model, rows, size)
    stage.record(evaluate(model, rows, size, stage.folder), training=vars(log), **more)


def make_student_model(stage: Stage) -> tuple[Tokenizer, PreTrainedModel]:
    """The student before training, as the setting `student` names it, with new weights from the seed; or the model that
    a later distillation step starts from. Raises ModelError where its vocabulary is not the teacher's."""
    tokenizer, start = load_stage_model(stage)
    settings, labels = stage.settings, list(start.config.id2label.values())
    name = "pretrained-layers" if stage.step.method == "none-pretrained" else settings.student
    set_seed(stage.chain.seed)
    if len(stage.read_name.steps) > 1:
        return tokenizer, start
    if stage.step.method == "mobilebert":
        return tokenizer, bottleneck_student(start, settings.dropout)
    if name == "scratch":
        return tokenizer, _scratch(settings, "student", tokenizer, labels)
    if name == "pretrained-layers":
        if settings.teacher == "scratch":
            raise ModelError("a scratch teacher has no pretrained layers; leave none-pretrained out of `models`")
        start = _load_checkpoint(settings, settings.teacher, labels)
    if name in ("pretrained-layers", "teacher-layers"):
        return tokenizer, model_with_layers(start, settings.student_from_layers)
    check_vocabulary(load_tokenizer(name), tokenizer, name)
    return tokenizer, _load_checkpoint(settings, name, labels)


def make_student(stage: Stage) -> None:
    """Chapter 2: trains a student on labels, or by its objective."""
    tokenizer, student = make_student_model(stage)
    rows = load_rows(stage, tokenizer, student)
    teacher = load_teacher(stage, rows)
    objective = find_objective(stage.step.method, stage.settings, stage.chain.seed)
    phases = objective.phases(cast(Teacher, teacher), student)  # what has no teacher does not look at it
    look = RelationLook(objective, teacher, student, rows)
    log = train_stage(stage, student, rows, *phases, after_phase=look)
    save_trained(stage, student, rows, log, relations=look.found)


class RelationLook:
    """Looks at the relations of one dev row: the teacher's, the student's before training and, as `train`'s
    after_phase, after each phase. `found`: tokens, heads, models -> pair -> (tokens, tokens); {} without relations."""

    def __init__(self, objective: Objective, teacher: Teacher | None, student: nn.Module, rows: Rows):
        self.found, self.of_student = dict[str, Any](), (student, rows, "student_layer")
        self.view = objective.relations(teacher, student) if teacher else None
        if self.view is not None and teacher is not None:
            theirs, ours = (next(iter(of.dev.values())) for of in (teacher.rows, rows))
            lengths = zip(theirs["length"], ours["length"], strict=True)
            self.place = next((at for at, (one, other) in enumerate(lengths) if 8 <= one == other <= 20), 0)
            tokens = rows.tokenizer.convert_ids_to_tokens(ours[self.place]["input_ids"])
            self.found = {"tokens": tokens, "heads": self.view.heads, "models": {}}
            self._look("teacher", teacher.model, teacher.rows, "teacher_layer")
            self._look("before training", *self.of_student)

    def __call__(self, phase: Phase) -> None:
        self._look(f"after {phase.name}", *self.of_student)

    def _look(self, name: str, model: nn.Module, rows: Rows, layer: str) -> None:
        if self.view is not None:
            row = next(iter(rows.dev.values())).select([self.place])
            _, batch = next(batches(row, rows.tokenizer, 1, next(model.parameters()).device))
            found = relation_matrices(model, batch, getattr(self.view, layer), self.view.pairs, self.view.heads)
            self.found["models"][name] = {pair: matrix.cpu().numpy().round(4) for pair, matrix in found.items()}


def _load_checkpoint(settings: Settings, name: str, labels: Sequence[str]) -> PreTrainedModel:
    return checkpoints.load_model(name, labels, settings.attention_implementation, settings.dropout)


def _scratch(settings: Settings, role: str, tokenizer: Tokenizer, labels: Sequence[str]) -> PreTrainedModel:
    sizes = [getattr(settings, f"{role}_{name}") for name in "layers hidden_size heads intermediate_size".split()]
    length, padding = max(settings.max_length, 128), tokenizer.pad_token_id  # latency is taken at 128 tokens too
    more: Any = len(tokenizer), labels, length, padding, settings.dropout, settings.initializer_range
    return scratch_model(settings.teacher_family, *sizes, *more)


def make_cut(stage: Stage) -> None:
    """Chapter 3: cuts units, layers or tokens out of a model, in rounds, and trains what is left."""
    tokenizer, model = load_stage_model(stage)
    rows = load_rows(stage, tokenizer, model)
    teacher, log, looked_at = load_teacher(stage, rows), TrainingLog(), list[Any]()
    tokenizer, kept = cut_words(stage, rows)
    for cut in rounds_of(stage, model, rows, teacher, kept):
        rows = load_rows(stage, tokenizer, cut.model)
        after_cut, _ = answer(cut.model, rows, stage.settings.evaluation_batch_size)
        looked_at.append({"metrics_after_cut": after_cut, "parameters_removed": cut.parameters_removed})
        train_stage(stage, cut.model, rows, recovery_phase(stage, cut, teacher), log=log)
    save_trained(stage, cut.model, rows, log, cut=cut.describe(), rounds=looked_at)


def rounds_of(
    stage: Stage, model: PreTrainedModel, rows: Rows, teacher: Teacher | None, kept: Sequence[int] = ()
) -> Iterator[Cut]:
    """The rounds of a stage's cut, by its method; importance is asked of hold-out rows."""
    settings, method, value, seed = stage.settings, stage.step.method, stage.step.value, stage.chain.seed
    by = importance_by(settings, held_out(rows), rows.tokenizer, seed)
    if method == "cofi":
        return cofi_rounds(model, value, settings, teacher, rows, seed)
    if method == "rosita":
        return rosita_rounds(model, value, settings, by, teacher, rows, seed)
    return rounds(model, method, value, settings, by, kept)


def recovery_phase(stage: Stage, cut: Cut, teacher: Teacher | None) -> Phase:
    """One round's share of `recovery_epochs`: the cut's own phase, or training on labels and a teacher's answers."""
    settings = stage.settings
    phase = cut.phase or Phase("recovery", 0, 0, recovery_loss(teacher, settings))
    name = phase.name if cut.rounds == 1 else f"{phase.name} {cut.round}"
    epochs, rate = settings.recovery_epochs / cut.rounds, settings.recovery_learning_rate
    return replace(phase, name=name, epochs=epochs, learning_rate=rate, transfer=False)


def cut_words(stage: Stage, rows: Rows) -> tuple[Tokenizer, list[int]]:
    """The tokenizer behind a cut, and the tokens that stay, of a file, of the train rows or of all; the rows' own and
    [] where it cuts no vocabulary. Raises DataError for no text, MethodRefused where training parts shared rows."""
    settings, texts = stage.settings, rows.data.texts
    if stage.step.method != "vocabulary":
        return rows.tokenizer, []
    if settings.vocabulary_nearest and settings.recovery_epochs:
        raise MethodRefused("training would move shared rows apart; with vocabulary_nearest give recovery_epochs=0")
    if settings.vocabulary_text:
        try:
            texts = Path(settings.vocabulary_text).expanduser().read_text(encoding="utf-8").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise DataError(f"vocabulary_text {settings.vocabulary_text} is no UTF-8 text file ({error})") from error
    elif settings.vocabulary_all_rows:
        texts = [*texts, *rows.data.unused]
    most = int(stage.step.value) if stage.step.value else None
    kept = tokens_in_use(rows.tokenizer, texts, most)
    return rows.tokenizer if settings.vocabulary_nearest else cut_tokenizer(rows.tokenizer, kept), kept


def make_tuned(stage: Stage) -> None:
    """Chapter 4: trains a model once more, under fake quantization from a `qat` step on."""
    tokenizer, model = load_stage_model(stage)
    rows, settings = load_rows(stage, tokenizer, model), stage.settings
    loss = recovery_loss(load_teacher(stage, rows), settings)
    phase = Phase("tuning", settings.tuning_epochs, settings.tuning_learning_rate, loss)
    save_trained(stage, model, rows, train_stage(stage, model, rows, phase))


def make_scan(stage: Stage) -> None:
    """Chapters 3 and 4: looks at a model unit by unit, or matrix by matrix, on hold-out rows; leaves no model."""
    tokenizer, model = load_stage_model(stage)
    settings, rows = stage.settings, held_out(load_rows(stage, tokenizer, model))
    if stage.step.method == "sensitivity":
        chosen = rows.select(range(min(settings.scan_rows, len(rows))))
        stage.record(layer_sensitivity(model, chosen, tokenizer, settings.evaluation_batch_size))
    else:
        stage.record(scan_units(model, stage.step.value, rows, tokenizer, settings, stage.chain.seed))


def make_quantized(stage: Stage) -> None:
    """Chapter 4: stores a model in few bits; what is looked at is what lies on disk."""
    tokenizer, model = load_stage_model(stage)
    rows, scheme = load_rows(stage, tokenizer, model), stage.step.method
    calibration = calibration_inputs(stage, model, rows) if find_scheme(scheme).calibrated else []
    quantized = quantize(model, scheme, calibration, max(rows.limit, *stage.settings.latency_lengths))
    save_quantized(quantized, stage.folder, scheme, tokenizer)
    results = evaluate(load_model(stage.folder), rows, folder=stage.folder)
    about = {"name": scheme, "calibration_rows": len(calibration)}
    stage.record(results, scheme=about, agreement=same_answers(stage))


def same_answers(stage: Stage) -> dict[str, float]:
    """Split -> share of its dev rows to which a stage's model and the one that it starts from give the same answer."""
    folders = stage.chain.folder / stage.source, stage.folder
    before, after = (pd.read_parquet(folder / PREDICTIONS_FILE) for folder in folders)
    return (before["prediction"] == after["prediction"]).groupby(before["split"]).mean().to_dict()


def calibration_inputs(stage: Stage, model: nn.Module, rows: Rows) -> list[dict[str, torch.Tensor]]:
    """Inputs of the first `calibration_rows` train rows, one by one, each (1, tokens)."""
    chosen = rows.train.select(range(min(stage.settings.calibration_rows, len(rows.train))))
    return [model_inputs(model, batch) for _, batch in batches(chosen, rows.tokenizer, 1)]


def make(stages: Iterator[Stage]) -> Iterator[Record]:
    """Makes stages one after the other, and gives the record of each that was not there."""
    makers = {"teacher": make_teacher, "distillation": make_student, "pruning": make_cut, "scan": make_scan}
    makers |= {"tuning": make_tuned, "quantization": make_quantized}
    for stage in stages:
        with stage:
            makers[stage.kind](stage)
        yield stage.chain.read(stage.name)


def make_kinds(chain: Chain, *kinds: str) -> Iterator[Record]:
    """Makes what is not on disk of these kinds, in this order."""
    return make(stage for kind in kinds for stage in chain.todo(kind))


def make_missing(chain: Chain, *kinds: str) -> None:
    """What a chapter needs of the chapters before it: made first, and said, where it is not on disk."""
    for record in make_kinds(chain, *kinds):
        print(f"made first: {record.model}, {record.outcome}")


def make_crossing(chain: Chain) -> None:
    """Makes the orders of steps that no one chapter can make."""
    for record in make(chain.make_in_turn([stage for stage in chain.plan.values() if stage.crossing])):
        print(f"{record.model}, {record.outcome}")


def measure_chain(chain: Chain) -> Record | None:
    """Chapter 5: times every model of a chain on disk, in fresh processes; None without a model or a protocol."""
    models = {name: record.folder for name, record in Costs(chain).models.items()}
    if chain.settings.latency_protocol == "none" or not models:
        return None
    for stage in chain.make_in_turn([Costs(chain)]):
        data = read_rows(chain.plan[TEACHER.text])
        dev = next(iter(data.dev.values()))
        texts = list(zip(*(dev[column] for column in data.task.text_columns), strict=True))
        with stage:
            few = [TEACHER.text, main_path(chain.settings)[-1]]  # of memory, since each takes a process
            of = [name for name in (few if chain.settings.latency_protocol == "quick" else models) if name in models]
            stage.record(measure_costs(models, texts, chain.settings, stage.folder, memory_of=of))
    return read_record(Costs(chain).folder)
