"""Conversation -> token ids by the checkpoint's chat template, in which no caller's text can pose as the template."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from transformers import AutoTokenizer

from generation_service.models.chat_template import find_template
from generation_service.models.conversation import ConversationRenderer
from generation_service.models.segments import SegmentTokenizer
from infra.contract.errors import CheckpointError
from infra.contract.prompt import Prompt

_VOCABULARIES = ("tokenizer.json", "vocab.json", "tokenizer.model")


class ChatTokenizer:
    """The tokenizer and chat template of a checkpoint folder.

    A special token that a caller spells out, such as `<|im_end|>`, is tokenised as ordinary characters. Any other text
    gives the same ids as transformers. `template_file` replaces the folder's own template.
    """

    def __init__(self, folder: Path, template_file: Path | None = None) -> None:
        self._renderer = load_tokenizer(folder)
        self._tokenizer = SegmentTokenizer(self._renderer.backend_tokenizer)
        self.special = self._tokenizer.special
        self.longest_token = self._tokenizer.longest_token
        self.largest_token = self._tokenizer.largest_token
        self.largest_ordinary_token = self._tokenizer.largest_ordinary_token
        self.spelling = self._tokenizer.spelling
        self.decode = self._tokenizer.decode
        self._template = find_template(folder, template_file, self._renderer.chat_template)
        self._conversation = ConversationRenderer(self._render, list(self.special), self._template.file)

    def __len__(self) -> int:
        """Vocabulary size, special tokens included."""
        return len(self._tokenizer)

    @property
    def template_source(self) -> str:
        """The file that the chat template was read from."""
        return self._template.file

    @property
    def end_tokens(self) -> frozenset[int]:
        """The tokens that end an answer: the tokenizer's, and what the template writes after an assistant's message."""
        after = self._conversation.traits.after_answer.lstrip()
        written = {number for token, number in self.special.items() if after.startswith(token)}
        end = self._renderer.eos_token_id
        return frozenset(written if end is None else written | {end})

    @property
    def notes(self) -> tuple[str, ...]:
        """Sentences on what is done differently from what a caller may expect."""
        merged = "the chat template has no system role: a system message is put before the first user message"
        return () if self._conversation.traits.system_role else (merged,)

    @property
    def name(self) -> str:
        """The class of the tokenizer."""
        return str(type(self._renderer).__name__)

    def encode(self, prompt: Prompt) -> list[int]:
        """Return the ids of `prompt` with the assistant's turn opened, and one image token for each image."""
        return self._tokenizer.encode(self._conversation.segments(prompt))

    def _render(self, conversation: list[dict[str, Any]]) -> str:
        return str(
            self._renderer.apply_chat_template(
                conversation, chat_template=self._template.text, tokenize=False, add_generation_prompt=True
            )
        )


def expand_images(tokens: Sequence[int], image_token: int, runs: Sequence[Sequence[int]]) -> list[int]:
    """Replace each image's one token by its run of tokens, in reading order.

    Raises CheckpointError if the template placed another number of images.
    """
    if tokens.count(image_token) != len(runs):
        raise CheckpointError(
            f"the chat template places {tokens.count(image_token)} image tokens for {len(runs)} images: "
            "use the chat template that the base model was published with"
        )
    remaining = iter(runs)
    expanded: list[int] = []
    for token in tokens:
        expanded += next(remaining) if token == image_token else [token]
    return expanded


def load_tokenizer(folder: Path, tokenizer_class: Any = AutoTokenizer) -> Any:
    """Load the folder's tokenizer with transformers. Raises CheckpointError if there is no readable one.

    Checks for a vocabulary file first, because transformers builds an empty tokenizer for a folder without one.
    """
    try:
        if not any((folder / name).is_file() for name in _VOCABULARIES):
            raise FileNotFoundError(f"it has none of {', '.join(_VOCABULARIES)}")
        return tokenizer_class.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    except Exception as error:
        raise CheckpointError(
            f"{folder} has no readable tokenizer ({error}): give the complete folder, tokenizer.json included",
            path=str(folder),
        ) from error
