"""Qwen2-VL (2B, 7B, 72B Instruct) from its original folder."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import torch
from PIL.Image import Image
from torch import Tensor
from transformers import Qwen2VLConfig, Qwen2VLForConditionalGeneration
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

from generation_service.models.base import EncodedPrompt, ImageBudget, InputFormat, LoadOptions, ModelArchitecture
from generation_service.models.chat import ChatTokenizer, expand_images
from generation_service.models.decoder import Decoder, model_description
from generation_service.models.folder import eos_tokens, image_processor_settings
from generation_service.models.images import image_field_paths
from generation_service.models.modules import (
    architecture_of,
    build_without_weights,
    linear_layers,
    load_with_weights,
    parse_config,
)
from infra.contract.errors import CheckpointError, ConfigurationError, InvalidArgumentError
from infra.contract.prompt import Prompt

VISION, LANGUAGE = "model.visual", "model.language_model"
_RENAMED = (
    (re.compile(r"^(?:model\.)?visual\."), "model.visual."),
    (re.compile(r"^(?:model\.)?language_model\.(?:model\.)?(?=layers\.)"), "model.language_model."),
    (re.compile(r"^(?:model\.)?(?=layers\.)"), "model.language_model."),
)


class Qwen2VL(Decoder):
    """A loaded Qwen2-VL: the modules of transformers under our own forward pass.

    Positions have three axes, time, height and width (M-RoPE); text advances on all three at once.
    """

    def __init__(self, folder: Path, model: Any, architecture: ModelArchitecture, options: LoadOptions) -> None:
        self._chat = ChatTokenizer(folder, options.chat_template)
        self._processor = _image_processor(folder, options.max_pixels)
        _check_patches(folder, self._processor, model.config.vision_config)
        self._patches_per_token = self._processor.merge_size**2
        self._base = model.model
        self._image_token = int(model.config.image_token_id)
        description = model_description(
            model.config.model_type,
            model,
            architecture,
            options,
            token_characters=self._chat.longest_token,
            eos_tokens=eos_tokens(folder),
            position_axes=3,
        )
        super().__init__(model, model.model.language_model, description, canonical)

    def encode(self, prompt: Prompt, images: Iterable[Image], max_tokens: int | None = None) -> EncodedPrompt:
        """Encode `prompt`; an image becomes grid_h * grid_w / merge^2 tokens between vision start and end tokens."""
        patches = partial(self._patches, ImageBudget(max_tokens))
        batches = list(map(patches, image_field_paths(prompt), images))  # Unlike a loop variable, map holds no image.
        grids = [grid for _, grid in batches]
        runs = [[self._image_token] * (int(grid.prod()) // self._patches_per_token) for grid in grids]
        tokens = expand_images(self._chat.encode(prompt), self._image_token, runs)
        ids = torch.tensor([tokens], dtype=torch.long)
        kinds = (ids == self._image_token).int()
        stacked = torch.stack(grids) if grids else None
        positions, delta = self._base.get_rope_index(ids, mm_token_type_ids=kinds, image_grid_thw=stacked)
        return EncodedPrompt(
            tokens=ids[0],
            positions=positions[:, 0],
            position_delta=int(delta),
            image_tokens=sum(map(len, runs)),
            pixels=torch.cat([pixels for pixels, _ in batches]) if batches else None,
            grids=stacked,
        )

    def decode(self, tokens: Sequence[int]) -> str:
        """Return the text of `tokens` without special tokens."""
        return self._chat.decode(tokens)

    @property
    def image_token(self) -> int:
        """The placeholder token of a merged patch."""
        return self._image_token

    def embed_images(self, pixels: Tensor, grids: Tensor) -> Tensor:
        """Return the embeddings [merged patches, hidden] of patches [patches, 3 * 2 * size^2] from the vision tower."""
        return torch.cat(list(self._image_features(pixels, grids).pooler_output))

    def _image_features(self, pixels: Tensor, grids: Tensor) -> Any:
        device, dtype = self.description.device, self.description.dtype
        return self._base.get_image_features(pixels.to(device, dtype), grids.to(device), return_dict=True)

    def _patches(self, budget: ImageBudget, path: str, image: Image) -> tuple[Tensor, Tensor]:
        """Return an image's patches [grid_h * grid_w, 3 * 2 * size^2], in the model's dtype, and its grid [3]."""
        try:
            patches = self._processor.get_number_of_image_patches(image.height, image.width)
        except ValueError as error:
            raise InvalidArgumentError(f"{path}.image", f"{image.width}x{image.height} pixels: {error}") from error
        budget.take(patches // self._patches_per_token)
        batch = self._processor(images=[image], return_tensors="pt")
        return batch["pixel_values"].to(self.description.dtype), batch["image_grid_thw"][0]


class Qwen2VLFamily:
    """Reads checkpoints of model_type `qwen2_vl`."""

    model_type = "qwen2_vl"
    title: ClassVar[str] = "Qwen2-VL"
    config_class: ClassVar[Any] = Qwen2VLConfig
    model_class: ClassVar[Any] = Qwen2VLForConditionalGeneration
    loaded_class: ClassVar[type[Qwen2VL]] = Qwen2VL

    def describe(self, folder: Path) -> ModelArchitecture:
        """Return the architecture in `folder`; every linear layer except the head can be adapted."""
        config = parse_config(folder, self.config_class, self.title)
        return self._architecture(build_without_weights(folder, self.model_class, config, self.title))

    def input_format(self, folder: Path, options: LoadOptions) -> InputFormat:
        """Return the tokenizer, chat template and image limits of `folder`."""
        chat = ChatTokenizer(folder, options.chat_template)
        processor = _image_processor(folder, options.max_pixels)
        limits = {"min_pixels": processor.size["shortest_edge"], "max_pixels": processor.size["longest_edge"]}
        sizes = {"patch_size": processor.patch_size, "merge_size": processor.merge_size}
        return InputFormat(chat.name, len(chat), chat.largest_token, chat.template_source, limits | sizes)

    def load(self, folder: Path, options: LoadOptions) -> Qwen2VL:
        """Load `folder` into the classes of transformers. Raises CheckpointError unless every tensor binds."""
        config = parse_config(folder, self.config_class, self.title)
        model = load_with_weights(folder, self.model_class, config, options, self.title)
        return self.loaded_class(folder, model, self._architecture(model), options)

    def _architecture(self, model: Any) -> ModelArchitecture:
        return architecture_of(self.title, model, linear_layers(model, LANGUAGE, VISION), (VISION,), canonical)


def canonical(name: str) -> str:
    """Return the module path of an adapter's key.

    Files saved before transformers 4.52 use `model.layers.` and `visual.`, later ones `model.language_model.layers.`
    and `model.visual.`.
    """
    plain = name.removeprefix("base_model.model.")
    for pattern, replacement in _RENAMED:
        renamed, count = pattern.subn(replacement, plain)
        if count:
            return renamed
    return plain


def _check_patches(folder: Path, processor: Any, vision: Any) -> None:
    """Raise CheckpointError unless images are cut into the patches that the vision tower reads."""
    cut = (processor.patch_size, processor.temporal_patch_size, processor.merge_size)
    read = (vision.patch_size, vision.temporal_patch_size, vision.spatial_merge_size)
    if cut != read:
        raise CheckpointError(
            f"{folder}: preprocessor_config.json cuts images by patch, temporal patch and merge size {cut}, and "
            f"config.json describes a vision tower for {read}: use both files of the same model",
            path=str(folder),
        )
    smallest, largest = processor.size["shortest_edge"], processor.size["longest_edge"]
    if smallest > largest:
        raise CheckpointError(
            f"{folder}: preprocessor_config.json asks for {smallest} pixels at least and {largest} at most: use the "
            "file of the base model",
            path=str(folder),
        )


def _image_processor(folder: Path, max_pixels: int | None) -> Any:
    path, _ = image_processor_settings(folder)
    try:
        processor = Qwen2VLImageProcessorPil.from_pretrained(folder, local_files_only=True)
    except Exception as error:  # transformers validates with the exceptions of several libraries.
        raise CheckpointError(
            f"{path} does not define how images are cut into patches ({error}): download it again", path=str(path)
        ) from error
    if max_pixels is not None:
        smallest = processor.size["shortest_edge"]
        if max_pixels < smallest:
            raise ConfigurationError(
                f"max_pixels is {max_pixels}, below the {smallest} pixels that this model needs per image"
            )
        processor.size = {"shortest_edge": smallest, "longest_edge": max_pixels}
    return processor
