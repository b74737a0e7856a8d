"""The family in docs/adding_a_base_model.md: extracted, inspected, and served against transformers."""

from __future__ import annotations

import asyncio
import json
import re
import sys
from collections.abc import Mapping
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType
from typing import Any

import peft
import pytest
import torch
from transformers import GenerationConfig, GraniteConfig, GraniteForCausalLM

from generation_service.app import generation_stack
from generation_service.models import registry
from infra.contract.composition import Base, Composition, Mixture, WeightedAdapter
from infra.contract.errors import InvalidArgumentError
from infra.contract.generation import Decoding
from infra.contract.prompt import Prompt
from orchestrator.cli.main import run
from tests.support.checkpoints.peft_adapters import TinyAdapter
from tests.support.checkpoints.qwen2_vl import write_folder
from tests.support.harness.generation_stack import settings_for
from tests.support.harness.images import png_part

PAGE = Path(__file__).parents[2] / "docs" / "adding_a_base_model.md"
HIDDEN, WIDE, LAYERS, TOKENS = 64, 96, 2, 16


@pytest.fixture(scope="module")
def documented(tmp_path_factory: pytest.TempPathFactory) -> ModuleType:
    """Import the page's code as a module."""
    (code,) = re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), flags=re.DOTALL)
    file = tmp_path_factory.mktemp("models") / "granite.py"
    file.write_text(code, encoding="utf-8")
    spec = spec_from_file_location("documented_granite", file)
    assert spec is not None
    assert spec.loader is not None
    module = module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def _registered(documented: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry, "FAMILIES", (*registry.FAMILIES, documented.GRANITE))


def config(special: Mapping[str, int], vocab: int) -> dict[str, Any]:
    return {
        "model_type": "granite",
        "architectures": ["GraniteForCausalLM"],
        "eos_token_id": special["<|im_end|>"],
        "hidden_size": HIDDEN,
        "intermediate_size": WIDE,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 1024,
        "rope_theta": 10000.0,
        "tie_word_embeddings": False,
        "embedding_multiplier": 3.0,
        "logits_scaling": 0.25,
        "attention_multiplier": 0.2,
        "residual_multiplier": 0.7,
        "torch_dtype": "float32",
        "vocab_size": vocab,
    }


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("checkpoints") / "tiny-granite"

    def weights(vocab: int) -> dict[str, torch.Tensor]:
        torch.manual_seed(3)
        model = GraniteForCausalLM(GraniteConfig(**config({"<|im_end|>": 2}, vocab), initializer_range=0.3))
        return {name: tensor.contiguous() for name, tensor in model.state_dict().items()}

    return write_folder(place, config, weights, shards=2, dtype=torch.float32)


def adapter(folder: Path) -> Path:
    modules = {"self_attn.q_proj": (HIDDEN, HIDDEN), "self_attn.k_proj": (HIDDEN, 32), "mlp.up_proj": (HIDDEN, WIDE)}
    shapes = {f"model.layers.{layer}.{name}": size for layer in range(LAYERS) for name, size in modules.items()}
    targets = [name.rpartition(".")[2] for name in modules]
    tiny = TinyAdapter.random(shapes, rank=4, alpha=8, target_modules=targets, base_model_name_or_path="tiny-granite")
    return tiny.write(folder)


def expected(folder: Path, tokens: list[int], ends: frozenset[int], deltas: Path | None = None) -> list[int]:
    """Return the greedy answer of transformers, with PEFT's adapter if one is given."""
    model: Any = GraniteForCausalLM.from_pretrained(folder)
    model.generation_config = GenerationConfig()
    if deltas is not None:
        model = peft.PeftModel.from_pretrained(model, deltas)
    ids = torch.tensor([tokens])
    output = model.generate(
        input_ids=ids,
        attention_mask=torch.ones_like(ids),
        do_sample=False,
        max_new_tokens=TOKENS,
        eos_token_id=sorted(ends),
        pad_token_id=0,
    )
    answer: list[int] = output[0, len(tokens) :].tolist()
    return answer


@pytest.mark.usefixtures("_registered")
def test_documented_family_matches_transformers_answers(folder: Path, tmp_path: Path) -> None:
    adapter(tmp_path / "adapters" / "mine")
    mixture = Mixture((WeightedAdapter("mine", 1.0),))
    questions = ["What is on the screen?", "Scroll down, then go back.", "Open the calendar and wait."]
    with generation_stack(settings_for(folder, [tmp_path / "adapters"], model_name="tiny-granite")) as stack:

        async def together(composition: Composition) -> list[str]:
            decoding = Decoding(max_new_tokens=TOKENS)
            asked = [stack.service.generate(Prompt.of(text), composition, decoding) for text in questions]
            return [answer.text for answer in await asyncio.gather(*asked)]

        plain, adapted = asyncio.run(together(Base())), asyncio.run(together(mixture))
        ends = stack.model.description.eos_tokens
        tokens = [stack.model.encode(Prompt.of(text), []).tokens.tolist() for text in questions]
        mine = tmp_path / "adapters" / "mine"
        assert plain == [stack.model.decode(expected(folder, ids, ends)) for ids in tokens]
        assert adapted == [stack.model.decode(expected(folder, ids, ends, mine)) for ids in tokens]
        assert plain != adapted
        with pytest.raises(InvalidArgumentError, match="reads text only"):
            asyncio.run(stack.service.generate(Prompt.of("x", [png_part(40, 40)]), Base(), Decoding()))


@pytest.mark.usefixtures("_registered")
def test_documented_family_can_be_inspected(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["inspect", str(folder), "--json"]) == 0
    model = json.loads(capsys.readouterr().out)
    assert (model["family"], model["adaptable_modules"], model["image_limits"]) == ("Granite", 7 * LAYERS, {})
    mine = adapter(tmp_path / "mine")
    named = ["--model-aliases", "tiny-granite"]
    assert run(["inspect", str(mine), "--base-model", str(folder), *named, "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["bound_tensors"] == report["tensors"] == 2 * 3 * LAYERS
