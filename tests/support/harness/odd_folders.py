"""Ways in which a model folder can be broken or odd, each a function that changes a good folder in place."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoTokenizer

Spoil = Callable[[Path], None]

WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"
JSON_FILES = (
    "config.json",
    "generation_config.json",
    "preprocessor_config.json",
    "tokenizer_config.json",
    "tokenizer.json",
    "added_tokens.json",
)
FILES = (*JSON_FILES, WEIGHTS, "tokenizer.model", "vocab.json", "merges.txt", "chat_template.jinja")


def _removed(path: Path) -> None:
    path.unlink()


def _emptied(path: Path) -> None:
    path.write_bytes(b"")


def _halved(path: Path) -> None:
    data = path.read_bytes()
    path.write_bytes(data[: len(data) // 2])


def _made_a_folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


def _made_a_broken_link(path: Path) -> None:
    path.unlink()
    path.symlink_to("nowhere")


def _written(text: str) -> Callable[[Path], None]:
    return lambda path: path.write_text(text) and None


FILE_CHANGES: Mapping[str, Callable[[Path], None]] = {
    "missing": _removed,
    "empty": _emptied,
    "halved": _halved,
    "a folder": _made_a_folder,
    "a broken link": _made_a_broken_link,
}
JSON_CHANGES: Mapping[str, Callable[[Path], None]] = {
    "a list": _written("[]"),
    "null": _written("null"),
    "an empty object": _written("{}"),
    "not UTF-8": lambda path: path.write_bytes(b'{"a": "\xd6"}') and None,
}


def of_file(name: str, change: Callable[[Path], None]) -> Spoil:
    """Return a spoil that changes the file `name` of a folder that has it."""

    def spoil(folder: Path) -> None:
        if (folder / name).is_file():
            change(folder / name)

    return spoil


def edited(name: str, change: Callable[[dict[str, Any]], object]) -> Spoil:
    """Return a spoil that changes the JSON object in the file `name`, which may be missing."""

    def spoil(folder: Path) -> None:
        path = folder / name
        content = json.loads(path.read_text()) if path.is_file() else {}
        change(content)
        path.write_text(json.dumps(content))

    return spoil


def configured(name: str = "config.json", **values: Any) -> Spoil:
    """Return a spoil that sets fields of a JSON file."""
    return edited(name, lambda content: content.update(values))


def reweighted(change: Callable[[dict[str, Tensor]], dict[str, Tensor]]) -> Spoil:
    """Return a spoil that replaces the tensors of the weights file."""

    def spoil(folder: Path) -> None:
        tensors = {name: tensor.clone() for name, tensor in load_file(folder / WEIGHTS).items()}
        save_file(change(tensors), folder / WEIGHTS, {"format": "pt"})

    return spoil


def _first_matrix(tensors: Mapping[str, Tensor]) -> str:
    return next(name for name in sorted(tensors) if tensors[name].dim() == 2 and "layers.0" in name)


def _without_one(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    del tensors[_first_matrix(tensors)]
    return tensors


def _with_one_as(change: Callable[[Tensor], Tensor]) -> Spoil:
    return reweighted(lambda tensors: tensors | {(name := _first_matrix(tensors)): change(tensors[name]).contiguous()})


def _prefixed(prefix: str) -> Spoil:
    return reweighted(lambda tensors: {prefix + name: tensor for name, tensor in tensors.items()})


def sharded(folder: Path, twice: bool = False) -> None:
    """Split the weights into two shards with an index; `twice`: one tensor is in both."""
    tensors = load_file(folder / WEIGHTS)
    names = sorted(tensors)
    shards = {"model-00001-of-00002.safetensors": names[::2], "model-00002-of-00002.safetensors": names[1::2]}
    for shard, held in shards.items():
        stored = {*held, names[0]} if twice else held
        save_file({name: tensors[name] for name in stored}, folder / shard, {"format": "pt"})
    weight_map = {name: shard for shard, held in shards.items() for name in held}
    (folder / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    (folder / WEIGHTS).unlink()


def _sharded_then(change: Callable[[Path], object]) -> Spoil:
    def spoil(folder: Path) -> None:
        sharded(folder)
        change(folder)

    return spoil


def _stale_index(folder: Path) -> None:
    (folder / INDEX).write_text(json.dumps({"weight_map": {"x": "model-00001-of-00009.safetensors"}}))


OF_WEIGHTS: Mapping[str, Spoil] = {
    "one tensor missing": reweighted(_without_one),
    "one tensor too many": reweighted(lambda tensors: tensors | {"model.extra.weight": torch.ones(3)}),
    "one tensor transposed": _with_one_as(lambda tensor: tensor[:-1]),
    "one tensor in one dimension": _with_one_as(torch.flatten),
    "one tensor empty": _with_one_as(lambda tensor: tensor[:0]),
    "one tensor int8": _with_one_as(lambda tensor: tensor.to(torch.int8)),
    "one tensor fp8": _with_one_as(lambda tensor: tensor.to(torch.float8_e4m3fn)),
    "one tensor float64": _with_one_as(torch.Tensor.double),
    "all uint8": reweighted(lambda tensors: {name: tensor.to(torch.uint8) for name, tensor in tensors.items()}),
    "no tensors": reweighted(lambda _: {}),
    "prefix base_model.model.": _prefixed("base_model.model."),
    "prefix module.": _prefixed("module."),
    "prefix _orig_mod.": _prefixed("_orig_mod."),
    "prefix model.": _prefixed("model."),
    "prefix thinker.": _prefixed("thinker."),
    "position ids beside": reweighted(lambda tensors: tensors | {"visual.position_ids": torch.arange(3)}),
    "sharded": sharded,
    "shard missing": _sharded_then(lambda folder: (folder / "model-00002-of-00002.safetensors").unlink()),
    "shard empty": _sharded_then(lambda folder: _emptied(folder / "model-00002-of-00002.safetensors")),
    "index halved": _sharded_then(lambda folder: _halved(folder / INDEX)),
    "index without map": _sharded_then(lambda folder: (folder / INDEX).write_text("{}")),
    "index missing": _sharded_then(lambda folder: (folder / INDEX).unlink()),
    "tensor in two shards": lambda folder: sharded(folder, twice=True),
    "index of other shards beside": _stale_index,
    "only a pickle": lambda folder: (folder / WEIGHTS).rename(folder / "pytorch_model.bin") and None,
    "adapter config beside": lambda folder: (folder / "adapter_config.json").write_text("{}") and None,
}


def templated(template: object) -> Spoil:
    """Return a spoil that makes `template` the folder's only chat template; None removes it."""

    def spoil(folder: Path) -> None:
        for name in ("chat_template.jinja", "chat_template.json"):
            (folder / name).unlink(missing_ok=True)
        edited("tokenizer_config.json", lambda config: config.pop("chat_template", None))(folder)
        if template is not None:
            configured("tokenizer_config.json", chat_template=template)(folder)

    return spoil


_STRINGS = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content + '<|im_end|>' }}\n{% endfor %}"
    "<|im_start|>assistant\n"
)
OF_TEMPLATES: Mapping[str, Spoil] = {
    "template missing": templated(None),
    "template empty": templated(""),
    "template of spaces": templated("   "),
    "template with a syntax error": templated("{% for m in messages %}"),
    "template that raises": templated("{{ raise_exception('no') }}"),
    "template that raises on system": templated(
        "{% if messages[0].role == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}" + _STRINGS
    ),
    "template that raises on several turns": templated(
        "{% if messages | length > 1 %}{{ raise_exception('one turn only') }}{% endif %}" + _STRINGS
    ),
    "template that divides by zero": templated("{{ 1 / 0 }}"),
    "template that joins strings": templated(_STRINGS),
    "template with an undefined filter": templated("{{ messages | nothing }}"),
    "template that is a number": templated(3),
    "template that is a list": templated([{"name": "default", "template": _STRINGS}]),
    "template that calls an attribute": templated("{{ messages[0].content.strip() }}"),
    "template that writes nothing": templated("{% set x = 1 %}"),
    "template without the messages": templated("<|im_start|>assistant\n"),
}


def _with_tokens(count: int, special: bool) -> Spoil:
    def spoil(folder: Path) -> None:
        tokens = [f"<|extra_{number}|>" for number in range(count)]
        tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
        tokenizer.add_tokens(tokens, special_tokens=special)
        tokenizer.save_pretrained(folder)

    return spoil


def _without_special_tokens(folder: Path) -> None:
    edited("tokenizer.json", lambda tokenizer: tokenizer.update(added_tokens=[]))(folder)
    edited("tokenizer_config.json", lambda config: config.pop("added_tokens_decoder", None))(folder)


OF_TOKENIZERS: Mapping[str, Spoil] = {
    "tokens beyond the embedding": _with_tokens(99, special=False),
    "special tokens beyond the embedding": _with_tokens(99, special=True),
    "tokenizer without special tokens": _without_special_tokens,
    "tokenizer class unknown": configured("tokenizer_config.json", tokenizer_class="NoSuchTokenizer"),
    "tokenizer class a number": configured("tokenizer_config.json", tokenizer_class=3),
    "remote code": configured(auto_map={"AutoModel": "modeling.Model", "AutoConfig": "configuration.Config"}),
    "remote tokenizer": configured("tokenizer_config.json", auto_map={"AutoTokenizer": ["tokenization.Tok", None]}),
}

OF_CONFIGS: Mapping[str, Spoil] = {
    "no model_type": edited("config.json", lambda config: config.pop("model_type")),
    "model_type null": configured(model_type=None),
    "model_type a list": configured(model_type=["llama"]),
    "model_type unknown": configured(model_type="never_heard_of"),
    "quantization config": configured(quantization_config={"quant_method": "awq"}),
    "quantization config null": configured(quantization_config=None),
    "quantization config a string": configured(quantization_config="awq"),
    "compression config": configured(compression_config={"quant_method": "compressed-tensors"}),
    "dtype unknown": configured(torch_dtype="int3", dtype="int3"),
    "dtype int8": configured(torch_dtype="int8", dtype="int8"),
    "dtype a number": configured(torch_dtype=16, dtype=16),
    "vocabulary smaller": configured(vocab_size=100),
    "name a number": configured(_name_or_path=7),
    "eos a string": configured("generation_config.json", eos_token_id="</s>"),
    "eos a list of strings": configured("generation_config.json", eos_token_id=["</s>"]),
    "eos null": configured("generation_config.json", eos_token_id=None),
    "eos beyond the vocabulary": configured("generation_config.json", eos_token_id=10**6),
    "eos negative": configured("generation_config.json", eos_token_id=-1),
    "eos a nested list": configured("generation_config.json", eos_token_id=[[1]]),
    "eos a fraction": configured("generation_config.json", eos_token_id=1.5),
    "eos true": configured("generation_config.json", eos_token_id=True),
}

OF_IMAGES: Mapping[str, Spoil] = {
    "vision heads that do not divide": edited(
        "config.json", lambda config: config["vision_config"].update(num_heads=7)
    ),
    "no vision heads": edited("config.json", lambda config: config["vision_config"].update(num_heads=0)),
    "other patches": configured("preprocessor_config.json", patch_size=16),
    "other merging": configured("preprocessor_config.json", merge_size=4),
    "other temporal patches": configured("preprocessor_config.json", temporal_patch_size=1),
    "pixels as text": configured("preprocessor_config.json", min_pixels="few", max_pixels="many"),
    "size null": configured("preprocessor_config.json", size=None),
    "size of another processor": configured("preprocessor_config.json", size={"height": 224, "width": 224}),
    "size a number": configured("preprocessor_config.json", size=32),
    "mean of one channel": configured("preprocessor_config.json", image_mean=[0.5], image_std=[0.5]),
    "mean null": configured("preprocessor_config.json", image_mean=None, image_std=None),
    "most pixels below the fewest": configured("preprocessor_config.json", min_pixels=10**7, max_pixels=10**4),
    "patches null": configured("preprocessor_config.json", min_patches=None, max_patches=None),
    "no patches": configured("preprocessor_config.json", min_patches=0, max_patches=0),
    "fewer patches than least": configured("preprocessor_config.json", min_patches=8, max_patches=2),
}


def as_hub_snapshot(folder: Path) -> Path:
    """Move `folder` into a cache of the Hugging Face hub, whose files are links to blobs; return the snapshot."""
    cache = folder.parent / "hub" / f"models--Owner--{folder.name}"
    blobs, snapshot = cache / "blobs", cache / "snapshots" / "0123abc"
    snapshot.mkdir(parents=True)
    shutil.move(folder, blobs)
    for number, blob in enumerate(sorted(blobs.iterdir())):
        (snapshot / blob.name).symlink_to(f"../../blobs/{number:040x}")
        blob.rename(blobs / f"{number:040x}")
    return snapshot
