"""How many requests a second does continuous batching answer under open-loop load, against static batches?"""

from __future__ import annotations

import argparse
import random
import statistics
from collections.abc import Sequence
from math import inf
from typing import Any

import torch
from batching_servers import EngineServer, StaticBatches
from harness import Bar, Findings, run, say  # isort: split  # It puts the repository on the path.
from open_loop import LoadRequest, Search, Server, log_uniform, search
from random_models import SHAPES, RandomBaseModel, Shape, copy_sharing_weights

from generation_service.engine.limits import default_prefill_tokens

QUESTION = __doc__ or ""
ROW = "continuous batching under open-loop load: requests/s at equal p95, against static batches"
SMALL = Shape("small", 384, 4, 6, 2, 1024, 4096)
CHOICES = {SMALL.name: SMALL, **SHAPES}
ALLOWED = {torch.float32: 1e-3, torch.bfloat16: 6e-2, torch.float16: 1e-2}
"""Tokens whose logits differ by less than this, relative to the largest logit, count as equal."""


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the benchmark's options. Defaults depend on the device: minutes on a CPU, the real sizes on a GPU."""
    parser.set_defaults(repetitions=1)
    parser.add_argument("--shape", choices=list(CHOICES), help="the model (default: small, on a GPU qwen2-vl-7b)")
    parser.add_argument("--slots", type=int, help="answers at a time, of either side (default: 8, on a GPU 32)")
    parser.add_argument("--requests", type=int, help="requests a run (default: 40, on a GPU 128)")
    parser.add_argument("--prompt", type=int, nargs=2, metavar=("LEAST", "MOST"), help="its tokens, log-uniform")
    parser.add_argument("--answer", type=int, nargs=2, metavar=("LEAST", "MOST"), help="its tokens, likewise")
    parser.add_argument("--prefill-tokens", type=int, help="prompt tokens our engine prefills between two decode steps")
    parser.add_argument("--trials", type=int, default=3, help="runs in the search for each side's rate")
    parser.add_argument(
        "--bound", type=float, default=3.0, help="p95 allowed, as a multiple of the longest request's time alone"
    )


def measure(options: argparse.Namespace) -> Findings:
    """Compare answers, then find the highest rate that each side sustains within the same p95."""
    complete(options)
    model = RandomBaseModel(CHOICES[options.shape], options.device, options.dtype)
    static = StaticBatches(copy_sharing_weights(model.module), options.slots, model.description.position_axes)
    requests = load(model, options)
    longest = -(-(options.prompt[1] + options.answer[1] + 1) // 64) * 64
    engine = EngineServer(model, options.slots, longest, len(requests), options.prefill_tokens)
    with engine, torch.inference_mode():
        findings = Findings(settings={"prompt_tokens": sizes(request.prompt.length for request in requests)})
        findings.settings["answer_tokens"] = sizes(request.answer_tokens for request in requests)
        findings.measurements["answers equal"] = require_same_answers(engine, static, requests, options)
        alone = max(requests, key=lambda request: request.answer_tokens)
        findings.measurements["longest request alone, generate"] = (alone_s := static.serve([alone], [0.0]).elapsed_s)
        compare(findings, {"engine": engine, "static": static}, requests, options, options.bound * alone_s)
    return findings


def complete(options: argparse.Namespace) -> None:
    """Fill in the defaults that depend on the device."""
    gpu = options.device.type == "cuda"
    options.shape = options.shape or ("qwen2-vl-7b" if gpu else SMALL.name)
    options.slots = options.slots or (32 if gpu else 8)
    options.requests = options.requests or (128 if gpu else 40)
    options.prompt = options.prompt or ([64, 1024] if gpu else [16, 256])
    options.answer = options.answer or ([8, 256] if gpu else [4, 96])
    options.prefill_tokens = options.prefill_tokens or default_prefill_tokens(options.device.type)


def load(model: RandomBaseModel, options: argparse.Namespace) -> list[LoadRequest]:
    """Return the requests: random prompts with log-uniform lengths, the same in every run."""
    draw = random.Random(0)
    return [
        LoadRequest(model.random_prompt(log_uniform(draw, *options.prompt), seed), log_uniform(draw, *options.answer))
        for seed in range(options.requests)
    ]


def sizes(lengths: Any) -> dict[str, float]:
    """Summarise a distribution of lengths."""
    ordered = sorted(lengths)
    return {
        "mean": statistics.mean(ordered),
        "median": statistics.median(ordered),
        "least": ordered[0],
        "most": ordered[-1],
    }


def require_same_answers(
    engine: EngineServer, static: StaticBatches, requests: Sequence[LoadRequest], options: argparse.Namespace
) -> str:
    """Answer two batches on both sides, which also warms them up; exit if they differ by more than rounding."""
    some = requests[: 2 * options.slots]
    ours, theirs = (server.serve(some, [0.0] * len(some)).answers for server in (engine, static))
    for request, mine, other in zip(some, ours, theirs, strict=True):
        if len(mine) != len(other):
            raise SystemExit(f"an answer has {len(mine)} tokens, the other {len(other)}, so nothing was timed")
        parted = next((index for index, pair in enumerate(zip(mine, other, strict=True)) if pair[0] != pair[1]), None)
        if parted is not None:
            logits = static.logits([*request.prompt.tokens.tolist(), *mine[:parted]]).double()
            apart = float((logits[mine[parted]] - logits[other[parted]]).abs() / logits.abs().max())
            if apart > ALLOWED[options.dtype]:
                raise SystemExit(f"answers differ at token {parted} by {apart:.1e} of a logit, so nothing was timed")
    same = sum(mine == other for mine, other in zip(ours, theirs, strict=True))
    say(f"  equal: {same} of {len(some)} greedy answers token for token, the others up to rounding")
    return f"{same} of {len(some)} token for token"


def compare(
    findings: Findings,
    servers: dict[str, Server],
    requests: Sequence[LoadRequest],
    options: argparse.Namespace,
    bound_s: float,
) -> None:
    """Measure both sides in turn in every repetition, and add ratios and measurements."""
    say(f"  p95 bound: {bound_s:.2f} s")
    searches: dict[str, list[Search]] = {name: [] for name in servers}
    for repetition in range(options.repetitions):
        for name, server in servers.items():
            searches[name].append(search(server, requests, bound_s, seed=repetition, trials=options.trials))
    sustained = {name: [result.sustained(bound_s) for result in searches[name]] for name in servers}
    saturated = {name: [result.sustained(inf) for result in searches[name]] for name in servers}
    findings.add_ratio(ROW, over(sustained["engine"], sustained["static"]), Bar.at_least_of(2.0))
    findings.add_ratio("most requests/s, however long they take", over(saturated["engine"], saturated["static"]))
    findings.measurements["p95 bound, s"] = bound_s
    findings.settings["runs"] = [
        run for name in servers for result in searches[name] for run in runs_as_json(name, result)
    ]
    for name in servers:
        findings.measurements[f"{name}: requests/s within the bound"] = statistics.median(sustained[name])
        findings.measurements[f"{name}: most requests/s"] = statistics.median(saturated[name])
        for offered, served in searches[name][0].runs:
            rate = "all at once" if offered is None else f"{offered:.2f} requests/s"
            findings.measurements[f"{name}: p95 of {rate}, s"] = served.p95_s


def over(ours: Sequence[float], theirs: Sequence[float]) -> float:
    """Return the median of the ratios within each repetition. Exits if the baseline never kept the bound."""
    if not all(theirs):
        raise SystemExit("static batches keep the bound at no rate: set a larger --bound")
    return statistics.median(mine / other for mine, other in zip(ours, theirs, strict=True))


def runs_as_json(name: str, result: Search) -> list[dict[str, Any]]:
    """Return every run as JSON. In the run without an offered rate all requests arrive at once."""
    return [
        {
            "server": name,
            "offered_per_s": offered,
            "answered_per_s": served.requests_per_s,
            "p95_s": served.p95_s,
            "median_s": statistics.median(served.latencies_s),
        }
        for offered, served in result.runs
    ]


if __name__ == "__main__":
    run("batching", QUESTION, measure, add_options)
