"""The judge against a real HTTP server: every answer is graded and paid for once, and failures are unscored."""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import pytest

from infra.contract.errors import (
    ConfigurationError,
    FailedPreconditionError,
    InvalidArgumentError,
    UnavailableError,
)
from orchestrator.evaluation.judge.chat_client import ChatEndpoint
from orchestrator.evaluation.judge.grading import MAX_REASONS, Judgement, JudgePrompt, grade_answers, parse_score
from orchestrator.evaluation.judge.verdicts import Verdict
from orchestrator.evaluation.metrics.text import AnsweredText
from tests.support.servers.chat_endpoint import FakeChat, fake_chat

PROMPT = JudgePrompt("{question}|{truth}|{answer}")
ANSWERS = [AnsweredText(number, f"e{number}", f"truth {number}", f"answer {number}", "What?") for number in range(4)]


def grade(question: str) -> str:
    return "close enough\nSCORE: 0.5" if question.endswith("answer 0") else "SCORE: 1"


@pytest.fixture
def chat() -> Iterator[FakeChat]:
    with fake_chat(grade) as served:
        yield served


def endpoint_of(chat: FakeChat) -> ChatEndpoint:
    return ChatEndpoint(chat.base_url, "grader", first_pause_s=0.001, attempts=3, concurrency=2)


def judged(answers: list[AnsweredText], endpoint: ChatEndpoint, cache: Path) -> Judgement:
    return asyncio.run(grade_answers(answers, endpoint, PROMPT, cache))


def test_every_answer_is_graded_and_cost_is_counted(chat: FakeChat, tmp_path: Path) -> None:
    judgement = judged(ANSWERS, replace(endpoint_of(chat), key="secret"), tmp_path)
    assert {key: graded.score for key, graded in judgement.scores.items()} == {0: 0.5, 1: 1, 2: 1, 3: 1}
    assert judgement.scores[0].cluster == "e0"
    assert (judgement.calls, judgement.cached, judgement.prompt_tokens, judgement.completion_tokens) == (4, 0, 40, 12)
    assert sorted(chat.questions)[0] == "What?|truth 0|answer 0"
    assert chat.keys == {"Bearer secret"}


def test_key_is_neither_shown_nor_stored(chat: FakeChat, tmp_path: Path) -> None:
    endpoint = replace(endpoint_of(chat), key="secret")
    judged(ANSWERS[:1], endpoint, tmp_path)
    assert "secret" not in repr(endpoint)
    assert all("secret" not in file.read_text() for file in tmp_path.rglob("*.json"))


def test_repeated_run_uses_cache_and_longer_run_requests_rest(chat: FakeChat, tmp_path: Path) -> None:
    judged(ANSWERS[:3], endpoint_of(chat), tmp_path)
    again = judged(ANSWERS, endpoint_of(chat), tmp_path)
    assert (again.calls, again.cached, again.prompt_tokens) == (1, 3, 10)
    assert len(again.scores) == 4
    assert len(chat.questions) == 4
    assert judged(ANSWERS[:1], replace(endpoint_of(chat), model="other"), tmp_path).calls == 1


def test_damaged_cache_file_is_requested_again(chat: FakeChat, tmp_path: Path) -> None:
    judged(ANSWERS[:1], endpoint_of(chat), tmp_path)
    (file,) = tmp_path.rglob("*.json")
    file.write_text("{half")
    assert judged(ANSWERS[:1], endpoint_of(chat), tmp_path).calls == 1
    assert judged(ANSWERS[:1], endpoint_of(chat), tmp_path).cached == 1


def test_overloaded_or_failing_endpoint_is_retried(chat: FakeChat, tmp_path: Path) -> None:
    chat.failures += [(429, {"Retry-After": "0"}), (503, {})]
    assert len(judged(ANSWERS, endpoint_of(chat), tmp_path).scores) == 4
    assert chat.failures == []


def test_ungradable_answer_is_unscored_with_reason(chat: FakeChat, tmp_path: Path) -> None:
    chat.reply = lambda question: "I cannot say." if question.endswith("answer 0") else "SCORE: 7"
    missing = replace(ANSWERS[1], answer=None)
    judgement = judged([ANSWERS[0], missing, ANSWERS[2]], endpoint_of(chat), tmp_path)
    assert judgement.scores == {}
    assert judgement.unscored == {"no answer": 1, "the judge's reply has no score": 2}
    assert judgement.verdicts == {
        0: Verdict(None, "the judge's reply has no score", "I cannot say."),
        1: Verdict(None, "no answer"),
        2: Verdict(None, "the judge's reply has no score", "SCORE: 7"),
    }


def test_failed_request_does_not_affect_other_grades(chat: FakeChat, tmp_path: Path) -> None:
    chat.failures += [(500, {})] * 3
    judgement = judged(ANSWERS, replace(endpoint_of(chat), concurrency=1), tmp_path)
    assert len(judgement.scores) == 3
    (reason,) = judgement.unscored
    assert reason.startswith("the judge gave no reply in 3 attempts (HTTP 500")
    assert len(judged(ANSWERS, endpoint_of(chat), tmp_path).scores) == 4


@pytest.mark.parametrize(
    ("status", "body", "message"),
    [
        (400, {"error": "content filter"}, "HTTP 400: "),
        (413, {"error": "too long"}, "HTTP 413: "),
        (422, {"error": "odd"}, "HTTP 422: "),
        (200, {"choices": []}, "not a chat completion: "),
        (200, {"detail": "busy"}, "not a chat completion: "),
        (
            200,
            {"choices": [{"message": {"content": "SCORE: 1"}}], "usage": {"prompt_tokens": math.inf}},
            "not a chat completion: ",
        ),
    ],
)
def test_refused_question_is_unscored_and_others_are_graded(
    chat: FakeChat, tmp_path: Path, status: int, body: dict[str, object], message: str
) -> None:
    chat.refusals["truth 2"] = (status, body)
    for asked in (3, 0):
        judgement = judged(ANSWERS, endpoint_of(chat), tmp_path)
        assert set(judgement.scores) == {0, 1, 3}
        assert (judgement.calls, judgement.cached) == (asked, 3 - asked)
        (reason,) = judgement.unscored
        assert reason.startswith(f"the judge gave no reply ({message}")
    assert len(chat.questions) == 3


def test_unwritable_cache_is_reported_before_any_request(chat: FakeChat, tmp_path: Path) -> None:
    (tmp_path / "cache").write_text("a file")
    with pytest.raises(InvalidArgumentError, match=r"judge_cache: .*cache cannot be written to: File exists"):
        judged(ANSWERS, endpoint_of(chat), tmp_path / "cache")
    assert not chat.questions


def test_cache_that_stores_no_reply_is_reported(chat: FakeChat, tmp_path: Path) -> None:
    for number in range(256):
        (tmp_path / f"{number:02x}").write_text("a file where a folder of replies would be")
    with pytest.raises(InvalidArgumentError, match=r"judge_cache: .* cannot be written to"):
        judged(ANSWERS, endpoint_of(chat), tmp_path)


def test_endpoint_refusing_every_question_is_reported(chat: FakeChat, tmp_path: Path) -> None:
    chat.refusals["truth"] = (400, {"error": "no such model"})
    with pytest.raises(UnavailableError, match=r"graded nothing: .*no such model.*; are address and model right\?"):
        judged(ANSWERS, endpoint_of(chat), tmp_path)


def test_rare_reasons_are_counted_together(chat: FakeChat, tmp_path: Path) -> None:
    answers = [AnsweredText(number, "e", f"<{number}>", "a") for number in range(MAX_REASONS + 5)]
    chat.refusals |= {f"<{number}>": (400, {"request": number}) for number in range(1, MAX_REASONS + 5)}
    judgement = judged(answers, endpoint_of(chat), tmp_path)
    assert len(judgement.scores) == 1
    assert (len(judgement.unscored), judgement.unscored["other reasons"]) == (MAX_REASONS + 1, 4)


def test_endpoint_that_never_answered_is_given_up_after_few_attempts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    attempts = 0

    async def refuse(*_: object, **__: object) -> None:
        nonlocal attempts
        attempts += 1
        raise httpx.ConnectError("All connection attempts failed")

    monkeypatch.setattr(httpx.AsyncClient, "post", refuse)
    endpoint = ChatEndpoint("http://127.0.0.1:9/v1", "grader", first_pause_s=0.001, attempts=1000, concurrency=2)
    with pytest.raises(UnavailableError, match=r"127\.0\.0\.1:9/v1 cannot be reached \(All .*: start the judge"):
        judged(ANSWERS, endpoint, tmp_path)
    assert attempts < 10


def test_unreachable_endpoint_is_reported(tmp_path: Path) -> None:
    with fake_chat(grade) as chat:
        away = endpoint_of(chat)
    with pytest.raises(UnavailableError, match=r"127\.0\.0\.1.* cannot be reached"):
        judged(ANSWERS, away, tmp_path)


def test_endpoint_that_answered_before_is_retried(
    chat: FakeChat, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    post, calls = httpx.AsyncClient.post, 0

    async def interrupted(client: httpx.AsyncClient, *arguments: Any, **options: Any) -> httpx.Response:
        nonlocal calls
        calls += 1
        if 1 < calls < 8:
            raise httpx.ConnectError("refused")
        return await post(client, *arguments, **options)

    monkeypatch.setattr(httpx.AsyncClient, "post", interrupted)
    endpoint = replace(endpoint_of(chat), attempts=10, concurrency=1)
    assert len(judged(ANSWERS, endpoint, tmp_path).scores) == len(ANSWERS)


@pytest.mark.parametrize(
    ("status", "error", "message"),
    [
        (401, ConfigurationError, "LORARETRIEVER_CLIENT_JUDGE_KEY"),
        (403, ConfigurationError, "LORARETRIEVER_CLIENT_JUDGE_KEY"),
        (404, FailedPreconditionError, "model's name"),
    ],
)
def test_refused_key_or_model_ends_run_at_once(
    chat: FakeChat, tmp_path: Path, status: int, error: type[Exception], message: str
) -> None:
    chat.failures += [(status, {})] * 10
    with pytest.raises(error, match=message):
        judged(ANSWERS, endpoint_of(chat), tmp_path)
    assert len(chat.failures) >= 8


def test_address_without_chat_endpoint_is_reported(chat: FakeChat, tmp_path: Path) -> None:
    with pytest.raises(FailedPreconditionError, match="HTTP 404"):
        judged(ANSWERS, replace(endpoint_of(chat), base_url=chat.base_url + "/v2"), tmp_path)


def test_rate_limit_spaces_calls(chat: FakeChat, tmp_path: Path) -> None:
    start = time.monotonic()
    judged(ANSWERS, replace(endpoint_of(chat), requests_per_minute=1200), tmp_path)
    assert time.monotonic() - start >= 3 * 60 / 1200


@pytest.mark.parametrize(
    ("reply", "score"),
    [
        ("SCORE: 1", 1.0),
        ("Score: 0.25 at first.\n**Score:** 0.75", 0.75),
        ("**SCORE: `0.5`**\r\n", 0.5),
        ("score = 4/5", 0.8),
        ("SCORE: .1", 0.1),
        ("SCORE: 1/2.5", 0.4),
        ("SCORE: 1.", 1.0),
        ("SCORE: 1\n\n(Score 0 would mean wrong.)", 1.0),
        ("SCORE: 0\nThe score is low: 1 of 2 facts is wrong.", 0.0),
        ("SCORE: 2", None),
        ("right", None),
        ("SCORE: -1", None),
        ("Score: 1/0", None),
        ("SCORE: 1%", None),
        ("SCORE: 1 out of 5", None),
        ("Score: 1 (of 10)", None),
        ("SCORE: 1e-3", None),
        ("SCORE: 0,8", None),
        ("Score (0-1): 0.8", None),
        ("SCORE: 1\nSCORE: 1 of 5", None),
        ("SCORE:\n1", None),
    ],
)
def test_only_last_score_line_counts(reply: str, score: float | None) -> None:
    assert parse_score(reply) == score


def test_template_needs_truth_and_answer_and_ignores_braces_in_them() -> None:
    with pytest.raises(InvalidArgumentError, match=r"no \{answer\}"):
        JudgePrompt("{truth}")
    odd = AnsweredText(1, "e", "{answer}", "{truth} {x}", "{}")
    assert PROMPT.render(odd) == "{}|{answer}|{truth} {x}"


@pytest.mark.parametrize(
    "wrong", [{"base_url": "localhost"}, {"model": ""}, {"requests_per_minute": 0}, {"concurrency": 0}]
)
def test_invalid_endpoint_is_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(InvalidArgumentError, match="judge"):
        replace(ChatEndpoint("http://here/v1", "grader"), **wrong)
