"""Writing a bundle: the graph, the tokenizer, the program, and what was measured of them."""

import hashlib
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import tokenizers
import torch
from transformers import PreTrainedTokenizerBase

from edgemin_utils import __version__, quantization
from edgemin_utils.atomic_folders import partial_folder, replace_folder, storage_errors
from edgemin_utils.bundle import classify
from edgemin_utils.bundle.classify import BUNDLE_FILE, FORMAT_VERSION, MODEL_FILE, TOKENIZER_FILE, Bundle
from edgemin_utils.bundle.sources import BundleSource, share_right, stage_source, texts_of
from edgemin_utils.chain import main_path
from edgemin_utils.encoders import describe_model
from edgemin_utils.errors import MethodRefused, StorageError
from edgemin_utils.evaluation import predictor
from edgemin_utils.measurement.environment import describe_environment, int8_sentence
from edgemin_utils.measurement.latency import PROTOCOLS, Protocol, fixed_inputs, measure_latency
from edgemin_utils.measurement.parameters import stored_weights
from edgemin_utils.quantization.onnx_int4 import INT4_BLOCK
from edgemin_utils.records import Run, write_json
from edgemin_utils.tokenization import tokenize
from edgemin_utils.training import batches, model_inputs

# Raise it when a bundle is made differently, so that those made the old way count as stale.
METHOD_VERSION = 1
PROGRAM_FILE, README_FILE, BUNDLE_FOLDER = "classify.py", "README.md", "bundle"
DEFAULT_MAX_DROP = 1.0
# The operator that looks up tables of 4 bits came with this onnxruntime.
MINIMUM_VERSIONS = {"onnxruntime": "1.20", "tokenizers": "0.20", "numpy": "1.26"}
LENGTHS = (32, 128)
# Train rows that 4-bit matrices are fitted to, as many as the setting calibration_rows has in all profiles.
CALIBRATION_ROWS = 128
_BLOCK = f"for {INT4_BLOCK} weights"
_INT4_NOTE = (
    "; slower than with 8 bits, above all in a browser, where the matrices are unpacked in every call and "
    "answers differ a little"
)
BUNDLE, PYTORCH = "bundle", "pytorch"
# Texts of no one, answered when the bundle is made, so that another processor can be seen to answer alike.
CHECK_TEXTS = (
    ("this is good", "this is not good"),
    ("a long and dull evening", "the evening was short"),
    ("nobody knows why", "why does nobody know ?"),
)


def make_bundle(
    source: BundleSource,
    output: str | os.PathLike,
    max_drop: float = DEFAULT_MAX_DROP,
    protocol: Protocol = PROTOCOLS["quick"],
    matrix_bits: int = 8,
    embedding_bits: int = 8,
) -> dict[str, Any]:
    """Writes a bundle of a float model into `output`, anew, and gives the content of its bundle.json.

    Args:
        output: a folder that is not there, is empty, or holds a bundle, which is replaced when the new one is whole.
        max_drop: most percentage points of accuracy that the bundle may lose on any dev split.
        protocol: how long latency is measured.
        matrix_bits, embedding_bits: as of `quantization.edge_graph`.

    Raises:
        MethodRefused: the bundle loses more, or the model cannot be exported; nothing is left behind.
        SettingError: other bits than 8 or 4.
        StorageError: `output` holds something else, or cannot be written.
    """
    output = Path(output).expanduser().absolute()
    if output.exists() and not (output / BUNDLE_FILE).is_file() and not (output.is_dir() and not any(output.iterdir())):
        raise StorageError(f"{output} is there and holds no bundle; name another --output")
    with storage_errors(output), partial_folder(output) as partial:
        pair, rows = len(source.task.text_columns) == 2, calibration_inputs(source) if matrix_bits == 4 else []
        graph = quantization.edge_graph(source.model, source.max_length, pair, matrix_bits, embedding_bits, rows)
        (partial / MODEL_FILE).write_bytes(graph.SerializeToString())
        (partial / TOKENIZER_FILE).write_text(tokenizer_rules(source.tokenizer, source.max_length), encoding="utf-8")
        (partial / PROGRAM_FILE).write_bytes(Path(classify.__file__).read_bytes())
        content = _describe(
            source,
            [item.name for item in graph.graph.input],
            {"matrix_bits": matrix_bits, "embedding_bits": embedding_bits},
        )
        # Read as it will be read: what is judged is what lies on disk.
        write_json(partial / BUNDLE_FILE, {**content, "files": _files(partial)})
        bundle = Bundle(partial)
        accuracy = judge(bundle, source)
        refuse_drop(accuracy, max_drop)
        content["measured"] = {
            "accuracy": accuracy,
            "max_drop": max_drop,
            **_size(partial, source),
            **_latency(bundle, source, protocol),
        }
        content["check"] = _check(bundle)
        (partial / README_FILE).write_text(describe_in_words(content), encoding="utf-8")
        write_json(partial / BUNDLE_FILE, {**content, "files": _files(partial)})
        replace_folder(partial, output)
    return classify.read_content(output)


def bundle_chain(run: Run, max_drop: float = DEFAULT_MAX_DROP) -> dict[str, Any]:
    """The INT8 bundle of a chain's last float model, the one that the paper's path quantizes, in `bundle` beside the
    chain's stages; made only if the one on disk is not of these settings.

    Returns:
        the content of its bundle.json; {"refused": why} where it would lose more than `max_drop` points.
    """
    key, folder = main_path(run.settings)[-2], run.folder / BUNDLE_FOLDER
    # A bundle always says how long it takes; "none" leaves out the chain's own measuring.
    protocol = PROTOCOLS.get(run.settings.latency_protocol, PROTOCOLS["quick"])
    wanted = {"fingerprint": run.fingerprint(key), "method_version": METHOD_VERSION, "edgemin": __version__}
    try:
        content = Bundle(folder).content
        if (
            all(content["provenance"].get(name) == value for name, value in wanted.items())
            and content["measured"]["max_drop"] == max_drop
            and not _has_four_bits(content)
            and {row["protocol"] for row in content["measured"]["latency"]} in ({protocol.name}, {"full"})
        ):
            return content
    except classify.ClassifyError:
        pass
    try:
        return make_bundle(stage_source(run, run.read(key)), folder, max_drop, protocol)
    except MethodRefused as error:
        return {"refused": str(error)}


# ---- the files ----------------------------------------------------------------------------------------------------


def calibration_inputs(source: BundleSource, count: int = CALIBRATION_ROWS) -> list[dict[str, torch.Tensor]]:
    """The inputs of the first `count` train rows, one by one, int64 (1, tokens)."""
    chosen = source.train.select(range(min(count, len(source.train))))
    tokenized, _ = tokenize(chosen, source.tokenizer, source.task, source.max_length)
    return [model_inputs(source.model, batch) for _, batch in batches(tokenized, source.tokenizer, 1)]


def tokenizer_rules(tokenizer: PreTrainedTokenizerBase, max_length: int) -> str:
    """The tokenizer as tokenizer.json, cutting at `max_length` tokens (of a pair, the longer text first) and without
    padding."""
    rules = tokenizers.Tokenizer.from_str(tokenizer.backend_tokenizer.to_str())
    rules.enable_truncation(max_length, strategy="longest_first")
    rules.no_padding()
    return rules.to_str()


def _has_four_bits(content: Mapping[str, Any]) -> bool:
    described = content["models"][MODEL_FILE]
    return 4 in (described.get("matrix_bits"), described.get("embedding_bits"))


def _describe(source: BundleSource, inputs: list[str], bits: Mapping[str, int]) -> dict[str, Any]:
    environment = describe_environment()
    versions = {**environment["packages"], "tokenizers": tokenizers.__version__, "python": environment["python"]}
    return {
        "format_version": FORMAT_VERSION,
        "task": source.task.name,
        "text_columns": list(source.task.text_columns),
        "labels": list(source.labels),
        "max_length": source.max_length,
        "inputs": inputs,
        "pad_token_id": int(source.model.config.pad_token_id or 0),
        "models": {MODEL_FILE: {"what": what_is_stored(**bits), **bits}},
        "provenance": {
            **source.provenance,
            "edgemin": __version__,
            "method_version": METHOD_VERSION,
            "revision": environment["git_revision"],
            "versions": versions,
            "minimum_onnxruntime": MINIMUM_VERSIONS["onnxruntime"],
            "minimum_versions": MINIMUM_VERSIONS,
            "model": describe_model(source.model),
        },
    }


def what_is_stored(matrix_bits: int, embedding_bits: int) -> str:
    """One sentence on the model of a bundle."""
    matrices = "INT8, one scale an output" if matrix_bits == 8 else f"INT4, one scale and zero point {_BLOCK}"
    tables = (
        "INT8 embeddings, one scale a row"
        if embedding_bits == 8
        else f"INT4 word embeddings, one scale and zero point {_BLOCK}, and INT8 positions"
    )
    return f"{matrices}; {tables}; fused attention; for the CPU back ends of ONNX Runtime and of onnxruntime-web" + (
        _INT4_NOTE if matrix_bits == 4 else ""
    )


def _files(folder: Path) -> dict[str, dict[str, Any]]:
    """Name -> bytes and SHA-256 of every file but bundle.json."""
    found = {}
    for path in sorted(folder.iterdir()):
        if path.name != BUNDLE_FILE:
            content = path.read_bytes()
            found[path.name] = {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
    return found


def _check(bundle: Bundle) -> dict[str, Any]:
    texts = [pair[: len(bundle.text_columns)] for pair in CHECK_TEXTS]
    return {"texts": texts, "probabilities": bundle.probabilities(texts, 1).round(6)}


# ---- what is measured ---------------------------------------------------------------------------------------------


def judge(bundle: Bundle, source: BundleSource) -> dict[str, dict[str, Any]]:
    """Dev split -> rows, accuracy of the bundle and of the PyTorch model (shares), and agreement: the share of rows
    that both answer alike. Rows go through the bundle's own tokenizer and program."""
    found = {}
    for split, rows in source.dev.items():
        answers, before = bundle.logits(texts_of(rows, source.task)), source.logits[split]
        found[split] = {
            "rows": len(rows),
            BUNDLE: share_right(answers, rows["label"]),
            PYTORCH: share_right(before, rows["label"]),
            "agreement": float((answers.argmax(axis=1) == before.argmax(axis=1)).mean()),
            "largest_logit_difference": float(np.abs(answers - before).max()),
        }
    return found


def refuse_drop(accuracy: Mapping[str, Mapping[str, Any]], max_drop: float) -> None:
    """Raises MethodRefused if the bundle loses more than `max_drop` percentage points on a split."""
    for split, found in accuracy.items():
        drop = 100 * (found[PYTORCH] - found[BUNDLE])
        if drop > max_drop + 1e-9:
            raise MethodRefused(
                f"the bundle would lose {drop:.2f} points of accuracy on {split} ({100 * found[PYTORCH]:.2f} to "
                f"{100 * found[BUNDLE]:.2f} % of {found['rows']:,} rows), and --max-drop allows {max_drop:g}; train "
                "with a quantize-aware step, bundle another model, or allow more"
            )


def _size(folder: Path, source: BundleSource) -> dict[str, Any]:
    weights = stored_weights(source.model)
    return {"model_bytes": (folder / MODEL_FILE).stat().st_size, "weights": weights, "fp32_bytes": 4 * weights}


def _latency(bundle: Bundle, source: BundleSource, protocol: Protocol) -> dict[str, Any]:
    """Of one row at fixed lengths on one thread, the bundle and the PyTorch model in turns."""
    environment, in_torch, rows = describe_environment(), predictor(source.model), []
    for length in dict.fromkeys(min(length, source.max_length) for length in LENGTHS):
        inputs = fixed_inputs(1, length, source.model.config.vocab_size, token_type_ids=True)
        arrays = {name: value.numpy() for name, value in inputs.items()}
        timed = measure_latency(
            {BUNDLE: lambda given: bundle.run(given[0]), PYTORCH: lambda given: in_torch(given[1])},
            [(arrays, inputs)],
            1,
            protocol,
        )
        rows += [{"model": name, "input": f"1x{length}", **numbers} for name, numbers in timed.summary().items()]
    return {
        "latency": rows,
        "processor": environment["processor"],
        "processor_flags": [name for name, there in environment["processor_flags"].items() if there],
        "int8_note": int8_sentence(environment),
    }


# ---- README -------------------------------------------------------------------------------------------------------


def describe_in_words(content: Mapping[str, Any]) -> str:
    """The bundle's README.md: what it answers, how it is used, and what was measured."""
    columns, measured = content["text_columns"], content["measured"]
    example = (
        'echo "Some text." | python classify.py'
        if len(columns) == 1
        else r'printf "First text.\tSecond text.\n" | python classify.py'
    )
    packages = " ".join(f'"{name}>={version}"' for name, version in content["provenance"]["minimum_versions"].items())
    accuracy = [
        f"- {split}: {100 * found[BUNDLE]:.2f} % of {found['rows']:,} rows (the PyTorch model "
        f"{100 * found[PYTORCH]:.2f} %; {100 * found['agreement']:.2f} % answered alike)"
        for split, found in measured["accuracy"].items()
    ]
    latency = [
        f"- {row['input']}: {row['median_ms']:.2f} ms (IQR {row['iqr_ms']:.2f}, {row['runs']} runs, one thread)"
        for row in measured["latency"]
        if row["model"] == BUNDLE
    ]
    return "\n".join(
        [
            f"# Text classifier: {content['task']}",
            "",
            f"Takes {' and '.join(columns)}; answers with one of {', '.join(content['labels'])}. Texts are cut at "
            f"{content['max_length']} tokens.",
            "",
            f"    python -m pip install {packages}",
            f"    {example}",
            "    python classify.py FILE > labels.tsv",
            "    python classify.py --check",
            "",
            "`python classify.py --help` lists the options. `bundle.json` says where the model comes from and what was "
            "measured:",
            "",
            *accuracy,
            *latency,
            f"- model.onnx: {measured['model_bytes'] / 1e6:.2f} MB; the same weights in FP32 take "
            f"{measured['fp32_bytes'] / 1e6:.2f} MB",
            f"- in it: {content['models'][MODEL_FILE]['what']}",
            f"- measured on {measured['processor']}; {content['provenance']['rows']}",
            "",
        ]
    )
