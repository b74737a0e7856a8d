"""What the engine accepts: a request beyond it is told so before anything is queued."""

from __future__ import annotations

from dataclasses import dataclass

from generation_service.models.base import EncodedPrompt
from infra.contract.composition import Base, Composition
from infra.contract.errors import InvalidArgumentError


def default_prefill_tokens(device_type: str) -> int:
    """Return the prompt tokens read in one step on a "cpu" or "cuda" device.

    Running answers wait for one step's reading at most: it is about the least that keeps the device busy with
    arithmetic rather than with fetching the weights.
    """
    return 256 if device_type == "cpu" else 1024


@dataclass(frozen=True)
class EngineLimits:
    """What the engine accepts, in requests, tokens and adapters.

    `max_sequence_tokens` counts prompt and answer; `prefill_tokens` bounds the prompt tokens read in one step.
    """

    max_running: int
    max_waiting: int
    max_sequence_tokens: int
    max_adapters: int
    default_max_new_tokens: int
    prefill_tokens: int

    def check_prompt(self, prompt: EncodedPrompt) -> None:
        """Raise InvalidArgumentError for a prompt that leaves no token for an answer."""
        limit = self.max_sequence_tokens
        if prompt.length >= limit:
            raise InvalidArgumentError(
                "prompt",
                f"takes {prompt.length} tokens, {prompt.image_tokens} of them for images; this server "
                f"holds {limit} for prompt and answer together: send less text, fewer or smaller images",
                tokens=str(prompt.length),
                limit=str(limit),
            )

    def check_composition(self, composition: Composition) -> None:
        """Raise InvalidArgumentError for more adapters than one composition may have."""
        if isinstance(composition, Base):
            return
        count = len(composition.adapters)
        if count > self.max_adapters:
            kind = type(composition).__name__.lower()
            raise InvalidArgumentError(
                f"composition.{kind}.adapters",
                f"{count} adapters are too many; at most {self.max_adapters} in one composition",
                adapters=str(count),
                limit=str(self.max_adapters),
            )
