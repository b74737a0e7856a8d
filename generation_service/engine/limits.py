"""What the engine accepts. A request beyond a limit is refused before it is queued."""

from __future__ import annotations

from dataclasses import dataclass

from generation_service.models.base import EncodedPrompt
from infra.contract.errors import InvalidArgumentError


def default_prefill_tokens(device_type: str) -> int:
    """Return the prompt tokens prefilled in one step on a "cpu" or "cuda" device.

    Decoding sequences wait for one step's prefill at most. The defaults are about the smallest chunks for which the
    device is bound by arithmetic rather than by fetching the weights.
    """
    return 256 if device_type == "cpu" else 1024


@dataclass(frozen=True)
class EngineLimits:
    """What the engine accepts, in requests and tokens.

    `max_sequence_tokens` counts prompt and answer; `prefill_tokens` bounds the prompt tokens prefilled in one step.
    """

    max_running: int
    max_waiting: int
    max_sequence_tokens: int
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
