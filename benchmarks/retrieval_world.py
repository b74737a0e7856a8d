"""The retrieval service as a process, a client of it, and prompts for benchmarks. Import `harness` first."""

from __future__ import annotations

import argparse
import io
import itertools
import json
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from harness import ROOT, say
from loraretriever.v1 import adapter_pb2, retrieval_service_pb2
from loraretriever.v1.retrieval_service_pb2_grpc import RetrievalServiceStub
from PIL import Image
from random_jina import SHAPES, write_random_jina

from infra.contract.prompt import ImagePart, Prompt
from infra.runtime.channel import ChannelOptions, sync_channel
from infra.runtime.wire import prompt_to_proto
from retrieval_service.embedders.jina_v4 import JinaV4Embedder, JinaV4Options

TOP_K = 3
_DEMO = ROOT / "examples" / "pocket_phone" / "checkpoints" / "jina_v4"
_BASE_MODEL = "benchmark"
_START_TIMEOUT_S = 300.0  # the published shape takes minutes to load on a CPU


class RetrievalWorld:
    """An embedder's folder, which the service can serve, and the same embedder in this process."""

    def __init__(self, name: str, work: Path, options: argparse.Namespace) -> None:
        self.name = name
        self.options = options
        say(f"making the {name} embedder")
        self.folder = _DEMO if name == "demo" else write_random_jina(work / f"jina-{name}", SHAPES[name], _DEMO)
        self.threads = options.threads or torch.get_num_threads()
        dtype = str(options.dtype).removeprefix("torch.")
        self.flags = ["--device", str(options.device), "--dtype", dtype, "--torch-threads", str(self.threads)]
        self.embedder = JinaV4Embedder(
            self.folder, JinaV4Options(device=str(options.device), dtype=dtype, threads=self.threads)
        )

    @contextmanager
    def serving(self, work: Path, *flags: str) -> Iterator[str]:
        """Run the service as a process and yield its address."""
        say(f"starting the service on the {self.name} embedder {' '.join(flags)}")
        ready = work / "ready.json"
        ready.unlink(missing_ok=True)
        command = [sys.executable, "-m", "retrieval_service", "--embedder-path", str(self.folder), *self.flags]
        command += ["--address", "127.0.0.1:0", "--ready-file", str(ready), "--log-level", "warning", *flags]
        with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL) as process:
            try:
                give_up = time.monotonic() + _START_TIMEOUT_S
                while not ready.exists():
                    if process.poll() is not None or time.monotonic() > give_up:
                        raise SystemExit("the service did not start; its log is above")
                    time.sleep(0.05)
                yield json.loads(ready.read_text())["address"]
            finally:
                process.terminate()
                process.wait(30)


class Client:
    """Calls the service over a connection of its own."""

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
        response = self._stub.EmbedPrompts(request)
        return np.stack([np.frombuffer(vector.float32, "<f4") for vector in response.vectors])

    def retrieve(self, prompt: Prompt) -> list[tuple[str, float]]:
        """Return the adapters of a prompt with their similarities."""
        options = retrieval_service_pb2.RetrievalOptions(top_k=TOP_K, base_model=_BASE_MODEL)
        request = retrieval_service_pb2.RetrieveAdaptersRequest(prompts=[prompt_to_proto(prompt)], options=options)
        matches = self._stub.RetrieveAdapters(request).selections[0].matches
        return [(match.adapter.adapter_id, match.similarity) for match in matches]

    def register(self, number: int, vector: Any) -> None:
        """Register an adapter by one vector."""
        adapter = adapter_pb2.Adapter(
            adapter_id=f"a{number}", base_model=_BASE_MODEL, checkpoint_uri=f"adapters/a{number}"
        )
        vectors = retrieval_service_pb2.ExampleVectors(
            vectors=[retrieval_service_pb2.Vector(float32=vector.astype("<f4").tobytes())]
        )
        self._stub.CreateAdapter(retrieval_service_pb2.CreateAdapterRequest(adapter=adapter, vectors=vectors))


class PromptSource:
    """Prompts of the length of instructions, each of them new, so that no cache can help."""

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
        """Return an instruction with a screenshot of 360 x 800."""
        pixels = self._draw.integers(0, 256, (20, 9, 3), dtype=np.uint8)
        file = io.BytesIO()
        Image.fromarray(pixels).resize((360, 800)).save(file, "PNG")
        return Prompt.of(f"<image>{self._words()}", [ImagePart(file.getvalue(), "image/png")])

    def _words(self) -> str:
        words = self._draw.choice(self._WORDS, int(self._draw.integers(4, 21)))
        return f"{' '.join(words)} {next(self._numbers)}"
