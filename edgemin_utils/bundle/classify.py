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
import collections
import csv
import hashlib
import io
import json
import os
import platform
import sys
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, TextIO, cast

import numpy as np
import onnxruntime
import tokenizers

FORMAT_VERSION = 1
BUNDLE_FILE, MODEL_FILE, TOKENIZER_FILE = "bundle.json", "model.onnx", "tokenizer.json"
# Bytes read at once; rows and characters answered at once; bytes of the longest line.
BLOCK, WINDOW_ROWS, WINDOW_CHARACTERS, LONGEST_LINE = 2**16, 1024, 2**20, 2**20
# With more, rows share the scale of their numbers, and an answer depends a little on the rows beside it.
BATCH_SIZE = 1
# How far probabilities may lie from those of the machine that made the bundle: kernels differ between processors.
CHECK_TOLERANCE = 0.05

Row = tuple[str, ...]


class ClassifyError(Exception):
    """What is wrong with a bundle or with the rows, and the way out, in one sentence."""


class Bundle:
    """A bundle that has been checked and loaded.

    Args:
        folder: holds bundle.json, model.onnx and tokenizer.json.
        threads: of ONNX Runtime, 0 for all cores.

    Attributes:
        content: bundle.json.
        labels: names in the order of the model's outputs.
        text_columns: names of the one or two texts of a row.

    Raises:
        ClassifyError: a file is missing or not the one that was written, this program does not know the format, or
            onnxruntime is older than the model needs.
    """

    def __init__(self, folder: str | os.PathLike, threads: int = 1):
        self.folder = Path(folder)
        self.content = read_content(self.folder)
        self.labels: list[str] = self.content["labels"]
        self.text_columns: list[str] = self.content["text_columns"]
        check_runtime(self.content["provenance"]["minimum_onnxruntime"])
        # What is loaded are the very bytes that were checked.
        model, rules = (checked_bytes(self.folder, name, self.content) for name in (MODEL_FILE, TOKENIZER_FILE))
        os.environ.setdefault("TOKENIZERS_PARALLELISM", "false" if threads == 1 else "true")
        try:
            self._tokenizer = tokenizers.Tokenizer.from_str(rules.decode())
            self._session = onnxruntime.InferenceSession(
                model, session_options(threads), providers=["CPUExecutionProvider"]
            )
        except Exception as error:  # both libraries raise kinds of their own
            raise ClassifyError(
                f"{self.folder} cannot be loaded with onnxruntime {onnxruntime.__version__} and "
                f"tokenizers {tokenizers.__version__}: {str(error).splitlines()[0]}"
            ) from error

    def logits(self, rows: Sequence[Row], batch_size: int = BATCH_SIZE) -> np.ndarray:
        """The model's outputs, float32 (rows, labels), for rows of one or two texts. Rows of like length are computed
        together, at most `batch_size` of them."""
        pair = len(self.text_columns) == 2
        encoded = self._tokenizer.encode_batch_fast([row if pair else row[0] for row in rows])
        order = sorted(range(len(rows)), key=lambda place: len(encoded[place].ids))
        found = np.empty((len(rows), len(self.labels)), dtype=np.float32)
        for start in range(0, len(rows), batch_size):
            places = order[start : start + batch_size]
            found[places] = self._session.run(None, self._inputs([encoded[place] for place in places]))[0]
        return found

    def probabilities(self, rows: Sequence[Row], batch_size: int = BATCH_SIZE) -> np.ndarray:
        """Probability of every label, float64 (rows, labels)."""
        logits = self.logits(rows, batch_size).astype(np.float64)
        exponentials = np.exp(logits - logits.max(axis=1, keepdims=True))
        return exponentials / exponentials.sum(axis=1, keepdims=True)

    def run(self, inputs: dict[str, np.ndarray]) -> np.ndarray:
        """Logits of given token ids: int64 (batch, tokens) arrays by name; what the model does not take is left out."""
        return self._session.run(None, {name: inputs[name] for name in self.content["inputs"]})[0]

    def _inputs(self, encoded: Sequence[Any]) -> dict[str, np.ndarray]:
        """int64 (batch, tokens) arrays, padded to the longest row."""
        tokens = max(len(row.ids) for row in encoded)
        given = {
            "input_ids": np.full((len(encoded), tokens), self.content["pad_token_id"], dtype=np.int64),
            "attention_mask": np.zeros((len(encoded), tokens), dtype=np.int64),
            "token_type_ids": np.zeros((len(encoded), tokens), dtype=np.int64),
        }
        for number, row in enumerate(encoded):
            for name, values in (
                ("input_ids", row.ids),
                ("attention_mask", row.attention_mask),
                ("token_type_ids", row.type_ids),
            ):
                given[name][number, : len(row.ids)] = values
        return {name: given[name] for name in self.content["inputs"]}


# ---- what is checked before anything is loaded --------------------------------------------------------------------


def read_content(folder: Path) -> dict[str, Any]:
    """bundle.json. Raises ClassifyError if it is missing, damaged or of another format."""
    try:
        content = json.loads((folder / BUNDLE_FILE).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ClassifyError(f"{folder} holds no {BUNDLE_FILE}, so it is no bundle; check the path") from None
    except (OSError, ValueError) as error:
        raise ClassifyError(f"{folder / BUNDLE_FILE} is damaged ({error}); copy or make the bundle anew") from None
    version = content.get("format_version") if isinstance(content, dict) else None
    if version != FORMAT_VERSION:
        raise ClassifyError(
            f"{folder} is a bundle of format {version}, and this program reads {FORMAT_VERSION}; use "
            "the classify.py that lies in the bundle, or make the bundle anew"
        )
    needed = {
        "labels": list,
        "text_columns": list,
        "max_length": int,
        "inputs": list,
        "pad_token_id": int,
        "files": dict,
        "provenance": dict,
    }
    wrong = [name for name, kind in needed.items() if not isinstance(content.get(name), kind)]
    if wrong or "minimum_onnxruntime" not in content["provenance"]:
        raise ClassifyError(
            f"{folder / BUNDLE_FILE} lacks {', '.join(wrong) or 'minimum_onnxruntime'}; copy or make the bundle anew"
        )
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
        raise ClassifyError(
            f"{folder / name} is damaged: {len(found):,} bytes whose checksum is not that of the "
            f"{wanted.get('bytes', 0):,} bytes in {BUNDLE_FILE}; copy the bundle anew"
        )
    return found


def check_runtime(minimum: str) -> None:
    """Raises ClassifyError if the installed onnxruntime is older than `minimum`, as in "1.20"."""
    if _numbers(onnxruntime.__version__) < _numbers(minimum):
        raise ClassifyError(
            f"this bundle needs onnxruntime {minimum} or newer, and {onnxruntime.__version__} is "
            "installed; run: python -m pip install --upgrade onnxruntime"
        )


def _numbers(version: str) -> tuple[int, ...]:
    digits = ("".join(character for character in part if character.isdigit()) for part in version.split(".")[:3])
    return tuple(int(part or 0) for part in digits)


def session_options(threads: int) -> onnxruntime.SessionOptions:
    """How a bundle's graph is run: on so many threads (0 for all cores), which sleep between calls, with exact
    products."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
    options.log_severity_level = 4  # what fails is raised
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    # The exact way takes more than half as long again, so it is left to processors that need it.
    options.add_session_config_entry("session.x64quantprecision", "0" if _adds_in_32_bits() else "1")
    return options


def _adds_in_32_bits() -> bool:
    """Whether products of 8-bit integers are known to be added in 32 bits: everywhere but on x86 without VNNI, which
    adds pairs of them in 16 bits, where they may overflow. Systems that do not list what an x86 can are taken for one
    without."""
    if platform.machine().lower() not in ("x86_64", "amd64", "x86", "i386", "i686"):
        return True
    try:
        with open("/proc/cpuinfo", encoding="utf-8", errors="replace") as file:
            return "vnni" in file.read(BLOCK)
    except OSError:
        return False


# ---- rows ---------------------------------------------------------------------------------------------------------


class Lines:
    """Lines of a byte stream, decoded, as far as they have come; `number` is that of the last one given.

    Raises (while iterating):
        ClassifyError: a line is not UTF-8 or longer than LONGEST_LINE bytes.
    """

    def __init__(self, stream: io.BufferedIOBase):
        self.number = 0
        self._stream, self._rest, self._ended = stream, b"", False
        self._waiting: collections.deque[bytes] = collections.deque()

    @property
    def drained(self) -> bool:
        """Whether the next line would have to be waited for."""
        return not self._waiting

    def __iter__(self) -> Iterator[str]:
        return self

    def __next__(self) -> str:
        while not self._waiting:
            if self._ended:
                raise StopIteration
            self._read()
        self.number += 1
        line = self._waiting.popleft().removesuffix(b"\r")
        try:
            return line.decode("utf-8-sig" if self.number == 1 else "utf-8")
        except UnicodeDecodeError as error:
            raise ClassifyError(
                f"line {self.number} is not UTF-8 (byte {error.start + 1} is "
                f"0x{line[error.start]:02x}); convert the input to UTF-8, as with iconv"
            ) from None

    def _read(self) -> None:
        block = self._stream.read1(BLOCK)
        if block:
            *whole, self._rest = (self._rest + block).split(b"\n")
            self._waiting.extend(whole)
            if not whole and len(self._rest) > LONGEST_LINE:
                raise ClassifyError(
                    f"line {self.number + 1} is longer than {LONGEST_LINE:,} bytes; is this a text file?"
                )
        else:
            self._ended = True
            if self._rest:
                self._waiting.append(self._rest)


def tab_rows(lines: Lines, columns: Sequence[str]) -> Iterator[Row]:
    """One row a line: the whole line, or its two texts with a tab between them."""
    for line in lines:
        row = (line,) if len(columns) == 1 else tuple(line.split("\t"))
        if len(row) != len(columns):
            raise ClassifyError(
                f"line {lines.number} has {len(row)} column{'s' * (len(row) > 1)} where "
                f"{len(columns)} are needed: {' TAB '.join(columns)}"
            )
        yield row


def csv_rows(lines: Lines, columns: Sequence[str]) -> Iterator[Row]:
    """One row a record of CSV whose first record names the columns; blank lines are passed over."""
    csv.field_size_limit(LONGEST_LINE)
    records = csv.reader(f"{line}\n" for line in lines)
    try:
        header = next(records, [])
        absent = [name for name in columns if name not in header]
        if absent:
            raise ClassifyError(
                f"the CSV has no column {absent[0]!r}, only {', '.join(header) or 'none'}; name the "
                "text columns with --column"
            )
        places = [header.index(name) for name in columns]
        for record in records:
            if record and len(record) <= max(places):
                raise ClassifyError(f"line {lines.number} has {len(record)} columns where the header has {len(header)}")
            if record:
                yield tuple(record[place] for place in places)
    except csv.Error as error:
        raise ClassifyError(f"line {lines.number} cannot be read as CSV ({error})") from None


def windows(rows: Iterable[Row], lines: Lines) -> Iterator[list[Row]]:
    """Rows in groups: as many as have come, within bounds that keep memory constant. A row that cannot be read ends
    them, after those before it."""
    window: list[Row] = []
    characters = 0
    try:
        for row in rows:
            window.append(row)
            characters += sum(map(len, row))
            if lines.drained or len(window) == WINDOW_ROWS or characters >= WINDOW_CHARACTERS:
                yield window
                window, characters = [], 0
    except ClassifyError:
        if window:
            yield window
        raise
    if window:
        yield window


# ---- answers ------------------------------------------------------------------------------------------------------


def header_line(labels: Sequence[str]) -> str:
    """Names of the columns that `answer_lines` gives."""
    return "\t".join(["label", *map(_in_one_field, labels)]) + "\n"


def answer_lines(bundle: Bundle, rows: Sequence[Row], batch_size: int = BATCH_SIZE) -> str:
    """One line a row: its label and the probability of every label, separated by tabs."""
    return "".join(
        "\t".join([_in_one_field(bundle.labels[int(row.argmax())]), *(f"{value:.6f}" for value in row)]) + "\n"
        for row in bundle.probabilities(rows, batch_size)
    )


def _in_one_field(text: str) -> str:
    return " ".join(text.split())


def classify_stream(
    bundle: Bundle,
    source: io.BufferedIOBase,
    target: TextIO,
    as_csv: bool,
    columns: Sequence[str],
    batch_size: int,
    header: bool,
) -> None:
    """Writes an answer for every row of `source`, and writes out each window as soon as it is answered.

    Raises:
        ClassifyError: a row cannot be read; the rows before it have been answered.
    """
    if header:
        target.write(header_line(bundle.labels))
        target.flush()
    lines = Lines(source)
    rows = csv_rows(lines, columns) if as_csv else tab_rows(lines, columns)
    for window in windows(rows, lines):
        target.write(answer_lines(bundle, window, batch_size))
        target.flush()


def check(bundle: Bundle) -> str:
    """What `--check` prints. Raises ClassifyError if a file is damaged, or if the model answers otherwise here than
    where it was made."""
    for name in bundle.content["files"]:
        checked_bytes(bundle.folder, name, bundle.content)
    stored = bundle.content.get("check", {"texts": [], "probabilities": []})
    rows = [tuple(row) for row in stored["texts"]]
    apart = 0.0
    if rows:
        apart = float(np.abs(bundle.probabilities(rows, 1) - np.array(stored["probabilities"])).max())
    if not apart <= CHECK_TOLERANCE:
        raise ClassifyError(
            f"this model's probabilities lie {apart:.3f} from those of the machine that made it; this "
            "processor or this onnxruntime computes its integers otherwise"
        )
    size = sum(item["bytes"] for item in bundle.content["files"].values())
    return (
        f"{bundle.content['task']}: {len(bundle.content['files'])} files, {size / 1e6:.2f} MB, all as they were "
        f"written\nlabels: {', '.join(bundle.labels)}\ntexts of a row: {', '.join(bundle.text_columns)}\n"
        f"{len(rows)} texts answered as where the bundle was made (largest difference {apart:.4f})\n"
    )


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the program and gives its exit status: 0, 2 after an error in the input or bundle, 130 when stopped."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("file", nargs="?", default="-", help="rows to classify (default: standard input)")
    add(
        "--format",
        choices=("lines", "csv"),
        help="how rows are written (default: csv if the file's name ends in .csv, else lines)",
    )
    add(
        "--column",
        action="append",
        metavar="NAME",
        help="text column of a CSV, given once for each text of a row (default: those of the bundle)",
    )
    add(
        "--batch-size",
        type=_positive,
        default=BATCH_SIZE,
        metavar="N",
        help=f"rows of like length computed "
        f"together (default: {BATCH_SIZE}); more is faster, but then an answer depends a little on the rows beside it",
    )
    add("--threads", type=_threads, default=1, metavar="N", help="processor threads, 0 for all cores (default: 1)")
    add("--no-header", action="store_true", help="leave out the line that names the columns")
    add("--check", action="store_true", help="check every file and some answers, and classify nothing")
    add(
        "--bundle",
        default=str(Path(__file__).resolve().parent),
        metavar="DIR",
        help="the bundle (default: the folder of this program)",
    )
    options = parser.parse_args(arguments)
    try:
        return _run(options)
    except ClassifyError as error:
        print(f"classify: {error}", file=sys.stderr)
        return 2
    except BrokenPipeError:  # the reader of a pipe (head, less) had enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except OSError as error:
        print(f"classify: {error.strerror or error}{f': {error.filename}' if error.filename else ''}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130


def _run(options: argparse.Namespace) -> int:
    bundle = Bundle(options.bundle, options.threads)
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(encoding="utf-8", newline="\n")
    if options.check:
        sys.stdout.write(check(bundle))
        sys.stdout.flush()
        return 0
    columns = options.column or bundle.text_columns
    if len(columns) != len(bundle.text_columns):
        raise ClassifyError(
            f"--column names {', '.join(columns)}, and a row of this model has "
            f"{len(bundle.text_columns)}: {', '.join(bundle.text_columns)}"
        )
    as_csv = options.format == "csv" or (options.format is None and options.file.lower().endswith(".csv"))
    source = cast(io.BufferedReader, sys.stdin.buffer) if options.file == "-" else open(options.file, "rb")
    with source:
        classify_stream(bundle, source, sys.stdout, as_csv, columns, options.batch_size, not options.no_header)
    return 0


def _positive(text: str) -> int:
    if not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number of at least 1")
    return int(text)


def _threads(text: str) -> int:
    if not text.isdigit():
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number of at least 0")
    return int(text)


if __name__ == "__main__":
    sys.exit(main())
