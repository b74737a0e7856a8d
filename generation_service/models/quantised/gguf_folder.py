"""A GGUF file as the folder that the families read: config, tokenizer and chat template beside a link to the file."""

from __future__ import annotations

import atexit
import json
import re
import shutil
import tempfile
from functools import lru_cache
from pathlib import Path

from transformers import AutoTokenizer

from generation_service.models.quantised.gguf_file import gguf_path, read_gguf
from generation_service.models.quantised.gguf_model import config_of, end_tokens
from infra.contract.errors import CheckpointError

_QUANTISATION = re.compile(r"[.-](?:i?q\d\w*|(?:b?f|fp)\d\d)(?:-\w+)?$", re.IGNORECASE)
"""The ending of a file's name that says how it is quantised, as in `SmolLM2-135M-Instruct.Q4_K_M`."""


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
    try:
        tokenizer = AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name, local_files_only=True)
        tokenizer.save_pretrained(folder)
    except Exception as error:  # transformers builds a tokenizer from whatever the metadata hold.
        raise CheckpointError(
            f"{path}: its tokenizer cannot be read ({type(error).__name__}: {error}): take the model's folder of "
            "safetensors",
            path=str(path),
        ) from error
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": end_tokens(file)}), encoding="utf-8")
    (folder / path.name).symlink_to(path)
    return folder
