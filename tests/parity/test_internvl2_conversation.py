"""InternVL2's conversations token for token: templates, system messages, image placement, special tokens."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from PIL.Image import Image

from generation_service.models.base import BaseModel, LoadOptions
from generation_service.models.registry import load_base_model
from infra.contract.errors import InvalidArgumentError
from infra.contract.prompt import ImagePart, Message, Part, Prompt, Role, TextPart
from tests.support.checkpoints.internvl2 import TinyInternVL, write_internvl2
from tests.support.checkpoints.internvl2_tokenizers import IMAGE_TOKENS
from tests.support.harness.images import picture

pytest.importorskip("sentencepiece", reason="the reference reads tokenizer.model with sentencepiece (extra dev)")
from tests.parity.internvl2_reference import SYSTEM, InternVL2Reference

IMAGE = ImagePart(b"decoded already")
SEEN = "<img>" + "<IMG_CONTEXT>" * 4 + "</img>"
SHAPES = {"2B": TinyInternVL(), "1B": TinyInternVL("qwen2"), "4B": TinyInternVL("phi3")}
TEXTS = [
    "plain",
    "\n\n  leading",
    "trailing \n",
    "Straße, naïve 日本語 🙂",
    "a\u0301 is not normalised",
    "a" * 200,
    "▁",
]


@pytest.fixture(params=list(SHAPES.values()), ids=list(SHAPES))
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    return write_internvl2(tmp_path / "base", request.param)


@pytest.fixture
def folder_2b(tmp_path: Path) -> Path:
    return write_internvl2(tmp_path / "base")


def load(folder: Path, image_suffix: str | None = None) -> BaseModel:
    return load_base_model(folder, LoadOptions(torch.device("cpu"), torch.float32, image_suffix=image_suffix))


def ids(model: BaseModel, *messages: Message) -> list[int]:
    prompt = Prompt(messages)
    images: list[Image] = [picture(50, 50) for _ in prompt.images]
    tokens: list[int] = model.encode(prompt, images).tokens.tolist()
    return tokens


def user(*parts: Part | str) -> Message:
    return Message(Role.USER, tuple(TextPart(part) if isinstance(part, str) else part for part in parts))


@pytest.mark.parametrize("text", TEXTS)
def test_ordinary_text_matches_tokenising_whole_conversation(folder: Path, text: str) -> None:
    assert ids(load(folder), user(text)) == InternVL2Reference(folder).prompt(text)


def test_special_tokens_in_text_are_ordinary_characters(folder: Path) -> None:
    model = load(folder)
    special = set(InternVL2Reference(folder).tokenizer.special.values())
    harmless = [token for token in ids(model, user("hello")) if token in special]
    for mark in ("<|im_end|>", "<|im_start|>system\n", "<|end|>", "<s>", "[UNUSED_TOKEN_2]", *IMAGE_TOKENS):
        tokens = ids(model, user(f"hello{mark}"))
        assert [token for token in tokens if token in special] == harmless
        assert f"hello{mark}" in model.decode(tokens)


def test_multi_turn_conversation_is_in_template_format(folder_2b: Path) -> None:
    conversation = (
        Message(Role.SYSTEM, (TextPart("Be brief."),)),
        user("Look: ", IMAGE, " what is it?"),
        Message(Role.ASSISTANT, (TextPart("A bag."),)),
        user("Sure?"),
    )
    expected = (
        f"<|im_start|>system\nBe brief.<|im_end|><|im_start|>user\nLook: {SEEN} what is it?<|im_end|>"
        "<|im_start|>assistant\nA bag.<|im_end|><|im_start|>user\nSure?<|im_end|><|im_start|>assistant\n"
    )
    assert ids(load(folder_2b), *conversation) == InternVL2Reference(folder_2b).tokenizer.encode(expected)


def test_internvl2_5_template_has_its_own_separator_and_system_message(tmp_path: Path) -> None:
    folder = write_internvl2(tmp_path / "base", TinyInternVL(template="internvl2_5"))
    system = (
        "你是书生·万象，英文名是InternVL，是由上海人工智能实验室、清华大学及多家合作单位联合开发的多模态大语言模型。"
    )
    expected = f"<|im_start|>system\n{system}<|im_end|>\n<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n"
    reference = InternVL2Reference(folder)
    assert ids(load(folder), user("hi")) == reference.tokenizer.encode(expected)
    assert load(folder).description.eos_tokens == {reference.end}


@pytest.mark.parametrize(
    ("parts", "expected"),
    [
        ([IMAGE], f"{SEEN}\n"),
        ([IMAGE, "What?"], f"{SEEN}\nWhat?"),
        ([IMAGE, "\nWhat?"], f"{SEEN}\nWhat?"),
        ([IMAGE, IMAGE, "What?"], f"Image-1: {SEEN}\nImage-2: {SEEN}\nWhat?"),
        (["Compare ", IMAGE, " with ", IMAGE, "."], f"Compare {SEEN} with {SEEN}\n."),
        ([IMAGE, "first", IMAGE], f"Image-1: {SEEN}\nfirst{SEEN}\n"),
    ],
    ids=["alone", "before text", "own line break", "several", "between texts", "last"],
)
def test_images_follow_documented_format(folder_2b: Path, parts: list[Part | str], expected: str) -> None:
    reference = InternVL2Reference(folder_2b)
    assert ids(load(folder_2b), user(*parts)) == reference.tokenizer.encode(reference.conversation(expected))


def test_images_are_numbered_through_conversation(folder_2b: Path) -> None:
    turns = (user(IMAGE, IMAGE, "One?"), Message(Role.ASSISTANT, (TextPart("Two."),)), user(IMAGE, "And this?"))
    question = (
        f"Image-1: {SEEN}\nImage-2: {SEEN}\nOne?<|im_end|><|im_start|>assistant\nTwo.<|im_end|>"
        f"<|im_start|>user\nImage-3: {SEEN}\nAnd this?"
    )
    reference = InternVL2Reference(folder_2b)
    assert ids(load(folder_2b), *turns) == reference.tokenizer.encode(reference.conversation(question))


@pytest.mark.parametrize("suffix", ["\n", "\n\n", ""])
def test_image_suffix_replaces_documented_format(folder_2b: Path, suffix: str) -> None:
    reference = InternVL2Reference(folder_2b)
    expected = reference.conversation(f"{SEEN}{suffix}{SEEN}{suffix}What?")
    assert ids(load(folder_2b, suffix), user(IMAGE, IMAGE, "What?")) == reference.tokenizer.encode(expected)


def test_late_system_message_is_invalid_argument(folder_2b: Path) -> None:
    late = Message(Role.SYSTEM, (TextPart("Be brief."),))
    with pytest.raises(InvalidArgumentError, match="one system message, before all others") as caught:
        ids(load(folder_2b), user("hi"), late, user("again"))
    assert caught.value.field == "messages[1].role"
    with pytest.raises(InvalidArgumentError, match="one system message"):
        ids(load(folder_2b), late, late, user("again"))


def test_bos_token_is_optional(folder_2b: Path) -> None:
    with_begin = ids(load(folder_2b), user("hi"))
    assert with_begin[0] == 1
    path = folder_2b / "tokenizer_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"add_bos_token": False}))
    assert ids(load(folder_2b), user("hi")) == with_begin[1:]


def test_default_system_message_is_the_published_one(folder: Path) -> None:
    model = load(folder)
    assert SYSTEM in model.decode(ids(model, user("hi")))
    assert SYSTEM not in model.decode(ids(model, Message(Role.SYSTEM, (TextPart("Be brief."),)), user("hi")))
