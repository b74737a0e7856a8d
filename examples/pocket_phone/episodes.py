"""Episodes: a user's request with the screens and actions that fulfil it, sampled from an app's conventions."""

from __future__ import annotations

import random
from dataclasses import dataclass, replace
from typing import Literal

from examples.pocket_phone.apps import (
    ADAPTER_IDS,
    APPS,
    CATEGORIES,
    App,
    Category,
    Intent,
    Plan,
    Slot,
    action_of,
    apps_of,
    plan_of,
)
from examples.pocket_phone.glyphs import GLYPHS
from examples.pocket_phone.screens import COLUMNS, HOME, ROWS, SHADES, Screen

Split = Literal["train", "test"]
OPEN, TYPED, WAIT, DONE = "Open App: ", "Type text: ", "Wait for response", "Check status: successful"
SPECIAL = ("keys", "tick", "spinner", "house")
"""Glyphs with the same meaning in every app: keyboard, finished task, loading page, home screen."""

_P_HOME, _P_NAMED, _P_WAIT, _P_FAVOURITE = 0.4, 0.35, 0.08, 0.5
_P_BOTH, _P_PREFERRED = 0.4, 0.25
_P_EARLY = 0.25
_TEST_SHARE = 8
_MAX_TRAIN, _MAX_TEST = 9000, 1000


@dataclass(frozen=True)
class Step:
    """One screen and the right action on it."""

    screen: Screen
    action: str


@dataclass(frozen=True)
class Episode:
    """One row of a dataset: the request, and the screens with the right action on each."""

    episode_id: str
    app: str
    intent: str
    instruction: str
    steps: tuple[Step, ...]

    @property
    def actions(self) -> list[str]:
        """The right actions in order."""
        return [step.action for step in self.steps]


def generate(adapter_id: str, split: Split, count: int, seed: int, *, start: int = 0) -> list[Episode]:
    """Return `count` episodes of a dataset's split, from number `start` on. A shorter list is a prefix of a longer one.

    No screen of a `train` split occurs in any `test` split: a screen's hash decides in which split it may appear.

    Raises ValueError if `count` exceeds the ids of the split.
    """
    limit = _MAX_TRAIN if split == "train" else _MAX_TEST
    if not 0 <= count <= limit - start:
        raise ValueError(f"{split} count must be from 0 to {limit - start}, got {count}")
    return [_episode(adapter_id, split, number, seed) for number in range(start, start + count)]


def _episode(adapter_id: str, split: Split, number: int, seed: int) -> Episode:
    rng = random.Random(f"{seed}/{adapter_id}/{split}/{number}")
    app = rng.choice(apps_of(adapter_id))
    category = CATEGORIES[app.category]
    intent = rng.choice(category.intents)
    item = _item(app, category, rng)
    named = rng.random() < _P_NAMED
    instruction = phrase(app, rng.choice(intent.sentences).format(item=item), named, rng)
    steps = _play(app, intent, item, named, split=split, rng=rng)
    serial = ADAPTER_IDS.index(adapter_id) * 10_000 + number + (_MAX_TRAIN if split == "test" else 0)
    return Episode(f"{serial:06d}", app.name, intent.name, instruction, steps)


def retell(episode: Episode, rng: random.Random) -> Episode:
    """Return the same task on the same screens with another phrasing and item, which must not change the actions."""
    app = APPS[episode.app]
    category = CATEGORIES[app.category]
    intent = next(intent for intent in category.intents if intent.name == episode.intent)
    item = rng.choice(category.items)
    named = app.display_name in episode.instruction
    instruction = phrase(app, rng.choice(intent.sentences).format(item=item), named, rng)
    steps = [replace(step, action=TYPED + item) if step.action.startswith(TYPED) else step for step in episode.steps]
    return replace(episode, instruction=instruction, steps=tuple(steps))


def phrase(app: App, sentence: str, named: bool, rng: random.Random) -> str:
    """Phrase the request as a user would, with or without naming the app."""
    question = sentence.startswith(("is ", "where "))
    if named:
        form = (
            "In {app}, {it}" if question else rng.choice(("In {app}, {it}", "Open {app} and {it}", "Use {app}: {it}"))
        )
        text = form.format(app=app.display_name, it=sentence)
    else:
        text = sentence[0].upper() + sentence[1:]
    return text + ("?" if question else ".")


def _item(app: App, category: Category, rng: random.Random) -> str:
    """Return the item of a request: half of the time one of the app's favourites."""
    siblings = [other.name for other in APPS.values() if other.category == app.category]
    favourites = category.items[siblings.index(app.name) :: len(siblings)]
    return rng.choice(favourites if rng.random() < _P_FAVOURITE else category.items)


def _play(app: App, intent: Intent, item: str, named: bool, *, split: Split, rng: random.Random) -> tuple[Step, ...]:
    steps: list[Step] = []
    if rng.random() < _P_HOME:
        steps.append(Step(home_screen(app, named, split, rng), OPEN + app.display_name))
    if rng.random() < _P_WAIT:
        steps.append(Step(app_screen(app, ["spinner"], set(), split, rng), WAIT))
    plan = plan_of(app, intent)
    for number, slot in enumerate(plan):
        if isinstance(slot, Slot):
            shown, chosen = _decide(slot, rng)
            early = [
                later.preferred for later in plan[number + 1 :] if isinstance(later, Slot) and rng.random() < _P_EARLY
            ]
            screen = app_screen(app, shown + early, glyphs_of(plan), split, rng)
            steps.append(Step(screen, action_of(app, chosen)))
        else:
            steps.append(Step(app_screen(app, ["keys"], glyphs_of(plan), split, rng), TYPED + item))
    steps.append(Step(app_screen(app, ["tick"], set(), split, rng), DONE))
    return tuple(steps)


def _decide(slot: Slot, rng: random.Random) -> tuple[list[str], str]:
    """Return the glyphs shown for a slot, and the one to use: the preferred one if shown, else the fallback."""
    draw = rng.random()
    if draw < _P_BOTH:
        return [slot.preferred, slot.fallback], slot.preferred
    if draw < _P_BOTH + _P_PREFERRED:
        return [slot.preferred], slot.preferred
    on = ["lit"] if slot.preferred == "toggle" else []
    return [slot.fallback, *on], slot.fallback


def glyphs_of(plan: Plan) -> set[str]:
    """Return all glyphs of a plan's slots."""
    return {glyph for slot in plan if isinstance(slot, Slot) for glyph in (slot.preferred, slot.fallback)}


def home_screen(app: App, named: bool, split: Split, rng: random.Random) -> Screen:
    """Sample a launcher with `app` among others, without its siblings if the request does not name the app."""
    others = [other.name for other in APPS.values() if other is not app and (named or other.category != app.category)]
    icons = [app.name, *rng.sample(others, rng.randint(3, 6))]
    return _place(HOME, [f"@{icon}" for icon in icons], split, rng)


def app_screen(app: App, shown: list[str], avoid: set[str], split: Split, rng: random.Random) -> Screen:
    """Sample a screen of `app` with the glyphs `shown` and a few others that are neither in `avoid` nor special."""
    taken = {*avoid, *shown, *SPECIAL} | ({"lit"} if "toggle" in avoid else set())
    free = [name for name in GLYPHS if name not in taken]
    return _place(app.name, [*dict.fromkeys(shown), *rng.sample(free, rng.randint(2, 4))], split, rng)


def _place(app: str, names: list[str], split: Split, rng: random.Random) -> Screen:
    while True:
        cells = [""] * (COLUMNS * ROWS)
        for name, cell in zip(names, rng.sample(range(len(cells)), len(names)), strict=True):
            cells[cell] = name
        screen = Screen(app, tuple(cells), rng.randrange(SHADES), rng.randint(-1, 1), rng.randint(-1, 1))
        if (screen.key() % _TEST_SHARE == 0) == (split == "test"):
            return screen
