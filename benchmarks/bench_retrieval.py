"""What does the retrieval service cost on top of its embedder, and what do many callers gain?"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from harness import Bar, Findings, require_equal, run, say, time_interleaved
from random_jina import SHAPES
from retrieval_load import percentile, run_load
from retrieval_world import TOP_K, Client, PromptSource, RetrievalWorld

from infra.contract.prompt import Prompt

QUESTION = __doc__ or ""
_SEARCH_BARS_S = {20: 0.001, 1000: 0.020}
_SERVER_SEARCH = 100_000  # adapters; beyond what is searched in memory


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the options. The defaults are those of the bars, at sizes that a CPU finishes in two minutes."""
    shapes, parts = ["demo", *SHAPES], ["overhead", "search", "callers"]
    parser.add_argument("--parts", choices=parts, nargs="*", default=parts, help="what to time")
    parser.add_argument("--shape", choices=shapes, default="wide", help="embedder of overhead and search")
    parser.add_argument("--callers-shape", choices=shapes, default="demo", help="embedder of the concurrent callers")
    parser.add_argument("--callers", type=int, default=16, help="concurrent callers")
    parser.add_argument("--calls", type=int, default=10, help="calls of one caller in one repetition")
    parser.add_argument("--adapters", type=int, nargs="+", default=[20, 1000], help="catalogue sizes of the search")
    parser.add_argument("--searches", type=int, default=100, help="searches in one repetition")
    parser.add_argument(
        "--qdrant-url", default="", help=f"Qdrant server; {_SERVER_SEARCH} adapters are searched there too"
    )
    parser.add_argument(
        "--load-seconds", type=float, default=0, help="load with registrations and deletions; 60 is a run"
    )


def measure(options: argparse.Namespace) -> Findings:
    """Check the results, then time overhead, search and callers."""
    findings, prompts = Findings(), PromptSource()
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        if {"overhead", "search"} & set(options.parts) or options.qdrant_url:
            measure_alone(RetrievalWorld(options.shape, work, options), work, prompts, findings)
        if "callers" in options.parts or options.load_seconds:
            world = RetrievalWorld(options.callers_shape, work, options)
            with world.serving(work, "--qdrant-path", str(work / "q3"), "--cache-bytes", "0") as address:
                if "callers" in options.parts:
                    measure_callers(world, address, prompts, findings)
                if options.load_seconds:
                    measure_load(address, options, findings)
    return findings


def measure_alone(world: RetrievalWorld, work: Path, prompts: PromptSource, findings: Findings) -> None:
    """Time what one caller sees: the overhead of the service over its embedder, and the search."""
    options = world.options
    findings.settings |= {"torch_threads": world.threads, "dim": world.embedder.dim}
    if "overhead" in options.parts:
        with world.serving(work, "--qdrant-path", str(work / "q1"), "--cache-bytes", "0") as address:
            measure_overhead(world, address, prompts, findings)
    if "search" in options.parts:
        with world.serving(work, "--qdrant-path", str(work / "q2")) as address:
            measure_search(world, address, prompts, options.adapters, findings)
    if options.qdrant_url:
        flags = ("--qdrant-url", options.qdrant_url, "--collection", f"benchmark-{int(time.time())}")
        with world.serving(work, *flags) as address:
            measure_search(world, address, prompts, [_SERVER_SEARCH], findings)


def measure_overhead(world: RetrievalWorld, address: str, prompts: PromptSource, findings: Findings) -> None:
    """Time a call of the service against a bare call of the embedder, with the same new prompts."""
    client = Client(address)
    _check(world, client, _register(client, world, range(20)), [prompts.text(), prompts.with_image()])
    for name, make in (("text", prompts.text), ("text and screenshot", prompts.with_image)):
        say(f"timing overhead: {name}")
        calls = 10 if name == "text" else 3
        rounds = world.options.repetitions + 1
        asked = [[make() for _ in range(calls)] for _ in range(rounds)]
        timings = time_interleaved(
            {
                "embedder": _each_round(asked, lambda prompt: world.embedder.embed([prompt])),
                "service": _each_round(asked, client.retrieve),
            },
            repetitions=world.options.repetitions,
            device=world.options.device,
        )
        findings.measurements |= {f"{side}, {name}, {calls} calls": timing for side, timing in timings.items()}
        ratio = timings["service"].over(timings["embedder"])
        findings.add_ratio(f"service over a bare embedder call, {name}", ratio, Bar.at_most_of(1.15))
    client.close()


def measure_search(
    world: RetrievalWorld, address: str, prompts: PromptSource, sizes: Sequence[int], findings: Findings
) -> None:
    """Time retrieval against embedding of one cached prompt. The difference is search, weighting and encoding."""
    client, known, registered = Client(address), prompts.text(), 0
    draw = np.random.default_rng(1)
    everything = np.empty((0, world.embedder.dim), np.float32)
    for size in sorted(sizes):
        say(f"registering {size - registered} adapters")
        new = draw.standard_normal((size - registered, world.embedder.dim)).astype(np.float32)
        with ThreadPoolExecutor(8) as pool:
            list(pool.map(client.register, range(registered, size), new))
        everything, registered = np.concatenate([everything, new]), size
        _check(world, client, everything, [known])
        say(f"timing search among {size}")
        searches = world.options.searches
        asked = [[known] * searches for _ in range(world.options.repetitions + 1)]
        timings = time_interleaved(
            {
                "embed": _each_round(asked, lambda prompt: client.embed([prompt])),
                "retrieve": _each_round(asked, client.retrieve),
            },
            repetitions=world.options.repetitions,
        )
        pairs = zip(timings["retrieve"].seconds, timings["embed"].seconds, strict=True)
        seconds = float(np.median([(retrieve - embed) / searches for retrieve, embed in pairs]))
        findings.measurements[f"search among {size}, ms"] = seconds * 1e3
        if size in _SEARCH_BARS_S:
            name = f"search among {size}, of {_SEARCH_BARS_S[size] * 1e3:g} ms"
            findings.add_ratio(name, seconds / _SEARCH_BARS_S[size], Bar.at_most_of(1.0))
    client.close()


def measure_callers(world: RetrievalWorld, address: str, prompts: PromptSource, findings: Findings) -> None:
    """Time concurrent callers against the same number of sequential calls."""
    callers, calls = world.options.callers, world.options.calls
    clients = [Client(address) for _ in range(callers)]
    _check(world, clients[0], _register(clients[0], world, range(20)), [prompts.text()])
    rounds = world.options.repetitions + 1
    asked = [[prompts.text() for _ in range(callers * calls)] for _ in range(rounds)]
    say(f"timing {callers} callers of {calls} calls each")
    with ThreadPoolExecutor(callers) as pool:

        def run_caller(number: int, calls_of_round: Sequence[Prompt]) -> None:
            for prompt in calls_of_round[number::callers]:
                clients[number].retrieve(prompt)

        def at_once(calls_of_round: Sequence[Prompt]) -> None:
            list(pool.map(partial(run_caller, calls_of_round=calls_of_round), range(callers)))

        timings = time_interleaved(
            {
                "one after another": _each_round(asked, clients[0].retrieve),
                "at once": _whole_round(asked, at_once),
            },
            repetitions=world.options.repetitions,
            device=world.options.device,
        )
    total = callers * calls
    findings.measurements |= {f"{total} calls {name}": timing for name, timing in timings.items()}
    bar = Bar.at_least_of(8.0 if world.options.device.type == "cuda" else 2.0)
    ratio = timings["one after another"].over(timings["at once"])
    findings.add_ratio(f"calls a second of {callers} callers over one", ratio, bar)
    for client in clients:
        client.close()


def measure_load(address: str, options: argparse.Namespace, findings: Findings) -> None:
    """Let callers retrieve while adapters are registered and deleted; exit if a result is wrong."""
    say(f"loading for {options.load_seconds:g} s")
    result = run_load(address, callers=options.callers, seconds=options.load_seconds)
    if result.wrong:
        raise SystemExit(f"{len(result.wrong)} wrong answers under load, the first: {result.wrong[0]}")
    findings.measurements |= {
        "load: calls": result.calls,
        "load: registered and deleted": result.deleted,
        "load: errors and wrong answers": len(result.wrong),
        "load: median, ms": percentile(result.seconds, 50) * 1e3,
        "load: 95th percentile, ms": percentile(result.seconds, 95) * 1e3,
    }


def _register(client: Client, world: RetrievalWorld, numbers: Sequence[int]) -> Any:
    vectors = np.random.default_rng(2).standard_normal((len(numbers), world.embedder.dim)).astype(np.float32)
    for number, vector in zip(numbers, vectors, strict=True):
        client.register(number, vector)
    return vectors


def _check(world: RetrievalWorld, client: Client, registered: Any, prompts: Sequence[Prompt]) -> None:
    """Exit unless the service embeds like the embedder and finds what an exhaustive search finds."""
    served, direct = client.embed(prompts), world.embedder.embed(prompts)
    require_equal("vectors of the service", torch.from_numpy(served), torch.from_numpy(direct), world.options.dtype)
    unit = registered / np.linalg.norm(registered, axis=1, keepdims=True)
    for prompt, vector in zip(prompts, direct, strict=True):
        similarities = unit @ vector
        expected = np.sort(similarities)[::-1][:TOP_K]
        matches = client.retrieve(prompt)
        names = [similarities[int(adapter_id[1:])] for adapter_id, _ in matches]
        for what, values in (("similarities", [value for _, value in matches]), ("adapters", names)):
            require_equal(
                f"{what} of the {TOP_K} found",
                torch.tensor(values, dtype=torch.float32),
                torch.from_numpy(expected.copy()),
                world.options.dtype,
            )


def _each_round(rounds: Sequence[Sequence[Prompt]], call: Callable[[Prompt], object]) -> Callable[[], None]:
    return _whole_round(rounds, lambda prompts: [call(prompt) for prompt in prompts])


def _whole_round(rounds: Sequence[Sequence[Prompt]], call: Callable[[Sequence[Prompt]], object]) -> Callable[[], None]:
    """Return a function whose n-th call passes the prompts of round n."""
    remaining = iter(rounds)
    return lambda: (call(next(remaining)), None)[1]


if __name__ == "__main__":
    run("retrieval", QUESTION, measure, add_options)
