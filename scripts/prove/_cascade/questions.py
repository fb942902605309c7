"""Small questions whose answers can be checked by a word. Deliberately easy: the models have 135 million weights."""

from __future__ import annotations

import re

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
_SUMS = [(a, b) for a in (2, 3, 4, 5, 6, 7, 8, 9, 11, 12) for b in (1, 3, 5, 8)]


class Question(msgspec.Struct, frozen=True):
    """`answer` is a pattern that stands in a right answer as a word of its own."""

    text: str
    answer: str

    def is_right(self, said: str) -> bool:
        """Whether an answer has it."""
        return re.search(rf"\b(?:{self.answer})\b", said, re.I) is not None


def questions() -> list[Question]:
    """All of them; the kinds take turns, so that any beginning and either half of them is a fair sample."""
    kinds = [
        [Question(f"What is the capital of {land}?", town) for land, town in _pairs(_CAPITALS)],
        [Question(f"What is the opposite of the word '{word}'?", other) for word, other in _pairs(_OPPOSITES)],
        [Question(f"What is {a} + {b}? Answer with the number only.", str(a + b)) for a, b in _SUMS],
    ]
    places = sorted((place / len(kind), number, place) for number, kind in enumerate(kinds) for place in range(len(kind)))
    return [kinds[number][place] for _, number, place in places]


def _pairs(text: str) -> list[tuple[str, str]]:
    found = [entry.split() for entry in text.split(";")]
    return [(entry[0], entry[1]) for entry in found]
