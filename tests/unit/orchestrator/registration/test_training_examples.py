"""Prompts and vectors that an adapter is registered by."""

from __future__ import annotations

from pathlib import Path

import pytest

from infra.contract.errors import InvalidArgumentError
from infra.contract.prompt import TextPart
from orchestrator.registration.training_examples import example_prompts, read_vectors
from tests.support.harness.dataset_files import write_episodes


def test_examples_are_chosen_by_the_seed_and_asked_as_evaluation_asks(tmp_path: Path) -> None:
    file = write_episodes(tmp_path, episodes=4, steps=3)
    prompts = example_prompts(file, count=5, seed=1)
    assert prompts == example_prompts(file, count=5, seed=1)
    assert prompts != example_prompts(file, count=5, seed=2)
    assert all(len(prompt.images) == 1 for prompt in prompts)
    assert len(example_prompts(file, count=100, seed=0)) == 12
    assert any("Actions so far:\nOpen App: Gmail" in prompt.user_text for prompt in prompts)


def test_vectors_are_read_as_little_endian_float32(tmp_path: Path) -> None:
    np = pytest.importorskip("numpy")
    np.save(tmp_path / "mean.npy", np.array([1.0, 2.0]))
    assert read_vectors(tmp_path / "mean.npy") == [np.array([1, 2], dtype="<f4").tobytes()]


@pytest.mark.parametrize("kind", ["objects", "empty", "text", "cut", "absent", "archive"])
def test_file_that_has_no_vectors_is_named_without_advice_to_unpickle(tmp_path: Path, kind: str) -> None:
    np = pytest.importorskip("numpy")
    file = tmp_path / f"{kind}.npy"
    if kind == "objects":
        np.save(file, np.array([{}]), allow_pickle=True)
    elif kind == "cut":
        np.save(file, np.ones(64))
        file.write_bytes(file.read_bytes()[:-8])
    elif kind == "archive":
        with file.open("wb") as stream:
            np.savez(stream, mean=np.ones(4))
    elif kind != "absent":
        file.write_text("" if kind == "empty" else "0.1 0.2")
    with pytest.raises(InvalidArgumentError, match=f"{kind}.npy") as caught:
        read_vectors(file)
    assert "pickle" not in caught.value.message.replace(str(file), "")


def test_system_message_of_row_is_part_of_prompt(tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").write_text('{"query": "Where?", "response": "Paris", "system": "Be brief."}')
    (prompt,) = example_prompts(tmp_path / "rows.jsonl", count=1, seed=0)
    assert [(message.role.value, message.parts[0]) for message in prompt.messages] == [
        ("system", TextPart("Be brief.")),
        ("user", TextPart("Where?")),
    ]
