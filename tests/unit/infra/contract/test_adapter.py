"""Names of base models as tools write them."""

from __future__ import annotations

import pytest

from infra.contract.adapter import base_model_name, is_same_base_model

_CACHE = "/home/user/.cache"


@pytest.mark.parametrize(
    "written",
    [
        "Qwen2.5-VL-7B-Instruct",
        "Qwen/Qwen2.5-VL-7B-Instruct",
        "Qwen/Qwen2.5-VL-7B-Instruct/",
        "./Qwen2.5-VL-7B-Instruct/.",
        "https://huggingface.co/Qwen/Qwen2.5-VL-7B-Instruct",
        f"{_CACHE}/huggingface/hub/models--Qwen--Qwen2.5-VL-7B-Instruct/snapshots/cc594898137f460bfe9f0759e9844b3c",
        f"{_CACHE}/huggingface/hub/models--Qwen--Qwen2.5-VL-7B-Instruct/snapshots/cc594898137f460bfe9f0759e9844b3c/",
        f"{_CACHE}/huggingface/hub/models--Qwen--Qwen2.5-VL-7B-Instruct",
        f"{_CACHE}/modelscope/hub/models/Qwen/Qwen2___5-VL-7B-Instruct",
        f"{_CACHE}/modelscope/hub/models--Qwen--Qwen2.5-VL-7B-Instruct/snapshots/master",
        "D:\\models\\Qwen2.5-VL-7B-Instruct",
        "D:\\models\\Qwen2.5-VL-7B-Instruct\\",
        "C:\\Users\\me\\.cache\\huggingface\\hub\\models--Qwen--Qwen2.5-VL-7B-Instruct\\snapshots\\cc594898",
        " Qwen/Qwen2.5-VL-7B-Instruct\n",
    ],
)
def test_path_or_id_means_its_model(written: str) -> None:
    assert base_model_name(written) == "Qwen2.5-VL-7B-Instruct"
    assert is_same_base_model(written, "qwen/qwen2.5-vl-7b-instruct")


@pytest.mark.parametrize(
    ("written", "name"),
    [
        ("", ""),
        ("/", ""),
        ("gpt2", "gpt2"),
        ("models--gpt2/snapshots/607a30d7", "gpt2"),
        ("/data/snapshots/my-model", "my-model"),
        ("/data/models--a--b/merged", "merged"),
        ("unsloth/qwen2.5-vl-7b-instruct-bnb-4bit", "qwen2.5-vl-7b-instruct-bnb-4bit"),
    ],
)
def test_other_names_are_their_last_component(written: str, name: str) -> None:
    assert base_model_name(written) == name


def test_other_model_is_not_the_same() -> None:
    assert not is_same_base_model("Qwen/Qwen2-VL-7B", "Qwen/Qwen2-VL-7B-Instruct")
