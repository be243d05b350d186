"""A small bundle, and the model it was made from, for the tests of what makes and reads bundles."""

from pathlib import Path

from small_models import LABELS, sentences, small_model

from edgemin_utils.bundle.making import BundleSource, make_bundle, open_source
from edgemin_utils.checkpoints import save_model
from edgemin_utils.rows.tokens import train_tokenizer

MAX_LENGTH = 12  # short enough that some rows are cut


def write_model(folder: Path) -> Path:
    """A small model with random weights, and a tokenizer that knows all of ASCII."""
    tokenizer = train_tokenizer(sentences(90)["sentence"], 300)
    save_model(small_model(layers=2, vocabulary_size=len(tokenizer)), folder, tokenizer)
    return folder


def source_of(folder: Path, *columns: str) -> BundleSource:
    """The source of a bundle: the model in `folder`, judged on rows of one or two text columns."""
    rows, path = sentences(90).to_pandas(), folder.parent / "rows.csv"
    rows = rows.assign(other=rows["sentence"].str[::-1], label=rows["label"].map(dict(enumerate(LABELS))))
    rows[["sentence", "other", "label"]].to_csv(path, index=False)
    settings = {"task_file": str(path), "text_columns": list(columns), "max_length": MAX_LENGTH}
    return open_source(str(folder), overrides=settings)


def write_bundle(folder: Path, *columns: str) -> Path:
    """The bundle of `write_model`'s model, which goes beside it, for rows of these text columns."""
    model = folder.parent / "model"
    make_bundle(source_of(model if model.exists() else write_model(model), *columns), folder, max_drop=100)
    return folder
