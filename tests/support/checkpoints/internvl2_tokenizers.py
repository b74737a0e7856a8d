"""The tokenizer files of tiny InternVL2 folders: sentencepiece (InternLM2, Phi-3) or byte-level BPE (Qwen2, Qwen3)."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from tokenizers import ByteLevelBPETokenizer

from tests.support.checkpoints.sentencepiece_model import sentencepiece_bpe

LanguageModel = Literal["internlm2", "qwen2", "qwen3", "phi3"]

IMAGE_TOKENS = ("<img>", "</img>", "<IMG_CONTEXT>", "<quad>", "</quad>", "<ref>", "</ref>", "<box>", "</box>")
_RESERVED = ("[UNUSED_TOKEN_1]", "[UNUSED_TOKEN_2]", "[UNUSED_TOKEN_3]")

_CORPUS = (
    'Click on button with the text "Add to cart", then scroll down and go back to the previous page.',
    "Type text: running shoes. Open App: calendar. Image-1: Image-2: system user assistant 0123456789\n\n",
    "The quick brown fox jumps over the lazy dog; what is on the screen? Straße, naïve café.  Two  spaces,   three.",
    "你是由上海人工智能实验室联合商汤科技开发的书生多模态大模型，英文名叫InternVL, 是一个有用无害的人工智能助手。",
)


def write_tokenizer(folder: Path, language: LanguageModel) -> int:
    """Write the tokenizer's files and return the size of the vocabulary."""
    if language in ("qwen2", "qwen3"):
        return _write_qwen2_tokenizer(folder)
    phi3 = language == "phi3"
    reserved = ("<|endoftext|>", "<|assistant|>", "<|system|>", "<|end|>", "<|user|>") if phi3 else _RESERVED
    model, count = sentencepiece_bpe(_CORPUS, 420, user_defined=() if phi3 else reserved, dummy_prefix=phi3)
    (folder / "tokenizer.model").write_bytes(model)
    added = {0: "<unk>", 1: "<s>", 2: "</s>"}
    if phi3:
        added |= dict(enumerate((*reserved, *IMAGE_TOKENS), start=count))
    else:
        added |= {count - 2: "<|im_end|>", count - 1: "<|im_start|>"}
        added |= dict(enumerate(IMAGE_TOKENS, start=count))
    stripped = {"<|assistant|>", "<|system|>", "<|end|>", "<|user|>"}
    config = {
        "add_bos_token": True,
        "add_eos_token": False,
        "added_tokens_decoder": {
            str(number): _added_token(token, rstrip=token in stripped) for number, token in added.items()
        },
        "auto_map": {"AutoTokenizer": ["tokenization_internlm2.InternLM2Tokenizer", None]},
        "bos_token": "<s>",
        "clean_up_tokenization_spaces": False,
        "eos_token": "</s>",
        "model_max_length": 8192,
        "tokenizer_class": "LlamaTokenizer" if phi3 else "InternLM2Tokenizer",
        "unk_token": "<unk>",
    }
    write_json(folder / "tokenizer_config.json", config | ({"legacy": False} if phi3 else {}))
    write_json(folder / "added_tokens.json", {token: number for number, token in added.items() if number >= count})
    return max(added) + 1


def _write_qwen2_tokenizer(folder: Path) -> int:
    tokenizer = ByteLevelBPETokenizer()
    tokenizer.train_from_iterator(iter(_CORPUS), vocab_size=360, show_progress=False)
    tokenizer.save_model(str(folder))
    special = ("<|endoftext|>", "<|im_start|>", "<|im_end|>", *IMAGE_TOKENS)
    added = dict(enumerate(special, start=tokenizer.get_vocab_size()))
    write_json(folder / "added_tokens.json", {token: number for number, token in added.items()})
    write_json(
        folder / "tokenizer_config.json",
        {
            "add_prefix_space": False,
            "added_tokens_decoder": {str(number): _added_token(token) for number, token in added.items()},
            "additional_special_tokens": list(special[1:]),
            "bos_token": None,
            "clean_up_tokenization_spaces": False,
            "eos_token": "<|im_end|>",
            "errors": "replace",
            "model_max_length": 8192,
            "pad_token": "<|endoftext|>",
            "split_special_tokens": False,
            "tokenizer_class": "Qwen2Tokenizer",
            "unk_token": None,
        },
    )
    return -(-(max(added) + 1) // 16) * 16


def _added_token(content: str, rstrip: bool = False) -> dict[str, Any]:
    plain = {"lstrip": False, "normalized": False, "single_word": False, "special": True}
    return {"content": content, "rstrip": rstrip} | plain


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Write a JSON file in the format of the published folders."""
    path.write_text(json.dumps(content, indent=2, ensure_ascii=False), encoding="utf-8")
