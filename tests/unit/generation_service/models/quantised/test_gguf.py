"""GGUF files as base models: the dequantised weights, adapters beside them, and broken files."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from gguf import GGMLQuantizationType
from tokenizers import Tokenizer, pre_tokenizers
from transformers import AutoModelForCausalLM, GenerationConfig

from generation_service.app import generation_stack
from generation_service.commands.inspection import inspect_folder
from generation_service.models.base import BaseModel, LoadOptions
from generation_service.models.folder import default_model_name
from generation_service.models.quantised import gguf_file
from generation_service.models.quantised.gguf_folder import model_folder
from generation_service.models.registry import load_base_model
from infra.contract.composition import Base, Mixture, WeightedAdapter
from infra.contract.errors import CheckpointError, ConfigurationError
from infra.contract.generation import Decoding
from infra.contract.prompt import Prompt
from tests.parity.prompt_logits import prompt_logits
from tests.support.checkpoints.causal import SPECIAL_CASES, write_causal
from tests.support.checkpoints.gguf_model import write_gguf
from tests.support.harness.generation_stack import settings_for

QUESTION = Prompt.of("What is on the screen? <|im_end|> naïve, 日本語 🙂 12")
CASES = ("llama", "qwen2 with biases", "qwen3 with q and k norms")
TOKENS = 12


def load(path: Path) -> BaseModel:
    return load_base_model(model_folder(path), LoadOptions(torch.device("cpu"), torch.float32))


def plain_folder(path: Path, case: str = "llama") -> Path:
    model_type, fields = SPECIAL_CASES[case]
    return write_causal(path, model_type, fields)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return write_gguf(tmp_path / "tiny.Q8_0.gguf", plain_folder(tmp_path / "plain"))


def assert_refused(path: Path, match: str) -> None:
    with pytest.raises(CheckpointError, match=match):
        load(path)


@pytest.mark.parametrize("kind", [GGMLQuantizationType.Q8_0, GGMLQuantizationType.Q4_1, GGMLQuantizationType.F16])
@pytest.mark.parametrize("case", CASES)
def test_weights_and_tokens_equal_those_of_dequantised_folder(
    tmp_path: Path, case: str, kind: GGMLQuantizationType
) -> None:
    plain = plain_folder(tmp_path / "plain", case)
    model = load(write_gguf(tmp_path / "tiny.gguf", plain, quantisation=kind))
    reference = load(plain)
    expected = reference.module.state_dict()
    assert all(torch.equal(value, expected[name]) for name, value in model.module.state_dict().items())
    encoded = model.encode(QUESTION, [])
    assert encoded.tokens.tolist() == reference.encode(QUESTION, []).tokens.tolist()
    assert torch.equal(prompt_logits(model, encoded), prompt_logits(reference, encoded))
    assert model.description.eos_tokens <= reference.description.eos_tokens


def test_rope_factors_divide_the_frequencies(tmp_path: Path) -> None:
    plain = plain_folder(tmp_path / "plain", "llama 3 rope, tied head")
    frequencies = load(plain).module.get_buffer("model.rotary_emb.inv_freq")
    half = torch.arange(0, 2 * len(frequencies), 2)
    factors = 10000.0 ** (-half / (2 * len(half))) / frequencies
    assert factors.max() > 2
    model = load(write_gguf(tmp_path / "tiny.gguf", plain, rope_factors=factors))
    reference = load(plain)
    encoded = model.encode(QUESTION, [])
    torch.testing.assert_close(prompt_logits(model, encoded), prompt_logits(reference, encoded), rtol=1e-4, atol=1e-4)
    assert model.description.max_positions == 512


def test_adapter_beside_gguf_answers_like_peft_on_dequantised_weights(tmp_path: Path) -> None:
    plain = plain_folder(tmp_path / "plain")
    gguf = write_gguf(tmp_path / "tiny.Q4_1.gguf", plain, quantisation=GGMLQuantizationType.Q4_1)
    config = peft.LoraConfig(r=4, lora_alpha=16, target_modules="all-linear", init_lora_weights=False)
    reference = peft.get_peft_model(AutoModelForCausalLM.from_pretrained(plain), config).eval()
    reference.peft_config["default"].base_model_name_or_path = "tiny"
    reference.save_pretrained(tmp_path / "adapters" / "mine")
    reference.base_model.model.generation_config = GenerationConfig()
    with generation_stack(settings_for(gguf, [tmp_path / "adapters"])) as stack:
        ids = stack.model.encode(QUESTION, []).tokens[None]
        ends = sorted(stack.model.description.eos_tokens)
        output = reference.generate(
            input_ids=ids, do_sample=False, max_new_tokens=TOKENS, eos_token_id=ends, pad_token_id=0
        )

        def answer(composition: Any) -> str:
            return asyncio.run(stack.service.generate(QUESTION, composition, Decoding(max_new_tokens=TOKENS))).text

        assert answer(Mixture((WeightedAdapter("mine", 1.0),))) == stack.model.decode(
            output[0, ids.shape[1] :].tolist()
        )
        assert answer(Base()) != answer(Mixture((WeightedAdapter("mine", 1.0),)))


def test_inspect_names_quantisation_of_file_and_of_folder(path: Path, tmp_path: Path) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    path.rename(folder / path.name)
    for given in (folder, folder / path.name):
        report = inspect_folder(given)
        assert report.supported, report.problems
        assert report.quantisation == "GGUF: Q8_0, F32"  # type: ignore[union-attr]
        assert report.path == str(given)
    assert default_model_name(model_folder(folder)) == "tiny"


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-3000])


def cut_in_header(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:500])


def not_gguf(path: Path) -> None:
    path.write_bytes(b"PK\x03\x04" + path.read_bytes()[4:])


def empty(path: Path) -> None:
    path.write_bytes(b"")


@pytest.mark.parametrize(
    ("break_file", "match"),
    [
        (cut, r"tiny\.Q8_0\.gguf is not a complete GGUF file.*download it again"),
        (cut_in_header, r"tiny\.Q8_0\.gguf is not a complete GGUF file.*download it again"),
        (not_gguf, r"tiny\.Q8_0\.gguf is not a GGUF file.*download it again"),
        (empty, r"tiny\.Q8_0\.gguf is not a GGUF file.*download it again"),
    ],
)
def test_broken_file_is_refused(path: Path, break_file: Callable[[Path], None], match: str) -> None:
    break_file(path)
    assert_refused(path, match)
    report = inspect_folder(path)
    assert not report.supported
    assert "download it again" in report.problems[0]


@pytest.mark.parametrize(
    ("metadata", "match"),
    [
        ({"general.architecture": "mamba"}, "architecture 'mamba'; of GGUF files, llama, qwen2, qwen3"),
        ({"llama.expert_count": 8}, "architecture 'llama', a mixture of experts"),
        ({"llama.rope.scaling.type": "yarn"}, "rope.scaling.type 'yarn' of a GGUF is not served"),
        ({"split.count": 3}, "is one part of a split GGUF"),
    ],
)
def test_unserved_contents_are_named(tmp_path: Path, metadata: dict[str, Any], match: str) -> None:
    plain = plain_folder(tmp_path / "plain")
    if architecture := metadata.pop("general.architecture", None):
        config = json.loads((plain / "config.json").read_text())
        (plain / "config.json").write_text(json.dumps(config | {"model_type": architecture}))
    assert_refused(write_gguf(tmp_path / "tiny.gguf", plain, metadata=metadata), match)


@pytest.mark.parametrize("metadata", [{"tokenizer.ggml.model": "llama"}, {"tokenizer.ggml.pre": "deepseek-llm"}])
def test_tokenizer_beside_file_replaces_one_that_cannot_be_rebuilt(tmp_path: Path, metadata: dict[str, str]) -> None:
    plain = plain_folder(tmp_path / "plain")
    (tmp_path / "gguf").mkdir()
    gguf = write_gguf(tmp_path / "gguf" / "tiny.gguf", plain, tokenizer=metadata)
    assert_refused(gguf, r"tokenizer.*cannot be rebuilt exactly from a GGUF: put the tokenizer\.json.*beside the file")
    (gguf.parent / "tokenizer.json").write_bytes((plain / "tokenizer.json").read_bytes())
    gguf.touch()
    model, reference = load(gguf), load(plain)
    assert model.encode(QUESTION, []).tokens.tolist() == reference.encode(QUESTION, []).tokens.tolist()


def test_each_digit_is_split_off_where_the_file_says_so(tmp_path: Path) -> None:
    plain = plain_folder(tmp_path / "plain")
    model = load(write_gguf(tmp_path / "tiny.gguf", plain, tokenizer={"tokenizer.ggml.pre": "smollm"}))
    tokenizer = Tokenizer.from_file(str(plain / "tokenizer.json"))
    tokenizer.normalizer = None
    text = "a1  23,    456 years\n\n  7"
    pieces = [piece for part in re.split(r"(\d)", text) if part for piece in gpt2_pieces(part)]
    expected = [number for piece in pieces for number in merged(tokenizer, piece)]
    encoded = model.encode(Prompt.of(text), []).tokens.tolist()
    assert any(encoded[start : start + len(expected)] == expected for start in range(len(encoded)))


def gpt2_pieces(text: str) -> list[str]:
    """Split text without apostrophes as GPT-2 does."""
    return re.findall(r" ?[^\W\d_]+| ?\d+| ?[^\s\w]+|\s+(?!\S)|\s+", text)


def merged(tokenizer: Tokenizer, piece: str) -> list[int]:
    """Return the tokens of a piece that is split no further."""
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    return list(tokenizer.encode(piece, add_special_tokens=False).ids)


def test_type_without_dequantiser_is_named(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise NotImplementedError

    monkeypatch.setattr("gguf.dequantize", refuse)
    assert_refused(path, r"type F32, Q8_0, which the package gguf cannot dequantise: take a file of another")


def test_part_of_split_file_is_refused(path: Path) -> None:
    part = path.rename(path.with_name("tiny-00001-of-00002.gguf"))
    assert_refused(part, "part 1 of 2 of a split GGUF: merge the parts with `llama-gguf-split --merge")


def test_folder_of_several_files_asks_for_one(path: Path, tmp_path: Path) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    for name in ("tiny.Q4_0.gguf", "tiny.Q8_0.gguf"):
        (folder / name).write_bytes(path.read_bytes())
    assert_refused(folder, r"several GGUF files: give the path of one of them: tiny\.Q4_0\.gguf, tiny\.Q8_0\.gguf")
    assert load(folder / "tiny.Q8_0.gguf").description.family == "llama"


def test_safetensors_take_precedence_in_a_folder(path: Path) -> None:
    plain = path.parent / "plain"
    path.rename(plain / path.name)
    assert model_folder(plain) == plain


def test_missing_package_is_named(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gguf_file, "find_spec", lambda name: None)
    with pytest.raises(ConfigurationError, match=r"pip install 'loraretriever\[gguf\]'"):
        model_folder(path)
