"""Worker: this repository's engine, assembled by the same code and settings as the generation service."""

from __future__ import annotations

import queue
from typing import Any

from peer_worker import ReplyStream, options

REPLIES = ReplyStream()  # Before the imports below, which may print.

from harness import ROOT  # noqa: E402, F401, I001 - It puts the repository on the path.
import torch  # noqa: E402

from generation_service.app import GenerationStack, generation_stack  # noqa: E402
from generation_service.engine.sequence import Event, Request  # noqa: E402
from generation_service.models.base import EncodedPrompt  # noqa: E402
from generation_service.settings import GenerationSettings  # noqa: E402
from infra.contract.composition import Base, Mixture, WeightedAdapter  # noqa: E402
from infra.contract.generation import Decoding, Generation  # noqa: E402


def main() -> None:
    """Serve until stdin is closed."""
    chosen = options()
    torch.set_num_threads(chosen.threads)
    settings = GenerationSettings(
        model_path=chosen.model,
        model_name=chosen.model.name,
        device="cpu",
        dtype=chosen.dtype,
        max_running=chosen.requests,
        max_sequence_tokens=chosen.sequence_tokens,
        adapter_roots=(chosen.adapters,),
    )
    with generation_stack(settings) as stack:
        REPLIES.serve(lambda message: answer(stack, message), "torch", "transformers")


def answer(stack: GenerationStack, message: dict[str, Any]) -> dict[str, Any]:
    """Submit all requests together and wait for their ends."""
    ends: list[queue.SimpleQueue[Event]] = []
    sequences = []
    for request in message["requests"]:
        shares = tuple(WeightedAdapter(name, weight) for name, weight in request["adapters"].items())
        composition = stack.admission.admit(Mixture(shares) if shares else Base())
        events: queue.SimpleQueue[Event] = queue.SimpleQueue()
        decoding = Decoding(max_new_tokens=message["new_tokens"])
        sequences.append(stack.engine.submit(Request(prompt_of(request["tokens"]), composition, decoding), events.put))
        ends.append(events)
    first_token_s = [timings.queue_s + timings.prefill_s for timings in (end_of(events).timings for events in ends)]
    return {"answers": [list(sequence.tokens) for sequence in sequences], "first_token_s": first_token_s}


def prompt_of(tokens: list[int]) -> EncodedPrompt:
    """Return `tokens` as a prompt."""
    return EncodedPrompt(torch.tensor(tokens), torch.arange(len(tokens))[None], position_delta=0, image_tokens=0)


def end_of(events: queue.SimpleQueue[Event]) -> Generation:
    """Return the answer that ends a sequence. Raises the error of one that failed."""
    while True:
        event = events.get()
        if isinstance(event, Exception):
            raise event
        if isinstance(event, Generation):
            return event


if __name__ == "__main__":
    main()
