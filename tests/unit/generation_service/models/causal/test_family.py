"""Folders of text-only models as people have them: added tokens, end tokens, renamed classes, other weights."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import AddedToken, Tokenizer

from generation_service.models.base import LoadOptions
from generation_service.models.registry import family_of, load_base_model
from generation_service.models.validation import check_base_model
from infra.contract.errors import CheckpointError, InvalidArgumentError
from infra.contract.prompt import Prompt
from tests.support.checkpoints.causal import write_causal

OPTIONS = LoadOptions(torch.device("cpu"), torch.float32)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_causal(tmp_path / "base", "llama")


def edit(path: Path, **fields: Any) -> None:
    content = json.loads(path.read_text()) | fields
    path.write_text(json.dumps({name: value for name, value in content.items() if value is not None}))


def add_token_without_row(folder: Path) -> str:
    """Add a token to the tokenizer whose id is the first beyond the embedding; return its spelling."""
    rows = int(json.loads((folder / "config.json").read_text())["vocab_size"])
    config = json.loads((folder / "tokenizer_config.json").read_text())
    first = max(map(int, config["added_tokens_decoder"])) + 1
    plain = {"lstrip": False, "rstrip": False, "normalized": False, "single_word": False, "special": False}
    added = {str(number): plain | {"content": f"<extra_{number}>"} for number in range(first, rows + 1)}
    edit(folder / "tokenizer_config.json", added_tokens_decoder=config["added_tokens_decoder"] | added)
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.add_tokens([AddedToken(f"<extra_{number}>", normalized=False) for number in range(first, rows + 1)])
    tokenizer.save(str(folder / "tokenizer.json"))
    return f"<extra_{rows}>"


def test_added_token_without_embedding_is_refused_in_a_prompt_only(folder: Path) -> None:
    beyond = add_token_without_row(folder)
    model = load_base_model(folder, OPTIONS)
    model.embed(model.encode(Prompt.of("What is it?"), []))
    with pytest.raises(InvalidArgumentError, match=rf"{beyond}.*no embedding") as caught:
        model.encode(Prompt.of(f"What is {beyond}?"), [])
    assert caught.value.field == "messages"


def test_vocabulary_larger_than_the_embedding_is_refused(folder: Path) -> None:
    edit(folder / "config.json", vocab_size=320)
    with pytest.raises(CheckpointError, match="vocabulary of 320"):
        load_base_model(folder, OPTIONS)


def test_answer_ends_at_the_turn_end_even_if_configs_name_another_token(folder: Path) -> None:
    (folder / "generation_config.json").unlink()
    special = load_base_model(folder, OPTIONS).encode(Prompt.of("x"), []).tokens
    vocabulary = Tokenizer.from_file(str(folder / "tokenizer.json"))
    end, text_end = vocabulary.token_to_id("<|im_end|>"), vocabulary.token_to_id("<|endoftext|>")
    assert int(special[0]) == vocabulary.token_to_id("<|im_start|>")
    edit(folder / "config.json", eos_token_id=text_end)
    assert load_base_model(folder, OPTIONS).description.eos_tokens == {text_end, end}
    edit(folder / "config.json", eos_token_id=None)
    edit(folder / "tokenizer_config.json", eos_token=None)
    assert end in load_base_model(folder, OPTIONS).description.eos_tokens


def test_folder_whose_template_has_no_system_role_is_served_with_a_note(folder: Path) -> None:
    refusing = "{% if messages[0].role == 'system' %}{{ raise_exception('no system') }}{% endif %}"
    (folder / "chat_template.jinja").write_text(refusing + "{% for m in messages %}{{ m.content }}{% endfor %}")
    notes = check_base_model(family_of(folder), folder, OPTIONS).warnings
    assert any("no system role: a system message is put before the first user message" in note for note in notes)


def test_renamed_class_of_a_fine_tune_is_served_by_model_type(folder: Path) -> None:
    edit(folder / "config.json", architectures=["MyLlamaForCausalLM"], auto_map={"AutoModelForCausalLM": "x.MyLlama"})
    assert load_base_model(folder, OPTIONS).description.family == "llama"


@pytest.mark.parametrize(
    ("model_type", "named"), [("qwen3", r"missing from the files: .*k_norm"), ("phi3", r"missing .*gate_up_proj")]
)
def test_config_of_another_architecture_is_refused_with_the_tensors(model_type: str, named: str, folder: Path) -> None:
    edit(folder / "config.json", model_type=model_type)
    with pytest.raises(CheckpointError, match=named):
        load_base_model(folder, OPTIONS)
