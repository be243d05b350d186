"""Labels as people write them: what counts as none, which spellings are one label, which columns are no classes."""

import re
import unicodedata
from collections import Counter
from collections.abc import Sequence
from decimal import Decimal

from edgemin_utils.errors import DataError
from edgemin_utils.rows.tables import Table

NO_LABEL, UNKNOWN = -1, -2  # of a row without a label, and of a row with one that the task does not have
MARKERS = frozenset(["", *"- -1 nan null none n/a <na>".split()])  # "no label" to GLUE, SNLI and pandas, in any case
_NUMBER = re.compile(r"[+-]?(0|[1-9]\d*)(\.\d+)?")  # 007 is a code


def label_texts(table: Table, column: str, fold: bool = False) -> list[str]:
    """A label column as text: without surrounding blanks, equal numbers alike (1, 1.0 and "1"), "" for nothing, and
    with `fold` in lower case; raises DataError where a row has several labels."""
    texts = []
    for index, value in enumerate(table.columns[column]):
        text = "" if value is None else str(value).strip()
        if isinstance(value, list | dict) or re.fullmatch(r"\[.*['\",].*\]", text):
            raise DataError(f"{table.place(index)}: {column!r} is {value!r}; a row must have one label, not a list")
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
        many = f"{len(names):,} different values in {len(texts):,} rows, too many for classes"
        raise DataError(f"{where} holds {many}; is it the label column?")
    return tuple(sorted(names, key=float if all(map(_NUMBER.fullmatch, names)) else str))


def spelling_notes(texts: Sequence[str], where: str) -> list[str]:
    """Names, with their counts, the labels that differ in case, inner blanks or Unicode's form alone."""
    groups: dict[str, list[str]] = {}
    for name, count in sorted(Counter(text for text in texts if text.casefold() not in MARKERS).items()):
        groups.setdefault(folded(name), []).append(f"{name!r} ({count:,} rows)")
    several = "; ".join(", ".join(group) for group in groups.values() if len(group) > 1)
    way = "labels that differ only in case or blanks are taken apart; --set fold_labels=true joins them"
    return [f"{where}: {way}: {several}"] if several else []


def label_ids(texts: Sequence[str], labels: Sequence[str], numbered: bool) -> list[int]:
    """The id of each text, or `NO_LABEL` for a marker, or `UNKNOWN`; with `numbered`, ids count as names."""
    ids = {str(number): number for number in range(len(labels) if numbered else 0)}
    ids |= {name: number for number, name in enumerate(labels)}
    return [ids.get(text, NO_LABEL if text.casefold() in MARKERS else UNKNOWN) for text in texts]
