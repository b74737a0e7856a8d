"""What do three weighted adapters a row, all different, cost over the base model, and against PEFT?"""

from __future__ import annotations

import argparse
import random
from collections.abc import Callable, Mapping, Sequence
from itertools import chain, count, islice

import torch
from harness import Bar, Findings, require_equal, run, say, time_interleaved
from peft_baseline import PeftBaseline, PeftBatch
from random_adapters import random_adapters
from random_models import SHAPES, RandomBaseModel, copy_sharing_weights
from torch import Tensor, nn

from generation_service.adapters.bank import AdapterBank
from generation_service.kv_cache import CacheShape, SlotKVCache
from generation_service.prefill import Prefill
from generation_service.runner import DecodeRow, Runner

QUESTION = __doc__ or ""
SHARES = (0.5, 0.3, 0.2)

Composition = Mapping[int, float]
"""Adapter number -> weight; empty: the base model alone."""


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add what can be varied; the defaults are those of the bars, at sizes that a CPU finishes in minutes."""
    parser.add_argument("--shape", choices=list(SHAPES), default="qwen2-0.5b", help="sizes of the base model")
    parser.add_argument("--adapters", type=int, default=19, help="adapters in the bank")
    parser.add_argument("--rank", type=int, default=16, help="rank of every adapter")
    parser.add_argument("--rows", type=int, nargs="+", default=[8, 32], help="batch sizes of decoding")
    parser.add_argument("--context", type=int, help="tokens read before decoding (default: 16, on a GPU 512)")
    parser.add_argument("--steps", type=int, help="decode steps in one repetition (default: 2, on a GPU 32)")
    parser.add_argument("--prefill-rows", type=int, default=8, help="prompts of the prefill; 0 leaves it out")
    parser.add_argument("--prefill-tokens", type=int, default=512, help="tokens of each of those prompts")
    parser.add_argument("--requests", type=int, default=32, help="concurrent requests against PEFT; 0 leaves it out")
    parser.add_argument("--answer-tokens", type=int, default=16, help="tokens of each of their answers")
    parser.add_argument("--peft-requests", type=int, default=3, help="of those, how many PEFT answers: all are alike")


class World:
    """One base model with a bank of random adapters in our runner, and the same model and adapters in PEFT."""

    def __init__(self, options: argparse.Namespace) -> None:
        on_gpu = options.device.type == "cuda"
        options.context = options.context or (512 if on_gpu else 16)
        options.steps = options.steps or (32 if on_gpu else 2)
        say(f"making {options.shape} in {options.dtype} on {options.device} with {options.adapters} adapters")
        self.options = options
        self.model = RandomBaseModel(SHAPES[options.shape], options.device, options.dtype)
        self.reference: nn.Module = copy_sharing_weights(self.model.module)
        about = self.model.description
        ranks = [options.rank] * options.adapters
        made = {"dtype": options.dtype, "device": options.device}
        adapters = random_adapters(about.targets, ranks, **made)
        self.peft = PeftBaseline(copy_sharing_weights(self.model.module), adapters, about.position_axes)
        bank = AdapterBank(about.targets, sum(ranks), about.dtype, about.device)
        self.ranges = []
        for weights in adapters:
            self.ranges.append(bank.acquire(weights.rank))
            bank.write(self.ranges[-1], weights)
        slots = max(*options.rows, options.requests, options.prefill_rows)
        longest = max(options.context + options.steps, options.context + options.answer_tokens, options.prefill_tokens)
        cache = CacheShape(about.layers, slots, about.kv_heads, -(-(longest + 1) // 64) * 64, about.head_dim)
        self.runner = Runner(self.model, bank, SlotKVCache(cache, about.dtype, about.device))

    def prompts(self, rows: int, tokens: int) -> Tensor:
        """Return random prompts [rows, tokens], the same whenever asked."""
        return torch.stack([self.model.random_prompt(tokens, seed).tokens for seed in range(rows)])

    def compositions(self, rows: int) -> list[Composition]:
        """Return three weighted adapters a row, no two rows alike, dealt so that all adapters are in use early."""
        dealer = random.Random(0)
        decks = (dealer.sample(range(self.options.adapters), self.options.adapters) for _ in count())
        cards = chain.from_iterable(decks)
        found: dict[frozenset[int], Composition] = {}
        while len(found) < rows:
            hand = list(islice(cards, len(SHARES)))
            if len(set(hand)) == len(hand):
                found.setdefault(frozenset(hand), dict(zip(hand, SHARES, strict=True)))
        return list(found.values())

    def prefill(self, prompts: Tensor, compositions: Sequence[Composition]) -> Tensor:
        """Read prompt n into slot n with its adapters; return the logits [N, vocab] after each."""
        logits = []
        for slot, (tokens, composition) in enumerate(zip(prompts, compositions, strict=True)):
            prefill = Prefill(slot, self.model.prompt_of(tokens.tolist()), self._routed(composition))
            read = self.runner.read(prefill, prefill.unread)
            assert read is not None
            logits.append(read)
        return torch.cat(logits)

    def decode(self, tokens: Sequence[int], length: int, compositions: Sequence[Composition]) -> Tensor:
        """Decode one token of every row after `length` others; return the logits [N, vocab]."""
        rows = [
            DecodeRow(slot, token, length, 0, self._routed(composition))
            for slot, (token, composition) in enumerate(zip(tokens, compositions, strict=True))
        ]
        return self.runner.decode(rows)

    def _routed(self, composition: Composition) -> dict[object, float]:
        return {self.ranges[number]: weight for number, weight in composition.items()}  # type: ignore[misc]


def measure(options: argparse.Namespace) -> Findings:
    """Measure decoding at every batch size, whole requests, and the prefill."""
    world = World(options)
    findings = Findings(settings={"shape_sizes": vars(SHAPES[options.shape])})
    for rows in options.rows:
        measure_decode(world, rows, findings)
    if options.requests:
        measure_requests(world, findings)
    if options.prefill_rows:
        measure_prefill(world, findings)
    return findings


def measure_decode(world: World, rows: int, findings: Findings) -> None:
    """Time steps of the same batch: base model, one adapter a row, three a row, and PEFT's one a row."""
    options = world.options
    say(f"decoding {rows} rows")
    prompts = world.prompts(rows, options.context)
    tokens = prompts[:, -1].tolist()
    mixtures = world.compositions(rows)
    first = [next(iter(composition)) for composition in mixtures]
    singles: list[Composition] = [{number: 1.0} for number in first]
    peft = world.peft.mixed_batch(first)

    check_base(world, prompts, tokens)
    check_mixture(world, prompts, tokens, mixtures)
    world.prefill(prompts, singles)
    peft.read(prompts)
    theirs = peft.read(torch.tensor(tokens)[:, None])
    require_equal(
        "one adapter a row, PEFT's mixed batch", world.decode(tokens, options.context, singles), theirs, options.dtype
    )

    def ours(compositions: Sequence[Composition]) -> Callable[[], None]:
        def steps() -> None:
            for step in range(options.steps):
                world.decode(tokens, options.context + step, compositions).argmax(-1).tolist()

        return steps

    def theirs_steps() -> None:
        peft.forget(options.context)
        for _ in range(options.steps):
            peft.read(torch.tensor(tokens)[:, None]).argmax(-1).tolist()

    base: list[Composition] = [{}] * rows
    alternatives = {
        "base": ours(base),
        "one_adapter": ours(singles),
        "three_adapters": ours(mixtures),
        "peft_one_adapter": theirs_steps,
    }
    times = time_interleaved(alternatives, repetitions=options.repetitions, warmup=2, device=options.device)
    on_gpu = options.device.type == "cuda"
    limit = 1.10 if on_gpu else 1.25 if rows <= 8 else 1.35
    findings.add_ratio(f"decode_{rows}_over_base", times["three_adapters"].over(times["base"]), Bar.at_most_of(limit))
    findings.add_ratio(f"decode_{rows}_one_adapter_over_base", times["one_adapter"].over(times["base"]))
    findings.add_ratio(f"decode_{rows}_peft_over_base", times["peft_one_adapter"].over(times["base"]))
    findings.add_ratio(
        f"decode_{rows}_tokens_per_s_over_peft_mixed_batch",
        times["peft_one_adapter"].over(times["three_adapters"]),
        Bar.at_least_of(1.25),
    )
    findings.measurements |= {f"decode_{rows}_{name}_{options.steps}_steps": time for name, time in times.items()}


def check_base(world: World, prompts: Tensor, tokens: Sequence[int]) -> None:
    """Compare the engine's base model with transformers' own forward."""
    batch = PeftBatch(world.reference, world.options.device, world.model.description.position_axes, {})
    batch.read(prompts)
    theirs = batch.read(torch.tensor(tokens)[:, None])
    base: list[Composition] = [{}] * len(tokens)
    world.prefill(prompts, base)
    ours = world.decode(tokens, prompts.shape[1], base)
    require_equal("base model, transformers", ours, theirs, world.options.dtype)


def check_mixture(world: World, prompts: Tensor, tokens: Sequence[int], mixtures: Sequence[Composition]) -> None:
    """Compare three weighted adapters a row with PEFT's exact merge of them, for the first rows."""
    world.prefill(prompts, mixtures)
    ours = world.decode(tokens, prompts.shape[1], mixtures)
    for row, composition in islice(enumerate(mixtures), 2):
        with world.peft.merged(composition) as batch:
            batch.read(prompts[row : row + 1])
            theirs = batch.read(torch.tensor([[tokens[row]]]))
        require_equal(f"three adapters in row {row}, PEFT's cat", ours[row], theirs[0], world.options.dtype)


def measure_requests(world: World, findings: Findings) -> None:
    """Time whole requests, all at once here, one after another with PEFT: merge, read, decode."""
    options = world.options
    say(f"answering {options.requests} requests of {options.answer_tokens} tokens")
    prompts = world.prompts(options.requests, options.context)
    mixtures = world.compositions(options.requests)

    def ours() -> None:
        chosen = world.prefill(prompts, mixtures).argmax(-1).tolist()
        for step in range(options.answer_tokens - 1):
            chosen = world.decode(chosen, options.context + step, mixtures).argmax(-1).tolist()

    def theirs() -> None:
        for row in range(options.peft_requests):
            with world.peft.merged(mixtures[row]) as batch:
                chosen = batch.read(prompts[row : row + 1]).argmax(-1)
                for _ in range(options.answer_tokens - 1):
                    chosen = batch.read(chosen[:, None]).argmax(-1)
                chosen.tolist()

    alternatives = {f"{options.requests}_requests": ours, f"peft_cat_{options.peft_requests}_requests": theirs}
    times = time_interleaved(alternatives, repetitions=_few(options), warmup=0, device=options.device)
    together, alone = times.values()
    findings.add_ratio(
        f"tokens_per_s_{options.requests}_requests_over_peft_one_at_a_time",
        alone.over(together) * options.requests / options.peft_requests,
        Bar.at_least_of(15 if options.device.type == "cuda" else 3),
    )
    findings.measurements |= dict(times)


def measure_prefill(world: World, findings: Findings) -> None:
    """Time reading long prompts, three adapters each, against the base model."""
    options = world.options
    rows, length = options.prefill_rows, options.prefill_tokens
    say(f"reading {rows} prompts of {length} tokens")
    prompts = world.prompts(rows, length)
    mixtures = world.compositions(rows)
    base: list[Composition] = [{}] * rows
    alternatives = {
        "prefill_base": lambda: world.prefill(prompts, base).argmax(-1).tolist(),
        "prefill_three_adapters": lambda: world.prefill(prompts, mixtures).argmax(-1).tolist(),
    }
    times = time_interleaved(alternatives, repetitions=_few(options), warmup=0, device=options.device)
    findings.add_ratio(
        f"prefill_{rows}x{length}_over_base",
        times["prefill_three_adapters"].over(times["prefill_base"]),
        Bar.at_most_of(1.10 if options.device.type == "cuda" else 1.30),
    )
    findings.measurements |= dict(times)


def _few(options: argparse.Namespace) -> int:
    """Return how often to repeat what takes long."""
    return max(1, int(options.repetitions) // 2)


if __name__ == "__main__":
    run("composition", QUESTION, measure, add_options)
