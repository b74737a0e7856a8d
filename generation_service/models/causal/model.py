"""A loaded text-only language model: the layers of transformers under our own masks and KV cache."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from PIL.Image import Image
from torch import Tensor

from generation_service.models.base import EncodedPrompt, LayerCache, ModelDescription
from generation_service.models.causal.architectures import CausalArchitecture
from generation_service.models.causal.config import layer_windows
from generation_service.models.causal.names import CausalNames
from generation_service.models.chat import ChatTokenizer
from generation_service.models.decoder import Decoder
from generation_service.models.images import image_field_paths
from infra.contract.errors import InvalidArgumentError
from infra.contract.prompt import Prompt


class CausalLM(Decoder):
    """A loaded text-only model. Positions have one axis and equal the index of the token."""

    def __init__(
        self, model: Any, description: ModelDescription, architecture: CausalArchitecture, chat: ChatTokenizer
    ) -> None:
        super().__init__(model, model.model, description, CausalNames(description.targets).canonical)
        config = model.config
        self._chat = chat
        self._windows = layer_windows(config, architecture)
        self._layer_types = config.layer_types if architecture.rope_by_layer_type else None
        self._additive_masks = config._attn_implementation == "eager"
        self._logit_cap = getattr(config, "final_logit_softcapping", None)

    @property
    def shortest_window(self) -> int | None:
        """The shortest sliding window of a layer in tokens; None: every layer attends to all tokens."""
        return min((window for window in self._windows if window is not None), default=None)

    def encode(self, prompt: Prompt, images: Iterable[Image], max_tokens: int | None = None) -> EncodedPrompt:
        """Encode `prompt`. Raises InvalidArgumentError for images, and for added tokens beyond the embedding."""
        for path in image_field_paths(prompt):
            raise InvalidArgumentError(f"{path}.image", "this base model reads text only; leave the image out")
        tokens = torch.tensor(self._chat.encode(prompt), dtype=torch.long)
        largest = int(tokens.max()) if len(tokens) else 0
        if largest >= self.description.vocab_size:
            raise InvalidArgumentError(
                "messages",
                f"contains {self._chat.spelling(largest)!r}, a token that was added to the tokenizer and for which "
                "this base model has no embedding; leave it out",
            )
        return EncodedPrompt(tokens, positions=torch.arange(len(tokens))[None], position_delta=0, image_tokens=0)

    def decode(self, tokens: Sequence[int]) -> str:
        """Return the text of `tokens` without special tokens."""
        return self._chat.decode(tokens)

    def forward(self, embeddings: Tensor, positions: Tensor, mask: Tensor | None, cache: LayerCache) -> Tensor:
        """Return the last hidden states [N, T, hidden]; embeddings [N, T, hidden], positions [1, N, T].

        Each layer gets the mask of its window, and the rotary embedding of its type.
        """
        indices = positions[0]
        masks = {window: self._mask(mask, indices, window, embeddings.dtype) for window in set(self._windows)}
        rotations = self._rotations(embeddings, indices)
        hidden = embeddings
        for number, (layer, window) in enumerate(zip(self._language.layers, self._windows, strict=True)):
            hidden = layer(
                hidden,
                attention_mask=masks[window],
                position_ids=indices,
                position_embeddings=rotations[self._layer_types[number] if self._layer_types else None],
                past_key_values=cache,
                use_cache=True,
            )
        normed: Tensor = self._language.norm(hidden)
        return normed

    def logits(self, hidden: Tensor) -> Tensor:
        """Return the logits [N, vocab] of hidden states [N, hidden], soft-capped if the config says so."""
        logits = super().logits(hidden)
        return logits if self._logit_cap is None else torch.tanh(logits / self._logit_cap) * self._logit_cap

    def _rotations(self, embeddings: Tensor, indices: Tensor) -> dict[str | None, tuple[Tensor, Tensor]]:
        rotary = self._language.rotary_emb
        if self._layer_types is None:
            return {None: rotary(embeddings, indices)}
        return {kind: rotary(embeddings, indices, kind) for kind in set(self._layer_types)}

    def _mask(self, mask: Tensor | None, indices: Tensor, window: int | None, dtype: torch.dtype) -> Tensor | None:
        """Return the mask of layers with `window`: boolean, None for plain causal, or additive for eager attention.

        `mask` [N, 1, T, S] is true where a token attends without a window; `indices` [N, T] are the tokens' positions.
        """
        tokens = indices.shape[1]
        if mask is None and (self._additive_masks or (window is not None and tokens > window)):
            mask = torch.ones(tokens, tokens, dtype=torch.bool, device=indices.device).tril()[None, None]
        if mask is not None and window is not None and mask.shape[-1] > window:
            keys = torch.arange(mask.shape[-1], device=indices.device)
            mask = mask & (keys > indices[:, None, :, None] - window)
        if mask is None or not self._additive_masks:
            return mask
        return torch.zeros(mask.shape, dtype=dtype, device=mask.device).masked_fill(~mask, torch.finfo(dtype).min)
