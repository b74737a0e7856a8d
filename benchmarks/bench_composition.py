"""What do three weighted adapters a row, all different, cost over the base model, and against PEFT?"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from itertools import islice
from math import comb
from typing import Any

from composition_setup import SHARES, Composition, CompositionSetup
from floors import Machine, decode_work, measure_machine
from harness import Bar, Findings, require_equal, run, say, time_interleaved
from random_models import SHAPES
from torch import Tensor

from generation_service.execution.inputs import DecodeRow
from generation_service.lora.kernels.capturable_ops import TorchCapturableOps
from generation_service.lora.kernels.triton_ops import TritonCapturableOps

QUESTION = __doc__ or ""
Decode = Callable[[Sequence[DecodeRow]], Tensor]


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the benchmark's options. The bars apply to the defaults, which a CPU finishes in minutes."""
    parser.add_argument("--shape", choices=list(SHAPES), default="qwen2-0.5b", help="sizes of the base model")
    parser.add_argument("--adapters", type=int, default=19, help="adapters in the bank")
    parser.add_argument("--rank", type=int, default=16, help="rank of every adapter")
    parser.add_argument("--bank-ranks", type=int, help="ranks of the bank (default: the minimum, on a GPU 1024)")
    parser.add_argument("--rows", type=int, nargs="+", default=[8, 32], help="batch sizes of decoding")
    parser.add_argument(
        "--context", type=int, help="tokens prefilled before answers are compared (default: 16; GPU: 512)"
    )
    parser.add_argument("--cached", type=int, default=512, help="cached tokens per row while decoding is timed")
    parser.add_argument("--steps", type=int, help="decode steps in one repetition (default: 2, on a GPU 32)")
    parser.add_argument("--prefill-rows", type=int, default=8, help="prompts of the prefill; 0 skips it")
    parser.add_argument("--prefill-tokens", type=int, default=512, help="tokens of each of those prompts")
    parser.add_argument("--requests", type=int, default=32, help="concurrent requests against PEFT; 0 skips them")
    parser.add_argument("--answer-tokens", type=int, default=16, help="tokens of each of their answers")
    parser.add_argument(
        "--peft-requests", type=int, default=3, help="how many of them PEFT answers, since all take the same time"
    )


def measure(options: argparse.Namespace) -> Findings:
    """Measure decoding at every batch size, whole requests, and the prefill."""
    on_gpu = options.device.type == "cuda"
    options.context = options.context or (512 if on_gpu else 16)
    options.steps = options.steps or (32 if on_gpu else 2)
    options.bank_ranks = options.bank_ranks or (1024 if on_gpu else 0)
    most = max(*options.rows, options.requests, options.prefill_rows)
    if comb(options.adapters, len(SHARES)) < most:
        raise SystemExit(f"--adapters {options.adapters} are too few for {most} rows with different sets of three")
    setup = CompositionSetup(options)
    findings = Findings(settings={"shape_sizes": vars(SHAPES[options.shape])})
    machine = measure_machine(options.device, options.dtype)
    findings.measurements |= {
        "memory_gb_per_s": machine.bytes_per_s / 1e9,
        "matrix_tflop_per_s": machine.operations_per_s / 1e12,
    }
    for rows in options.rows:
        Decoding(setup, rows).measure(findings, machine)
    if options.requests:
        measure_requests(setup, findings)
    if options.prefill_rows:
        measure_prefill(setup, findings)
    return findings


class Decoding:
    """Decode steps of one batch: the base model, one adapter per row, three per row, and one per row in PEFT."""

    def __init__(self, setup: CompositionSetup, rows: int) -> None:
        say(f"decoding {rows} rows")
        self.setup, self.options, self.rows = setup, setup.options, rows
        self.prompts = setup.prompts(rows, self.options.context)
        self.tokens = self.prompts[:, -1]
        self.mixtures = setup.compositions(rows)
        first = [next(iter(composition)) for composition in self.mixtures]
        self.singles: list[Composition] = [{number: 1.0} for number in first]
        self.base: list[Composition] = [{}] * rows
        self.peft = setup.peft.mixed_batch(first)

    def measure(self, findings: Findings, machine: Machine) -> None:
        """Compare all answers, then time all alternatives."""
        self.check()
        self.setup.stretch(self.rows)
        self.peft.truncate(self.options.context)
        self.peft.stretch(self.options.cached)
        alternatives = {
            "base": self.ours(self.setup.decode, self.base),
            "one_adapter": self.ours(self.setup.decode, self.singles),
            "three_adapters": self.ours(self.setup.decode, self.mixtures),
            "peft_one_adapter": self.theirs,
        }
        if self.options.device.type == "cuda":
            for name, ops in (("torch", TorchCapturableOps()), ("triton", TritonCapturableOps())):
                alternatives[f"three_adapters_{name}"] = self.checked(name, self.setup.captured(ops).decode)
        times = time_interleaved(
            alternatives, repetitions=self.options.repetitions, warmup=2, device=self.options.device
        )
        at = f"decode_{self.rows}"
        mixed, base = times["three_adapters"], times["base"]
        findings.add_ratio(f"{at}_over_base", mixed.over(base), self.bar())
        findings.add_ratio(f"{at}_one_adapter_over_base", times["one_adapter"].over(base))
        findings.add_ratio(f"{at}_peft_one_adapter_over_base", times["peft_one_adapter"].over(base))
        faster = times["peft_one_adapter"].over(mixed)
        findings.add_ratio(f"{at}_tokens_per_s_over_peft_mixed_batch", faster, Bar.at_least_of(1.25))
        if "three_adapters_triton" in times:
            ratio = times["three_adapters_triton"].over(times["three_adapters_torch"])
            findings.add_ratio(f"{at}_triton_over_torch", ratio)
        used = len({number for composition in self.mixtures for number in composition}) * self.options.rank
        for name, ranks in (("base", 0), ("three_adapters", used)):
            floor = decode_work(self.setup.model, self.rows, self.options.cached, ranks).seconds(machine)
            findings.add_ratio(f"{at}_{name}_over_floor", times[name].median / self.options.steps / floor)
            findings.measurements[f"{at}_{name}_floor_ms_per_step"] = floor * 1e3
        findings.measurements[f"{at}_ranks_in_use"] = used
        findings.measurements |= {f"{at}_{name}_{self.options.steps}_steps": time for name, time in times.items()}

    def bar(self) -> Bar:
        """Return the bar for three adapters per row."""
        if self.options.device.type == "cuda":
            return Bar.at_most_of(1.10)
        return Bar.at_most_of(1.25 if self.rows <= 8 else 1.35)

    def ours(self, decode: Decode, compositions: Sequence[Composition]) -> Callable[[], None]:
        """Return a function that runs engine steps, including the choice of tokens."""
        tokens = self.tokens.tolist()

        def steps() -> None:
            for step in range(self.options.steps):
                decode(self.setup.rows(tokens, self.options.cached + step, compositions)).argmax(-1).tolist()

        return steps

    def theirs(self) -> None:
        """Run PEFT's steps."""
        self.peft.truncate(self.options.cached)
        for _ in range(self.options.steps):
            self.peft.forward(self.tokens[:, None]).argmax(-1).tolist()

    def checked(self, name: str, decode: Decode) -> Callable[[], None]:
        """Return steps with three adapters per row and other kernels, after comparing them with the engine's."""
        rows = self.setup.rows(self.tokens.tolist(), self.options.cached, self.mixtures)
        expected = self.setup.decode(rows).clone()
        require_equal(f"three adapters a row, {name} kernels", decode(rows), expected, self.options.dtype)
        return self.ours(decode, self.mixtures)

    def check(self) -> None:
        """Compare the base model with transformers, one adapter with PEFT, and three with PEFT's exact merge."""
        base, dtype = self.after(self.base), self.options.dtype
        batch = self.setup.reference_batch()
        batch.forward(self.prompts)
        require_equal("base model, transformers", base, batch.forward(self.tokens[:, None]), dtype)
        singles = self.after(self.singles)
        self.peft.forward(self.prompts)
        require_equal("one adapter a row, PEFT's mixed batch", singles, self.peft.forward(self.tokens[:, None]), dtype)
        mixed = self.after(self.mixtures)
        if (mixed - base).abs().max() < 0.1 * base.abs().max():
            raise SystemExit("the adapters hardly change the answers, so comparing them proves nothing")
        for row, composition in islice(enumerate(self.mixtures), 2):
            with self.setup.peft.merged(composition) as merged:
                merged.forward(self.prompts[row : row + 1])
                theirs = merged.forward(self.tokens[row : row + 1, None])
            require_equal(f"three adapters in row {row}, PEFT's cat", mixed[row], theirs[0], dtype)

    def after(self, compositions: Sequence[Composition]) -> Tensor:
        """Return the logits of the first step after prefilling with the same adapters."""
        self.setup.prefill(self.prompts, compositions)
        return self.setup.decode(self.setup.rows(self.tokens.tolist(), self.options.context, compositions)).clone()


def measure_requests(setup: CompositionSetup, findings: Findings) -> None:
    """Time whole requests: all concurrently here; in PEFT one after another, each merged, prefilled and decoded."""
    options = setup.options
    say(f"answering {options.requests} requests of {options.answer_tokens} tokens")
    prompts = setup.prompts(options.requests, options.context)
    mixtures = setup.compositions(options.requests)

    def ours() -> None:
        chosen = setup.prefill(prompts, mixtures).argmax(-1).tolist()
        for step in range(options.answer_tokens - 1):
            chosen = setup.decode(setup.rows(chosen, options.context + step, mixtures)).argmax(-1).tolist()

    def theirs() -> None:
        for row in range(options.peft_requests):
            with setup.peft.merged(mixtures[row]) as batch:
                chosen = batch.forward(prompts[row : row + 1]).argmax(-1)
                for _ in range(options.answer_tokens - 1):
                    chosen = batch.forward(chosen[:, None]).argmax(-1)
                chosen.tolist()

    alternatives = {f"{options.requests}_requests": ours, f"peft_cat_{options.peft_requests}_requests": theirs}
    times = time_interleaved(alternatives, **_few(options))
    together, alone = times.values()
    findings.add_ratio(
        f"tokens_per_s_{options.requests}_requests_over_peft_one_at_a_time",
        alone.over(together) * options.requests / options.peft_requests,
        Bar.at_least_of(15 if options.device.type == "cuda" else 3),
    )
    findings.measurements |= dict(times)


def measure_prefill(setup: CompositionSetup, findings: Findings) -> None:
    """Time the prefill of long prompts with three adapters each, against the base model."""
    options = setup.options
    rows, length = options.prefill_rows, options.prefill_tokens
    say(f"prefilling {rows} prompts of {length} tokens")
    prompts = setup.prompts(rows, length)
    mixtures = setup.compositions(rows)
    base: list[Composition] = [{}] * rows
    alternatives = {
        "prefill_base": lambda: setup.prefill(prompts, base).argmax(-1).tolist(),
        "prefill_three_adapters": lambda: setup.prefill(prompts, mixtures).argmax(-1).tolist(),
    }
    times = time_interleaved(alternatives, **_few(options))
    findings.add_ratio(
        f"prefill_{rows}x{length}_over_base",
        times["prefill_three_adapters"].over(times["prefill_base"]),
        Bar.at_most_of(1.10 if options.device.type == "cuda" else 1.30),
    )
    findings.measurements |= dict(times)


def _few(options: argparse.Namespace) -> dict[str, Any]:
    """Return timing options for long runs: a CPU is warm by now, a GPU still has to see the new shapes."""
    on_gpu = options.device.type == "cuda"
    return {"repetitions": max(1, options.repetitions // 2), "warmup": int(on_gpu), "device": options.device}


if __name__ == "__main__":
    run("composition", QUESTION, measure, add_options)
