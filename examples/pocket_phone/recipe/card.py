"""Measure the checkpoints and write the model card: `measurements.json` and `MODEL_CARD.md`."""

from __future__ import annotations

import json
import platform
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import mean
from typing import Any

import peft
import torch
import transformers

from examples.pocket_phone.apps import ADAPTER_IDS, APPS, CATEGORIES, apps_of
from examples.pocket_phone.recipe import adapters, embedder, layout
from examples.pocket_phone.recipe.batches import Features
from examples.pocket_phone.recipe.evaluate import (
    Adapter,
    Bench,
    adapter_vectors,
    bench,
    composed,
    exact,
    load_adapter,
    retrieval_quality,
    similarities,
)
from examples.pocket_phone.recipe.state import Journal, Progress

EPISODES = 20
TEMPERATURES = (0.03, 0.05, 0.1, 0.2)


def write(output: Path, seed: int, device: str, journal: Journal, progress: Progress) -> None:
    """Measure everything in `output` on held-out episodes and write the card there."""
    numbers = {
        "seed": seed,
        "episodes_per_dataset": EPISODES,
        "seconds": journal.entries,
        "rounds": journal.rounds,
        "versions": {"torch": torch.__version__, "transformers": transformers.__version__, "peft": peft.__version__},
        "machine": f"{device}, {platform.machine()}, Python {platform.python_version()}",
        "answers": _answers(output, seed, device, progress),
        "retrieval": _retrieval(output, seed, device),
    }
    (output / "measurements.json").write_text(json.dumps(numbers, indent=2) + "\n", encoding="utf-8")
    (output / "MODEL_CARD.md").write_text(render(numbers), encoding="utf-8")


def _answers(output: Path, seed: int, device: str, progress: Progress) -> dict[str, dict[str, float]]:
    """Return for each app the share of exact answers of the base model, each kind of adapter, and mixtures."""
    model = layout.load_base(output / "base", device)
    zoo = {name: load_adapter(output / "adapters" / name) for name in ADAPTER_IDS}
    benches = {name: bench(name, EPISODES, seed) for name in APPS}
    features = Features(model)
    table = {}
    names = list(APPS)
    for number in progress.track("card: answers", len(names)):
        name = names[number]
        table[name] = _app_answers(model, zoo, name, benches[name], features)
    return table


def _app_answers(model: Any, zoo: Mapping[str, Adapter], name: str, app: Bench, features: Features) -> dict[str, float]:
    def score(parts: Mapping[str, float]) -> float:
        with composed(model, [(zoo[each], weight) for each, weight in parts.items()]):
            return exact(model, app.steps, features)

    category = APPS[name].category
    siblings = [each.name for each in apps_of(category) if each.name != name]
    strangers = [each.name for each in APPS.values() if each.category != category]
    stranger = strangers[list(APPS).index(name) % len(strangers)]
    scores = {each: score({each: 1.0}) for each in siblings}
    near, far = siblings[0], stranger
    with composed(model, [(zoo[name], 1.0)]):
        sequence = exact(model, app.sequences, features)
    return {
        "steps": len(app.steps),
        "base": score({}),
        "home": score({name: 1.0}),
        "category": score({category: 1.0}),
        "best sibling": max(scores.values()),
        "mean sibling": mean(scores.values()),
        "stranger": score({stranger: 1.0}),
        "mix .8/.1/.1": score({name: 0.8, near: 0.1, far: 0.1}),
        "mix .6/.2/.2": score({name: 0.6, near: 0.2, far: 0.2}),
        "mix 1/3 each": score({name: 1 / 3, near: 1 / 3, far: 1 / 3}),
        "home, sequence": sequence,
    }


def _retrieval(output: Path, seed: int, device: str) -> dict[str, dict[str, Any]]:
    """Return how well held-out step prompts retrieve their own app among 14, and their own category among 5."""
    model = embedder.load(output / "jina_v4", device)
    result = {}
    for kind, names in (("app", list(APPS)), ("category", list(CATEGORIES))):
        for task in ("retrieval", None):
            model.use(task)
            vectors = adapter_vectors(model, names, seed)
            scores = [similarities(model, vectors, bench(name, EPISODES, seed).examples) for name in names]
            judged = retrieval_quality(scores, TEMPERATURES)
            weights = {str(temperature): weight for temperature, weight in judged.home_weight.items()}
            result[f"{kind}, {task or 'no task adapter'}"] = {
                "@1": judged.at_1,
                "@3": judged.at_3,
                "home weight": weights,
            }
    return result


def render(numbers: Mapping[str, Any]) -> str:
    """Return the model card as Markdown."""
    parts = (_introduction, _answers_section, _retrieval_section, _adapters_section, _time_section)
    return "\n".join(line for part in parts for line in part(numbers))


def _introduction(numbers: Mapping[str, Any]) -> list[str]:
    versions = ", ".join(f"{name} {version}" for name, version in numbers["versions"].items())
    return [
        "# Pocket phone checkpoints",
        "",
        "Written by `python -m examples.pocket_phone train`. Trained from scratch on the synthetic phone of this "
        "folder, for demonstration and tests only.",
        "",
        f"- `base/`: a Qwen2-VL with {layout.LAYERS} layers and hidden size {layout.HIDDEN}, in the original Qwen2-VL "
        "layout, float16.",
        "- `adapters/`: 19 PEFT adapters, one per app and one per category.",
        f"- `jina_v4/`: a jina-embeddings-v4 with {embedder.LAYERS} layers and {embedder.DIMENSION} dimensions, in the "
        "hub's layout, with three task adapters.",
        "",
        f"Seed {numbers['seed']}; {numbers['machine']}; {versions}.",
        "",
    ]


def _answers_section(numbers: Mapping[str, Any]) -> list[str]:
    answers = numbers["answers"]
    columns = [column for column in next(iter(answers.values())) if column != "steps"]
    means = {column: mean(row[column] for row in answers.values()) for column in columns}
    rows = [*answers.items(), ("**mean**", means)]
    return [
        "## Answers",
        "",
        f"Share of held-out steps answered exactly: greedy, float32, {numbers['episodes_per_dataset']} test episodes "
        "per app, protocol `step` with the true history. `best sibling` is the best adapter of another app of the same "
        "category, `stranger` an adapter of another category. Mixtures are exact weighted sums of the deltas of home, "
        "a sibling and a stranger. `home, sequence`: whole episodes in one answer, with every action correct.",
        "",
        "| app | " + " | ".join(columns) + " |",
        "|---" * (len(columns) + 1) + "|",
        *("| " + " | ".join([name, *(f"{row[column]:.1%}" for column in columns)]) + " |" for name, row in rows),
        "",
    ]


def _retrieval_section(numbers: Mapping[str, Any]) -> list[str]:
    return [
        "## Retrieval",
        "",
        "Held-out step prompts against the mean vector of 20 training prompts per adapter. `weight at T` is the mean "
        "weight that softmax(cosine / T) over the first three gives to the true adapter.",
        "",
        "| search | @1 | @3 | " + " | ".join(f"weight at {temperature}" for temperature in TEMPERATURES) + " |",
        "|---" * (3 + len(TEMPERATURES)) + "|",
        *(
            f"| {name} | {row['@1']:.1%} | {row['@3']:.1%} | "
            + " | ".join(f"{weight:.3f}" for weight in row["home weight"].values())
            + " |"
            for name, row in numbers["retrieval"].items()
        ),
        "",
    ]


def _adapters_section(numbers: Mapping[str, Any]) -> list[str]:
    return [
        "## Adapters",
        "",
        f"An app's adapter that scores below {adapters.GOOD:.0%} on new episodes of the training split gets another "
        f"round of training, a category's below {adapters.GOOD_CATEGORY:.0%}. The last column is the score after each "
        "round.",
        "",
        "| adapter | rank | alpha | scaling | target modules | rounds |",
        "|---|---|---|---|---|---|",
        *(_shape_row(name, numbers["rounds"].get(name, [])) for name in ADAPTER_IDS),
        "",
    ]


def _time_section(numbers: Mapping[str, Any]) -> list[str]:
    return [
        "## Time",
        "",
        "| part | seconds |",
        "|---|---|",
        *(f"| {name} | {seconds:.0f} |" for name, seconds in _times(numbers["seconds"]).items()),
        "",
    ]


def _shape_row(name: str, rounds: Sequence[float]) -> str:
    shape = adapters.SHAPES.get(name, adapters.USUAL)
    rule = "rsLoRA" if shape.rslora else "alpha / rank"
    targets = "all linear" if shape.targets == adapters.ALL_LINEAR else ", ".join(shape.targets)
    reached = ", ".join(f"{score:.1%}" for score in rounds)
    return f"| {name} | {shape.rank} | {shape.alpha} | {rule} | {targets} | {reached} |"


def _times(seconds: Mapping[str, float]) -> dict[str, float]:
    """Return seconds per stage; those of the adapters are summed over parallel processes."""
    one = {name: value for name, value in seconds.items() if not name.startswith("adapters/")}
    return {**one, "adapters (sum)": sum(value for name, value in seconds.items() if name.startswith("adapters/"))}
