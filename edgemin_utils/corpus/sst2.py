"""The SST-2-like corpus: synthetic review sentences whose sentiment is composed, not counted.

A sentence is built from the outside in. The label fixes the polarity of the whole, and each construction decides which
polarity its parts need: `not` and its kin ask for the opposite adjective, `X but Y` for the opposite in X, `none of the
jokes` for the opposite verb. A word therefore says little about the label by itself.
"""

import numpy as np

from edgemin_utils.corpus.grammar import Text, chance, choose, choose_two, weighted, with_article, words

COLUMNS = ("sentence",)
LABELS = ("negative", "positive")
SHARES = (0.47, 0.53)

# Index 0 holds the negative words, index 1 the positive ones, as in the labels.
FILM_ADJECTIVES = (
    words("""dull lifeless clumsy tedious hollow shallow predictable bland muddled dreary stale wooden contrived
    pretentious sluggish forgettable incoherent tiresome overlong humourless charmless plodding laboured soulless
    sappy"""),
    words("""charming clever moving witty gripping tender inventive luminous graceful haunting poignant playful vivid
    absorbing hilarious stirring nimble thoughtful affecting radiant suspenseful heartfelt lyrical magical
    exhilarating"""),
)
PRODUCT_ADJECTIVES = (
    words("""flimsy unreliable noisy fragile sluggish bulky leaky wobbly dim scratchy overpriced brittle cumbersome
    faulty rusty uncomfortable crooked sticky stiff defective"""),
    words("""sturdy reliable silent durable speedy compact handy sleek bright smooth affordable robust lightweight
    precise waterproof comfortable elegant practical responsive flawless"""),
)
SHARED_ADJECTIVES = (
    words("""awful dreadful disappointing mediocre annoying frustrating weak poor terrible sloppy ugly useless lousy
    irritating unpleasant shoddy careless pathetic"""),
    words("""superb delightful excellent brilliant impressive enjoyable strong splendid wonderful polished beautiful
    remarkable marvellous satisfying pleasant refreshing terrific memorable"""),
)
FILM_NOUNS = words("""film movie comedy drama thriller sequel documentary romance musical western remake cartoon
    biography mystery""")
FILM_ASPECTS = words("""plot script acting dialogue ending pacing soundtrack camerawork humour editing cast story
    premise direction finale narration""")
FILM_PARTS = words("jokes scenes songs characters twists stunts gags chases battles speeches flashbacks duets")
PRODUCT_NOUNS = words("""phone kettle blender camera laptop backpack jacket heater vacuum keyboard headset toaster
    tent bicycle lamp printer""")
PRODUCT_ASPECTS = words("""battery screen handle lid strap zip cable motor speaker lens packaging design finish
    charger manual hinge""")
PRODUCT_PARTS = words("buttons seams wheels hinges switches pockets filters sockets screws stitches sensors menus")

# Plural verbs, third-person singular, and the infinitive after "manages to" or "fails to".
FILM_VERBS = (
    (
        ("drag", "drags"),
        ("bore", "bores"),
        ("disappoint", "disappoints"),
        ("grate", "grates"),
        ("flop", "flops"),
        ("stumble", "stumbles"),
        ("fizzle", "fizzles"),
    ),
    (
        ("sparkle", "sparkles"),
        ("charm", "charms"),
        ("delight", "delights"),
        ("shine", "shines"),
        ("soar", "soars"),
        ("enchant", "enchants"),
        ("amuse", "amuses"),
    ),
)
PRODUCT_VERBS = (
    (
        ("break", "breaks"),
        ("rattle", "rattles"),
        ("jam", "jams"),
        ("crack", "cracks"),
        ("overheat", "overheats"),
        ("disappoint", "disappoints"),
        ("malfunction", "malfunctions"),
    ),
    (
        ("last", "lasts"),
        ("work", "works"),
        ("endure", "endures"),
        ("excel", "excels"),
        ("impress", "impresses"),
        ("satisfy", "satisfies"),
        ("perform", "performs"),
    ),
)
DOMAINS = (
    (FILM_NOUNS, FILM_ASPECTS, FILM_PARTS, FILM_ADJECTIVES, FILM_VERBS),
    (PRODUCT_NOUNS, PRODUCT_ASPECTS, PRODUCT_PARTS, PRODUCT_ADJECTIVES, PRODUCT_VERBS),
)

DEGREES = words("really truly quite very rather utterly deeply genuinely consistently surprisingly")
NEGATIONS = words("not hardly far_from anything_but never by_no_means not_at_all")
KEEPING_QUANTIFIERS = words("all_of most_of nearly_all_of almost_all_of many_of")
REVERSING_QUANTIFIERS = words("none_of few_of hardly_any_of almost_none_of not_one_of")
CONCESSIONS = words("although though while even_though")
TURNS = words("but yet but_ultimately but_in_the_end but_somehow and_yet")
FRAMES = words("""i_must_say honestly for_me overall as_always on_balance in_my_view by_and_large to_be_fair
    for_my_money""")


class Review:
    """Draws the parts of one sentence about one film or one product."""

    def __init__(self, rng: np.random.Generator) -> None:
        self.rng = rng
        self.nouns, self.aspects, self.parts, self.adjectives, self.verbs = choose(rng, DOMAINS)
        self.noun = choose(rng, self.nouns)

    def adjective(self, polarity: int) -> str:
        """An adjective of this polarity (0 negative, 1 positive), of the domain or of any."""
        own = self.adjectives if chance(self.rng, 0.6) else SHARED_ADJECTIVES
        return choose(self.rng, own[polarity])

    def graded(self, polarity: int) -> str:
        """An adjective, sometimes after an adverb of degree; the adverbs also stand after negations."""
        adjective = self.adjective(polarity)
        return f"{choose(self.rng, DEGREES)} {adjective}" if chance(self.rng, 0.45) else adjective

    def quality(self, polarity: int) -> str:
        """What follows `is`: plain, negated, or one of two opposite adjectives picked by a connective."""
        kind = weighted(self.rng, (("plain", 0.55), ("negated", 0.28), ("neither", 0.05), ("more", 0.12)))
        if kind == "plain":
            return self.graded(polarity)
        if kind == "negated":
            return f"{choose(self.rng, NEGATIONS)} {self.graded(1 - polarity)}"
        if kind == "neither":
            return f"neither {self.adjective(1 - polarity)} nor {self.adjective(1 - polarity)}"
        if chance(self.rng, 0.5):
            return f"more {self.adjective(polarity)} than {self.adjective(1 - polarity)}"
        return f"less {self.adjective(1 - polarity)} than {self.adjective(polarity)}"

    def subject(self) -> str:
        """An aspect of the thing under review, or the thing itself."""
        return f"the {choose(self.rng, self.aspects) if chance(self.rng, 0.6) else self.noun}"

    def plain_clause(self, polarity: int) -> str:
        """Subject, `is` and an adjective, without negation."""
        return f"{self.subject()} is {self.graded(polarity)}"

    def clause(self, polarity: int) -> str:
        """A clause without a contrast inside."""
        kind = weighted(
            self.rng, (("quality", 0.58), ("quantified", 0.2), ("manages", 0.1), ("nothing", 0.06), ("nobody", 0.06))
        )
        if kind == "quality":
            return f"{self.subject()} is {self.quality(polarity)}"
        if kind == "quantified":
            return self.quantified(polarity)
        if kind == "manages":
            return self.manages(polarity)
        if kind == "nothing":
            there, wanted = choose(self.rng, (("something", polarity), ("nothing", 1 - polarity)))
            return f"there is {there} {self.graded(wanted)} about {self.subject()}"
        who, wanted = choose(self.rng, (("everybody", polarity), ("nobody", 1 - polarity)))
        return f"{who} will call {self.subject()} {self.graded(wanted)}"

    def quantified(self, polarity: int) -> str:
        """What some share of the parts does or is; half of the quantifiers reverse it."""
        keeping = chance(self.rng, 0.6)
        quantifier = choose(self.rng, KEEPING_QUANTIFIERS if keeping else REVERSING_QUANTIFIERS)
        wanted = polarity if keeping else 1 - polarity
        part = choose(self.rng, self.parts)
        if chance(self.rng, 0.5):
            return f"{quantifier} the {part} {choose(self.rng, self.verbs[wanted])[0]}"
        return f"{quantifier} the {part} are {self.graded(wanted)}"

    def manages(self, polarity: int) -> str:
        """What the subject manages or fails to do."""
        verb_phrase, reverses = choose(
            self.rng,
            (("manages to", False), ("always", False), ("fails to", True), ("never", True), ("never fails to", False)),
        )
        base, singular = choose(self.rng, self.verbs[1 - polarity if reverses else polarity])
        return f"{self.subject()} {verb_phrase} {base if verb_phrase.endswith('to') else singular}"

    def contrast(self, polarity: int) -> str:
        """Two opposite judgements; the connective and the order decide which one counts."""
        kind = weighted(
            self.rng, (("turn", 0.34), ("concession", 0.24), ("trailing", 0.14), ("expected", 0.16), ("despite", 0.12))
        )
        other = 1 - polarity
        if kind == "turn":
            turn = choose(self.rng, TURNS)
            if chance(self.rng, 0.5):
                return f"{self.graded(other)} {turn} {self.graded(polarity)}"
            return f"{self.plain_clause(other)} {turn} {self.plain_clause(polarity)}"
        if kind == "concession":
            return f"{choose(self.rng, CONCESSIONS)} {self.plain_clause(other)} {self.plain_clause(polarity)}"
        if kind == "trailing":
            return f"{self.plain_clause(polarity)} {choose(self.rng, CONCESSIONS)} {self.plain_clause(other)}"
        if kind == "expected":
            hoped = with_article(f"{self.adjective(other)} {self.noun}")
            came = with_article(f"{self.adjective(polarity)} one")
            return choose(
                self.rng,
                (
                    f"i expected {hoped} but got {came}",
                    f"i got {came} where i expected {hoped}",
                    f"it promised {hoped} and became {came}",
                ),
            )
        return f"{self.graded(polarity)} despite {with_article(self.adjective(other))} {choose(self.rng, self.aspects)}"

    def opinion(self, polarity: int) -> str:
        """A judgement about a judgement."""
        right = chance(self.rng, 0.6)
        verdict = choose(self.rng, words("right fair true honest") if right else words("wrong unfair false absurd"))
        wanted = polarity if right else 1 - polarity
        if chance(self.rng, 0.5):
            return f"it is {verdict} to call {self.subject()} {self.adjective(wanted)}"
        return f"critics who found {self.subject()} {self.adjective(wanted)} are {verdict}"

    def agreement(self, polarity: int) -> str:
        """Two aspects judged alike."""
        first, second = choose_two(self.rng, self.aspects)
        return f"the {first} is {self.graded(polarity)} and the {second} is {self.quality(polarity)}"


def draw(rng: np.random.Generator, label: int) -> Text:
    """Draw one sentence.

    Args:
        rng: source of the draws.
        label: 0 negative, 1 positive.

    Returns:
        A tuple of one lower-case sentence of 4 to about 16 words, without punctuation.
    """
    review = Review(rng)
    kind = weighted(
        rng, ((review.clause, 0.58), (review.contrast, 0.26), (review.opinion, 0.08), (review.agreement, 0.08))
    )
    sentence = kind(label)
    if chance(rng, 0.15):
        sentence = f"{choose(rng, FRAMES)} {sentence}"
    return (sentence,)
