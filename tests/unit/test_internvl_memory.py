"""How much memory loading an original InternVL folder takes, in a process of its own."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tests.checkpoints.internvl2 import TinyInternVL, write_internvl2

SHAPE = TinyInternVL(hidden=768, layers=6, heads=12, kv_heads=4, intermediate=3072)

_LOAD = """
import json, resource, sys
from pathlib import Path
import torch
from generation_service.models.base import LoadOptions
from generation_service.models.registry import load_base_model

torch.set_num_threads(1)
options = LoadOptions(torch.device("cpu"), getattr(torch, sys.argv[3]))
load_base_model(Path(sys.argv[1]), options)  # what only the first load takes: imports, caches
before = int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()
Path("/proc/self/clear_refs").write_text("5")
model = load_base_model(Path(sys.argv[2]), options)
status = dict(line.split(":") for line in Path("/proc/self/status").read_text().splitlines())
peak = int(status["VmHWM"].split()[0]) * 1024
print(json.dumps({"took": peak - before, "model": model.description.weight_bytes}))
"""


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="the peak is read from Linux's /proc")
@pytest.mark.parametrize(("shards", "dtype"), [(1, "bfloat16"), (3, "bfloat16"), (1, "float32")])
def test_loading_takes_little_more_than_the_model(tmp_path: Path, shards: int, dtype: str) -> None:
    tiny = write_internvl2(tmp_path / "tiny")
    large = write_internvl2(tmp_path / "large", SHAPE, shards=shards, dtype=torch.bfloat16)
    command = [sys.executable, "-c", _LOAD, str(tiny), str(large), dtype]
    done = subprocess.run(command, capture_output=True, text=True, timeout=100, check=False)
    assert done.returncode == 0, done.stderr
    measured = json.loads(done.stdout.splitlines()[-1])
    assert measured["model"] > 100e6
    assert 0.9 * measured["model"] < measured["took"] < 1.25 * measured["model"]
