"""A task: a family, and a function that draws questions with their answers."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass

FAMILIES = {
    "numbers": "Numbers in words",
    "dates": "Dates in a language",
    "records": "Sentences to JSON",
    "sql": "SQL dialects",
}


@dataclass(frozen=True)
class Row:
    """A question, its only right answer, and the input that both are made of.

    Rows of one task with the same `key` have the same answer, in whatever words they ask for it.
    """

    key: str
    query: str
    response: str


@dataclass(frozen=True)
class Task:
    """One task. `draw` makes a random row of it."""

    task_id: str
    family: str
    display_name: str
    description: str
    draw: Callable[[random.Random], Row]
