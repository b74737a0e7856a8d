"""What does a new fusion for every request cost, and does it stay the same?

Every request fuses three of the known adapters with weights of its own. Compares request 1,000 with request 10, and the
time until a fusion is in the bank with the time of a whole answer.
"""

from __future__ import annotations

import argparse
import random
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

from engine_setup import ENGINE_SHAPES, AdapterFiles, EngineSetup, Sizes, adapter_bytes, request_of
from harness import Bar, Findings, require_equal, run, say, time_interleaved
from random_adapters import write_peft_folder
from random_models import RandomBaseModel

from generation_service.adapters.source import AdapterSource
from generation_service.lora.weights import AdapterWeights, LoraPair
from infra.contract.composition import Fusion, FusionMethod, Mixture, WeightedAdapter

QUESTION = __doc__ or ""
BARRED = (FusionMethod.LINEAR, FusionMethod.CONCAT, FusionMethod.SVD)
MEMBERS = 3
EARLY = 10


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the benchmark's options. The bars apply to the defaults, which a CPU finishes in minutes."""
    # `auto` is one of the others: it would find their results in the bank.
    methods = [method.value for method in FusionMethod if method is not FusionMethod.AUTO]
    parser.add_argument("--shape", choices=list(ENGINE_SHAPES), default="small", help="sizes of the base model")
    parser.add_argument("--methods", choices=methods, nargs="+", default=methods, help="fusion methods")
    parser.add_argument("--requests", type=int, default=1000, help="fusions before the late ones are timed")
    parser.add_argument("--timed", type=int, default=10, help="fusions in one repetition, early and late")
    parser.add_argument("--adapters", type=int, default=19, help="known adapters")
    parser.add_argument("--bank", type=int, default=16, help="adapters that fit into the bank")
    parser.add_argument("--rank", type=int, help="rank of every adapter (default: 4, on a GPU 16)")
    parser.add_argument("--prompt-tokens", type=int, help="tokens of each prompt (default: 16, on a GPU 256)")
    parser.add_argument("--answer-tokens", type=int, default=64, help="tokens of each answer")


class FusedAdapterFiles(AdapterFiles):
    """Adapters on disk; adapter "hand" is the linear fusion that `fuse_by_hand` wrote last."""

    by_hand: Path

    def resolve(self, adapter_id: str, revision: str) -> AdapterSource:
        """Return the adapter's source."""
        if adapter_id == "hand":
            return AdapterSource(adapter_id, revision or "1", self.by_hand, "random")
        return super().resolve(adapter_id, revision)

    def fuse_by_hand(self, composition: Fusion, folder: Path) -> None:
        """Write A = sum_j w_j A_j and B = sum_j w_j B_j, computed from the files."""
        members = [(self.read(self.resolve(share.adapter_id, "")), share.weight) for share in composition.adapters]
        summed = {
            path: LoraPair(
                sum(weight * weights.modules[path].a.double() for weights, weight in members),  # type: ignore[arg-type]
                sum(weight * weights.modules[path].b.double() for weights, weight in members),  # type: ignore[arg-type]
            )
            for path in members[0][0].modules
        }
        self.by_hand = write_peft_folder(folder, AdapterWeights.of(summed))


def measure(options: argparse.Namespace) -> Findings:
    """Check the exact methods, then time new fusions early and late, and their share of whole answers."""
    on_gpu = options.device.type == "cuda"
    options.rank = options.rank or (16 if on_gpu else 4)
    options.prompt_tokens = options.prompt_tokens or (256 if on_gpu else 16)
    say(f"making {options.shape} in {options.dtype} on {options.device}, and {options.adapters} adapters")
    model = RandomBaseModel(ENGINE_SHAPES[options.shape], options.device, options.dtype)
    findings = Findings(settings={"shape_sizes": vars(model.shape)})
    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        files = FusedAdapterFiles(
            model, Path(folder), known=options.adapters, files=options.adapters, rank=options.rank
        )
        sizes = Sizes(
            bank_ranks=options.bank * options.rank,
            slots=1,
            sequence_tokens=options.prompt_tokens + options.answer_tokens,
            host_bytes=2 * options.adapters * adapter_bytes(model, options.rank),
        )
        setups = [stack.enter_context(EngineSetup(model, files, sizes).running()) for _ in range(2)]
        check(options, setups[0], files, Path(folder))
        measure_early_and_late(options, setups[0], setups[1], findings)
        for method in options.methods:
            measure_share(options, FusionMethod(method), setups[0], findings)
    return findings


def check(options: argparse.Namespace, setup: EngineSetup, files: FusedAdapterFiles, folder: Path) -> None:
    """Compare fusions with their exact equivalents: a mixture, or an adapter fused by hand."""
    (example,) = new_fusions(options, FusionMethod.LINEAR, seed=-1, count=1)
    prompt = setup.model.random_prompt(options.prompt_tokens, seed=0)
    files.fuse_by_hand(example, folder / "hand")
    hand = setup.logits(Mixture((WeightedAdapter("hand", 1.0),)), prompt)
    require_equal("linear fusion, fused by hand", setup.logits(example, prompt), hand, options.dtype)
    mixture = setup.logits(Mixture(example.adapters), prompt)
    whole = MEMBERS * options.rank
    exact = {
        "concat": Fusion(example.adapters, FusionMethod.CONCAT),
        "svd of full rank": Fusion(example.adapters, FusionMethod.SVD, rank=whole),
        "dare that drops nothing": Fusion(example.adapters, FusionMethod.DARE, rank=whole, density=1.0),
    }
    for name, fusion in exact.items():
        require_equal(f"{name}, mixture", setup.logits(fusion, prompt), mixture, options.dtype)


def measure_early_and_late(
    options: argparse.Namespace, young: EngineSetup, old: EngineSetup, findings: Findings
) -> None:
    """Time new fusions in an engine that fused few before, and in one that fused `--requests`.

    Early ones are requests 10 to about 100, late ones as many after request 1,000, since a single one is too short to
    time. The bank is full in both: the first fusions in an empty bank evict nothing and are not comparable.
    """
    method = FusionMethod(options.methods[0])
    say(f"{options.requests} {method} fusions")
    for setup, before in ((young, EARLY), (old, options.requests)):
        setup.fill([f"a{number}" for number in range(options.adapters)])
        for fusion in new_fusions(options, method, seed=before, count=before):
            setup.lease(fusion).release()
    prompt = young.model.random_prompt(options.prompt_tokens, seed=0)
    (same,) = new_fusions(options, method, seed=-2, count=1)
    require_equal("a fusion early and late", old.logits(same, prompt), young.logits(same, prompt), options.dtype)

    def leases(setup: EngineSetup, seeds: Iterator[int]) -> Callable[[], object]:
        def once() -> None:
            for fusion in new_fusions(options, method, next(seeds), options.timed):
                setup.lease(fusion).release()

        return once

    alternatives = {
        "early": leases(young, iter(range(10_000, 20_000))),
        "late": leases(old, iter(range(20_000, 30_000))),
    }
    times = time_interleaved(alternatives, repetitions=2 * options.repetitions, device=options.device)
    findings.add_ratio(
        f"fusion_request_{options.requests}_over_{EARLY}", times["late"].over(times["early"]), Bar.at_most_of(1.05)
    )
    findings.measurements |= {f"{method}_{options.timed}_fusions_{name}": timing for name, timing in times.items()}


def measure_share(options: argparse.Namespace, method: FusionMethod, setup: EngineSetup, findings: Findings) -> None:
    """Time new fusions until they are in the bank, as a share of the answers that start with them."""
    say(f"answers of {options.answer_tokens} tokens, each with a {method} fusion of its own")
    fusing: list[float] = []
    whole: list[float] = []
    prompt = setup.model.random_prompt(options.prompt_tokens, seed=0)
    for fusion in new_fusions(options, method, seed=50_000, count=options.repetitions + 1):
        started = time.perf_counter()
        lease = setup.lease(fusion)
        fusing.append(time.perf_counter() - started)
        started = time.perf_counter()
        setup.answer([request_of(prompt, fusion, options.answer_tokens)], 1)
        whole.append(fusing[-1] + time.perf_counter() - started)
        lease.release()
    shares = sorted(part / total for part, total in zip(fusing[1:], whole[1:], strict=True))
    bar = Bar.at_most_of(0.25) if method in BARRED else None
    findings.add_ratio(f"{method}_fusion_share_of_{options.answer_tokens}_token_answer", shares[len(shares) // 2], bar)
    findings.measurements[f"{method}_fusion_ms"] = 1e3 * sorted(fusing[1:])[len(shares) // 2]
    findings.measurements[f"{method}_answer_ms"] = 1e3 * sorted(whole[1:])[len(shares) // 2]


def new_fusions(options: argparse.Namespace, method: FusionMethod, seed: int, count: int) -> list[Fusion]:
    """Return fusions of three adapters each, with different weights."""
    draw = random.Random(f"{method} {seed}")
    return [
        Fusion(
            tuple(
                WeightedAdapter(f"a{number}", draw.random()) for number in draw.sample(range(options.adapters), MEMBERS)
            ),
            method,
        )
        for _ in range(count)
    ]


if __name__ == "__main__":
    run("fusion", QUESTION, measure, add_options)
