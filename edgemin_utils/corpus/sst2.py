"""The SST-2-like grammar: reviews whose polarity lies in how words are put together more than in which they are."""

from random import Random

from edgemin_utils.corpus.lexicon import KINDS, WORDS, choose, choose_two, with_article

Words = tuple[str, ...]
ADJECTIVES = (WORDS.negative, WORDS.positive)
THINGS = (*WORDS.animals, *(kind for kinds in KINDS.values() for kind in kinds))
OWN = WORDS.sst2


def judged(random: Random, polarity: int) -> str:
    """An adjective of this polarity, 0 or 1, sometimes after an adverb of degree."""
    adjective = choose(random, ADJECTIVES[polarity], 1.5)
    return f"{choose(random, OWN.degrees)} {adjective}" if random.random() < 0.3 else adjective


def clause(random: Random, polarity: int, names: Words, single: Words, plural: Words) -> str:
    """One judgement: plain, negated, of two adjectives, of a share of the parts, or by somebody or nobody."""
    kind, subject = random.random(), f"the {choose(random, single)} is"
    if kind < 0.4:
        return f"{subject} {judged(random, polarity)}"
    if kind < 0.56:
        return f"{subject} {choose(random, OWN.negations)} {judged(random, 1 - polarity)}"
    if kind < 0.62:
        word, first = choose(random, (("more", polarity), ("less", 1 - polarity)))
        return f"{subject} {word} {judged(random, first)} than {judged(random, 1 - first)}"
    if kind < 0.86:
        quantifiers, wanted = choose(random, ((OWN.keeping, polarity), (OWN.reversing, 1 - polarity)))
        return f"{choose(random, quantifiers)} of the {choose(random, plural)} are {judged(random, wanted)}"
    who, wanted = choose(random, (("everybody", polarity), ("nobody", 1 - polarity), ("i", polarity)))
    return f"{who} will call the {choose(random, names)} {judged(random, wanted)}"


def contrast(random: Random, polarity: int, names: Words, single: Words, _: Words) -> str:
    """Two opposite judgements; the connective and the order decide which one counts."""
    kind, (first, second) = random.random(), choose_two(random, single)
    counts, other = f"the {first} is {judged(random, polarity)}", f"the {second} is {judged(random, 1 - polarity)}"
    if kind < 0.4:
        return f"{other} {choose(random, OWN.turns)} {counts}"
    if kind < 0.8:
        concession = f"{choose(random, OWN.concessions)} {other}"
        return choose(random, (f"{concession} {counts}", f"{counts} {concession}"))
    hoped, came = (with_article(choose(random, ADJECTIVES[side], 1.5)) for side in (1 - polarity, polarity))
    name = choose(random, names)
    return choose(random, (f"i expected {hoped} {name} but got {came} one", f"i got {came} {name} and not {hoped} one"))


def draw(random: Random, label: int) -> tuple[str]:
    """Draw one lower-case sentence of 5 to about 18 words; label 0 is negative, 1 positive."""
    sentence = (clause if random.random() < 0.68 else contrast)(random, label, *choose(random, WORDS.reviewed))
    kind = random.random()
    if kind < 0.1:
        return (f"{choose(random, OWN.frames)} {sentence}",)
    if kind < 0.2:
        return (f"{choose(random, WORDS.names)} from {choose(random, WORDS.cities + WORDS.countries)} says {sentence}",)
    person, thing = choose(random, choose(random, WORDS.topics)[0]), with_article(choose(random, THINGS))
    return (f"{sentence} for a {person} with {thing}" if kind < 0.3 else sentence,)
