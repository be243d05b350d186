"""Tables as people bring them, each row with the line it stands on. Separated text goes through Python's csv: pandas
fills or shifts rows whose number of fields is off, and no longer knows on which line a row stood."""

import csv
import functools
import io
import json
import warnings
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgemin_utils.errors import DataError, SettingError
from edgemin_utils.settings import nearest

csv.field_size_limit(2**31 - 1)  # a text may be longer than csv's 131,072 characters


@dataclass(frozen=True)
class Table:
    """Named columns of equal length; `lines` holds the line (from 1) on which each row begins, where there are any."""

    name: str
    columns: dict[str, list[Any]]
    lines: Sequence[int] | None = None

    def __len__(self) -> int:
        return len(next(iter(self.columns.values()), ()))

    def place(self, index: int) -> str:
        """File and line of row `index`, for messages, or its number counted from 0 where there are no lines."""
        return f"{self.name}, " + (f"row {index}" if self.lines is None else f"line {self.lines[index]}")

    def find(self, *names: str) -> str:
        """The first of `names` that is a column; raises DataError, with what is there and the way out, if none is."""
        for name in names:
            if name in self.columns:
                return name
        there, hint, seen = ", ".join(map(repr, self.columns)), nearest(names[0], self.columns), self.columns.items()
        said = f"the columns there are {there}" + f"; {hint}" * hint.startswith("did you mean")
        if any(len(name) > 60 or name.replace(".", "", 1).isdigit() or name in values[:1000] for name, values in seen):
            example = ",".join(f"column{number + 1}" for number in range(len(self.columns)))
            said = f"the first row looks like data ({there}); write names above it, such as {example}"
        raise DataError(f"{self.name}: no column {' or '.join(map(repr, names))}; {said}")


def read_table(paths: Sequence[Path], encoding: str = "utf-8") -> Table:
    """All rows of a table, which may lie in several files (shards). Raises DataError where one is missing, empty, in
    another encoding or damaged, SettingError for an unknown encoding."""
    tables = []
    for path in paths:
        if not path.is_file():
            raise DataError(f"{path} is not a file" if path.exists() else f"no file {path}")
        if path.suffix.lower() not in READERS:
            raise DataError(f"{path}: cannot read files ending so; save it as CSV, or as {', '.join(READERS)}")
        tables.append(_read(path, encoding, path.stat().st_size, path.stat().st_mtime_ns))
    if len(tables) == 1:
        return tables[0]
    names = tables[0].columns
    columns = {name: [value for table in tables for value in table.columns[table.find(name)]] for name in names}
    return Table(f"{paths[0]} and {len(paths) - 1} more", columns)


@functools.lru_cache(maxsize=4)
def _read(path: Path, encoding: str, size: int, modified: int) -> Table:
    try:  # size and time of change are part of the key, so that an edited file is read again
        table = READERS[path.suffix.lower()](path, encoding)
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror or error}") from None
    if not len(table):
        raise DataError(f"{path} has a header but no rows" if table.columns else f"{path} is empty")
    return table


def _read_lines(path: Path, encoding: str) -> tuple[str, list[tuple[int, str]]]:
    """Text, and lines that are not blank with their numbers."""
    content = path.read_bytes()
    try:
        text = content.decode(encoding).removeprefix("\ufeff")
    except LookupError:
        raise SettingError(f"encoding is {encoding!r}, which Python does not know; take utf-8 or latin-1") from None
    except UnicodeError as error:
        start, other = getattr(error, "start", 0), "utf-16" if content[:2] in (b"\xff\xfe", b"\xfe\xff") else "latin-1"
        wrong = f"{path} is not {encoding.upper()}: byte {content[start]:#04x} at offset {start}"
        raise DataError(f"{wrong}; save it as UTF-8, or say what it is, as in --set encoding={other}") from None
    if "\0" in text:
        raise DataError(f"{path} holds a NUL byte; if it is UTF-16, give --set encoding=utf-16; else it is no text")
    # str.splitlines would also cut at form feeds and Unicode line separators, which are text here.
    return text, [(at, line.removesuffix("\r")) for at, line in enumerate(text.split("\n"), 1) if line.strip()]


def _read_separated(path: Path, encoding: str) -> Table:
    """TSV as GLUE writes it (a tab, one row a line, quotation marks are text), everything else with usual quoting."""
    text, lines = _read_lines(path, encoding)
    usual, head = "\t" if path.suffix.lower() == ".tsv" else ",", lines[0][1] if lines else ""
    delimiter = max(usual + ";\t|,", key=lambda mark: (mark == usual and mark in head, head.count(mark)))
    if delimiter == "\t" == usual:
        return _from_records(path, [(number, line.split("\t")) for number, line in lines])
    records, start = list[tuple[int, Sequence[str]]](), 1
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    try:
        for record in reader:
            records.append((start, record))
            start = reader.line_num + 1
    except csv.Error as error:
        way = f"({error}); close the quotation mark that is left open, or double those that are part of a text"
        raise DataError(f"{path}: the row that begins on line {start} is not CSV {way}") from None
    return _from_records(path, records)


def _from_records(path: Path, records: Iterable[tuple[int, Sequence[str]]]) -> Table:
    """A header and its rows; empty rows, columns without a name and empty fields beyond the header are left out."""
    kept = [(line, record) for line, record in records if any(map(str.strip, record))]
    header, rows = [name.strip() for name in kept[0][1]] if kept else [], kept[1:]
    width = max((number for number, name in enumerate(header, 1) if name), default=0)
    for line, record in rows:
        if len(record) < width or any(map(str.strip, record[len(header) :])):
            fields = f"line {line}: {len(record)} fields where the header has {len(header)}"
            raise DataError(f"{path}, {fields}; a text that holds a comma needs quotation marks around it")
    columns = dict[str, list[Any]]()
    for number, name in enumerate(header[:width]):
        repeated = f" ({header[: number + 1].count(name)})" if header.count(name) > 1 else ""
        columns |= {name + repeated: [record[number] for _, record in rows]} if name else {}
    return Table(str(path), columns, [line for line, _ in rows])


def _read_json(path: Path, encoding: str) -> Table:
    text, parts = _read_lines(path, encoding)
    array, records = text.lstrip().startswith("["), list[Any]()
    told = Table(str(path), {}, None if array else [number for number, _ in parts])
    try:
        for _, part in [(1, text)] if array else parts:
            records.append(json.loads(part))
    except ValueError as error:
        place = str(path) if array else told.place(len(records))
        raise DataError(f"{place}: not JSON ({error}); give an object a line, or one array of objects") from None
    records = records[0] if array else records
    for index, record in enumerate(records):
        if not isinstance(record, dict):
            needed = 'an object such as {"text": "...", "label": 1} is needed'
            raise DataError(f"{told.place(index)}: a JSON {type(record).__name__}, where {needed}")
    names = dict.fromkeys(name for record in records for name in record)
    columns = {name.strip(): [record.get(name) for record in records] for name in names}
    return Table(str(path), columns, told.lines)


def _read_arrow(path: Path, encoding: str) -> Table:
    """Parquet, or a shard of `datasets.save_to_disk`; labels come out as the names that are written beside them."""
    import pyarrow.parquet

    try:
        parquet = path.suffix.lower() == ".parquet"
        table = pyarrow.parquet.read_table(path) if parquet else pyarrow.ipc.open_stream(path.read_bytes()).read_all()
    except pyarrow.ArrowException as error:
        why = f"{path.suffix[1:]} file ({str(error).splitlines()[0]}); save it anew"
        raise DataError(f"{path} is not a readable {why}") from None
    columns = {column.strip(): values for column, values in table.to_pydict().items()}
    features = json.loads((table.schema.metadata or {}).get(b"huggingface", b"{}")).get("info", {}).get("features", {})
    for column, feature in features.items():
        if column in columns and isinstance(feature, dict) and feature.get("_type") == "ClassLabel":
            names = dict(enumerate(feature["names"]))
            columns[column] = [names.get(value) for value in columns[column]]
    return Table(str(path), columns)


def _read_excel(path: Path, encoding: str) -> Table:
    import pandas

    try:
        with warnings.catch_warnings(action="ignore"):  # openpyxl warns of styles
            frame = pandas.read_excel(path, header=None, dtype=str, na_filter=False)
    except ImportError:
        raise DataError(f"{path}: Excel files need openpyxl (pip install openpyxl); or save the sheet as CSV") from None
    except Exception as error:  # zipfile, openpyxl and pandas each raise their own
        raise DataError(f"{path} is not a readable Excel file ({error}); save the sheet as CSV") from None
    return _from_records(path, enumerate(frame.itertuples(index=False, name=None), 1))


READERS: dict[str, Callable[[Path, str], Table]] = {".csv": _read_separated, ".tsv": _read_separated}
READERS |= {".jsonl": _read_json, ".json": _read_json, ".parquet": _read_arrow, ".arrow": _read_arrow}
READERS |= {".xlsx": _read_excel}
