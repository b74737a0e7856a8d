"""Does the number of known adapters slow the engine down?

Requests draw adapters by Zipf's law from 19 or from 1,000. With a bank of 64, many of the 1,000 are loaded from host
memory or disk while other requests decode.
"""

from __future__ import annotations

import argparse
import random
import tempfile
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from itertools import count, cycle, pairwise
from pathlib import Path

from engine_setup import (
    ENGINE_SHAPES,
    AdapterFiles,
    EngineSetup,
    PlannedRequest,
    Sizes,
    adapter_bytes,
    request_of,
    require_same_answers,
)
from harness import Bar, Findings, Timing, run, say, time_interleaved
from random_models import RandomBaseModel

from infra.contract.composition import Base, Mixture, WeightedAdapter

QUESTION = __doc__ or ""
CHECKED = 4
CHECKED_TOKENS = 16


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the benchmark's options. The bars apply to the defaults, which a CPU finishes in minutes."""
    parser.add_argument("--shape", choices=list(ENGINE_SHAPES), default="small", help="sizes of the base model")
    parser.add_argument("--few", type=int, default=19, help="known adapters of the baseline engine")
    parser.add_argument("--many", type=int, default=1000, help="known adapters of the other engine")
    parser.add_argument("--bank", type=int, default=64, help="adapters that fit into the bank")
    parser.add_argument("--host", type=int, default=256, help="adapters that fit into host memory")
    parser.add_argument("--files", type=int, default=64, help="different adapters on disk; the others share them")
    parser.add_argument("--rank", type=int, help="rank of every adapter (default: 4, on a GPU 16)")
    parser.add_argument("--per-request", type=int, nargs="+", default=[1, 3], help="adapters in a request's mixture")
    parser.add_argument("--together", type=int, help="concurrent requests (default: 8, on a GPU 32)")
    parser.add_argument("--requests", type=int, help="requests in one repetition (default: 32, on a GPU 512)")
    parser.add_argument("--prompt-tokens", type=int, help="tokens of each prompt (default: 16, on a GPU 256)")
    parser.add_argument("--answer-tokens", type=int, default=64, help="tokens of each answer")


def measure(options: argparse.Namespace) -> Findings:
    """Time both engines over the same model, for every mixture size."""
    _fill_in(options)
    say(f"making {options.shape} in {options.dtype} on {options.device}, and {options.files} adapters")
    model = RandomBaseModel(ENGINE_SHAPES[options.shape], options.device, options.dtype)
    findings = Findings(settings={"shape_sizes": vars(model.shape)})
    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        few, many = (
            stack.enter_context(EngineSetup(model, files, _sizes(options, model)).running())
            for files in _files(options, model, Path(folder))
        )
        check(options, few, many)
        for setup, known in ((few, options.few), (many, options.many)):
            setup.fill([f"a{number}" for number in reversed(range(min(known, options.host)))])
        measure_steps_beside_loads(options, many, findings)
        for size in options.per_request:
            measure_traffic(options, size, few, many, findings)
    return findings


def check(options: argparse.Namespace, few: EngineSetup, many: EngineSetup) -> None:
    """Compare the answers of both engines for adapters that both know, and check that adapters change answers."""
    for size in options.per_request:
        asked = [shortened(one) for one in traffic(options, few, 0, size, options.few)[:CHECKED]]
        ours, theirs = many.answer(asked, 1), few.answer(asked, 1)
        require_same_answers(f"{size} of {options.few} or of {options.many} adapters", ours, theirs)
        plain = few.answer([request_of(one.prompt, Base(), CHECKED_TOKENS) for one in asked], 1)
        if all(a.text == b.text for a, b in zip(theirs, plain, strict=True)):
            raise SystemExit("the adapters change no answer, so nothing was timed")


def shortened(request: PlannedRequest) -> PlannedRequest:
    """Return the request with an answer short enough to compare before every run."""
    return request_of(request.prompt, request.composition, CHECKED_TOKENS)


def measure_traffic(
    options: argparse.Namespace, size: int, few: EngineSetup, many: EngineSetup, findings: Findings
) -> None:
    """Time `--requests` answers of each engine over all its adapters, with new draws in every repetition."""
    say(f"{options.requests} requests, {size} adapters each, {options.together} at a time")
    seeds = count(100)
    loads: dict[str, list[int]] = {"few": [], "many": []}

    def answers(name: str, setup: EngineSetup, known: int) -> Callable[[], object]:
        def once() -> None:
            before = setup.loads
            setup.answer(traffic(options, setup, next(seeds), size, known), options.together)
            loads[name].append(setup.loads - before)

        return once

    alternatives = {"few": answers("few", few, options.few), "many": answers("many", many, options.many)}
    times = time_interleaved(alternatives, repetitions=options.repetitions, device=options.device)
    named = f"{size}_adapter" + ("s" if size > 1 else "") + "_a_request"
    findings.add_ratio(
        f"tokens_per_s_{options.many}_over_{options.few}_known_{named}",
        times["few"].over(times["many"]),
        Bar.at_least_of(0.90),
    )
    for name, known in (("few", options.few), ("many", options.many)):
        findings.measurements[f"{known}_known_{named}"] = times[name]
        findings.measurements[f"{known}_known_{named}_tokens_per_s"] = _tokens_per_s(options, times[name])
        counted = loads[name][-options.repetitions :]
        findings.measurements[f"{known}_known_{named}_loads_a_request"] = sum(counted) / (
            len(counted) * options.requests
        )


def measure_steps_beside_loads(options: argparse.Namespace, setup: EngineSetup, findings: Findings) -> None:
    """Time the steps of one answer, with and without concurrent adapter loads."""
    say("steps of one answer, alone and during loads")
    absent = cycle(range(options.bank, options.many))
    steps: dict[str, list[float]] = {"alone": [], "beside_loads": []}
    loaded = setup.loads
    for repetition in range(-1, options.repetitions):
        for name, taken in steps.items():
            prompt = setup.model.random_prompt(options.prompt_tokens, seed=repetition)
            asked = request_of(prompt, Mixture((WeightedAdapter("a0", 1.0),)), options.answer_tokens)
            times = setup.token_times(asked, (f"a{n}" for n in absent) if name == "beside_loads" else ())
            if repetition >= 0:
                taken += [after - before for before, after in pairwise(times)]
    for name, taken in steps.items():
        ordered = sorted(taken)
        findings.measurements[f"step_{name}_median_ms"] = 1e3 * ordered[len(ordered) // 2]
        findings.measurements[f"step_{name}_p99_ms"] = 1e3 * ordered[int(0.99 * len(ordered))]
        findings.measurements[f"step_{name}_longest_ms"] = 1e3 * ordered[-1]
    findings.measurements["loads_beside_steps"] = setup.loads - loaded


def traffic(options: argparse.Namespace, setup: EngineSetup, seed: int, size: int, known: int) -> list[PlannedRequest]:
    """Return requests whose adapters follow Zipf's law over `known`: adapter n is drawn with weight 1 / (n + 1)."""
    draw = random.Random(seed)
    popularity = [1 / (1 + place) for place in range(known)]
    requests = []
    for number in range(options.requests):
        chosen: dict[int, None] = {}
        while len(chosen) < size:
            chosen.setdefault(draw.choices(range(known), popularity)[0])
        shares = tuple(WeightedAdapter(f"a{adapter}", 1 / size) for adapter in chosen)
        prompt = setup.model.random_prompt(options.prompt_tokens, 10_000 * seed + number)
        requests.append(request_of(prompt, Mixture(shares), options.answer_tokens))
    return requests


def _fill_in(options: argparse.Namespace) -> None:
    on_gpu = options.device.type == "cuda"
    options.rank = options.rank or (16 if on_gpu else 4)
    options.together = options.together or (32 if on_gpu else 8)
    options.requests = options.requests or (512 if on_gpu else 32)
    options.prompt_tokens = options.prompt_tokens or (256 if on_gpu else 16)


def _sizes(options: argparse.Namespace, model: RandomBaseModel) -> Sizes:
    return Sizes(
        bank_ranks=options.bank * options.rank,
        slots=options.together,
        sequence_tokens=options.prompt_tokens + options.answer_tokens,
        host_bytes=options.host * adapter_bytes(model, options.rank),
    )


def _files(options: argparse.Namespace, model: RandomBaseModel, folder: Path) -> Sequence[AdapterFiles]:
    return [
        AdapterFiles(model, folder, known=known, files=options.files, rank=options.rank)
        for known in (options.few, options.many)
    ]


def _tokens_per_s(options: argparse.Namespace, time: Timing) -> float:
    return float(options.requests * options.answer_tokens / time.median)


if __name__ == "__main__":
    run("adapter_count", QUESTION, measure, add_options)
