"""Check a base model's folder by loading it without its weights and encoding prompts with it.

`inspect` reports what this check finds, and the server runs it before it reads weights, so that both accept the same
folders with the same messages.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from io import BytesIO
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor
from transformers.utils import logging as transformers_logging

from generation_service.models.base import BaseModel, EncodedPrompt, Family, InputFormat, LoadOptions, ModelArchitecture
from generation_service.models.folder import check_readable, read_config
from infra.contract.errors import CheckpointError, InvalidArgumentError, LoraRetrieverError
from infra.contract.prompt import ImagePart, Message, Prompt, Role, TextPart

_TEXT = "What is the capital of France? 12 × 3, naïve, 你好, 🙂"
_IMAGE_SIZE = (160, 96)
_QUESTION = Prompt.of(_TEXT)
_OPTIONAL = {
    "a system message": Prompt(
        (Message(Role.SYSTEM, (TextPart("Be brief."),)), Message(Role.USER, (TextPart(_TEXT),)))
    ),
    "several turns": Prompt(
        (
            Message(Role.USER, (TextPart(_TEXT),)),
            Message(Role.ASSISTANT, (TextPart("Paris."),)),
            Message(Role.USER, (TextPart("Why?"),)),
        )
    ),
}
"""Prompts that a chat template may reject: each request with one is then refused, and others are served."""
_LONGEST_REASON = 300  # Characters of a library's message, which may list a whole config.


@dataclass(frozen=True)
class CheckedBaseModel:
    """A folder that can be served. `model` is on the meta device: it encodes prompts and has no weights.

    `warnings` name what a server of this folder refuses, or does differently from what its user may expect.
    """

    model: BaseModel
    input_format: InputFormat
    warnings: tuple[str, ...]


def check_base_model(family: Family, folder: Path, options: LoadOptions) -> CheckedBaseModel:
    """Load `folder` without its weights, encode prompts with and without an image, and run the layers on shapes.

    Reads no values of weights. Raises CheckpointError for a folder that cannot be served, and ConfigurationError if
    `options` do not suit it.
    """
    check_readable(folder)
    with _named(folder, "cannot be read"), _quiet_transformers():
        architecture = family.describe(folder)
        _check_config(folder, architecture)
        input_format = family.input_format(folder, options)
        _check_vocabulary(folder, architecture, input_format)
        model = family.load(folder, replace(options, device=torch.device("meta")))
    _check_vision_heads(folder, model)
    prompts = {"a question, by its tokenizer and chat template": _QUESTION}
    if model.description.by_image:
        prompts["a question about an image, by its chat template and image processor"] = Prompt.of(
            _TEXT, [_image_part()]
        )
    for name, prompt in prompts.items():
        with _named(folder, f"cannot encode {name}"):
            _check_tokens(folder, model, _encode(model, prompt))
    with _named(folder, "has layers that do not fit together as config.json describes them"):
        _forward(model, _encode(model, _QUESTION))
    return CheckedBaseModel(model, input_format, (*input_format.notes, *_warnings(folder, model)))


def _check_config(folder: Path, architecture: ModelArchitecture) -> None:
    if architecture.max_positions < 1:
        raise CheckpointError(
            f"{folder}: config.json gives {architecture.max_positions} as the longest sequence "
            "(max_position_embeddings): use the config.json of the base model",
            path=str(folder),
        )
    theta = next((value for value in _values_of(read_config(folder), "rope_theta") if value <= 0), None)
    if theta is not None:
        raise CheckpointError(
            f"{folder}: rope_theta in config.json is {theta}, and must be above 0: use the config.json of the base "
            "model",
            path=str(folder),
        )


def _values_of(config: object, name: str) -> Iterator[float]:
    """Yield the numbers under the key `name` at any depth of a JSON value."""
    for key, value in config.items() if isinstance(config, dict) else ():
        if key == name and isinstance(value, int | float):
            yield value
        yield from _values_of(value, name)


def _check_vocabulary(folder: Path, architecture: ModelArchitecture, input_format: InputFormat) -> None:
    if input_format.largest_token >= architecture.vocab_size:
        raise CheckpointError(
            f"{folder}: the tokenizer has ids up to {input_format.largest_token}, but config.json has a vocabulary of "
            f"{architecture.vocab_size}: use tokenizer and weights of the same model",
            path=str(folder),
        )


def _check_vision_heads(folder: Path, model: BaseModel) -> None:
    """Raise CheckpointError if the vision tower's width does not split into its heads.

    The layers of the language model run on shapes, which finds this; those of some vision towers cannot. Qwen's rotate
    each head by two coordinates, so its size is a multiple of 4.
    """
    vision = getattr(getattr(model.module, "config", None), "vision_config", None)
    if vision is None:
        return
    rotates = hasattr(vision, "num_heads")
    heads = vision.num_heads if rotates else vision.num_attention_heads
    width = vision.embed_dim if hasattr(vision, "embed_dim") else vision.hidden_size
    if heads < 1 or width % (heads * (4 if rotates else 1)):
        raise CheckpointError(
            f"{folder}: config.json describes a vision tower of width {width} with {heads} heads, which do not divide "
            "it: use the config.json of the base model",
            path=str(folder),
        )


def _check_tokens(folder: Path, model: BaseModel, encoded: EncodedPrompt) -> None:
    if not encoded.length:
        raise CheckpointError(
            f"{folder}: the chat template renders a question as nothing: use the chat template of the base model",
            path=str(folder),
        )
    largest = int(encoded.tokens.max())
    if largest >= model.description.vocab_size:
        raise CheckpointError(
            f"{folder}: a prompt has the token {largest}, but config.json has a vocabulary of "
            f"{model.description.vocab_size}: use tokenizer and weights of the same model",
            path=str(folder),
        )


def _forward(model: BaseModel, encoded: EncodedPrompt) -> Tensor:
    """Run the layers on the meta device, where an operation computes shapes only."""
    embeddings = model.embed(encoded)
    hidden = model.forward(embeddings, encoded.positions[:, None].to("meta"), None, _NoCache())
    return model.logits(hidden[:, -1])


class _NoCache:
    """A LayerCache that stores nothing: each row attends to the prompt itself."""

    def update(self, keys: Tensor, values: Tensor, layer: int) -> tuple[Tensor, Tensor]:
        """Return `keys` and `values`."""
        del layer
        return keys, values


def _warnings(folder: Path, model: BaseModel) -> Iterator[str]:
    for name, prompt in _OPTIONAL.items():
        try:
            _check_tokens(folder, model, _encode(model, prompt))
        except Exception as error:  # A template is a program of the folder's.
            yield f"prompts with {name} are refused: {_reason(error)}"
    ends = model.description.eos_tokens
    if not ends:
        yield (
            "no file names the token that ends an answer: each runs to its max_new_tokens; put eos_token_id into "
            "generation_config.json"
        )
    beyond = sorted(token for token in ends if token >= model.description.vocab_size)
    if beyond:
        yield f"eos_token_id {beyond[0]} is beyond the vocabulary: it ends no answer"


def _encode(model: BaseModel, prompt: Prompt) -> EncodedPrompt:
    return model.encode(prompt, [_image() for _ in prompt.images])


def _image() -> Image.Image:
    return Image.new("RGB", _IMAGE_SIZE, (200, 60, 20))


def _image_part() -> ImagePart:
    encoded = BytesIO()
    _image().save(encoded, "PNG")
    return ImagePart(encoded.getvalue())


@contextmanager
def _named(folder: Path, what: str) -> Iterator[None]:
    """Turn an error of a library, or of a template, into a CheckpointError that names the folder."""
    try:
        yield
    except InvalidArgumentError as error:
        raise CheckpointError(f"{folder} {what}: {_reason(error)}", path=str(folder)) from error
    except LoraRetrieverError:
        raise
    except Exception as error:
        raise CheckpointError(f"{folder} {what}: {type(error).__name__}: {_reason(error)}", path=str(folder)) from error


def _reason(error: Exception) -> str:
    """Return an error's message on one line."""
    message = error.description if isinstance(error, InvalidArgumentError) else str(error)
    return " ".join(message.split())[:_LONGEST_REASON]


@contextmanager
def _quiet_transformers() -> Iterator[None]:
    """Suppress the progress bar and load report of transformers, whose findings are raised as errors."""
    verbosity, bar = transformers_logging.get_verbosity(), transformers_logging.is_progress_bar_enabled()
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    try:
        yield
    finally:
        transformers_logging.set_verbosity(verbosity)
        if bar:
            transformers_logging.enable_progress_bar()
