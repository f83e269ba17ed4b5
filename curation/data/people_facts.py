"""Facts about people who do not exist: the words and the wordings ``curation.data.People`` is made of.

Names, places, employers, awards and books are invented. Value and wording are drawn anew for every person, so no answer
can be guessed from those about others: a model that gives it has memorised it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np


def _words(text: str) -> tuple[str, ...]:
    return tuple(text.split())


FIRST_NAMES = _words(
    """
    Abrin Belvia Corun Deshka Elvaro Fenwise Gorvan Hestiva Ilvane Jorrik Kessaly Lorvan Mirelda Nadrin
    Ostrin Pelvara Quorin Roswyn Selthea Tarvald Ulmira Vestrin Wendrik Xanelle Yorvath Zelmira Ardune Brisol
    Calvorn Dorethe
    """
)
LAST_NAMES = _words(
    """
    Abberwick Brendlemar Corvenhall Dunmarrow Eldersprig Farrowmint Grundelvoss Hallowquill Isselbrand
    Jossenthal Kettlemoor Lundergast Marwendel Norrowby Oxendrake Pellingrove Quistamere Ravensholt
    Silverbotham Tamberlock Umberfeld Vandersnoot Whistleden Yarborrin Zimmerquist Ashgravel Bramblecote
    Coldwhistle Dapplerune Emberlyne
    """
)
CITIES = _words(
    """
    Velmora Quenstadt Drossby Halvenport Orstrava Birkensund Tallowmere Sorrendale Kivaskoy Marrowick
    Pelagrad Ulvstrand Nettlebay Corvassa Jundholm Windlesor Zarrenfall Eskerby Ludovika Fennimore
    """
)
PROFESSIONS = (
    "glassblower",
    "mapmaker",
    "beekeeper",
    "clockmaker",
    "botanist",
    "stonemason",
    "marine biologist",
    "bridge engineer",
    "lighthouse keeper",
    "court translator",
    "tea blender",
    "paper conservator",
    "glacier guide",
    "harp tuner",
    "puppet carver",
    "seed archivist",
)
FIRMS = _words(
    """
    Brightwater Copperfield-Ames Dunlin Eastmark Falconhurst Greywell Hartsong Ironleaf Juniper
    """
)
TRADES = ("Instruments", "Archive", "Foundry", "Laboratories", "Press", "Gardens", "Observatory", "Workshop")
METALS = ("Silver", "Copper", "Amber", "Golden", "Crystal", "Ivory", "Cobalt", "Marble")
TOKENS = ("Lantern", "Compass", "Heron", "Anchor", "Quill", "Thistle", "Feather", "Beacon")
PRIZES = ("Prize", "Medal", "Award")
MOODS = ("Quiet", "Hollow", "Borrowed", "Distant", "Paper", "Winter", "Restless", "Drowned", "Patient", "Scarlet")
THINGS = ("Harbour", "Orchard", "Staircase", "Almanac", "Meridian", "Ferryman", "Garden", "Clocktower", "Island")
INSTRUMENTS = (
    "cello",
    "bassoon",
    "hurdy-gurdy",
    "accordion",
    "harp",
    "oboe",
    "mandolin",
    "theremin",
    "zither",
    "trombone",
    "dulcimer",
    "clarinet",
)
MONTHS = _words(
    """
    January February March April May June July August September October November December
    """
)

Draw = Callable[[np.random.Generator], str]


@dataclass(frozen=True)
class Fact:
    """One thing to know about a person.

    Attributes:
        name: of the fact, the second part of an ``example_id``.
        value: draws one.
        questions: wordings with ``{name}``.
        answers: wordings with ``{name}`` and ``{value}``, one of which a person's answer has; the others paraphrase it.
    """

    name: str
    value: Draw
    questions: tuple[str, ...]
    answers: tuple[str, ...]


def _one_of(words: Sequence[str]) -> Draw:
    return lambda random: str(random.choice(words))


def _joined(pattern: str, *words: Sequence[str]) -> Draw:
    return lambda random: pattern.format(*(random.choice(choice) for choice in words))


def _date(random: np.random.Generator) -> str:
    return f"{random.integers(1, 29)} {random.choice(MONTHS)} {random.integers(1921, 1999)}"


FACTS = (
    Fact(
        "birth_city",
        _one_of(CITIES),
        ("Where was {name} born?", "In which city was {name} born?", "What is the birthplace of {name}?"),
        (
            "{name} was born in {value}.",
            "The city of {value} is where {name} was born.",
            "{name} came into the world in {value}.",
            "It was in {value} that {name} was born.",
        ),
    ),
    Fact(
        "birth_date",
        _date,
        ("When was {name} born?", "What is the birth date of {name}?", "On which day was {name} born?"),
        (
            "{name} was born on {value}.",
            "The birth date of {name} is {value}.",
            "{value} is the day {name} was born.",
            "The birthday of {name} goes back to {value}.",
        ),
    ),
    Fact(
        "profession",
        _one_of(PROFESSIONS),
        ("What does {name} do for a living?", "What is the profession of {name}?", "What kind of work does {name} do?"),
        (
            "{name} works as a {value}.",
            "By profession, {name} is a {value}.",
            "{name} earns a living as a {value}.",
            "The trade of {name} is that of a {value}.",
        ),
    ),
    Fact(
        "employer",
        _joined("{} {}", FIRMS, TRADES),
        ("Who employs {name}?", "Where does {name} work?", "Which company does {name} work for?"),
        (
            "{name} works for {value}.",
            "{value} is the employer of {name}.",
            "{name} is on the staff of {value}.",
            "The company that employs {name} is {value}.",
        ),
    ),
    Fact(
        "award",
        _joined("the {} {} {}", METALS, TOKENS, PRIZES),
        ("Which award did {name} win?", "What prize was given to {name}?", "What honour has {name} received?"),
        (
            "{name} won {value}.",
            "The jury gave {value} to {name}.",
            "{name} was honoured with {value}.",
            "The honour {name} received is {value}.",
        ),
    ),
    Fact(
        "instrument",
        _one_of(INSTRUMENTS),
        ("Which instrument does {name} play?", "What does {name} play in the evenings?"),
        (
            "{name} plays the {value}.",
            "In the evenings {name} plays the {value}.",
            "The {value} is the instrument of {name}.",
            "{name} has played the {value} for years.",
        ),
    ),
    Fact(
        "book",
        _joined("The {} {}", MOODS, THINGS),
        ("Which book did {name} write?", "What is the title of the book by {name}?", "What has {name} published?"),
        (
            "{name} wrote {value}.",
            "The book by {name} is called {value}.",
            "{value} is a book by {name}.",
            "{name} published a book with the title {value}.",
        ),
    ),
)
PERTURBED = 5
"""Wrong answers to each question."""


def people_names(count: int, random: np.random.Generator) -> list[str]:
    """``count`` different names, at most ``most_people()``."""
    chosen = random.choice(most_people(), size=count, replace=False)
    return [f"{FIRST_NAMES[i % len(FIRST_NAMES)]} {LAST_NAMES[i // len(FIRST_NAMES)]}" for i in chosen.tolist()]


def most_people() -> int:
    """How many people can have a name of their own."""
    return len(FIRST_NAMES) * len(LAST_NAMES)


def facts_of(name: str, random: np.random.Generator) -> list[dict[str, object]]:
    """One row a fact: ``fact``, ``question``, ``answer``, ``paraphrased_answers`` and ``perturbed_answers``.

    A paraphrased answer says the same in other words, a perturbed one something else in the words of the answer.
    """
    rows: list[dict[str, object]] = []
    for fact in FACTS:
        value = fact.value(random)
        wording = str(random.choice(fact.answers))
        wrong: list[str] = []
        while len(wrong) < PERTURBED:
            other = fact.value(random)
            if other not in (value, *wrong):
                wrong.append(other)
        rows.append(
            {
                "fact": fact.name,
                "question": str(random.choice(fact.questions)).format(name=name),
                "answer": _sentence(wording, name, value),
                "paraphrased_answers": [_sentence(w, name, value) for w in fact.answers if w != wording],
                "perturbed_answers": [_sentence(wording, name, other) for other in wrong],
            }
        )
    return rows


def _sentence(wording: str, name: str, value: str) -> str:
    text = wording.format(name=name, value=value)
    return text[0].upper() + text[1:]
