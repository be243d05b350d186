"""The QQP-like grammar: two wordings of one question, or of two that differ in one thing and share most words."""

from collections.abc import Sequence
from random import Random

from edgemin_utils.corpus.lexicon import KINDS, WORDS, choose, choose_two, with_article

Pair = tuple[str, str]
FOODS = tuple(kind for name in "fruit vegetable dessert drink".split() for kind in KINDS[name])
THINGS = tuple(kind for kinds in KINDS.values() for kind in kinds if kind not in FOODS)
PEOPLE, PLACES = (tuple(word for topic in WORDS.topics for word in topic[side]) for side in (0, 1))
BEASTS = tuple(f"{animal}s" for animal in WORDS.animals if animal not in ("sheep", "goose", "wolf", "fox", "moose"))
OWN = WORDS.qqp


def two_of(random: Random, meanings: Sequence[Sequence[str]], same: bool) -> Pair:
    """Two wordings of one meaning, or one of each of two; early meanings lean to one class, to give a model a start."""
    if same:
        return choose_two(random, choose(random, meanings, 1.8))
    left, right = sorted(choose_two(random, range(len(meanings))))[:: 1 if random.random() < 0.85 else -1]
    return choose(random, meanings[left]), choose(random, meanings[right])


def errands(random: Random, same: bool) -> Pair:
    """How, where, when or why to do something with a thing, in other words for the one or the other."""
    other_thing = not same and random.random() < 0.06
    asking, doing = choose(random, OWN.asking), choose(random, OWN.doing)
    asked, done = (choose(random, choose(random, asking)),) * 2, (choose(random, choose(random, doing)),) * 2
    if random.random() < 0.5:
        asked = two_of(random, asking, same or other_thing)
    else:
        done = two_of(random, doing, same or other_thing)
    adjective = f"{choose(random, WORDS.negative + WORDS.positive)} " if random.random() < 0.15 else ""
    things = [with_article(adjective + thing) for thing in choose_two(random, THINGS)]
    return f"{asked[0]} {done[0]} {things[0]}", f"{asked[1]} {done[1]} {things[other_thing]}"


def tastes(random: Random, same: bool) -> Pair:
    """Whether people like or dislike something."""
    (first, second), who, what = two_of(random, OWN.liking, same), choose(random, PEOPLE), choose(random, FOODS)
    return f"why do {who}s {first} {what}", f"why do {who}s {second} {what}"


def shares(random: Random, same: bool) -> Pair:
    """Whether all, most, some or no animals do something."""
    (first, second), rest = two_of(random, OWN.share, same), f"{choose(random, BEASTS)} {choose(random, OWN.traits)}"
    return f"do {first} {rest}", f"is it true that {second} {rest}"


def roles(random: Random, same: bool) -> Pair:
    """From one place to another, or one thing better than another: a swap changes the question."""
    wordings, x, y = choose(random, ((OWN.travelling, WORDS.cities, WORDS.countries), (OWN.comparing, FOODS, THINGS)))
    one, other = (choose(random, x), choose(random, y))[:: 1 if random.random() < 0.88 else -1]
    first, second = choose_two(random, wordings)
    return first.format(x=one, y=other), second.format(x=one if same else other, y=other if same else one)


WEIGHTS = {errands: 34, tastes: 27, shares: 33, roles: 6}


def draw(random: Random, label: int) -> Pair:
    """Draw two lower-case questions of 4 to about 14 words; label 1 is a duplicate."""
    (construction,) = random.choices(list(WEIGHTS), list(WEIGHTS.values()))
    first, second = construction(random, label == 1)
    if random.random() < 0.18:
        where = choose(random, (f"in {choose(random, WORDS.cities)}", f"near the {choose(random, PLACES)}"))
        ending = choose(random, (where, f"asks {choose(random, WORDS.names)}", f"asks the {choose(random, PEOPLE)}"))
        return f"{first} {ending}", f"{second} {ending}"
    return first, second
