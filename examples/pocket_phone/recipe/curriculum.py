"""The base model's exercises, which teach the action language and screen reading by explicit instructions.

They contain no app's conventions. A convention decides what to use for a request; an exercise states it in the
instruction, with elements, names and apps mixed at random: "Tap the bag, else the heart as Wishlist; then the star."
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass

from examples.pocket_phone.apps import APPS, CATEGORIES, action_of, click_function, click_text
from examples.pocket_phone.episodes import DONE, OPEN, SPECIAL, TYPED, WAIT, app_screen, home_screen, phrase
from examples.pocket_phone.glyphs import GLYPHS
from examples.pocket_phone.prompts import Example, step_text
from examples.pocket_phone.screens import HOME, Screen

_ELEMENTS = tuple(name for name in GLYPHS if name not in SPECIAL)
_PHRASES = {"scroll down": "Scroll down", "go back": "Go back to the previous page", "scroll up": "Scroll up"}
_P_SELF_EVIDENT, _P_NAMED, _P_FUNCTION, _P_PHRASE = 0.2, 0.15, 0.12, 0.04
_P_PRELUDE, _P_SEVERAL = 0.25, 0.35


def names() -> list[str]:
    """Return every name that any app gives to an element, without the app or the element."""
    labels = {action_of(app, glyph) for app in APPS.values() for glyph in CATEGORIES[app.category].labels}
    return sorted(label.split('"')[1] for label in labels if '"' in label)


@dataclass(frozen=True)
class Choice:
    """One choice of an exercise: its wording, and the actions for the first and the second element."""

    words: str
    first: str
    first_action: str
    second_action: str


class Curriculum:
    """Draws exercises over a fixed pool of screens, whose visual features are computed once."""

    def __init__(self, size: int, rng: random.Random) -> None:
        self._rng = rng
        self._ease = 0.0
        self._names = names()
        self._apps = list(APPS.values())
        self.plain = [self._plain() for _ in range(size)]
        self.home = [home_screen(rng.choice(self._apps), True, "train", rng) for _ in range(size // 8)]
        self.special = {
            glyph: [app_screen(rng.choice(self._apps), [glyph], set(), "train", rng) for _ in range(size // 16)]
            for glyph in ("keys", "tick", "spinner")
        }

    def reseed(self, rng: random.Random, ease: float = 0.0) -> None:
        """Sample from `rng` from now on, so that a resumed run sees the same exercises as an uninterrupted one.

        `ease`, from 1 to 0, makes exercises simpler than at the end (one choice, plain names, no request first).
        """
        self._rng, self._ease = rng, ease

    @property
    def screens(self) -> list[Screen]:
        """Return the whole pool."""
        return [*self.plain, *self.home, *(screen for pool in self.special.values() for screen in pool)]

    def _plain(self) -> Screen:
        rng = self._rng
        shown = rng.sample(_ELEMENTS, rng.randint(1, 3))
        return app_screen(rng.choice(self._apps), shown, set(), "train", rng)

    def step(self) -> Example:
        """Draw one exercise on one screen."""
        if self._rng.random() < _P_SELF_EVIDENT:
            return self._self_evident()
        return self._explicit()

    def sequence(self) -> Example:
        """Draw one exercise over two to four screens, answered on one line each."""
        rng = self._rng
        screens = [rng.choice(self.plain) for _ in range(rng.randint(2, 3))]
        choices = [self._choice(screen) for screen in screens]
        answers = [self._answer(choice, screen) for choice, screen in zip(choices, screens, strict=True)]
        text = self._prelude() + self._sentence(choices)
        if rng.random() < 0.5:
            screens.append(rng.choice(self.special["tick"]))
            answers.append(DONE)
        if rng.random() < 0.3:
            home = rng.choice(self.home)
            app = APPS[rng.choice([cell[1:] for cell in home.cells if cell])]
            screens.insert(0, home)
            answers.insert(0, OPEN + app.display_name)
            text = phrase(app, text[0].lower() + text[1:-1], True, rng)
        return Example(tuple(screens), text, "\n".join(answers))

    def _explicit(self) -> Example:
        rng = self._rng
        screen = rng.choice(self.plain)
        if rng.random() >= _P_SEVERAL * (1 - self._ease):
            text = self._prelude() + self._sentence([choice := self._choice(screen)])
            history = self._history(rng.randint(0, 2)) if rng.random() < 0.3 * (1 - self._ease) else []
            return Example((screen,), step_text(text, history), self._answer(choice, screen))
        choices = [self._choice(screen) for _ in range(rng.choice((2, 2, 3)))]
        turn = rng.randrange(len(choices))
        done = [rng.choice((choice.first_action, choice.second_action)) for choice in choices[:turn]]
        opened = [OPEN + APPS[screen.app].display_name] if rng.random() < 0.4 else []
        text = step_text(self._prelude() + self._sentence(choices), [*opened, *done])
        return Example((screen,), text, self._answer(choices[turn], screen))

    def _choice(self, screen: Screen) -> Choice:
        """Draw a choice whose first element is on the screen about half of the time."""
        rng = self._rng
        present = [cell for cell in screen.cells if cell]
        absent = [name for name in _ELEMENTS if name not in present]
        first_shown = rng.random() < 0.55
        first = rng.choice(present if first_shown else absent)
        others = [name for name in (present if not first_shown or rng.random() < 0.6 else absent) if name != first]
        first_words, first_action = self._named(first)
        if rng.random() < _P_PHRASE * (1 - self._ease):
            words, second_action = rng.choice(tuple(_PHRASES.items()))
            return Choice(f"{first_words}, else {words}", first, first_action, second_action)
        second_words, second_action = self._named(rng.choice(others or absent))
        return Choice(f"{first_words}, else the {second_words}", first, first_action, second_action)

    def _named(self, glyph: str) -> tuple[str, str]:
        """Return the wording for an element and the action that uses it, by its plain name or by a given one."""
        rng = self._rng
        click = click_function if (by_function := rng.random() < _P_FUNCTION * (1 - self._ease)) else click_text
        suffix = " function" if by_function else ""
        if rng.random() < _P_NAMED * (1 - self._ease):
            name = rng.choice(self._names)
            return f"{glyph}{suffix} as {name}", click(name)
        return glyph + suffix, click(glyph)

    @staticmethod
    def _answer(choice: Choice, screen: Screen) -> str:
        return choice.first_action if choice.first in screen.cells else choice.second_action

    @staticmethod
    def _sentence(choices: Sequence[Choice]) -> str:
        return "Tap the " + "; then the ".join(choice.words for choice in choices) + "."

    def _prelude(self) -> str:
        """Return, sometimes, a user's request to put before the instruction, which must not change the answer."""
        if self._rng.random() >= _P_PRELUDE * (1 - self._ease):
            return ""
        return self._request(self._rng.random() < 0.3)[0] + " "

    def _request(self, named: bool, app: str | None = None) -> tuple[str, str]:
        """Return a user's request and the item in it."""
        rng = self._rng
        chosen = APPS[app] if app else rng.choice(self._apps)
        category = CATEGORIES[chosen.category]
        item = rng.choice(category.items)
        sentence = rng.choice(rng.choice(category.intents).sentences)
        return phrase(chosen, sentence.format(item=item), named, rng), item

    def _history(self, longest: int) -> list[str]:
        rng = self._rng
        clicks = [rng.choice((click_text, click_function))(rng.choice(self._names)) for _ in range(longest)]
        return ([OPEN + rng.choice(self._apps).display_name] if rng.random() < 0.3 else []) + clicks

    def _self_evident(self) -> Example:
        """Draw a step that needs no convention: open a named app, type an item, wait for a page, or end the task."""
        rng = self._rng
        kind = rng.choice((HOME, "keys", "tick", "spinner"))
        if kind == HOME:
            screen = rng.choice(self.home)
            app = rng.choice([cell[1:] for cell in screen.cells if cell])
            return Example((screen,), self._request(True, app)[0], OPEN + APPS[app].display_name)
        screen = rng.choice(self.special[kind])
        text, item = self._request(rng.random() < 0.4, screen.app)
        answer = {"keys": TYPED + item, "tick": DONE, "spinner": WAIT}[kind]
        return Example((screen,), step_text(text, self._history(rng.randint(0, 3))), answer)
