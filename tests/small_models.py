"""Small random models and rows that several tests share."""

import json
from pathlib import Path

import datasets
import torch
from transformers import BertConfig, PreTrainedModel

from edgemin_utils.encoders import encoder_layers, scratch_model
from edgemin_utils.rows.splits import TaskData
from edgemin_utils.rows.tasks import TASKS
from edgemin_utils.rows.tokens import Rows, tokenize_rows, train_tokenizer

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


def unequal(family: str = "bert") -> PreTrainedModel:
    """A model with layers of 3 and 4 heads and of 96 and 40 neurons, and with biases that are not zero."""
    model = small_model(family, layers=2)
    encoder_layers(model)[0].keep_heads([0, 1, 3])
    encoder_layers(model)[1].keep_neurons(range(40))
    torch.manual_seed(7)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.dim() == 1:
                parameter.normal_(float("Norm.weight" in name), 0.1)
    return model


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


def edit_json(path: Path, **changes: object) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
