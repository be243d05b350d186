"""The QQP-like grammar: question pairs, 37 % of them two wordings of one question; the others change one thing, such as
what is asked or done, a negation, a quantifier or the roles, and keep most words."""

from collections.abc import Sequence
from random import Random

from edgemin_utils.corpus import lexicon as lex
from edgemin_utils.corpus.lexicon import choose, choose_two, with_article, words

SHARES = (0.63, 0.37)
Pair = tuple[str, str]
FOODS = tuple(kind for name in words("fruit vegetable dessert drink") for kind in lex.KINDS[name])
THINGS = tuple(kind for kinds in lex.KINDS.values() for kind in kinds if kind not in FOODS)
PEOPLE, PLACES = (tuple(word for topic in lex.TOPICS for word in topic[side]) for side in (0, 1))
BEASTS = tuple(f"{animal}s" for animal in lex.ANIMALS if animal not in ("sheep", "goose", "wolf", "fox", "moose"))

# Meanings that are mistaken for each other, each in several wordings.
ASKING = (
    (words("how_do_i how_can_i what_is_the_best_way_to"), words("where_do_i where_can_i what_is_the_best_place_to")),
    (words("when_do_i when_can_i what_is_the_best_time_to"), words("why_do_i why_should_i what_is_the_reason_to")),
)
DOING = (
    (words("buy purchase get"), words("sell auction trade")),
    (words("repair fix mend"), words("break damage wreck")),
    (words("keep store hold"), words("lend rent share")),
    (words("clean wash polish"), words("build assemble make")),
)
LIKING = (words("like love enjoy not_dislike not_hate"), words("dislike hate detest not_like not_enjoy"))
SHARE = tuple(map(words, ("all every_one_of_the", "most a_majority_of_the", "some at_least_some", "no not_one_of_the")))
TRAITS = words("bite swim dream sleep fly snore climb jump travel sing hunt hide sneeze dance jog read")
TRAVELLING = ("how do i travel from {x} to {y}", "how can i get from {x} to {y}", "how do i get to {y} from {x}")
COMPARING = ("is {x} better than {y}", "do people like {x} more than {y}", "is {y} worse than {x}")


def two_of(random: Random, meanings: Sequence[Sequence[str]], same: bool) -> Pair:
    """Two wordings of one meaning, or one of each of two; early meanings lean to one class, to give a model a start."""
    if same:
        return choose_two(random, choose(random, meanings, 1.8))
    left, right = sorted(choose_two(random, range(len(meanings))))[:: 1 if random.random() < 0.85 else -1]
    return choose(random, meanings[left]), choose(random, meanings[right])


def errands(random: Random, same: bool) -> Pair:
    """How, where, when or why to do something with a thing, in other words for the one or the other."""
    other_thing = not same and random.random() < 0.06
    asking, doing = choose(random, ASKING), choose(random, DOING)
    asked, done = (choose(random, choose(random, asking)),) * 2, (choose(random, choose(random, doing)),) * 2
    if random.random() < 0.5:
        asked = two_of(random, asking, same or other_thing)
    else:
        done = two_of(random, doing, same or other_thing)
    adjective = f"{choose(random, lex.NEGATIVE + lex.POSITIVE)} " if random.random() < 0.15 else ""
    things = [with_article(adjective + thing) for thing in choose_two(random, THINGS)]
    return f"{asked[0]} {done[0]} {things[0]}", f"{asked[1]} {done[1]} {things[other_thing]}"


def tastes(random: Random, same: bool) -> Pair:
    """Whether people like or dislike something."""
    (first, second), who, what = two_of(random, LIKING, same), choose(random, PEOPLE), choose(random, FOODS)
    return f"why do {who}s {first} {what}", f"why do {who}s {second} {what}"


def shares(random: Random, same: bool) -> Pair:
    """Whether all, most, some or no animals do something."""
    (first, second), rest = two_of(random, SHARE, same), f"{choose(random, BEASTS)} {choose(random, TRAITS)}"
    return f"do {first} {rest}", f"is it true that {second} {rest}"


def roles(random: Random, same: bool) -> Pair:
    """From one place to another, or one thing better than another: a swap changes the question."""
    wordings, x, y = choose(random, ((TRAVELLING, lex.CITIES, lex.COUNTRIES), (COMPARING, FOODS, THINGS)))
    one, other = (choose(random, x), choose(random, y))[:: 1 if random.random() < 0.88 else -1]
    first, second = choose_two(random, wordings)
    return first.format(x=one, y=other), second.format(x=one if same else other, y=other if same else one)


WEIGHTS = {errands: 34, tastes: 27, shares: 33, roles: 6}


def draw(random: Random, label: int) -> Pair:
    """Draw two lower-case questions of 4 to about 14 words; label 1 is a duplicate."""
    (construction,) = random.choices(list(WEIGHTS), list(WEIGHTS.values()))
    first, second = construction(random, label == 1)
    if random.random() < 0.18:
        where = choose(random, (f"in {choose(random, lex.CITIES)}", f"near the {choose(random, PLACES)}"))
        ending = choose(random, (where, f"asks {choose(random, lex.NAMES)}", f"asks the {choose(random, PEOPLE)}"))
        return f"{first} {ending}", f"{second} {ending}"
    return first, second
