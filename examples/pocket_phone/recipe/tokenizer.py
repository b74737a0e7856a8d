"""The tokenizer: byte-level BPE in Qwen2's format, trained on every text of this world."""

from __future__ import annotations

import json
from collections.abc import Iterator
from functools import cache
from pathlib import Path

from tokenizers import AddedToken, Regex, Tokenizer, decoders, normalizers, pre_tokenizers, processors
from tokenizers.models import BPE
from tokenizers.trainers import BpeTrainer

from examples.pocket_phone.apps import APPS, CATEGORIES, action_of
from examples.pocket_phone.episodes import DONE, OPEN, TYPED, WAIT
from examples.pocket_phone.glyphs import GLYPHS
from examples.pocket_phone.prompts import SYSTEM

VOCABULARY = 1536
_WORD = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
SPECIAL = (
    "<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|object_ref_start|>", "<|object_ref_end|>", "<|box_start|>",
    "<|box_end|>", "<|quad_start|>", "<|quad_end|>", "<|vision_start|>", "<|vision_end|>", "<|vision_pad|>",
    "<|image_pad|>", "<|video_pad|>",
)  # fmt: skip
"""Qwen2-VL's special tokens, in upstream's order."""

CHAT_TEMPLATE = (
    "{% set image_count = namespace(value=0) %}{% set video_count = namespace(value=0) %}{% for message in messages %}"
    "{% if loop.first and message['role'] != 'system' %}<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n"
    "{% endif %}<|im_start|>{{ message['role'] }}\n{% if message['content'] is string %}"
    "{{ message['content'] }}<|im_end|>\n{% else %}"
    "{% for content in message['content'] %}{% if "
    "content['type'] == 'image' or 'image' in content or 'image_url' in content %}"
    "{% set image_count.value = image_count.value + 1 %}{% if add_vision_id %}Picture "
    "{{ image_count.value }}: {% endif %}<|vision_start|><|image_pad|><|vision_end|>{% elif "
    "content['type'] == 'video' or 'video' in content %}{% set video_count.value = "
    "video_count.value + 1 %}{% if add_vision_id %}Video "
    "{{ video_count.value }}: {% endif %}<|vision_start|><|video_pad|><|vision_end|>{% elif 'text' in content %}"
    "{{ content['text'] }}{% endif %}{% endfor %}<|im_end|>\n{% endif %}{% endfor %}{% if add_generation_prompt %}"
    "<|im_start|>assistant\n{% endif %}"
)
"""Qwen2-VL-Instruct's template, verbatim."""


def _corpus() -> Iterator[str]:
    """Yield every sentence, name, item and action of the world, and the wording of the base model's exercises."""
    yield from (
        SYSTEM,
        "system",
        "user",
        "assistant",
        "Query: ",
        "Passage: ",
        "Describe the image.",
        "Actions so far:\n",
    )
    yield from (DONE, WAIT, OPEN, TYPED, "Scroll up", "Scroll left", "Scroll right", "Go back to the previous page")
    yield from ("Return to the home page", 'Long_press on button with the text "', "Click on point (")
    yield from (
        "Tap the ",
        "; then the ",
        ", else the ",
        " as ",
        "else scroll down",
        "else go back",
        "Use the ",
        "Type ",
    )
    yield from ("In ", "Open ", " and ", ": ", "?", ".", '"', '".', '"\n')
    for glyph in GLYPHS:
        yield from (glyph, f" {glyph}")
    for app in APPS.values():
        yield from (app.display_name, f"In {app.display_name}, ", OPEN + app.display_name)
        for glyph in CATEGORIES[app.category].labels:
            action = action_of(app, glyph)
            yield from (action, f" {action.split(chr(34))[1]}" if '"' in action else action)
    for category in CATEGORIES.values():
        for item in category.items:
            yield from (TYPED + item, item)
        for intent in category.intents:
            for sentence in intent.sentences:
                text = sentence.format(item="")
                yield from (f" {text}.", text[0].upper() + text[1:] + ".")


@cache
def build() -> Tokenizer:
    """Train the tokenizer. Every word of the world becomes one token, so that a name can match one visual token."""
    tokenizer = Tokenizer(BPE())
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(_WORD), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.post_processor = processors.ByteLevel(trim_offsets=False)
    trainer = BpeTrainer(
        vocab_size=VOCABULARY - len(SPECIAL),
        min_frequency=1,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(_corpus(), trainer)
    tokenizer.add_special_tokens([AddedToken(token, normalized=False, special=True) for token in SPECIAL])
    return tokenizer


def save(folder: Path) -> None:
    """Write `tokenizer.json`, `tokenizer_config.json` and `chat_template.json` in the published layout."""
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer = build()
    tokenizer.save(str(folder / "tokenizer.json"))
    added = {
        str(tokenizer.token_to_id(token)): {
            "content": token,
            "lstrip": False,
            "normalized": False,
            "rstrip": False,
            "single_word": False,
            "special": True,
        }
        for token in SPECIAL
    }
    config = {
        "add_prefix_space": False,
        "added_tokens_decoder": added,
        "additional_special_tokens": list(SPECIAL[1:]),
        "bos_token": None,
        "chat_template": CHAT_TEMPLATE,
        "clean_up_tokenization_spaces": False,
        "eos_token": "<|im_end|>",
        "errors": "replace",
        "model_max_length": 2048,
        "pad_token": "<|endoftext|>",
        "split_special_tokens": False,
        "tokenizer_class": "Qwen2Tokenizer",
        "unk_token": None,
    }
    _write(folder / "tokenizer_config.json", config)
    _write(folder / "chat_template.json", {"chat_template": CHAT_TEMPLATE})


def _write(path: Path, content: object) -> None:
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
