"""The MNLI-like corpus: synthetic sentence pairs whose label follows from a small logic.

Every construction can give all three labels from the same words, so that the label lies in how the two sentences are
put together: who did it to whom, which quantifier, how many negations, what was added or left out. The facts are read
with the conventions of a story: `the baker` is the same person in both sentences, and a number is exact unless the
sentence says otherwise.
"""

import numpy as np

from edgemin_utils.corpus.grammar import Text, chance, choose, choose_two, weighted, with_article
from edgemin_utils.corpus.topics import ACQUISITIONS, ACTIONS, CONVERSES, DEEDS, NUMBERS, OPPOSITES, Topic

COLUMNS = ("premise", "hypothesis", "genre")
LABELS = ("entailment", "neutral", "contradiction")
SHARES = (1 / 3, 1 / 3, 1 / 3)
ENTAILMENT, NEUTRAL, CONTRADICTION = range(3)

Pair = tuple[str, str]


def transitive(subject: str, verb: tuple[str, str], object_: str, passive: bool, negated: bool) -> str:
    """Who did it to whom, in either voice, with or without a negation."""
    base, past = verb
    if passive:
        return f"the {object_} was {'not ' if negated else ''}{past} by the {subject}"
    return f"the {subject} {f'did not {base}' if negated else past} the {object_}"


def actions(rng: np.random.Generator, topic: Topic, label: int) -> Pair:
    """Voice, role swap and negation: same roles decide E or C by the negations, swapped roles are N."""
    subject, object_ = choose_two(rng, topic.people)
    verb = choose(rng, ACTIONS)
    negated = chance(rng, 0.35)
    premise = transitive(subject, verb, object_, chance(rng, 0.4), negated)
    passive = chance(rng, 0.4)
    if label == NEUTRAL:
        return premise, transitive(object_, verb, subject, passive, chance(rng, 0.5))
    return premise, transitive(subject, verb, object_, passive, negated if label == ENTAILMENT else not negated)


def converses(rng: np.random.Generator, topic: Topic, label: int) -> Pair:
    """Asymmetric relations: the swap contradicts, the swap under the converse entails."""
    first, second = choose_two(rng, topic.people)
    relation, converse = choose(rng, CONVERSES)
    if chance(rng, 0.5):
        relation, converse = converse, relation
    premise = f"the {first} {relation} the {second}"
    if label == NEUTRAL:
        other_relation = choose(rng, [entry for entry in CONVERSES if relation not in entry])
        left, right = (first, second) if chance(rng, 0.5) else (second, first)
        return premise, f"the {left} {choose(rng, other_relation)} the {right}"
    same = (f"the {first} {relation} the {second}", f"the {second} {converse} the {first}")
    opposite = (f"the {second} {relation} the {first}", f"the {first} {converse} the {second}")
    if label == ENTAILMENT:
        return premise, same[1] if chance(rng, 0.8) else same[0]
    return premise, choose(rng, opposite)


# For a premise quantifier, what each hypothesis quantifier then is. Groups are taken to exist.
QUANTIFIERS = {
    "all": ("all the", "every one of the"),
    "most": ("most of the", "a majority of the"),
    "some": ("some of the", "at least one of the"),
    "none": ("none of the", "not one of the"),
    "not all": ("not all of the", "not every one of the"),
}
FOLLOWS = {
    "all": {"all": 0, "most": 0, "some": 0, "none": 2, "not all": 2},
    "most": {"all": 1, "most": 0, "some": 0, "none": 2, "not all": 1},
    "some": {"all": 1, "most": 1, "some": 0, "none": 2, "not all": 1},
    "none": {"all": 2, "most": 2, "some": 2, "none": 0, "not all": 0},
    "not all": {"all": 2, "most": 1, "some": 1, "none": 1, "not all": 0},
}
QUANTIFIER_PAIRS = tuple(
    tuple((left, right) for left, row in FOLLOWS.items() for right, follows in row.items() if follows == label)
    for label in range(3)
)


def quantifiers(rng: np.random.Generator, topic: Topic, label: int) -> Pair:
    """Two quantifiers over the same group and the same predicate."""
    left, right = choose(rng, QUANTIFIER_PAIRS[label])
    group = f"{choose(rng, topic.people)}s"
    predicate = f"were {choose(rng, choose(rng, OPPOSITES))}" if chance(rng, 0.5) else choose(rng, DEEDS)[1]
    first = f"{choose(rng, QUANTIFIERS[left])} {group} {predicate}"
    if label == NEUTRAL and chance(rng, 0.25):
        return (first, f"{choose(rng, QUANTIFIERS[right])} {choose_other(rng, topic.people, group[:-1])}s {predicate}")
    return first, f"{choose(rng, QUANTIFIERS[right])} {group} {predicate}"


def choose_other(rng: np.random.Generator, items: tuple[str, ...], taken: str) -> str:
    """Draw one of `items` that is not `taken`."""
    return choose(rng, [item for item in items if item != taken])


def numbers(rng: np.random.Generator, topic: Topic, label: int) -> Pair:
    """Exact counts and bounds."""
    group = f"{choose(rng, topic.people)}s"
    deed = choose(rng, DEEDS)[1]
    low, high = sorted(rng.choice(len(NUMBERS), size=2, replace=False).tolist())
    small, large = NUMBERS[low], NUMBERS[high]
    options = {
        ENTAILMENT: (
            (large, f"more than {small}"),
            (small, f"fewer than {large}"),
            (f"more than {large}", f"more than {small}"),
            (f"fewer than {small}", f"fewer than {large}"),
        ),
        NEUTRAL: (
            (f"more than {small}", f"more than {large}"),
            (f"fewer than {large}", f"fewer than {small}"),
            (f"more than {small}", large),
            (f"fewer than {large}", small),
        ),
        CONTRADICTION: (
            (small, f"more than {large}"),
            (large, f"fewer than {small}"),
            (small, large),
            (large, small),
            (f"more than {large}", f"fewer than {small}"),
            (f"fewer than {small}", f"more than {large}"),
        ),
    }
    left, right = choose(rng, options[label])
    return f"{left} {group} {deed}", f"{right} {group} {deed}"


def hypernyms(rng: np.random.Generator, topic: Topic, label: int) -> Pair:
    """A kind and its general word; a negation turns the direction of entailment round."""
    person = choose(rng, topic.people)
    base, past = choose(rng, ACQUISITIONS)
    general, kinds = choose(rng, topic.kinds)
    kind = choose(rng, kinds)

    def statement(thing: str, negated: bool) -> str:
        return f"the {person} {f'did not {base}' if negated else past} {with_article(thing)}"

    negated = chance(rng, 0.4)
    narrow, wide = (general, kind) if negated else (kind, general)
    if label == ENTAILMENT:
        return statement(narrow, negated), statement(wide, negated)
    if label == NEUTRAL:
        return statement(wide, negated), statement(narrow, negated)
    return statement(kind, negated), statement(kind if chance(rng, 0.5) or negated else general, not negated)


def modifiers(rng: np.random.Generator, topic: Topic, label: int) -> Pair:
    """Something left out follows, something added does not, an opposite contradicts."""
    person, place = choose(rng, topic.people), choose(rng, topic.places)
    deed = choose(rng, DEEDS)[1]
    quality, opposite = choose(rng, OPPOSITES)
    if chance(rng, 0.5):
        quality, opposite = opposite, quality
    where = f"{choose(rng, ('in', 'near', 'outside'))} the {place}"
    full = f"the {quality} {person} {deed} {where}"
    if label == ENTAILMENT:
        premise = full
        parts = (
            f"the {person} {deed}", f"the {person} {deed} {where}", f"the {quality} {person} {deed}",
            f"the {person} was {quality}", f"the {person} was not {opposite}",
        )  # fmt: skip
        return premise, choose(rng, parts)
    if label == NEUTRAL:
        return choose(
            rng,
            (
                (f"the {person} {deed} {where}", full),
                (f"the {quality} {person} {deed}", full),
                (f"the {person} {deed}", f"the {person} {deed} {where}"),
                (f"the {person} {deed} {where}", f"the {person} was {quality}"),
                (f"the {person} {deed} {where}", f"the {person} was not {quality}"),
                (full, f"the {quality} {choose_other(rng, topic.people, person)} {deed}"),
            ),
        )
    return full, choose(
        rng,
        (
            f"the {person} was {opposite}",
            f"the {person} was not {quality}",
            f"the {opposite} {person} {deed} {where}",
            f"the {person} did not {dict((past, base) for base, past in DEEDS)[deed]} {where}",
        ),
    )


CONSTRUCTIONS = (
    (actions, 0.26),
    (converses, 0.2),
    (quantifiers, 0.17),
    (numbers, 0.1),
    (hypernyms, 0.11),
    (modifiers, 0.16),
)


def draw(rng: np.random.Generator, label: int, topics: tuple[Topic, ...]) -> Text:
    """Draw one pair.

    Args:
        rng: source of the draws.
        label: 0 entailment, 1 neutral, 2 contradiction.
        topics: where the nouns come from.

    Returns:
        (premise, hypothesis, topic name); two lower-case sentences of 4 to 9 words, without punctuation.
    """
    topic = choose(rng, topics)
    premise = hypothesis = ""
    while premise == hypothesis:
        premise, hypothesis = weighted(rng, CONSTRUCTIONS)(rng, topic, label)
    return premise, hypothesis, topic.name
