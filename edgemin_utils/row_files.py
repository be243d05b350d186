"""Reading one file of rows (TSV, CSV, JSONL or parquet) strictly: what does not fit is an error that names the place.

TSV is read as GLUE writes it: tab-separated, one row a line, quotation marks are ordinary text. CSV follows the
usual quoting, in which a quoted field may hold commas and line ends.
"""

import csv
import io
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgemin_utils.config import nearest
from edgemin_utils.errors import DataError


@dataclass(frozen=True)
class RowFile:
    """The rows of one file.

    Attributes:
        name: the file, as messages name it.
        columns: column name -> one value a row.
        places: line number (from 1) on which each row begins, or None where a file has rows but no lines.
    """

    name: str
    columns: dict[str, list[Any]]
    places: Sequence[int] | None = None

    def __len__(self) -> int:
        return len(next(iter(self.columns.values()), ()))

    def place(self, index: int) -> str:
        """Where row `index` stands, for messages: its line, or its number counted from 0."""
        return f"row {index}" if self.places is None else f"line {self.places[index]}"

    def find_column(self, names: Sequence[str]) -> str:
        """The first of `names` that is a column.

        Raises:
            DataError: none is; the message names the columns there and the nearest one.
        """
        for name in names:
            if name in self.columns:
                return name
        there = ", ".join(map(repr, self.columns))
        hint = nearest(names[0], self.columns)
        hint = f"; {hint}" if hint.startswith("did you mean") else ""
        if len(self.columns) == 1 and any(mark in there for mark in (";", "\\t", "|")):
            hint = "; its fields seem to be separated by something else than its file name ending says"
        wanted = " or ".join(map(repr, names))
        raise DataError(f"{self.name}: no column {wanted}; the columns there are {there}{hint}")


def check_file(path: Path) -> Path:
    """`path`, if it is a file of a kind that `read_rows` reads.

    Raises:
        DataError: it is missing, a folder, or of another kind.
    """
    if not path.exists():
        raise DataError(f"no file {path}")
    if not path.is_file():
        raise DataError(f"{path} is not a file")
    if path.suffix.lower() not in READERS:
        raise DataError(
            f"{path}: cannot read files ending in {path.suffix or 'nothing'!r}; give one of {', '.join(READERS)}"
        )
    return path


def read_rows(path: Path) -> RowFile:
    """All rows of a TSV, CSV, JSONL (one JSON object a line) or parquet file, by the file name's ending.

    Raises:
        DataError: the file is missing, empty, without rows, not UTF-8 (the byte offset is given), or a row does not
            have the header's number of fields (the line is given).
    """
    try:
        rows = READERS[check_file(path).suffix.lower()](path)
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror or error}") from None
    if not len(rows):
        raise DataError(f"{path} has a header but no rows" if rows.columns else f"{path} is empty")
    return rows


def label_text(value: Any) -> str:
    """A label as text: without surrounding blanks, whole numbers without decimals, "" when there is none."""
    if value is None or value != value:  # NaN is the one value that differs from itself
        return ""
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    return str(value).strip()


def _read_text(path: Path) -> str:
    content = path.read_bytes()
    try:
        text = content.decode("utf-8")
    except UnicodeDecodeError as error:
        raise DataError(
            f"{path} is not UTF-8: byte {content[error.start]:#04x} at offset {error.start}; save it as UTF-8"
        ) from None
    if "\0" in text:
        raise DataError(
            f"{path} holds a NUL byte at offset {content.index(0)}; is it UTF-16 or not a text file? Save "
            "it as UTF-8 text"
        )
    return text.removeprefix("\ufeff")


def _lines(text: str) -> list[str]:
    # str.splitlines would also cut at form feeds and Unicode line separators, which are text here.
    return [line.removesuffix("\r") for line in text.split("\n")]


def _read_tsv(path: Path) -> RowFile:
    records = ((number, line.split("\t")) for number, line in enumerate(_lines(_read_text(path)), start=1) if line)
    return _from_records(path, records)


def _read_csv(path: Path) -> RowFile:
    return _from_records(path, _csv_records(path))


def _csv_records(path: Path) -> Iterable[tuple[int, list[str]]]:
    reader = csv.reader(io.StringIO(_read_text(path), newline=""), strict=True)
    start = 1
    try:
        for record in reader:
            if record:
                yield start, record
            start = reader.line_num + 1
    except csv.Error as error:
        raise DataError(
            f"{path}: the row that begins on line {start} is not CSV ({error}); is a quotation mark left "
            "open or not doubled?"
        ) from None


def _from_records(path: Path, records: Iterable[tuple[int, list[str]]]) -> RowFile:
    records = iter(records)
    _, header = next(records, (0, []))
    repeated = {name for name in header if header.count(name) > 1}
    if repeated:
        raise DataError(f"{path}: column {min(repeated)!r} stands more than once in the header")
    places, rows = [], []
    for line, record in records:
        if len(record) != len(header):
            raise DataError(f"{path}, line {line}: {len(record)} fields where the header has {len(header)}")
        places.append(line)
        rows.append(record)
    values = zip(*rows, strict=True) if rows else ([] for _ in header)
    return RowFile(str(path), {name: list(column) for name, column in zip(header, values, strict=True)}, places)


def _read_jsonl(path: Path) -> RowFile:
    places, records = [], []
    for number, line in enumerate(_lines(_read_text(path)), start=1):
        if not line.strip():
            continue
        try:
            record = json.loads(line)
            json.dumps(record, ensure_ascii=False).encode()  # half an escaped surrogate pair is no text
        except ValueError as error:
            raise DataError(f"{path}, line {number}: not a JSON object on one line ({error})") from None
        if not isinstance(record, dict):
            raise DataError(
                f"{path}, line {number}: a JSON {type(record).__name__}, where an object such as "
                '{"text": "...", "label": "..."} is needed'
            )
        places.append(number)
        records.append(record)
    names = dict.fromkeys(name for record in records for name in record)
    return RowFile(str(path), {name: [record.get(name) for record in records] for name in names}, places)


def _read_parquet(path: Path) -> RowFile:
    import pyarrow
    import pyarrow.parquet

    try:
        table = pyarrow.parquet.read_table(path)
    except pyarrow.ArrowException as error:
        raise DataError(f"{path} is not a readable parquet file ({str(error).splitlines()[0]})") from None
    return RowFile(str(path), table.to_pydict())


READERS = {".tsv": _read_tsv, ".csv": _read_csv, ".jsonl": _read_jsonl, ".json": _read_jsonl, ".parquet": _read_parquet}
