"""How fast does this engine answer on a CPU, with and without adapters, next to vLLM, transformers and PEFT?"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from harness import ROOT, Bar, Findings, Timing, run, say, time_interleaved  # isort: split

from peer_answers import Judge
from peer_process import PeerError, PeerProcess
from peer_world import PeerWorld, make_world
from random_models import SHAPES

QUESTION = __doc__ or ""
ALLOWED = {torch.float32: 1e-3, torch.bfloat16: 6e-2}
"""Tokens whose logits differ by less than this, relative to the largest logit, count as equal."""
MODEL = ROOT / ".loraretriever/demo-text/models/SmolLM2-135M-Instruct"
THREE_OVER_VLLM = {1: 2.0, 8: 3.0, 32: 5.0}
OURS, VLLM, HF = "engine", "vllm", "transformers"


@dataclass(frozen=True)
class Alternative:
    """One thing that is timed: a worker with a number of adapters a request."""

    peer: str
    worker: str
    adapters: int

    @property
    def name(self) -> str:
        """Its name in results."""
        return f"{self.peer}_{('base', 'one', '', 'three')[self.adapters]}"


@dataclass(frozen=True)
class Peers:
    """The workers that run, by name, and what they answer."""

    workers: dict[str, PeerProcess]
    world: PeerWorld
    options: argparse.Namespace

    def message(self, alternative: Alternative, concurrency: int) -> dict[str, Any]:
        """Return the message that asks for `concurrency` answers."""
        requests = self.world.requests(concurrency, alternative.adapters)
        return {"requests": requests, "new_tokens": self.options.new_tokens}


ALTERNATIVES = (
    Alternative(OURS, OURS, 0),
    Alternative(OURS, OURS, 1),
    Alternative(OURS, OURS, 3),
    Alternative(VLLM, "vllm-base", 0),
    Alternative(VLLM, "vllm-lora", 1),
    Alternative(HF, HF, 0),
    Alternative("peft", HF, 1),
)


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the benchmark's options."""
    parser.set_defaults(repetitions=3, device="cpu")
    parser.add_argument("--model", type=Path, default=MODEL, help="folder of the base model; make demo-text fetches it")
    parser.add_argument("--random-shape", choices=list(SHAPES), help="a random model of this shape, its tokenizer kept")
    parser.add_argument("--vllm-python", type=Path, default=ROOT / ".venv-peers/bin/python", help="from make peers")
    parser.add_argument("--vllm-eager", action="store_true", help="run vLLM uncompiled: it starts faster, is slower")
    parser.add_argument("--concurrency", type=int, nargs="+", default=[1, 8, 32], help="requests sent together")
    parser.add_argument("--adapters", type=int, default=8, help="adapters, of rank 16 on seven modules")
    parser.add_argument("--new-tokens", type=int, default=32, help="tokens of every answer")
    parser.add_argument("--quick", action="store_true", help="answers of 12 tokens, 2 repetitions")


def measure(options: argparse.Namespace) -> Findings:
    """Start every peer, compare the answers, and time the peers interleaved."""
    if options.device.type != "cpu" or options.dtype not in ALLOWED:
        raise SystemExit("bench_peers compares CPU engines in float32 or bfloat16: omit --device and --dtype float16")
    if not (options.model / "config.json").is_file():
        raise SystemExit(f"{options.model} is not a model folder: run make demo-text, or give --model FOLDER")
    if options.quick:
        options.new_tokens, options.repetitions = 12, min(options.repetitions, 2)
    options.threads = options.threads or len(os.sched_getaffinity(0))
    findings = Findings()
    with TemporaryDirectory() as folder, ExitStack() as stack:
        say("writing adapters" + (f" and a random {options.random_shape}" if options.random_shape else ""))
        most = max(options.concurrency)
        world = make_world(options.model, options.random_shape, Path(folder), options.adapters, most)
        workers = _started(world, Path(folder), options, findings, stack)
        peers = Peers(workers, world, options)
        agreed = _agreed(peers, findings)
        for concurrency in sorted(options.concurrency):
            _time(concurrency, agreed, peers, findings)
    return findings


def _started(
    world: PeerWorld, folder: Path, options: argparse.Namespace, findings: Findings, stack: ExitStack
) -> dict[str, PeerProcess]:
    """Return the workers that are ready; the others are recorded with their reason."""
    workers: dict[str, PeerProcess] = {}
    for name in dict.fromkeys(alternative.worker for alternative in ALTERNATIVES):
        with _recorded_if_skipped(name, findings):
            if name.startswith(VLLM) and not options.vllm_python.is_file():
                raise PeerError(f"{options.vllm_python} does not exist: run make peers")
            say(f"starting {name}")
            worker = PeerProcess(_command(name, world, options), folder / f"{name}.log", options.threads)
            stack.enter_context(worker)
            findings.settings[f"{name} versions"] = worker.wait_until_ready()
            workers[name] = worker
    return workers


def _command(worker: str, world: PeerWorld, options: argparse.Namespace) -> list[str]:
    python = str(options.vllm_python) if worker.startswith(VLLM) else sys.executable
    script = Path(__file__).with_name(f"peer_{worker.partition('-')[0]}.py")
    longest = max(len(prompt) for prompt in world.prompts) + options.new_tokens
    arguments = {
        "--model": world.model,
        "--adapters": world.adapters,
        "--dtype": str(options.dtype).removeprefix("torch."),
        "--threads": options.threads,
        "--requests": max(options.concurrency),
        "--sequence-tokens": -(-(longest + 1) // 64) * 64,
    }
    flags = ["--base-only"] if worker.endswith("-base") else []
    flags += ["--eager"] if options.vllm_eager else []
    return [python, str(script), *(str(word) for pair in arguments.items() for word in pair), *flags]


@contextmanager
def _recorded_if_skipped(name: str, findings: Findings) -> Iterator[None]:
    """Record a peer that fails as skipped, with its reason. Our own engine is never skipped."""
    try:
        yield
    except PeerError as error:
        if name.startswith(OURS):
            raise SystemExit(f"{name}: {error}") from error
        say(f"  skipped: {name}: {error}")
        findings.measurements[f"{name}: skipped"] = str(error)


def _agreed(peers: Peers, findings: Findings) -> list[Alternative]:
    """Return the alternatives whose answers equal the reference's up to rounding. This also warms them up."""
    options = peers.options
    if HF not in peers.workers:
        raise SystemExit("the answers cannot be compared without transformers and PEFT, so nothing was timed")
    judge = Judge(peers.workers[HF], options.new_tokens, ALLOWED[options.dtype])
    agreed = []
    for alternative in ALTERNATIVES:
        if alternative.worker not in peers.workers:
            continue
        message = peers.message(alternative, max(options.concurrency))
        with _recorded_if_skipped(alternative.name, findings):
            answers = peers.workers[alternative.worker].ask(message)["answers"]
            summary = judge.compare(answers, message["requests"])
            say(f"  equal: {alternative.name}: {summary}")
            findings.measurements[f"{alternative.name}: answers equal"] = summary
            agreed.append(alternative)
    return agreed


def _time(concurrency: int, alternatives: Sequence[Alternative], peers: Peers, findings: Findings) -> None:
    """Time all alternatives with `concurrency` requests sent together, and add measurements and ratios."""
    options = peers.options
    first_token_s: dict[str, list[float]] = {alternative.name: [] for alternative in alternatives}

    def answering(alternative: Alternative) -> Callable[[], None]:
        worker, message = peers.workers[alternative.worker], peers.message(alternative, concurrency)
        return lambda: first_token_s[alternative.name].extend(worker.ask(message)["first_token_s"])

    times = time_interleaved(
        {alternative.name: answering(alternative) for alternative in alternatives},
        repetitions=options.repetitions,
        warmup=0,
    )
    for name, timing in times.items():
        findings.measurements[f"{name} {concurrency}: time"] = timing
        findings.measurements[f"{name} {concurrency}: tokens/s"] = concurrency * options.new_tokens / timing.median
        findings.measurements[f"{name} {concurrency}: first token, s"] = statistics.median(first_token_s[name])
        say(f"  {name} {concurrency}: {concurrency * options.new_tokens / timing.median:.1f} tokens/s")
    _add_ratios(findings, times, concurrency)


def _add_ratios(findings: Findings, times: dict[str, Timing], concurrency: int) -> None:
    """Add every ratio of tokens/s whose two sides were timed."""
    alone = concurrency == 1
    three_bar = THREE_OVER_VLLM.get(concurrency)
    rows = (
        ("engine_base", "vllm_base", Bar.at_least_of(1.0)),
        ("engine_base", "transformers_base", Bar.at_least_of(round(1 / 1.05, 3)) if alone else None),
        ("engine_one", "vllm_one", None),
        ("engine_three", "vllm_one", Bar.at_least_of(three_bar) if three_bar else None),
        ("engine_one", "peft_one", None),
        ("engine_one", "engine_base", None),
        ("engine_three", "engine_base", None),
        ("vllm_one", "vllm_base", None),
        ("peft_one", "transformers_base", None),
    )
    for ours, theirs, bar in rows:
        if ours in times and theirs in times:
            findings.add_ratio(f"{ours}_over_{theirs}_{concurrency}", times[theirs].over(times[ours]), bar)


if __name__ == "__main__":
    run("peers", QUESTION, measure, add_options)
