"""The two layouts of InternVL folders: the original one, and transformers' own."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from transformers import InternVLConfig, InternVLForConditionalGeneration

from generation_service.models.base import InputFormat, LoadOptions, ModelDescription, ModelOutline
from generation_service.models.chat import ChatTokenizer
from generation_service.models.decoder import described
from generation_service.models.folder import eos_tokens, read_json
from generation_service.models.internvl.config import (
    LANGUAGE_MODEL_TYPES,
    SUPPORTED,
    OriginalConfig,
    max_positions,
    read_original,
)
from generation_service.models.internvl.conversation import IMAGE_END, IMAGE_START, IMAGE_TOKEN
from generation_service.models.internvl.model import Chat, InputReader, InternVL
from generation_service.models.internvl.names import LANGUAGE, PROJECTOR, VISION, OriginalNames
from generation_service.models.internvl.tiles import Tiling
from generation_service.models.internvl.tokenizer import OriginalChat
from generation_service.models.internvl.weights import bind_weights
from generation_service.models.modules import linear_layers, outline, parse_config, with_weights, without_weights
from infra.contract.errors import CheckpointError

_TITLE = "InternVL"


class InternVLChatFamily:
    """Reads original folders, whose config.json says `internvl_chat`."""

    model_type = "internvl_chat"

    def describe(self, folder: Path) -> ModelOutline:
        """Return the shape of the model in `folder`; every linear layer but the head can be adapted."""
        config = read_original(folder)
        return _outline(without_weights(folder, InternVLForConditionalGeneration, config.model, _TITLE), config.dtype)

    def inputs(self, folder: Path, options: LoadOptions) -> InputFormat:
        """Return what tokenizer, conversation template and tiling of `folder` are."""
        config = read_original(folder)
        chat = OriginalChat(folder, config.template, options.image_suffix)
        return InputFormat(
            chat.name, len(chat), f"{config.template}, by name", _limits(_tiling(config, options), config.tile_tokens)
        )

    def load(self, folder: Path, options: LoadOptions) -> InternVL:
        """Load `folder` onto transformers' classes, a tensor at a time; every tensor binds or CheckpointError."""
        config = read_original(folder)
        chat = OriginalChat(folder, config.template, options.image_suffix)
        tiling = _tiling(config, options)
        model = without_weights(folder, InternVLForConditionalGeneration, config.model, _TITLE)
        shape = _outline(model, config.dtype)
        _check_vocabulary(folder, chat, shape)
        bind_weights(folder, model, shape.canonical, options.dtype or config.dtype, options.device)
        _with_rotations(model, options)
        reader = InputReader(chat, tiling, chat.special[IMAGE_TOKEN], config.tile_tokens)
        ends = eos_tokens(folder) | {chat.special[chat.form.end]}
        return InternVL(model.eval(), _description(model, shape, chat, ends, options), shape.canonical, reader)


class InternVLFamily:
    """Reads folders in transformers' own layout, whose config.json says `internvl`."""

    model_type = "internvl"

    def describe(self, folder: Path) -> ModelOutline:
        """Return the shape of the model in `folder`; every linear layer but the head can be adapted."""
        config = _native_config(folder)
        return _outline(without_weights(folder, InternVLForConditionalGeneration, config, _TITLE))

    def inputs(self, folder: Path, options: LoadOptions) -> InputFormat:
        """Return what tokenizer, chat template and preprocessor_config.json of `folder` say."""
        chat = ChatTokenizer(folder)
        limits = _limits(_native_tiling(folder, options), _native_config(folder).image_seq_length)
        return InputFormat(chat.name, len(chat), chat.template_source, limits)

    def load(self, folder: Path, options: LoadOptions) -> InternVL:
        """Load `folder` onto transformers' classes; every tensor binds or CheckpointError."""
        config = _native_config(folder)
        chat = ChatTokenizer(folder)
        tiling = _native_tiling(folder, options)
        marks = [(_marker(folder, chat, mark),) for mark in (IMAGE_START, IMAGE_END)]
        model = with_weights(folder, InternVLForConditionalGeneration, config, options, _TITLE)
        shape = _outline(model)
        reader = InputReader(chat, tiling, config.image_token_id, config.image_seq_length, *marks)
        description = _description(model, shape, chat, eos_tokens(folder), options)
        return InternVL(model, description, shape.canonical, reader)


def _native_config(folder: Path) -> Any:
    config = parse_config(folder, InternVLConfig, _TITLE)
    text = config.text_config
    seen = (config.vision_feature_layer, config.vision_feature_select_strategy)
    reasons = []
    if text.model_type not in LANGUAGE_MODEL_TYPES:
        reasons.append(f"its language model is {text.model_type!r}")
    if seen != (-1, "default"):
        reasons.append(f"its vision features are those of layer {seen[0]}, {seen[1]}, not of the last, default")
    if reasons:
        raise CheckpointError(
            f"{folder} is an InternVL that this version does not serve ({'; '.join(reasons)}). It serves {SUPPORTED}",
            path=str(folder),
        )
    if text.rope_parameters["rope_type"] == "dynamic":
        text.rope_parameters = {"rope_type": "default", "rope_theta": text.rope_parameters["rope_theta"]}
    return config


def _native_tiling(folder: Path, options: LoadOptions) -> Tiling:
    path = folder / "preprocessor_config.json"
    processor = read_json(path)
    try:
        tiling = Tiling(
            size=int(processor["size"]["height"]),
            least=int(processor.get("min_patches", 1)),
            most=int(processor.get("max_patches", 12)),
            mean=tuple(processor["image_mean"]),
            deviation=tuple(processor["image_std"]),
        )
    except (KeyError, TypeError, ValueError) as error:
        raise CheckpointError(
            f"{path} does not say how images are tiled ({error!r}): download it again", path=str(path)
        ) from error
    return tiling.at_most(options.max_tiles)


def _tiling(config: OriginalConfig, options: LoadOptions) -> Tiling:
    return Tiling(config.image_size, config.min_tiles, config.max_tiles, config.thumbnail).at_most(options.max_tiles)


def _limits(tiling: Tiling, tile_tokens: int) -> dict[str, int]:
    return {
        "tile_size": tiling.size,
        "min_tiles": tiling.least,
        "max_tiles": tiling.most,
        "tokens_per_tile": tile_tokens,
    }


def _check_vocabulary(folder: Path, chat: OriginalChat, shape: ModelOutline) -> None:
    largest = max(chat.special.values())
    if largest >= shape.vocab_size:
        raise CheckpointError(
            f"{folder}: the tokenizer goes up to token {largest}, and config.json has {shape.vocab_size} tokens: "
            "take tokenizer and weights from one model",
            path=str(folder),
        )


def _marker(folder: Path, chat: ChatTokenizer, token: str) -> int:
    if token not in chat.special:
        raise CheckpointError(
            f"{folder}: the tokenizer has no special token {token}: give the complete folder, tokenizer.json included",
            path=str(folder),
        )
    return chat.special[token]


def _outline(model: Any, dtype: torch.dtype | None = None) -> ModelOutline:
    text = model.config.text_config
    names = OriginalNames(
        heads=text.num_attention_heads,
        kv_heads=text.num_key_value_heads,
        head_dim=getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads,
        vision_width=model.config.vision_config.hidden_size,
    )
    targets = linear_layers(model, LANGUAGE, VISION, PROJECTOR)
    found = outline(_TITLE, model, targets, (VISION, PROJECTOR), names.canonical)
    return replace(found, dtype=dtype or found.dtype, max_positions=max_positions(text))


def _description(
    model: Any, shape: ModelOutline, chat: Chat, ends: frozenset[int], options: LoadOptions
) -> ModelDescription:
    return described(
        InternVLFamily.model_type, model, shape, options, token_characters=chat.longest_token, eos_tokens=ends
    )


def _with_rotations(model: Any, options: LoadOptions) -> None:
    """Compute the frequencies of the rotations, the one state of the model that no file holds."""
    language = model.model.language_model
    language.rotary_emb = type(language.rotary_emb)(config=model.config.text_config).to(options.device)
