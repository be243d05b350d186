"""What one chain consists of: the stages of one (task, seed), what each needs, and which notebook makes it.

A chain is teacher -> students -> pruned -> quantized, then one measurement of everything that it made. A stage
is named by its key, `<stage>/<variant>`; a variant's name tells its way through the stages, as in
`quantization/minilmv2+gradient-heads-0.2+dynamic-int8`.
"""

from dataclasses import dataclass, field

from edgemin_utils.config import STAGES, Settings, settings_of_stage

NOTEBOOKS = {
    "teacher": "01_teacher",
    "distillation": "02_distillation",
    "pruning": "03_pruning",
    "quantization": "04_quantization",
    "measurement": "05_analysis",
}
CHAIN_NOTEBOOKS = tuple(NOTEBOOKS[stage] for stage in STAGES[:-1])
ANALYSIS_NOTEBOOK = NOTEBOOKS["measurement"]

TEACHER = "teacher/fine-tuned"
LATENCY = "measurement/cost"

# Settings of the distillation stage that a student trained without a teacher's signal does not feel.
_DISTILLATION_SIGNAL = ("objective", "relation_heads", "teacher_layer", "student_layer", "relation_pairs",
                        "relation_weights", "temperature", "soft_target_weight", "distillation_learning_rate")
_SOFT_TARGETS = ("temperature", "soft_target_weight", "recovery_distillation")
_SCAN = ("scan_rows", "random_draws")


@dataclass(frozen=True)
class Stage:
    """One folder of a chain.

    Attributes:
        key: `<stage>/<variant>`.
        upstream: keys of the stages whose models it starts from or learns from.
        student: the student it belongs to ("" for the teacher), e.g. "minilmv2" or "none".
        distilled, pruned, quantized: where the model stands in the study's 2x2x2 factorial.
        keeps_model: whether the folder holds a model (a scan does not).
        ignores: settings of the stage's kind that do not touch this variant.
    """

    key: str
    upstream: tuple[str, ...] = ()
    student: str = ""
    distilled: bool = False
    pruned: bool = False
    quantized: bool = False
    keeps_model: bool = True
    ignores: tuple[str, ...] = field(default=())

    @property
    def stage(self) -> str:
        return self.key.split("/", 1)[0]

    @property
    def variant(self) -> str:
        return self.key.split("/", 1)[1]

    @property
    def notebook(self) -> str:
        return NOTEBOOKS[self.stage]

    def settings(self, settings: Settings) -> dict:
        """Name -> value of the settings that change what this stage computes."""
        return {name: value for name, value in settings_of_stage(settings, self.stage).items()
                if name not in self.ignores}


def distillation_key(student: str) -> str:
    return f"distillation/{student}"


def scan_key(student: str) -> str:
    return f"pruning/{student}+head-scan"


def pruning_key(settings: Settings, student: str) -> str:
    cut = f"{settings.pruning_criterion}-heads-{settings.head_prune_ratio:g}"
    if settings.feed_forward_prune_ratio:
        cut += f"-neurons-{settings.feed_forward_prune_ratio:g}"
    return f"pruning/{student}+{cut}"


def quantization_key(settings: Settings, source: str) -> str:
    """Key of the quantized form of the stage named by key `source`."""
    return f"quantization/{source.split('/', 1)[1]}+{settings.quantization_scheme}"


def students(settings: Settings) -> tuple[str, ...]:
    """The students of a chain, the main one first, then those trained without distillation."""
    return tuple(dict.fromkeys((settings.objective, *settings.baselines)))


def plan_chain(settings: Settings) -> dict[str, Stage]:
    """Key -> stage of everything that a chain makes under `settings`, in an order in which it can be made."""
    plan = [Stage(TEACHER)]
    for student in students(settings):
        distilled = student not in ("none", "none-pretrained")
        plan.append(Stage(distillation_key(student), (TEACHER,), student, distilled,
                          ignores=() if distilled else _DISTILLATION_SIGNAL))
    main = settings.objective
    plan.append(Stage(scan_key(main), (distillation_key(main),), main, main != "none", keeps_model=False,
                      ignores=("recovery_epochs", "recovery_learning_rate", *_SOFT_TARGETS)))
    compressed = [main]
    if settings.factorial:
        compressed += [student for student in settings.baselines if student == "none" and student != main]
    for student in compressed:
        distilled = student not in ("none", "none-pretrained")
        learns = distilled and settings.recovery_distillation
        dense, pruned = distillation_key(student), pruning_key(settings, student)
        plan.append(Stage(pruned, (dense, TEACHER) if learns else (dense,), student, distilled, True,
                          ignores=_SCAN if learns else (*_SCAN, *_SOFT_TARGETS[:2])))
        for source, is_pruned in ((pruned, True), (dense, False)):
            if is_pruned or settings.factorial:
                plan.append(Stage(quantization_key(settings, source), (source,), student, distilled, is_pruned, True))
    plan.append(Stage(LATENCY, tuple(stage.key for stage in plan if stage.keeps_model), keeps_model=False))
    return {stage.key: stage for stage in plan}


def main_path(settings: Settings) -> tuple[str, ...]:
    """Keys of the paper's pipeline in order: teacher, distilled student, pruned, quantized."""
    pruned = pruning_key(settings, settings.objective)
    return (TEACHER, distillation_key(settings.objective), pruned, quantization_key(settings, pruned))
