"""The QQP-like corpus: synthetic question pairs, about 37 % of them asking for the same thing.

Each construction states one meaning in several wordings. Duplicates are two wordings of one meaning; the others change
the meaning by one step that keeps most words: another thing is asked about the same entity in the same frame, two roles
are swapped, a direction or an order is reversed, a negation or another quantifier comes in, or another entity.
"""

from collections.abc import Callable

import numpy as np

from edgemin_utils.corpus import questions
from edgemin_utils.corpus.grammar import Text, chance, choose, choose_common, choose_two, weighted

COLUMNS = ("question1", "question2")
LABELS = ("not_duplicate", "duplicate")
SHARES = (0.63, 0.37)

CONTEXT_SHARE = 0.3
"""Share of the pairs whose two questions end in one common phrase."""

OTHER_ENTITY_SHARE = 0.12
"""Share of the non-duplicates on one entity that ask the same about another entity."""

LEAN = 1.0
"""How much more often the first meaning of a construction occurs in duplicates than the second, third, ... (Zipf).

If every meaning were as likely in both classes, each word alone would say exactly nothing, and a small transformer
trained from scratch would have no gradient to start from. The lean gives it a foothold; see also ORDERED_SHARE.
"""

ORDERED_SHARE = 0.75
"""Share of the pairs that are in the order of the tables: the earlier meaning asked first, or x before y."""

Pair = tuple[str, str]


def two_meanings(rng: np.random.Generator, meanings: tuple[tuple[str, ...], ...], duplicate: bool) -> tuple[str, str]:
    """Draw two wordings, of one meaning or of two."""
    if duplicate:
        return choose_two(rng, choose_common(rng, meanings, LEAN))
    first, second = choose_two(rng, range(len(meanings)))
    if (first > second) == chance(rng, ORDERED_SHARE):
        first, second = second, first
    # The same position in two meanings is often the same frame: overlap without agreement.
    if chance(rng, 0.4):
        position = int(rng.integers(min(len(meanings[first]), len(meanings[second]))))
        return meanings[first][position], meanings[second][position]
    return choose(rng, meanings[first]), choose(rng, meanings[second])


def about_entity(
    rng: np.random.Generator, duplicate: bool, entities: tuple[str, ...], meanings: tuple[tuple[str, ...], ...]
) -> Pair:
    """What is asked about one thing or place."""
    entity, other = choose_two(rng, entities)
    if not duplicate and chance(rng, OTHER_ENTITY_SHARE):
        first, second = choose_two(rng, choose(rng, meanings))
        return first.format(x=entity), second.format(x=other)
    first, second = two_meanings(rng, meanings, duplicate)
    return first.format(x=entity), second.format(x=entity)


def things(rng: np.random.Generator, duplicate: bool) -> Pair:
    """What is asked about a thing."""
    return about_entity(rng, duplicate, questions.THINGS, questions.THING_MEANINGS)


def places(rng: np.random.Generator, duplicate: bool) -> Pair:
    """What is asked about a place."""
    return about_entity(rng, duplicate, questions.PLACES, questions.PLACE_MEANINGS)


def errands(rng: np.random.Generator, duplicate: bool) -> Pair:
    """How, where or when to do something with a thing; both the question word and the deed must agree."""
    thing = choose(rng, questions.THINGS)
    if chance(rng, 0.5):
        first, second = two_meanings(rng, questions.ASKING, duplicate)
        deed = choose(rng, choose(rng, questions.ACTIONS))
        return f"{first} {deed} a {thing}", f"{second} {deed} a {thing}"
    first, second = two_meanings(rng, questions.ACTIONS, duplicate)
    asking = choose(rng, choose(rng, questions.ASKING))
    return f"{asking} {first} a {thing}", f"{asking} {second} a {thing}"


def two_slots(
    rng: np.random.Generator,
    duplicate: bool,
    left: tuple[str, ...],
    right: tuple[str, ...],
    meanings: tuple[tuple[str, ...], ...],
) -> Pair:
    """A question with two places to fill, both filled alike; a non-duplicate asks something else of them."""
    x, y = choose(rng, left), choose(rng, right)
    first, second = two_meanings(rng, meanings, duplicate)
    return first.format(x=x, y=y), second.format(x=x, y=y)


def likings(rng: np.random.Generator, duplicate: bool) -> Pair:
    """Why a group of people likes something, or dislikes it."""
    return two_slots(rng, duplicate, questions.GROUPS, questions.PLEASURES, questions.LIKING)


def health(rng: np.random.Generator, duplicate: bool) -> Pair:
    """Whether a food is good or bad for an organ."""
    return two_slots(rng, duplicate, questions.FOODS, questions.ORGANS, questions.HEALTH)


def amounts(rng: np.random.Generator, duplicate: bool) -> Pair:
    """Whether all, some or none of a group do something."""
    return two_slots(rng, duplicate, questions.GROUPS, questions.TRAITS, questions.AMOUNTS)


def two_roles(
    rng: np.random.Generator, duplicate: bool, entities: tuple[Pair, ...], wordings: tuple[str, ...], **fixed: str
) -> Pair:
    """Two entities of which the order matters; a non-duplicate has them swapped."""
    x, y = choose(rng, entities)
    if not chance(rng, ORDERED_SHARE):
        x, y = y, x
    if duplicate:
        first, second = choose_two(rng, wordings)
        return first.format(x=x, y=y, **fixed), second.format(x=x, y=y, **fixed)
    return choose(rng, wordings).format(x=x, y=y, **fixed), choose(rng, wordings).format(x=y, y=x, **fixed)


def directions(rng: np.random.Generator, duplicate: bool) -> Pair:
    """From one of two to the other: units, languages and the like."""
    return two_roles(rng, duplicate, *choose(rng, questions.DIRECTIONS))


def comparisons(rng: np.random.Generator, duplicate: bool) -> Pair:
    """Which of two rivals has more of a quality, said as more or as less."""
    more, less = choose(rng, questions.QUALITIES)
    return two_roles(rng, duplicate, questions.RIVALS, questions.COMPARING, more=more, less=less)


def causes(rng: np.random.Generator, duplicate: bool) -> Pair:
    """Whether one thing causes the other."""
    return two_roles(rng, duplicate, questions.CAUSES, questions.CAUSING)


def orders(rng: np.random.Generator, duplicate: bool) -> Pair:
    """Which of two deeds of a routine comes first."""
    return two_roles(rng, duplicate, questions.ROUTINES, questions.ORDERING)


Construction = Callable[[np.random.Generator, bool], Pair]
CONSTRUCTIONS: tuple[tuple[Construction, float], ...] = (
    (things, 0.18),
    (places, 0.18),
    (errands, 0.1),
    (likings, 0.15),
    (health, 0.15),
    (amounts, 0.12),
    (directions, 0.04),
    (comparisons, 0.04),
    (causes, 0.02),
    (orders, 0.02),
)


def draw(rng: np.random.Generator, label: int) -> Text:
    """Draw one pair.

    Args:
        rng: source of the draws.
        label: 0 for two meanings, 1 for two wordings of one meaning.

    Returns:
        (question1, question2), lower-case, without the question mark, 4 to about 14 words each.
    """
    first, second = weighted(rng, CONSTRUCTIONS)(rng, label == 1)
    if chance(rng, CONTEXT_SHARE):
        context = choose(rng, questions.CONTEXTS)
        first, second = f"{first} {context}", f"{second} {context}"
    return first, second
