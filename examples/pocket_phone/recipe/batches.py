"""From examples to tensors: the canonical prompt's token ids, cached visual features, and padded batches."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy
from transformers import Qwen2VLForConditionalGeneration

from examples.pocket_phone.prompts import Example, chat
from examples.pocket_phone.recipe import layout, tokenizer
from examples.pocket_phone.screens import COLUMNS, ROWS, Screen

TOKENS_PER_SCREEN = COLUMNS * (ROWS + 1)
IGNORED = -100
_GRID = (1, 2 * (ROWS + 1), 2 * COLUMNS)


@dataclass(frozen=True)
class Encoded:
    """A prompt with its answer as ids. `prompt_length` ids are the prompt; the rest is the answer with its end mark."""

    ids: tuple[int, ...]
    prompt_length: int
    screens: tuple[Screen, ...]


@cache
def _ids(text: str) -> tuple[int, ...]:
    return tuple(tokenizer.build().encode(text).ids)


def encode(example: Example) -> Encoded:
    """Encode one example; each image placeholder becomes as many tokens as a screen has cells."""
    pad = layout.token_ids()["image_token_id"]
    prompt: list[int] = []
    for token in _ids(chat(example.text, len(example.screens))):
        prompt.extend([token] * (TOKENS_PER_SCREEN if token == pad else 1))
    answer = _ids(example.answer + "<|im_end|>")
    return Encoded((*prompt, *answer), len(prompt), example.screens)


def pixels(screens: Sequence[Screen]) -> tuple[Tensor, Tensor]:
    """Return the patches [N * 80, 1176] and grids [N, 3] of screens."""
    batch = layout.processor()([screen.render() for screen in screens], return_tensors="pt")
    return batch["pixel_values"], batch["image_grid_thw"]


class Features:
    """The frozen vision tower's output, [20, hidden] per screen, computed once for each screen."""

    def __init__(self, model: Qwen2VLForConditionalGeneration) -> None:
        self._model = model
        self._known: dict[Screen, Tensor] = {}

    @torch.no_grad()
    def add(self, screens: Sequence[Screen], batch: int = 64) -> None:
        """Compute the features of new screens."""
        new = list(dict.fromkeys(screen for screen in screens if screen not in self._known))
        for start in range(0, len(new), batch):
            part = new[start : start + batch]
            patches, grids = pixels(part)
            device = self._model.device
            output = self._model.model.visual(patches.to(device), grid_thw=grids.to(device)).pooler_output
            self._known.update(zip(part, output.view(len(part), TOKENS_PER_SCREEN, -1), strict=True))

    def __getitem__(self, screen: Screen) -> Tensor:
        return self._known[screen]


@dataclass(frozen=True)
class Batch:
    """Right-padded rows: embeddings [B, T, H], mask [B, T], positions [3, B, T], labels [B, T] (else IGNORED)."""

    embeds: Tensor
    mask: Tensor
    positions: Tensor
    labels: Tensor


def collate(model: Qwen2VLForConditionalGeneration, rows: Sequence[Encoded], features: Features) -> Batch:
    """Build a batch whose image positions hold the screens' features."""
    names = layout.token_ids()
    length = max(len(row.ids) for row in rows)
    ids = torch.full((len(rows), length), names["bos_token_id"])
    mask = torch.zeros(len(rows), length, dtype=torch.long)
    labels = torch.full((len(rows), length), IGNORED)
    for number, row in enumerate(rows):
        own = torch.tensor(row.ids)
        ids[number, : len(own)] = own
        mask[number, : len(own)] = 1
        labels[number, row.prompt_length : len(own)] = own[row.prompt_length :]
    screens = [screen for row in rows for screen in row.screens]
    is_image = ids == names["image_token_id"]
    positions, _ = model.model.get_rope_index(
        ids, mm_token_type_ids=is_image.int(), image_grid_thw=torch.tensor([_GRID] * len(screens)), attention_mask=mask
    )
    device = model.device
    embeds = model.get_input_embeddings()(ids.to(device))
    visual = torch.cat([features[screen] for screen in screens]).to(embeds.dtype)
    embeds = embeds.masked_scatter(is_image.to(device).unsqueeze(-1), visual)
    return Batch(embeds, mask.to(device), positions.to(device), labels.to(device))


def answer_logits(model: Qwen2VLForConditionalGeneration, batch: Batch) -> tuple[Tensor, Tensor]:
    """Return the logits [N, V] that predict the batch's N answer tokens, and those tokens [N], row by row."""
    hidden = model.model.language_model(
        inputs_embeds=batch.embeds, attention_mask=batch.mask, position_ids=batch.positions, use_cache=False
    ).last_hidden_state
    is_answer = batch.labels[:, 1:] != IGNORED
    return model.lm_head(hidden[:, :-1][is_answer]), batch.labels[:, 1:][is_answer]


def answer_loss(model: Qwen2VLForConditionalGeneration, batch: Batch) -> Tensor:
    """Return the mean cross entropy of the answer tokens."""
    logits, targets = answer_logits(model, batch)
    return cross_entropy(logits.float(), targets)
