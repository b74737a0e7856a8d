"""A GGUF file as the folder that the families read: config, tokenizer and chat template beside a link to the file."""

from __future__ import annotations

import atexit
import json
import re
import shutil
import tempfile
from functools import lru_cache
from pathlib import Path

from tokenizers.pre_tokenizers import ByteLevel, Digits, Sequence
from transformers import AutoTokenizer

from generation_service.models.folder import read_json
from generation_service.models.quantised.gguf_file import GgufFile, gguf_path, read_gguf
from generation_service.models.quantised.gguf_model import config_of, end_tokens
from infra.contract.errors import CheckpointError

_QUANTISATION = re.compile(r"[.-](?:i?q\d\w*|(?:b?f|fp)\d\d)(?:-\w+)?$", re.IGNORECASE)
"""The ending of a file's name that says how it is quantised, as in `SmolLM2-135M-Instruct.Q4_K_M`."""
_TOKENIZER = "tokenizer.json"
_TEMPLATES = ("chat_template.jinja", "chat_template.json")
_SPLITS = frozenset(("gpt-2", "qwen2", "deepseek-r1-qwen", "llama-bpe", "llama3", "llama-v3"))
"""Ways to split text (`tokenizer.ggml.pre`) that transformers rebuilds. Others would get the one of GPT-2."""
_DIGIT_SPLITS = frozenset(("smollm", "starcoder", "refact", "command-r"))
"""Splits at each digit, then like GPT-2. Without the first, spaces before a number would be other tokens."""


def model_folder(path: Path) -> Path:
    """Return the folder that families read: `path`, or for a GGUF file a temporary folder with what it contains.

    Raises CheckpointError if the file cannot be served, and ConfigurationError if `gguf` is not installed.
    """
    file = gguf_path(path)
    if file is None:
        if path.is_file():
            raise CheckpointError(f"{path} is a file: give the folder of a base model, or a file that ends in .gguf")
        return path
    return _folder_of(file.resolve(), file.stat().st_mtime_ns)


@lru_cache(maxsize=2)
def _folder_of(path: Path, modified: int) -> Path:
    del modified  # It is part of the key: a file that changed is read again.
    file = read_gguf(path)
    config = config_of(file) | {"_name_or_path": _QUANTISATION.sub("", path.stem)}
    parent = Path(tempfile.mkdtemp(prefix="loraretriever-gguf-"))
    atexit.register(shutil.rmtree, parent, ignore_errors=True)
    folder = parent / path.name  # The folder's name is what messages about its files show.
    folder.mkdir()
    if (path.parent / _TOKENIZER).is_file():
        _copy_tokenizer(file, folder)
    else:
        _write_tokenizer(file, folder)
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": end_tokens(file)}), encoding="utf-8")
    (folder / path.name).symlink_to(path)
    return folder


def _copy_tokenizer(file: GgufFile, folder: Path) -> None:
    """Take the tokenizer beside the file, and the chat template of the file if there is none beside it."""
    for name in (_TOKENIZER, "tokenizer_config.json", "special_tokens_map.json", *_TEMPLATES):
        if (file.path.parent / name).is_file():
            shutil.copyfile(file.path.parent / name, folder / name)
    config = folder / "tokenizer_config.json"
    has_own = config.is_file() and "chat_template" in read_json(config)
    template = file.metadata.get("tokenizer.chat_template")
    if template and not has_own and not any((folder / name).is_file() for name in _TEMPLATES):
        (folder / _TEMPLATES[0]).write_text(str(template), encoding="utf-8")


def _write_tokenizer(file: GgufFile, folder: Path) -> None:
    """Write the tokenizer that the metadata describe, as transformers reads it."""
    path = file.path
    kind, split = (file.metadata.get(f"tokenizer.ggml.{key}") for key in ("model", "pre"))
    remedy = f"put the {_TOKENIZER} and tokenizer_config.json of the model beside the file"
    if kind != "gpt2" or split not in _SPLITS | _DIGIT_SPLITS:
        raise CheckpointError(
            f"{path}: its tokenizer (tokenizer.ggml.model {kind!r}, pre {split!r}) cannot be rebuilt exactly from a "
            f"GGUF: {remedy}",
            path=str(path),
        )
    try:
        tokenizer = AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name, local_files_only=True)
        if split in _DIGIT_SPLITS:
            tokenizer.backend_tokenizer.pre_tokenizer = Sequence(
                [Digits(individual_digits=True), ByteLevel(add_prefix_space=False)]
            )
        tokenizer.save_pretrained(folder)
    except Exception as error:  # transformers builds a tokenizer from whatever the metadata hold.
        raise CheckpointError(
            f"{path}: its tokenizer cannot be read ({type(error).__name__}: {error}): {remedy}", path=str(path)
        ) from error
