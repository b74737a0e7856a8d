"""The action language: parsing, rendering, and that they are inverses."""

from __future__ import annotations

import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from orchestrator.evaluation.actions import (
    Action,
    ActionType,
    Label,
    LabelKind,
    Point,
    parse_action,
    parse_actions,
    render_action,
    split_actions,
)

SPELLINGS = [
    ('Click on button with the text "Timer"', Action(ActionType.CLICK, Label(LabelKind.TEXT, "Timer"))),
    (
        'Click on button with the function of "Add alarm"',
        Action(ActionType.CLICK, Label(LabelKind.FUNCTION, "Add alarm")),
    ),
    ("Click on point (540,462)", Action(ActionType.CLICK, Point(540, 462))),
    ("Click on button", Action(ActionType.CLICK)),
    ('Long_press on button with the text "Save"', Action(ActionType.LONG_PRESS, Label(LabelKind.TEXT, "Save"))),
    ('Long_press on button with the function of "a"', Action(ActionType.LONG_PRESS, Label(LabelKind.FUNCTION, "a"))),
    ("Long_press on point (1,2)", Action(ActionType.LONG_PRESS, Point(1, 2))),
    ("Open App: Kitchen Stories", Action(ActionType.OPEN_APP, "Kitchen Stories")),
    ("Type text: yoga: session", Action(ActionType.TYPE_TEXT, "yoga: session")),
    ("Scroll up", Action(ActionType.SCROLL, "up")),
    ("Scroll down", Action(ActionType.SCROLL, "down")),
    ("Scroll left", Action(ActionType.SCROLL, "left")),
    ("Scroll right", Action(ActionType.SCROLL, "right")),
    ("Go back to the previous page", Action(ActionType.GO_BACK)),
    ("Return to the home page", Action(ActionType.GO_HOME)),
    ("Wait for response", Action(ActionType.WAIT)),
    ("Check status: successful", Action(ActionType.CHECK_STATUS, "successful")),
]


@pytest.mark.parametrize(("text", "action"), SPELLINGS)
def test_every_action_is_parsed_and_rendered(text: str, action: Action) -> None:
    assert parse_action(text) == action
    assert render_action(action) == text


@pytest.mark.parametrize(
    ("text", "action"),
    [
        ('  CLICK on  Button with the Text  "OK"  ', Action(ActionType.CLICK, Label(LabelKind.TEXT, "OK"))),
        ("click ON point ( 540 , 462.5 )", Action(ActionType.CLICK, Point(540, 462.5))),
        ("long press on button", Action(ActionType.LONG_PRESS)),
        ("LONG-PRESS on point (1,2)", Action(ActionType.LONG_PRESS, Point(1, 2))),
        ("open app :Clock", Action(ActionType.OPEN_APP, "Clock")),
        ("scroll   UP", Action(ActionType.SCROLL, "up")),
        ("wait  for  response", Action(ActionType.WAIT)),
        ("Type text:", Action(ActionType.TYPE_TEXT, "")),
    ],
)
def test_case_and_whitespace_are_ignored(text: str, action: Action) -> None:
    assert parse_action(text) == action


@pytest.mark.parametrize(
    "text",
    [
        "",
        "I would tap the button",
        'Click on button with the text "Timer',
        "Click on point (540)",
        "Click on point (nan,inf)",
        "Scroll sideways",
        "Open App:",
        'Sure! Click on button with the text "OK"',
        "Scroll up\nScroll up",
        "Wait for response.",
    ],
)
def test_other_text_is_unknown_action_with_text(text: str) -> None:
    assert parse_action(text) == Action(ActionType.UNKNOWN, text)


def test_labels_with_newlines_and_quotes_are_one_action() -> None:
    response = (
        'Click on button with the function of "Profile\nF\nffion\nCommunity member"\n'
        "Scroll down\n"
        'Click on button with the text "Search for "Swimmi"\n'
        'Click on button with the text "26/09/23 yoga session\nAll set "\n'
        "Type text: first line\nsecond line\n"
        "Click on button\n"
        "Check status: successful"
    )
    assert parse_actions(response) == [
        Action(ActionType.CLICK, Label(LabelKind.FUNCTION, "Profile\nF\nffion\nCommunity member")),
        Action(ActionType.SCROLL, "down"),
        Action(ActionType.CLICK, Label(LabelKind.TEXT, 'Search for "Swimmi')),
        Action(ActionType.CLICK, Label(LabelKind.TEXT, "26/09/23 yoga session\nAll set ")),
        Action(ActionType.TYPE_TEXT, "first line\nsecond line"),
        Action(ActionType.CLICK),
        Action(ActionType.CHECK_STATUS, "successful"),
    ]
    assert "\n".join(split_actions(response)) == response


def test_unclosed_label_invalidates_only_its_own_action() -> None:
    actions = parse_actions('Click on button with the text "Timer\nScroll down')
    assert [action.type for action in actions] == [ActionType.UNKNOWN, ActionType.SCROLL]


def test_label_may_span_lines_that_look_like_actions() -> None:
    press = 'Click on button with the text "Reminder\nWait for response\nScroll up\nx"'
    assert parse_action(press) == Action(
        ActionType.CLICK, Label(LabelKind.TEXT, "Reminder\nWait for response\nScroll up\nx")
    )
    assert split_actions(f"Scroll up\n{press}  \nand so on\nScroll down") == [
        "Scroll up",
        press,
        "and so on",
        "Scroll down",
    ]


@pytest.mark.parametrize(
    "later",
    [
        'Click on button with the text "OK"',
        'Click on button with the text "\nOK"',
        'Long_press on button with the function of\n "OK\nScroll up\n"',
        'Type text: say "hi"',
        "Type text: say hi",
    ],
)
def test_unclosed_label_leaves_later_actions_intact(later: str) -> None:
    open_label = 'Click on button with the text "Timer'
    assert split_actions(f"{open_label}\nScroll down\n{later}") == [open_label, "Scroll down", later]


@pytest.mark.parametrize(
    "repeated",
    [
        'Click on button with the text "a\n',
        'Click on button with the text "\n',
        'Click on button with the text "a\nScroll up\n"\n',
        'Click on button with the text "a"b\nScroll up\n',
        "Click on button with the text \n \n",
    ],
)
def test_parse_time_grows_linearly_with_length(repeated: str) -> None:
    # CPU time, least of three: four times the length costs 4 times as much if linear, 16 times if quadratic.
    assert least_cpu_seconds(repeated * 80_000) < 10 * least_cpu_seconds(repeated * 20_000)


def least_cpu_seconds(text: str) -> float:
    seconds = []
    for _ in range(3):
        started = time.thread_time()
        split_actions(text)
        seconds.append(time.thread_time() - started)
    return min(seconds)


def test_stray_lines_are_separate_pieces() -> None:
    answer = 'Let me see.\n\nClick on button with the text "OK"\nthat was it\nScroll up\nbye'
    assert split_actions(answer) == [
        "Let me see.",
        'Click on button with the text "OK"',
        "that was it",
        "Scroll up",
        "bye",
    ]


def test_carriage_returns_are_line_ends() -> None:
    assert split_actions("Scroll up\r\nOpen App: X\rWait for response") == [
        "Scroll up",
        "Open App: X",
        "Wait for response",
    ]


@pytest.mark.parametrize(
    ("left", "right", "same"),
    [
        ("Click on point (100,100)", "Click on point (103,104)", True),
        ("Click on point (100,100)", "Click on point (104,104)", False),
        ("Click on point (100,100)", "Long_press on point (100,100)", False),
        ('Click on button with the text "Add  Alarm"', 'Click on button with the text "add\nalarm"', True),
        ('Click on button with the text "Add"', 'Click on button with the function of "Add"', False),
        ('Click on button with the text "Add"', "Click on button", False),
        ("Type text: STRASSE", "Type text: straße", True),
        ("Scroll up", "Scroll down", False),
        ("Wait for response", "Go back to the previous page", False),
        ("what it says", "What  it says", True),
        ("what it says", "something else", False),
    ],
)
def test_actions_are_equal_if_type_and_argument_are(left: str, right: str, same: bool) -> None:
    assert parse_action(left).same_as(parse_action(right), point_tolerance_px=5) is same
    assert parse_action(right).same_as(parse_action(left), point_tolerance_px=5) is same


SHOWN = st.text(st.characters(exclude_categories=["Cs", "Cc", "Zl", "Zp"]), max_size=30)
LABEL_LINES = st.lists(SHOWN, min_size=1, max_size=3).map("\n".join)
ONE_LINE = SHOWN.map(str.strip).filter(bool)
TARGETS = st.one_of(
    st.none(),
    st.builds(Label, st.sampled_from(LabelKind), LABEL_LINES),
    st.builds(Point, st.integers(-9999, 9999).map(float), st.integers(0, 9999).map(float)),
)
ACTIONS = st.one_of(
    st.builds(Action, st.sampled_from([ActionType.CLICK, ActionType.LONG_PRESS]), TARGETS),
    st.builds(Action, st.sampled_from([ActionType.OPEN_APP, ActionType.CHECK_STATUS]), ONE_LINE),
    st.builds(Action, st.just(ActionType.TYPE_TEXT), st.text("ab \n\"'", max_size=10).map(str.strip)),
    st.builds(Action, st.just(ActionType.SCROLL), st.sampled_from(["up", "down", "left", "right"])),
    st.builds(Action, st.sampled_from([ActionType.GO_BACK, ActionType.GO_HOME, ActionType.WAIT])),
)


@settings(deadline=None)
@given(st.lists(ACTIONS, max_size=6))
def test_rendered_answer_round_trips(actions: list[Action]) -> None:
    assert parse_actions("\n".join(map(render_action, actions))) == actions


@settings(deadline=None)
@given(st.text())
def test_parser_never_raises_and_loses_only_whitespace(text: str) -> None:
    pieces = split_actions(text)
    assert all(isinstance(action, Action) for action in map(parse_action, pieces))
    assert "".join("".join(pieces).split()) == "".join(text.split())
