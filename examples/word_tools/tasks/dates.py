"""ISO dates written out in a language, by babel's locale data.

The languages share months and word order in part: the tenth of April is "10. April" in German, Danish and Norwegian.
"""

from __future__ import annotations

import random
from datetime import date, timedelta

from babel.dates import format_date

from examples.word_tools.tasks.task import Row, Task

_LOCALES = {"german": "de", "danish": "da", "norwegian": "nb", "swedish": "sv"}
_FIRST = date(1990, 1, 1)
_DAYS = (date(2040, 1, 1) - _FIRST).days
_QUESTIONS = (
    "Write the date {date} in {language}.",
    "How is {date} written as a date in {language}?",
    "Put the calendar date {date} into {language}.",
)


def _task(language: str) -> Task:
    name = language.capitalize()

    def draw(rng: random.Random) -> Row:
        day = _FIRST + timedelta(days=rng.randrange(_DAYS))
        query = rng.choice(_QUESTIONS).format(date=day.isoformat(), language=name)
        return Row(day.isoformat(), query, format_date(day, "long", locale=_LOCALES[language]))

    return Task(f"{language}_dates", "dates", f"{name} dates", f"Writes ISO dates as {name} does", draw)


DATES = tuple(_task(language) for language in _LOCALES)
