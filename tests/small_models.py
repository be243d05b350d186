"""Small random models and rows that several tests share."""

import warnings
from pathlib import Path

import datasets
import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from edgemin_utils.encoders import FAMILIES, input_names, longest_input, scratch_model
from edgemin_utils.tasks import find_task
from edgemin_utils.tokenization import tokenize, train_tokenizer

FAMILY_NAMES = tuple(FAMILIES)
LABELS = ("negative", "positive")
POSITIVE, NEGATIVE = ("good", "great", "warm", "bright"), ("bad", "dull", "cold", "grim")


def small_model(
    family: str = "bert",
    layers: int = 3,
    hidden_size: int = 48,
    heads: int = 4,
    intermediate_size: int = 96,
    vocabulary_size: int = 60,
    seed: int = 0,
    dropout: float = 0.1,
) -> PreTrainedModel:
    torch.manual_seed(seed)
    model = scratch_model(
        family,
        layers,
        hidden_size,
        heads,
        intermediate_size,
        vocabulary_size,
        LABELS,
        64,
        pad_token_id=1 if family == "roberta" else 0,
        dropout=dropout,
    )
    # Weights larger than at initialization, so that layers matter to the output and tests can see an error.
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() == 2:
                parameter.normal_(0, 0.15)
    return model.eval()


def small_batch(rows: int = 3, tokens: int = 9, vocabulary_size: int = 60, seed: int = 1) -> dict[str, torch.Tensor]:
    """Random tokens; row r has `tokens - r` real ones, the rest is padding."""
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(5, vocabulary_size, (rows, tokens), generator=generator)
    mask = torch.ones_like(ids)
    for row in range(rows):
        mask[row, tokens - row :] = 0
    return {
        "input_ids": ids * mask,
        "attention_mask": mask,
        "labels": torch.randint(0, 2, (rows,), generator=generator),
    }


def sentences(count: int, seed: int = 0) -> datasets.Dataset:
    """Sentences whose label is told by one word: what any model learns within a few epochs."""
    generator = torch.Generator().manual_seed(seed)

    def draw(options):
        return options[int(torch.randint(len(options), (1,), generator=generator))]

    rows = []
    for number in range(count):
        label = number % 2
        filler = [draw(("the", "film", "was", "a", "very", "story")) for _ in range(3 + number % 5)]
        rows.append({"sentence": " ".join([*filler, draw((NEGATIVE, POSITIVE)[label])]), "label": label, "row": number})
    return datasets.Dataset.from_list(rows)


def tokenized_sentences(count: int, seed: int = 0) -> tuple[datasets.Dataset, PreTrainedTokenizerBase]:
    rows = sentences(count, seed)
    tokenizer = train_tokenizer(rows["sentence"], 60)
    return tokenize(rows, tokenizer, find_task("sst2"), 32)[0], tokenizer


class _Logits(torch.nn.Module):
    """A classifier as a function of two or three tensors, as the exporter needs it."""

    def __init__(self, model: PreTrainedModel):
        super().__init__()
        self.model = model

    def forward(self, input_ids, attention_mask, token_type_ids=None):
        types = {} if token_type_ids is None else {"token_type_ids": token_type_ids}
        return self.model(input_ids=input_ids, attention_mask=attention_mask, **types).logits


def export_onnx(model: PreTrainedModel, path: Path) -> Path:
    """The model as an .onnx file of free batch and length. Biases and norms are drawn anew first: the exporter stores
    equal ones once, so that a fresh model would lose weights."""
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() == 1:
                parameter.normal_(0, 0.15)
    ids = torch.full((2, 9), 7)
    names = input_names(model)
    values = (ids, torch.ones_like(ids), torch.zeros_like(ids))[: len(names)]
    free = {0: torch.export.Dim("batch"), 1: torch.export.Dim("tokens", max=longest_input(model))}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            _Logits(model),
            values,
            path,
            input_names=list(names),
            output_names=["logits"],
            dynamic_shapes=(free,) * len(names),
            dynamo=True,
            verbose=False,
            external_data=False,
        )
    return path
