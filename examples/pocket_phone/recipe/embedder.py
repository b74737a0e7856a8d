"""The tiny jina-embeddings-v4 as a module: Qwen2.5-VL, a projector, three task adapters, and pooling.

Text: `Query: ` or `Passage: ` before it, mean over the mask. Image: a fixed prompt, mean over vision start to vision
end inclusive. Both are L2-normalised. A query of both is L2(0.7 text + 0.3 mean of the first two images).
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, inject_adapter_in_model
from peft.tuners.lora import LoraLayer
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn.functional import normalize
from transformers import Qwen2_5_VLConfig, Qwen2_5_VLModel

from examples.pocket_phone.prompts import IMAGE, Example
from examples.pocket_phone.recipe import layout, tokenizer
from examples.pocket_phone.recipe.batches import TOKENS_PER_SCREEN, pixels
from examples.pocket_phone.screens import Screen

TASKS = ("retrieval", "text-matching", "code")
DIMENSION, LAYERS, INTERMEDIATE, RANK = 128, 2, 256, 8
TEXT_WEIGHT, IMAGE_WEIGHT, QUERY_IMAGES = 0.7, 0.3, 2
QUERY, PASSAGE = "Query: ", "Passage: "
IMAGE_PROMPT = f"<|im_start|>user\n{IMAGE}Describe the image.<|im_end|>\n"
_LINEAR = r"(down_proj|gate_proj|up_proj|k_proj|q_proj|v_proj|o_proj)"
TARGETS = rf"(.*(model).*{_LINEAR}.*$|.*(multi_vector_projector).*$)"


def config() -> dict[str, Any]:
    """Return `config.json` of the embedder, with the fields that jina-embeddings-v4 adds to Qwen2.5-VL's."""
    vision = {
        "depth": 2,
        "fullatt_block_indexes": [1],
        "hidden_act": "silu",
        "hidden_size": 64,
        "in_channels": 3,
        "intermediate_size": 128,
        "model_type": "qwen2_5_vl",
        "num_heads": 2,
        "out_hidden_size": DIMENSION,
        "patch_size": 14,
        "spatial_merge_size": 2,
        "spatial_patch_size": 14,
        "temporal_patch_size": 2,
        "tokens_per_second": 2,
        "window_size": 56,
    }
    return {
        **layout.text_config(),
        "architectures": ["JinaEmbeddingsV4Model"],
        "hidden_size": DIMENSION,
        "intermediate_size": INTERMEDIATE,
        "matryoshka_dims": [32, 64, DIMENSION],
        "max_window_layers": LAYERS,
        "model_type": "qwen2_5_vl",
        "multi_vector_projector_dim": 32,
        "num_hidden_layers": LAYERS,
        "single_vector_pool_strategy": "mean",
        "task_names": list(TASKS),
        "vision_config": vision,
    }


class Embedder(nn.Module):
    """Qwen2.5-VL without its head, the multi-vector projector, and one LoRA per task; `task` selects the active one."""

    def __init__(self) -> None:
        super().__init__()
        self.model = Qwen2_5_VLModel(Qwen2_5_VLConfig(**config())).float()
        self.multi_vector_projector = nn.Linear(DIMENSION, 32)

    def add_tasks(self) -> None:
        """Add the three task adapters, untrained."""
        for task in TASKS:
            inject_adapter_in_model(
                LoraConfig(r=RANK, lora_alpha=RANK, target_modules=TARGETS), self, adapter_name=task
            )

    def use(self, task: str | None) -> None:
        """Activate the adapter of `task`, or none."""
        for module in self.modules():
            if isinstance(module, LoraLayer):
                module.enable_adapters(task is not None)
                if task is not None:
                    module.set_adapter(task)

    @property
    def device(self) -> torch.device:
        """The device of the parameters."""
        return self.multi_vector_projector.weight.device

    def text(self, texts: Sequence[str], prompt: str = QUERY) -> Tensor:
        """Return the vectors [N, dimension] of texts."""
        rows = [tokenizer.build().encode(prompt + text).ids for text in texts]
        length = max(map(len, rows))
        ids = torch.tensor([row + [0] * (length - len(row)) for row in rows], device=self.device)
        mask = torch.tensor([[1] * len(row) + [0] * (length - len(row)) for row in rows], device=self.device)
        hidden = self.model(input_ids=ids, attention_mask=mask, use_cache=False).last_hidden_state
        weights = mask.unsqueeze(-1).to(hidden.dtype)
        return normalize((hidden * weights).sum(1) / weights.sum(1), dim=-1)

    def image(self, screens: Sequence[Screen]) -> Tensor:
        """Return the vectors [N, dimension] of screens, each embedded separately."""
        names = layout.token_ids()
        row: list[int] = []
        for token in tokenizer.build().encode(IMAGE_PROMPT).ids:
            row.extend([token] * (TOKENS_PER_SCREEN if token == names["image_token_id"] else 1))
        ids = torch.tensor([row] * len(screens), device=self.device)
        patches, grids = pixels(screens)
        hidden = self.model(
            input_ids=ids,
            attention_mask=torch.ones_like(ids),
            pixel_values=patches.to(self.device),
            image_grid_thw=grids.to(self.device),
            mm_token_type_ids=(ids == names["image_token_id"]).int(),
            use_cache=False,
        ).last_hidden_state
        start, end = row.index(names["vision_start_token_id"]), row.index(names["vision_end_token_id"])
        return normalize(hidden[:, start : end + 1].mean(1), dim=-1)

    def query(self, examples: Sequence[Example]) -> tuple[Tensor, Tensor, Tensor]:
        """Return the query vectors [N, dimension], and the text and image vectors that they combine."""
        texts = self.text([example.text for example in examples])
        shown = [example.screens[:QUERY_IMAGES] for example in examples]
        vectors = self.image([screen for screens in shown for screen in screens])
        images = torch.stack([part.mean(0) for part in torch.split(vectors, [len(screens) for screens in shown])])
        return normalize(TEXT_WEIGHT * texts + IMAGE_WEIGHT * images, dim=-1), texts, images


def save(folder: Path, embedder: Embedder) -> None:
    """Write the embedder in the published layout: Qwen2.5-VL's weights, and all tasks in one file below `adapters/`."""
    folder.mkdir(parents=True, exist_ok=True)
    layout.write_files(folder, config())
    state = {
        key.replace(".base_layer", ""): value for key, value in embedder.state_dict().items() if ".lora_" not in key
    }
    layout.save_weights(folder, state)
    adapters = folder / "adapters"
    adapters.mkdir(exist_ok=True)
    tensors = {
        f"base_model.model.{key}": value.detach().to("cpu", torch.float16).contiguous()
        for key, value in embedder.state_dict().items()
        if ".lora_" in key
    }
    path = adapters / "adapter_model.safetensors"
    save_file(tensors, path, metadata={"format": "pt"})
    path.chmod(0o644)
    settings = {
        "base_model_name_or_path": "pocket-phone/jina-v4-tiny",
        "bias": "none",
        "fan_in_fan_out": False,
        "inference_mode": True,
        "init_lora_weights": True,
        "lora_alpha": RANK,
        "lora_dropout": 0.0,
        "peft_type": "LORA",
        "r": RANK,
        "target_modules": TARGETS,
        "task_type": "FEATURE_EXTRACTION",
        "use_dora": False,
        "use_rslora": False,
    }
    (adapters / "adapter_config.json").write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")


def load(folder: Path, device: str = "cpu") -> Embedder:
    """Load a folder written by `save`, in float32. Every tensor must bind."""
    embedder = Embedder()
    embedder.add_tasks()
    own = {
        layout.original_key(key.replace(".base_layer", "")): key for key in embedder.state_dict() if ".lora_" not in key
    }
    state = {own[name]: value for name, value in load_file(folder / "model.safetensors").items()}
    for name, value in load_file(folder / "adapters" / "adapter_model.safetensors").items():
        state[name.removeprefix("base_model.model.")] = value
    embedder.load_state_dict(state, strict=True)
    return embedder.eval().to(device)
