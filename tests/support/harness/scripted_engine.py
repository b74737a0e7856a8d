"""An engine whose model follows a script: answers are known in advance, steps can be gated and made to fail."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from generation_service.adapters.admission import AdmittedComposition
from generation_service.adapters.leases import BankLease
from generation_service.adapters.load import OnReady, Outcome
from generation_service.engine.engine import Engine
from generation_service.engine.limits import EngineLimits
from generation_service.engine.sequence import Delta, Event, Request
from generation_service.engine.sequence import Sequence as EngineSequence
from generation_service.execution.inputs import DecodeRow, Prefill
from generation_service.models.base import EncodedPrompt, ModelDescription
from infra.contract.composition import Base
from infra.contract.generation import Decoding, Generation

EOS = 0
VOCABULARY = 128
BASE = AdmittedComposition(Base())
DESCRIPTION = ModelDescription(
    family="scripted",
    layers=1,
    kv_heads=1,
    head_dim=1,
    vocab_size=VOCABULARY,
    max_positions=64,
    position_axes=1,
    token_characters=1,
    eos_tokens=frozenset({EOS}),
    by_image=(),
    targets={},
    dtype=torch.float32,
    device=torch.device("cpu"),
    weight_bytes=0,
)


class ScriptedModel:
    """A TextModel whose tokens are characters."""

    description = DESCRIPTION
    shortest_window = None

    def decode(self, tokens: Sequence[int]) -> str:
        """Return the characters."""
        return "".join(map(chr, tokens))


def scripted_prompt(answer: str, length: int = 4) -> EncodedPrompt:
    """Return a prompt of `length` tokens to which the scripted model answers `answer`, then ends."""
    script = torch.tensor([*map(ord, answer), EOS])
    return EncodedPrompt(
        tokens=torch.zeros(length, dtype=torch.long),
        positions=torch.zeros(1, length, dtype=torch.long),
        position_delta=0,
        image_tokens=0,
        pixels=script,
    )


class ScriptedRunner:
    """A StepRunner that returns the logits of each slot's script.

    While `gated`, every forward pass takes one permit of `gate`. Pass number `n` fails if `n` is in `failing_steps`,
    the prefill of an answer if it is in `failing_answers`; characters of `poisoned` get NaN logits.
    """

    def __init__(self) -> None:
        self._scripts: dict[int, list[int]] = {}
        self.steps = 0
        self.chunks: list[int] = []
        self.batches: list[int] = []
        self.cleared: list[int] = []
        self.calls: list[str] = []
        self.failing_steps: set[int] = set()
        self.failing_answers: set[str] = set()
        self.poisoned: set[str] = set()
        self.gate = threading.Semaphore(0)
        self.gated = False

    def prefill(self, prefill: Prefill, tokens: int) -> Tensor | None:
        """Prefill a chunk; return the logits of the answer's first character after the last one."""
        assert prefill.prompt.pixels is not None
        self.chunks.append(tokens)
        self.calls.append("p")
        self._step()
        script = list(prefill.prompt.pixels.tolist())
        prefill.advance(tokens)
        if prefill.remaining:
            return None
        if "".join(map(chr, script[:-1])) in self.failing_answers:
            raise RuntimeError("the image is on fire")
        self._scripts[prefill.slot] = script
        return self._logits([prefill.slot])

    def prefill_together(self, prefills: Sequence[Prefill]) -> Tensor | None:
        """Fail: scripted prompts have images, which are never prefilled together."""
        raise AssertionError(f"{len(prefills)} prompts with images were prefilled together")

    def decode(self, rows: Sequence[DecodeRow]) -> Tensor:
        """Return the logits of the next characters."""
        self.calls.append("d")
        self._step()
        self.batches.append(len(rows))
        return self._logits([row.slot for row in rows])

    def clear(self, slot: int) -> None:
        """Drop the script of a slot."""
        self.cleared.append(slot)
        self._scripts.pop(slot, None)

    def _step(self) -> None:
        if self.gated:
            assert self.gate.acquire(timeout=20)
        self.steps += 1
        if self.steps in self.failing_steps:
            raise RuntimeError("the device is on fire")

    def _logits(self, slots: Sequence[int]) -> Tensor:
        logits = torch.zeros(len(slots), VOCABULARY)
        for row, slot in enumerate(slots):
            token = self._scripts[slot].pop(0)
            logits[row, token] = torch.nan if chr(token) in self.poisoned else 10.0
        return logits


@dataclass(eq=False)
class FakeLoad:
    """A Load that records whether it was cancelled."""

    cancelled: bool = False

    def cancel(self) -> None:
        """Record the call."""
        self.cancelled = True


class FakeLoader:
    """An AdapterLoader that grants empty leases, at once or when a test does, and counts those not released.

    While `held_back`, callbacks are appended to `pending` instead of being called. `before_request` runs first in every
    request.
    """

    def __init__(self) -> None:
        self.pending: list[OnReady] = []
        self.loads: list[FakeLoad] = []
        self.held_back = False
        self.before_request: Callable[[], None] = lambda: None
        self.unreleased = 0

    def request(self, composition: AdmittedComposition, on_ready: OnReady) -> FakeLoad:
        """Call `on_ready` with a lease now, or keep it in `pending`."""
        self.before_request()
        self.loads.append(FakeLoad())
        if self.held_back:
            self.pending.append(on_ready)
        else:
            on_ready(self.lease())
        return self.loads[-1]

    def lease(self) -> Outcome:
        """Return a lease of no ranges."""
        self.unreleased += 1
        return BankLease({}, (), self._on_release)

    def _on_release(self, _: object) -> None:
        self.unreleased -= 1


@dataclass
class RecordedEvents:
    """The events of one request's listener."""

    sequence: EngineSequence
    events: queue.SimpleQueue[Event]
    seen: list[Event] = field(default_factory=list)

    def next(self) -> Event:
        """Wait for the next event."""
        event = self.events.get(timeout=20)
        self.seen.append(event)
        return event

    def end(self) -> Generation | Exception:
        """Wait for the last event."""
        while isinstance(event := self.next(), Delta):
            pass
        return event

    def expire(self) -> None:
        """Move the request's deadline into the past."""
        self.sequence.request = replace(self.sequence.request, deadline=0.0)

    @property
    def deltas(self) -> str:
        """The text of all deltas seen."""
        return "".join(event.text for event in self.seen if isinstance(event, Delta))


class ScriptedEngine:
    """An engine over scripted parts. As a context manager it starts and closes the engine."""

    def __init__(self, **limits: int) -> None:
        defaults = {
            "max_running": 4,
            "max_waiting": 8,
            "max_sequence_tokens": 40,
            "default_max_new_tokens": 30,
            "prefill_tokens": 1000,
        }
        self.runner = ScriptedRunner()
        self.loader = FakeLoader()
        self.engine = Engine(ScriptedModel(), self.runner, self.loader, EngineLimits(**(defaults | limits)))

    def submit(self, answer: str, length: int = 4, deadline: float | None = None, **decoding: Any) -> RecordedEvents:
        """Submit a request whose answer is `answer`."""
        events: queue.SimpleQueue[Event] = queue.SimpleQueue()
        request = Request(scripted_prompt(answer, length), BASE, Decoding(**decoding), deadline)
        return RecordedEvents(self.engine.submit(request, events.put), events)

    def __enter__(self) -> ScriptedEngine:
        self.engine.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.runner.gated = False
        self.runner.gate.release(1000)
        self.engine.close()
