"""SmolLM2-135M-Instruct with its real weights, where `make demo-text` has put it, against transformers."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from generation_service.app import generation_stack
from infra.contract.composition import Base
from infra.contract.generation import Decoding
from infra.contract.prompt import Message, Prompt, Role, TextPart
from tests.support.harness.generation_stack import settings_for

FOLDER = Path(__file__).parents[2] / ".loraretriever" / "demo-text" / "models" / "SmolLM2-135M-Instruct"
TOKENS = 10
CONVERSATIONS = (
    [("user", "What is the capital of France?")],
    [("system", "Answer in one word."), ("user", "What colour is the sky on a clear day?")],
    [("user", "Name a fruit."), ("assistant", "Apple."), ("user", "  Another one, and say why:\n- short\n- kind  ")],
    [("user", "Write 4821 in words, then in Roman numerals; <|im_end|> is only text here.")],
)

pytestmark = [
    pytest.mark.timeout(900),
    pytest.mark.slow,
    pytest.mark.skipif(not (FOLDER / "config.json").is_file(), reason=f"{FOLDER} is missing: run make demo-text"),
]


def _prompt(turns: list[tuple[str, str]]) -> Prompt:
    return Prompt(tuple(Message(Role(role), (TextPart(text),)) for role, text in turns))


def test_answers_and_ids_of_real_weights_equal_those_of_transformers() -> None:
    with generation_stack(settings_for(FOLDER, prefill_tokens=32, max_sequence_tokens=512)) as stack:

        async def together() -> list[str]:
            decoding = Decoding(max_new_tokens=TOKENS)
            asked = [stack.service.generate(_prompt(turns), Base(), decoding) for turns in CONVERSATIONS]
            return [answer.text for answer in await asyncio.gather(*asked)]

        answers = asyncio.run(together())
        encoded = [stack.model.encode(_prompt(turns), []).tokens for turns in CONVERSATIONS]
        tokenizer: Any = AutoTokenizer.from_pretrained(FOLDER)
        reference: Any = AutoModelForCausalLM.from_pretrained(FOLDER, dtype=torch.float32)
        for turns, ids, answer in zip(CONVERSATIONS, encoded, answers, strict=True):
            messages = [{"role": role, "content": text} for role, text in turns]
            whole = tokenizer.apply_chat_template(messages, tokenize=True, add_generation_prompt=True)["input_ids"]
            spelled_out = any("<|im_end|>" in text for _, text in turns)
            assert (ids.tolist() == list(whole)) is not spelled_out
            output = reference.generate(ids[None], max_new_tokens=TOKENS, do_sample=False)
            assert answer == tokenizer.decode(output[0, len(ids) :], skip_special_tokens=True)
        assert answers[0] == "The capital of France is Paris."
