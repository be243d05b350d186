"""Making a bundle: the float model that it comes from, and its dev rows; what is written; how near its answers are."""

import shutil
from collections.abc import Mapping
from dataclasses import dataclass, replace
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import tokenizers
from jinja2 import Template
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from edgemin_utils import __version__, environment, names
from edgemin_utils.bundle.checks import DEFAULT_SCHEME, check_source, check_target, labels_of_outputs
from edgemin_utils.bundle.classify import BUNDLE_FILE, FORMAT_VERSION, MODEL_FILE, TOKENIZER_FILE, Bundle, read_content
from edgemin_utils.errors import MethodRefused, StageError
from edgemin_utils.measurement.evaluate import PREDICTIONS_FILE
from edgemin_utils.quantization.schemes import load_model, quantize, save_quantized, stored_sizes
from edgemin_utils.rows.splits import TaskData, load_task_data
from edgemin_utils.rows.tokens import Rows, load_tokenizer, tokenize_rows
from edgemin_utils.settings import Settings
from edgemin_utils.study import Record, new_folder, open_chain_folder, read_record, write_json
from edgemin_utils.training import batches, model_inputs, predict

# Texts of no one, answered when the bundle is made, so that another processor can be seen to answer alike.
CHECK_TEXTS = (("this is good", "this is not good"), ("nobody knows why", "why does nobody know ?"))


@dataclass(frozen=True)
class BundleSource:
    """A float classifier to be bundled. `labels` are in the order of its outputs; `logits` maps dev splits to float32
    (rows, labels); `graph` is the folder of a stage with an edge scheme; `synthetic`: its rows are embedded ones."""

    model: PreTrainedModel
    rows: Rows
    labels: tuple[str, ...]
    logits: Mapping[str, np.ndarray]
    provenance: Mapping[str, Any]
    graph: Path | None = None
    scheme: str = ""
    synthetic: bool = False


def open_source(model: str, task: str | None = None, overrides: Mapping[str, Any] | None = None) -> BundleSource:
    """The model of a stage, which knows its rows, or of another folder or a hub id, judged on the rows of `task` and
    `overrides` (settings). Raises as `check_source`, or StageError where a stage's rows have changed."""
    found = check_source(model, task, overrides)
    if isinstance(found, Record):
        return _stage_source(found)
    settings, task = found
    name = str(folder) if (folder := Path(model).expanduser()).is_dir() else model
    data, loaded = load_task_data(settings, task, 0), load_model(name)
    labels, note = labels_of_outputs(loaded.config.to_dict(), data.task, model)
    rows = _rows(loaded, name, data, settings)
    logits = {split: predict(loaded, dev, rows.tokenizer) for split, dev in rows.dev.items()}
    provenance = {"source": folder.name if folder.is_dir() else model, "rows": data.source, "note": note}
    return BundleSource(loaded, rows, labels, logits, provenance)


def _stage_source(record: Record) -> BundleSource:
    """Of a stage with an edge scheme its graph, and the float model that it came from."""
    chain, folder, scheme = open_chain_folder(record.folder.parent), record.folder, ""
    if record.kind == "quantization":
        name, _, scheme = record.model.rpartition("+")
        folder, scheme = chain.folder / name, scheme.split(",")[0]
    model, data = load_model(folder), load_task_data(chain.settings, chain.task, chain.seed)
    rows = _rows(model, str(folder), data, chain.settings)
    stored, logits = pd.read_parquet(folder / PREDICTIONS_FILE), {}
    for split, dev in data.dev.items():
        own = stored[stored["split"] == split]
        if own["row"].tolist() != list(dev["row"]) or own["label"].tolist() != list(dev["label"]):
            raise StageError(f"the rows of {split} are not those that {folder} was judged on; run the study again")
        logits[split] = own.filter(regex=r"^logit_\d+$").to_numpy(dtype=np.float32)
    place, fingerprint = f"{chain.task}/seed-{chain.seed}", read_record(folder).fingerprint
    provenance = {"source": f"{place}/{record.model}", "float_source": f"{place}/{folder.name}"}
    provenance |= {"rows": data.source, "fingerprint": fingerprint}
    graph, synthetic = record.folder if scheme else None, chain.settings.data_source == "embedded"
    return BundleSource(model, rows, data.task.labels, logits, provenance, graph, scheme, synthetic)


def _rows(model: PreTrainedModel, name: str, data: TaskData, settings: Settings) -> Rows:
    """Dev rows, and as train rows those for calibration alone, of which notes say nothing."""
    few = data.train.select(range(min(settings.calibration_rows, len(data.train))))
    rows = tokenize_rows(replace(data, train=few), load_tokenizer(name), settings.max_length, configs=[model.config])
    notes = [note for note in rows.notes if note not in data.notes and not note.startswith("rows longer than")]
    for split, dev in rows.dev.items():
        if cut := rows.truncated[split]:
            notes.append(f"{split}: {cut:,} of {len(dev):,} rows are longer than {rows.limit} tokens and cut")
    return replace(rows, notes=tuple(notes))


def make_bundle(source: BundleSource, output: str | Path, scheme: str = "", max_drop: float = 1.0) -> dict[str, Any]:
    """Writes a bundle into `output`, in place of an older one, and gives its bundle.json. Raises MethodRefused where it
    loses more than `max_drop` points of accuracy or cannot be exported, and as `check_target` and `new_folder`."""
    scheme, final = scheme or source.scheme or DEFAULT_SCHEME, Path(output).expanduser().absolute()
    check_target(final, scheme)
    with new_folder(final) as folder:
        if source.graph is not None and scheme == source.scheme:
            for name in (MODEL_FILE, "config.json"):
                shutil.copy(source.graph / name, folder)
        else:
            few = batches(source.rows.train, source.rows.tokenizer, 1)
            inputs = [model_inputs(source.model, batch) for _, batch in few]
            save_quantized(quantize(source.model, scheme, inputs, source.rows.limit), folder, scheme)
        (folder / TOKENIZER_FILE).write_bytes(tokenizer_rules(source.rows.tokenizer, source.rows.limit))
        (folder / "classify.py").write_bytes(Path(__file__).with_name("classify.py").read_bytes())
        content = _describe(source, scheme)
        _write(folder, content)
        bundle = Bundle(folder)  # read as it will be read: what is judged is what lies on disk
        content["measured"] = {"accuracy": judge(bundle, source, max_drop), "max_drop": max_drop}
        for split, found in content["measured"]["accuracy"].items():
            if found["pytorch"] <= (alone := found["most_frequent"]):
                said = f"right in {100 * found['pytorch']:.1f} % of rows, the commonest label in {100 * alone:.1f} %"
                content["notes"].insert(0, f"ATTENTION: {split}: {said}; has it learnt, is id2label in another order?")
        rows = [texts[: len(bundle.text_columns)] for texts in CHECK_TEXTS]
        content["check"] = {"texts": rows, "probabilities": bundle.probabilities(rows).round(6).tolist()}
        weights = sum(count for count, _ in stored_sizes(source.model).values())
        content["measured"] |= {"model_bytes": (folder / MODEL_FILE).stat().st_size, "fp32_bytes": 4 * weights}
        (folder / "README.txt").write_text(describe_in_words(content), encoding="utf-8")
        _write(folder, content)
    return read_content(final)


def tokenizer_rules(tokenizer: PreTrainedTokenizerBase, limit: int) -> bytes:
    """The tokenizer as tokenizer.json, cutting at `limit` tokens as in training, without padding."""
    rules = tokenizers.Tokenizer.from_str(tokenizer.backend_tokenizer.to_str())
    rules.enable_truncation(limit, strategy="longest_first", direction=tokenizer.truncation_side)
    rules.no_padding()
    return rules.to_str().encode()


def _describe(source: BundleSource, scheme: str) -> dict[str, Any]:
    machine, rows, task = environment.describe_environment(), source.rows, source.rows.data.task
    made = {"edgemin": __version__, "revision": machine["git_revision"], "versions": machine["packages"]}
    main = rows.data.dev[task.dev_splits[0]].to_pandas()
    examples = main.groupby("label").head(2 if source.synthetic else 0)  # rows of one's own stay out of a bundle
    return {
        "format_version": FORMAT_VERSION,
        **{"task": task.name, "text_columns": list(task.text_columns), "labels": list(source.labels)},
        **{"max_length": rows.limit, "scheme": scheme, "synthetic": source.synthetic},
        "rules": {"truncation_side": rows.tokenizer.truncation_side, "pad_token_id": rows.tokenizer.pad_token_id},
        "what": names.METHODS[scheme].meaning.split(": ")[-1].removeprefix("the same, "),
        "examples": examples.sort_values("label", kind="stable")[list(task.text_columns)].to_numpy().tolist(),
        "notes": [note for note in (source.provenance.get("note"), *rows.notes) if note],
        "provenance": {**source.provenance, **made},
    }


def judge(bundle: Bundle, source: BundleSource, max_drop: float) -> dict[str, dict[str, Any]]:
    """Dev split -> rows, accuracies (bundle, pytorch, of the commonest label), agreement. Raises MethodRefused."""
    outputs, found = np.array([source.labels.index(label) for label in source.rows.data.task.labels]), {}
    for split, rows in source.rows.data.dev.items():
        texts = list(zip(*(rows[column] for column in source.rows.data.task.text_columns), strict=True))
        answers, said = (logits.argmax(axis=1) for logits in (bundle.logits(texts), source.logits[split]))
        right = outputs[np.asarray(rows["label"])]
        shares = {"bundle": answers == right, "pytorch": said == right, "agreement": answers == said}
        found[split] = {"rows": len(rows), **{name: float(np.mean(equal)) for name, equal in shares.items()}}
        found[split]["most_frequent"] = float(np.bincount(right).max() / len(rows))
        drop = 100 * (found[split]["pytorch"] - found[split]["bundle"])
        if drop > max_drop + 1e-9:
            lost = f"would lose {drop:.2f} points of accuracy on the {len(rows):,} rows of {split}"
            raise MethodRefused(f"the bundle {lost}, and --max-drop allows {max_drop:g}; add a qat step or allow more")
    return found


def describe_in_words(content: Mapping[str, Any]) -> str:
    """The bundle's README.txt."""
    text = Path(__file__).with_name("README.j2").read_text(encoding="utf-8")
    return Template(text, trim_blocks=True, keep_trailing_newline=True).render(content)


def _write(folder: Path, content: dict[str, Any]) -> None:
    files = {path.name: path.read_bytes() for path in sorted(folder.iterdir()) if path.name != BUNDLE_FILE}
    content["files"] = {name: {"bytes": len(it), "sha256": sha256(it).hexdigest()} for name, it in files.items()}
    write_json(folder / BUNDLE_FILE, content)
