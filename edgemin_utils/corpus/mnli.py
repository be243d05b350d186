"""The MNLI-like grammar: pairs whose label follows from a small logic over negation, quantifiers, roles and kinds, read
as stories: `the baker` is one person, a number is exact unless it is said otherwise, members of a group exist."""

from functools import partial
from random import Random

from edgemin_utils.corpus.lexicon import KINDS, WORDS, choose, with_article

ENTAILMENT, NEUTRAL, CONTRADICTION = range(3)
Words = tuple[str, ...]
OWN = WORDS.mnli
# Label by the quantifiers of premise (row) and hypothesis (column), in the order of `OWN.quantifiers`.
FOLLOWS = ((0, 0, 0, 2, 2), (1, 0, 0, 2, 1), (1, 1, 0, 2, 1), (2, 2, 2, 0, 0), (2, 1, 1, 1, 0))


def person_and_animal(random: Random, people: Words) -> Words:
    """A person and an animal, mostly in this order: without a lean a small model finds no way into word order."""
    return (choose(random, people), choose(random, WORDS.animals, 1.5))[:: 1 if random.random() < 0.88 else -1]


def roles(random: Random, people: Words, places: Words, label: int) -> Words:
    """Who did it to whom: voice and negation keep the roles, a swap makes the pair neutral."""
    agent, patient = person_and_animal(random, people)
    (base, past), negated = choose(random, WORDS.actions), random.random() < 0.25
    also = random.random() < 0.4 if label == NEUTRAL else negated == (label == ENTAILMENT)
    first, second = (agent, patient)[:: -1 if label == NEUTRAL else 1]
    active = f"the {first} {f'did not {base}' if also else past} the {second}"
    passive = f"the {second} was {'not ' if also else ''}{past} by the {first}"
    premise = f"the {agent} {f'did not {base}' if negated else past} the {patient}"
    return premise, passive if random.random() < 0.3 else active


def positions(random: Random, people: Words, places: Words, label: int) -> Words:
    """Asymmetric relations: a swap contradicts, a swap under the converse entails."""
    first, second = person_and_animal(random, people)
    relation, converse = choose(random, OWN.converses)[:: choose(random, (1, -1))]
    other = choose(random, choose(random, [pair for pair in OWN.converses if relation not in pair]))
    opposite = (f"the {second} {relation} the {first}", f"the {first} {converse} the {second}")
    follows = f"the {second} {converse} the {first}", f"the {first} {other} the {second}", choose(random, opposite)
    return f"the {first} {relation} the {second}", follows[label]


def quantifiers(random: Random, people: Words, places: Words, label: int) -> Words:
    """Two quantifiers over one group and one predicate."""
    cells = [(left, right) for left, row in enumerate(FOLLOWS) for right, follows in enumerate(row) if follows == label]
    left, right = choose(random, cells)
    deed = choose(random, (f"were {choose(random, choose(random, WORDS.opposites))}", choose(random, WORDS.deeds)[1]))
    rest = f"of the {choose(random, people)}s {deed}"
    return f"{choose(random, OWN.quantifiers[left])} {rest}", f"{choose(random, OWN.quantifiers[right])} {rest}"


def numbers(random: Random, people: Words, places: Words, label: int) -> Words:
    """Exact counts and bounds."""
    low = int(random.random() * 6)
    small, large = OWN.numbers[low], OWN.numbers[min(low + 2 + int(random.random() * 4), 7)]
    over, under = (f"more than {small}", f"more than {large}"), (f"fewer than {large}", f"fewer than {small}")
    entailed = (large, over[0]), (small, under[0]), over[::-1]
    neutral = over, under, (over[0], large)
    contradicted = (small, over[1]), (large, under[1]), (over[1], under[1])
    rest = f"{choose(random, people)}s {choose(random, WORDS.deeds)[1]}"
    left, right = choose(random, (entailed, neutral, contradicted)[label])
    return f"{left} {rest}", f"{right} {rest}"


def kinds(random: Random, people: Words, places: Words, label: int) -> Words:
    """A kind and its general word; a negation turns the direction of entailment round."""
    (base, past), general = choose(random, WORDS.acquisitions), choose(random, tuple(KINDS))
    does = [f"the {choose(random, people)} {verb}" for verb in (past, f"did not {base}")]
    adjective = f"{choose(random, WORDS.negative + WORDS.positive)} " if random.random() < 0.25 else ""
    kind, general = (with_article(adjective + thing) for thing in (choose(random, KINDS[general]), general))
    negated = random.random() < 0.35
    if label == CONTRADICTION:
        return f"{does[negated]} {kind}", f"{does[not negated]} {kind if negated else choose(random, (kind, general))}"
    return tuple(f"{does[negated]} {thing}" for thing in (kind, general)[:: 1 if (label == NEUTRAL) == negated else -1])


def details(random: Random, people: Words, places: Words, label: int) -> Words:
    """Something left out follows and something added does not, the other way round under a negation."""
    who, (base, past) = f"the {choose(random, people)}", choose(random, WORDS.deeds)
    where = choose(random, (f"in the {choose(random, places)}", f"in {choose(random, WORDS.cities + WORDS.countries)}"))
    detail = choose(random, (where, where, choose(random, WORDS.adverbs), f"with {choose(random, WORDS.names)}"))
    negated, said, denied = random.random() < 0.35, f"{who} {past}", f"{who} did not {base}"
    if label == CONTRADICTION:
        return (denied, f"{said} {detail}") if negated else (f"{said} {detail}", denied)
    short = denied if negated else said
    return (f"{short} {detail}", short)[:: 1 if (label == ENTAILMENT) != negated else -1]


WEIGHTS = {roles: 13, positions: 14, quantifiers: 26, numbers: 14, kinds: 17, details: 16}


def draw(random: Random, label: int, topics: tuple[tuple[Words, ...], ...] = WORDS.topics) -> Words:
    """Draw premise and hypothesis, lower-case, of 3 to 9 words; label 0 is entailment, 1 neutral, 2 contradiction."""
    (construction,) = random.choices(list(WEIGHTS), list(WEIGHTS.values()))
    people, places = choose(random, topics)
    return construction(random, people, places, label)


draw_mismatched = partial(draw, topics=WORDS.other_topics)
