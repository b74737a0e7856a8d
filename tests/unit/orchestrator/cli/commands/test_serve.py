"""`serve TIER`."""

from __future__ import annotations

import pytest

from orchestrator.cli.commands.serve import without_gpu_id


@pytest.mark.parametrize("words", [["--gpu_id", "1"], ["--gpu-id=1"]])
def test_gpu_id_is_removed_from_flags_of_tier(words: list[str]) -> None:
    assert without_gpu_id(["--device", "cuda", *words, "--dtype", "auto"]) == (
        ["--device", "cuda", "--dtype", "auto"],
        "1",
    )
