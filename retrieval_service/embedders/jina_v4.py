"""jina-embeddings-v4 (Guenther et al., 2025): dense vectors of text and of images, from one Qwen2.5-VL with task LoRAs.

Text is `Query: ` or `Passage: ` before it, averaged over all tokens. An image is the token sequence of `IMAGE_PROMPT`,
averaged from the start to the end of the vision tokens, both included. Either is cut to `dim` and brought to length 1.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from tokenizers import Tokenizer
from torch import Tensor
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

from infra.contract.errors import CheckpointError, ConfigurationError, InternalError, InvalidArgumentError
from infra.contract.errors import field as error_field
from infra.contract.prompt import ImagePart, Prompt
from infra.runtime.images import ImageLimits, decode_image
from retrieval_service.embedders.base import FloatArray, LateFusion, normalise
from retrieval_service.embedders.jina_checkpoint import load_checkpoint
from retrieval_service.embedders.jina_files import read_json

IMAGE_PROMPT = "<|im_start|>user\n<|vision_start|><|image_pad|><|vision_end|>Describe the image.<|im_end|>\n"
_CHARACTERS_PER_TOKEN = 64  # a bound on the tokenizer's work: no token of ordinary text is longer


class Task(StrEnum):
    """The task whose LoRA is applied."""

    RETRIEVAL = "retrieval"
    TEXT_MATCHING = "text-matching"
    CODE = "code"


class TextPrefix(StrEnum):
    """What a text is announced as."""

    QUERY = "query"
    PASSAGE = "passage"


@dataclass(frozen=True)
class JinaV4Options:
    """How prompts are embedded. `dim` None is the model's own; `device` and `dtype` "auto" pick what is there.

    `max_image_pixels` is after resizing; `limits` bound images before they are decoded. `batch_size` is rows a forward;
    `threads` are the CPU threads of this process's torch, None is its own choice.
    """

    task: Task = Task.RETRIEVAL
    prefix: TextPrefix = TextPrefix.QUERY
    dim: int | None = None
    max_image_pixels: int = 100_000
    max_text_tokens: int = 8192
    late_fusion: LateFusion = field(default_factory=LateFusion)
    limits: ImageLimits = field(default_factory=ImageLimits)
    batch_size: int = 16
    device: str = "auto"
    dtype: str = "auto"
    threads: int | None = None


class JinaV4Embedder:
    """The embedder of a folder in the hub's layout. One forward pass runs at a time."""

    def __init__(self, folder: Path, options: JinaV4Options) -> None:
        """Load the folder. Raises CheckpointError for the folder, ConfigurationError for options that do not fit it."""
        if options.threads is not None:
            torch.set_num_threads(options.threads)
        self._options = options
        self._device = _device(options.device)
        checkpoint = load_checkpoint(folder, options.task, _dtype(options.dtype, self._device), self._device)
        self._model = checkpoint.model
        self._tokenizer = _tokenizer(folder)
        self._images = _image_processor(folder, options.max_image_pixels)
        self._image_prompt = self._encode_image_prompt(folder)
        self._tokenizer.encode_special_tokens = True  # from here on texts are the callers', never markup
        self._full_dim = self._model.config.text_config.hidden_size
        self._dim = _dim(options.dim, self._full_dim, checkpoint.config.get("matryoshka_dims"))
        self._digest = checkpoint.digest
        self._forward_lock = threading.Lock()

    @property
    def dim(self) -> int:
        """Dimensions of a vector."""
        return self._dim

    @property
    def fingerprint(self) -> str:
        """Names the weights and every setting that changes a vector."""
        options, late_fusion = self._options, self._options.late_fusion
        return (
            f"jina-embeddings-v4 weights={self._digest} task={options.task} prefix={self._prefix.strip(': ').lower()}"
            f" dim={self.dim} max_image_pixels={options.max_image_pixels} max_text_tokens={options.max_text_tokens}"
            f" text_weight={late_fusion.text_weight:g} image_weight={late_fusion.image_weight:g}"
            f" max_query_images={late_fusion.max_images}"
        )

    def embed(self, prompts: Sequence[Prompt]) -> FloatArray:
        """Return one vector a prompt, [len(prompts), dim]: its texts and images embedded apart, then combined."""
        late_fusion = self._options.late_fusion
        texts, images, owners = [], [], []
        for index, prompt in enumerate(prompts):
            with error_field(f"[{index}]"):
                text, wanted = prompt.user_text, late_fusion.max_images
                if not text and not (prompt.images and wanted):
                    raise InvalidArgumentError("messages", "there is no text but placeholders, and no image to embed")
                decoded = self._decoded(prompt, wanted if late_fusion.image_weight or not text else 0)
            texts.append(text)
            images += decoded
            owners += [index] * len(decoded)
        text_vectors = iter(self.embed_texts([text for text in texts if text]))
        image_vectors, owner = self._embed_pixels(images), np.array(owners, dtype=np.int64)
        combined = [
            late_fusion.combine(next(text_vectors) if text else None, image_vectors[owner == index])
            for index, text in enumerate(texts)
        ]
        return np.stack(combined) if combined else np.empty((0, self.dim), np.float32)

    def embed_texts(self, texts: Sequence[str]) -> FloatArray:
        """Return the vector of each text, [len(texts), dim]."""
        limit = self._options.max_text_tokens
        rows = [
            self._tokenizer.encode(self._prefix + text[: limit * _CHARACTERS_PER_TOKEN]).ids[:limit] for text in texts
        ]
        vectors = np.empty((len(rows), self.dim), np.float32)
        for chosen in self._batches([len(row) for row in rows]):
            ids, mask = _padded([rows[index] for index in chosen])
            with self._forward():
                hidden = self._model.language_model(
                    input_ids=ids.to(self._device), attention_mask=mask.to(self._device), use_cache=False
                ).last_hidden_state
                vectors[chosen] = self._pooled(hidden, mask.to(self._device))
        return vectors

    def embed_images(self, images: Sequence[Image.Image]) -> FloatArray:
        """Return the vector of each RGB image, [len(images), dim]."""
        return self._embed_pixels([self._pixels(image) for image in images])

    def _embed_pixels(self, images: Sequence[tuple[Tensor, Tensor]]) -> FloatArray:
        """Embed images as (patches [n, patch], grid [1, 3]), one a row: pooling needs each image in its own."""
        config, merged = self._model.config, self._images.merge_size**2
        prompt = self._image_prompt
        pad = prompt.index(config.image_token_id)
        rows = [
            [*prompt[:pad], *[config.image_token_id] * (len(patches) // merged), *prompt[pad + 1 :]]
            for patches, _ in images
        ]
        vectors = np.empty((len(rows), self.dim), np.float32)
        for chosen in self._batches([len(row) for row in rows]):
            ids, mask = (tensor.to(self._device) for tensor in _padded([rows[index] for index in chosen]))
            grids = torch.cat([images[index][1] for index in chosen]).to(self._device)
            patches = torch.cat([images[index][0] for index in chosen]).to(self._device)
            with self._forward():
                positions, _ = self._model.get_rope_index(
                    ids,
                    mm_token_type_ids=(ids == config.image_token_id).int(),
                    image_grid_thw=grids,
                    attention_mask=mask,
                )
                hidden = self._model(
                    input_ids=ids,
                    attention_mask=mask,
                    position_ids=positions,
                    pixel_values=patches,
                    image_grid_thw=grids,
                    use_cache=False,
                ).last_hidden_state
                started = (ids == config.vision_start_token_id).cumsum(-1) > 0
                ended = (ids == config.vision_end_token_id).cumsum(-1) - (ids == config.vision_end_token_id).long() > 0
                vectors[chosen] = self._pooled(hidden, started & ~ended)
        return vectors

    @property
    def _prefix(self) -> str:
        if self._options.task is Task.TEXT_MATCHING:
            return "Query: "
        return "Query: " if self._options.prefix is TextPrefix.QUERY else "Passage: "

    def _pooled(self, hidden: Tensor, mask: Tensor) -> FloatArray:
        """Mean of `hidden` [N, T, D] where `mask` [N, T], cut to `dim`, of length 1."""
        chosen = mask.unsqueeze(-1).to(torch.float32)
        mean = (hidden.float() * chosen).sum(1) / chosen.sum(1)
        if not mean.isfinite().all():
            raise InternalError("the embedder's numbers overflow; run it with --dtype bfloat16 or float32")
        return normalise(mean[:, : self.dim].cpu().numpy())

    def _batches(self, lengths: Sequence[int]) -> Iterator[list[int]]:
        """Yield the rows of each forward pass, rows of like length together."""
        order = sorted(range(len(lengths)), key=lengths.__getitem__)
        size = self._options.batch_size
        yield from (order[start : start + size] for start in range(0, len(order), size))

    def _decoded(self, prompt: Prompt, count: int) -> list[tuple[Tensor, Tensor]]:
        """Return patches and grid of each of the prompt's first `count` images."""
        placed = [
            (f"messages[{turn}].parts[{index}]", part)
            for turn, message in enumerate(prompt.messages)
            for index, part in enumerate(message.parts)
            if isinstance(part, ImagePart)
        ]
        decoded = []
        for path, part in placed[:count]:
            with error_field(path):
                decoded.append(self._pixels(decode_image(part, self._options.limits)))
        return decoded

    def _pixels(self, image: Image.Image) -> tuple[Tensor, Tensor]:
        """Return the image's patches [n, patch], and its grid [1, 3] of frames, rows and columns of patches."""
        try:
            batch = self._images(images=[image], return_tensors="pt")
        except ValueError as error:  # an aspect ratio over 200
            raise InvalidArgumentError("image", f"cannot be embedded: {error}") from error
        return batch["pixel_values"], batch["image_grid_thw"]

    @contextmanager
    def _forward(self) -> Iterator[None]:
        with self._forward_lock, torch.inference_mode():
            yield

    def _encode_image_prompt(self, folder: Path) -> list[int]:
        config = self._model.config
        ids = list(self._tokenizer.encode(IMAGE_PROMPT).ids)
        for name in ("image_token_id", "vision_start_token_id", "vision_end_token_id"):
            if ids.count(getattr(config, name)) != 1:
                raise CheckpointError(
                    f"{folder}: tokenizer.json does not encode {IMAGE_PROMPT!r} with one {name}"
                    f" ({getattr(config, name)} in config.json); the two files are not of one model"
                )
        return ids


def _padded(rows: Sequence[Sequence[int]]) -> tuple[Tensor, Tensor]:
    """Return token ids and mask, [N, T], padded on the right: the causal mask keeps padding out of every real token."""
    width = max(map(len, rows))
    ids = torch.tensor([[*row, *[row[-1]] * (width - len(row))] for row in rows])
    mask = torch.tensor([[1] * len(row) + [0] * (width - len(row)) for row in rows])
    return ids, mask


def _dim(wanted: int | None, full: int, allowed: Sequence[int] | None) -> int:
    dims = sorted({*(allowed or ()), full})
    if wanted is None:
        return full
    if wanted not in dims:
        raise ConfigurationError(f"truncate_dim {wanted} is none of this model's: {', '.join(map(str, dims))}")
    return wanted


def _device(name: str) -> torch.device:
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        return torch.empty(0, device=name).device
    except (RuntimeError, AssertionError) as error:
        raise ConfigurationError(f"device {name!r} is not there: {str(error).splitlines()[0]}") from error


def _dtype(name: str, device: torch.device) -> torch.dtype:
    if name == "auto":
        return torch.float32 if device.type == "cpu" else torch.bfloat16
    dtypes = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
    if name not in dtypes:
        raise ConfigurationError(f"dtype {name!r} is none of auto, {', '.join(dtypes)}")
    return dtypes[name]


def _tokenizer(folder: Path) -> Tokenizer:
    path = folder / "tokenizer.json"
    read_json(path, folder)
    try:
        tokenizer = Tokenizer.from_file(str(path))
    except Exception as error:  # tokenizers raises bare Exception
        raise CheckpointError(f"{path} is no tokenizer: {error}") from error
    tokenizer.no_padding()
    tokenizer.no_truncation()
    return tokenizer


def _image_processor(folder: Path, max_pixels: int) -> Any:
    config = read_json(folder / "preprocessor_config.json", folder)
    known = ("patch_size", "temporal_patch_size", "merge_size", "image_mean", "image_std", "rescale_factor", "resample")
    smallest = config.get("min_pixels") or (config.get("size") or {}).get("shortest_edge") or 56 * 56
    if max_pixels < smallest:
        raise ConfigurationError(f"max_image_pixels {max_pixels} is below this model's smallest image, {smallest}")
    return Qwen2VLImageProcessorPil(
        size={"shortest_edge": smallest, "longest_edge": max_pixels},
        **{key: config[key] for key in known if key in config},
    )
