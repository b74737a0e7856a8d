"""The answers of a job graded by a judge."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from urllib.parse import urlsplit

from orchestrator.evaluation.judge.client import ChatEndpoint
from orchestrator.evaluation.judge.judge import JudgePrompt, judge
from orchestrator.evaluation.metrics.text import AnsweredText
from orchestrator.evaluation.records import Record
from orchestrator.evaluation.report.summary import Judged, JudgeFacts


async def judge_records(
    records: Sequence[Record],
    endpoint: ChatEndpoint,
    prompt: JudgePrompt,
    cache_dir: Path,
    on_progress: Callable[[int], None] = lambda done: None,
) -> Judged:
    """Grade the answers of every strategy. Raises what `judge` raises."""
    answers = [
        AnsweredText(asked.key, asked.cluster, asked.truth, record.answer, asked.text)
        for record in records
        for asked in (record.sample,)
    ]
    found = await judge(answers, endpoint, prompt, cache_dir, on_progress)
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
    return Judged(facts, {str(key): verdict for key, verdict in found.verdicts.items()})


def _without_credentials(url: str) -> str:
    parts = urlsplit(url)
    return parts._replace(netloc=parts.netloc.rpartition("@")[2], query="").geturl()
