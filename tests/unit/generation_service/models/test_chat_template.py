"""Which file a chat template is read from, and folders whose templates cannot be used."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from generation_service.models.chat import ChatTokenizer
from generation_service.models.chat_template import find_template
from infra.contract.errors import CheckpointError, ConfigurationError
from tests.support.checkpoints.text_tokenizers import TEMPLATES, write_tokenizer

TEMPLATE = TEMPLATES["concatenation with a default system text"]


def write_config(folder: Path, template: object) -> None:
    (folder / "tokenizer_config.json").write_text(json.dumps({"chat_template": template}))


def test_processor_files_come_before_the_tokenizers(tmp_path: Path) -> None:
    write_config(tmp_path, "of the tokenizer")
    assert find_template(tmp_path).file == "tokenizer_config.json"
    (tmp_path / "chat_template.json").write_text(json.dumps({"chat_template": "of the processor"}))
    assert find_template(tmp_path).text == "of the processor"
    (tmp_path / "chat_template.jinja").write_text("of both")
    assert find_template(tmp_path).text == "of both"
    (tmp_path / "mine.jinja").write_text("mine")
    assert find_template(tmp_path, tmp_path / "mine.jinja").text == "mine"


def test_default_of_several_named_templates_is_used(tmp_path: Path) -> None:
    named = [{"name": "tool_use", "template": "tools"}, {"name": "default", "template": "plain"}]
    write_config(tmp_path, named)
    assert find_template(tmp_path).text == "plain"
    write_config(tmp_path, named[:1])
    assert find_template(tmp_path).text == "tools"
    write_config(tmp_path, [*named[:1], {"name": "rag", "template": "x"}])
    with pytest.raises(CheckpointError, match=r"named tool_use, rag and none named default.*--chat-template FILE"):
        find_template(tmp_path)


def test_additional_templates_beside_the_default_are_left_alone(tmp_path: Path) -> None:
    folder = write_tokenizer(tmp_path, "byte-level", None)
    (folder / "chat_template.jinja").write_text(TEMPLATE)
    (folder / "additional_chat_templates").mkdir()
    (folder / "additional_chat_templates" / "tool_use.jinja").write_text("{{ 1 / 0 }}")
    assert ChatTokenizer(folder).template_source == "chat_template.jinja"


def test_template_of_another_folder_can_be_given(tmp_path: Path) -> None:
    (tmp_path / "chat_template.json").write_text(json.dumps({"chat_template": TEMPLATE}))
    folder = write_tokenizer(tmp_path / "base", "byte-level", None)
    with pytest.raises(CheckpointError, match=r"has no chat template.*--chat-template FILE"):
        ChatTokenizer(folder)
    assert ChatTokenizer(folder, tmp_path / "chat_template.json").template_source.endswith("chat_template.json")


@pytest.mark.parametrize("content", [None, b" \n", b"\xff\xfe"])
def test_file_that_is_no_template_is_a_wrong_setting(content: bytes | None, tmp_path: Path) -> None:
    if content is not None:
        (tmp_path / "mine.jinja").write_bytes(content)
    with pytest.raises(ConfigurationError, match=r"--chat-template .*mine\.jinja"):
        find_template(tmp_path, tmp_path / "mine.jinja")


@pytest.mark.parametrize(
    ("template", "reason"),
    [
        ("{% for message in messages %}<|user|>{% endfor %}", "leaves out the text"),
        ("{{ messages[0].content", "TemplateSyntaxError"),
        ("{{ raise_exception('Needs tools') }}", "Needs tools"),
        ("{{ messages[0].text + 'x' }}", "UndefinedError"),
    ],
)
def test_template_that_renders_no_question_is_refused(template: str, reason: str, tmp_path: Path) -> None:
    folder = write_tokenizer(tmp_path, "byte-level", template)
    with pytest.raises(CheckpointError, match=rf"{reason}.*--chat-template FILE"):
        ChatTokenizer(folder)


def test_answers_end_with_tokenizers_end_and_with_what_follows_an_answer(tmp_path: Path) -> None:
    chat = ChatTokenizer(write_tokenizer(tmp_path, "byte-level", TEMPLATE))
    assert chat.end_tokens == {chat.special["</s>"], chat.special["<|end|>"]}
