"""Measure adapters on held-out rows: greedy answers of the base model, of each adapter at home, and of its siblings."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from pathlib import Path
from statistics import mean
from typing import Any

import torch
from peft import PeftModel
from transformers import AutoTokenizer

from examples.word_tools.dataset import rows
from examples.word_tools.recipe.training import load_base
from examples.word_tools.tasks import TASKS, Row
from orchestrator.evaluation.metrics.text import exact_match, rouge_l

ROWS, OTHER_ROWS = 50, 20
_NEW_TOKENS = 40


class Answerer:
    """Answers questions greedily with the base model and its adapters, by PEFT and transformers' `generate`."""

    def __init__(self, base: Path, adapters: Path, adapter_ids: Sequence[str]) -> None:
        self._tokenizer = AutoTokenizer.from_pretrained(base, padding_side="left")
        first, *others = adapter_ids
        self._model = PeftModel.from_pretrained(load_base(base), adapters / first, adapter_name=first)
        for each in others:
            self._model.load_adapter(adapters / each, adapter_name=each)
        self._model.eval()

    @torch.no_grad()
    def answers(self, adapter_id: str | None, queries: Sequence[str]) -> list[str]:
        """Return the answers of an adapter, or of the base model."""
        if adapter_id is not None:
            self._model.set_adapter(adapter_id)
        chats = [[{"role": "user", "content": query}] for query in queries]
        inputs = self._tokenizer.apply_chat_template(
            chats, add_generation_prompt=True, padding=True, return_dict=True, return_tensors="pt"
        )
        with self._model.disable_adapter() if adapter_id is None else nullcontext():
            output = self._model.generate(**inputs, max_new_tokens=_NEW_TOKENS, do_sample=False)
        new = output[:, inputs["input_ids"].shape[1] :]
        return [text.strip() for text in self._tokenizer.batch_decode(new, skip_special_tokens=True)]


def measure(base: Path, adapters: Path, file: Path, seed: int) -> Iterator[str]:
    """Measure the tasks that `file` lacks, and yield each task's id when its measurements are in `file`.

    A task has exact match and ROUGE-L in 0..1, as the evaluation tier computes them, for `base` and for the adapter of
    every task of its family.
    """
    measured: dict[str, Any] = json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}
    missing = [task_id for task_id in TASKS if task_id not in measured]
    answerer = Answerer(base, adapters, tuple(TASKS)) if missing else None
    for task_id in missing:
        assert answerer is not None
        held_out = rows(task_id, "test", ROWS, seed)
        others = held_out[:OTHER_ROWS]
        scores = {"base": _scores(answerer, None, others), task_id: _scores(answerer, task_id, held_out)}
        scores |= {sibling: _scores(answerer, sibling, others) for sibling in siblings(task_id)}
        measured[task_id] = scores
        file.write_text(json.dumps(measured, indent=2) + "\n", encoding="utf-8")
        yield task_id


def siblings(task_id: str) -> list[str]:
    """Return the other tasks of a task's family."""
    return [each for each, task in TASKS.items() if task.family == TASKS[task_id].family and each != task_id]


def _scores(answerer: Answerer, adapter_id: str | None, held_out: Sequence[Row]) -> dict[str, float]:
    answers = answerer.answers(adapter_id, [row.query for row in held_out])
    pairs = [(row.response, answer) for row, answer in zip(held_out, answers, strict=True)]
    return {
        "rows": len(pairs),
        "exact_match": round(mean(exact_match(*pair) for pair in pairs), 4),
        "rouge_l": round(mean(rouge_l(*pair) for pair in pairs), 4),
    }
