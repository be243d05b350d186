"""The words of the embedded corpora, which stand in words.toml, and the seeded draws that the grammars share."""

import tomllib
from collections.abc import Sequence
from pathlib import Path
from random import Random
from types import SimpleNamespace
from typing import Any


def choose(random: Random, items: Sequence[Any], exponent: float = 1.0) -> Any:
    """Draw one item; an exponent above 1 draws the early ones more often, as a language uses its words."""
    return items[int(len(items) * random.random() ** exponent)]


def choose_two(random: Random, items: Sequence[Any]) -> tuple[Any, Any]:
    """Draw two items at different positions."""
    first, step = int(len(items) * random.random()), 1 + int((len(items) - 1) * random.random())
    return items[first], items[(first + step) % len(items)]


def with_article(phrase: str) -> str:
    """Put `a` or `an` before a phrase, by its spelling."""
    return f"{'an' if phrase[0] in 'aeiou' else 'a'} {phrase}"


def _read(block: Any) -> Any:
    """Tables as namespaces, lists as tuples, texts as tuples of their words or pairs."""
    if isinstance(block, dict):
        return SimpleNamespace(**{name: _read(inner) for name, inner in block.items()})
    if isinstance(block, list):
        return tuple(map(_read, block))
    entries = [tuple(entry.replace("_", " ").split("/")) for entry in block.split()]
    return tuple(entry if len(entry) > 1 else entry[0] for entry in entries)


WORDS = _read(tomllib.loads((Path(__file__).parent / "words.toml").read_text(encoding="utf-8")))
KINDS: dict[str, tuple[str, ...]] = vars(WORDS.kinds)
