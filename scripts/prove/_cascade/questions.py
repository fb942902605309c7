"""Small questions whose answers can be checked by a word. Deliberately easy: the models have 135 million weights.

Facts are listed, everything else is made by rule from a fixed seed: the same questions on every machine, and nobody's data.
"""

from __future__ import annotations

import hashlib
import random
import re
from collections.abc import Callable

import msgspec

_CAPITALS = """France Paris; Germany Berlin; Italy Rome; Spain Madrid; Portugal Lisbon; Japan Tokyo; China Beijing; Russia Moscow;
Egypt Cairo; Greece Athens; Turkey Ankara; Poland Warsaw; Austria Vienna; Hungary Budapest; Sweden Stockholm; Norway Oslo;
Finland Helsinki; Denmark Copenhagen; Ireland Dublin; Belgium Brussels; Switzerland Bern; Canada Ottawa; Cuba Havana;
Argentina Buenos; Chile Santiago; Peru Lima; India Delhi; Pakistan Islamabad; Thailand Bangkok; Vietnam Hanoi;
Indonesia Jakarta; Kenya Nairobi; Ethiopia Addis; Nigeria Abuja; Ghana Accra; Morocco Rabat; Iran Tehran; Iraq Baghdad;
Australia Canberra; Ukraine Kyiv|Kiev; Romania Bucharest; Bulgaria Sofia; Serbia Belgrade; Croatia Zagreb; Syria Damascus;
Lebanon Beirut; Jordan Amman; Uganda Kampala; Senegal Dakar; Angola Luanda; Nepal Kathmandu; Mongolia Ulaanbaatar;
Iceland Reykjav.k; Latvia Riga; Estonia Tallinn; Lithuania Vilnius; Slovakia Bratislava; Slovenia Ljubljana; Bolivia Sucre|Paz;
Ecuador Quito"""
_OPPOSITES = """hot cold; big small|little; up down; fast slow; day night; rich poor; old young|new; happy sad|unhappy;
hard soft|easy;
light dark|heavy; open closed?; wet dry; left right; early late; full empty; strong weak; win lose; buy sell; love hate;
north south; high low; long short; thick thin; clean dirty; loud quiet|silent|soft; sweet sour|bitter; brave coward.*;
near far; begin end; push pull; true false; black white; inside outside; first last; always never; laugh cry; give take|receive;
sharp dull|blunt; deep shallow; friend enemy"""
_CONTINENTS = """Europe: France Germany Italy Spain Portugal Poland Austria Hungary Sweden Norway Finland Denmark Ireland
Belgium Greece Romania Bulgaria Serbia Croatia Latvia Estonia Lithuania Slovakia Slovenia Ukraine; Asia: Japan China India
Pakistan Thailand Vietnam Mongolia Nepal Iran Iraq Syria Jordan Lebanon Malaysia Cambodia; Africa: Egypt Kenya Ethiopia
Nigeria Ghana Morocco Uganda Senegal Angola Algeria Tunisia Zambia Zimbabwe Botswana Namibia; America: Canada Cuba Argentina
Chile Peru Bolivia Ecuador Brazil Colombia Venezuela Uruguay Paraguay"""
_PASTS = """go went; see saw; eat ate; drink drank; write wrote; speak spoke; break broke; take took; give gave; come came;
run ran; swim swam; sing sang; ring rang; begin began; buy bought; bring brought; think thought; catch caught; teach taught;
fight fought; find found; hold held; tell told; sell sold; feel felt; keep kept; sleep slept; leave left; lose lost; meet met;
make made; say said; pay paid; know knew; grow grew; throw threw; fly flew; draw drew; drive drove; ride rode; rise rose;
choose chose; freeze froze; steal stole; wear wore; tear tore; forget forgot; sit sat; stand stood; win won; shake shook; hide
hid; bite bit; fall fell; send sent; build built; spend spent; lend lent; dig dug; hang hung; stick stuck; shoot shot; weave
wove"""
_PLURALS = """child children; man men; woman women; foot feet; tooth teeth; mouse mice; goose geese; person people; leaf leaves;
knife knives; wife wives; life lives; wolf wolves; half halves; city cities; baby babies; story stories; box boxes; bus buses;
church churches; potato potatoes; hero heroes; ox oxen; loaf loaves; shelf shelves; thief thieves; country countries; dish dishes;
cactus cacti|cactuses; crisis crises"""
_MONTHS = [
    "January",
    "February",
    "March",
    "April",
    "May",
    "June",
    "July",
    "August",
    "September",
    "October",
    "November",
    "December",
]
_DAYS = ["Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday"]
_WORDS = """lamp chair river cloud stone bread horse window garden paper silver yellow candle bottle summer winter doctor
school market bridge forest island mirror pencil rabbit dragon castle rocket tunnel violin basket button carpet dinner engine
farmer guitar hammer jacket kitten ladder monkey needle orange pepper spider ticket turtle valley walnut"""
_NAMES = [
    "Anna",
    "Ben",
    "Clara",
    "David",
    "Emma",
    "Frank",
    "Grace",
    "Henry",
    "Ida",
    "Jack",
    "Kate",
    "Leo",
    "Mary",
    "Nick",
    "Olga",
    "Paul",
]
_THINGS = ["apples", "books", "coins", "pens", "cards", "shells", "stamps", "eggs"]
_COLOURS = ["red", "blue", "green", "black", "white", "yellow"]
_HELD = ["key", "coin", "ring", "letter", "map", "watch", "pen", "knife", "spoon", "candle"]
_UNITS = [
    "zero",
    "one",
    "two",
    "three",
    "four",
    "five",
    "six",
    "seven",
    "eight",
    "nine",
    "ten",
    "eleven",
    "twelve",
    "thirteen",
    "fourteen",
    "fifteen",
    "sixteen",
    "seventeen",
    "eighteen",
    "nineteen",
]
_TENS = ["twenty", "thirty", "forty", "fifty", "sixty", "seventy", "eighty", "ninety"]
_NUMBER = r"\d+"
_COUNTED = rf"{_NUMBER}|{'|'.join(_UNITS)}"


class Question(msgspec.Struct, frozen=True):
    """`answer` is a pattern that stands in a right answer as a word of its own; with `among` the first of those counts.

    `among` is for a question that names its own answer: who repeats all that was offered has not answered.
    """

    text: str
    answer: str
    among: str = ""
    kind: str = ""

    def is_right(self, said: str) -> bool:
        """Whether an answer has it."""
        if not self.among:
            return re.search(rf"\b(?:{self.answer})\b", said, re.I) is not None
        found = re.search(rf"\b(?:{self.among})\b", said, re.I)
        return found is not None and re.fullmatch(self.answer, found[0], re.I) is not None


def questions() -> list[Question]:
    """All of them, each once; the kinds take turns, so that any beginning of the list is a fair sample."""
    kinds = [_made(name, make) for name, make in _KINDS.items()]
    places = sorted((place / len(kind), number, place) for number, kind in enumerate(kinds) for place in range(len(kind)))
    return [kinds[number][place] for _, number, place in places]


def is_training(question: Question) -> bool:
    """Which half a question is in, by its text alone."""
    return hashlib.sha256(question.text.encode()).digest()[0] % 2 == 0


def _made(name: str, make: Callable[[random.Random], list[Question]]) -> list[Question]:
    """The questions of a kind in an order by chance, each text once."""
    dice = random.Random(f"cascade {name}")
    once = {one.text: Question(one.text, one.answer, one.among, name) for one in make(dice)}
    found = list(once.values())
    dice.shuffle(found)
    return found


def _capitals(_: random.Random) -> list[Question]:
    return [Question(f"What is the capital of {land}?", town) for land, town in _pairs(_CAPITALS)]


def _opposites(_: random.Random) -> list[Question]:
    return [Question(f"What is the opposite of the word '{word}'?", other) for word, other in _pairs(_OPPOSITES)]


def _continents(_: random.Random) -> list[Question]:
    groups = [group.split(":") for group in _CONTINENTS.split(";")]
    among = "Europe|Asia|Africa|(?:North |South )?America|Australia|Antarctica"
    return [
        Question(f"On which continent is {land}?", rf".*{name.strip()}", among)
        for name, lands in groups
        for land in lands.split()
    ]


def _pasts(_: random.Random) -> list[Question]:
    return [Question(f"What is the past tense of the verb '{verb}'?", past) for verb, past in _pairs(_PASTS)]


def _plurals(_: random.Random) -> list[Question]:
    return [Question(f"What is the plural of the word '{word}'?", plural) for word, plural in _pairs(_PLURALS)]


def _sums(_: random.Random) -> list[Question]:
    terms = [(a, b) for a in (2, 3, 4, 5, 6, 7, 8, 9, 11, 12, 14, 17, 20, 25) for b in (1, 3, 5, 8, 10, 13)]
    return [Question(f"What is {a} + {b}? Answer with the number only.", str(a + b)) for a, b in terms]


def _differences(_: random.Random) -> list[Question]:
    terms = [
        (a, b) for a in (7, 9, 10, 12, 13, 15, 18, 20, 24, 30) for b in (1, 2, 3, 4, 5, 6, 8) if a - b not in (a, b) and a > b
    ]
    return [Question(f"What is {a} - {b}? Answer with the number only.", str(a - b)) for a, b in terms]


def _products(_: random.Random) -> list[Question]:
    return [
        Question(f"What is {a} times {b}? Answer with the number only.", str(a * b))
        for a in range(2, 11)
        for b in range(2, a + 1)
    ]


def _copies(_: random.Random) -> list[Question]:
    return [Question(f"Repeat this word once: {word}", word) for word in _WORDS.split()]


def _reversals(_: random.Random) -> list[Question]:
    return [Question(f"Write the word '{word}' backwards.", word[::-1]) for word in _WORDS.split() if len(word) < 6]


def _letters(_: random.Random) -> list[Question]:
    return [
        Question(f"How many letters are in the word '{word}'?", f"{len(word)}|{_UNITS[len(word)]}", _COUNTED)
        for word in _WORDS.split()
    ]


def _counts(dice: random.Random) -> list[Question]:
    found = []
    for _ in range(70):
        many, colour = dice.randint(1, 4), dice.choice(_COLOURS)
        row = [colour] * many + dice.choices([other for other in _COLOURS if other != colour], k=dice.randint(1, 4))
        dice.shuffle(row)
        text = f"How many times is '{colour}' in this list: {', '.join(row)}? Answer with a number."
        found.append(Question(text, f"{many}|{_UNITS[many]}", _COUNTED))
    return found


def _holdings(dice: random.Random) -> list[Question]:
    found = []
    for _ in range(110):
        names, numbers = dice.sample(_NAMES, 3), dice.sample(range(2, 30), 3)
        thing, asked = dice.choice(_THINGS), dice.randrange(3)
        told = ", ".join(f"{name} has {number} {thing}" for name, number in zip(names, numbers, strict=True))
        found.append(Question(f"{told}. How many {thing} does {names[asked]} have?", str(numbers[asked]), _NUMBER))
    return found


def _boxes(dice: random.Random) -> list[Question]:
    found = []
    for _ in range(110):
        colours, things, asked = dice.sample(_COLOURS, 3), dice.sample(_HELD, 3), dice.randrange(3)
        told = ", ".join(f"the {colour} box holds a {thing}" for colour, thing in zip(colours, things, strict=True))
        text = f"{told[0].upper()}{told[1:]}. What does the {colours[asked]} box hold?"
        found.append(Question(text, things[asked], "|".join(_HELD)))
    return found


def _larger(dice: random.Random) -> list[Question]:
    pairs = [dice.sample(range(3, 99), 2) for _ in range(70)]
    return [Question(f"Which number is larger, {a} or {b}?", str(max(a, b)), _NUMBER) for a, b in pairs]


def _next(_: random.Random) -> list[Question]:
    rows = [("month", _MONTHS), ("day", _DAYS), ("letter", [chr(place) for place in range(65, 91)])]
    found = [
        Question(f"Which {name} comes right after {row[place]}?", row[(place + 1) % len(row)])
        for name, row in rows
        for place in range(len(row) - (name == "letter"))
    ]
    return [*found, *(Question(f"Which number comes right after {number}?", str(number + 1)) for number in range(9, 90, 4))]


def _figures(_: random.Random) -> list[Question]:
    found = [(number, word) for number, word in enumerate(_UNITS) if number > 2]
    found += [(10 * ten + unit, f"{_TENS[ten - 2]}-{_UNITS[unit]}") for ten in range(2, 10) for unit in (1, 4, 6, 9)]
    return [Question(f"Write the number {word} in digits.", str(number)) for number, word in found]


_KINDS: dict[str, Callable[[random.Random], list[Question]]] = {
    "capitals": _capitals,
    "opposites": _opposites,
    "continents": _continents,
    "past tenses": _pasts,
    "plurals": _plurals,
    "sums": _sums,
    "differences": _differences,
    "products": _products,
    "copying": _copies,
    "reversal": _reversals,
    "letters": _letters,
    "counting": _counts,
    "holdings": _holdings,
    "boxes": _boxes,
    "larger": _larger,
    "what is next": _next,
    "digits": _figures,
}


def _pairs(text: str) -> list[tuple[str, str]]:
    found = [entry.split() for entry in text.split(";")]
    return [(entry[0], entry[1]) for entry in found]
