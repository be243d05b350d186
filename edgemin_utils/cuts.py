"""Cuts by name: what a pruning step removes, as settings and as the text that names it on disk and in a recipe.

`gradient-heads-0.2` removes 20 % of the attention heads by their gradient importance. A name says everything that
differs from the defaults of a cut, so that two different cuts of one student never share a folder.
"""

import re
from collections.abc import Mapping
from typing import Any

from edgemin_utils.config import Settings
from edgemin_utils.errors import SettingError

_CUT = re.compile(r"(?P<criterion>[a-z0-9]+?)-heads-(?P<heads>[0-9.]+)(-neurons-(?P<neurons>[0-9.]+))?"
                  r"(?P<all>-global)?")


def cut_name(settings: Settings) -> str:
    """The name of the cut that the pruning settings describe, e.g. "gradient-heads-0.2-neurons-0.25-global"."""
    name = f"{settings.pruning_criterion}-heads-{settings.head_prune_ratio:g}"
    if settings.feed_forward_prune_ratio:
        name += f"-neurons-{settings.feed_forward_prune_ratio:g}"
    return name + ("-global" if settings.pruning_scope == "global" else "")


def read_cut(name: str) -> Mapping[str, Any]:
    """The pruning settings that a cut's name stands for: the inverse of `cut_name`.

    Raises:
        SettingError: the name is none of a cut.
    """
    match = _CUT.fullmatch(name)
    if match is None:
        raise SettingError(f"{name!r} names no cut; write it like gradient-heads-0.2 or "
                           "gradient-heads-0.2-neurons-0.25")
    return {"pruning_criterion": match["criterion"], "head_prune_ratio": float(match["heads"]),
            "feed_forward_prune_ratio": float(match["neurons"] or 0),
            "pruning_scope": "global" if match["all"] else "layer"}
