"""A short run of `loraretriever demo` on its own checkpoints, and what happens when it is interrupted."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path

import pytest

from tests.support.harness.cli_process import assert_nothing_runs_in, read_until, start

STRATEGIES = ["base", "selection", "mixture", "fusion-concat", "oracle"]


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_demo_registers_answers_compares_and_leaves_nothing_running(tmp_path: Path) -> None:
    words = ["--work-dir", str(tmp_path / "demo"), "--datasets", "adidas,gmail,office", "--episodes", "1", "--json"]
    process = start(["demo", *words], tmp_path)
    output, _ = process.communicate(timeout=290)
    assert process.returncode == 0, output
    assert_nothing_runs_in(tmp_path / "demo")
    result = json.loads(output[output.index("\n{\n") : output.rindex("\n}\n") + 3])
    assert "19 adapters registered, 20 training examples each" in output

    assert [answer["dataset"] for answer in result["answers"]] == ["adidas", "gmail", "office"]
    for answer in result["answers"]:
        assert answer["retrieved"][0]["adapter_id"] == answer["dataset"]
        assert len(answer["applied"]) == 3
        assert sum(share["weight"] for share in answer["applied"]) == pytest.approx(1)
        assert all(Path(screen).is_file() for screen in answer["screens"])

    summary = result["summary"]
    assert summary["strategies"] == STRATEGIES
    assert (summary["failed_samples"], summary["bad_row_count"]) == (0, 0)
    cells = {cell["strategy"]: cell for cell in summary["groups"] if cell["data"] == "all"}
    shares = {name: cells[name]["action"]["steps"]["value"] for name in STRATEGIES}
    assert shares["oracle"] > shares["base"]
    assert Path(result["report"]).read_text(encoding="utf-8").startswith("# Evaluation")


@pytest.mark.slow
@pytest.mark.timeout(300)
@pytest.mark.parametrize("ignored", [False, True], ids=["foreground", "background-job"])
def test_ctrl_c_during_evaluation_leaves_nothing_running(tmp_path: Path, ignored: bool) -> None:
    words = ["demo", "--work-dir", str(tmp_path / "demo"), "--episodes", "20"]
    process = start(words, tmp_path, ignore_interrupt=ignored)
    read_until(process, "running: ")
    os.killpg(process.pid, signal.SIGINT)
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 130, output
    assert "Traceback" not in output
    assert_nothing_runs_in(tmp_path / "demo")
