"""Short SQLite queries rewritten for another database, by sqlglot.

Each query has something that the dialect writes in another way: a limit, a quoted name, or both.
"""

from __future__ import annotations

import random

import sqlglot

from examples.word_tools.tasks.task import Row, Task

_DIALECTS = {"sqlserver": ("SQL Server", "tsql"), "oracle": ("Oracle", "oracle"), "mysql": ("MySQL", "mysql")}
_TABLES = {
    "users": ("name", "age", "email", "city"),
    "orders": ("id", "price", "status", "customer"),
    "books": ("title", "author", "year", "pages"),
    "flights": ("origin", "gate", "delay", "airline"),
    "movies": ("title", "rating", "length", "genre"),
    "staff": ("name", "salary", "team", "office"),
}
_NUMERIC = ("age", "price", "year", "pages", "delay", "rating", "length", "salary", "id")
_QUESTIONS = ("Rewrite for {database}: {query}", "Translate this SQLite query to {database}: {query}")


def _task(dialect: str) -> Task:
    database, code = _DIALECTS[dialect]

    def draw(rng: random.Random) -> Row:
        while True:
            query = _query(rng)
            answer = sqlglot.transpile(query, read="sqlite", write=code)[0]
            if answer != query:
                return Row(query, rng.choice(_QUESTIONS).format(database=database, query=query), answer)

    return Task(f"{dialect}_queries", "sql", f"{database} queries", f"Rewrites SQLite queries for {database}", draw)


def _query(rng: random.Random) -> str:
    """Return a SELECT of one or two columns with a filter or an order, a limit, and perhaps quoted names."""
    table = rng.choice(list(_TABLES))
    columns = rng.sample(_TABLES[table], rng.choice((1, 1, 2)))
    quoted = rng.random() < 0.5
    chosen = ", ".join(f'"{column}"' if quoted else column for column in columns)
    query = f"SELECT {chosen} FROM {table}"
    if rng.random() < 0.5:
        numeric = rng.choice([column for column in _TABLES[table] if column in _NUMERIC])
        query += f" WHERE {numeric} > {rng.randrange(1, 100)}"
    return query if quoted and rng.random() < 0.5 else f"{query} LIMIT {rng.randrange(1, 100)}"


SQL = tuple(_task(dialect) for dialect in _DIALECTS)
