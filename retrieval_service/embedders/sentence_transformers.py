"""Embeds text with any sentence-transformers folder, running the modules that its `modules.json` lists.

The sentence-transformers library, an optional extra, runs it. No code of the folder is executed and no pickle is read.
"""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers

from infra.contract.errors import CheckpointError, ConfigurationError
from infra.contract.prompt import ImagePart
from infra.runtime.logs import get_logger
from retrieval_service.embedders.base import FloatArray, normalise
from retrieval_service.embedders.late_fusion import LateFusion
from retrieval_service.embedders.part_embedder import (
    ModelInput,
    PartEmbedder,
    PartKind,
    RemainingTime,
    check_vectors,
    no_deadline,
)
from retrieval_service.embedders.torch_model import resolve_device, resolve_dtype, weights_digest

log = get_logger(__name__)

_MODULES = ("Transformer", "Pooling", "Normalize", "Dense", "LayerNorm")
_UNUSED = "pooler."  # prefix of weights that transformers adds at random if the folder has none; not used here
_CHARACTERS_PER_TOKEN = 64  # bounds the work of the tokenizer; no token of ordinary text is longer
_PROMPT_NAMES = {"query": ("query",), "passage": ("passage", "document")}


@dataclass(frozen=True)
class SentenceOptions:
    """How texts are embedded. `prompt` is put before them; None is the folder's own for `prefix`, query or passage.

    `dim` truncates vectors; None keeps all dimensions. `threads` sets torch's CPU threads for the whole process; None
    leaves torch's choice.
    """

    prefix: str = "query"
    prompt: str | None = None
    dim: int | None = None
    max_text_tokens: int = 8192
    batch_size: int = 16
    device: str = "auto"
    dtype: str = "auto"
    threads: int | None = None


class SentenceTransformersEmbedder(PartEmbedder):
    """Embeds texts with a sentence-transformers folder. One forward pass runs at a time."""

    supports_images = False
    late_fusion = LateFusion()

    def __init__(self, folder: Path, options: SentenceOptions) -> None:
        """Load the folder. Raises CheckpointError if it is invalid, ConfigurationError if the options do not fit it."""
        library = _library()
        if options.threads is not None:
            torch.set_num_threads(options.threads)
        self._options = options
        self.batch_size = options.batch_size
        device = resolve_device(options.device)
        transformers.logging.set_verbosity_error()  # every problem of a checkpoint is checked and reported here
        transformers.logging.disable_progress_bar()
        _check_folder(folder)
        try:
            self._model = library.SentenceTransformer(
                str(folder),
                device=str(device),
                trust_remote_code=False,
                local_files_only=True,
                truncate_dim=options.dim,
                model_kwargs={"dtype": resolve_dtype(options.dtype, device), "use_safetensors": True},
            ).eval()
        except Exception as error:  # raised by any of its libraries
            raise CheckpointError(
                f"{folder} does not load as a sentence-transformers folder: {_first_line(error)}"
            ) from error
        limit = self._model.max_seq_length
        self._model.max_seq_length = min(limit or options.max_text_tokens, options.max_text_tokens)
        self._prompt = self._prompt_of(options)
        self._digest = _digest(folder, self._model)
        self._lock = threading.Lock()  # Guards: the model; its tokenizer is not safe for threads.
        self._dim = int(self._encode(["dimensions"]).shape[1])
        if options.dim not in (None, self._dim):
            raise ConfigurationError(f"truncate_dim {options.dim} is more than this model's {self._dim} dimensions")

    @property
    def dim(self) -> int:
        """Dimensions of a vector."""
        return self._dim

    @property
    def fingerprint(self) -> str:
        """Identifies the weights and every setting that changes a vector."""
        return (
            f"sentence-transformers weights={self._digest} dim={self.dim} prompt={self._prompt!r}"
            f" max_text_tokens={self._model.max_seq_length}"
        )

    def prepare_text(self, text: str) -> ModelInput:
        """Return a text, truncated to what `max_text_tokens` can cover."""
        truncated = text[: self._options.max_text_tokens * _CHARACTERS_PER_TOKEN]
        return ModelInput(PartKind.TEXT, len(truncated), truncated)

    def prepare_image(self, image: ImagePart) -> ModelInput:
        """Raise NotImplementedError: `supports_images` is False."""
        raise NotImplementedError("a sentence-transformers folder embeds only text")

    def forward(self, inputs: Sequence[ModelInput], remaining_s: RemainingTime = no_deadline) -> FloatArray:
        """Return the vectors of texts, [len(inputs), dim], from one forward pass."""
        vectors = self._encode([model_input.content for model_input in inputs])
        return normalise(check_vectors(vectors, len(inputs), self.dim))

    def _encode(self, texts: Sequence[str]) -> FloatArray:
        with self._lock:
            vectors: FloatArray = self._model.encode(
                list(texts), prompt=self._prompt, batch_size=len(texts), show_progress_bar=False
            )
            return vectors

    def _prompt_of(self, options: SentenceOptions) -> str:
        if options.prompt is not None:
            return options.prompt
        prompts = self._model.prompts
        names = (*_PROMPT_NAMES[options.prefix], self._model.default_prompt_name)
        return next((str(prompts[name]) for name in names if prompts.get(name)), "")


def _library() -> Any:
    try:
        import sentence_transformers
    except ImportError as error:
        raise ConfigurationError(
            "sentence-transformers is not installed; pip install 'loraretriever[sentence-transformers]', "
            "or choose another --embedder"
        ) from error
    return sentence_transformers


def _check_folder(folder: Path) -> None:
    """Raise CheckpointError unless the folder has only supported modules, safetensors and all weights."""
    modules = _modules(folder)
    for module in modules:
        kind, path = str(module.get("type", "")), str(module.get("path", ""))
        if not kind.startswith("sentence_transformers.") or kind.rpartition(".")[2] not in _MODULES:
            raise CheckpointError(
                f"{folder / 'modules.json'} names a module {kind!r}; supported are {', '.join(_MODULES)} of "
                "sentence-transformers, not code in the folder"
            )
        module_folder = (folder / path).resolve()
        if not module_folder.is_relative_to(folder.resolve()):
            raise CheckpointError(f"{folder / 'modules.json'} points outside the folder: {path!r}")
        pickled = [*module_folder.glob("*.bin"), *module_folder.glob("*.pt")]
        if pickled and not any(module_folder.glob("*.safetensors")):
            raise CheckpointError(f"{pickled[0]} is a pickle, which is not supported; save the model as safetensors")
    _check_transformer(folder / str(modules[0].get("path", "")))


def _modules(folder: Path) -> list[dict[str, Any]]:
    path = folder / "modules.json"
    if not folder.is_dir():
        raise CheckpointError(f"there is no folder {str(folder)!r}; point --embedder-path at a downloaded model")
    try:
        modules = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise CheckpointError(
            f"{str(folder)!r} is not a sentence-transformers folder: 'modules.json' is missing; "
            "download the model again"
        ) from None
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path} cannot be read: {error}") from error
    if not isinstance(modules, list) or not modules or not all(isinstance(module, dict) for module in modules):
        raise CheckpointError(f"{path} must list the modules of the model")
    return modules


def _check_transformer(folder: Path) -> None:
    """Raise CheckpointError if weights are missing: the library would initialise them at random instead."""
    try:
        model, report = transformers.AutoModel.from_pretrained(
            str(folder), local_files_only=True, trust_remote_code=False, use_safetensors=True, output_loading_info=True
        )
    except Exception as error:  # raised by any of its libraries
        raise CheckpointError(f"{folder} does not load as a transformer: {_first_line(error)}") from error
    del model
    missing = sorted(name for name in report["missing_keys"] if not name.startswith(_UNUSED))
    if missing:
        shown = ", ".join(missing[:8])
        raise CheckpointError(f"{folder}: {len(missing)} tensor(s) are missing: {shown}; download the model again")
    if report["unexpected_keys"]:
        log.info("unused_tensors", names=sorted(report["unexpected_keys"])[:8])


def _digest(folder: Path, model: torch.nn.Module) -> str:
    """Return a digest of the weights and of the files that configure them."""
    used = [(name, tensor) for name, tensor in model.state_dict().items() if f".{_UNUSED}" not in name]
    digest = hashlib.sha256(weights_digest(used).encode())
    for path in sorted(path for path in folder.rglob("*") if path.suffix in (".json", ".txt", ".model")):
        digest.update(f"{path.relative_to(folder)}".encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()[:12]


def _first_line(error: Exception) -> str:
    return (str(error) or type(error).__name__).splitlines()[0][:300]
