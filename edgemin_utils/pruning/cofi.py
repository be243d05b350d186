r"""CoFi: masks of coarse and fine units learned together (Xia, Zhong and Chen 2022), and then a cut by them.

The attention and the feed-forward of every layer, every head and every neuron has a mask, hard concrete as in Louizos,
Welling and Kingma 2018 (section 2.2), with l = -0.1, r = 1.1, :math:`\beta` = 2/3 and u uniform:

.. math:: z = \min(1, \max(0, l + (r - l)\, \sigma((\log u - \log(1 - u) + \log \alpha) / \beta)))

It is open with probability :math:`P(z > 0) = \sigma(\log \alpha - \beta \log(-l / r))`. Masks multiply (section 3.1):
a head counts :math:`z_{MHA}\, z_{head}`, a neuron :math:`z_{FFN}\, z_{int}`. With c the parameters of a unit and M of
all, the expected sparsity :math:`\hat s = 1 - \frac{1}{M} \sum_{block} P_{block} \sum_{unit} c\, P_{unit}` is held at
t, which rises to its target, by :math:`\lambda_1 (\hat s - t) + \lambda_2 (\hat s - t)^2`: weights and masks minimise
it beside the loss, the multipliers maximise it. Distillation (section 3.2) adds to the answers the error of up to four
teacher layers, each with the living student layer that is nearest now:
:math:`m(i) = \arg\min_{j\ \mathrm{alive}} \mathrm{MSE}(W H^j, H^i)`.

Deviations from the paper and its code (princeton-nlp/CoFiPruning): hidden dimensions have no masks and the output's
bias stays; a layer whose two blocks are shut goes whole, while of a block shut alone one unit stays, with output
weights of zero; masks start at log α = 2 and travel as far in few steps as there in many, without bounds; in the end a
mask is :math:`\sigma(0.8 \log \alpha / \beta)`, as in the code, but units go by the lower log α, their own or their
block's, until the cut holds its share (the code rounds the expected number of each kind); labels count, too; W is the
identity for equal sizes. Half of `recovery_epochs` go into the masks, half into what is left, without layers."""

import math
from bisect import bisect_left
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from edgemin_utils.distillation.losses import hidden_state_error
from edgemin_utils.distillation.objective import Objective, named, total
from edgemin_utils.distillation.teacher import States, Teacher
from edgemin_utils.encoders import encoder_layers
from edgemin_utils.errors import MethodRefused
from edgemin_utils.pruning.cut import Cut, parameters_of_units
from edgemin_utils.pruning.importance import masked_units, unit_count
from edgemin_utils.rows.tokens import Rows
from edgemin_utils.settings import Settings
from edgemin_utils.training import Batch, Phase, label_loss

KINDS = ("heads", "neurons")
LOW, HIGH, BETA = -0.1, 1.1, 2 / 3
START, TRAVEL, WARM_UP, LAYERS, SETTLED = 2.0, 30.0, 0.5, 4, 0.8


class Masks(nn.Module):
    """Masks learned over `steps` to a sparsity, and the multipliers: for the heads of every layer, then for the neurons
    of every layer, a vector (1 + units,), whose first entry is the whole block's."""

    costs: Tensor

    def __init__(self, model: PreTrainedModel, target: float, steps: int, learning_rate: float):
        super().__init__()
        units = [(kind, unit_count(layer, kind)) for kind in KINDS for layer in encoder_layers(model)]
        self.moved = nn.ParameterList(torch.zeros(1 + count) for _, count in units)
        self.multipliers = nn.Parameter(torch.zeros(2))
        costs = [torch.full((count,), float(parameters_of_units(model, [[0]], kind))) for kind, count in units]
        self.register_buffer("costs", torch.cat(costs))
        self.target, self.steps, self.step = target, steps, 0
        self.pace = TRAVEL / (0.5 * steps * learning_rate)  # a rate that falls to zero travels half as far

    def _quickened(self, parameter: Tensor) -> Tensor:
        # Steps are `pace` times the optimizer's; the gradient, whose length is clipped with the model's, is as it was.
        return parameter + (self.pace - 1) * parameter.detach()

    def log_alphas(self) -> list[Tensor]:
        """log α of every vector, (1 + units,)."""
        return [START + self._quickened(moved) for moved in self.moved]

    def sparsity(self, kept: list[Tensor]) -> Tensor:
        """Share of the units' parameters that is gone where so much of each unit is kept, (units,) a vector."""
        return 1 - (self.costs * torch.cat(kept)).sum() / self.costs.sum()

    def expected_sparsity(self) -> Tensor:
        """The sparsity that masks drawn at random have in the mean, a scalar of shape ()."""
        opened = [(values - BETA * math.log(-LOW / HIGH)).sigmoid() for values in self.log_alphas()]
        return self.sparsity([one[0] * one[1:] for one in opened])

    def constraint(self) -> Tensor:
        """The Lagrangian, a scalar of shape (): what minimises it raises the multipliers while the sparsity is off."""
        gap = self.expected_sparsity() - self.target * min(1.0, self.step / (WARM_UP * self.steps))
        multipliers = self._quickened(self.multipliers)
        first, second = 2 * multipliers.detach() - multipliers  # the same values, the opposite gradient
        return first * gap + second * gap.square()

    def draw(self) -> list[Tensor]:
        """What every unit is multiplied by in one step, (units,) a vector."""
        noise = [torch.rand_like(values).clamp(1e-6, 1 - 1e-6).logit() for values in self.moved]
        drawn = [((one + values) / BETA).sigmoid() for one, values in zip(noise, self.log_alphas(), strict=True)]
        masks = [(LOW + (HIGH - LOW) * values).clamp(0, 1) for values in drawn]
        return [one[0] * one[1:] for one in masks]

    @torch.no_grad()
    def settled(self) -> list[Tensor]:
        """What every unit is multiplied by in the end, (units,) a vector; raises MethodRefused where none stays."""
        scores = [torch.minimum(values[:1], values[1:]) for values in self.log_alphas()]
        ranked = torch.cat(scores).unique().tolist()

        def gone(least: float) -> float:
            return float(self.sparsity(kept_units([units > least for units in scores])))

        place = bisect_left(ranked, self.target, key=gone)
        if place >= len(ranked) - 1:
            raise MethodRefused(f"cofi keeps nothing at a sparsity of {self.target:g}; prune less, or train longer")
        values = [(SETTLED / BETA * log_alpha).sigmoid() for log_alpha in self.log_alphas()]
        return [one[0] * one[1:] * (score > ranked[place]) for one, score in zip(values, scores, strict=True)]


def kept_units(opened: Sequence[Tensor]) -> list[Tensor]:
    """The open units, (units,) a vector, true or false, and the first one of a block that is shut alone."""
    kept, half = [units.clone() for units in opened], len(opened) // 2
    for own, other in zip(kept, [*opened[half:], *opened[:half]], strict=True):
        own[0] |= other.any() & ~own.any()
    return kept


@contextmanager
def masked(model: PreTrainedModel, factors: Sequence[Tensor]) -> Iterator[list[int]]:
    """While open, units are multiplied by factors, (units,) a vector; gives the numbers of layers with any left."""
    heads, neurons = factors[: len(factors) // 2], factors[len(factors) // 2 :]
    layers = [(one.any() | other.any()).float().view(1) for one, other in zip(heads, neurons, strict=True)]
    with masked_units(model, heads), masked_units(model, neurons, "neurons"), masked_units(model, layers, "layers"):
        yield [number for number, alive in enumerate(layers) if alive]


@torch.no_grad()
def cut_by(cut: Cut, factors: Sequence[Tensor]) -> None:
    """Makes the cut's model compute for good what it computes `masked` by factors, (units,) a vector: zeros go."""
    layers = encoder_layers(cut.model)
    kept = kept_units([units > 0 for units in factors])
    cut.removed = [[number for number in range(len(layers)) if not kept[number].any()]]
    for number, layer in enumerate(layers):
        layer.attention_output.weight *= factors[number].repeat_interleave(layer.head_size)
        layer.feed_forward_out.weight *= factors[len(layers) + number]
    for kind, own in zip(KINDS, (kept[: len(layers)], kept[len(layers) :]), strict=True):
        cut.remove(kind, [(~units).nonzero().flatten().tolist() if units.any() else [] for units in own])
    cut.remove("layers", cut.removed[0])


def mask_phase(model: PreTrainedModel, masks: Masks, settings: Settings, teacher: Teacher | None, seed: int) -> Phase:
    """The phase that learns masks, and the model under them, from labels, and a teacher's answers and layers."""
    alive, learned, phase = list[int](), nn.ModuleList([masks]), Phase("masks", 0, 0, label_loss)
    if teacher:
        objective, depth = Objective(settings, seed), len(encoder_layers(teacher.model))
        chosen = [(place + 1) * depth // min(LAYERS, depth) - 1 for place in range(min(LAYERS, depth))]
        own, theirs = named(["hidden"], range(len(encoder_layers(model)))), named(["hidden"], chosen)
        learned.append(objective.projection(model, teacher.model, own[0]))

        def nearest_layers(student: States, teacher: States, batch: Batch) -> Tensor:
            given, mask = [learned[1](student[own[layer]]) for layer in alive], batch["attention_mask"]
            errors = [[hidden_state_error(teacher[name], states, mask) for states in given] for name in theirs]
            return total(torch.stack(row).min() for row in errors if row)

        phase = objective.with_answers("nearest layers", teacher, nearest_layers, own, theirs)

    def loss(student: nn.Module, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        masks.step += 1
        with masked(student, masks.draw()) as alive[:]:
            found, parts = phase.loss(student, batch)
        constraint = masks.constraint()
        return found + constraint, {**parts, "constraint": constraint, "sparsity": masks.expected_sparsity()}

    return replace(phase, name="masks", loss=loss, evaluates=False, projections=learned)


def cofi_rounds(
    model: PreTrainedModel, value: str, settings: Settings, teacher: Teacher | None, rows: Rows, seed: int = 0
) -> Iterator[Cut]:
    """The same `Cut` twice: whole, with the phase that learns the masks, and then without what they shut, a share
    `value` of the units' parameters. Raises MethodRefused without training, or where nothing would be left."""
    if not settings.recovery_epochs or not settings.recovery_learning_rate:
        raise MethodRefused("cofi learns its masks by training; leave recovery_epochs and its learning rate over 0")
    steps = math.ceil(settings.recovery_epochs / 2 * len(rows.train) / settings.batch_size)
    masks = Masks(model, float(value), steps, settings.recovery_learning_rate)
    cut = Cut(model, "cofi", 2, 1, phase=mask_phase(model, masks, settings, teacher, seed))
    yield cut
    cut.round, cut.phase = 2, None
    cut_by(cut, masks.cpu().settled())
    yield cut
