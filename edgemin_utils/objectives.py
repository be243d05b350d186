"""The distillation objectives by name: where each is implemented, what it demands, and which settings it feels.

A student is named by its objective, and by what else sets it apart: `minilmv2-layer-3` learns from teacher layer 3,
`logits-transfer-5000` also sees 5,000 texts without labels, and `minilmv2-by-assistant` learns from
`minilmv2-assistant`, a model of a size in between that learnt from the teacher. This module is names only, so that
plans and settings can be checked without loading torch.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

# Settings of the distillation stage that no student feels unless its objective names them.
ANSWERS = ("temperature", "soft_target_weight", "transfer_file", "transfer_rows")
RELATIONS = ("relation_heads", "relation_pairs", "relation_weights", "teacher_layer", "student_layer")
FIRST_PHASE = ("distillation_learning_rate",)
WEIGHT = ("intermediate_weight",)
SIGNAL_SETTINGS = ("objective", *ANSWERS, *RELATIONS, *FIRST_PHASE, *WEIGHT)


@dataclass(frozen=True)
class ObjectiveEntry:
    """One objective of the comparison.

    Attributes:
        implementation: "module:Class" in `edgemin_utils.distillation`.
        source: the paper.
        demands: what it demands of the architectures, in a few words for the comparison table.
        settings: settings it feels out of `SIGNAL_SETTINGS`; the others do not make its student anew.
    """

    implementation: str
    source: str
    demands: str
    settings: tuple[str, ...] = ()


OBJECTIVES: Mapping[str, ObjectiveEntry] = {
    "none": ObjectiveEntry("labels:NoDistillation", "cross-entropy with the labels", "nothing"),
    "none-pretrained": ObjectiveEntry(
        "labels:NoDistillation", "cross-entropy with the labels", "a pretrained checkpoint"
    ),
    "logits": ObjectiveEntry("soft_targets:SoftTargets", "Hinton et al. 2015", "the same labels", ANSWERS),
    "distilbert": ObjectiveEntry(
        "distilbert:LastHiddenStates",
        "DistilBERT, Sanh et al. 2019",
        "one vocabulary; a learned projection where hidden sizes differ",
        (*ANSWERS, *WEIGHT),
    ),
    "pkd": ObjectiveEntry(
        "pkd:PatientSkip",
        "PKD-Skip, Sun et al. 2019",
        "two student layers or more; a learned projection where hidden sizes differ",
        (*ANSWERS, *WEIGHT),
    ),
    "pkd-last": ObjectiveEntry(
        "pkd:PatientLast",
        "PKD-Last, Sun et al. 2019",
        "two student layers or more, at most the teacher's; a learned projection where hidden sizes differ",
        (*ANSWERS, *WEIGHT),
    ),
    "tinybert": ObjectiveEntry(
        "tinybert:AllLayers",
        "TinyBERT, Jiao et al. 2020",
        "one vocabulary; equal head counts; learned projections where hidden sizes differ",
        (*ANSWERS, *FIRST_PHASE),
    ),
    "minilm": ObjectiveEntry(
        "relations:AttentionAndValues",
        "MiniLM, Wang et al. 2020",
        "one vocabulary; equal head counts in the last layer",
        (*ANSWERS, *FIRST_PHASE),
    ),
    "minilmv2": ObjectiveEntry(
        "relations:Relations",
        "MiniLMv2, Wang et al. 2021",
        "one vocabulary; relation heads that divide both hidden sizes",
        (*ANSWERS, *FIRST_PHASE, *RELATIONS),
    ),
    "mlkd": ObjectiveEntry(
        "mlkd:MultiLevel",
        "MLKD-BERT, Zhang et al. 2024",
        "one vocabulary; any head counts; learned projections where hidden sizes differ",
        (*ANSWERS, *FIRST_PHASE),
    ),
    "shd": ObjectiveEntry(
        "shd:SqueezedHeads",
        "Squeezing-Heads Distillation, Bing et al. 2025",
        "one vocabulary; any head counts",
        (*ANSWERS, *WEIGHT),
    ),
}
UNDISTILLED = ("none", "none-pretrained")
# What `compared_objectives = all` stands for: every objective that any teacher can be compared under.
EVERY_OBJECTIVE = tuple(name for name in OBJECTIVES if name != "none-pretrained")

_STUDENT = re.compile(
    rf"(?P<objective>{'|'.join(OBJECTIVES)})(-layer-(?P<layer>\d+))?(-transfer-(?P<rows>\d+))?"
    r"(?P<role>-assistant|-by-assistant)?"
)


@dataclass(frozen=True)
class StudentName:
    """What a student's name says.

    Attributes:
        objective: what it learns by.
        changes: settings that it uses in place of the chain's, the objective among them.
        is_assistant: whether it is itself a teacher assistant, of the assistant's size.
        assistant: name of the student that teaches it; "" where the teacher does.
    """

    objective: str
    changes: Mapping[str, Any]
    is_assistant: bool = False
    assistant: str = ""

    @property
    def distilled(self) -> bool:
        """Whether it learns from a teacher at all."""
        return self.objective not in UNDISTILLED

    @property
    def ignores(self) -> tuple[str, ...]:
        """Settings of the distillation stage that do not touch this student."""
        felt = {"objective", *OBJECTIVES[self.objective].settings} if self.distilled else set()
        return tuple(name for name in SIGNAL_SETTINGS if name not in felt)


def read_student(name: str) -> StudentName | None:
    """What a student's name says; None for a name that is none, or that gives an objective what it does not feel."""
    match = _STUDENT.fullmatch(name)
    if match is None:
        return None
    objective, felt = match["objective"], OBJECTIVES[match["objective"]].settings
    changes = {"objective": objective} if objective not in UNDISTILLED else {}
    for setting, value in (("teacher_layer", match["layer"]), ("transfer_rows", match["rows"])):
        if value is not None:
            if setting not in felt:
                return None
            changes[setting] = int(value)
    if match["role"] and objective in UNDISTILLED:
        return None
    return StudentName(
        objective,
        changes,
        match["role"] == "-assistant",
        f"{objective}-assistant" if match["role"] == "-by-assistant" else "",
    )
