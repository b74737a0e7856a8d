"""Shared parts of all benchmarks: options, interleaved timing, and a result printed as a table or as JSON.

    def measure(options: argparse.Namespace) -> Findings: ...

    if __name__ == "__main__":
        run("composition", "What do three adapters a row cost?", measure, add_options)

Import this before any project module: it puts the repository on the path, so that `python benchmarks/bench_x.py` works
from any directory, installed or not.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
for _folder in (ROOT, ROOT / "proto"):
    if str(_folder) not in sys.path:
        sys.path.insert(0, str(_folder))

import torch  # noqa: E402
from hardware import current_commit, describe_hardware  # noqa: E402

_STARTED = time.perf_counter()
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


@dataclass(frozen=True)
class Timing:
    """The seconds of every repetition of one alternative, in the order they ran."""

    seconds: tuple[float, ...]

    @property
    def median(self) -> float:
        """The median repetition, in seconds."""
        return statistics.median(self.seconds)

    def over(self, other: Timing) -> float:
        """Return this time over that of `other`: the median of the ratios within each repetition.

        A machine that slows down temporarily slows both sides of a repetition, so the ratio is stable.
        """
        return statistics.median(a / b for a, b in zip(self.seconds, other.seconds, strict=True))

    def as_json(self) -> dict[str, Any]:
        """Return the median, the fastest and all repetitions."""
        return {"median_s": self.median, "min_s": min(self.seconds), "seconds": list(self.seconds)}


@dataclass(frozen=True)
class Bar:
    """A limit for a ratio."""

    limit: float
    at_least: bool

    @classmethod
    def at_most_of(cls, limit: float) -> Bar:
        """Require the ratio not to exceed `limit`."""
        return cls(limit, at_least=False)

    @classmethod
    def at_least_of(cls, limit: float) -> Bar:
        """Require the ratio to reach `limit`."""
        return cls(limit, at_least=True)

    def met(self, ratio: float) -> bool:
        """Return whether `ratio` is within the limit."""
        return ratio >= self.limit if self.at_least else ratio <= self.limit

    def __str__(self) -> str:
        return f"{'>=' if self.at_least else '<='} {self.limit:g}x"


@dataclass
class Findings:
    """The results of a benchmark: ratios by name, bars for some of them, and measurements.

    A measurement is a Timing or any JSON value. `settings` are those that the options do not contain.
    """

    ratios: dict[str, float] = field(default_factory=dict)
    bars: dict[str, Bar] = field(default_factory=dict)
    measurements: dict[str, Any] = field(default_factory=dict)
    settings: dict[str, Any] = field(default_factory=dict)

    def add_ratio(self, name: str, value: float, bar: Bar | None = None) -> None:
        """Record a ratio and its bar, if it has one."""
        self.ratios[name] = value
        if bar is not None:
            self.bars[name] = bar


def time_interleaved(
    alternatives: Mapping[str, Callable[[], object]],
    *,
    repetitions: int,
    warmup: int = 1,
    device: torch.device | str = "cpu",
) -> dict[str, Timing]:
    """Run every alternative once per repetition; return the seconds of each.

    The order rotates by one every repetition, so that no alternative always follows the same other one. `warmup` rounds
    run first and are not counted. On a GPU the device is synchronised before each reading of the clock.
    """
    names = list(alternatives)
    wait = _wait_for(torch.device(device))
    seconds: dict[str, list[float]] = {name: [] for name in names}
    for repetition in range(-warmup, repetitions):
        turn = repetition % len(names)
        for name in (*names[turn:], *names[:turn]):
            wait()
            started = time.perf_counter()
            alternatives[name]()
            wait()
            if repetition >= 0:
                seconds[name].append(time.perf_counter() - started)
    return {name: Timing(tuple(values)) for name, values in seconds.items()}


def run(
    benchmark: str,
    question: str,
    measure: Callable[[argparse.Namespace], Findings],
    add_options: Callable[[argparse.ArgumentParser], None] | None = None,
    arguments: Sequence[str] | None = None,
) -> None:
    """Parse the options, measure, and print a table, or with `--json` one JSON object and nothing else on stdout."""
    options = _parser(question, add_options).parse_args(arguments)
    options.device = torch.device(options.device)
    options.dtype = DTYPES[options.dtype or ("bfloat16" if options.device.type == "cuda" else "float32")]
    if options.threads:
        torch.set_num_threads(options.threads)
    with _stdout_only_for_the_result():
        findings = measure(options)
    result = _as_json(benchmark, findings, options)
    if options.output:
        _write(result, options.output)
    print(json.dumps(result) if options.json else table(benchmark, findings))


def say(message: str) -> None:
    """Print progress with the elapsed seconds to stderr."""
    print(f"{time.perf_counter() - _STARTED:6.1f} s  {message}", file=sys.stderr, flush=True)


def require_equal(what: str, ours: torch.Tensor, theirs: torch.Tensor, dtype: torch.dtype) -> float:
    """Return the largest difference relative to the largest magnitude; exit if it exceeds rounding error.

    The speed of a wrong answer means nothing.
    """
    allowed = {torch.float32: 1e-3, torch.bfloat16: 6e-2, torch.float16: 1e-2}[dtype]
    if not (ours.isfinite().all() and theirs.isfinite().all()):
        raise SystemExit(f"{what}: outputs that are not finite cannot be compared, so nothing was timed")
    difference = float((ours.double() - theirs.double()).abs().max() / theirs.double().abs().max())
    if not difference <= allowed:
        raise SystemExit(f"{what}: outputs differ by {difference:.1e}, more than {allowed:.0e}, so nothing was timed")
    say(f"  equal: {what} (largest relative difference {difference:.1e})")
    return difference


def table(benchmark: str, findings: Findings) -> str:
    """Format the ratios with their bars, then the measurements, as a table."""
    rows = [("ratio", "value", "bar", "")]
    for name, ratio in findings.ratios.items():
        bar = findings.bars.get(name)
        verdict = "" if bar is None else "met" if bar.met(ratio) else "NOT MET"
        rows.append((name, f"{ratio:.3f}x", "" if bar is None else str(bar), verdict))
    lines = [f"== {benchmark}", *_aligned(rows), ""]
    measured = [("measurement", "median")]
    for name, value in findings.measurements.items():
        measured.append((name, _readable(value)))
    return "\n".join([*lines, *_aligned(measured)])


def _parser(question: str, add_options: Callable[[argparse.ArgumentParser], None] | None) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=question, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    default = "cuda" if torch.cuda.is_available() else "cpu"
    parser.add_argument("--device", default=default, help="torch device")
    parser.add_argument("--dtype", choices=list(DTYPES), help="of the model (default: bfloat16 on a GPU, else float32)")
    parser.add_argument("--threads", type=int, default=0, help="CPU threads of torch; 0: the default of torch")
    parser.add_argument("--repetitions", type=int, default=5, help="timed rounds over all alternatives")
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of the table")
    parser.add_argument("--output", type=Path, help="also write the JSON to this file, or into this folder")
    parser.add_argument("--commit", help="commit of the code, if git is not available")
    if add_options is not None:
        add_options(parser)
    return parser


def _as_json(benchmark: str, findings: Findings, options: argparse.Namespace) -> dict[str, Any]:
    chosen = {name: value for name, value in vars(options).items() if name not in ("json", "output", "commit")}
    measurements = {
        name: value.as_json() if isinstance(value, Timing) else value for name, value in findings.measurements.items()
    }
    bars = {
        name: {"at_least" if bar.at_least else "at_most": bar.limit, "met": bar.met(findings.ratios[name])}
        for name, bar in findings.bars.items()
    }
    return {
        "benchmark": benchmark,
        "hardware": describe_hardware(options.device),
        "commit": options.commit or current_commit(ROOT),
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "settings": {name: _plain(value) for name, value in (chosen | findings.settings).items()},
        "ratios": findings.ratios,
        "bars": bars,
        "measurements": measurements,
    }


def _write(result: Mapping[str, Any], output: Path) -> None:
    """Write to the file `output`, or into the folder `output` under the names of benchmark and device."""
    if output.is_dir():
        device = str(result["hardware"].get("gpu", "cpu")).lower().replace(" ", "-")
        output = output / f"{result['benchmark']}.{device}.json"
    output.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    say(f"wrote {output}")


@contextlib.contextmanager
def _stdout_only_for_the_result() -> Iterator[None]:
    with contextlib.redirect_stdout(sys.stderr):
        yield


def _wait_for(device: torch.device) -> Callable[[], None]:
    if device.type == "cuda":
        return lambda: torch.cuda.synchronize(device)
    return lambda: None


def _plain(value: object) -> Any:
    if isinstance(value, Path):
        return value.name  # Results are published; where the files lie on one machine is of no use to others.
    return value if isinstance(value, str | int | float | bool | list | dict | None) else str(value)


def _readable(value: object) -> str:
    if isinstance(value, Timing):
        return f"{value.median * 1e3:.2f} ms"
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
