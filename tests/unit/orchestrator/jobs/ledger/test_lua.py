"""The ledger's Lua scripts as package resources: complete, documented, and replying with the words of their enums."""

from __future__ import annotations

import re
from enum import StrEnum
from importlib.resources import files

import pytest

from orchestrator.jobs.ledger import replies
from orchestrator.jobs.ledger.lua import script
from orchestrator.jobs.ledger.store import RedisStore

NAMES = sorted(
    file.name.removesuffix(".lua")
    for file in files("orchestrator.jobs.ledger").joinpath("scripts").iterdir()
    if file.name.endswith(".lua")
)
REPLIES: dict[str, type[StrEnum]] = {
    "publish": replies.PublishReply,
    "claim": replies.ClaimReply,
    "renew": replies.LeaseState,
    "release": replies.ReleaseReply,
    "postpone_report": replies.Postponement,
    "complete": replies.CompleteReply,
    "begin_sample": replies.Start,
    "record": replies.RecordReply,
    "cancel": replies.Cancellation,
    "conclude": replies.ConcludeReply,
    "retry_report": replies.RetryReply,
    "delete": replies.DeleteReply,
}


@pytest.mark.parametrize("name", NAMES)
async def test_script_compiles_with_its_includes(name: str, store: RedisStore) -> None:
    assert "@include" not in script(name)
    await store.redis.script_load(script(name))


@pytest.mark.parametrize("name", NAMES)
def test_script_documents_keys_and_reply(name: str) -> None:
    header = script(name).split("\n\n")[0]
    assert re.search(r"^-- KEYS   1 ", header, re.MULTILINE)
    assert "-- Reply  " in header


@pytest.mark.parametrize(("name", "words"), REPLIES.items())
def test_script_replies_with_words_of_its_enum(name: str, words: type[StrEnum]) -> None:
    returned = " ".join(re.findall(r"^.*(?:return|local reply =).*$", script(name), re.MULTILINE))
    literals = set(re.findall(r"'([a-z_]+)'", returned))
    assert {word.value for word in words} <= literals
