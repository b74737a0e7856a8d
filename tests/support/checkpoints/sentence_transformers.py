"""Writes tiny random sentence-transformers folders in the hub's layout."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from transformers import BertConfig, BertModel, PreTrainedTokenizerFast

HIDDEN, DENSE = 16, 12
_PREFIX = "sentence_transformers.models"


def write_sentence_model(
    folder: Path, *, pooling: str = "mean", dense: bool = False, prompts: dict[str, str] | None = None, seed: int = 0
) -> Path:
    """Write a BERT of two layers with pooling ("mean", "cls" or "lasttoken") and normalisation; return the folder.

    `dense` adds a linear layer of DENSE outputs before the normalisation.
    """
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer = _tokenizer()
    tokenizer.save_pretrained(folder)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        bert = BertModel(
            BertConfig(
                vocab_size=len(tokenizer),
                hidden_size=HIDDEN,
                num_hidden_layers=2,
                num_attention_heads=2,
                intermediate_size=24,
                max_position_embeddings=64,
                initializer_range=0.5,
            ),
            add_pooling_layer=False,
        ).eval()
        linear = torch.nn.Linear(HIDDEN, DENSE)
    bert.save_pretrained(folder)
    pooling_config: dict[str, Any] = {"word_embedding_dimension": HIDDEN, "include_prompt": False}
    for mode, name in (("mean", "mean_tokens"), ("cls", "cls_token"), ("lasttoken", "lasttoken")):
        pooling_config[f"pooling_mode_{name}"] = mode == pooling
    _write(folder / "1_Pooling" / "config.json", pooling_config)
    kinds = [("", "Transformer"), ("1_Pooling", "Pooling")]
    if dense:
        kinds.append(("2_Dense", "Dense"))
        config = {"in_features": HIDDEN, "out_features": DENSE, "bias": True}
        _write(
            folder / "2_Dense" / "config.json", {**config, "activation_function": "torch.nn.modules.activation.Tanh"}
        )
        weights = {f"linear.{name}": value.detach().clone() for name, value in linear.named_parameters()}
        save_file(weights, folder / "2_Dense" / "model.safetensors", metadata={"format": "pt"})
    kinds.append((f"{len(kinds)}_Normalize", "Normalize"))
    (folder / kinds[-1][0]).mkdir(exist_ok=True)
    modules = [
        {"idx": index, "name": str(index), "path": path, "type": f"{_PREFIX}.{kind}"}
        for index, (path, kind) in enumerate(kinds)
    ]
    _write(folder / "modules.json", modules)
    _write(folder / "sentence_bert_config.json", {"max_seq_length": 48, "do_lower_case": False})
    _write(folder / "config_sentence_transformers.json", {"prompts": prompts or {}, "default_prompt_name": None})
    return folder


def _tokenizer() -> PreTrainedTokenizerFast:
    """Return a tokenizer of letters and digits that adds BERT's special tokens."""
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    characters = "abcdefghijklmnopqrstuvwxyz0123456789:.,"
    vocabulary = {token: index for index, token in enumerate([*special, *characters, *(f"##{c}" for c in characters)])}
    tokenizer = Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    named = dict(zip(("pad_token", "unk_token", "cls_token", "sep_token", "mask_token"), special, strict=True))
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, model_max_length=48, **named)


def _write(path: Path, content: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content, indent=1), encoding="utf-8")
