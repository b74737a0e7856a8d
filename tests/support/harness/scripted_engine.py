"""An engine whose model follows a script: answers are known beforehand, steps can be held back and made to fail."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, cast

import torch
from torch import Tensor

from generation_service.adapters.leases import BankLease, Outcome, Ready
from generation_service.adapters.residency import Residency
from generation_service.adapters.tickets import Ticket
from generation_service.engine.engine import Engine
from generation_service.engine.limits import EngineLimits
from generation_service.engine.sequence import Delta, Event, Request
from generation_service.engine.sequence import Sequence as EngineSequence
from generation_service.execution.inputs import DecodeRow, Prefill
from generation_service.execution.runner import Runner
from generation_service.models.base import BaseModel, EncodedPrompt, ModelDescription
from infra.contract.composition import Base, Composition
from infra.contract.errors import NotFoundError
from infra.contract.generation import Decoding, Generation

EOS = 0
VOCABULARY = 128
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
    """Tokens are characters."""

    description = DESCRIPTION

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


class ScriptedRunner(Runner):
    """Gives each slot the logits of its script. `before_step` is called first, with how many steps there were."""

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
        """Take a chunk of a prompt; return the logits of the answer's first character after the last one."""
        assert prefill.prompt.pixels is not None
        self.chunks.append(tokens)
        self.calls.append("r")
        self._step()
        script = list(prefill.prompt.pixels.tolist())
        prefill.advance(tokens)
        if prefill.remaining:
            return None
        if "".join(map(chr, script[:-1])) in self.failing_answers:
            raise RuntimeError("the image is on fire")
        self._scripts[prefill.slot] = script
        return self._logits([prefill.slot])

    def decode(self, rows: Sequence[DecodeRow]) -> Tensor:
        """Return the logits of the next characters."""
        self.calls.append("d")
        self._step()
        self.batches.append(len(rows))
        return self._logits([row.slot for row in rows])

    def clear(self, slot: int) -> None:
        """Forget the script of a slot."""
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


class ScriptedResidency(Residency):
    """Leases nothing, at once or when told to, and counts what is given back. It knows all adapters but `unknown`."""

    def __init__(self) -> None:
        self.unknown: set[str] = set()
        self.checked_on: list[str] = []
        self.held: list[Ready] = []
        self.hold = False
        self.slow = False
        self.out = 0

    def check(self, composition: Composition) -> Composition:
        """Return it. Raises NotFoundError for an unknown adapter, and notes the thread that asked."""
        self.checked_on.append(threading.current_thread().name)
        for share in () if isinstance(composition, Base) else composition.adapters:
            if share.adapter_id in self.unknown:
                raise NotFoundError(f"adapter {share.adapter_id!r} is not known", adapter_id=share.adapter_id)
        return composition

    def request(self, composition: Composition, ready: Ready) -> Ticket:
        """Answer now, or keep `ready` in `held`; when `slow`, long after the engine's next step."""
        if self.slow:
            time.sleep(0.1)
        if self.hold:
            self.held.append(ready)
        else:
            ready(self.lease())
        return Ticket(ready)

    def lease(self) -> Outcome:
        """Return a lease of nothing."""
        self.out += 1
        return BankLease({}, (), self._given_back)

    def _given_back(self, _: object) -> None:
        self.out -= 1


@dataclass
class Heard:
    """What one request's listener heard."""

    sequence: EngineSequence
    events: queue.SimpleQueue[Event]
    seen: list[Event] = field(default_factory=list)

    def next(self) -> Event:
        """Wait for the next event."""
        event = self.events.get(timeout=20)
        self.seen.append(event)
        return event

    def end(self) -> Generation | Exception:
        """Wait for the end."""
        while isinstance(event := self.next(), Delta):
            pass
        return event

    @property
    def deltas(self) -> str:
        """The text of all deltas heard."""
        return "".join(event.text for event in self.seen if isinstance(event, Delta))


class ScriptedEngine:
    """An engine over scripted parts. As a context manager it runs within."""

    def __init__(self, **limits: int) -> None:
        plain = {
            "max_running": 4,
            "max_waiting": 8,
            "max_sequence_tokens": 40,
            "max_adapters": 2,
            "default_max_new_tokens": 30,
            "prefill_tokens": 1000,
        }
        self.runner = ScriptedRunner()
        self.residency = ScriptedResidency()
        model = cast(BaseModel, ScriptedModel())
        self.engine = Engine(model, self.runner, self.residency, EngineLimits(**(plain | limits)))

    def ask(
        self,
        answer: str,
        length: int = 4,
        deadline: float | None = None,
        composition: Composition | None = None,
        **decoding: Any,
    ) -> Heard:
        """Submit a request whose answer is `answer`."""
        events: queue.SimpleQueue[Event] = queue.SimpleQueue()
        request = Request(scripted_prompt(answer, length), composition or Base(), Decoding(**decoding), deadline)
        return Heard(self.engine.submit(request, events.put), events)

    def __enter__(self) -> ScriptedEngine:
        self.engine.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.runner.gated = False
        self.runner.gate.release(1000)
        self.engine.close()
