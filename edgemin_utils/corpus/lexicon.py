"""The words of the embedded corpora, by class, and the seeded draws that the grammars share."""

import tomllib
from collections.abc import Sequence
from pathlib import Path
from random import Random
from typing import Any


def words(text: str) -> tuple[str, ...]:
    """Split a block of words; an underscore stands for a space inside an entry."""
    return tuple(word.replace("_", " ") for word in text.split())


def pairs(text: str) -> tuple[tuple[str, str], ...]:
    """Split a block of `left/right` entries."""
    return tuple((left, right) for left, right in (entry.split("/") for entry in words(text)))


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


def groups(text: str) -> tuple[tuple[tuple[str, ...], ...], ...]:
    """Split a block of entries joined by `;`, each of several lists joined by `/`."""
    return tuple(tuple(map(words, entry.split("/"))) for entry in text.split(";"))


# What each class holds stands beside it in the file.
_WORDS = tomllib.loads((Path(__file__).parent / "words.toml").read_text(encoding="utf-8"))
NAMES, CITIES, COUNTRIES, ANIMALS, ADVERBS, NEGATIVE, POSITIVE = (
    words(_WORDS[name]) for name in "names cities countries animals adverbs negative positive".split()
)
OPPOSITES, ACTIONS = pairs(_WORDS["opposites"]), pairs(_WORDS["actions"])
DEEDS, ACQUISITIONS = pairs(_WORDS["deeds"]), pairs(_WORDS["acquisitions"])
TOPICS, OTHER_TOPICS, REVIEWED = (groups(_WORDS[name]) for name in "topics other_topics reviewed".split())
KINDS = {name.strip(): words(kinds) for name, kinds in (entry.split(":") for entry in _WORDS["kinds"].split(";"))}
