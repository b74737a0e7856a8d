"""The canonical prompts, identical in training and evaluation.

`step`: [the current screen, the instruction and the true actions so far] -> one action.
`sequence`: [every screen of the episode, the instruction] -> all actions, one per line.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from examples.pocket_phone.episodes import Episode
from examples.pocket_phone.screens import Screen

SYSTEM = "You are a helpful assistant."
IMAGE = "<|vision_start|><|image_pad|><|vision_end|>"


@dataclass(frozen=True)
class Example:
    """One prompt with its answer: `screens` come before `text` in a single user message."""

    screens: tuple[Screen, ...]
    text: str
    answer: str


def step_text(instruction: str, history: Sequence[str]) -> str:
    """Return the text part of a `step` prompt."""
    return "\n".join([instruction, "Actions so far:", *history]) if history else instruction


def step_examples(episode: Episode) -> list[Example]:
    """Return one example per step, each with the true actions before it."""
    return [
        Example((step.screen,), step_text(episode.instruction, episode.actions[:number]), step.action)
        for number, step in enumerate(episode.steps)
    ]


def sequence_example(episode: Episode) -> Example:
    """Return the whole episode as one example."""
    return Example(tuple(step.screen for step in episode.steps), episode.instruction, "\n".join(episode.actions))


def chat(text: str, images: int, system: str = SYSTEM) -> str:
    """Return the prompt as Qwen2-VL's chat template renders it: images first, then the text."""
    return (
        f"<|im_start|>system\n{system}<|im_end|>\n"
        f"<|im_start|>user\n{IMAGE * images}{text}<|im_end|>\n<|im_start|>assistant\n"
    )
