"""What one chain consists of: the stages of one (task, seed), what each needs, and which notebook makes it.

A chain is a tree of models. It starts with the teacher and its students; a *step* turns one model into the next:
`distill`, `prune`, `quantize`, `quantize-aware` (training with fake quantization) or `fine-tune`. A *recipe* is an
order of steps, such as the paper's `distill, prune, quantize`; one that begins with the word `teacher` compresses the
fine-tuned teacher itself. A stage is named by its key, `<kind>/<variant>`; the variant tells its way, as in
`quantization/minilmv2+gradient-heads-0.2+dynamic-int8`. Recipes that begin alike share the stages of their common
beginning.
"""

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from edgemin_utils.config import EVERY_FORMAT, EVERY_SCHEME, Settings, nearest, settings_of_stage
from edgemin_utils.cuts import CUT_SETTINGS, cut_name, read_cut
from edgemin_utils.errors import SettingError
from edgemin_utils.objectives import EVERY_OBJECTIVE, OBJECTIVES, UNDISTILLED, StudentName, read_student

NOTEBOOKS = {
    "teacher": "01_teacher",
    "distillation": "02_distillation",
    "pruning": "03_pruning",
    "tuning": "04_quantization",
    "quantization": "04_quantization",
    "measurement": "05_analysis",
}
CHAIN_NOTEBOOKS = ("01_teacher", "02_distillation", "03_pruning", "04_quantization")
ANALYSIS_NOTEBOOK = NOTEBOOKS["measurement"]

TEACHER = "teacher/fine-tuned"
COST = "measurement/cost"
# The word that a recipe without a student begins with; it stands where other models name the student they come from.
COMPRESSED_TEACHER = "teacher"

RECIPES: Mapping[str, tuple[str, ...]] = {
    "paper": ("distill", "prune", "quantize"),
    "proposal": ("distill", "quantize-aware", "prune", "fine-tune", "quantize"),
    # What makes the paper's claims of size and speed true (see `paper.honest`). The second distillation is the recovery
    # of a deep cut; the vocabulary goes after it, because relations compare token by token.
    "honest": (
        "distill",
        "prune:layers-spaced-0.5",
        "prune:gradient-neurons-0.5-multiple-32",
        "distill",
        "prune:vocabulary-most-11000",
        "quantize:onnx-dynamic-int8-embeddings",
    ),
    # For a small bundle that is to keep the teacher's accuracy: nothing but words goes, and nothing is trained again.
    "edge": (
        COMPRESSED_TEACHER,
        "prune:vocabulary-all-rows-most-12000-without-recovery",
        "quantize:onnx-int4-gptq-embeddings",
    ),
}
# Step -> the kind of stage that it makes.
STEPS = {
    "distill": "distillation",
    "prune": "pruning",
    "quantize-aware": "tuning",
    "fine-tune": "tuning",
    "quantize": "quantization",
}

_SOFT_TARGETS = ("temperature", "soft_target_weight", "recovery_distillation")
_SCAN = ("scan_criteria", "scan_rows", "random_draws")
_AFTER_A_SCAN = ("recovery_epochs", "recovery_learning_rate", "vocabulary_text", *_SOFT_TARGETS, *CUT_SETTINGS)
SCANNED_UNITS = ("heads", "neurons", "layers")
# In the names of schemes that look at training rows: `Scheme.calibrated`, without importing torch.
_CALIBRATED = ("onnx-static-", "-gptq")


@dataclass(frozen=True)
class Stage:
    """One folder of a chain.

    Attributes:
        key: `<kind>/<variant>`.
        source: key of the stage whose model it starts from; students start from the teacher or beside it.
        teacher: key of the stage whose model it learns from; "" if it learns from labels alone.
        needs: keys of further stages that must be there.
        student: the student it belongs to, e.g. "minilmv2" or "none"; "" for the teacher, "teacher" for what a recipe
            makes of the teacher itself.
        steps: the steps that lead from the untrained student to this model, spelled out, as in
            ("distill:minilmv2", "prune:gradient-heads-0.2"), or from the teacher, as in ("teacher", "prune:...").
        changes: settings that this stage uses in place of the chain's.
        keeps_model: whether the folder holds a model (a scan does not).
        optional: whether a method that does not fit is a result (of a comparison) rather than an error.
        ignores: settings of the stage's kind that do not touch this variant.
        notebook: name of the notebook that makes it.
    """

    key: str
    source: str = ""
    teacher: str = ""
    needs: tuple[str, ...] = ()
    student: str = ""
    steps: tuple[str, ...] = ()
    changes: Mapping[str, Any] = field(default_factory=dict)
    keeps_model: bool = True
    optional: bool = False
    ignores: tuple[str, ...] = ()
    notebook: str = ""

    @property
    def kind(self) -> str:
        """What is done in it, the first part of its key: teacher, distillation, pruning, tuning, quantization or
        measurement."""
        return self.key.split("/", 1)[0]

    @property
    def variant(self) -> str:
        """Which of its kind it is, the second part of its key."""
        return self.key.split("/", 1)[1]

    @property
    def upstream(self) -> tuple[str, ...]:
        """Keys of every stage that must be there before this one, the one it starts from first."""
        return tuple(dict.fromkeys(key for key in (self.source, self.teacher, *self.needs) if key))

    @property
    def distilled(self) -> bool:
        """Whether a step on the way to its model was distillation."""
        return self._took("distill")

    @property
    def pruned(self) -> bool:
        """Whether a step on the way to its model was a cut."""
        return self._took("prune")

    @property
    def quantized(self) -> bool:
        """Whether a step on the way to its model was quantization."""
        return self._took("quantize")

    @property
    def taught(self) -> bool:
        """Whether its model answers as the teacher does, so that training on learns from the teacher's soft targets: a
        distilled student's does, and what was cut from the teacher itself."""
        return self.distilled or self.student == COMPRESSED_TEACHER

    @property
    def fake_quantization(self) -> str:
        """Number format that training respects from the last quantize-aware step on, e.g. "int8"; "" for none."""
        formats = [step.split(":", 1)[1] for step in self.steps if step.startswith("quantize-aware:")]
        return formats[-1] if formats else ""

    def settings(self, settings: Settings) -> dict:
        """Name -> value of the settings that change what this stage computes."""
        return {
            name: value
            for name, value in settings_of_stage(self.apply(settings), self.kind).items()
            if name not in self.ignores
        }

    def apply(self, settings: Settings) -> Settings:
        """The chain's settings with this stage's changes."""
        return dataclasses.replace(settings, **self.changes) if self.changes else settings

    def _took(self, name: str) -> bool:
        return any(step.split(":", 1)[0] == name for step in self.steps)


# ---- keys ------------------------------------------------------------------------------------------------------


def distillation_key(student: str) -> str:
    """Key of the stage that trains a student, by the student's name."""
    return f"distillation/{student}"


def scan_key(student: str, units: str = "heads") -> str:
    """Key of the scan in which a student's heads, neurons or layers are masked one after another."""
    return f"pruning/{student}+{units.removesuffix('s')}-scan"


def pruning_key(settings: Settings, student: str) -> str:
    """Key of a student's pruned form, with the cut that the settings name."""
    return f"pruning/{student}+{cut_name(settings)}"


def quantization_key(settings: Settings, source: str) -> str:
    """Key of the quantized form of the stage named by key `source`."""
    return f"quantization/{source.split('/', 1)[1]}+{settings.quantization_scheme}"


def students(settings: Settings) -> tuple[str, ...]:
    """The students of a chain, the main one first, then those that it is compared with."""
    compared = [
        name for item in settings.compared_objectives for name in (EVERY_OBJECTIVE if item == "all" else (item,))
    ]
    return tuple(dict.fromkeys((settings.objective, *compared)))


def sensitivity_key(settings: Settings) -> str:
    """Key of the stage that quantizes the layers of the main pruned student one at a time."""
    return f"quantization/{pruning_key(settings, settings.objective).split('/', 1)[1]}+layer-sensitivity"


def schemes(settings: Settings) -> tuple[str, ...]:
    """The schemes that are set beside the main one."""
    return tuple(
        dict.fromkeys(
            name for item in settings.compared_schemes for name in (EVERY_SCHEME if item == "all" else (item,))
        )
    )


def main_path(settings: Settings) -> tuple[str, ...]:
    """Keys of the paper's pipeline in order: teacher, distilled student, pruned, quantized."""
    pruned = pruning_key(settings, settings.objective)
    return (TEACHER, distillation_key(settings.objective), pruned, quantization_key(settings, pruned))


# ---- the plan --------------------------------------------------------------------------------------------------


def plan_chain(settings: Settings) -> dict[str, Stage]:
    """Key -> stage of everything that a chain makes under `settings`, in an order in which it can be made.

    Raises:
        SettingError: a recipe, cut or scheme among the settings is unknown.
    """
    plan = _Plan(settings)
    plan.add(Stage(TEACHER))
    main = plan.student(settings.objective)
    for name in students(settings):
        plan.student(name, optional=name not in UNDISTILLED)  # what every comparison stands on is no option
    for units in SCANNED_UNITS:
        plan.add(
            Stage(
                scan_key(main.student, units),
                source=main.key,
                student=main.student,
                steps=main.steps,
                keeps_model=False,
                ignores=_AFTER_A_SCAN,
            )
        )
    pruned = plan.step(main, "prune")
    plan.step(pruned, "quantize")
    if settings.factorial:
        plan.step(main, "quantize")
        if "none" in students(settings) and settings.objective != "none":
            plain = plan.student("none")
            plan.step(plan.step(plain, "prune"), "quantize")
            plan.step(plain, "quantize")
    for cut in settings.compared_cuts:
        plan.step(main, f"prune:{cut}", optional=True)
    plan.add(
        Stage(
            sensitivity_key(settings),
            source=pruned.key,
            student=pruned.student,
            steps=pruned.steps,
            keeps_model=False,
            ignores=("quantization_scheme", "calibration_rows"),
        )
    )
    for scheme in schemes(settings):
        plan.step(pruned, f"quantize:{scheme}", optional=True)
    for steps in recipes(settings).values():
        plan.recipe(steps)
    if settings.latency_protocol != "none":
        models = tuple(stage.key for stage in plan.stages.values() if stage.keeps_model)
        plan.add(Stage(COST, needs=models, keeps_model=False))
    return plan.stages


def recipes(settings: Settings) -> dict[str, tuple[str, ...]]:
    """Name -> steps of the recipes that `settings.recipe` asks for.

    An entry is a recipe's name or an order of steps joined by "+"; entries that are all single steps are one order.

    Raises:
        SettingError: neither a known recipe nor an order of known steps, or `teacher` does not stand before them.
    """
    entries = list(settings.recipe)
    if entries and all(_is_step(entry) and "+" not in entry for entry in entries):
        entries = ["+".join(entries)]
    return {entry: RECIPES[entry] if entry in RECIPES else _read_order(entry) for entry in entries}


def recipe_ends(settings: Settings) -> dict[str, str]:
    """Name -> key of the last model of the paper's pipeline and of every recipe that `settings.recipe` asks for."""
    plan = _Plan(settings)
    plan.add(Stage(TEACHER))
    return {
        "paper": main_path(settings)[-1],
        **{name: plan.recipe(steps).key for name, steps in recipes(settings).items()},
    }


def _is_step(text: str) -> bool:
    return text == COMPRESSED_TEACHER or text.split(":", 1)[0] in STEPS


def _read_order(text: str) -> tuple[str, ...]:
    steps = tuple(text.split("+"))
    unknown = [step for step in steps if not _is_step(step)]
    if unknown:
        known = nearest(unknown[0].split(":", 1)[0], (*RECIPES, COMPRESSED_TEACHER, *STEPS))
        raise SettingError(f"unknown recipe or step {unknown[0]!r}; {known}")
    if COMPRESSED_TEACHER in steps[1:] or steps == (COMPRESSED_TEACHER,):
        raise SettingError(
            f"recipe {text!r}: `teacher` is no step, it says that the steps behind it compress the "
            "fine-tuned teacher; write it first and steps after it, as in "
            "teacher+quantize:onnx-dynamic-int8"
        )
    return steps


class _Plan:
    """The stages planned so far; every method adds what is missing and returns the stage asked for."""

    def __init__(self, settings: Settings):
        self.settings = settings
        self.stages: dict[str, Stage] = {}

    def add(self, stage: Stage) -> Stage:
        """Adds a stage, made by the notebook of its kind, or by that of a stage it needs if that comes later."""
        names = [NOTEBOOKS[stage.kind], *(self.stages[key].notebook for key in stage.upstream)]
        return self.stages.setdefault(stage.key, dataclasses.replace(stage, notebook=max(names)))

    def student(self, name: str, optional: bool = False) -> Stage:
        student = _read_student(name)
        changes, teacher = self._lesson(student, optional)
        return self.add(
            Stage(
                distillation_key(name),
                source=TEACHER,
                teacher=teacher,
                student=name,
                changes=changes,
                optional=optional,
                steps=(f"distill:{name}",) if student.distilled else (),
                ignores=student.ignores,
            )
        )

    def _lesson(self, student: StudentName, optional: bool) -> tuple[dict[str, Any], str]:
        """The settings that a student uses in place of the chain's, and the stage that teaches it."""
        changes = dict(student.changes)
        if student.is_assistant:
            settings = self.settings
            changes |= {
                "student": settings.assistant or settings.student,
                "student_layers": settings.assistant_layers,
                "student_from_layers": settings.assistant_from_layers,
            }
        if not student.distilled:
            return changes, ""
        return changes, self.student(student.assistant, optional).key if student.assistant else TEACHER

    def recipe(self, steps: Sequence[str]) -> Stage:
        """The last stage of a recipe. One that begins neither with distillation nor with the teacher begins with the
        plain student."""
        first, rest = steps[0], steps[1:]
        if first == COMPRESSED_TEACHER:
            stage = dataclasses.replace(self.stages[TEACHER], student=COMPRESSED_TEACHER, steps=(COMPRESSED_TEACHER,))
        elif first.split(":", 1)[0] == "distill":
            stage = self.student(_what(first) or self.settings.objective, optional=True)
        else:
            stage, rest = self.student("none"), steps
        return functools.reduce(functools.partial(self.step, optional=True), rest, stage)

    def step(self, source: Stage, text: str, optional: bool = False) -> Stage:
        """The stage that a step, such as "prune" or "quantize:dynamic-int8", makes of `source`.

        Raises:
            SettingError: the step is unknown, or its model is quantized already.
        """
        name, what = text.split(":", 1)[0], _what(text)
        if name not in STEPS:
            raise SettingError(f"unknown step {name!r}; {nearest(name, STEPS)}")
        if source.quantized:
            raise SettingError(
                f"step {text!r} cannot follow quantization: weights that are stored as integers are "
                "neither trained nor cut; put `quantize` last"
            )
        what, changes, stage = getattr(self, f"_{name.replace('-', '_')}")(source, what)
        way = source.student if source.key == TEACHER else source.variant
        return self.add(
            dataclasses.replace(
                stage,
                key=f"{STEPS[name]}/{way}+{_suffix(name, what)}",
                source=source.key,
                student=source.student,
                changes=changes,
                optional=optional,
                steps=(*source.steps, f"{name}:{what}"),
            )
        )

    # Each returns what the step does, spelled out; the settings that it changes; and what else its stage has.

    def _distill(self, source: Stage, what: str) -> tuple[str, Mapping[str, Any], Stage]:
        if source.key == TEACHER:
            raise SettingError(
                "step 'distill' cannot follow `teacher`: nothing has been cut that could learn from it; "
                "put `prune` between them, or leave `teacher` out to distil a student"
            )
        name = what or self.settings.objective
        student = _read_student(name)
        changes, teacher = self._lesson(student, optional=True)
        return name, changes, Stage("", teacher=teacher, ignores=student.ignores)

    def _prune(self, source: Stage, what: str) -> tuple[str, Mapping[str, Any], Stage]:
        name = cut_name(dataclasses.replace(self.settings, **read_cut(what)) if what else self.settings)
        changes = read_cut(name)  # the settings of a cut that do not matter to this one have their defaults in it
        learns = source.taught and changes["recovery"] and changes["recovery_distillation"]
        ignores = (
            *_SCAN,
            *(() if learns else _SOFT_TARGETS[:2]),
            *(() if changes["prune_vocabulary"] else ("vocabulary_text",)),
            *(("recovery",) if changes["recovery"] else ("recovery_epochs", "recovery_learning_rate")),
            *(() if changes["vocabulary_limit"] else ("vocabulary_limit",)),
            *(() if changes["vocabulary_all_rows"] else ("vocabulary_all_rows",)),
        )
        return name, changes, Stage("", teacher=TEACHER if learns else "", ignores=ignores)

    def _quantize(self, source: Stage, what: str) -> tuple[str, Mapping[str, Any], Stage]:
        scheme = what or self.settings.quantization_scheme
        if scheme not in EVERY_SCHEME:
            raise SettingError(f"unknown quantization scheme {scheme!r}; {nearest(scheme, EVERY_SCHEME)}")
        calibrated = any(part in scheme for part in _CALIBRATED)
        ignores = ("sensitivity_rows",) if calibrated else ("sensitivity_rows", "calibration_rows")
        return scheme, {"quantization_scheme": scheme}, Stage("", ignores=ignores)

    def _quantize_aware(self, source: Stage, what: str) -> tuple[str, Mapping[str, Any], Stage]:
        number_format = what or self.settings.quantize_aware_format
        if number_format not in EVERY_FORMAT:
            raise SettingError(f"unknown number format {number_format!r}; {nearest(number_format, EVERY_FORMAT)}")
        _, changes, stage = self._fine_tune(source, "")
        return number_format, {**changes, "quantize_aware_format": number_format}, stage

    def _fine_tune(self, source: Stage, what: str) -> tuple[str, Mapping[str, Any], Stage]:
        if what:
            raise SettingError(f"fine-tune:{what}: this step is told nothing; write fine-tune alone")
        learns = source.taught and self.settings.recovery_distillation
        ignores = () if learns else _SOFT_TARGETS[:2]
        return "soft-targets" if learns else "labels", {}, Stage("", teacher=TEACHER if learns else "", ignores=ignores)


def _read_student(name: str) -> StudentName:
    student = read_student(name)
    if student is None:
        raise SettingError(f"unknown distillation objective {name!r}; {nearest(name, OBJECTIVES)}")
    return student


def _what(text: str) -> str:
    """What stands behind the colon of a step; "" for none."""
    return text.partition(":")[2]


def _suffix(name: str, what: str) -> str:
    """What a step adds to a variant's name."""
    return {"quantize-aware": f"{what}-aware", "fine-tune": "fine-tuned"}.get(name, what)
