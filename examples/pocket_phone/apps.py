"""The phone's apps and categories, read from `conventions.toml`, and functions over them."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from examples.pocket_phone.glyphs import Colour

TYPE = "TYPE"


@dataclass(frozen=True)
class Slot:
    """One decision: use `preferred` if it is on the screen, else `fallback`."""

    preferred: str
    fallback: str


Plan = tuple[Slot | str, ...]
"""The slots of a task in order; the string `TYPE` means typing the item."""


@dataclass(frozen=True)
class Intent:
    """A task: the sentences that request it (with `{item}`), and the category's default plan for it."""

    name: str
    sentences: tuple[str, ...]
    plan: Plan


@dataclass(frozen=True)
class Category:
    """What the apps of one kind share: intents, items, and labels by glyph."""

    name: str
    display_name: str
    items: tuple[str, ...]
    labels: Mapping[str, str]
    intents: tuple[Intent, ...]


@dataclass(frozen=True)
class App:
    """One app: its appearance, and its deviations from the category."""

    name: str
    display_name: str
    category: str
    emblem: str
    colour: Colour
    labels: Mapping[str, str]
    flips: Mapping[str, tuple[int, ...]]
    reversed: frozenset[str]


def _plan(text: str) -> Plan:
    slots: list[Slot | str] = []
    for part in text.split():
        preferred, _, fallback = part.partition("|")
        slots.append(Slot(preferred, fallback) if fallback else part)
    return tuple(slots)


def _category(name: str, data: Mapping[str, Any]) -> Category:
    intents = tuple(
        Intent(intent, tuple(entry["sentences"]), _plan(entry["plan"])) for intent, entry in data["intents"].items()
    )
    return Category(name, data["display_name"], tuple(data["items"]), data["labels"], intents)


def _app(name: str, data: Mapping[str, Any]) -> App:
    red, green, blue = data["colour"]
    return App(
        name=name,
        display_name=data["display_name"],
        category=data["category"],
        emblem=data["emblem"],
        colour=(red, green, blue),
        labels=data["labels"],
        flips={intent: tuple(slots) for intent, slots in data["flips"].items()},
        reversed=frozenset(data["reversed"]),
    )


_DATA = tomllib.loads(Path(__file__).with_name("conventions.toml").read_text(encoding="utf-8"))
CATEGORIES: dict[str, Category] = {name: _category(name, data) for name, data in _DATA["categories"].items()}
APPS: dict[str, App] = {name: _app(name, data) for name, data in _DATA["apps"].items()}

ADAPTER_IDS: tuple[str, ...] = (*sorted(APPS), *sorted(CATEGORIES))
"""The 19 datasets, one per adapter."""


def apps_of(adapter_id: str) -> tuple[App, ...]:
    """Return the apps in the dataset `adapter_id`: one app, or all apps of a category."""
    if adapter_id in APPS:
        return (APPS[adapter_id],)
    return tuple(app for app in APPS.values() if app.category == adapter_id)


def action_of(app: App, glyph: str) -> str:
    """Return the action that uses `glyph` in `app`, with that app's label."""
    label = app.labels.get(glyph) or CATEGORIES[app.category].labels[glyph]
    kind, _, name = label.partition(":")
    return {"t": click_text(name), "f": click_function(name)}.get(kind, label)


def click_text(name: str) -> str:
    """Return the action that clicks an element by its text."""
    return f'Click on button with the text "{name}"'


def click_function(name: str) -> str:
    """Return the action that clicks an element by its function."""
    return f'Click on button with the function of "{name}"'


def plan_of(app: App, intent: Intent) -> Plan:
    """Return the plan of `intent` in `app`: the category's plan with this app's preferences and order."""
    flips = app.flips.get(intent.name, ())
    slots: list[Slot | str] = [
        Slot(slot.fallback, slot.preferred) if isinstance(slot, Slot) and number in flips else slot
        for number, slot in enumerate(intent.plan)
    ]
    if intent.name in app.reversed:
        slots.reverse()
    return tuple(slots)
