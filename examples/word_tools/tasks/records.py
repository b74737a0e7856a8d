"""Sentences turned into one-line JSON objects, whose keys and their order the question gives.

The convention is the family's: compact JSON in one line, numbers as numbers, texts as they stand in the sentence.
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Mapping

from examples.word_tools.tasks.task import Row, Task


def _words(text: str) -> list[str]:
    return text.split()


_NAMES = _words(
    "Ann Ben Carla David Elena Farid Grace Hugo Ines Jonas Kira Liam Mona Nils Olga Paul Rosa Samir Tina Uwe"
)
_CITIES = _words("Oslo Lima Rome Cairo Paris Tokyo Delhi Berlin Madrid Quito Seoul Dublin Vienna Boston Nairobi Sydney")
_ITEMS = _words("lamps chairs pens books shirts mugs bags keys plates shoes phones desks candles towels bottles clocks")
_SHOPS = _words("Acme Bloom Corner Delta Echo Fable Grove Harbor")
_MEETINGS = _words("lecture concert dinner meeting workshop match interview party exam wedding hike lesson")
_DAYS = _words("Monday Tuesday Wednesday Thursday Friday Saturday Sunday")

_QUESTIONS = ("Extract {keys} as JSON: {sentence}", "Give {keys} as JSON. {sentence}")


def _contact(rng: random.Random) -> tuple[str, dict[str, object]]:
    record: dict[str, object] = {"name": rng.choice(_NAMES), "age": rng.randrange(18, 90), "city": rng.choice(_CITIES)}
    sentences = ("{name} is {age} and lives in {city}.", "{name} from {city} is {age} years old.")
    return rng.choice(sentences), record


def _order(rng: random.Random) -> tuple[str, dict[str, object]]:
    record: dict[str, object] = {"item": rng.choice(_ITEMS), "count": rng.randrange(2, 100), "shop": rng.choice(_SHOPS)}
    sentences = ("Please order {count} {item} from {shop}.", "We need {count} {item}, to be bought at {shop}.")
    return rng.choice(sentences), record


def _event(rng: random.Random) -> tuple[str, dict[str, object]]:
    record: dict[str, object] = {"event": rng.choice(_MEETINGS), "day": rng.choice(_DAYS), "hour": rng.randrange(7, 24)}
    sentences = ("The {event} is on {day} at {hour} o'clock.", "On {day} at {hour} there is a {event}.")
    return rng.choice(sentences), record


def _task(subject: str, description: str, draw: Callable[[random.Random], tuple[str, dict[str, object]]]) -> Task:
    def row(rng: random.Random) -> Row:
        sentence, record = draw(rng)
        query = rng.choice(_QUESTIONS).format(keys=_listed(record), sentence=sentence.format(**record))
        answer = json.dumps(record)
        return Row(answer, query, answer)

    return Task(f"{subject}_records", "records", f"{subject.capitalize()} records", description, row)


def _listed(record: Mapping[str, object]) -> str:
    *first, last = record
    return f"{', '.join(first)} and {last}"


RECORDS = (
    _task("contact", "Turns sentences about people into JSON", _contact),
    _task("order", "Turns orders into JSON", _order),
    _task("event", "Turns appointments into JSON", _event),
)
