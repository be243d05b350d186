"""Structured pruning: importance -> a plan of what goes -> surgery that really removes it.

`units` says what can go (heads, neurons, layers) and masks it, `importance` ranks it, `plan` chooses, `surgery` cuts,
`cutting` does all of it to one model in rounds; `vocabulary` cuts the tokens that a corpus does not need, `scan` looks
at what masking costs.
"""

from edgemin_utils.pruning.cutting import ModelCut
from edgemin_utils.pruning.importance import (
    find_criterion,
    gradient_importance,
    gradient_l2_importance,
    leave_one_out_importance,
    magnitude_importance,
    normalized_by_layer,
    random_importance,
    taylor_importance,
)
from edgemin_utils.pruning.plan import Progress, layer_removal_order, plan_layers, plan_removal, removal_order
from edgemin_utils.pruning.scan import accuracy_as_units_go
from edgemin_utils.pruning.surgery import parameters_of_layers, parameters_of_units, remove_units, without_layers
from edgemin_utils.pruning.units import UNITS, full_masks, masked_units, unit_count
from edgemin_utils.pruning.vocabulary import cut_tokenizer, keep_vocabulary, parameters_of_vocabulary, tokens_in_use

__all__ = [
    "UNITS",
    "ModelCut",
    "Progress",
    "accuracy_as_units_go",
    "cut_tokenizer",
    "find_criterion",
    "full_masks",
    "gradient_importance",
    "gradient_l2_importance",
    "keep_vocabulary",
    "layer_removal_order",
    "leave_one_out_importance",
    "magnitude_importance",
    "masked_units",
    "normalized_by_layer",
    "parameters_of_layers",
    "parameters_of_units",
    "parameters_of_vocabulary",
    "plan_layers",
    "plan_removal",
    "random_importance",
    "remove_units",
    "removal_order",
    "taylor_importance",
    "tokens_in_use",
    "unit_count",
    "without_layers",
]
