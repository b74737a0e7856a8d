"""The benchmark harness, and one benchmark run from the command line on a tiny model."""

from __future__ import annotations

import json
import subprocess
import sys
from argparse import Namespace
from pathlib import Path
from types import ModuleType

import pytest

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture
def harness(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    import harness

    return harness


def test_ratio_is_median_of_ratios_per_repetition(harness: ModuleType) -> None:
    slow_machine_twice = harness.Timing((1.0, 10.0, 1.0, 12.0))
    twice_as_long = harness.Timing((2.0, 20.0, 2.0, 24.0))
    assert twice_as_long.over(slow_machine_twice) == 2.0


def test_alternatives_rotate_order_each_repetition(harness: ModuleType) -> None:
    ran: list[str] = []
    alternatives = {name: lambda name=name: ran.append(name) for name in "abc"}
    times = harness.time_interleaved(alternatives, repetitions=3, warmup=1)
    assert "".join(ran[3:]) == "abcbcacab"
    assert sorted(ran[:3]) == ["a", "b", "c"]
    assert [len(timing.seconds) for timing in times.values()] == [3, 3, 3]


def test_bar_reports_whether_it_is_met(harness: ModuleType) -> None:
    assert harness.Bar.at_most_of(1.25).met(1.25)
    assert not harness.Bar.at_most_of(1.25).met(1.26)
    assert harness.Bar.at_least_of(3).met(3)
    assert not harness.Bar.at_least_of(3).met(float("nan"))


def test_differing_answers_end_benchmark(harness: ModuleType) -> None:
    import torch

    ours, theirs = torch.tensor([1.0, 2.0]), torch.tensor([1.0, 2.1])
    with pytest.raises(SystemExit, match="mixture: outputs differ by 4"):
        harness.require_equal("mixture", ours, theirs, torch.float32)
    with pytest.raises(SystemExit, match="not finite"):
        harness.require_equal("mixture", ours, theirs * float("nan"), torch.float32)


def test_json_goes_to_stdout_and_folder_gets_file(
    harness: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def measure(options: Namespace) -> object:
        sys.stdout.write("a library that prints")
        findings = harness.Findings(measurements={"step": harness.Timing((0.5, 0.25))})
        findings.add_ratio("row_1", 1.5, harness.Bar.at_most_of(1.25))
        return findings

    arguments = ["--json", "--device", "cpu", "--output", str(tmp_path)]
    harness.run("question", "Why?", measure, arguments=arguments)
    result = json.loads(capsys.readouterr().out)
    assert result["ratios"] == {"row_1": 1.5}
    assert result["bars"] == {"row_1": {"at_most": 1.25, "met": False}}
    assert result["measurements"]["step"] == {"median_s": 0.375, "min_s": 0.25, "seconds": [0.5, 0.25]}
    assert json.loads((tmp_path / "question.cpu.json").read_text()) == result


@pytest.mark.slow
def test_composition_benchmark_runs_from_any_directory(tmp_path: Path) -> None:
    sizes = "--shape tiny --device cpu --adapters 3 --rank 4 --rows 1 --requests 1 --answer-tokens 2 --peft-requests 1"
    quick = "--prefill-rows 1 --prefill-tokens 8 --repetitions 1 --steps 1 --context 4 --json"
    command = [sys.executable, str(BENCHMARKS / "bench_composition.py"), *sizes.split(), *quick.split()]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    assert result["benchmark"] == "composition"
    assert result["hardware"]["torch"]
    assert {
        "decode_1_over_base",
        "decode_1_tokens_per_s_over_peft_mixed_batch",
        "tokens_per_s_1_requests_over_peft_one_at_a_time",
        "prefill_1x8_over_base",
    } == result["bars"].keys()
    assert all(ratio > 0 for ratio in result["ratios"].values())
    assert done.stderr.count("equal: ") == 3, "base model, one adapter, three adapters"
