"""Classifies text with the model in this folder: lines in, labels with probabilities out. Needs onnxruntime,
tokenizers and numpy, and nothing else.

    echo "A warm and clever film." | python classify.py
    python classify.py reviews.txt > labels.tsv
    python classify.py pairs.csv --column premise --column hypothesis > labels.tsv

A line is one row: its text, or two texts with a tab between them where the model takes a pair. A file whose name ends
in .csv is read as CSV with named columns. Each row gives one line, in the same order: the label and the probability of
every label, separated by tabs. Rows are answered as they come, in constant memory.
"""

import argparse
import csv
import hashlib
import io
import json
import os
import platform
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, BinaryIO, TextIO

import numpy as np
import onnxruntime
import tokenizers

FORMAT_VERSION = 2
BUNDLE_FILE, MODEL_FILE, TOKENIZER_FILE = "bundle.json", "model.onnx", "tokenizer.json"
LONGEST_LINE = 2**20  # bytes
CPU_FILE = Path("/proc/cpuinfo")
# How far probabilities may lie from those of the machine that made the bundle: sums are rounded in another order.
CHECK_TOLERANCE = 0.05
PARTS = {"input_ids": "ids", "attention_mask": "attention_mask", "token_type_ids": "type_ids"}
_NEEDED = {"labels": list, "text_columns": list, "max_length": int, "rules": dict, "files": dict}
Row = tuple[str, ...]


class ClassifyError(Exception):
    """What is wrong with a bundle or with the rows, and the way out, in one sentence."""


class Bundle:
    """A bundle that has been checked and loaded; `labels` are in the order of the outputs, 0 `threads` are all cores.
    Raises ClassifyError where a file is missing, not the one that was written, or cannot be loaded here."""

    def __init__(self, folder: str | os.PathLike, threads: int = 1):
        self.folder = Path(folder)
        self.content = read_content(self.folder)
        self.labels, self.text_columns = self.content["labels"], self.content["text_columns"]
        model, rules = (checked_bytes(self.folder, name, self.content) for name in (MODEL_FILE, TOKENIZER_FILE))
        os.environ.setdefault("TOKENIZERS_PARALLELISM", "false" if threads == 1 else "true")
        try:
            self.tokenizer = tokenizers.Tokenizer.from_str(rules.decode())
            self.tokenizer.enable_padding(pad_id=self.content["rules"].get("pad_token_id", 0))
            self.session = onnxruntime.InferenceSession(model, session_options(threads), ["CPUExecutionProvider"])
            self.names = [item.name for item in self.session.get_inputs()]
        except Exception as error:  # both libraries raise kinds of their own
            versions = f"onnxruntime {onnxruntime.__version__} (1.20 is needed), tokenizers {tokenizers.__version__}"
            raise ClassifyError(f"{self.folder} fails to load with {versions}: {str(error).splitlines()[0]}") from error

    def logits(self, rows: Sequence[Row], batch_size: int = 1) -> np.ndarray:
        """The model's outputs, float32 (rows, labels). At most `batch_size` rows of like length are computed together;
        with more than one, an answer depends a little on the rows beside it."""
        order = sorted(range(len(rows)), key=lambda place: sum(map(len, rows[place])))
        found = np.empty((len(rows), len(self.labels)), dtype=np.float32)
        for start in range(0, len(rows), batch_size):
            places = order[start : start + batch_size]
            texts = [rows[place] if len(rows[place]) > 1 else rows[place][0] for place in places]
            some = self.tokenizer.encode_batch_fast(texts)
            inputs = {name: np.array([getattr(row, PARTS[name]) for row in some], np.int64) for name in self.names}
            found[places] = self.session.run(None, inputs)[0]
        return found

    def probabilities(self, rows: Sequence[Row], batch_size: int = 1) -> np.ndarray:
        """Probability of every label, float64 (rows, labels)."""
        logits = self.logits(rows, batch_size).astype(np.float64)
        exponentials = np.exp(logits - logits.max(axis=1, keepdims=True))
        return exponentials / exponentials.sum(axis=1, keepdims=True)


def read_content(folder: Path) -> dict[str, Any]:
    """bundle.json. Raises ClassifyError if it is missing, damaged or of another format."""
    path = folder / BUNDLE_FILE
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        raise ClassifyError(f"{folder} holds no {BUNDLE_FILE}, so it is no bundle; check the path") from None
    except (OSError, ValueError) as error:
        raise ClassifyError(f"{path} is damaged ({error}); copy or make the bundle anew") from None
    version = content.get("format_version") if isinstance(content, dict) else None
    if version != FORMAT_VERSION:
        said = f"is a bundle of format {version}, and this program reads {FORMAT_VERSION}"
        raise ClassifyError(f"{folder} {said}; use the classify.py in the bundle, or make the bundle anew")
    if wrong := [name for name, kind in _NEEDED.items() if not isinstance(content.get(name), kind)]:
        raise ClassifyError(f"{path} lacks {', '.join(wrong)}; copy or make the bundle anew")
    return content


def checked_bytes(folder: Path, name: str, content: dict[str, Any]) -> bytes:
    """A file's bytes. Raises ClassifyError if they are not those that bundle.json names."""
    wanted = content["files"].get(name)
    if not isinstance(wanted, dict) or Path(name).name != name:
        raise ClassifyError(f"{folder / BUNDLE_FILE} does not list {name}; copy or make the bundle anew")
    try:
        found = (folder / name).read_bytes()
    except OSError as error:
        raise ClassifyError(f"{folder / name} cannot be read ({error.strerror}); copy the bundle anew") from None
    if hashlib.sha256(found).hexdigest() != wanted.get("sha256"):
        raise ClassifyError(f"{folder / name} is damaged: {BUNDLE_FILE} has another checksum; copy the bundle anew")
    return found


def session_options(threads: int) -> onnxruntime.SessionOptions:
    """As quantization/sessions.py: so many threads (0: all cores), which sleep between calls, and exact products."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
    options.log_severity_level = 4  # what fails is raised
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    # On x86 without VNNI, pairs of products are added in 16 bits and may overflow; the exact way takes longer.
    listed = CPU_FILE.read_text(encoding="utf-8", errors="replace") if CPU_FILE.is_file() else ""
    exact = platform.machine().lower() in ("x86_64", "amd64", "x86", "i386", "i686") and "vnni" not in listed
    options.add_session_config_entry("session.x64quantprecision", "1" if exact else "0")
    return options


def read_lines(stream: BinaryIO) -> Iterator[tuple[int, str]]:
    """Number and text of every line. Raises ClassifyError at a bad one."""
    for number, line in enumerate(iter(lambda: stream.readline(LONGEST_LINE + 1), b""), start=1):
        if len(line) > LONGEST_LINE:
            raise ClassifyError(f"line {number} is longer than {LONGEST_LINE:,} bytes; is this a text file?")
        try:
            text = line.decode("utf-8-sig" if number == 1 else "utf-8")
        except UnicodeDecodeError as error:
            said = f"line {number} is not UTF-8 (byte {error.start + 1} is 0x{line[error.start]:02x})"
            raise ClassifyError(f"{said}; convert the input, as with iconv -f latin1 -t utf-8") from None
        yield number, text.removesuffix("\n").removesuffix("\r")


def tab_rows(stream: BinaryIO, columns: Sequence[str]) -> Iterator[Row]:
    """One row a line: the whole line, or its two texts with a tab between them. Raises ClassifyError for others."""
    for number, line in read_lines(stream):
        row = (line,) if len(columns) == 1 else tuple(line.split("\t"))
        if len(row) != len(columns):
            raise ClassifyError(f"line {number} has {len(row)} columns, not {len(columns)}: {' TAB '.join(columns)}")
        yield row


def csv_rows(stream: BinaryIO, columns: Sequence[str]) -> Iterator[Row]:
    """One row a record of CSV whose first record names the columns, without blank lines. Raises ClassifyError."""
    csv.field_size_limit(LONGEST_LINE)
    records = csv.reader(f"{text}\n" for _, text in read_lines(stream))
    try:
        header = [name.strip() for name in next(records, [])]
        if absent := [name for name in columns if name not in header]:
            named = f"no column {absent[0]!r}, only {', '.join(header) or 'none'}"
            raise ClassifyError(f"the CSV has {named}; name the text columns with --column")
        places = [header.index(name) for name in columns]
        for record in filter(None, records):
            if len(record) <= max(places):
                raise ClassifyError(f"line {records.line_num} has {len(record)} columns, the header {len(header)}")
            yield tuple(record[place] for place in places)
    except csv.Error as error:
        raise ClassifyError(f"line {records.line_num} cannot be read as CSV ({error})") from None


def answer_lines(bundle: Bundle, rows: Sequence[Row], batch_size: int = 1, header: bool = False) -> str:
    """One line a row: its label and the probability of every label, separated by tabs; a header names them."""
    labels = [" ".join(label.split()) for label in bundle.labels]
    lines = [["label", *labels]] if header else []
    for row in bundle.probabilities(rows, batch_size):
        lines.append([labels[row.argmax()], *(f"{value:.6f}" for value in row)])
    return "".join("\t".join(line) + "\n" for line in lines)


def classify_stream(
    bundle: Bundle, source: BinaryIO, target: TextIO, as_csv: bool, columns: Sequence[str], batch_size: int = 1
) -> None:
    """Answers a file in blocks, and the rows of a pipe as they come, or as many as are computed together. Raises
    ClassifyError where one cannot be read, after the answers before it."""
    rows, together = list[Row](), 512 if source.seekable() else batch_size
    try:
        for row in (csv_rows if as_csv else tab_rows)(source, columns):
            rows.append(row)
            if len(rows) == together:
                target.write(answer_lines(bundle, rows, batch_size))
                target.flush()
                rows.clear()
    finally:
        target.write(answer_lines(bundle, rows, batch_size))


def predict_texts(folder: str | os.PathLike, texts: Sequence[str], threads: int = 1) -> str:
    """What a bundle answers to rows of one text or, in turns, two. Raises ClassifyError."""
    bundle = Bundle(folder, threads)
    count, named = len(bundle.text_columns), ", ".join(bundle.text_columns)
    if len(texts) % count:
        raise ClassifyError(f"a row of this bundle has {count} texts ({named}), and {len(texts)} were given")
    if wrong := [text for text in texts if text.encode(errors="ignore").decode() != text]:
        raise ClassifyError(f"{wrong[0]!r} is not UTF-8; convert it, as with iconv")
    rows = [tuple(texts[start : start + count]) for start in range(0, len(texts), count)]
    return answer_lines(bundle, rows, header=True)


def check(bundle: Bundle) -> str:
    """What `--check` prints. Raises ClassifyError if a file is damaged, or the model answers otherwise than it did."""
    content, stored = bundle.content, bundle.content.get("check", {"texts": [], "probabilities": []})
    size, apart = sum(len(checked_bytes(bundle.folder, name, content)) for name in content["files"]) / 1e6, 0.0
    if rows := [tuple(row) for row in stored["texts"]]:
        apart = float(np.abs(bundle.probabilities(rows) - np.array(stored["probabilities"])).max())
    if not apart <= CHECK_TOLERANCE:
        said = f"this model's probabilities lie {apart:.3f} from those of the machine that made it"
        raise ClassifyError(f"{said}; this processor or this onnxruntime computes its integers otherwise")
    return (
        f"{content.get('task', 'model')}: {len(content['files'])} files, {size:.2f} MB, all as they were written\n"
        f"labels: {', '.join(bundle.labels)}\ntexts of a row: {', '.join(bundle.text_columns)}\n"
        f"{len(rows)} texts answered as where the bundle was made (largest difference {apart:.4f})\n"
    )


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the program; its exit status is 0, 2 after an error in the input or bundle, or 130 when stopped."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("file", nargs="?", default="-", help="rows to classify (default: standard input)")
    add("--format", choices=("lines", "csv"), help="how rows are written (default: by the file's name)")
    add("--column", action="append", metavar="NAME", help="text column of a CSV, once for each text of a row")
    add("--batch-size", type=int, default=1, metavar="N", help="rows computed together, faster, a little less exact")
    add("--threads", type=int, default=1, metavar="N", help="processor threads, 0 for all cores (default: 1)")
    add("--check", action="store_true", help="check every file and some answers, and classify nothing")
    add("--bundle", default=Path(__file__).resolve().parent, metavar="DIR", help="the bundle (default: this folder)")
    for stream in (sys.stdout, sys.stderr):  # a label or a file's name need not fit the terminal's encoding
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace", newline="\n")
    options = parser.parse_args(arguments)
    try:
        _run(options)
        return 0
    except ClassifyError as error:
        print(f"classify: {error}", file=sys.stderr)
    except BrokenPipeError:  # the reader of a pipe (head, less) had enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except OSError as error:
        print(f"classify: {error.strerror or error}{f': {error.filename}' if error.filename else ''}", file=sys.stderr)
    except KeyboardInterrupt:
        return 130
    return 2


def _run(options: argparse.Namespace) -> None:
    bundle = Bundle(options.bundle, options.threads)
    if options.check:
        sys.stdout.write(check(bundle))
        return
    columns = options.column or bundle.text_columns
    if len(columns) != len(bundle.text_columns):
        raise ClassifyError(f"--column names {', '.join(columns)}; this model takes {', '.join(bundle.text_columns)}")
    as_csv = options.format == "csv" or (options.format is None and options.file.lower().endswith(".csv"))
    with sys.stdin.buffer if options.file == "-" else open(options.file, "rb") as source:
        sys.stdout.write(answer_lines(bundle, [], header=True))
        sys.stdout.flush()
        classify_stream(bundle, source, sys.stdout, as_csv, columns, max(1, options.batch_size))


if __name__ == "__main__":
    sys.exit(main())
