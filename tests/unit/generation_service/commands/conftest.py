"""The base model that adapters are checked against."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.checkpoints.qwen2_vl import write_qwen2_vl
from tests.support.harness.inspecting import SHAPE


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_qwen2_vl(tmp_path_factory.mktemp("models") / "Qwen2-VL-tiny", SHAPE)
