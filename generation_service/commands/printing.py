"""Print reports: a table for people, JSON for scripts."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterable, Iterator
from dataclasses import asdict

from rich.console import Console
from rich.table import Table
from rich.text import Text

from generation_service.commands.adapter_report import AdapterReport
from generation_service.commands.base_model_report import BaseModelReport

_PLAIN_WIDTH = 160  # Columns when the output is not a terminal: wide enough for most rows on one line.
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f]")
_Row = tuple[str, str]


def print_report(report: BaseModelReport | AdapterReport, *, as_json: bool) -> None:
    """Write a report to standard output. The table replaces control characters, which a folder's files may contain."""
    if as_json:
        document = {"kind": report.kind, **asdict(report)}
        sys.stdout.write(json.dumps(document, ensure_ascii=False, indent=2) + "\n")
        return
    console = Console(highlight=False, markup=False, width=None if sys.stdout.isatty() else _PLAIN_WIDTH)
    table = Table(show_header=False, title=report.path, title_justify="left")
    for name, value in _rows(report):
        table.add_row(name, Text(_shown(value), overflow="fold"))
    console.print(table)
    for warning in report.warnings:
        console.print(Text.assemble(("note: ", "yellow"), _shown(warning)), soft_wrap=True)
    for problem in report.problems:
        console.print(Text.assemble(("problem: ", "bold red"), _lines(problem)), soft_wrap=True)


def _rows(report: BaseModelReport | AdapterReport) -> Iterable[_Row]:
    rows = _model_rows(report) if isinstance(report, BaseModelReport) else _adapter_rows(report)
    return [(name, value) for name, value in rows if value]


def _model_rows(report: BaseModelReport) -> Iterator[_Row]:
    yield "base model", report.name
    yield "supported", "yes" if report.supported else "no"
    yield "family", f"{report.family} ({report.model_type})" if report.family else report.model_type
    if report.parameters is not None:
        yield "parameters", f"{report.parameters:,} ({report.parameters / 1e9:.2f} B)"
    yield "stored as", report.dtype or ""
    yield "quantised", f"{report.quantisation}; dequantised on load" if report.quantisation else ""
    if report.weight_files is not None and report.weight_file_bytes is not None:
        files = f"{_count(report.weight_files, 'file')}, {_size(report.weight_file_bytes)}"
        yield "weights", f"{_count(report.stored_tensors, 'tensor')} in {files}"
    if report.layers is not None:
        heads = f"{report.heads} heads, {report.kv_heads} for keys and values, of {report.head_dim}"
        yield "language model", f"{_count(report.layers, 'layer')}, hidden {report.hidden_size}, {heads}"
        yield "vocabulary", f"{report.vocab_size:,}"
        yield "longest sequence", f"{report.max_positions:,} tokens"
    if report.adaptable_modules is not None:
        of_images = f"{report.adaptable_image_modules} of them in vision tower and projector"
        yield "layers LoRA may adapt", f"{report.adaptable_modules}, {of_images}"
    if report.image_limits is not None:
        yield "images", ", ".join(f"{name} {value:,}" for name, value in report.image_limits.items()) or "none"
    if report.tokenizer is not None:
        yield "tokenizer", f"{report.tokenizer}, {_count(report.tokenizer_tokens, 'token')}"
    yield "chat template", report.chat_template or ""
    for name, size in (report.memory_bytes or {}).items():
        yield f"bf16 {name.replace('_', ' ')}", _size(size)


def _adapter_rows(report: AdapterReport) -> Iterator[_Row]:
    yield "adapter", report.peft_type or ""
    yield "supported", _verdict(report)
    yield "base model", report.base_model or ""
    if report.rank is not None:
        yield "rank", f"{report.rank}{_range(report.rank_range, report.rank)}"
        yield "alpha", f"{report.alpha:g}"
    if report.scaling_range is not None:
        rule = "alpha / sqrt(rank), rsLoRA" if report.use_rslora else "alpha / rank"
        yield "scaling", f"{report.scaling_range[0]:g}{_range(report.scaling_range, report.scaling_range[0])} ({rule})"
    targets = report.target_modules
    yield "targets", ", ".join(map(str, targets)) if isinstance(targets, list) else str(targets or "")
    if report.tensors is not None:
        yield "tensors", f"{report.tensors} on {_count(report.adapted_modules or 0, 'module')}, {report.dtype}"
    if report.bound_tensors is not None:
        yield "bind", f"{report.bound_tensors} of {report.tensors} to {report.checked_against}"
    if report.rank_columns is not None:
        whole = f", {_size(report.bank_bytes)} of the bank in bf16" if report.bank_bytes else ""
        yield "takes", f"{_count(report.rank_columns, 'rank column')}{whole}; its own values {_size(report.bytes or 0)}"
    if report.revision is not None:
        yield "revision", f"{report.short_revision} ({report.revision})"


def _shown(text: str) -> str:
    return _CONTROL.sub("\N{REPLACEMENT CHARACTER}", text)


def _lines(text: str) -> str:
    return "\n".join(map(_shown, text.split("\n")))


def _verdict(report: AdapterReport) -> str:
    if not report.supported:
        return "no"
    return "yes" if report.bound_tensors is not None else "not checked: no base model given"


def _range(bounds: tuple[float, float] | None, value: float) -> str:
    return f" ({bounds[0]:g} to {bounds[1]:g})" if bounds and set(bounds) != {value} else ""


def _count(number: int | None, word: str) -> str:
    return f"{number:,} {word}" if number == 1 else f"{number or 0:,} {word}s"


def _size(size: int) -> str:
    return f"{size / 2**30:.2f} GiB" if size >= 2**30 else f"{size / 2**20:.2f} MiB"
