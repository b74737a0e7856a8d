"""What does a new fusion for every request cost, and does it stay the same?

Every request fuses three of the adapters known with weights of its own. Request 1,000 is held against request 10, and
the time until a fusion is in the bank against that of a whole answer.
"""

from __future__ import annotations

import argparse
import random
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

from engine_world import ENGINE_SHAPES, AdapterFiles, EngineWorld, Sizes, adapter_bytes, request_of
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
    """Add what can be varied; the defaults are those of the bars, at sizes that a CPU finishes in minutes."""
    methods = [method.value for method in FusionMethod]
    parser.add_argument("--shape", choices=list(ENGINE_SHAPES), default="small", help="sizes of the base model")
    parser.add_argument("--methods", choices=methods, nargs="+", default=methods, help="ways to fuse")
    parser.add_argument("--requests", type=int, default=1000, help="fusions before the late ones are timed")
    parser.add_argument("--timed", type=int, default=10, help="fusions in one repetition, early and late")
    parser.add_argument("--adapters", type=int, default=19, help="adapters known")
    parser.add_argument("--bank", type=int, default=16, help="adapters that the device's bank has room for")
    parser.add_argument("--rank", type=int, help="rank of every adapter (default: 4, on a GPU 16)")
    parser.add_argument("--prompt-tokens", type=int, help="tokens of each prompt (default: 16, on a GPU 256)")
    parser.add_argument("--answer-tokens", type=int, default=64, help="tokens of each answer")


class Kitchen(AdapterFiles):
    """Adapters on disk, and linear fusions of them made by hand: "hand" is the adapter last put there."""

    by_hand: Path

    def resolve(self, adapter_id: str, revision: str) -> AdapterSource:
        """Return where the adapter is."""
        if adapter_id == "hand":
            return AdapterSource(adapter_id, revision or "1", self.by_hand, "random")
        return super().resolve(adapter_id, revision)

    def fuse_by_hand(self, composition: Fusion, folder: Path) -> None:
        """Write A = sum_j w_j A_j and B = sum_j w_j B_j, from the files themselves."""
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
    """Check every method, then time leases of new fusions early and late, and whole answers."""
    on_gpu = options.device.type == "cuda"
    options.rank = options.rank or (16 if on_gpu else 4)
    options.prompt_tokens = options.prompt_tokens or (256 if on_gpu else 16)
    say(f"making {options.shape} in {options.dtype} on {options.device}, and {options.adapters} adapters")
    model = RandomBaseModel(ENGINE_SHAPES[options.shape], options.device, options.dtype)
    findings = Findings(settings={"shape_sizes": vars(model.shape)})
    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        files = Kitchen(model, Path(folder), known=options.adapters, files=options.adapters, rank=options.rank)
        sizes = Sizes(
            bank_ranks=options.bank * options.rank,
            slots=1,
            sequence_tokens=options.prompt_tokens + options.answer_tokens,
            host_bytes=2 * options.adapters * adapter_bytes(model, options.rank),
        )
        worlds = [stack.enter_context(EngineWorld(model, files, sizes).running()) for _ in range(2)]
        check(options, worlds[0], files, Path(folder))
        measure_early_and_late(options, worlds[0], worlds[1], findings)
        for method in options.methods:
            measure_share(options, FusionMethod(method), worlds[0], findings)
    return findings


def check(options: argparse.Namespace, world: EngineWorld, files: Kitchen, folder: Path) -> None:
    """Compare fusions with what they must equal: a mixture, or an adapter fused by hand."""
    (example,) = new_fusions(options, FusionMethod.LINEAR, seed=-1, count=1)
    prompt = world.model.random_prompt(options.prompt_tokens, seed=0)
    files.fuse_by_hand(example, folder / "hand")
    hand = world.logits(Mixture((WeightedAdapter("hand", 1.0),)), prompt)
    require_equal("linear fusion, fused by hand", world.logits(example, prompt), hand, options.dtype)
    mixture = world.logits(Mixture(example.adapters), prompt)
    whole = MEMBERS * options.rank
    exact = {
        "concat": Fusion(example.adapters, FusionMethod.CONCAT),
        "svd of full rank": Fusion(example.adapters, FusionMethod.SVD, rank=whole),
        "dare that drops nothing": Fusion(example.adapters, FusionMethod.DARE, rank=whole, density=1.0),
    }
    for name, fusion in exact.items():
        require_equal(f"{name}, mixture", world.logits(fusion, prompt), mixture, options.dtype)


def measure_early_and_late(
    options: argparse.Namespace, young: EngineWorld, old: EngineWorld, findings: Findings
) -> None:
    """Time new fusions in an engine that fused few before, and in one that fused `--requests`.

    Early ones are requests 10 to about 100, late ones as many after request 1,000: one alone is too short to time. The
    bank is full in both: what the first fusions save in an empty one, since nothing has to leave, is no measure.
    """
    method = FusionMethod(options.methods[0])
    say(f"{options.requests} {method} fusions")
    for world, before in ((young, EARLY), (old, options.requests)):
        world.fill([f"a{number}" for number in range(options.adapters)])
        for fusion in new_fusions(options, method, seed=before, count=before):
            world.lease(fusion).release()
    prompt = young.model.random_prompt(options.prompt_tokens, seed=0)
    (same,) = new_fusions(options, method, seed=-2, count=1)
    require_equal("a fusion early and late", old.logits(same, prompt), young.logits(same, prompt), options.dtype)

    def leases(world: EngineWorld, seeds: Iterator[int]) -> Callable[[], object]:
        def once() -> None:
            for fusion in new_fusions(options, method, next(seeds), options.timed):
                world.lease(fusion).release()

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


def measure_share(options: argparse.Namespace, method: FusionMethod, world: EngineWorld, findings: Findings) -> None:
    """Time new fusions until they are in the bank, within answers that begin with one."""
    say(f"answers of {options.answer_tokens} tokens, each with a {method} fusion of its own")
    fusing: list[float] = []
    whole: list[float] = []
    prompt = world.model.random_prompt(options.prompt_tokens, seed=0)
    for fusion in new_fusions(options, method, seed=50_000, count=options.repetitions + 1):
        started = time.perf_counter()
        lease = world.lease(fusion)
        fusing.append(time.perf_counter() - started)
        started = time.perf_counter()
        world.answer([request_of(prompt, fusion, options.answer_tokens)], 1)
        whole.append(fusing[-1] + time.perf_counter() - started)
        lease.release()
    shares = sorted(part / total for part, total in zip(fusing[1:], whole[1:], strict=True))
    bar = Bar.at_most_of(0.25) if method in BARRED else None
    findings.add_ratio(f"{method}_fusion_share_of_{options.answer_tokens}_token_answer", shares[len(shares) // 2], bar)
    findings.measurements[f"{method}_fusion_ms"] = 1e3 * sorted(fusing[1:])[len(shares) // 2]
    findings.measurements[f"{method}_answer_ms"] = 1e3 * sorted(whole[1:])[len(shares) // 2]


def new_fusions(options: argparse.Namespace, method: FusionMethod, seed: int, count: int) -> list[Fusion]:
    """Return fusions of three adapters each, no two alike."""
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
