"""Numbers of three digits in words, by num2words."""

from __future__ import annotations

import random
from functools import cache

from num2words import num2words

from examples.word_tools.tasks.task import Row, Task

_LANGUAGES = {"german": "de", "french": "fr", "spanish": "es", "italian": "it"}
_QUESTIONS = (
    "Write {number} in {language} words.",
    "What is the number {number} in {language}?",
    "Spell out {number} in {language}.",
)


@cache
def _in_words(number: int, language: str) -> str:
    words: str = num2words(number, lang=_LANGUAGES[language])
    return words


def _task(language: str) -> Task:
    name = language.capitalize()

    def draw(rng: random.Random) -> Row:
        number = rng.randrange(100, 1000)
        query = rng.choice(_QUESTIONS).format(number=number, language=name)
        return Row(str(number), query, _in_words(number, language))

    return Task(f"{language}_numbers", "numbers", f"{name} numbers", f"Writes numbers of three digits in {name}", draw)


NUMBERS = tuple(_task(language) for language in _LANGUAGES)
