"""The tasks: what is asked, and the answer that a package computes."""

from __future__ import annotations

from examples.word_tools.tasks.dates import DATES
from examples.word_tools.tasks.numbers import NUMBERS
from examples.word_tools.tasks.records import RECORDS
from examples.word_tools.tasks.sql import SQL
from examples.word_tools.tasks.task import FAMILIES, Row, Task

TASKS: dict[str, Task] = {task.task_id: task for task in (*NUMBERS, *DATES, *RECORDS, *SQL)}

__all__ = ["FAMILIES", "TASKS", "Row", "Task"]
