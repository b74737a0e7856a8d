"""Grade answers with a language model: an OpenAI-compatible chat endpoint compares each answer with the truth.

Replies are cached on disk by content, so that an interrupted run resumes and a repeated run costs nothing.
"""

from __future__ import annotations

import asyncio
import re
from collections import Counter
from collections.abc import Callable, Coroutine, Iterable, Sequence
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
"""Distinct reasons reported; each may be an error message of its own, so their number is otherwise unbounded."""


@dataclass(frozen=True)
class JudgePrompt:
    """A prompt template with {truth} and {answer}, and optionally {question} (the sample's text; images are not sent).

    Raises InvalidArgumentError if {truth} or {answer} is missing.
    """

    template: str = DEFAULT_TEMPLATE

    def __post_init__(self) -> None:
        for name in ("truth", "answer"):
            if f"{{{name}}}" not in self.template:
                raise InvalidArgumentError("judge_prompt", f"the template has no {{{name}}}: the judge must see it")

    def render(self, answer: AnsweredText) -> str:
        """Return the prompt for one answer. Braces in the inserted texts are not interpreted."""
        texts = {"question": answer.question, "truth": answer.truth, "answer": answer.answer or ""}
        return _PLACEHOLDER.sub(lambda match: texts[match[1]], self.template)


@dataclass
class Judgement:
    """The result of grading a list of answers.

    Attributes:
        scores: score of every graded answer, by the answer's key.
        verdicts: verdict on every answer, graded or not.
        unscored: number of answers without a grade, by reason.
        calls: requests that were made.
        cached: replies that were read from the cache.
        prompt_tokens: tokens of the requests made, as counted by the endpoint (0: it does not count).
        completion_tokens: tokens of the replies.
        first_failure: message of the first request that failed; None: none did.
    """

    scores: dict[object, QuestionScore] = field(default_factory=dict)
    verdicts: dict[object, Verdict] = field(default_factory=dict)
    unscored: Counter[str] = field(default_factory=Counter)
    calls: int = 0
    cached: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    first_failure: str | None = None

    def add_reply(self, answer: AnsweredText, reply: ChatReply, *, from_cache: bool) -> None:
        """Record a reply and the score in it."""
        self.cached += from_cache
        if not from_cache:
            self.calls += 1
            self.prompt_tokens += reply.prompt_tokens
            self.completion_tokens += reply.completion_tokens
        score = parse_score(reply.text)
        if score is None:
            self.add_unscored(answer, "the judge's reply has no score", reply.text)
        else:
            self.scores[answer.key] = QuestionScore(answer.cluster, score)
            self.verdicts[answer.key] = Verdict(score, reply=reply.text)

    def add_failure(self, answer: AnsweredText, error: UnansweredError) -> None:
        """Record an answer whose request failed."""
        self.first_failure = self.first_failure or str(error)
        self.add_unscored(answer, str(error))

    def add_unscored(self, answer: AnsweredText, reason: str, reply: str = "") -> None:
        """Record an answer without a score."""
        self.unscored[reason] += 1
        self.verdicts[answer.key] = Verdict(None, reason, reply)


async def grade_answers(
    answers: Sequence[AnsweredText],
    endpoint: ChatEndpoint,
    prompt: JudgePrompt,
    cache_dir: Path,
    on_progress: Callable[[int], None] = lambda done: None,
) -> Judgement:
    """Grade every answer. An answer that is None, or whose request fails, is unscored.

    `on_progress` receives the number of answers that are done.

    Raises:
        InvalidArgumentError: the cache is not writable.
        ConfigurationError: the endpoint refused the key.
        FailedPreconditionError: the endpoint refuses every request.
        UnavailableError: no request was answered.
    """
    judgement = Judgement()
    cache = ReplyCache(cache_dir, endpoint)
    await asyncio.to_thread(cache.create)
    pending = iter([answer for answer in answers if answer.answer is not None])
    for answer in answers:
        if answer.answer is None:
            judgement.add_unscored(answer, "no answer")

    async def work(client: ChatClient) -> None:
        # All workers share `pending`, so each answer is graded once.
        for answer in pending:
            await _grade(answer, prompt.render(answer), client, cache, judgement)
            on_progress(len(judgement.scores) + judgement.unscored.total())

    async with ChatClient(endpoint) as client:
        await _gather_or_cancel(work(client) for _ in range(endpoint.concurrency))
    if judgement.first_failure and not (judgement.calls or judgement.cached):
        raise UnavailableError(
            f"{endpoint.base_url} graded nothing: {judgement.first_failure}; are address and model right?"
        )
    judgement.unscored = _most_common(judgement.unscored)
    return judgement


async def grade_records(
    records: Sequence[Record],
    endpoint: ChatEndpoint,
    prompt: JudgePrompt,
    cache_dir: Path,
    on_progress: Callable[[int], None] = lambda done: None,
) -> JobGrades:
    """Grade the answers of every strategy of a job. Raises like `grade_answers`."""
    answers = [
        AnsweredText(record.sample.key, record.sample.cluster, record.sample.truth, record.answer, record.sample.text)
        for record in records
    ]
    judgement = await grade_answers(answers, endpoint, prompt, cache_dir, on_progress)
    facts = JudgeFacts(
        model=endpoint.model,
        endpoint=_without_credentials(endpoint.base_url),
        prompt=prompt.template,
        calls=judgement.calls,
        cached=judgement.cached,
        prompt_tokens=judgement.prompt_tokens,
        completion_tokens=judgement.completion_tokens,
        unscored=dict(judgement.unscored),
    )
    return JobGrades(facts, {str(key): verdict for key, verdict in judgement.verdicts.items()})


def parse_score(reply: str) -> float | None:
    """Return the score in [0, 1] in a reply's last line such as "SCORE: 0.5" or "**Score:** 4/5"; None: there is none.

    A line with anything else ("SCORE: 1%", "SCORE: 1 out of 5") has no score; it is not guessed.
    """
    scores = [line[label.end() :] for line in reply.splitlines() if (label := _LABEL.match(line))]
    match = _SCORE.fullmatch(scores[-1]) if scores else None
    if match is None or (match[2] and not float(match[2])):
        return None
    score = float(match[1]) / float(match[2] or 1)
    return score if score <= 1 else None


async def _grade(
    answer: AnsweredText, question: str, client: ChatClient, cache: ReplyCache, judgement: Judgement
) -> None:
    cached = await asyncio.to_thread(cache.get, question)
    if cached is not None:
        judgement.add_reply(answer, cached, from_cache=True)
        return
    try:
        reply = await client.ask(question)
    except UnansweredError as error:
        judgement.add_failure(answer, error)
        return
    await asyncio.to_thread(cache.put, question, reply)
    judgement.add_reply(answer, reply, from_cache=False)


async def _gather_or_cancel(work: Iterable[Coroutine[object, object, None]]) -> None:
    """Run all coroutines; if one raises, cancel the others and raise."""
    tasks = [asyncio.ensure_future(coroutine) for coroutine in work]
    try:
        await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()


def _most_common(reasons: Counter[str]) -> Counter[str]:
    """Return the MAX_REASONS most frequent reasons, and the others counted as one."""
    frequent = Counter(dict((+reasons).most_common(MAX_REASONS)))
    return frequent + Counter({"other reasons": reasons.total() - frequent.total()})


def _without_credentials(url: str) -> str:
    parts = urlsplit(url)
    return parts._replace(netloc=parts.netloc.rpartition("@")[2], query="").geturl()
