"""Qwen2-VL (2B, 7B, 72B Instruct) from its original folder."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import torch
from PIL.Image import Image
from torch import Tensor, nn
from transformers import Qwen2VLConfig, Qwen2VLForConditionalGeneration
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

from generation_service.images import image_paths
from generation_service.models.base import EncodedPrompt, LayerCache, LoadOptions, ModelDescription
from generation_service.models.chat import ChatTokenizer
from generation_service.models.folder import read_config, read_json, tensor_names
from infra.contract.errors import CheckpointError, ConfigurationError, InvalidArgumentError
from infra.contract.prompt import Prompt

_RENAMED = (
    (re.compile(r"^(?:model\.)?visual\."), "model.visual."),
    (re.compile(r"^(?:model\.)?language_model\.(?:model\.)?(?=layers\.)"), "model.language_model."),
    (re.compile(r"^(?:model\.)?(?=layers\.)"), "model.language_model."),
)


class Qwen2VL:
    """A loaded Qwen2-VL: transformers' modules, our own forward around them.

    Positions have three axes, time, height and width (M-RoPE); text moves on all three alike.
    """

    def __init__(self, folder: Path, model: Any, options: LoadOptions) -> None:
        self.module: nn.Module = model
        self._config = model.config
        self._chat = ChatTokenizer(folder)
        self._processor = _image_processor(folder, options.max_pixels)
        self._merged = self._processor.merge_size**2
        text = model.config.text_config
        window = [text.sliding_window] if text.use_sliding_window else []
        self.description = ModelDescription(
            family=Qwen2VLFamily.model_type,
            layers=text.num_hidden_layers,
            kv_heads=text.num_key_value_heads,
            head_dim=text.hidden_size // text.num_attention_heads,
            vocab_size=text.vocab_size,
            max_positions=min([text.max_position_embeddings, *window]),
            position_axes=3,
            token_characters=self._chat.longest_token,
            eos_tokens=_eos_tokens(folder),
            by_image=("model.visual",),
            targets=_targets(model),
            dtype=model.dtype,
            device=options.device,
            weight_bytes=sum(p.numel() * p.element_size() for p in model.parameters()),
        )

    def canonical(self, name: str) -> str:
        """Return the module path that an adapter's key means.

        Files saved before transformers 4.52 say `model.layers.` and `visual.`, later ones
        `model.language_model.layers.` and `model.visual.`.
        """
        plain = name.removeprefix("base_model.model.")
        for pattern, replacement in _RENAMED:
            renamed, count = pattern.subn(replacement, plain)
            if count:
                return renamed
        return plain

    def encode(self, prompt: Prompt, images: Iterable[Image]) -> EncodedPrompt:
        """Return `prompt` as Qwen2-VL reads it: each image as grid_h * grid_w / merge^2 tokens between vision marks."""
        batches = list(map(self._patches, image_paths(prompt), images))  # Unlike a loop, map keeps no image.
        grids = [batch["image_grid_thw"][0] for batch in batches]
        tokens, in_image = self._expand(self._chat.encode(prompt), [int(grid.prod()) // self._merged for grid in grids])
        ids = torch.tensor([tokens], dtype=torch.long)
        kinds = torch.tensor([in_image], dtype=torch.int)
        stacked = torch.stack(grids) if grids else None
        positions, delta = self.module.model.get_rope_index(  # type: ignore[union-attr,operator]
            ids, mm_token_type_ids=kinds, image_grid_thw=stacked
        )
        return EncodedPrompt(
            tokens=ids[0],
            positions=positions[:, 0],
            position_delta=int(delta),
            image_tokens=sum(in_image),
            pixels=torch.cat([batch["pixel_values"] for batch in batches]) if batches else None,
            grids=stacked,
        )

    def decode(self, tokens: Sequence[int]) -> str:
        """Return the text of `tokens`, special tokens left out."""
        return self._chat.decode(tokens)

    def embed(self, prompt: EncodedPrompt) -> Tensor:
        """Return the input embeddings [1, T, hidden] of a prompt, its images' from the vision tower."""
        tokens = prompt.tokens.to(self.description.device)
        embeddings = self.embed_tokens(tokens)
        if prompt.pixels is not None and prompt.grids is not None:
            pixels = prompt.pixels.to(self.description.device, self.description.dtype)
            seen = self._base.get_image_features(pixels, prompt.grids.to(self.description.device), return_dict=True)
            embeddings[tokens == self._config.image_token_id] = torch.cat(list(seen.pooler_output)).to(embeddings.dtype)
        return embeddings[None]

    def embed_tokens(self, tokens: Tensor) -> Tensor:
        """Return the input embeddings [.., hidden] of text tokens [..]."""
        embeddings: Tensor = self._base.language_model.embed_tokens(tokens)
        return embeddings

    def forward(self, embeddings: Tensor, positions: Tensor, mask: Tensor | None, cache: LayerCache) -> Tensor:
        """Return the last hidden states [N, T, hidden]; embeddings [N, T, hidden], positions [3, N, T]."""
        output = self._base.language_model(
            inputs_embeds=embeddings,
            position_ids=positions,
            attention_mask={"full_attention": mask, "sliding_attention": mask},
            past_key_values=cache,
            use_cache=True,
        )
        hidden: Tensor = output.last_hidden_state
        return hidden

    def logits(self, hidden: Tensor) -> Tensor:
        """Return the logits [N, vocab] of hidden states [N, hidden]."""
        logits: Tensor = self.module.lm_head(hidden)  # type: ignore[operator]
        return logits

    @property
    def _base(self) -> Any:
        return self.module.model

    def _patches(self, path: str, image: Image) -> Any:
        """Return an image's pixel_values [grid_h * grid_w, 1176] and image_grid_thw [1, 3]."""
        try:
            return self._processor(images=[image], return_tensors="pt")
        except ValueError as error:
            raise InvalidArgumentError(f"{path}.image", f"{image.width}x{image.height} pixels: {error}") from error

    def _expand(self, tokens: list[int], sizes: list[int]) -> tuple[list[int], list[int]]:
        """Return the tokens with each image's one token repeated to its size, and which of them are an image's (1)."""
        image_token = self._config.image_token_id
        if tokens.count(image_token) != len(sizes):
            raise CheckpointError(
                f"the chat template places {tokens.count(image_token)} image tokens for {len(sizes)} images: "
                "use the chat template that the base model was published with"
            )
        remaining = iter(sizes)
        expanded: list[int] = []
        for token in tokens:
            expanded += [token] * (next(remaining) if token == image_token else 1)
        return expanded, [int(token == image_token) for token in expanded]


class Qwen2VLFamily:
    """Loads checkpoints whose config.json says `qwen2_vl`."""

    model_type = "qwen2_vl"

    def load(self, folder: Path, options: LoadOptions) -> Qwen2VL:
        """Load `folder` onto transformers' Qwen2VLForConditionalGeneration; every tensor binds or CheckpointError."""
        read_config(folder)
        tensor_names(folder)
        try:
            config = Qwen2VLConfig.from_pretrained(folder, local_files_only=True)
            model, report = Qwen2VLForConditionalGeneration.from_pretrained(
                folder,
                config=config,
                dtype=options.dtype or "auto",
                attn_implementation="sdpa",
                local_files_only=True,
                trust_remote_code=False,
                use_safetensors=True,
                ignore_mismatched_sizes=True,
                output_loading_info=True,
            )
        except Exception as error:
            raise CheckpointError(f"{folder} cannot be loaded as Qwen2-VL: {error}", path=str(folder)) from error
        _check_bound(folder, report)
        model.eval().requires_grad_(False).to(options.device)
        return Qwen2VL(folder, model, options)


def _check_bound(folder: Path, report: dict[str, Any]) -> None:
    problems = {
        "missing from the files": sorted(report["missing_keys"]),
        "of another shape than config.json says": sorted(
            entry if isinstance(entry, str) else str(entry[0]) for entry in report["mismatched_keys"]
        ),
        "in the files without a place in the model": sorted(report["unexpected_keys"]),
        "that could not be read": sorted(str(message) for message in report.get("error_msgs") or ()),
    }
    found = [f"{len(names)} tensors {what}: {', '.join(names[:8])}" for what, names in problems.items() if names]
    if found:
        raise CheckpointError(
            f"{folder} does not hold the model of its config.json; " + "; ".join(found), path=str(folder)
        )


def _image_processor(folder: Path, max_pixels: int | None) -> Any:
    read_json(folder / "preprocessor_config.json")
    processor = Qwen2VLImageProcessorPil.from_pretrained(folder, local_files_only=True)
    if max_pixels is not None:
        smallest = processor.size["shortest_edge"]
        if max_pixels < smallest:
            raise ConfigurationError(
                f"max_pixels is {max_pixels}, below the {smallest} pixels this model needs an image"
            )
        processor.size = {"shortest_edge": smallest, "longest_edge": max_pixels}
    return processor


def _eos_tokens(folder: Path) -> frozenset[int]:
    """Return the ids that end an answer: generation_config.json's, else config.json's."""
    path = folder / "generation_config.json"
    given = read_json(path).get("eos_token_id") if path.is_file() else None
    if given is None:
        given = read_config(folder).get("eos_token_id")
    return frozenset(given if isinstance(given, list) else [] if given is None else [given])


def _targets(model: Any) -> dict[str, tuple[int, int]]:
    """Return the linear layers of language model, vision tower and merger: module path -> (in, out)."""
    return {
        name: (module.in_features, module.out_features)
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear) and name.startswith(("model.language_model.", "model.visual."))
    }
