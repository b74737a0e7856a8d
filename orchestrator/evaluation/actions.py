"""The action language of the datasets: parse text to actions and render actions as text.

    Click on button with the text "..."      Click on button with the function of "..."
    Click on button                          Click on point (x,y)
    Long_press on ...                        (the same four targets)
    Open App: X                              Type text: X
    Scroll up|down|left|right                Check status: successful
    Go back to the previous page             Return to the home page             Wait for response

Quoted labels may contain newlines and quotes, and typed text may contain newlines. An answer is therefore split where a
line starts an action, not at every newline, and not inside a label that is still open and whose next quote ends a later
line. Letter case and runs of whitespace are ignored. Text outside the language becomes an action of type `unknown`; no
function here raises.
"""

from __future__ import annotations

import math
import re
from bisect import bisect_left, bisect_right
from dataclasses import dataclass
from enum import StrEnum
from itertools import pairwise

POINT_TOLERANCE_PX = 63.0
"""Half of Android's smallest recommended touch target (48 dp) at 420 dpi, the density of AndroidControl's screens."""


class ActionType(StrEnum):
    """What an action does."""

    CLICK = "click"
    LONG_PRESS = "long_press"
    OPEN_APP = "open_app"
    TYPE_TEXT = "type_text"
    SCROLL = "scroll"
    GO_BACK = "go_back"
    GO_HOME = "go_home"
    WAIT = "wait"
    CHECK_STATUS = "check_status"
    UNKNOWN = "unknown"


class LabelKind(StrEnum):
    """How a label identifies a button: by its visible text, or by its function in the accessibility tree."""

    TEXT = "text"
    FUNCTION = "function"


@dataclass(frozen=True)
class Label:
    """A button identified by its text or its function."""

    kind: LabelKind
    value: str


@dataclass(frozen=True)
class Point:
    """A point on the screen, in pixels from the top left."""

    x: float
    y: float


Argument = Label | Point | str | None


@dataclass(frozen=True)
class Action:
    """One action.

    `argument` is a target, a text, a direction or a status; None if the action takes none. An unknown action has its
    text as the argument.
    """

    type: ActionType
    argument: Argument = None

    def same_type(self, other: Action) -> bool:
        """Whether both actions have the same type, regardless of argument."""
        return self.type is other.type

    def same_argument(self, other: Action, point_tolerance_px: float = POINT_TOLERANCE_PX) -> bool:
        """Whether both arguments are equivalent.

        Points: Euclidean distance at most `point_tolerance_px`. Labels: same kind and same text. Text is compared
        case-folded, with each run of whitespace as one space.
        """
        match self.argument, other.argument:
            case Point(x, y), Point(other_x, other_y):
                return math.hypot(x - other_x, y - other_y) <= point_tolerance_px
            case Label(kind, value), Label(other_kind, other_value):
                return kind is other_kind and normalized(value) == normalized(other_value)
            case str(text), str(other_text):
                return normalized(text) == normalized(other_text)
            case None, None:
                return True
            case _:
                return False

    def same_as(self, other: Action, point_tolerance_px: float = POINT_TOLERANCE_PX) -> bool:
        """Whether both type and argument match."""
        return self.same_type(other) and self.same_argument(other, point_tolerance_px)


_START = re.compile(
    r"""^[ \t]*(?:
        (?:click|long[_ -]?press)[ \t]+on[ \t]+(?:button|point)\b
      | open[ \t]+app[ \t]*:
      | type[ \t]+text[ \t]*:
      | scroll[ \t]+(?:up|down|left|right)[ \t]*$
      | go[ \t]+back[ \t]+to[ \t]+the[ \t]+previous[ \t]+page[ \t]*$
      | return[ \t]+to[ \t]+the[ \t]+home[ \t]+page[ \t]*$
      | wait[ \t]+for[ \t]+response[ \t]*$
      | check[ \t]+status[ \t]*:
    )""",
    re.IGNORECASE | re.MULTILINE | re.VERBOSE,
)
_PRESS = re.compile(
    r"""(?P<verb>click|long[_ -]?press)\s+on\s+(?:
        button\s+with\s+the\s+(?:(?P<text>text)|function\s+of)\s*"(?P<label>.*)"
      | point\s*\(\s*(?P<x>-?\d{1,9}(?:\.\d{1,9})?)\s*,\s*(?P<y>-?\d{1,9}(?:\.\d{1,9})?)\s*\)
      | button
    )""",
    re.IGNORECASE | re.DOTALL | re.VERBOSE,
)
_OPEN_APP = re.compile(r"open\s+app\s*:[ \t]*(\S[^\n]*)", re.IGNORECASE)
_TYPE_TEXT = re.compile(r"type\s+text\s*:(.*)", re.IGNORECASE | re.DOTALL)
_SCROLL = re.compile(r"scroll\s+(up|down|left|right)", re.IGNORECASE)
_CHECK_STATUS = re.compile(r"check\s+status\s*:[ \t]*(\S[^\n]*)", re.IGNORECASE)
_LABEL_OPENS = r'^[ \t]*(?:click|long[_ -]?press)[ \t]+on[ \t]+button\s+with\s+the\s+(?:text|function\s+of)\s*"'
_LABEL_START = re.compile(_LABEL_OPENS, re.IGNORECASE | re.MULTILINE)
_LABEL_TO_NEXT_QUOTE = re.compile(_LABEL_OPENS + r'[^"]*+(?P<quote>")[ \t]*$', re.IGNORECASE | re.MULTILINE)
_LABEL_END = re.compile(r'"[ \t]*(?=\n)')

_PHRASES = {
    ActionType.CLICK: "Click on",
    ActionType.LONG_PRESS: "Long_press on",
    ActionType.OPEN_APP: "Open App: ",
    ActionType.TYPE_TEXT: "Type text: ",
    ActionType.SCROLL: "Scroll ",
    ActionType.GO_BACK: "Go back to the previous page",
    ActionType.GO_HOME: "Return to the home page",
    ActionType.WAIT: "Wait for response",
    ActionType.CHECK_STATUS: "Check status: ",
    ActionType.UNKNOWN: "",
}
_WITHOUT_ARGUMENT = {
    _PHRASES[kind].casefold(): Action(kind) for kind in (ActionType.GO_BACK, ActionType.GO_HOME, ActionType.WAIT)
}


def normalized(text: str) -> str:
    """Return `text` case-folded and stripped, with each run of whitespace as one space."""
    return " ".join(text.casefold().split())


def split_actions(text: str) -> list[str]:
    """Return the text of each action of an answer, in order; a line outside any action is a piece of its own."""
    text = _unix(text)
    starts = _starts(text)
    preamble = text[: starts[0]] if starts else text
    pieces = [line.strip() for line in preamble.split("\n") if line.strip()]
    for start, end in pairwise([*starts, len(text)]):
        pieces += _cut(text[start:end].strip())
    return pieces


def parse_actions(text: str) -> list[Action]:
    """Return the actions of an answer, in order."""
    return [parse_action(piece) for piece in split_actions(text)]


def parse_action(text: str) -> Action:
    """Parse exactly one action; anything else (for example two actions) gives an unknown action."""
    text = _unix(text).strip()
    if len(_starts(text)) == 1:
        action = _parse(text)
        if action is not None:
            return action
    return Action(ActionType.UNKNOWN, text)


def is_actions(text: str) -> bool:
    """Whether all of `text` is in the action language."""
    pieces = parse_actions(text)
    return bool(pieces) and all(piece.type is not ActionType.UNKNOWN for piece in pieces)


def render_action(action: Action) -> str:
    """Return the action as text, spelled as in the datasets."""
    phrase = _PHRASES[action.type]
    if action.type in (ActionType.CLICK, ActionType.LONG_PRESS):
        return f"{phrase} {_render_target(action.argument)}"
    return phrase if action.argument is None else f"{phrase}{action.argument}"


def _starts(text: str) -> list[int]:
    """Return the offsets at which a line starts an action, except those inside an open label.

    A label spans such lines if the next quote in the text ends a line. If that quote opens the label of a later press,
    the first label was never closed; only its own action is then invalid.
    """
    starts = [match.start() for match in _START.finditer(text)]
    inside: set[int] = set()
    label = _LABEL_TO_NEXT_QUOTE.search(text)
    while label is not None:
        resume_at = label.end()
        if "\n" in label[0]:
            enclosed = starts[bisect_right(starts, label.start()) : bisect_left(starts, label.start("quote"))]
            later = _LABEL_START.match(text, enclosed[-1]) if enclosed else None
            if later is not None and later.end() > label.start("quote"):
                resume_at = later.start()
            else:
                inside.update(enclosed)
        label = _LABEL_TO_NEXT_QUOTE.search(text, resume_at)
    return [start for start in starts if start not in inside] if inside else starts


def _unix(text: str) -> str:
    return text.replace("\r\n", "\n").replace("\r", "\n")


def _cut(segment: str) -> list[str]:
    """Split a segment that starts an action and contains no second one: the action, then the stray lines after it."""
    if "\n" not in segment or _parse(segment) is not None:
        return [segment]
    label_end = _LABEL_END.search(segment)
    end = label_end.end() if label_end and _parse(segment[: label_end.start() + 1]) else segment.index("\n")
    return [segment[:end].strip(), *(line.strip() for line in segment[end:].split("\n") if line.strip())]


def _parse(text: str) -> Action | None:
    if press := _PRESS.fullmatch(text):
        return _parse_press(press)
    if app := _OPEN_APP.fullmatch(text):
        return Action(ActionType.OPEN_APP, app[1].strip())
    if typed := _TYPE_TEXT.fullmatch(text):
        return Action(ActionType.TYPE_TEXT, typed[1].strip())
    if scroll := _SCROLL.fullmatch(text):
        return Action(ActionType.SCROLL, scroll[1].lower())
    if status := _CHECK_STATUS.fullmatch(text):
        return Action(ActionType.CHECK_STATUS, status[1].strip())
    return _WITHOUT_ARGUMENT.get(normalized(text))


def _parse_press(press: re.Match[str]) -> Action:
    verb = ActionType.CLICK if press["verb"].lower() == "click" else ActionType.LONG_PRESS
    if press["x"] is not None:
        return Action(verb, Point(float(press["x"]), float(press["y"])))
    if press["label"] is not None:
        kind = LabelKind.TEXT if press["text"] else LabelKind.FUNCTION
        return Action(verb, Label(kind, press["label"]))
    return Action(verb)


def _render_target(target: Argument) -> str:
    match target:
        case Label(LabelKind.TEXT, value):
            return f'button with the text "{value}"'
        case Label(LabelKind.FUNCTION, value):
            return f'button with the function of "{value}"'
        case Point(x, y):
            return f"point ({_number(x)},{_number(y)})"
        case _:
            return "button"


def _number(value: float) -> str:
    return str(int(value)) if float(value).is_integer() else str(value)
