"""`inspect` and the server agree about every folder: what one refuses, the other refuses in the same words."""

from __future__ import annotations

import asyncio
import io
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from PIL import Image

from generation_service.app import GenerationStack, generation_stack
from generation_service.commands.inspection import inspect_folder
from generation_service.commands.server_options import ServerOptions
from infra.contract.composition import Base, Mixture, WeightedAdapter
from infra.contract.errors import LoraRetrieverError
from infra.contract.generation import Decoding
from infra.contract.prompt import ImagePart, Prompt
from tests.support.checkpoints.causal import write_causal
from tests.support.checkpoints.internvl2 import write_internvl2
from tests.support.checkpoints.qwen2_vl import TinyShape, write_qwen2_vl
from tests.support.harness import odd_folders as odd
from tests.support.harness.generation_stack import settings_for, tiny_adapter

WRITERS: dict[str, Callable[[Path], Path]] = {
    "llama": lambda folder: write_causal(folder, "llama"),
    "qwen2_vl": write_qwen2_vl,
    "internvl_chat": write_internvl2,
}
FILE_CHANGES = ("missing", "halved", "not UTF-8")
SERVED_ADAPTERS = ("good", "base model in a hub cache", "base model on Windows", "no base model")
TEXT, ANSWER = Prompt.of("Where is it?"), Decoding(max_new_tokens=2)


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return {name: write(tmp_path_factory.mktemp(name) / "model") for name, write in WRITERS.items()}


def picture() -> ImagePart:
    encoded = io.BytesIO()
    Image.new("RGB", (90, 64), (9, 200, 30)).save(encoded, "PNG")
    return ImagePart(encoded.getvalue())


def all_spoils() -> Iterator[tuple[str, odd.Spoil]]:
    """Yield every change; those of files that a family does not have leave its folder whole."""
    for name in odd.FILES:
        for what in FILE_CHANGES:
            change = odd.FILE_CHANGES.get(what) or (odd.JSON_CHANGES[what] if name in odd.JSON_FILES else None)
            if change is not None:
                yield f"{name} {what}", odd.of_file(name, change)
    for group in (odd.OF_WEIGHTS, odd.OF_TEMPLATES, odd.OF_TOKENIZERS, odd.OF_CONFIGS, odd.OF_IMAGES):
        yield from group.items()


def cases() -> Iterator[object]:
    """Yield each change for one family in turn, so that all are tried and every family gets a third of each kind."""
    families = list(WRITERS)
    for number, (name, spoil) in enumerate(all_spoils()):
        family = families[number % len(families)]
        if name in odd.OF_IMAGES:
            family = "qwen2_vl"
        elif name in odd.OF_TOKENIZERS:
            family = "llama"  # Its tokenizer is one that transformers can change.
        yield pytest.param(family, spoil, id=f"{family}: {name}")


async def ask(stack: GenerationStack, composition: Base | Mixture) -> None:
    prompts = [TEXT, Prompt.of("What is this?", [picture()])] if stack.model.description.by_image else [TEXT]
    for prompt in prompts:
        await stack.service.generate(prompt, composition, ANSWER, 60)


def refusal_of_server(folder: Path) -> str:
    """Start a server of `folder` and ask it with and without an image; return its refusal, empty if it answers."""
    try:
        with generation_stack(settings_for(folder)) as stack:
            asyncio.run(ask(stack, Base()))
    except LoraRetrieverError as error:
        return error.message
    return ""


@pytest.mark.parametrize(("family", "spoil"), list(cases()))
def test_base_model_verdicts_agree(tmp_path: Path, good: dict[str, Path], family: str, spoil: odd.Spoil) -> None:
    folder = tmp_path / "model"
    shutil.copytree(good[family], folder)
    spoil(folder)
    report = inspect_folder(folder)
    refusal = refusal_of_server(folder)
    assert report.problems == ([refusal] if refusal else [])
    assert report.supported is not bool(refusal)
    assert refusal.count("\n") == 0


@pytest.mark.parametrize("family", WRITERS)
def test_hub_snapshot_of_links_is_served(tmp_path: Path, good: dict[str, Path], family: str) -> None:
    folder = tmp_path / "tiny"
    shutil.copytree(good[family], folder)
    snapshot = odd.as_hub_snapshot(folder)
    assert inspect_folder(snapshot).problems == []
    assert refusal_of_server(snapshot) == ""


def adapter_spoils() -> dict[str, odd.Spoil]:
    weights, config = "adapter_model.safetensors", "adapter_config.json"
    changed = odd.configured
    return {
        "good": lambda _: None,
        "weights halved": odd.of_file(weights, odd.FILE_CHANGES["halved"]),
        "weights empty": odd.of_file(weights, odd.FILE_CHANGES["empty"]),
        "weights missing": odd.of_file(weights, odd.FILE_CHANGES["missing"]),
        "config halved": odd.of_file(config, odd.FILE_CHANGES["halved"]),
        "config a list": odd.of_file(config, odd.JSON_CHANGES["a list"]),
        "config not UTF-8": odd.of_file(config, odd.JSON_CHANGES["not UTF-8"]),
        "another base model": changed(config, base_model_name_or_path="Qwen/Qwen2-VL-72B"),
        "a quantised base model": changed(config, base_model_name_or_path="unsloth/Qwen2-VL-tiny-bnb-4bit"),
        "base model in a hub cache": changed(
            config, base_model_name_or_path="/home/x/hub/models--Qwen--Qwen2-VL-tiny/snapshots/0a1b"
        ),
        "base model on Windows": changed(config, base_model_name_or_path="D:\\models\\Qwen2-VL-tiny"),
        "no base model": changed(config, base_model_name_or_path=None),
        "DoRA": changed(config, use_dora=True),
        "rank of another file": changed(config, r=2),
        "rank as text": changed(config, r="4"),
        "rank beyond the bank": changed(config, r=300),
        "modules to save": changed(config, modules_to_save=["lm_head"]),
        "a dictionary of patterns as a list": changed(config, rank_pattern=["q_proj"]),
    }


@pytest.fixture(scope="module")
def adapter_server(good: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Iterator[GenerationStack]:
    root = tmp_path_factory.getbasetemp()
    with generation_stack(settings_for(good["qwen2_vl"], [root])) as stack:
        yield stack


@pytest.mark.parametrize("name", list(adapter_spoils()))
def test_adapter_verdicts_agree(
    tmp_path_factory: pytest.TempPathFactory, good: dict[str, Path], adapter_server: GenerationStack, name: str
) -> None:
    folder = tiny_adapter(TinyShape(), 1).write(tmp_path_factory.mktemp("mail"))
    adapter_spoils()[name](folder)
    report = inspect_folder(folder, good["qwen2_vl"], ServerOptions(bank_ranks=256))
    refusal = ""
    try:
        asyncio.run(ask(adapter_server, Mixture((WeightedAdapter(folder.name, 1.0),))))
    except LoraRetrieverError as error:
        refusal = error.message
    assert report.problems == ([refusal] if refusal else [])
    assert (name in SERVED_ADAPTERS) is not bool(refusal)
