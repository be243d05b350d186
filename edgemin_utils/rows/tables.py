"""Tables as people bring them, by Python's csv: pandas shifts rows with a field too few, and knows no lines."""

import csv
import functools
import io
import json
import re
import unicodedata
import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path
from typing import Any

from edgemin_utils.errors import DataError, EdgeMINError, SettingError
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
        raise DataError(f"{self.name}: no column {' or '.join(map(repr, dict.fromkeys(names)))}; {said}")


def read_table(files: Sequence[str | Path], encoding: str = "utf-8") -> Table:
    """All rows, which may lie in several files (shards); raises DataError or SettingError where one cannot be read."""
    paths, tables = [Path(file).expanduser() for file in files], []
    for path in paths:
        if not path.is_file():
            raise DataError(f"{path} is not a file" if path.exists() else f"no file {path}")
        if path.suffix.lower() not in READERS:
            raise DataError(f"{path}: cannot read files ending so; save it as one of {', '.join(READERS)}")
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
    except EdgeMINError:
        raise
    except Exception as error:  # the disk, pyarrow, pandas, openpyxl and zipfile each raise their own
        why = str(error).partition("\n")[0]
        raise DataError(f"{path} cannot be read ({why}); save it anew, or as CSV") from None
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
        start, other = getattr(error, "start", 0), "utf-16" if content[:2] in (b"\xff\xfe", b"\xfe\xff") else "cp1252"
        wrong = f"{path} is not {encoding.upper()}: byte {content[start]:#04x} at offset {start}"
        raise DataError(f"{wrong}; save it as UTF-8, or say what it is, as in --set encoding={other}") from None
    if "\0" in text:
        raise DataError(f"{path} holds a NUL byte; if it is UTF-16, give --set encoding=utf-16; else it is no text")
    # str.splitlines would also cut at form feeds and Unicode line separators, which are text here.
    return text, [(at, line.removesuffix("\r")) for at, line in enumerate(text.split("\n"), 1) if line.strip()]


def _read_csv(path: Path, encoding: str) -> Table:
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
    numbered = [f"{name} ({header[:at].count(name) + 1})" for at, name in enumerate(header)]
    names = [numbered[at] if header.count(name) > 1 else name for at, name in enumerate(header)]
    columns = {name: [record[at] for _, record in rows] for at, name in enumerate(names) if header[at]}
    return Table(str(path), columns, [line for line, _ in rows])


def _read_json(path: Path, encoding: str) -> Table:
    """An array of objects, or an object a line."""
    text, lines = _read_lines(path, encoding)
    array, records = text.lstrip().startswith("["), list[Any]()
    told = Table(str(path), {}, None if array else [number for number, _ in lines])
    for part in [text] if array else [line for _, line in lines]:
        try:
            records += json.loads(part) if array else [json.loads(part)]
        except ValueError as error:
            place = str(path) if array else told.place(len(records))
            raise DataError(f"{place}: not JSON ({error}); give an object a line, or one array of objects") from None
    for index, record in enumerate(records):
        if not isinstance(record, dict):
            raise DataError(f"{told.place(index)}: a JSON {type(record).__name__}, where an object with columns is due")
    names = dict.fromkeys(name for record in records for name in record)
    return Table(str(path), {name.strip(): [record.get(name) for record in records] for name in names}, told.lines)


def _read_arrow(path: Path, encoding: str) -> Table:
    """Parquet, or a shard of `datasets.save_to_disk`; labels come out as the names that are written beside them."""
    import pyarrow.parquet

    parquet = path.suffix.lower() == ".parquet"
    table = pyarrow.parquet.read_table(path) if parquet else pyarrow.ipc.open_stream(path.read_bytes()).read_all()
    columns = {column.strip(): values for column, values in table.to_pydict().items()}
    features = json.loads((table.schema.metadata or {}).get(b"huggingface", b"{}")).get("info", {}).get("features", {})
    for column, feature in features.items():
        if column in columns and isinstance(feature, dict) and feature.get("_type") == "ClassLabel":
            names = dict(enumerate(feature["names"]))
            columns[column] = [names.get(value) for value in columns[column]]
    return Table(str(path), columns)


def _read_excel(path: Path, encoding: str) -> Table:
    import pandas

    with warnings.catch_warnings(action="ignore"):  # openpyxl warns of styles
        frame = pandas.read_excel(path, header=None, dtype=str, na_filter=False, engine="openpyxl")
    return _from_records(path, enumerate(frame.itertuples(index=False, name=None), 1))


READERS: dict[str, Callable[[Path, str], Table]] = {".csv": _read_csv, ".tsv": _read_csv, ".xlsx": _read_excel}
READERS |= {".jsonl": _read_json, ".json": _read_json, ".parquet": _read_arrow, ".arrow": _read_arrow}

NO_LABEL = -1  # the id of a row without a label
MARKERS = frozenset(["", *"- -1 nan null none na n/a #n/a <na>".split()])  # "no label", in any case
_NUMBER = re.compile(r"[+-]?(0|[1-9]\d*)(\.\d+)?")  # 007 is a code


def label_texts(table: Table, column: str, fold: bool = False) -> list[str]:
    """Labels as stripped texts, equal numbers alike (1, 1.0, "1"), "" for none; raises DataError if one is a list."""
    texts = []
    for index, value in enumerate(table.columns[column]):
        text = "" if value is None else str(value).strip()
        if isinstance(value, list | dict) or re.fullmatch(r"\[.*['\",].*\]", text):
            raise DataError(f"{table.place(index)}: {column!r} is {value!r}; a row must have one label, not several")
        if _NUMBER.fullmatch(text):
            text = format((Decimal(text) + 0).normalize(), "f")
        texts.append(folded(text) if fold else text)
    return texts


def folded(label: str) -> str:
    """What spellings have in common that differ in case, blanks or Unicode's form alone."""
    return " ".join(unicodedata.normalize("NFKC", label).casefold().split())


def find_classes(texts: Sequence[str], where: str) -> tuple[str, ...]:
    """The classes in a column of `label_texts`, by value when all are numbers, else by name. -1 marks rows without a
    label, unless the only other label is a number. Raises DataError for fewer than two, or more than rows can carry."""
    counts = Counter(texts)
    names = {text for text in counts if text.casefold() not in MARKERS}
    if len(names) == 1 and "-1" in counts and _NUMBER.fullmatch(min(names)):
        names.add("-1")
    without = len(texts) - sum(counts[name] for name in names)
    if len(names) < 2:
        marked = f", and {without:,} rows without one" * (without > 0)
        raise DataError(f"{where} holds only the label {min(names, default='')!r}{marked}; a task needs at least two")
    if len(names) > max(20, (len(texts) - without) / 2):
        raise DataError(f"{where} has {len(names):,} values in {len(texts):,} rows, too many; is it the label column?")
    return tuple(sorted(names, key=float if all(map(_NUMBER.fullmatch, names)) else str))


def spelling_notes(texts: Sequence[str], where: str) -> list[str]:
    """Names, with their counts, the labels, and those that differ in case, inner blanks or Unicode's form alone."""
    groups, counts = dict[str, list[str]](), Counter(text for text in texts if text.casefold() not in MARKERS)
    for name, count in sorted(counts.items()):
        groups.setdefault(folded(name), []).append(f"{name!r} ({count:,} rows)")
    listed = ", ".join([*(name for group in groups.values() for name in group)][:9]) + ", ..." * (len(counts) > 9)
    several = "; ".join(", ".join(group) for group in groups.values() if len(group) > 1)
    way = "labels that differ only in case or blanks are taken apart; --set fold_labels=true joins them"
    return [f"{where}: labels {listed}", *([f"{where}: {way}: {several}"] if several else [])]


def label_ids(table: Table, texts: Sequence[str], labels: Sequence[str], numbered: bool) -> list[int]:
    """Ids of a table's `label_texts`, `NO_LABEL` for markers; `numbered` ids are names. Raises DataError for others."""
    ids = {str(number): number for number in range(len(labels) if numbered else 0)}
    ids |= {name: number for number, name in enumerate(labels)}
    for index, text in enumerate(texts):
        if text not in ids and text.casefold() not in MARKERS:
            known = ", ".join(labels) + (f" or 0 to {len(labels) - 1}" if numbered else " in train")
            raise DataError(f"{table.place(index)}: unknown label {text!r}; known: {known}")
    return [ids.get(text, NO_LABEL) for text in texts]
