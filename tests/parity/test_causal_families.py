"""Text-only families against transformers' `generate`, and their adapters against PEFT."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from transformers import AutoModelForCausalLM, GenerationConfig

from generation_service.app import generation_stack
from generation_service.models.causal.architectures import ARCHITECTURES
from infra.contract.composition import Base, Composition, Mixture, WeightedAdapter
from infra.contract.errors import InvalidArgumentError
from infra.contract.generation import Decoding
from infra.contract.prompt import Prompt
from tests.support.checkpoints.causal import SPECIAL_CASES, WINDOW, write_causal
from tests.support.harness.generation_stack import settings_for
from tests.support.harness.images import png_part

TOKENS = 12
QUESTIONS = ("Why?", "Open the calendar and wait. " * 8, "Scroll down, then go back. " * 3)


@pytest.fixture(scope="module", params=SPECIAL_CASES)
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    model_type, fields = SPECIAL_CASES[request.param]
    return write_causal(tmp_path_factory.mktemp("causal") / "tiny", model_type, fields, shards=2)


@pytest.fixture(scope="module")
def reference(folder: Path) -> Any:
    """The model as transformers loads and runs it."""
    model = AutoModelForCausalLM.from_pretrained(folder)
    model.generation_config = GenerationConfig()
    return model


@pytest.fixture(scope="module")
def adapter(reference: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A LoRA on every linear layer, saved by PEFT."""
    place = tmp_path_factory.mktemp("adapters") / "mine"
    config = peft.LoraConfig(r=4, lora_alpha=16, target_modules="all-linear", init_lora_weights=False)
    torch.manual_seed(5)
    model = AutoModelForCausalLM.from_pretrained(reference.name_or_path)
    peft.get_peft_model(model, config).save_pretrained(place)
    return place


def greedy(model: Any, tokens: list[int], ends: frozenset[int]) -> list[int]:
    ids = torch.tensor([tokens])
    output = model.generate(
        input_ids=ids,
        attention_mask=torch.ones_like(ids),
        do_sample=False,
        max_new_tokens=TOKENS,
        eos_token_id=sorted(ends),
        pad_token_id=0,
    )
    return list(map(int, output[0, len(tokens) :]))


def test_answers_equal_those_of_transformers_and_peft(folder: Path, reference: Any, adapter: Path) -> None:
    mixture = Mixture((WeightedAdapter("mine", 1.0),))
    settings = settings_for(folder, [adapter.parent], prefill_tokens=16, max_sequence_tokens=256)
    with generation_stack(settings) as stack:

        async def together() -> list[tuple[str, str]]:
            async def one(text: str, composition: Composition) -> str:
                decoding = Decoding(max_new_tokens=TOKENS)
                return (await stack.service.generate(Prompt.of(text), composition, decoding)).text

            plain = [one(text, Base()) for text in QUESTIONS]
            adapted = [one(text, mixture) for text in QUESTIONS]
            texts = await asyncio.gather(*plain, *adapted)
            return list(zip(texts[: len(QUESTIONS)], texts[len(QUESTIONS) :], strict=True))

        answers = asyncio.run(together())
        ends = stack.model.description.eos_tokens
        tokens = [stack.model.encode(Prompt.of(text), []).tokens.tolist() for text in QUESTIONS]
        assert max(map(len, tokens)) > 2 * WINDOW
        expected = [stack.model.decode(greedy(reference, ids, ends)) for ids in tokens]
        changed = peft.PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(folder), adapter)
        changed.base_model.model.generation_config = GenerationConfig()
        expected_adapted = [stack.model.decode(greedy(changed, ids, ends)) for ids in tokens]
        assert [plain for plain, _ in answers] == expected
        assert [adapted for _, adapted in answers] == expected_adapted
        assert expected != expected_adapted
        with pytest.raises(InvalidArgumentError, match="reads text only"):
            asyncio.run(stack.service.generate(Prompt.of("x", [png_part(40, 40)]), Base(), Decoding()))


def test_every_architecture_has_a_case() -> None:
    assert {model_type for model_type, _ in SPECIAL_CASES.values()} == {row.model_type for row in ARCHITECTURES}
