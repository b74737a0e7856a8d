"""The two layouts of InternVL folders: the original one and that of transformers."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from transformers import InternVLConfig, InternVLForConditionalGeneration

from generation_service.models.base import InputFormat, LoadOptions, ModelArchitecture, ModelDescription
from generation_service.models.chat import ChatTokenizer
from generation_service.models.decoder import model_description
from generation_service.models.folder import eos_tokens, image_processor_settings
from generation_service.models.internvl.config import (
    LANGUAGE_MODEL_TYPES,
    SUPPORTED,
    OriginalConfig,
    language_model_reason,
    max_positions,
    read_original,
)
from generation_service.models.internvl.conversation import IMAGE_END, IMAGE_START, IMAGE_TOKEN
from generation_service.models.internvl.model import Chat, InputReader, InternVL
from generation_service.models.internvl.names import LANGUAGE, PROJECTOR, VISION, OriginalNames
from generation_service.models.internvl.tiles import Tiling
from generation_service.models.internvl.tokenizer import OriginalChat
from generation_service.models.internvl.weights import bind_weights
from generation_service.models.modules import (
    architecture_of,
    build_without_weights,
    linear_layers,
    load_with_weights,
    parse_config,
)
from infra.contract.errors import CheckpointError, ConfigurationError

_TITLE = "InternVL"


class InternVLChatFamily:
    """Reads original folders, of model_type `internvl_chat`."""

    model_type = "internvl_chat"

    def describe(self, folder: Path) -> ModelArchitecture:
        """Return the architecture in `folder`; every linear layer except the head can be adapted."""
        config = read_original(folder)
        return _architecture(
            build_without_weights(folder, InternVLForConditionalGeneration, config.model, _TITLE), config.dtype
        )

    def input_format(self, folder: Path, options: LoadOptions) -> InputFormat:
        """Return the tokenizer, conversation template and tiling of `folder`."""
        config = read_original(folder)
        chat = _original_chat(folder, config, options)
        limits = _limits(_tiling(config, options), config.tile_tokens)
        return InputFormat(chat.name, len(chat), chat.largest_token, f"{config.template}, by name", limits)

    def load(self, folder: Path, options: LoadOptions) -> InternVL:
        """Load `folder` tensor by tensor into the classes of transformers.

        Raises CheckpointError unless every tensor binds.
        """
        config = read_original(folder)
        chat = _original_chat(folder, config, options)
        tiling = _tiling(config, options)
        model = build_without_weights(folder, InternVLForConditionalGeneration, config.model, _TITLE)
        architecture = _architecture(model, config.dtype)
        bind_weights(folder, model, architecture.canonical, options.dtype or config.dtype, options.device)
        _compute_rope(model, options)
        reader = InputReader(chat, tiling, chat.special[IMAGE_TOKEN], config.tile_tokens)
        ends = eos_tokens(folder) | {chat.special[chat.template.end]}
        return InternVL(
            model.eval(), _description(model, architecture, chat, ends, options), architecture.canonical, reader
        )


class InternVLFamily:
    """Reads folders in the layout of transformers, of model_type `internvl`."""

    model_type = "internvl"

    def describe(self, folder: Path) -> ModelArchitecture:
        """Return the architecture in `folder`; every linear layer except the head can be adapted."""
        config = _native_config(folder)
        return _architecture(build_without_weights(folder, InternVLForConditionalGeneration, config, _TITLE))

    def input_format(self, folder: Path, options: LoadOptions) -> InputFormat:
        """Return the tokenizer, chat template and image limits of `folder`."""
        chat = ChatTokenizer(folder, options.chat_template)
        limits = _limits(_native_tiling(folder, options), _native_config(folder).image_seq_length)
        return InputFormat(chat.name, len(chat), chat.largest_token, chat.template_source, limits)

    def load(self, folder: Path, options: LoadOptions) -> InternVL:
        """Load `folder` into the classes of transformers. Raises CheckpointError unless every tensor binds."""
        config = _native_config(folder)
        chat = ChatTokenizer(folder, options.chat_template)
        tiling = _native_tiling(folder, options)
        _check_tiles(folder, tiling, config)
        image_marks = [(_special_token(folder, chat, mark),) for mark in (IMAGE_START, IMAGE_END)]
        model = load_with_weights(folder, InternVLForConditionalGeneration, config, options, _TITLE)
        architecture = _architecture(model)
        reader = InputReader(chat, tiling, config.image_token_id, config.image_seq_length, *image_marks)
        description = _description(model, architecture, chat, eos_tokens(folder), options)
        return InternVL(model, description, architecture.canonical, reader)


def _native_config(folder: Path) -> Any:
    config = parse_config(folder, InternVLConfig, _TITLE)
    text = config.text_config
    features = (config.vision_feature_layer, config.vision_feature_select_strategy)
    reasons = []
    if text.model_type not in LANGUAGE_MODEL_TYPES:
        reasons.append(language_model_reason(text.model_type))
    if features != (-1, "default"):
        reasons.append(
            f"its vision features come from layer {features[0]} ({features[1]}), not from the last one (default)"
        )
    if reasons:
        raise CheckpointError(
            f"{folder} is an InternVL that this version does not serve ({'; '.join(reasons)}). It serves {SUPPORTED}",
            path=str(folder),
        )
    if text.rope_parameters["rope_type"] == "dynamic":
        text.rope_parameters = {"rope_type": "default", "rope_theta": text.rope_parameters["rope_theta"]}
    return config


def _native_tiling(folder: Path, options: LoadOptions) -> Tiling:
    path, processor = image_processor_settings(folder)
    try:
        tiling = Tiling(
            size=int(processor["size"]["height"]),
            min_tiles=int(processor.get("min_patches", 1)),
            max_tiles=int(processor.get("max_patches", 12)),
            mean=tuple(processor["image_mean"]),
            std=tuple(processor["image_std"]),
        )
    except (KeyError, TypeError, ValueError) as error:
        raise CheckpointError(
            f"{path} does not define how images are tiled ({error!r}): download it again", path=str(path)
        ) from error
    if not 1 <= tiling.min_tiles <= tiling.max_tiles:
        raise CheckpointError(
            f"{path} asks for {tiling.min_tiles} tiles at least and {tiling.max_tiles} at most: download it again",
            path=str(path),
        )
    return tiling.with_max_tiles(options.max_tiles)


def _check_tiles(folder: Path, tiling: Tiling, config: Any) -> None:
    """Raise CheckpointError unless images are cut into tiles of the size and tokens that config.json describes."""
    vision = config.vision_config
    height, width = vision.image_size
    patches = (height // vision.patch_size[0]) * (width // vision.patch_size[1])
    tokens = int(patches * config.downsample_ratio**2)
    if (height, width) != (tiling.size, tiling.size):
        raise CheckpointError(
            f"{folder}: preprocessor_config.json cuts images into tiles of {tiling.size} pixels, and config.json "
            f"describes a vision tower for {height}x{width}: use both files of the same model",
            path=str(folder),
        )
    if tokens != config.image_seq_length:
        raise CheckpointError(
            f"{folder}: config.json gives a tile {config.image_seq_length} tokens (image_seq_length), and its vision "
            f"tower makes {tokens} of one: use the config.json of the base model",
            path=str(folder),
        )


def _original_chat(folder: Path, config: OriginalConfig, options: LoadOptions) -> OriginalChat:
    if options.chat_template is not None:
        raise ConfigurationError(
            f"--chat-template {options.chat_template}: original InternVL folders name their conversation template in "
            "config.json; omit the option"
        )
    return OriginalChat(folder, config.template, options.image_suffix)


def _tiling(config: OriginalConfig, options: LoadOptions) -> Tiling:
    return Tiling(config.image_size, config.min_tiles, config.max_tiles, config.thumbnail).with_max_tiles(
        options.max_tiles
    )


def _limits(tiling: Tiling, tile_tokens: int) -> dict[str, int]:
    return {
        "tile_size": tiling.size,
        "min_tiles": tiling.min_tiles,
        "max_tiles": tiling.max_tiles,
        "tokens_per_tile": tile_tokens,
    }


def _special_token(folder: Path, chat: ChatTokenizer, token: str) -> int:
    if token not in chat.special:
        raise CheckpointError(
            f"{folder}: the tokenizer has no special token {token}: give the complete folder, tokenizer.json included",
            path=str(folder),
        )
    return chat.special[token]


def _architecture(model: Any, dtype: torch.dtype | None = None) -> ModelArchitecture:
    text = model.config.text_config
    names = OriginalNames(
        heads=text.num_attention_heads,
        kv_heads=text.num_key_value_heads,
        head_dim=getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads,
        vision_width=model.config.vision_config.hidden_size,
    )
    targets = linear_layers(model, LANGUAGE, VISION, PROJECTOR)
    architecture = architecture_of(_TITLE, model, targets, (VISION, PROJECTOR), names.canonical)
    return replace(architecture, dtype=dtype or architecture.dtype, max_positions=max_positions(text))


def _description(
    model: Any, architecture: ModelArchitecture, chat: Chat, ends: frozenset[int], options: LoadOptions
) -> ModelDescription:
    return model_description(
        InternVLFamily.model_type, model, architecture, options, token_characters=chat.longest_token, eos_tokens=ends
    )


def _compute_rope(model: Any, options: LoadOptions) -> None:
    """Compute the RoPE frequencies, the only state of the model that no file contains."""
    language = model.model.language_model
    language.rotary_emb = type(language.rotary_emb)(config=model.config.text_config).to(options.device)
