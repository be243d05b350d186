"""One model under the knife: rounds of cuts, and what is gone in the numbering of the model that it started as."""

from collections.abc import Callable, Sequence
from typing import Any

from transformers import PreTrainedModel

from edgemin_utils.config import Settings
from edgemin_utils.encoders import encoder_layers
from edgemin_utils.errors import ModelError
from edgemin_utils.measurement.parameters import framework_parameters
from edgemin_utils.pruning.importance import Importance
from edgemin_utils.pruning.plan import Progress, plan_layers, plan_removal
from edgemin_utils.pruning.surgery import parameters_of_layers, parameters_of_units, remove_units, without_layers
from edgemin_utils.pruning.units import unit_count
from edgemin_utils.pruning.vocabulary import keep_vocabulary, parameters_of_vocabulary


class ModelCut:
    """A model that is cut step by step.

    Every step compares the parameters that are gone with the closed formula of what it cut.

    Attributes:
        model: the model as it is now.
        layers: source numbers of the layers that are left.
        units: "heads" and "neurons" -> for every layer of the source, the source numbers of its units that are left.
        parameters_removed: parameters gone so far, by formula.
    """

    def __init__(self, model: PreTrainedModel):
        self.model = model
        self.layers = list(range(len(encoder_layers(model))))
        self.units = {
            units: [list(range(unit_count(layer, units))) for layer in encoder_layers(model)]
            for units in ("heads", "neurons")
        }
        self.parameters_removed = 0
        self._counts = {units: tuple(map(len, kept)) for units, kept in self.units.items()}

    def cut_vocabulary(self, kept: Sequence[int]) -> None:
        """Leaves only the token ids in `kept`, numbered anew in their order."""
        count, by_formula = framework_parameters(self.model), parameters_of_vocabulary(self.model, kept)
        keep_vocabulary(self.model, kept)
        self._note(count, by_formula, "vocabulary")

    def cut_round(
        self, settings: Settings, importance: Callable[[PreTrainedModel, str], Importance], round: int = 1
    ) -> dict[str, Importance]:
        """One of `settings.pruning_rounds` rounds: whole layers first, then heads and neurons of what is left.

        Args:
            settings: the cut, as its name says it.
            importance: (model, units) -> importance by the cut's criterion; asked only for what is to be cut.
            round: counted from 1.

        Returns:
            Units -> the importance that decided this round.

        Raises:
            MethodRefused: the model does not have the layers that are to go.
        """
        looked_at = {}
        if settings.pruned_layers:
            progress = Progress((1,) * len(self._counts["heads"]), round, settings.pruning_rounds)
            if settings.pruned_layers.startswith("least"):
                looked_at["layers"] = importance(self.model, "layers")
            self._drop_layers(plan_layers(settings.pruned_layers, self.layers, looked_at.get("layers"), progress))
        planned = {}
        for units, ratio, multiple in (
            ("heads", settings.head_prune_ratio, settings.kept_heads_multiple),
            ("neurons", settings.feed_forward_prune_ratio, settings.kept_neurons_multiple),
        ):
            if ratio:
                looked_at[units] = importance(self.model, units)
                counts = tuple(self._counts[units][number] for number in self.layers)
                planned[units] = plan_removal(
                    looked_at[units],
                    ratio,
                    settings.pruning_scope,
                    multiple,
                    Progress(counts, round, settings.pruning_rounds),
                )
        for units, numbers in planned.items():
            self._remove(units, numbers)
        return looked_at

    def removed(self, units: str) -> list[list[int]]:
        """Source numbers of the units cut out of every layer of the source; none for a layer that went as a whole."""
        return [
            sorted(set(range(count)) - set(kept)) if number in self.layers else []
            for number, (count, kept) in enumerate(zip(self._counts[units], self.units[units], strict=True))
        ]

    def removed_layers(self) -> list[int]:
        """Source numbers of the layers that went as a whole."""
        return [number for number in range(len(self._counts["heads"])) if number not in self.layers]

    def describe(self) -> dict[str, Any]:
        """The entries of a record: removed_heads (numbers a layer), removed_neurons (how many a layer), removed_layers
        (numbers), parameters_removed."""
        return {
            "removed_heads": self.removed("heads"),
            "removed_neurons": list(map(len, self.removed("neurons"))),
            "removed_layers": self.removed_layers(),
            "parameters_removed": self.parameters_removed,
        }

    def _drop_layers(self, numbers: Sequence[int]) -> None:
        if numbers:
            count, places = framework_parameters(self.model), [self.layers.index(number) for number in numbers]
            by_formula = parameters_of_layers(self.model, places)
            self.model = without_layers(self.model, places)
            self.layers = [number for number in self.layers if number not in numbers]
            self._note(count, by_formula, "layers")

    def _remove(self, units: str, planned: Sequence[Sequence[int]]) -> None:
        count, by_formula = framework_parameters(self.model), parameters_of_units(self.model, planned, units)
        remove_units(self.model, planned, units)
        for number, places in zip(self.layers, planned, strict=True):
            gone, left = set(places), self.units[units][number]
            self.units[units][number] = [unit for place, unit in enumerate(left) if place not in gone]
        self._note(count, by_formula, units)

    def _note(self, before: int, by_formula: int, what: str) -> None:
        counted = before - framework_parameters(self.model)
        if counted != by_formula:
            raise ModelError(f"the cut of {what} removed {counted} parameters where the formula says {by_formula}")
        self.parameters_removed += by_formula
