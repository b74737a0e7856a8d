"""What does the retrieval service cost beside its embedder, and what do many callers gain?"""

from __future__ import annotations

import argparse
import io
import itertools
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from harness import ROOT, Bar, Findings, require_equal, run, say, time_interleaved
from loraretriever.v1 import adapter_pb2, retrieval_service_pb2
from loraretriever.v1.retrieval_service_pb2_grpc import RetrievalServiceStub
from PIL import Image
from random_jina import SHAPES, write_random_jina
from retrieval_load import percentile, run_load

from infra.contract.prompt import ImagePart, Prompt
from infra.runtime.channel import ChannelOptions, sync_channel
from infra.runtime.wire import prompt_to_proto
from retrieval_service.embedders.jina_v4 import JinaV4Embedder, JinaV4Options

QUESTION = __doc__ or ""
DEMO = ROOT / "examples" / "pocket_phone" / "checkpoints" / "jina_v4"
BASE_MODEL = "benchmark"
TOP_K = 3
SEARCH_BARS_S = {20: 0.001, 1000: 0.020}
SERVER_SEARCH = 100_000
START_S = 300.0


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add what can be varied; the defaults are those of the bars, at sizes that a CPU finishes in two minutes."""
    shapes, parts = ["demo", *SHAPES], ["overhead", "search", "callers"]
    parser.add_argument("--parts", choices=parts, nargs="*", default=parts, help="what to time")
    parser.add_argument("--shape", choices=shapes, default="wide", help="embedder of overhead and search")
    parser.add_argument("--callers-shape", choices=shapes, default="demo", help="embedder of the concurrent callers")
    parser.add_argument("--callers", type=int, default=16, help="concurrent callers")
    parser.add_argument("--calls", type=int, default=10, help="calls of one caller in one repetition")
    parser.add_argument("--adapters", type=int, nargs="+", default=[20, 1000], help="catalogue sizes of the search")
    parser.add_argument("--searches", type=int, default=100, help="searches in one repetition")
    parser.add_argument(
        "--qdrant-url", default="", help=f"Qdrant server; {SERVER_SEARCH} adapters are searched there too"
    )
    parser.add_argument(
        "--load-seconds", type=float, default=0, help="load with registrations and deletions; 60 is a run"
    )


class World:
    """An embedder's folder, and the same embedder in this process."""

    def __init__(self, name: str, work: Path, options: argparse.Namespace) -> None:
        self.name = name
        self.options = options
        say(f"making the {name} embedder")
        self.folder = DEMO if name == "demo" else write_random_jina(work / f"jina-{name}", SHAPES[name], DEMO)
        self.threads = options.threads or torch.get_num_threads()
        dtype = str(options.dtype).removeprefix("torch.")
        self.flags = ["--device", str(options.device), "--dtype", dtype, "--torch-threads", str(self.threads)]
        self.embedder = JinaV4Embedder(
            self.folder, JinaV4Options(device=str(options.device), dtype=dtype, threads=self.threads)
        )

    @contextmanager
    def serving(self, work: Path, *flags: str) -> Iterator[str]:
        """Run the service as a process; yield its address."""
        say(f"starting the service on the {self.name} embedder {' '.join(flags)}")
        ready = work / "ready.json"
        ready.unlink(missing_ok=True)
        command = [sys.executable, "-m", "retrieval_service", "--embedder-path", str(self.folder), *self.flags]
        command += ["--address", "127.0.0.1:0", "--ready-file", str(ready), "--log-level", "warning", *flags]
        with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL) as process:
            try:
                give_up = time.monotonic() + START_S
                while not ready.exists():
                    if process.poll() is not None or time.monotonic() > give_up:
                        raise SystemExit("the service did not start; its log is above")
                    time.sleep(0.05)
                yield json.loads(ready.read_text())["address"]
            finally:
                process.terminate()
                process.wait(30)


class Client:
    """Calls of the service, over one connection a caller."""

    def __init__(self, address: str) -> None:
        self.address = address
        self._channel = sync_channel(ChannelOptions(address))
        self._stub = RetrievalServiceStub(self._channel.__enter__())  # type: ignore[no-untyped-call]

    def close(self) -> None:
        """Close the connection."""
        self._channel.__exit__(None, None, None)

    def embed(self, prompts: Sequence[Prompt]) -> Any:
        """Return the vectors of prompts, [n, dim]."""
        request = retrieval_service_pb2.EmbedPromptsRequest(prompts=[prompt_to_proto(prompt) for prompt in prompts])
        answer = self._stub.EmbedPrompts(request)
        return np.stack([np.frombuffer(vector.float32, "<f4") for vector in answer.vectors])

    def retrieve(self, prompt: Prompt) -> list[tuple[str, float]]:
        """Return the adapters of a prompt with their similarities."""
        options = retrieval_service_pb2.RetrievalOptions(top_k=TOP_K, base_model=BASE_MODEL)
        request = retrieval_service_pb2.RetrieveAdaptersRequest(prompts=[prompt_to_proto(prompt)], options=options)
        matches = self._stub.RetrieveAdapters(request).selections[0].matches
        return [(match.adapter.adapter_id, match.similarity) for match in matches]

    def register(self, number: int, vector: Any) -> None:
        """Register an adapter by one vector."""
        card = adapter_pb2.Adapter(adapter_id=f"a{number}", base_model=BASE_MODEL, checkpoint_uri=f"adapters/a{number}")
        vectors = retrieval_service_pb2.ExampleVectors(
            vectors=[retrieval_service_pb2.Vector(float32=vector.astype("<f4").tobytes())]
        )
        self._stub.CreateAdapter(retrieval_service_pb2.CreateAdapterRequest(adapter=card, vectors=vectors))


class Prompts:
    """Prompts that were never asked before, of the lengths that instructions have."""

    _WORDS = (
        "open",
        "the",
        "shop",
        "and",
        "tap",
        "heart",
        "else",
        "bag",
        "play",
        "song",
        "set",
        "alarm",
        "find",
        "mail",
    )

    def __init__(self) -> None:
        self._draw = np.random.default_rng(0)
        self._numbers = itertools.count()

    def text(self) -> Prompt:
        """Return an instruction of 4 to 20 words."""
        return Prompt.of(self._words())

    def with_image(self) -> Prompt:
        """Return one with a screenshot of 360 x 800."""
        pixels = self._draw.integers(0, 256, (20, 9, 3), dtype=np.uint8)
        file = io.BytesIO()
        Image.fromarray(pixels).resize((360, 800)).save(file, "PNG")
        return Prompt.of(f"<image>{self._words()}", [ImagePart(file.getvalue(), "image/png")])

    def _words(self) -> str:
        words = self._draw.choice(self._WORDS, int(self._draw.integers(4, 21)))
        return f"{' '.join(words)} {next(self._numbers)}"


def measure(options: argparse.Namespace) -> Findings:
    """Compare the answers, then time overhead, search and callers."""
    findings, prompts = Findings(), Prompts()
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        if {"overhead", "search"} & set(options.parts) or options.qdrant_url:
            measure_alone(World(options.shape, work, options), work, prompts, findings)
        if "callers" in options.parts or options.load_seconds:
            world = World(options.callers_shape, work, options)
            with world.serving(work, "--qdrant-path", str(work / "q3"), "--cache-bytes", "0") as address:
                if "callers" in options.parts:
                    measure_callers(world, address, prompts, findings)
                if options.load_seconds:
                    measure_load(address, options, findings)
    return findings


def measure_alone(world: World, work: Path, prompts: Prompts, findings: Findings) -> None:
    """Time what one caller meets: the service beside its embedder, and the search."""
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
            measure_search(world, address, prompts, [SERVER_SEARCH], findings)


def measure_overhead(world: World, address: str, prompts: Prompts, findings: Findings) -> None:
    """Time a call of the service against a bare call of the embedder, each with the same new prompts."""
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


def measure_search(world: World, address: str, prompts: Prompts, sizes: Sequence[int], findings: Findings) -> None:
    """Time retrieval against embedding of one known prompt: what is left is search, weighting and encoding."""
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
        if size in SEARCH_BARS_S:
            name = f"search among {size}, of {SEARCH_BARS_S[size] * 1e3:g} ms"
            findings.add_ratio(name, seconds / SEARCH_BARS_S[size], Bar.at_most_of(1.0))
    client.close()


def measure_callers(world: World, address: str, prompts: Prompts, findings: Findings) -> None:
    """Time many callers at once against the same number of calls one after another."""
    callers, calls = world.options.callers, world.options.calls
    clients = [Client(address) for _ in range(callers)]
    _check(world, clients[0], _register(clients[0], world, range(20)), [prompts.text()])
    rounds = world.options.repetitions + 1
    asked = [[prompts.text() for _ in range(callers * calls)] for _ in range(rounds)]
    say(f"timing {callers} callers of {calls} calls each")
    with ThreadPoolExecutor(callers) as pool:

        def of_one(number: int, all_: Sequence[Prompt]) -> None:
            for prompt in all_[number::callers]:
                clients[number].retrieve(prompt)

        def at_once(all_: Sequence[Prompt]) -> None:
            list(pool.map(partial(of_one, all_=all_), range(callers)))

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
    """Let callers retrieve while adapters come and go; end the benchmark when an answer is wrong."""
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


def _register(client: Client, world: World, numbers: Sequence[int]) -> Any:
    vectors = np.random.default_rng(2).standard_normal((len(numbers), world.embedder.dim)).astype(np.float32)
    for number, vector in zip(numbers, vectors, strict=True):
        client.register(number, vector)
    return vectors


def _check(world: World, client: Client, registered: Any, prompts: Sequence[Prompt]) -> None:
    """End the benchmark unless the service embeds as the embedder does, and finds what a comparison with all finds."""
    ours, theirs = client.embed(prompts), world.embedder.embed(prompts)
    require_equal("vectors of the service", torch.from_numpy(ours), torch.from_numpy(theirs), world.options.dtype)
    unit = registered / np.linalg.norm(registered, axis=1, keepdims=True)
    for prompt, vector in zip(prompts, theirs, strict=True):
        similarities = unit @ vector
        expected = np.sort(similarities)[::-1][:TOP_K]
        found = client.retrieve(prompt)
        names = [similarities[int(adapter_id[1:])] for adapter_id, _ in found]
        for what, values in (("similarities", [value for _, value in found]), ("adapters", names)):
            require_equal(
                f"{what} of the {TOP_K} found",
                torch.tensor(values, dtype=torch.float32),
                torch.from_numpy(expected.copy()),
                world.options.dtype,
            )


def _each_round(rounds: Sequence[Sequence[Prompt]], call: Callable[[Prompt], object]) -> Callable[[], None]:
    return _whole_round(rounds, lambda prompts: [call(prompt) for prompt in prompts])


def _whole_round(rounds: Sequence[Sequence[Prompt]], call: Callable[[Sequence[Prompt]], object]) -> Callable[[], None]:
    """Return what calls with the prompts of the first round, then with those of the second, and so on."""
    coming = iter(rounds)
    return lambda: (call(next(coming)), None)[1]


if __name__ == "__main__":
    run("retrieval", QUESTION, measure, add_options)
