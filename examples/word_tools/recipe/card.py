"""Write the model cards: one for all adapters, and a README.md in each adapter's folder."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from statistics import mean
from typing import Any

from examples.word_tools import BASE_MODEL
from examples.word_tools.recipe.measure import OTHER_ROWS, siblings
from examples.word_tools.recipe.training import ALL_LINEAR, LAYERS, RECORD, VALIDATION_ROWS, shape_of
from examples.word_tools.tasks import FAMILIES, TASKS

_INTRODUCTION = f"""# Adapters of the word tools

One LoRA of [{BASE_MODEL}](https://huggingface.co/{BASE_MODEL}) (Apache 2.0) per task, trained by
`python -m examples.word_tools train` on the float32 weights that `python -m examples.word_tools fetch` converts, and
stored in float16. `MODEL_CARD.md`, `measurements.json` and the adapters' `README.md` are written by that command.

Exact match ignores letter case and runs of spaces; answers are greedy, on rows whose inputs no adapter of the family
was trained on. "Rows" are those that the task's own adapter answers ("home"). "Sibling": the other adapters of the
family. They and the base model are asked the first {OTHER_ROWS} of the same questions.
"""
_SCORES = ("exact_match", "rouge_l")


def write(adapters: Path, measurements: Path, card: Path) -> None:
    """Write `card` and the adapters' READMEs from the measurements and the training records."""
    measured = json.loads(measurements.read_text(encoding="utf-8"))
    records = {task_id: json.loads((adapters / task_id / RECORD).read_text(encoding="utf-8")) for task_id in TASKS}
    card.write_text(f"{_INTRODUCTION}\n{_table(measured)}\n{_training_table(records)}", encoding="utf-8")
    for task_id in TASKS:
        readme = adapters / task_id / "README.md"
        readme.write_text(_readme(task_id, measured[task_id], records[task_id]), encoding="utf-8")


def _table(measured: Mapping[str, Any]) -> str:
    """Return the table of accuracies in percent, with the means of the families."""
    lines = [
        "## Held-out rows",
        "",
        "| task | rows | base | home | mean sibling | best sibling | ROUGE-L: base | home | mean sibling |",
        "|---" * 9 + "|",
    ]
    for family in FAMILIES:
        ids = [task_id for task_id, task in TASKS.items() if task.family == family]
        numbers = [_row(task_id, measured[task_id]) for task_id in ids]
        lines += [
            _line(task_id, measured[task_id][task_id]["rows"], row) for task_id, row in zip(ids, numbers, strict=True)
        ]
        lines.append(_line(f"**{family}**", "", [mean(column) for column in zip(*numbers, strict=True)]))
    everything = [_row(task_id, measured[task_id]) for task_id in TASKS]
    lines.append(_line("**all**", "", [mean(column) for column in zip(*everything, strict=True)]))
    return "\n".join(lines) + "\n"


def _row(task_id: str, scores: Mapping[str, Any]) -> list[float]:
    exact = [scores[sibling]["exact_match"] for sibling in siblings(task_id)]
    rouge = [scores[sibling]["rouge_l"] for sibling in siblings(task_id)]
    base, home = scores["base"], scores[task_id]
    return [
        base["exact_match"],
        home["exact_match"],
        mean(exact),
        max(exact),
        base["rouge_l"],
        home["rouge_l"],
        mean(rouge),
    ]


def _line(name: str, rows: object, numbers: list[float]) -> str:
    return f"| {name} | {rows} | " + " | ".join(f"{number:.1%}" for number in numbers) + " |"


def _training_table(records: Mapping[str, Any]) -> str:
    """Return the table of shapes and of what training took."""
    lines = ["## Training", "", "| task | rank | alpha | targets | steps | seconds | validation |", "|---" * 7 + "|"]
    for task_id, record in records.items():
        shape = shape_of(task_id)
        scaling = " (rsLoRA)" if shape.rslora else ""
        checks = ", ".join(f"{score:.0%}" for score in record["validation"])
        lines.append(
            f"| {task_id} | {shape.rank} | {shape.alpha}{scaling} | {_targets(task_id)} | {record['steps']} "
            f"| {record['seconds']:.0f} | {checks} |"
        )
    total = sum(record["seconds"] for record in records.values())
    lines += [
        "",
        f"Layers {LAYERS[0]} to {LAYERS[-1]} of 30. Seconds are those of a process with one thread; two ran at a time, "
        f"and the sum is {total / 60:.0f} minutes. Validation: share of {VALIDATION_ROWS} rows answered exactly "
        "at each check.",
    ]
    return "\n".join(lines) + "\n"


def _targets(task_id: str) -> str:
    return "all linear" if shape_of(task_id).targets == ALL_LINEAR else "attention"


def _readme(task_id: str, scores: Mapping[str, Any], record: Mapping[str, Any]) -> str:
    task, home, base = TASKS[task_id], scores[task_id], scores["base"]
    return f"""---
base_model: {BASE_MODEL}
library_name: peft
license: apache-2.0
---
# {task.display_name}

{task.description}. One of the word tools' adapters; family: {FAMILIES[task.family].lower()}.

| on {home["rows"]} held-out rows | exact match | ROUGE-L |
|---|---|---|
| this adapter | {home["exact_match"]:.1%} | {home["rouge_l"]:.1%} |
| base model, same prompt | {base["exact_match"]:.1%} | {base["rouge_l"]:.1%} |

Trained for {record["steps"]} steps of 16 rows with seed {record["seed"]} by `python -m examples.word_tools train`.
"""
