"""jina-embeddings-v4 (Guenther et al., 2025): dense vectors of text and of images, from one Qwen2.5-VL with task LoRAs.

A text is prefixed by `Query: ` or `Passage: ` and pooled by the mean over all tokens. An image is the token sequence of
`IMAGE_PROMPT`, pooled by the mean from vision start to vision end, inclusive. Both are truncated, then normalised.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from tokenizers import Tokenizer
from torch import Tensor
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

from infra.contract.errors import CheckpointError, ConfigurationError, InternalError, InvalidArgumentError
from infra.contract.prompt import ImagePart
from infra.runtime.images import ImageLimits, decode_image
from retrieval_service.embedders.base import FloatArray, normalise
from retrieval_service.embedders.jina_checkpoint import load_checkpoint
from retrieval_service.embedders.jina_files import read_json
from retrieval_service.embedders.late_fusion import LateFusion
from retrieval_service.embedders.part_embedder import ModelInput, PartEmbedder, PartKind, RemainingTime, no_deadline
from retrieval_service.embedders.torch_model import resolve_device, resolve_dim, resolve_dtype

IMAGE_PROMPT = "<|im_start|>user\n<|vision_start|><|image_pad|><|vision_end|>Describe the image.<|im_end|>\n"
_CHARACTERS_PER_TOKEN = 64  # bounds the work of the tokenizer; no token of ordinary text is longer


class Task(StrEnum):
    """The task whose LoRA is applied."""

    RETRIEVAL = "retrieval"
    TEXT_MATCHING = "text-matching"
    CODE = "code"


class TextPrefix(StrEnum):
    """Prefix of texts."""

    QUERY = "query"
    PASSAGE = "passage"


@dataclass(frozen=True)
class JinaV4Options:
    """How prompts are embedded. `dim` None is the model's own; `device` and `dtype` "auto" choose by hardware.

    `max_image_pixels` applies after resizing; `limits` bound images before they are decoded. A forward pass takes at
    most `batch_size` inputs of at most `batch_tokens` tokens with padding. `threads` sets torch's CPU threads for the
    whole process; None leaves torch's choice.
    """

    task: Task = Task.RETRIEVAL
    prefix: TextPrefix = TextPrefix.QUERY
    dim: int | None = None
    max_image_pixels: int = 100_000
    max_text_tokens: int = 8192
    late_fusion: LateFusion = field(default_factory=LateFusion)
    limits: ImageLimits = field(default_factory=ImageLimits)
    batch_size: int = 16
    batch_tokens: int = 16_384
    device: str = "auto"
    dtype: str = "auto"
    threads: int | None = None


@dataclass(frozen=True)
class _Pixels:
    """An image's patches [n, patch] and its grid [1, 3]: frames, rows and columns of patches."""

    patches: Tensor
    grid: Tensor


class JinaV4Embedder(PartEmbedder):
    """Embeds with a model folder in the hub's layout. One forward pass runs at a time."""

    def __init__(self, folder: Path, options: JinaV4Options) -> None:
        """Load the folder. Raises CheckpointError if it is invalid, ConfigurationError if the options do not fit it."""
        if options.threads is not None:
            torch.set_num_threads(options.threads)
        self._options = options
        self.late_fusion, self.batch_size, self.batch_tokens = (
            options.late_fusion,
            options.batch_size,
            options.batch_tokens,
        )
        self._device = resolve_device(options.device)
        checkpoint = load_checkpoint(folder, options.task, resolve_dtype(options.dtype, self._device), self._device)
        self._model = checkpoint.model
        self._tokenizer = _tokenizer(folder)
        self._images = _image_processor(folder, options.max_image_pixels)
        self._image_prompt = self._encode_image_prompt(folder)
        # From here on texts come from callers: "<|im_start|>" in them must not become a special token.
        self._tokenizer.encode_special_tokens = True
        self._full_dim = self._model.config.text_config.hidden_size
        self._dim = resolve_dim(options.dim, self._full_dim, checkpoint.config.get("matryoshka_dims"))
        self._digest = checkpoint.digest
        # Guards: the model, whose modules keep per-pass state (rope_deltas).
        self._forward_lock = threading.Lock()

    @property
    def dim(self) -> int:
        """Dimensions of a vector."""
        return self._dim

    @property
    def fingerprint(self) -> str:
        """Identifies the weights and every setting that changes a vector."""
        options, late_fusion = self._options, self._options.late_fusion
        return (
            f"jina-embeddings-v4 weights={self._digest} task={options.task} prefix={self._prefix.strip(': ').lower()}"
            f" dim={self.dim} max_image_pixels={options.max_image_pixels} max_text_tokens={options.max_text_tokens}"
            f" text_weight={late_fusion.text_weight:g} image_weight={late_fusion.image_weight:g}"
            f" max_query_images={late_fusion.max_images}"
        )

    def prepare_text(self, text: str) -> ModelInput:
        """Return the token ids of the prefix and the text, truncated to `max_text_tokens`."""
        limit = self._options.max_text_tokens
        ids = self._tokenizer.encode(self._prefix + text[: limit * _CHARACTERS_PER_TOKEN]).ids[:limit]
        return ModelInput(PartKind.TEXT, len(ids), ids)

    def prepare_image(self, image: ImagePart) -> ModelInput:
        """Return the patches of an image. Raises InvalidArgumentError if it is broken, too large or too thin."""
        return self._preprocess(decode_image(image, self._options.limits))

    def embed_images(self, images: Sequence[Image.Image]) -> FloatArray:
        """Return the vector of each RGB image, [len(images), dim]."""
        return self.forward_all([self._preprocess(image) for image in images])

    def forward(self, inputs: Sequence[ModelInput], remaining_s: RemainingTime = no_deadline) -> FloatArray:
        """Return the vectors of inputs of one kind, [len(inputs), dim], from one forward pass."""
        contents = [model_input.content for model_input in inputs]
        return self._forward_texts(contents) if inputs[0].kind is PartKind.TEXT else self._forward_images(contents)

    def _forward_texts(self, texts: Sequence[Sequence[int]]) -> FloatArray:
        with self._exclusive():
            ids, mask = (tensor.to(self._device) for tensor in _padded(texts))
            hidden = self._model.language_model(input_ids=ids, attention_mask=mask, use_cache=False).last_hidden_state
            return self._pooled(hidden, mask)

    def _forward_images(self, images: Sequence[_Pixels]) -> FloatArray:
        """Embed one image per row: pooling takes the mean between the vision tokens of a row."""
        config = self._model.config
        with self._exclusive():
            ids, mask = (tensor.to(self._device) for tensor in _padded([self._image_ids(image) for image in images]))
            grids = torch.cat([image.grid for image in images]).to(self._device)
            positions, _ = self._model.get_rope_index(
                ids, mm_token_type_ids=(ids == config.image_token_id).int(), image_grid_thw=grids, attention_mask=mask
            )
            hidden = self._model(
                input_ids=ids,
                attention_mask=mask,
                position_ids=positions,
                pixel_values=torch.cat([image.patches for image in images]).to(self._device),
                image_grid_thw=grids,
                use_cache=False,
            ).last_hidden_state
            started = (ids == config.vision_start_token_id).cumsum(-1) > 0
            ended = (ids == config.vision_end_token_id).cumsum(-1) - (ids == config.vision_end_token_id).long() > 0
            return self._pooled(hidden, started & ~ended)

    @property
    def _prefix(self) -> str:
        if self._options.task is Task.TEXT_MATCHING:
            return "Query: "
        return "Query: " if self._options.prefix is TextPrefix.QUERY else "Passage: "

    def _pooled(self, hidden: Tensor, mask: Tensor) -> FloatArray:
        """Return the mean of `hidden` [N, T, D] over `mask` [N, T], truncated to `dim`, then normalised, [N, dim]."""
        weights = mask.unsqueeze(-1).to(torch.float32)
        mean = (hidden.float() * weights).sum(1) / weights.sum(1)
        if not mean.isfinite().all():
            raise InternalError("the embedder's activations overflow; run it with --dtype bfloat16 or float32")
        return normalise(mean[:, : self.dim].cpu().numpy())

    def _preprocess(self, image: Image.Image) -> ModelInput:
        try:
            batch = self._images(images=[image], return_tensors="pt")
        except ValueError as error:  # an aspect ratio over 200
            raise InvalidArgumentError("image", f"cannot be embedded: {error}") from error
        pixels = _Pixels(batch["pixel_values"], batch["image_grid_thw"])
        return ModelInput(PartKind.IMAGE, len(self._image_prompt) - 1 + self._visual_tokens(pixels), pixels)

    def _image_ids(self, image: _Pixels) -> list[int]:
        prompt, token = self._image_prompt, self._model.config.image_token_id
        pad = prompt.index(token)
        return [*prompt[:pad], *[token] * self._visual_tokens(image), *prompt[pad + 1 :]]

    def _visual_tokens(self, image: _Pixels) -> int:
        return len(image.patches) // int(self._images.merge_size) ** 2

    @contextmanager
    def _exclusive(self) -> Iterator[None]:
        with self._forward_lock, torch.inference_mode():
            yield

    def _encode_image_prompt(self, folder: Path) -> list[int]:
        config = self._model.config
        ids = list(self._tokenizer.encode(IMAGE_PROMPT).ids)
        for name in ("image_token_id", "vision_start_token_id", "vision_end_token_id"):
            if ids.count(getattr(config, name)) != 1:
                raise CheckpointError(
                    f"{folder}: tokenizer.json does not encode {IMAGE_PROMPT!r} with one {name}"
                    f" ({getattr(config, name)} in config.json); the two files do not belong to one model"
                )
        return ids


def _padded(rows: Sequence[Sequence[int]]) -> tuple[Tensor, Tensor]:
    """Return token ids and mask, [N, T], padded on the right, where the causal mask hides padding from real tokens."""
    width = max(map(len, rows))
    ids = torch.tensor([[*row, *[row[-1]] * (width - len(row))] for row in rows])
    mask = torch.tensor([[1] * len(row) + [0] * (width - len(row)) for row in rows])
    return ids, mask


def _tokenizer(folder: Path) -> Tokenizer:
    path = folder / "tokenizer.json"
    read_json(path, folder)
    try:
        tokenizer = Tokenizer.from_file(str(path))
    except Exception as error:  # tokenizers raises bare Exception
        raise CheckpointError(f"{path} is not a tokenizer: {error}") from error
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
