"""Peak memory of loading an original InternVL folder, in a process of its own."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tests.support.checkpoints.internvl2 import TinyInternVL, write_internvl2

SHAPE = TinyInternVL(hidden=768, layers=6, heads=12, kv_heads=4, intermediate=3072)

_LOAD = """
import json, resource, sys
from pathlib import Path
import torch
from generation_service.models.base import LoadOptions
from generation_service.models.internvl.family import InternVLChatFamily

torch.set_num_threads(1)

def measure(folder, dtype):
    before = int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()
    Path("/proc/self/clear_refs").write_text("5")  # Resets the peak.
    model = InternVLChatFamily().load(Path(folder), LoadOptions(torch.device("cpu"), getattr(torch, dtype)))
    status = dict(line.split(":") for line in Path("/proc/self/status").read_text().splitlines())
    peak = int(status["VmHWM"].split()[0]) * 1024
    return {"took": peak - before, "model": model.description.weight_bytes}

measure(sys.argv[1], "bfloat16")  # Warm-up: imports and caches.
print(json.dumps([measure(*case.split(":")) for case in sys.argv[2:]]))
"""


# Loading takes seconds on an idle machine and minutes on a busy one; only the memory is asserted.
@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="the peak is read from Linux's /proc")
def test_loading_peak_memory_is_close_to_model_size(tmp_path: Path) -> None:
    tiny = write_internvl2(tmp_path / "tiny")
    large = write_internvl2(tmp_path / "large", SHAPE, dtype=torch.bfloat16)  # One file, mapped until the end.
    cases = [f"{large}:bfloat16", f"{large}:float32"]
    done = subprocess.run(
        [sys.executable, "-c", _LOAD, str(tiny), *cases], capture_output=True, text=True, timeout=560, check=False
    )
    assert done.returncode == 0, done.stderr
    for case, measured in zip(cases, json.loads(done.stdout.splitlines()[-1]), strict=True):
        assert measured["model"] > 100e6
        assert 0.5 < measured["took"] / measured["model"] < 1.25, case
