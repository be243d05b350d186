"""The vocabulary of the MNLI-like corpus: topics seen in training, and topics kept for the mismatched split."""

from dataclasses import dataclass

from edgemin_utils.corpus.grammar import pairs, words


@dataclass(frozen=True)
class Topic:
    """The nouns of one topic.

    Attributes:
        name: what the `genre` column says.
        people: singular nouns whose plural takes an s.
        places: noun phrases without article, to stand after `in the` or `near the`.
        kinds: (general word, words for its kinds); singular, regular plural.
    """

    name: str
    people: tuple[str, ...]
    places: tuple[str, ...]
    kinds: tuple[tuple[str, tuple[str, ...]], ...]


TRAINING_TOPICS = (
    Topic(
        "harbour",
        words("sailor captain pilot diver smuggler fishmonger passenger lifeguard"),
        words("harbour lighthouse cabin warehouse ferry boathouse"),
        (("boat", words("canoe raft kayak dinghy")), ("bird", words("gull pelican heron puffin"))),
    ),
    Topic(
        "kitchen",
        words("baker cook waiter butcher grocer brewer guest caterer"),
        words("kitchen pantry restaurant bakery cellar canteen"),
        (("fruit", words("pear apple lemon apricot")), ("dessert", words("pudding pancake waffle biscuit"))),
    ),
    Topic(
        "school",
        words("teacher pupil librarian tutor janitor professor student chemist"),
        words("school library classroom laboratory playground dormitory"),
        (("book", words("atlas novel dictionary textbook")), ("instrument", words("violin flute trumpet cello"))),
    ),
    Topic(
        "farm",
        words("farmer shepherd gardener miller neighbour hunter beekeeper rider"),
        words("barn orchard meadow stable greenhouse vineyard"),
        (("tool", words("shovel rake hammer sickle")), ("vegetable", words("carrot onion turnip cabbage"))),
    ),
    Topic(
        "theatre",
        words("actor singer dancer painter juggler magician director critic"),
        words("theatre gallery museum studio ballroom lobby"),
        (("costume", words("cloak gown turban bonnet")), ("picture", words("portrait landscape sketch mural"))),
    ),
    Topic(
        "hospital",
        words("doctor nurse surgeon patient dentist visitor pharmacist midwife"),
        words("hospital clinic ward corridor pharmacy chapel"),
        (("drug", words("antibiotic vitamin sedative painkiller")), ("garment", words("coat shirt glove sweater"))),
    ),
)

MISMATCHED_TOPICS = (
    Topic(
        "court",
        words("lawyer judge notary banker detective prisoner juror sheriff"),
        words("courthouse prison archive tavern bank jail"),
        (("weapon", words("dagger pistol rifle sabre")), ("jewel", words("ruby pearl diamond emerald"))),
    ),
    Topic(
        "railway",
        words("conductor driver porter engineer commuter tourist mechanic inspector"),
        words("station tunnel carriage depot hotel garage"),
        (("vehicle", words("truck van tram scooter")), ("bag", words("suitcase rucksack satchel purse"))),
    ),
    Topic(
        "laboratory",
        words("astronaut geologist physicist botanist programmer astronomer biologist inventor"),
        words("observatory desert volcano jungle hangar bunker"),
        (("mineral", words("crystal opal garnet topaz")), ("device", words("telescope microscope radar laser"))),
    ),
)

# Two adjectives of one dimension that cannot both hold.
OPPOSITES = pairs("""tired/energetic happy/sad rich/poor hungry/full tall/short young/old calm/nervous healthy/sick
    polite/rude brave/timid busy/idle sober/drunk""")

# Base form, past form and past participle of verbs that one person does to another, with no bearing on the reverse.
ACTIONS = tuple(
    (base, past)
    for base, past in pairs("""praise/praised follow/followed visit/visited thank/thanked blame/blamed help/helped
        call/called greet/greeted trust/trusted insult/insulted photograph/photographed remember/remembered
        warn/warned push/pushed""")
)

# Base form, past form: what is done alone.
DEEDS = pairs("""sleep/slept sing/sang dance/danced wait/waited laugh/laughed smoke/smoked complain/complained
    work/worked cry/cried whistle/whistled cough/coughed pray/prayed""")

# Base form, past form: what is done to a thing.
ACQUISITIONS = pairs("""buy/bought find/found lose/lost steal/stole borrow/borrowed sell/sold hide/hid
    paint/painted clean/cleaned drop/dropped""")

# A relation, its converse: `x A y` holds exactly when `y B x` does, and x A y rules out y A x.
CONVERSES = pairs("""is_older_than/is_younger_than is_taller_than/is_shorter_than is_richer_than/is_poorer_than
    is_stronger_than/is_weaker_than arrived_before/arrived_after left_before/left_after
    stood_behind/stood_in_front_of sat_to_the_left_of/sat_to_the_right_of outranked/was_outranked_by
    defeated/was_defeated_by employed/was_employed_by""")

NUMBERS = words("two three four five six seven eight nine")
