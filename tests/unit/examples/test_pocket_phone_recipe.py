"""The recipe: interrupting and resuming, and invalid arguments."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from examples.pocket_phone.__main__ import main
from examples.pocket_phone.recipe import base
from examples.pocket_phone.recipe.jina import centroid_loss
from examples.pocket_phone.recipe.state import Journal, Progress, State


class Stopping(Progress):
    """Raises KeyboardInterrupt before a step of the language model's training."""

    def __init__(self, at: int) -> None:
        super().__init__(quiet=True)
        self._at = at

    def track(self, title: str, total: int, start: int = 0) -> Iterator[int]:
        for step in range(start, total):
            if step == self._at and "language" in title:
                raise KeyboardInterrupt
            yield step

    def note(self, line: str) -> None:
        pass


def test_interrupted_base_run_resumes_to_same_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.set_num_threads(1)
    for name, value in {
        "EYE_STEPS": 1,
        "EYE_BATCH": 2,
        "STEPS": 4,
        "BATCH": 2,
        "SEQUENCE_BATCH": 2,
        "POOL": 16,
    }.items():
        monkeypatch.setattr(base, name, value)
    monkeypatch.setattr(base, "SAVE_EVERY", 2)
    monkeypatch.setattr(base, "CHECKED", 4)
    base.train(tmp_path / "unbroken", State(tmp_path / "a"), 5, "cpu", Stopping(at=99))
    with pytest.raises(KeyboardInterrupt):
        base.train(tmp_path / "stopped", State(tmp_path / "b"), 5, "cpu", Stopping(at=3))
    assert not (tmp_path / "stopped").exists()
    base.train(tmp_path / "stopped", State(tmp_path / "b"), 5, "cpu", Stopping(at=99))
    unbroken, resumed = (load_file(tmp_path / name / "model.safetensors") for name in ("unbroken", "stopped"))
    assert unbroken.keys() == resumed.keys()
    assert all(torch.equal(unbroken[name], resumed[name]) for name in unbroken)


def test_journal_refuses_another_seed_and_adds_up_time(tmp_path: Path) -> None:
    Journal(tmp_path / "journal.json", 1, "cpu").add("base", 2.0)
    journal = Journal(tmp_path / "journal.json", 1, "cpu")
    journal.add("base", 3.0)
    assert journal.entries == {"base": 5.0}
    with pytest.raises(ValueError, match="was started with --seed 1, not 2"):
        Journal(tmp_path / "journal.json", 2, "cpu")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [(["--stage", "adapters"], "run --stage base first"), (["--workers", "0"], "--workers must be at least 1, got 0")],
)
def test_train_names_what_is_missing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    assert main(["train", "--output", str(tmp_path / "out"), *arguments]) == 2
    assert message in capsys.readouterr().err


def test_centroid_loss_leaves_a_vector_out_of_its_own_mean() -> None:
    apart = torch.eye(4)
    together = torch.tensor([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0], [0.0, 1.0]])
    labels = torch.tensor([0, 0, 1, 1])
    assert centroid_loss(together, labels) < 0.01
    assert centroid_loss(apart, labels) > 0.69
