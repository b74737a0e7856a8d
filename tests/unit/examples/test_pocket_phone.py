"""The demo world: its conventions, screens, episodes and files."""

from __future__ import annotations

import json
from collections import Counter
from itertools import pairwise
from pathlib import Path

import pytest
from PIL import Image

from examples.pocket_phone.__main__ import main
from examples.pocket_phone.apps import ADAPTER_IDS, APPS, CATEGORIES, Slot, action_of, apps_of, plan_of
from examples.pocket_phone.dataset import SPLITS, write_world
from examples.pocket_phone.episodes import DONE, OPEN, generate, glyphs_of
from examples.pocket_phone.glyphs import CELL, GLYPHS
from examples.pocket_phone.prompts import chat, sequence_example, step_examples
from examples.pocket_phone.screens import HEIGHT, HOME, WIDTH, Screen

THE_APPS = [
    "adidas",
    "amazon",
    "calendar",
    "clock",
    "decathlon",
    "ebay",
    "etsy",
    "flipkart",
    "gmail",
    "google_drive",
    "google_maps",
    "kitchen_stories",
    "reminder",
    "youtube",
]


def test_world_has_apps_and_categories_of_study() -> None:
    assert sorted(APPS) == THE_APPS
    assert sorted(CATEGORIES) == ["entertainment", "lives", "office", "shopping", "traveling"]
    assert all(len(apps_of(name)) >= 2 for name in CATEGORIES)
    assert len(ADAPTER_IDS) == 19


@pytest.mark.parametrize("name", APPS)
def test_every_plan_names_drawable_glyphs_with_distinct_labels(name: str) -> None:
    app = APPS[name]
    for intent in CATEGORIES[app.category].intents:
        plan = plan_of(app, intent)
        for slot in plan:
            assert not isinstance(slot, Slot) or slot.preferred != slot.fallback
        for glyph in glyphs_of(plan):
            assert glyph in GLYPHS
            assert action_of(app, glyph)
    labels = Counter(action_of(app, glyph) for glyph in CATEGORIES[app.category].labels)
    assert max(labels.values()) == 1


def test_siblings_share_some_conventions_but_not_all() -> None:
    for category in CATEGORIES.values():
        apps = apps_of(category.name)
        for first, second in pairwise(apps):
            same = [action_of(first, glyph) == action_of(second, glyph) for glyph in category.labels]
            assert any(same)
            assert not all(same)


def test_same_instruction_on_other_screen_needs_other_action() -> None:
    answers: dict[str, set[str]] = {}
    for episode in generate("adidas", "train", 300, seed=3):
        for example in step_examples(episode):
            answers.setdefault(example.text, set()).add(example.answer)
    assert sum(len(found) > 1 for found in answers.values()) > 20


def test_train_and_test_share_neither_ids_nor_screens() -> None:
    ids: dict[str, set[str]] = {"train": set(), "test": set()}
    screens: dict[str, set[Screen]] = {"train": set(), "test": set()}
    for adapter_id in ADAPTER_IDS:
        for split, count in zip(SPLITS, (40, 20), strict=True):
            for episode in generate(adapter_id, split, count, seed=1):
                assert episode.episode_id not in ids[split]
                ids[split].add(episode.episode_id)
                screens[split].update(step.screen for step in episode.steps)
    assert not ids["train"] & ids["test"]
    assert not screens["train"] & screens["test"]


def test_fewer_episodes_are_a_prefix_of_more() -> None:
    assert generate("clock", "test", 3, seed=5) == generate("clock", "test", 9, seed=5)[:3]


def test_episodes_have_three_to_six_steps_and_end_checked() -> None:
    for adapter_id in ADAPTER_IDS:
        for episode in generate(adapter_id, "train", 60, seed=2):
            assert 3 <= len(episode.steps) <= 6
            assert episode.actions[-1] == DONE
            for step in episode.steps:
                assert (step.screen.app == HOME) == step.action.startswith(OPEN)
                assert step.screen.app in {HOME, episode.app}


def test_screen_is_whole_cells_and_drawn_deterministically() -> None:
    screen = generate("gmail", "train", 1, seed=1)[0].steps[0].screen
    assert screen.render().size == (WIDTH, HEIGHT)
    assert WIDTH % CELL == HEIGHT % CELL == 0
    assert screen.render().tobytes() == screen.render().tobytes()
    assert len(screen.concepts()) == WIDTH * HEIGHT // CELL**2


def test_prompts_are_canonical() -> None:
    episode = generate("etsy", "train", 1, seed=1)[0]
    steps = step_examples(episode)
    assert steps[0].text == episode.instruction
    assert steps[2].text == f"{episode.instruction}\nActions so far:\n{episode.actions[0]}\n{episode.actions[1]}"
    assert [example.answer for example in steps] == episode.actions
    whole = sequence_example(episode)
    assert whole.text == episode.instruction
    assert whole.answer == "\n".join(episode.actions)
    assert chat("Hi.", 1) == (
        "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n<|im_start|>user\n"
        "<|vision_start|><|image_pad|><|vision_end|>Hi.<|im_end|>\n<|im_start|>assistant\n"
    )


def test_written_world_is_complete_and_reproducible_to_the_byte(tmp_path: Path) -> None:
    for name in ("one", "two"):
        write_world(tmp_path / name, train=2, test=1, seed=7)
    files = sorted(path.relative_to(tmp_path / "one") for path in (tmp_path / "one").rglob("*") if path.is_file())
    assert files == sorted(
        path.relative_to(tmp_path / "two") for path in (tmp_path / "two").rglob("*") if path.is_file()
    )
    assert all((tmp_path / "one" / file).read_bytes() == (tmp_path / "two" / file).read_bytes() for file in files)
    world = json.loads((tmp_path / "one" / "world.json").read_text(encoding="utf-8"))
    assert [entry["adapter_id"] for entry in world] == list(ADAPTER_IDS)
    for entry in world:
        assert entry["kind"] == ("app" if entry["adapter_id"] in APPS else "category")
        for split, count in (("train", 2), ("test", 1)):
            path = tmp_path / "one" / entry[split]
            rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
            assert len(rows) == count
            for row in rows:
                assert row["query"].count("<image>\n") == len(row["images"]) == len(row["response"].split("\n"))
                for image in row["images"]:
                    with Image.open(path.parent / image) as opened:
                        assert opened.size == (WIDTH, HEIGHT)


def test_command_line_generates_and_names_bad_counts(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["generate", "--output", str(tmp_path / "w"), "--train", "1", "--test", "1"]) == 0
    assert (tmp_path / "w" / "world.json").exists()
    assert main(["generate", "--output", str(tmp_path / "x"), "--train", "99999"]) == 2
    assert "train count must be from 0 to 9000, got 99999" in capsys.readouterr().err
