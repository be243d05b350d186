"""The vocabulary of the QQP-like corpus: what is asked about, and the wordings of what is asked."""

from edgemin_utils.corpus.grammar import pairs, words

THINGS = words("""drone tablet smartwatch router dishwasher fridge oven treadmill motorbike sofa mattress freezer
    projector piano violin telescope microscope tractor sailboat caravan chainsaw lawnmower wheelchair pram hammock
    greenhouse chimney aquarium typewriter thermostat ladder trampoline skateboard snowboard kayak saddle turbine
    generator scanner amplifier""")

PLACES = words("""lisbon oslo cairo lima delhi tokyo madrid athens dublin prague vienna boston seoul nairobi havana
    warsaw geneva berlin sydney toronto milan quito accra tunis norway peru kenya vietnam iceland portugal bolivia
    jordan nepal estonia ghana malta chile cuba fiji laos""")

GROUPS = words("""cats dogs horses rabbits babies teenagers toddlers engineers athletes pigeons dolphins owls bees
    snakes
    parrots vegans tourists gamers lawyers introverts grandparents beginners nurses pilots""")

PLEASURES = words("""milk rain music noise water sugar cheese honey fish sunlight winter mirrors cucumbers mondays
    fireworks crowds balloons spiders strangers silence""")

FOODS = words("""garlic ginger coffee chocolate butter salmon spinach yoghurt almonds walnuts bananas mushrooms lentils
    vinegar mustard oatmeal broccoli blueberries avocado cinnamon""")

ORGANS = words("skin heart liver brain stomach kidneys hair teeth eyes bones lungs muscles")

TRAITS = words("bark lie swim bite dream gamble fly snore hibernate vote migrate sing procrastinate cheat")

# Each row is one meaning; {x} is the entity. Different rows share their frames on purpose.
THING_MEANINGS = (
    ("how much does a {x} cost", "what is the price of a {x}", "how expensive is a {x}"),
    ("how long does a {x} last", "what is the lifetime of a {x}", "how durable is a {x}"),
)
PLACE_MEANINGS = (
    ("how is the weather in {x}", "what is the climate of {x}", "how warm is {x}"),
    ("how many crimes happen in {x}", "what is the crime rate of {x}", "how safe is {x}"),
)
ACTIONS = (words("buy purchase"), words("sell auction"), words("repair fix"))
ASKING = (
    ("how do i", "what is the best way to"),
    ("where do i", "what is the best place to"),
    ("when do i", "what is the best time to"),
)
LIKING = (
    ("why do {x} like {y}", "for what reason do {x} love {y}", "why do {x} not dislike {y}"),
    ("why do {x} dislike {y}", "for what reason do {x} hate {y}", "why do {x} not like {y}"),
)
HEALTH = (
    ("is {x} good for the {y}", "does {x} help the {y}", "is it healthy for the {y} to have {x}"),
    ("is {x} bad for the {y}", "does {x} harm the {y}", "is it unhealthy for the {y} to have {x}"),
)
AMOUNTS = (
    ("do all {x} {y}", "is it true that all {x} {y}", "are there no {x} that do not {y}"),
    ("do some {x} {y}", "is it true that some {x} {y}", "are there any {x} that {y}"),
    ("do no {x} {y}", "is it true that no {x} {y}", "are there no {x} that {y}"),
)

# Two entities that are asked about together, in either order.
UNITS = pairs("""miles/kilometres pounds/kilograms inches/centimetres gallons/litres dollars/euros
    fahrenheit/celsius""")
LANGUAGES = pairs("french/english spanish/german hindi/arabic russian/dutch greek/latin korean/japanese")
FORMATS = pairs("pdf/word jpeg/png excel/csv audio/text latex/html")
JOURNEYS = pairs("london/paris rome/naples chicago/detroit mumbai/goa lagos/abuja denver/dallas")
RIVALS = pairs("""tea/juice python/java gold/silver cycling/walking netflix/television steel/wood android/ios
    rice/pasta poker/chess solar/coal""")
CAUSES = pairs("""stress/insomnia anxiety/obesity depression/fatigue poverty/crime inflation/unemployment
    pollution/drought fever/headaches acne/allergies""")
ROUTINES = pairs("""eat/run shower/shave study/sleep stretch/swim pray/read brush/drink meditate/work pay/order""")
QUALITIES = pairs("better/worse safer/riskier cheaper/dearer easier/harder healthier/unhealthier")

# Wordings of `from x to y`, `x is more than y`, `x brings y` and `x comes before y`.
DIRECTIONS = (
    (UNITS, ("how do i convert {x} to {y}", "how can i turn {x} into {y}", "how do i get {y} if i have {x}")),
    (LANGUAGES, ("how do i translate {x} to {y}", "how can i turn {x} into {y}", "how do i get {y} text from {x}")),
    (FORMATS, ("how do i convert {x} to {y}", "how can i turn {x} into {y}", "how do i get a {y} file from {x}")),
    (JOURNEYS, ("how do i travel from {x} to {y}", "how can i go from {x} to {y}", "how do i get to {y} from {x}")),
)
COMPARING = ("is {x} {more} than {y}", "do people find {x} {more} than {y}", "is {y} {less} than {x}")
CAUSING = ("does {x} cause {y}", "can {x} lead to {y}", "is {y} caused by {x}")
ORDERING = ("should i {x} before i {y}", "is it better to {x} before i {y}", "should i {y} after i {x}")

# Where or for whom; the same phrase ends both questions and leaves the answer alone.
CONTEXTS = words("""for_a_student for_a_beginner for_a_family for_a_small_office on_a_budget in_summer in_practice
    in_general on_holiday these_days in_the_countryside for_an_expert at_school at_home in_a_hurry in_old_age
    with_a_child with_small_hands
    in_cold_weather after_midnight before_breakfast
    during_an_exam on_weekdays without_help after_retirement""")
