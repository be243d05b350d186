"""Writing a bundle: the graph, the tokenizer, the program, and how near their answers come to the float model's."""

import contextlib
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, cast

import numpy as np
import tokenizers
from transformers import PreTrainedTokenizerBase

from edgemin_utils import __version__
from edgemin_utils.bundle import classify
from edgemin_utils.bundle.classify import BUNDLE_FILE, MODEL_FILE, TOKENIZER_FILE, Bundle
from edgemin_utils.bundle.sources import BundleSource
from edgemin_utils.environment import describe_environment
from edgemin_utils.errors import MethodRefused, SettingError, StorageError
from edgemin_utils.names import METHODS
from edgemin_utils.quantization.onnx_schemes import OnnxClassifier
from edgemin_utils.quantization.schemes import quantize, stored_sizes
from edgemin_utils.training import batches, model_inputs

SCHEMES = [name for name in METHODS if name.startswith("edge-")]
AGREEMENT = 0.99  # share of dev rows that bundle and float model are to answer alike; where they do not, it is said
# Texts of no one, answered when the bundle is made, so that another processor can be seen to answer alike.
CHECK_TEXTS = (("this is good", "this is not good"), ("nobody knows why", "why does nobody know ?"))


def make_bundle(
    source: BundleSource, output: str | os.PathLike, scheme: str = "", max_drop: float = 1.0
) -> dict[str, Any]:
    """Writes a bundle into `output`, in place of an older one, and gives its bundle.json. Raises MethodRefused where it
    loses more than `max_drop` percentage points of accuracy on a dev split or cannot be exported, SettingError for no
    scheme of `SCHEMES`, StorageError where `output` holds something else or cannot be written."""
    scheme = scheme or source.scheme or "edge-int8"
    if scheme not in SCHEMES:
        raise SettingError(f"a bundle cannot be made by scheme {scheme!r}; choose one of {', '.join(SCHEMES)}")
    with _new_folder(Path(output).expanduser().absolute()) as folder:
        (folder / MODEL_FILE).write_bytes(_graph(source, scheme))
        rules = tokenizer_rules(source.rows.tokenizer, source.rows.limit)
        (folder / TOKENIZER_FILE).write_text(rules, encoding="utf-8")
        (folder / "classify.py").write_bytes(Path(classify.__file__).read_bytes())
        content = _describe(source, scheme)
        _write(folder, content)
        bundle = Bundle(folder)  # read as it will be read: what is judged is what lies on disk
        content["measured"] = {"accuracy": judge(bundle, source, max_drop), "max_drop": max_drop}
        for split, found in content["measured"]["accuracy"].items():
            if found["agreement"] < AGREEMENT:
                content["notes"].append(f"{split}: only {100 * found['agreement']:.1f} % of rows are answered alike")
        rows = [texts[: len(bundle.text_columns)] for texts in CHECK_TEXTS]
        content["check"] = {"texts": rows, "probabilities": bundle.probabilities(rows).round(6).tolist()}
        weights = sum(count for count, _ in stored_sizes(source.model).values())
        content["measured"] |= {"model_bytes": (folder / MODEL_FILE).stat().st_size, "fp32_bytes": 4 * weights}
        (folder / "README.txt").write_text(describe_in_words(content), encoding="utf-8")
        _write(folder, content)
    return classify.read_content(Path(output).expanduser())


def _graph(source: BundleSource, scheme: str) -> bytes:
    if source.graph is not None and scheme == source.scheme:
        return (source.graph / MODEL_FILE).read_bytes()
    one_by_one = batches(source.rows.train, source.rows.tokenizer, 1)
    inputs = [model_inputs(source.model, batch) for _, batch in one_by_one]
    return cast(bytes, cast(OnnxClassifier, quantize(source.model, scheme, inputs, source.rows.limit)).graph)


def tokenizer_rules(tokenizer: PreTrainedTokenizerBase, limit: int) -> str:
    """The tokenizer as tokenizer.json, cutting at `limit` tokens as in training, without padding."""
    rules = tokenizers.Tokenizer.from_str(tokenizer.backend_tokenizer.to_str())
    rules.enable_truncation(limit, strategy="longest_first", direction=tokenizer.truncation_side)
    rules.no_padding()
    return rules.to_str()


def _describe(source: BundleSource, scheme: str) -> dict[str, Any]:
    environment, rows = describe_environment(), source.rows
    made = {"edgemin": __version__, "revision": environment["git_revision"], "versions": environment["packages"]}
    examples: dict[int, list[tuple[str, ...]]] = {}  # rows of one's own stay out of a bundle
    main = rows.data.dev[rows.task.main_dev_split] if source.synthetic else {}
    for texts, label in zip(_texts(source, main), main["label"], strict=True) if main else ():
        examples.setdefault(label, []).append(texts)
    return {
        "format_version": classify.FORMAT_VERSION,
        "task": rows.task.name,
        "text_columns": list(rows.task.text_columns),
        "labels": list(source.labels),
        "max_length": rows.limit,
        "rules": {"truncation_side": rows.tokenizer.truncation_side, "pad_token_id": rows.tokenizer.pad_token_id},
        "scheme": scheme,
        "what": METHODS[scheme].meaning.split(": ")[-1].removeprefix("the same, "),
        "synthetic": source.synthetic,
        "examples": [texts for label in sorted(examples) for texts in examples[label][:2]],
        "notes": [one for one in (source.provenance.get("note", ""), *rows.notes) if one not in ("", *rows.data.notes)],
        "provenance": {**source.provenance, **made},
    }


def _texts(source: BundleSource, rows: Any) -> list[tuple[str, ...]]:
    return list(zip(*(rows[column] for column in source.rows.task.text_columns), strict=True))


def judge(bundle: Bundle, source: BundleSource, max_drop: float) -> dict[str, dict[str, Any]]:
    """Dev split -> rows, accuracy of the bundle and of the PyTorch model, and the share of rows that both answer alike.
    Raises MethodRefused where more than `max_drop` percentage points are lost."""
    outputs, found = np.array([source.labels.index(label) for label in source.rows.task.labels]), {}
    for split, rows in source.rows.data.dev.items():
        logits, before = bundle.logits(_texts(source, rows)), source.logits[split]
        right, answers, said = outputs[np.asarray(rows["label"])], logits.argmax(axis=1), before.argmax(axis=1)
        shares = {"bundle": answers == right, "pytorch": said == right, "agreement": answers == said}
        found[split] = {"rows": len(rows), **{name: float(np.mean(equal)) for name, equal in shares.items()}}
        found[split]["largest_logit_difference"] = float(np.abs(logits - before).max())
        drop = 100 * (found[split]["pytorch"] - found[split]["bundle"])
        if drop > max_drop + 1e-9:
            lost = f"{drop:.2f} points of accuracy on the {len(rows):,} rows of {split}"
            way = "train with a qat step, bundle another model, or allow more"
            raise MethodRefused(f"the bundle would lose {lost}, and --max-drop allows {max_drop:g}; {way}")
    return found


def describe_in_words(content: Mapping[str, Any]) -> str:
    """The bundle's README.txt."""
    columns, measured = " and ".join(content["text_columns"]), content["measured"]
    megabytes = {name: f"{measured[f'{name}_bytes'] / 1e6:.2f} MB" for name in ("model", "fp32")}
    side = {"left": "left (their beginning goes)", "right": "right"}[content["rules"]["truncation_side"]]
    lines = [
        f"Text classifier: {content['task']}\n\nTakes {columns}; answers with one of {', '.join(content['labels'])}.",
        f"Texts are cut at {content['max_length']} tokens, on the {side}. FILE holds a row a line.\n",
        '    python -m pip install "onnxruntime>=1.20" "tokenizers>=0.20" "numpy>=1.26"',
        "    python classify.py FILE > labels.tsv\n    python classify.py --help\n",
    ]
    for split, found in measured["accuracy"].items():
        shares = {name: f"{100 * found[name]:.2f} %" for name in ("bundle", "pytorch", "agreement")}
        told = f"(the PyTorch model {shares['pytorch']}; {shares['agreement']} answered alike)"
        lines.append(f"- {split}: {shares['bundle']} of {found['rows']:,} rows {told}")
    lines.append(f"- {MODEL_FILE}: {megabytes['model']}, {content['what']}; in FP32 {megabytes['fp32']}")
    return "\n".join([*lines, *(f"- {note}" for note in (content["provenance"]["rows"], *content["notes"])), ""])


def _write(folder: Path, content: dict[str, Any]) -> None:
    files = {path.name: path.read_bytes() for path in sorted(folder.iterdir()) if path.name != BUNDLE_FILE}
    sums = {name: {"bytes": len(found), "sha256": hashlib.sha256(found).hexdigest()} for name, found in files.items()}
    content["files"] = sums
    (folder / BUNDLE_FILE).write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


@contextlib.contextmanager
def _new_folder(final: Path) -> Iterator[Path]:
    if final.exists() and not (final / BUNDLE_FILE).is_file() and not (final.is_dir() and not any(final.iterdir())):
        raise StorageError(f"{final} is there and holds no bundle; name another --output")
    try:
        final.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=final.parent, prefix=f".{final.name}.partial-") as partial:
            (made := Path(partial, "bundle")).mkdir()
            yield made
            shutil.rmtree(final, ignore_errors=True)
            made.rename(final)
    except OSError as error:
        raise StorageError(f"{final} cannot be written ({error.strerror}); name another --output") from error
