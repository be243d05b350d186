"""Cuts by name: what a pruning step removes, as settings and as the text that names it on disk and in a recipe.

    gradient-heads-0.2                        20 % of each layer's heads, the least important by gradient
    gradient-l2-heads-0.2-neurons-0.25        and a quarter of the feed-forward neurons
    taylor-neurons-0.25-multiple-16-global    neurons only, ranked over all layers; each layer keeps 16, 32, 48, ...
    random-heads-0.5-draw-2                   at random, the second draw
    layers-top-1, layers-0-2                  the last layer; the layers numbered 0 and 2
    layers-spaced-0.5                         half of the layers, so that those that stay are evenly spaced
    gradient-layers-least-1                   the least important layer
    vocabulary, vocabulary-seen-3             without tokens that the train rows never need; need less than three times
    vocabulary-most-10000                     without all but the 10,000 tokens seen most often there
    vocabulary-all-rows                       without tokens that no train row needs, used for training or not
    magnitude-heads-0.5-rounds-4              cut and recovered in four rounds
    gradient-heads-0.2-without-distillation   recovery on labels alone
    vocabulary-most-12000-without-recovery    not trained again

A name says everything that differs from a plain cut, so that two different cuts of one student never share a folder.
Parts come in this order: criterion, heads, neurons, layers, vocabulary, global, rounds, draw, without-distillation or
without-recovery.
"""

import re
from collections.abc import Mapping
from decimal import Decimal
from typing import Any

from edgemin_utils.config import PRUNED_LAYERS, PRUNING_CRITERIA, Settings, nearest
from edgemin_utils.errors import SettingError

_RATIO, _COUNT = r"\d+(?:\.\d+)?", r"[1-9]\d*"
# Read with a hyphen in front, so that every part begins with one. The criterion is tried last and as short as can be.
_CUT = re.compile(
    rf"(?:-(?P<criterion>[a-z][a-z0-9]*(?:-[a-z0-9]+)*?))??"
    rf"(?:-heads-(?P<heads>{_RATIO})(?:-multiple-(?P<heads_multiple>{_COUNT}))?)?"
    rf"(?:-neurons-(?P<neurons>{_RATIO})(?:-multiple-(?P<neurons_multiple>{_COUNT}))?)?"
    rf"(?:-layers-(?P<layers>(?:{PRUNED_LAYERS.pattern})))?"
    rf"(?P<vocabulary>-vocabulary(?P<all_rows>-all-rows)?(?:-seen-(?P<seen>{_COUNT}))?(?:-most-(?P<most>{_COUNT}))?)?"
    rf"(?P<everywhere>-global)?(?:-rounds-(?P<rounds>{_COUNT}))?"
    rf"(?:-draw-(?P<draw>{_COUNT}))?(?:-without-(?P<without>distillation|recovery))?"
)


def cut_name(settings: Settings) -> str:
    """The name of the cut that the pruning settings describe, e.g. "gradient-heads-0.2-neurons-0.25-global".

    Settings that do not matter to it, such as the criterion of a cut that ranks nothing, are not in it.
    """
    heads, neurons, layers = settings.head_prune_ratio, settings.feed_forward_prune_ratio, settings.pruned_layers
    nothing = not (heads or neurons or layers or settings.prune_vocabulary)
    ranks = bool(heads or neurons or nothing or (layers and layers.startswith("least")))
    parts = [settings.pruning_criterion] if ranks else []
    if heads or nothing:
        parts += ["heads", _decimal(heads), *_unless(1, "multiple", settings.kept_heads_multiple if heads else 1)]
    if neurons:
        parts += ["neurons", _decimal(neurons), *_unless(1, "multiple", settings.kept_neurons_multiple)]
    parts += ["layers", layers] if layers else []
    if settings.prune_vocabulary:
        parts += [
            "vocabulary",
            *(["all-rows"] if settings.vocabulary_all_rows else []),
            *_unless(1, "seen", settings.vocabulary_occurrences),
            *_unless(None, "most", settings.vocabulary_limit),
        ]
    parts += ["global"] if settings.pruning_scope == "global" and (heads or neurons) else []
    parts += _unless(1, "rounds", settings.pruning_rounds)
    parts += _unless(1, "draw", settings.pruning_draw if ranks and settings.pruning_criterion == "random" else 1)
    if not settings.recovery:
        return "-".join([*parts, "without-recovery"])
    parts += [] if settings.recovery_distillation else ["without-distillation"]
    return "-".join(parts)


def read_cut(name: str) -> Mapping[str, Any]:
    """All settings of the cut that a name stands for: the inverse of `cut_name`.

    Raises:
        SettingError: the name is none of a cut, or its criterion is unknown (the nearest known one is given).
    """
    match = _CUT.fullmatch(f"-{name}")
    criterion = match["criterion"] if match else None
    cuts = match and (match["heads"] or match["neurons"] or match["layers"] or match["vocabulary"])
    ranks = match and (match["heads"] or match["neurons"] or (match["layers"] or "").startswith("least"))
    if match is None or not cuts or (ranks and criterion is None):
        raise SettingError(
            f"{name!r} names no cut; write it like gradient-heads-0.2, "
            "gradient-neurons-0.25-global, layers-top-1 or vocabulary, with one of the criteria "
            f"{', '.join(PRUNING_CRITERIA)} first, then in this order heads, neurons, layers, "
            "vocabulary, global, rounds, draw, without-distillation or without-recovery"
        )
    if criterion is not None and criterion not in PRUNING_CRITERIA:
        raise SettingError(
            f"cut {name!r}: unknown pruning criterion {criterion!r}; {nearest(criterion, PRUNING_CRITERIA)}"
        )
    ratios = {"head_prune_ratio": float(match["heads"] or 0), "feed_forward_prune_ratio": float(match["neurons"] or 0)}
    for setting, ratio in ratios.items():
        if ratio >= 1:
            raise SettingError(f"cut {name!r}: {setting} is {ratio:g}; it must be under 1 (1 would leave nothing)")
    return {
        **ratios,
        "pruning_criterion": criterion or PRUNING_CRITERIA[0],
        "pruning_draw": int(match["draw"] or 1),
        "kept_heads_multiple": int(match["heads_multiple"] or 1),
        "kept_neurons_multiple": int(match["neurons_multiple"] or 1),
        "pruned_layers": match["layers"],
        "prune_vocabulary": bool(match["vocabulary"]),
        "vocabulary_all_rows": bool(match["all_rows"]),
        "vocabulary_occurrences": int(match["seen"] or 1),
        "vocabulary_limit": int(match["most"]) if match["most"] else None,
        "pruning_scope": "global" if match["everywhere"] else "layer",
        "pruning_rounds": int(match["rounds"] or 1),
        "recovery_distillation": match["without"] != "distillation",
        "recovery": match["without"] != "recovery",
    }


CUT_SETTINGS = tuple(read_cut("vocabulary"))
"""The settings that a cut's name is about."""


def _unless(default: int | None, name: str, value: int | None) -> list[str]:
    return [] if value == default else [name, str(value)]


def _decimal(ratio: float) -> str:
    """All digits that tell one ratio from another, without an exponent: "0.2", "0"."""
    text = format(Decimal(repr(float(ratio))), "f")
    return text.rstrip("0").rstrip(".") if "." in text else text
