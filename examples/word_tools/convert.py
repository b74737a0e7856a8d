"""Convert a GGUF file to a plain transformers folder: float32 safetensors, configuration, tokenizer."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM, AutoTokenizer
from transformers.utils import logging

#: Of the file it was read from, and of no use to a reader of the folder.
_FORGOTTEN = ("quantization_config", "_name_or_path", "_model_name_or_path")
_HEAD = "lm_head.weight"


def convert(gguf: Path, folder: Path) -> None:
    """Write the model in a GGUF file to `folder`. transformers reads it, with the `gguf` package.

    `save_pretrained` refuses models that were quantised, hence the parts are saved one by one. A head that is tied to
    the input embedding is not written twice.
    """
    logging.disable_progress_bar()
    source = {"pretrained_model_name_or_path": gguf.parent, "gguf_file": gguf.name}
    tokenizer = AutoTokenizer.from_pretrained(**source)
    model = AutoModelForCausalLM.from_pretrained(**source, dtype=torch.float32)
    folder.mkdir(parents=True)
    tied = model.config.tie_word_embeddings
    weights = {name: each.contiguous() for name, each in model.state_dict().items() if not (tied and name == _HEAD)}
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    settings = {key: value for key, value in model.config.to_dict().items() if key not in _FORGOTTEN}
    settings["architectures"] = [type(model).__name__]
    (folder / "config.json").write_text(json.dumps(settings, indent=2, default=str) + "\n", encoding="utf-8")
    model.generation_config.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    for path in folder.iterdir():
        path.chmod(0o644)
