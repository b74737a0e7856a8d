"""Tiny tokenizers of the kinds that text models are published with, and chat templates with the same constructs."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

SPECIAL = ("<s>", "</s>", "<|user|>", "<|assistant|>", "<|system|>", "<|end|>", "[INST]", "[/INST]")
ORDINARY = ("<think>", "</think>", "<tool_response>", "</tool_response>")
"""Added tokens that are not special: transformers reads them from a caller's text too."""

_CORPUS = (
    "What is the capital of France? The capital of France is Paris. user assistant system model",
    "Open the calendar and wait. Be brief.  Two  spaces,\n\nblank lines, naïve café, 你好, 0123456789 <tool> </tool>",
)
_DECODER = decoders.Sequence(
    [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
)


def _byte_level() -> Tokenizer:
    """Llama 3's, Qwen's and SmolLM's kind."""
    tokenizer = Tokenizer(models.BPE())
    splits = pre_tokenizers.Split(Regex(r"\s+(?!\S)|\s*[^\s]+|\s+"), behavior="isolated")
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [splits, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    tokenizer.train_from_iterator(
        _CORPUS, trainers.BpeTrainer(vocab_size=330, initial_alphabet=alphabet, show_progress=False)
    )
    return tokenizer


def _sentencepiece(normalizer: Any, pre_tokenizer: Any) -> Tokenizer:
    """A BPE with byte fallback, as sentencepiece's are converted."""
    trained = Tokenizer(models.BPE())
    trained.normalizer = normalizers.Replace(" ", "▁")
    trained.pre_tokenizer = pre_tokenizers.Split("▁", behavior="merged_with_next")
    alphabet = sorted(set("".join(_CORPUS).replace(" ", "▁")) | {"\n"})
    special = ["<unk>", *(f"<0x{byte:02X}>" for byte in range(256))]
    trainer = trainers.BpeTrainer(
        vocab_size=420, initial_alphabet=alphabet, special_tokens=special, show_progress=False
    )
    trained.train_from_iterator(_CORPUS, trainer)
    model = json.loads(trained.to_str())["model"]
    merges = [tuple(merge) for merge in model["merges"]]
    bpe = models.BPE(model["vocab"], merges, unk_token="<unk>", byte_fallback=True, fuse_unk=True)
    tokenizer = Tokenizer(bpe)
    if normalizer is not None:
        tokenizer.normalizer = normalizer
    if pre_tokenizer is not None:
        tokenizer.pre_tokenizer = pre_tokenizer
    tokenizer.decoder = _DECODER
    return tokenizer


def tokenizer_of(kind: str) -> Tokenizer:
    """Return a tokenizer of one of `KINDS`, which adds a beginning-of-sequence token as its model's does."""
    spaces = normalizers.Replace(" ", "▁")
    tokenizer = {
        "byte-level": _byte_level,
        "prefix before each text": lambda: _sentencepiece(
            normalizers.Sequence([normalizers.Prepend("▁"), spaces]), None
        ),
        "prefix at the start": lambda: _sentencepiece(
            None, pre_tokenizers.Metaspace(replacement="▁", prepend_scheme="first", split=False)
        ),
        "no prefix": lambda: _sentencepiece(spaces, pre_tokenizers.Split("▁", behavior="merged_with_previous")),
    }[kind]()
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in SPECIAL])
    tokenizer.add_tokens([AddedToken(token, special=False, normalized=False) for token in ORDINARY])
    bos = tokenizer.token_to_id("<s>")
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", bos)])
    return tokenizer


KINDS = ("byte-level", "prefix before each text", "prefix at the start", "no prefix")

TEMPLATES: Mapping[str, str] = {
    "concatenation with a default system text": (
        "{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}"
        "{{ '<|system|>\nBe helpful.<|end|>\n' }}{% endif %}{{ '<|' + message['role'] + '|>\n' + message['content'] + "
        "'<|end|>\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<|assistant|>\n' }}{% endif %}"
    ),
    "bos, headers, trimmed": (
        "{% for message in messages %}{% set content = '<|' + message['role'] + '|>\n\n' + message['content'] | trim + "
        "'<|end|>' %}{% if loop.index0 == 0 %}{% set content = bos_token + content %}{% endif %}{{ content }}"
        "{% endfor %}{% if add_generation_prompt %}{{ '<|assistant|>\n\n' }}{% endif %}"
    ),
    "instructions with the system text inside": (
        "{% if messages[0]['role'] == 'system' %}{% set rest = messages[1:] %}{% set system = messages[0]['content'] %}"
        "{% else %}{% set rest = messages %}{% set system = false %}{% endif %}{% for message in rest %}"
        "{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}{{ raise_exception('Roles must alternate') }}"
        "{% endif %}{% if loop.index0 == 0 and system %}{% set content = '<<SYS>>\n' + system + '\n<</SYS>>\n\n' + "
        "message['content'] %}{% else %}{% set content = message['content'] %}{% endif %}"
        "{% if message['role'] == 'user' %}{{ bos_token + '[INST] ' + content.strip() + ' [/INST]' }}"
        "{% else %}{{ ' ' + content.strip() + ' ' + eos_token }}{% endif %}{% endfor %}"
    ),
    "instructions without a system role": (
        "{{ bos_token }}{% for message in messages %}{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}"
        "{{ raise_exception('Roles must alternate') }}{% endif %}{% if message['role'] == 'user' %}"
        "{{ '[INST] ' + message['content'] + ' [/INST]' }}{% else %}{{ message['content'] + eos_token }}{% endif %}"
        "{% endfor %}"
    ),
    "system text in the last turn": (
        "{%- if messages[0]['role'] == 'system' %}{%- set system = messages[0]['content'] %}"
        "{%- set rest = messages[1:] %}"
        "{%- else %}{%- set rest = messages %}{%- endif %}{{- bos_token }}{%- for message in rest %}"
        "{%- if message['role'] == 'user' %}{%- if loop.last and system is defined %}"
        "{{- '[INST] ' + system + '\n\n' + message['content'] + '[/INST]' }}{%- else %}"
        "{{- '[INST] ' + message['content'] + '[/INST]' }}{%- endif %}{%- else %}"
        "{{- ' ' + message['content'] | trim + eos_token }}{%- endif %}{%- endfor %}"
    ),
    "no system role, renamed roles": (
        "{{ bos_token }}{% if messages[0]['role'] == 'system' %}{{ raise_exception('System role not supported') }}"
        "{% endif %}{% for message in messages %}{% set role = 'model' if message['role'] == 'assistant' else "
        "message['role'] %}{{ '<|user|>' + role + '\n' + message['content'] | trim + '<|end|>\n' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|user|>model\n' }}{% endif %}"
    ),
    "string or parts": (
        "{{ bos_token }}{% if messages[0].role == 'system' %}{% set prefix = (messages[0].content if "
        "messages[0].content is string else messages[0].content[0].text) + '\n\n' %}"
        "{% set rest = messages[1:] %}{% else %}"
        "{% set prefix = '' %}{% set rest = messages %}{% endif %}{% for message in rest %}<|user|>{{ message.role }}\n"
        "{{ prefix if loop.first else '' }}{% if message.content is string %}{{ message.content | trim }}{% elif "
        "message.content is iterable %}{% for item in message.content %}{% if item.type == 'text' %}"
        "{{ item.text | trim }}{% endif %}{% endfor %}{% endif %}<|end|>\n{% endfor %}"
        "{% if add_generation_prompt %}<|user|>model\n{% endif %}"
    ),
    "parts only": (
        "<s>{% for message in messages %}{{ message['role'] | capitalize }}{% if message['content'][0]['type'] == "
        "'image' %}{{ ':' }}{% else %}{{ ': ' }}{% endif %}{% for line in message['content'] %}{% if line['type'] == "
        "'text' %}{{ line['text'] }}{% endif %}{% endfor %}<|end|>\n{% endfor %}{% if add_generation_prompt %}"
        "{{ 'Assistant:' }}{% endif %}"
    ),
    "reasoning cut out of earlier answers": (
        "{%- set ns = namespace(last=messages | length - 1, found=false) %}{%- for message in messages[::-1] %}"
        "{%- if not ns.found and message.role == 'user' and not (message.content.startswith('<tool_response>') and "
        "message.content.endswith('</tool_response>')) %}{%- set ns.found = true %}{%- set ns.last = "
        "messages | length - 1 - loop.index0 %}{%- endif %}{%- endfor %}"
        "{%- for message in messages %}{%- set content = message.content %}"
        "{%- if message.role == 'assistant' %}{%- set reasoning = '' %}{%- if '</think>' in content %}"
        "{%- set reasoning = content.split('</think>')[0].rstrip('\n').split('<think>')[-1].lstrip('\n') %}"
        "{%- set content = content.split('</think>')[-1].lstrip('\n') %}{%- endif %}{%- if loop.index0 > ns.last and "
        "reasoning %}{%- set content = '<think>\n' + reasoning + '\n</think>\n\n' + content %}{%- endif %}{%- endif %}"
        "{{- '<|' + message.role + '|>\n' + content + '<|end|>\n' }}{%- endfor %}"
        "{%- if add_generation_prompt %}{{- '<|assistant|>\n' }}{%- endif %}"
    ),
    "quoted, measured and shortened": (
        "{% for message in messages %}{{ '<|' + message['role'] + '|>' }}{{ message['content'] | length }}:"
        "{{ message['content'] | tojson }} {{ message['content'][:12] | upper }}<|end|>{% endfor %}<|assistant|>"
    ),
}
"""Templates by their constructs."""


def write_tokenizer(folder: Path, kind: str, template: str | None, **config: Any) -> Path:
    """Write the tokenizer of a text model into `folder`; `config` are further fields of tokenizer_config.json."""
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer_of(kind).save(str(folder / "tokenizer.json"))
    content = {"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": "<s>", "eos_token": "</s>"}
    content |= {"clean_up_tokenization_spaces": False, "add_bos_token": True} | config
    if template is not None:
        content["chat_template"] = template
    (folder / "tokenizer_config.json").write_text(json.dumps(content), encoding="utf-8")
    return folder


def as_parts(conversation: Sequence[Mapping[str, str]]) -> list[dict[str, Any]]:
    """Return the messages with a list of one text part as content."""
    return [
        {"role": message["role"], "content": [{"type": "text", "text": message["content"]}]} for message in conversation
    ]
