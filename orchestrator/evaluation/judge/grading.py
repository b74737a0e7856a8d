"""A language model as judge: any OpenAI-compatible chat endpoint grades answers against the truth.

What it said is kept on disk by content, so that a run that broke off goes on where it was, and a second one is free.
"""

from __future__ import annotations

import asyncio
import re
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlsplit

from infra.contract.errors import InvalidArgumentError, UnavailableError
from orchestrator.evaluation.judge.chat_client import ChatClient, ChatEndpoint, ChatReply, ReplyCache, UnansweredError
from orchestrator.evaluation.judge.verdicts import JobGrades, JudgeFacts, Verdict
from orchestrator.evaluation.metrics.paired import QuestionScore
from orchestrator.evaluation.metrics.text import AnsweredText
from orchestrator.evaluation.records import Record

DEFAULT_TEMPLATE = """You grade the answer of an assistant against a reference answer.

Question:
{question}

Reference answer:
{truth}

Answer to grade:
{answer}

Does the answer say or do the same as the reference? Wording does not matter, meaning does. Reply with one short
sentence of reasoning, then a last line of the form "SCORE: x", x between 0 (wrong) and 1 (right)."""

_PLACEHOLDER = re.compile(r"\{(question|truth|answer)\}")
_MARKUP = r"[\s*_`\"'#>]*"
_NUMBER = r"(?:\d+(?:\.\d+)?|\.\d+)"
_LABEL = re.compile(rf"{_MARKUP}score{_MARKUP}[:=]", re.IGNORECASE)
_SCORE = re.compile(rf"{_MARKUP}({_NUMBER})(?:\s*/\s*({_NUMBER}))?\.?{_MARKUP}")
MAX_REASONS = 10


@dataclass(frozen=True)
class JudgePrompt:
    """A template with {truth} and {answer}, and {question} where the judge is to know it (as it was asked, no images).

    Raises InvalidArgumentError for a template that lacks one of the first two.
    """

    template: str = DEFAULT_TEMPLATE

    def __post_init__(self) -> None:
        for name in ("truth", "answer"):
            if f"{{{name}}}" not in self.template:
                raise InvalidArgumentError("judge_prompt", f"the template has no {{{name}}}: the judge must see it")

    def of(self, answer: AnsweredText) -> str:
        """Return what the judge is asked; braces in the texts themselves do no harm."""
        texts = {"question": answer.question, "truth": answer.truth, "answer": answer.answer or ""}
        return _PLACEHOLDER.sub(lambda match: texts[match[1]], self.template)


@dataclass
class Judgement:
    """Scores by question, why answers stayed unscored, and what it cost: calls made, replies found on disk, tokens.

    `verdicts` holds every answer by its key, with the judge's words; `unscored` counts their reasons. Tokens are those
    of the calls that were made, as far as the endpoint counts them.
    """

    scores: dict[object, QuestionScore] = field(default_factory=dict)
    verdicts: dict[object, Verdict] = field(default_factory=dict)
    unscored: Counter[str] = field(default_factory=Counter)
    calls: int = 0
    cached: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0

    def add(self, answer: AnsweredText, reply: ChatReply, *, from_cache: bool) -> None:
        """Take note of a reply."""
        self.cached += from_cache
        if not from_cache:
            self.calls += 1
            self.prompt_tokens += reply.prompt_tokens
            self.completion_tokens += reply.completion_tokens
        score = parse_score(reply.text)
        if score is None:
            self.leave_unscored(answer, "the judge's reply holds no score", reply.text)
        else:
            self.scores[answer.key] = QuestionScore(answer.cluster, score)
            self.verdicts[answer.key] = Verdict(score, reply=reply.text)

    def leave_unscored(self, answer: AnsweredText, reason: str, reply: str = "") -> None:
        """Take note of why an answer has no score."""
        self.unscored[reason] += 1
        self.verdicts[answer.key] = Verdict(None, reason, reply)


async def grade_answers(
    answers: Sequence[AnsweredText],
    endpoint: ChatEndpoint,
    prompt: JudgePrompt,
    cache_dir: Path,
    on_progress: Callable[[int], None] = lambda done: None,
) -> Judgement:
    """Grade every answer that there is; an answer that is None stays unscored, as does one the judge fails on.

    Raises InvalidArgumentError for a cache that cannot be written to, ConfigurationError or FailedPreconditionError
    when the endpoint refuses every call, and UnavailableError when it answered nothing at all.
    """
    result = Judgement()
    cache = ReplyCache(cache_dir, endpoint)
    await asyncio.to_thread(cache.check)
    waiting = iter([answer for answer in answers if answer.answer is not None])
    for answer in answers:
        if answer.answer is None:
            result.leave_unscored(answer, "no answer")
    async with AsyncExitStack() as stack:
        client = await stack.enter_async_context(ChatClient(endpoint))

        async def take() -> None:
            for answer in waiting:
                text = prompt.of(answer)
                known = await asyncio.to_thread(cache.find, text)
                try:
                    reply = known or await client.ask(text)
                except UnansweredError as error:
                    result.leave_unscored(answer, str(error))
                else:
                    if known is None:
                        await asyncio.to_thread(cache.keep, text, reply)
                    result.add(answer, reply, from_cache=known is not None)
                on_progress(len(result.scores) + result.unscored.total())

        tasks = [asyncio.ensure_future(take()) for _ in range(endpoint.concurrency)]
        stack.callback(lambda: [task.cancel() for task in tasks])
        await asyncio.gather(*tasks)
    failures = [reason for reason in result.unscored if reason.startswith(UnansweredError.PREFIX)]
    if failures and not (result.calls or result.cached):
        raise UnavailableError(f"{endpoint.base_url} graded nothing: {failures[0]}; are address and model right?")
    result.unscored = _some(result.unscored)
    return result


def parse_score(reply: str) -> float | None:
    """Return the score in [0, 1] of a reply's last line like "SCORE: 0.5" or "**Score:** 4/5", None without one.

    A line that says more ("SCORE: 1%", "SCORE: 1 out of 5") is not guessed at: there is no score then.
    """
    said = [line[label.end() :] for line in reply.splitlines() if (label := _LABEL.match(line))]
    found = _SCORE.fullmatch(said[-1]) if said else None
    if found is None or (found[2] and not float(found[2])):
        return None
    score = float(found[1]) / float(found[2] or 1)
    return score if score <= 1 else None


def _some(reasons: Counter[str]) -> Counter[str]:
    """Return the most frequent reasons, and the others as one: each may be a message of its own."""
    frequent = Counter(dict((+reasons).most_common(MAX_REASONS)))
    return frequent + Counter({"other reasons": reasons.total() - frequent.total()})


async def grade_records(
    records: Sequence[Record],
    endpoint: ChatEndpoint,
    prompt: JudgePrompt,
    cache_dir: Path,
    on_progress: Callable[[int], None] = lambda done: None,
) -> JobGrades:
    """Grade the answers of every strategy. Raises what `judge` raises."""
    answers = [
        AnsweredText(asked.key, asked.cluster, asked.truth, record.answer, asked.text)
        for record in records
        for asked in (record.sample,)
    ]
    found = await grade_answers(answers, endpoint, prompt, cache_dir, on_progress)
    facts = JudgeFacts(
        model=endpoint.model,
        endpoint=_without_credentials(endpoint.base_url),
        prompt=prompt.template,
        calls=found.calls,
        cached=found.cached,
        prompt_tokens=found.prompt_tokens,
        completion_tokens=found.completion_tokens,
        unscored=dict(found.unscored),
    )
    return JobGrades(facts, {str(key): verdict for key, verdict in found.verdicts.items()})


def _without_credentials(url: str) -> str:
    parts = urlsplit(url)
    return parts._replace(netloc=parts.netloc.rpartition("@")[2], query="").geturl()
