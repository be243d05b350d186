r"""Objectives that compare what layers give out: DistilBERT, patient distillation (PKD), TinyBERT, MLKD-BERT,
distillation from internal representations, and squeezed heads. Layers are evenly spread where nothing else is said.

- DistilBERT (Sanh et al. 2019, section 3): cosine of the last hidden states of every real token. Its code weights soft
  targets, labels and cosine 5:2:1: `distilbert,soft_target_weight=0.714,intermediate_weight=0.143`.
- PKD (Sun et al. 2019, section 3.2, equation 7): normalized [CLS] vectors of the student's layers but the last, which
  feeds the classifier; from every N / M-th teacher layer (*Skip*) or from those before its last one (*Last*). The paper
  searches temperatures 5, 10 and 20, alpha from 0.2 to 0.7 and beta from 10 to 1000. Its code averages KL over the C
  labels and equation 7 over the J layers and d units that are summed here; with s = alpha / C + 1 - alpha that makes
  soft_target_weight = alpha / C / s and intermediate_weight = beta / (J d s): for BERT's 5 layers and 768 units and
  alpha = 0.7 of two labels `pkd,temperature=10,soft_target_weight=0.54,intermediate_weight=0.2` is beta = 500.
  A student that starts from spread layers contradicts *Last*: `pkd-last,student_from_layers=3_4_5` for a teacher of 6.
- TinyBERT (Jiao et al. 2020, section 3.1, equations 7 to 9 and 11): embeddings, hidden states and attention scores
  before the softmax, layer by layer; then a second phase fits the answers.
- MLKD-BERT (Zhang et al. 2024): first similarities of the embeddings' tokens (L_EMB) and of the heads' outputs, split
  so that head counts may differ (L_MHA), and errors of the layers' outputs (L_FFN); then similarities of the batch's
  rows by their last [CLS] vectors (L_SS), supervised contrast of them (L_SC), soft targets (L_KD).
- Internal representations (Aguilar et al. 2020), *stacked*, the better of the paper's two orders: for layer m
  :math:`L_m = \mathrm{KL}(A^T_m \| A^S_m) + 1 - \cos(W h^S_{m, CLS}, h^T_{m, CLS})` of the attention distributions,
  mean over heads and tokens, and the [CLS] vectors. First L_1 is minimised, next L_1 + L_2, up to all layers; then the
  answers alone are learnt (*progressive* would drop L_1 for L_2). Read: the abstract and two summaries alone.
- Squeezing-Heads Distillation (SHD, Bing et al. 2025): two neighbouring heads with attention matrices A_i and outputs
  A_i X_i, where X_i is head i's part of the values times its part of the output projection, become
  :math:`\tilde A = \alpha A_1 + (1 - \alpha) A_2` with the alpha that minimises
  :math:`\| A_1 X_1 + A_2 X_2 - \tilde A (X_1 + X_2) \|_F^2` (section 4.2), by row and pair, kept within 0 and 1, so
  that each line stays a distribution; pairs are merged until the heads are as few as asked for, and no parameter is
  learned. KL pulls the student's attention to the squeezed matrices, beside the answers. It is made for a student with
  fewer heads, as in `shd,student_heads=2`; with as many nothing is squeezed.

Deviations: projections are learned where hidden sizes differ, which DistilBERT, PKD and Aguilar exclude; DistilBERT's
original learns from general text; Skip rounds up where M does not divide N; TinyBERT has no general distillation before
and no data augmentation, and its second phase is all objectives'. MLKD's parts are the greatest common divisor of head
counts (as published where the student's divides the teacher's), L_SC has the batch's 2b vectors, at temperature 0.1
(Khosla et al. 2020), and L_KD stands beside the labels. Aguilar's layers join after equal shares of the epochs, each
with its own warm-up (the paper also moves on once the cosine is small enough), and where head counts differ queries and
keys are split like MLKD's; means over tokens are the batch's. SHD squeezes the student's heads where these are more,
which the paper excludes; a last round that would leave too few merges only the first pairs; the temperature is 1."""

from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from edgemin_utils.distillation import losses
from edgemin_utils.distillation.objective import Objective, named, scores_of, shared_heads, total, uniform_layers
from edgemin_utils.distillation.teacher import States, Teacher
from edgemin_utils.encoders import EncoderLayer, encoder_layers
from edgemin_utils.errors import MethodRefused
from edgemin_utils.training import Batch, Phase

STATES = ("query", "key", "value")


class LastHiddenStates(Objective):
    """DistilBERT: soft targets, labels and the cosine of the last hidden states, for all epochs."""

    def phases(self, teacher: Teacher, student: PreTrainedModel) -> list[Phase]:
        last = "hidden.-1"
        project = self.projection(student, teacher.model, last)

        def cosine(own: States, theirs: States, batch: Batch) -> Tensor:
            return losses.cosine_distance(theirs[last], project(own[last]), batch["attention_mask"])

        return [self.with_answers("hidden states", teacher, cosine, [last], [last], projections=project)]


class PatientSkip(Objective):
    """PKD-Skip: soft targets, labels and [CLS] vectors of evenly spread teacher layers, for all epochs."""

    def layers(self, teacher: PreTrainedModel, student: PreTrainedModel) -> list[tuple[int, int]]:
        """(student layer, teacher layer), counted from 0; *Last* raises MethodRefused for a student that is deeper."""
        return uniform_layers(teacher, student)[:-1]

    def phases(self, teacher: Teacher, student: PreTrainedModel) -> list[Phase]:
        layers = self.layers(teacher.model, student)
        if not layers:
            raise MethodRefused("pkd matches every layer but the last, so give it two layers or more")
        project = self.projection(student, teacher.model, "cls.0")

        def distance(own: States, theirs: States, batch: Batch) -> Tensor:
            return total(losses.patience(theirs[f"cls.{two}"], project(own[f"cls.{one}"])) for one, two in layers)

        states = [named(["cls"], numbers) for numbers in zip(*layers, strict=True)]
        return [self.with_answers("[CLS] vectors", teacher, distance, *states, projections=project)]


class PatientLast(PatientSkip):
    """PKD-Last: the teacher layers before its last one."""

    def layers(self, teacher: PreTrainedModel, student: PreTrainedModel) -> list[tuple[int, int]]:
        count, depth = len(encoder_layers(student)), len(encoder_layers(teacher))
        if (more := count - depth) > 0:
            raise MethodRefused(f"pkd-last needs a teacher as deep; this student has {more} layers more; choose pkd")
        return [(layer, layer - more) for layer in range(count - 1)]


class AllLayers(Objective):
    """TinyBERT: embeddings, hidden states and attention matrices, then soft targets."""

    def phases(self, teacher: Teacher, student: PreTrainedModel) -> list[Phase]:
        layers = uniform_layers(teacher.model, student)
        heads = shared_heads(teacher.model, student, layers, equal_for="tinybert")
        sizes = {"embeddings": "embeddings", "hidden": "hidden.0"}
        project = nn.ModuleDict({name: self.projection(student, teacher.model, one) for name, one in sizes.items()})

        def compare(own: States, theirs: States, batch: Batch) -> Any:
            mask, hidden, attention = batch["attention_mask"], [], []
            embeddings = losses.hidden_state_error(theirs["embeddings"], project["embeddings"](own["embeddings"]), mask)
            for (layer, other), count in zip(layers, heads, strict=True):
                projected = project["hidden"](own[f"hidden.{layer}"])
                hidden.append(losses.hidden_state_error(theirs[f"hidden.{other}"], projected, mask))
                wanted, given = (scores_of("query-key", *one, count) for one in ((theirs, other), (own, layer)))
                attention.append(losses.attention_error(wanted, given, mask))
            parts = {"embeddings": embeddings, "hidden states": total(hidden), "attention": total(attention)}
            return total(parts.values()), parts

        states = [["embeddings", *named(["hidden", "query", "key"], side)] for side in zip(*layers, strict=True)]
        phase = self.phase("layers", teacher, compare, *states, part="first", projections=project)
        return [phase, self.soft_targets(teacher)]


class MultiLevel(Objective):
    """MLKD-BERT: token relations and hidden states, then row relations and soft targets."""

    def phases(self, teacher: Teacher, student: PreTrainedModel) -> list[Phase]:
        layers, last = uniform_layers(teacher.model, student), "cls.-1"
        parts_of = shared_heads(teacher.model, student, layers)
        project, project_rows = (self.projection(student, teacher.model, state) for state in ("hidden.0", last))

        def of_tokens(own: States, theirs: States, batch: Batch) -> Any:
            mask, heads, hidden = batch["attention_mask"], [], []
            for (layer, other), count in zip(layers, parts_of, strict=True):
                heads.append(losses.own_divergence(theirs[f"context.{other}"], own[f"context.{layer}"], count, mask))
                wanted, given = theirs[f"hidden.{other}"], project(own[f"hidden.{layer}"])
                hidden.append(losses.hidden_state_error(wanted, given, mask))
            embeddings = losses.own_divergence(theirs["embeddings"], own["embeddings"], 1, mask)
            found = {"embeddings": embeddings, "attention heads": total(heads), "hidden states": total(hidden)}
            return total(found.values()), found

        def of_rows(own: States, theirs: States, batch: Batch) -> Any:
            answers, parts = self.answers(own, theirs, batch)
            similarity = losses.sample_divergence(theirs[last], own[last])
            contrast = losses.contrastive_loss(theirs[last], project_rows(own[last]), batch["labels"])
            return answers + similarity + contrast, {**parts, "row similarity": similarity, "row contrast": contrast}

        states = [["embeddings", *named(["context", "hidden"], numbers)] for numbers in zip(*layers, strict=True)]
        tokens = self.phase("token relations", teacher, of_tokens, *states, part="first", projections=project)
        rows = self.phase("row relations", teacher, of_rows, ["logits", last], part="last", projections=project_rows)
        return [tokens, rows]


class StackedLayers(Objective):
    """Internal representations: attention and [CLS] vectors of more and more layers, then soft targets."""

    state, what, phase_name = "cls", "[CLS] vectors", "layers up to {}"
    all_so_far = True  # or the newest layer alone

    def distance(self, wanted: Tensor, given: Tensor, attention_mask: Tensor) -> Tensor:
        """How far apart two models' `state` are, (batch, hidden) or (batch, tokens, hidden)."""
        return losses.cosine_distance(wanted, given, attention_mask[:, 0])

    def phases(self, teacher: Teacher, student: PreTrainedModel) -> list[Phase]:
        layers, phases, state = uniform_layers(teacher.model, student), [], self.state
        heads = shared_heads(teacher.model, student, layers)
        project = self.projection(student, teacher.model, f"{state}.0")

        def compare(numbers: range, own: States, theirs: States, batch: Batch) -> Any:
            mask, attention, states = batch["attention_mask"], [], []
            for (layer, other), count in [(layers[number], heads[number]) for number in numbers]:
                wanted, given = (scores_of("query-key", *one, count) for one in ((theirs, other), (own, layer)))
                attention.append(losses.relation_divergence(wanted, given, mask))
                states.append(self.distance(theirs[f"{state}.{other}"], project(own[f"{state}.{layer}"]), mask))
            parts = {"attention": total(attention), self.what: total(states)}
            return total(parts.values()), parts

        for newest in range(len(layers)):
            numbers = range(0 if self.all_so_far else newest, newest + 1)
            sides = zip(*(layers[number] for number in numbers), strict=True)
            states = [named(["query", "key", state], side) for side in sides]
            name, loss = self.phase_name.format(newest + 1), partial(compare, numbers)
            phase = self.phase(name, teacher, loss, *states, part="first")
            phases.append(replace(phase, epochs=1 / len(layers) * phase.epochs, projections=project))
        return [*phases, self.soft_targets(teacher)]


class SqueezedHeads(Objective):
    """Attention matrices with heads squeezed to the smaller count, soft targets and labels, for all epochs."""

    def phases(self, teacher: Teacher, student: PreTrainedModel) -> list[Phase]:
        layers = uniform_layers(teacher.model, student)
        models = (encoder_layers(teacher.model), encoder_layers(student))

        def attention(own: States, theirs: States, batch: Batch) -> Tensor:
            distances, mask = [], batch["attention_mask"]
            for layer, other in layers:
                both = [(models[0][other], theirs, other), (models[1][layer], own, layer)]
                count = min(one.num_heads for one, _, _ in both)
                wanted, given = (squeezed_attention(*one, mask, count) for one in both)
                distances.append(losses.attention_divergence(wanted, given, mask))
            return total(distances)

        states = [named(STATES, numbers) for numbers in zip(*layers, strict=True)]
        return [self.with_answers("attention", teacher, attention, *states)]


def squeezed_attention(layer: EncoderLayer, states: States, number: int, mask: Tensor, count: int) -> Tensor:
    """Logarithm of layer `number`'s attention squeezed to `count` heads, (batch, count, tokens, tokens)."""
    query, key, value = (states[f"{state}.{number}"] for state in STATES)
    log = losses.log_attention(losses.relation_scores(query, key, layer.num_heads), mask)
    if layer.num_heads == count:
        return log
    with torch.no_grad():
        by_head = [x.unflatten(-1, (layer.num_heads, -1)) for x in (value, layer.attention_output.weight.to(value))]
        outputs = torch.einsum("bthd,ehd->bhte", *by_head)
    squeezed = squeeze_heads(log.exp(), outputs, mask, count)
    return squeezed.clamp_min(torch.finfo(squeezed.dtype).tiny).log()


def squeeze_heads(attention: Tensor, outputs: Tensor, attention_mask: Tensor, count: int) -> Tensor:
    """Attention (batch, heads, tokens, tokens) merged in neighbouring pairs until `count` are left, by the heads' X,
    `outputs` (batch, heads, tokens, hidden). Padding has no say in the shares, and no gradient flows through them."""
    real = attention_mask.bool()[:, None, :, None]
    while attention.shape[1] > count:
        merged = 2 * min(attention.shape[1] // 2, attention.shape[1] - count)
        first, second = attention[:, 0:merged:2], attention[:, 1:merged:2]
        x, both = outputs[:, 0:merged:2], outputs[:, 0:merged:2] + outputs[:, 1:merged:2]
        with torch.no_grad():
            # Alpha, with D = A_1 - A_2: <D X_1, D (X_1 + X_2)> / |D (X_1 + X_2)|², or a half where heads are alike.
            wanted, given = (((first - second) * real) @ outputs_of for outputs_of in (x, both))
            squared = given.square().sum((-1, -2), keepdim=True)
            share = torch.where(squared > 0, (wanted * given).sum((-1, -2), keepdim=True) / squared, 0.5).clamp(0, 1)
        attention = torch.cat([share * first + (1 - share) * second, attention[:, merged:]], dim=1)
        outputs = torch.cat([both, outputs[:, merged:]], dim=1)
    return attention
