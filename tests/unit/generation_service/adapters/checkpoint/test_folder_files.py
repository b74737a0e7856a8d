"""Files beside the LoRA: trained weights are refused by name, what tools write in order to resume is not."""

from __future__ import annotations

from pathlib import Path

import pytest

from generation_service.adapters.checkpoint.folder_files import ignored_files, trained_weights
from generation_service.adapters.checkpoint.reader import read_checkpoint
from infra.contract.errors import CheckpointError
from tests.support.checkpoints.peft_adapters import LAYERS, TinyAdapter, same

TRAINED = [
    "vit.safetensors",
    "non_lora_state_dict.bin",
    "non_lora_trainables.bin",
    "mm_projector.bin",
    "value_head.safetensors",
    "value_head.bin",
    "new_embeddings.safetensors",
    "trainable_params.bin",
    "model.safetensors",
    "pytorch_model-00001-of-00002.bin",
    "projector.pt",
    "full_model/model-00001-of-00002.safetensors",
    "global_step500/projector.pt",
]
HARMLESS = [
    "README.md",
    "tokenizer.json",
    "tokenizer.model",
    "chat_template.jinja",
    "trainer_state.json",
    "training_args.bin",
    "optimizer.pt",
    "optimizer.bin",
    "optimizer_0/__0_0.distcp",
    "pytorch_model_fsdp_0/__0_0.distcp",
    "pytorch_model_fsdp.bin",
    "scheduler.pt",
    "scaler.pt",
    "rng_state.pth",
    "rng_state_3.pth",
    "random_states_0.pkl",
    "adapter_model.bin",
    "mean_embedding.npy",
    "adapter-f16.gguf",
    "zero_to_fp32.py",
    "global_step500/mp_rank_00_model_states.pt",
    "global_step500/bf16_zero_pp_rank_0_mp_rank_00_optim_states.pt",
    "checkpoint-500/optimizer.pt",
    "checkpoint-500/model.safetensors",
    "merged/model.safetensors",
    "runs/events.out.tfevents.1",
    ".cache/huggingface/model.bin",
]


def write(folder: Path, name: str) -> Path:
    TinyAdapter.random(LAYERS).write(folder)
    file = folder / name
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(b"not a tensor, and never opened")
    return folder


@pytest.mark.parametrize("name", TRAINED)
def test_trained_weights_beside_lora_are_refused_by_name(tmp_path: Path, name: str) -> None:
    with pytest.raises(
        CheckpointError, match=r"trained weights that are not applied.*moved out of the folder"
    ) as caught:
        read_checkpoint(write(tmp_path, name), LAYERS, same)
    assert name in caught.value.message
    (tmp_path / name).rename(tmp_path.parent / f"{tmp_path.name}.away")
    assert read_checkpoint(tmp_path, LAYERS, same).rank == 4


@pytest.mark.parametrize("name", HARMLESS)
def test_other_files_are_listed_and_not_opened(tmp_path: Path, name: str) -> None:
    folder = write(tmp_path, name)
    assert read_checkpoint(folder, LAYERS, same).rank == 4
    assert ignored_files(folder) == [name.partition("/")[0]]


def test_other_adapter_below_folder_is_left_alone(tmp_path: Path) -> None:
    write(tmp_path / "value", "value_head.bin")
    TinyAdapter.random(LAYERS).write(tmp_path)
    assert not trained_weights(tmp_path)


def test_loop_of_links_ends(tmp_path: Path) -> None:
    folder = write(tmp_path, "full/vit.safetensors")
    (folder / "full" / "again").symlink_to(folder)
    assert trained_weights(folder) == ["full/vit.safetensors"]


@pytest.mark.parametrize(
    ("names", "words"),
    [
        (["adapter_config.json", "adapter_model-00001-of-00002.safetensors"], "an adapter in 1 parts .*one part"),
        (["adapter_config.json", "adapter_model.bin"], "a pickle, which is never opened"),
        (["adapter_config.json", "adapter-f16.gguf"], "adapter-f16.gguf is a LoRA of llama.cpp; give the PEFT folder"),
        (["adapters.safetensors", "adapter_config.json"], "MLX adapter"),
        (["pytorch_lora_weights.safetensors"], "LoRA of diffusers"),
        (["my_style.safetensors"], "my_style.safetensors alone is not a PEFT folder .kohya"),
        (["adapter.gguf"], "adapter.gguf is a LoRA of llama.cpp"),
        (["runs/checkpoint-500/adapter_config.json"], "give the folder of one adapter: runs/checkpoint-500"),
        (["adapter/adapter_config.json"], "give the folder of one adapter: adapter"),
        (["README.md"], "was saving it interrupted"),
    ],
)
def test_folder_of_another_format_is_named(tmp_path: Path, names: list[str], words: str) -> None:
    for name in names:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text('{"peft_type": "LORA", "r": 4, "lora_alpha": 8}')
    with pytest.raises(CheckpointError, match=words):
        read_checkpoint(tmp_path, LAYERS, same)
