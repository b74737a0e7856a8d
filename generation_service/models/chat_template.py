"""Which file a checkpoint's chat template is read from."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

from generation_service.models.folder import read_json
from infra.contract.errors import CheckpointError, ConfigurationError

_JINJA, _JSON, _TOKENIZER_CONFIG = "chat_template.jinja", "chat_template.json", "tokenizer_config.json"
_FIELD, _DEFAULT = "chat_template", "default"


@dataclass(frozen=True)
class TemplateSource:
    """A template's text, and the file it was read from."""

    text: str
    file: str


def find_template(folder: Path, override: Path | None = None, loaded: object = None) -> TemplateSource:
    """Return the chat template of `folder`, or the one in the file `override`.

    A model's processor writes chat_template.jinja, or chat_template.json in older releases of transformers; both take
    precedence over tokenizer_config.json, which may hold a template for text and tools only. `loaded` is what the
    loaded tokenizer holds, for folders that keep templates elsewhere, such as in additional_chat_templates.

    Raises CheckpointError if there is no template, and ConfigurationError if `override` cannot be read.
    """
    if override is not None:
        return TemplateSource(_override(override), str(override))
    if (folder / _JINJA).is_file():
        return TemplateSource(_text_of(folder / _JINJA), _JINJA)
    for name in (_JSON, _TOKENIZER_CONFIG):
        if (folder / name).is_file() and (found := read_json(folder / name).get(_FIELD)):
            return TemplateSource(_default_of(found, folder / name), name)
    if loaded:
        return TemplateSource(_default_of(loaded, folder), "the tokenizer's files")
    raise CheckpointError(
        f"{folder} has no chat template, as base models that were not trained on conversations: "
        "give one with --chat-template FILE, or use the instruct version of the model",
        path=str(folder),
    )


def _default_of(value: object, where: Path) -> str:
    """Return the template in a field that holds one, or several by name."""
    if isinstance(value, str):
        return value
    if isinstance(value, list):
        value = {entry.get("name"): entry.get("template") for entry in value if isinstance(entry, dict)}
    named = (
        {str(name): text for name, text in value.items() if isinstance(text, str)} if isinstance(value, dict) else {}
    )
    if _DEFAULT in named or len(named) == 1:
        return named.get(_DEFAULT) or next(iter(named.values()))
    raise CheckpointError(
        f"{where} has chat templates named {', '.join(named) or 'nothing'} and none named {_DEFAULT}: write the one to "
        "use into a file and give it with --chat-template FILE",
        path=str(where),
    )


def _text_of(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise CheckpointError(f"{path} cannot be read: {error}; download it again", path=str(path)) from error


def _override(path: Path) -> str:
    def refuse(reason: object) -> NoReturn:
        raise ConfigurationError(f"--chat-template {path}: {reason}")

    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        refuse(error)
    if path.suffix == ".json":
        text = _default_of(read_json(path).get(_FIELD) or {}, path)
    return text if text.strip() else refuse("the file is empty")
