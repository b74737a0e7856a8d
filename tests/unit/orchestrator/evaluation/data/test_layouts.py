"""Rows as other tools write them: read where their meaning is certain, otherwise refused by the name of the layout."""

from __future__ import annotations

from typing import Any

import pytest

from orchestrator.evaluation.data.layouts import RowError, unified

USER, ASSISTANT = {"role": "user", "content": "Open mail"}, {"role": "assistant", "content": "Open App: mail"}
HUMAN, GPT = {"from": "human", "value": "Open mail"}, {"from": "gpt", "value": "Open App: mail"}
PLAIN = {"query": "Open mail", "response": "Open App: mail"}


@pytest.mark.parametrize(
    "row",
    [
        PLAIN,
        PLAIN | {"images": None, "history": None, "system": None, "episode_id": None},
        PLAIN | {"images": [], "history": [], "system": "", "tools": "", "videos": []},
        PLAIN | {"image": "", "images": ""},
        {"messages": [USER, ASSISTANT]},
        {"messages": [{"role": "system", "content": ""}, USER, ASSISTANT], "images": []},
        {"messages": [USER | {"content": [{"type": "text", "text": "Open mail"}]}, ASSISTANT]},
        {"messages": [USER, ASSISTANT | {"tool_calls": None}]},
        {"conversations": [HUMAN, GPT]},
        {"conversations": [{"from": "user", "value": "Open mail"}, {"from": "assistant", "value": "Open App: mail"}]},
        {"conversation": [HUMAN, GPT], "id": "7"},
        {"instruction": "Open mail", "input": "", "output": "Open App: mail"},
        {"instruction": "Open mail", "output": "Open App: mail", "history": []},
        {"prompt": "Open mail", "completion": "Open App: mail"},
        {"prompt": [USER], "completion": [ASSISTANT]},
        {"question": "Open mail", "answer": "Open App: mail"},
    ],
)
def test_text_rows_of_all_layouts_mean_the_same(row: dict[str, Any]) -> None:
    assert {name: unified(row)[name] for name in ("query", "response", "images")} == PLAIN | {"images": []}


@pytest.mark.parametrize(
    "row",
    [
        PLAIN | {"query": "<image>Open mail", "images": ["a.png"]},
        PLAIN | {"images": ["a.png"]},
        PLAIN | {"images": "a.png"},
        PLAIN | {"image": "a.png"},
        PLAIN | {"image": ["a.png"]},
        PLAIN | {"images": [{"path": "a.png", "bytes": None}]},
        PLAIN | {"images": {"path": "a.png"}},
        PLAIN | {"images": ["file://a.png"]},
        PLAIN | {"query": "<img>a.png</img>Open mail"},
        {"messages": [USER | {"content": "<image>Open mail"}, ASSISTANT], "images": ["a.png"]},
        {
            "messages": [
                USER | {"content": [{"type": "image", "image": "a.png"}, {"type": "text", "text": "Open mail"}]},
                ASSISTANT,
            ]
        },
        {
            "messages": [
                USER | {"content": [{"type": "image_url", "image_url": {"url": "a.png"}}, "Open mail"]},
                ASSISTANT,
            ]
        },
        {"messages": [USER | {"content": [{"type": "image"}, "Open mail"]}, ASSISTANT], "images": ["a.png"]},
        {"conversations": [HUMAN | {"value": "<image>Open mail"}, GPT], "image": "a.png"},
        {"instruction": "Open mail", "output": "Open App: mail", "images": ["a.png"]},
    ],
)
def test_rows_with_one_image_mean_the_same(row: dict[str, Any]) -> None:
    found = unified(row)
    assert (found["query"], found["response"], found["images"]) == ("<image>Open mail", "Open App: mail", ["a.png"])


def test_alpaca_input_follows_instruction() -> None:
    row = {"instruction": "Translate.", "input": "Good day", "output": "Guten Tag"}
    assert unified(row)["query"] == "Translate.\nGood day"


@pytest.mark.parametrize(
    ("row", "problem"),
    [
        ({"messages": [USER, ASSISTANT, USER, ASSISTANT]}, "'messages' has the turns user, assistant, user, assistant"),
        ({"messages": [USER]}, "'messages' has the turns user: give rows with one user message"),
        ({"messages": []}, "'messages' has the turns none"),
        ({"messages": "Open mail"}, "'messages' must be a list of messages, this is a string"),
        ({"messages": [USER, ASSISTANT | {"role": "critic"}]}, "'messages' has a message of role 'critic'"),
        ({"messages": [USER, ASSISTANT | {"tool_calls": [{}]}]}, "'messages' has tool calls"),
        ({"messages": [USER | {"content": [{"type": "audio"}]}, ASSISTANT]}, "'messages' has a part of type 'audio'"),
        ({"messages": [USER | {"content": 7}, ASSISTANT]}, "'messages' has a message whose content is a number"),
        ({"conversations": [HUMAN, GPT, HUMAN, GPT]}, "'conversations' has the turns user, assistant, user, assistant"),
        (PLAIN | {"history": [["a", "b"]]}, "'history' holds earlier turns"),
        (
            {"messages": [{"role": "system", "content": "Be brief."}, USER, ASSISTANT], "system": "Be long."},
            "it has a system message in a field of its own and in 'messages'",
        ),
        ({"messages": [USER, {"role": "system", "content": "Be brief."}, ASSISTANT]}, "the turns user, system"),
        ({"prompt": [{"role": "system", "content": "Be brief."}, USER], "completion": [ASSISTANT]}, "as 'messages'"),
        (PLAIN | {"tools": "[{}]"}, "'tools' describes functions"),
        (PLAIN | {"videos": ["a.mp4"]}, "it has videos, which are not served"),
        (PLAIN | {"images": ["a.png"], "image": "b.png"}, "both images and image"),
        (PLAIN | {"images": [{"bytes": "aGk="}]}, "holds the bytes of an image: save it to a file"),
        (PLAIN | {"images": ["data:image/png;base64,aGk="]}, "as base64 text: save it to a file"),
        (PLAIN | {"images": ["https://host/a.png"]}, "is the address 'https://host/a.png': download it"),
        (PLAIN | {"images": 7}, "images must be a list of paths"),
        (PLAIN | {"images": 0}, "images must be a list of paths, this is a number"),
        ({"prompt": "a", "chosen": "b", "rejected": "c"}, "'chosen' is a field of preference data"),
        ({"text": "All of it."}, "query is missing: the row has 'text'; known are 'query' and 'response'"),
        ({"data": [PLAIN]}, "query is missing: the row has 'data'"),
        ({}, "query is missing: the row has nothing"),
    ],
)
def test_uncertain_row_is_refused_by_layout(row: dict[str, Any], problem: str) -> None:
    with pytest.raises(RowError) as raised:
        unified(row)
    assert problem in str(raised.value)


@pytest.mark.parametrize(
    "row",
    [
        PLAIN | {"system": "Be brief."},
        {"messages": [{"role": "system", "content": "Be brief."}, USER, ASSISTANT]},
        {"conversations": [{"from": "system", "value": "Be brief.\n"}, HUMAN, GPT]},
        {"conversations": [HUMAN, GPT], "system": "Be brief."},
    ],
)
def test_system_message_is_kept(row: dict[str, Any]) -> None:
    found = unified(row)
    assert (found["system"], found["query"], found["response"]) == ("Be brief.", "Open mail", "Open App: mail")
