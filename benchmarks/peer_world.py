"""What all peers answer: a base model, adapters as PEFT folders, and prompts as token ids. Import `harness` first."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from random_adapters import random_adapter, write_peft_folder
from random_models import SHAPES, RandomBaseModel
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

SHARES = (0.5, 0.3, 0.2)
RANK = 16
_TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja", "special_tokens_map.json")
_TOPICS = ("rivers", "tides", "glass", "bread", "clocks", "maps", "salt", "bridges", "kites", "lamps", "seeds", "ships")
_QUESTIONS = (
    "What should a child know about {}?",
    "Name three surprising facts about {} and their history.",
    "Write the first line of a story about {}.",
)


@dataclass(frozen=True)
class PeerWorld:
    """Folders and prompts. Request n has `prompts[n]`."""

    model: Path
    adapters: Path
    names: tuple[str, ...]
    prompts: tuple[tuple[int, ...], ...]

    def requests(self, count: int, adapters_each: int) -> list[dict[str, Any]]:
        """Return the first `count` requests, each with as many adapters: n, n + 1, ... modulo their number."""
        shares = SHARES if adapters_each == len(SHARES) else (1.0,) * adapters_each
        return [
            {
                "tokens": list(prompt),
                "adapters": {self.names[(n + k) % len(self.names)]: share for k, share in enumerate(shares)},
            }
            for n, prompt in enumerate(self.prompts[:count])
        ]


def make_world(source: Path, shape: str | None, folder: Path, adapters: int, requests: int) -> PeerWorld:
    """Write the world below `folder`. `source` gives the tokenizer, and the weights unless `shape` is given."""
    model = folder / "base-model"
    _write_random_model(source, shape, model) if shape else _link_model(source, model)
    names = tuple(f"a{number}" for number in range(adapters))
    targets = _targets(model)
    for number, name in enumerate(names):
        write_peft_folder(folder / "adapters" / name, random_adapter(targets, RANK, number), model.name)
    return PeerWorld(model, folder / "adapters", names, _prompts(model, requests))


def _link_model(source: Path, folder: Path) -> None:
    """Link the files of `source`, with configs in which no likely token ends an answer."""
    folder.mkdir(parents=True)
    for file in source.iterdir():
        if file.name not in ("config.json", "generation_config.json"):
            (folder / file.name).symlink_to(file.resolve())
    _write_endless(folder, json.loads((source / "config.json").read_text(encoding="utf-8")))


def _write_random_model(source: Path, shape: str, folder: Path) -> None:
    model: Any = RandomBaseModel(SHAPES[shape], "cpu", torch.float32).module
    model.save_pretrained(folder)
    for name in _TOKENIZER_FILES:
        if (source / name).is_file():
            shutil.copy(source / name, folder)
    _write_endless(folder, json.loads((folder / "config.json").read_text(encoding="utf-8")))


def _write_endless(folder: Path, config: dict[str, Any]) -> None:
    """Write configs whose end token is the last of the vocabulary, so that every answer has the same length.

    The benchmark checks the lengths; ending at a token that text contains would time different work on each side.
    """
    last = config["vocab_size"] - 1
    (folder / "config.json").write_text(json.dumps(config | {"eos_token_id": last}), encoding="utf-8")
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": last}), encoding="utf-8")


def _targets(model: Path) -> dict[str, tuple[int, int]]:
    """Return module path -> (in, out) of the seven projections of every layer."""
    with torch.device("meta"):
        module: Any = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(model))
    return {
        name: (layer.in_features, layer.out_features)
        for name, layer in module.named_modules()
        if isinstance(layer, nn.Linear) and name.endswith("_proj")
    }


def _prompts(model: Path, count: int) -> tuple[tuple[int, ...], ...]:
    tokenizer: Any = AutoTokenizer.from_pretrained(model)
    texts = [question.format(topic) for question in _QUESTIONS for topic in _TOPICS]
    return tuple(_encoded(tokenizer, texts[n % len(texts)]) for n in range(count))


def _encoded(tokenizer: Any, text: str) -> tuple[int, ...]:
    messages = [{"role": "user", "content": text}]
    rendered = tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
    ids: Sequence[int] = tokenizer(rendered, add_special_tokens=False)["input_ids"]
    return tuple(ids)
