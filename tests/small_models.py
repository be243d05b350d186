"""Small random models and rows that several tests share."""

import warnings
from pathlib import Path

import datasets
import torch
from transformers import BertConfig, PreTrainedModel, PreTrainedTokenizerBase

from edgemin_utils.encoders import FAMILIES, input_names, longest_input, scratch_model
from edgemin_utils.rows.splits import TaskData
from edgemin_utils.rows.tasks import TASKS
from edgemin_utils.rows.tokens import Rows, tokenize_rows, train_tokenizer

FAMILY_NAMES = tuple(FAMILIES)
LABELS = ("negative", "positive")
SIZES = {"layers": 3, "hidden_size": 48, "heads": 4, "intermediate_size": 96, "vocabulary_size": 60}
POSITIVE, NEGATIVE = ("good", "great", "warm", "bright"), ("bad", "dull", "cold", "grim")


def small_model(family: str = "bert", seed: int = 0, dropout: float = 0.1, **sizes: int) -> PreTrainedModel:
    torch.manual_seed(seed)
    others = {"max_length": 64, "pad_token_id": int(family == "roberta"), "dropout": dropout}
    model = scratch_model(family, labels=LABELS, **SIZES | sizes, **others)
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
    mask = (torch.arange(tokens) < tokens - torch.arange(rows)[:, None]).long()
    labels = torch.randint(0, 2, (rows,), generator=generator)
    return {"input_ids": ids * mask, "attention_mask": mask, "labels": labels}


def logits(model: PreTrainedModel, batch: dict[str, torch.Tensor]) -> torch.Tensor:
    with torch.inference_mode():
        return model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits.float()


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


def small_rows(count: int, holdout: int = 0, seed: int = 0) -> Rows:
    """Tokenized sentences: `count` train rows, the first `holdout` of them as hold-out and dev rows too."""
    rows = sentences(count, seed)
    some = rows.select(range(holdout))
    data = TaskData(TASKS["sst2"], rows, some, {"dev": some}, rows.select([]), "synthetic sentences", (), "")
    tokenizer = train_tokenizer(rows["sentence"], 60)
    return tokenize_rows(data, tokenizer, 32, configs=[BertConfig(vocab_size=len(tokenizer))])


def tokenized_sentences(count: int, seed: int = 0) -> tuple[datasets.Dataset, PreTrainedTokenizerBase]:
    rows = small_rows(count, seed=seed)
    return rows.train, rows.tokenizer


def export_onnx(model: PreTrainedModel, path: Path) -> Path:
    """The model as an .onnx file of free batch and length. Biases and norms are drawn anew first: the exporter stores
    equal ones once, so that a fresh model would lose weights."""
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() == 1:
                parameter.normal_(0, 0.15)
    free = {0: torch.export.Dim("batch"), 1: torch.export.Dim("tokens", max=longest_input(model))}
    ids, names = torch.full((2, 9), 7), input_names(model)
    inputs = dict(zip(names, (ids, torch.ones_like(ids), torch.zeros_like(ids)), strict=False))
    options = {"kwargs": inputs, "dynamic_shapes": dict.fromkeys(names, free), "output_names": ["logits"]}
    with warnings.catch_warnings(action="ignore"):
        torch.onnx.export(model, (), path, dynamo=True, verbose=False, external_data=False, **options)
    return path
