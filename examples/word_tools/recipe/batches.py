"""From rows to tensors: token ids of the chat prompt, padded batches, and the logits of answers alone.

All prompts begin with the chat template's system message. It is computed once per batch: its keys and values are
repeated for the rows, and gradients flow through them. That leaves about half of the tokens.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import takewhile
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy
from transformers import AutoTokenizer, DynamicCache

from examples.word_tools.tasks import Row

IGNORED = -100
#: Batches whose rows are sorted by length together, so that rows of a batch have similar lengths.
_BUCKET = 8


@dataclass(frozen=True)
class Encoded:
    """A prompt without the shared prefix, and its answer with the end mark, as token ids."""

    prompt: tuple[int, ...]
    answer: tuple[int, ...]

    def __len__(self) -> int:
        return len(self.prompt) + len(self.answer)


@dataclass(frozen=True)
class Batch:
    """Right-padded ids, mask and labels [rows, tokens]; labels are IGNORED except at answers."""

    ids: Tensor
    mask: Tensor
    labels: Tensor


class Encoder:
    """Encodes rows as the chat template of a base model's folder shows them to the model."""

    def __init__(self, base: Path) -> None:
        self._tokenizer = AutoTokenizer.from_pretrained(base)
        self._end = self._tokenizer.eos_token_id
        pairs = zip(self._prompt("Write"), self._prompt("1"), strict=False)
        self.prefix = tuple(one for one, other in takewhile(lambda pair: pair[0] == pair[1], pairs))

    def encode(self, row: Row) -> Encoded:
        """Return the ids of a row. Raises ValueError if its prompt does not begin with the shared prefix."""
        prompt = self._prompt(row.query)
        if tuple(prompt[: len(self.prefix)]) != self.prefix:
            raise ValueError(f"the prompt of {row.query!r} does not begin like the others")
        answer = self._tokenizer(row.response, add_special_tokens=False)["input_ids"]
        return Encoded(tuple(prompt[len(self.prefix) :]), (*answer, self._end))

    def _prompt(self, query: str) -> list[int]:
        messages = [{"role": "user", "content": query}]
        ids: list[int] = self._tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=False)
        return ids


def collate(rows: Sequence[Encoded], pad: int = 0) -> Batch:
    """Pad rows to a batch."""
    width = max(map(len, rows))
    ids = torch.full((len(rows), width), pad)
    mask = torch.zeros(len(rows), width, dtype=torch.long)
    labels = torch.full((len(rows), width), IGNORED)
    for number, row in enumerate(rows):
        ids[number, : len(row)] = torch.tensor((*row.prompt, *row.answer))
        mask[number, : len(row)] = 1
        labels[number, len(row.prompt) : len(row)] = torch.tensor(row.answer)
    return Batch(ids, mask, labels)


def batches(rows: Sequence[Encoded], size: int, rng: random.Random) -> Iterator[Batch]:
    """Yield batches for ever: every pass is shuffled, and rows of similar length share a batch."""
    while True:
        shuffled = rng.sample(rows, len(rows))
        for start in range(0, len(rows) - size + 1, size * _BUCKET):
            bucket = sorted(shuffled[start : start + size * _BUCKET], key=len)
            groups = [bucket[at : at + size] for at in range(0, len(bucket) - size + 1, size)]
            yield from (collate(group) for group in rng.sample(groups, len(groups)))


def answer_loss(model: Any, prefix: Sequence[int], batch: Batch) -> Tensor:
    """Return the mean cross-entropy of the answers' tokens; no other position has logits."""
    logits, targets = _answer_logits(model, prefix, batch)
    return cross_entropy(logits, targets)


@torch.no_grad()
def hits(model: Any, prefix: Sequence[int], batch: Batch) -> list[bool]:
    """Return for each row whether greedy decoding gives exactly the answer and then ends.

    That is so if every answer token is the most likely one after the true tokens before it: one forward pass decides.
    """
    logits, targets = _answer_logits(model, prefix, batch)
    wrong = torch.zeros_like(batch.labels, dtype=torch.bool)
    wrong[batch.labels != IGNORED] = logits.argmax(-1) != targets
    return (~wrong.any(1)).tolist()


def _answer_logits(model: Any, prefix: Sequence[int], batch: Batch) -> tuple[Tensor, Tensor]:
    """Return logits [n, vocabulary] and targets [n] of all answer tokens of a batch, row by row.

    `model` is a causal language model of transformers, with or without the layers of a LoRA adapter in it. Every
    prompt has at least one token after the prefix, so that no answer token is the first of its row.
    """
    rows = len(batch.ids)
    cache = DynamicCache(config=model.config)
    model.model(input_ids=torch.tensor([prefix]), past_key_values=cache, use_cache=True)
    cache.batch_repeat_interleave(rows)
    mask = torch.cat([torch.ones(rows, len(prefix), dtype=torch.long), batch.mask], 1)
    hidden = model.model(
        input_ids=batch.ids, attention_mask=mask, past_key_values=cache, use_cache=True
    ).last_hidden_state
    wanted = batch.labels[:, 1:] != IGNORED
    return model.lm_head(hidden[:, :-1][wanted]), batch.labels[:, 1:][wanted]
