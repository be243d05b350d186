"""Distillation objectives: what a student matches of its teacher, and in which phases. One file an idea.

`find_objective` gives an objective by the name that `edgemin_utils.objectives` lists it under.
"""

import importlib

from edgemin_utils.config import nearest
from edgemin_utils.distillation.objective import Objective
from edgemin_utils.errors import SettingError
from edgemin_utils.objectives import OBJECTIVES

__all__ = ["Objective", "find_objective"]


def find_objective(name: str) -> Objective:
    """The objective of that name.

    Raises:
        SettingError: unknown name, with the nearest known one.
    """
    if name not in OBJECTIVES:
        raise SettingError(f"unknown distillation objective {name!r}; {nearest(name, OBJECTIVES)}")
    module, _, implementation = OBJECTIVES[name].implementation.partition(":")
    return getattr(importlib.import_module(f"edgemin_utils.distillation.{module}"), implementation)()
