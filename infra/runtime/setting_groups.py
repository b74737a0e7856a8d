"""Groups of settings: nested in Python, flat on the command line and in the environment.

class QdrantOptions(SettingsGroup):
    prefix: ClassVar[str] = "qdrant_"
    url: str = Field("", description="...")                              # --qdrant-url
    collection: Annotated[str, SettingName("collection")] = Field(...)   # --collection

class RetrievalSettings(TierSettings):
    qdrant: QdrantOptions = QdrantOptions()                              # settings.qdrant.url

The default instance may override defaults of the group: `server: ServerOptions = ServerOptions(address="127.0.0.1:1")`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any, ClassVar, get_origin

from pydantic import AliasChoices, BaseModel, ConfigDict, ValidationInfo, field_validator
from pydantic.fields import FieldInfo


@dataclass(frozen=True)
class SettingName:
    """Annotation of a group's field: the setting's name, in place of the group's prefix and the field's name."""

    name: str


class SettingsGroup(BaseModel):
    """Settings of one concern. `prefix` precedes the field names in flags and environment variables."""

    model_config = ConfigDict(frozen=True, extra="forbid", populate_by_name=True)
    prefix: ClassVar[str] = ""

    @field_validator("*", mode="before")
    @classmethod
    def _split_lists(cls, value: Any, info: ValidationInfo) -> Any:
        return split_list(cls.model_fields[info.field_name or ""], value)


@dataclass(frozen=True)
class Setting:
    """One flag and its environment variables.

    `group` is the field of the tier's settings that holds its group ("": no group), `field` its own field there, and
    `default` its value when nothing is given (PydanticUndefined: it is required).
    """

    name: str
    group: str
    field: str
    info: FieldInfo
    default: Any

    @property
    def aliases(self) -> tuple[str, ...]:
        """Environment variables given by a validation alias, instead of the tier's prefix and the name."""
        alias = self.info.validation_alias
        choices = alias.choices if isinstance(alias, AliasChoices) else [alias]
        return tuple(choice for choice in choices if isinstance(choice, str) and choice != self.name)


@cache
def settings_of(cls: type[BaseModel]) -> Mapping[str, Setting]:
    """Return all settings of a class by name, those of its groups in place of the group."""
    settings: dict[str, Setting] = {}
    for setting in _settings(cls):
        if setting.name in settings:
            raise TypeError(f"{cls.__name__} has two settings named {setting.name!r}")
        settings[setting.name] = setting
    return settings


def nested(cls: type[BaseModel], values: Mapping[str, Any]) -> dict[str, Any]:
    """Return flat values with those of groups nested below the group's field. Unknown keys stay as they are."""
    remaining = dict(values)
    groups: dict[str, dict[str, Any]] = {}
    for field, group in _groups(cls):
        given = remaining.get(field)
        # A setting may have the name of its group, as --embedder has: a plain value is the setting's.
        base = remaining.pop(field) if isinstance(given, SettingsGroup | Mapping) else _default(cls.model_fields[field])
        if isinstance(base, group):
            groups[field] = {name: getattr(base, name) for name in base.model_fields_set}
        else:
            groups[field] = dict(base) if isinstance(base, Mapping) else {}
    flat: dict[str, Any] = {}
    for setting in settings_of(cls).values():
        given = [remaining.pop(key) for key in (*setting.aliases, setting.name) if key in remaining]
        if given:
            target = groups[setting.group] if setting.group else flat
            target[setting.field] = given[0]
    return {**remaining, **flat, **groups}


def split_list(info: FieldInfo, value: Any) -> Any:
    """Return the items of a comma-separated value where the field is a tuple; any other value unchanged."""
    if isinstance(value, str) and get_origin(info.annotation) is tuple:
        return tuple(item.strip() for item in value.split(",") if item.strip())
    return value


def _settings(cls: type[BaseModel]) -> Iterator[Setting]:
    groups = dict(_groups(cls))
    for field, info in cls.model_fields.items():
        group = groups.get(field)
        if group is None:
            yield Setting(field, "", field, info, _default(info))
            continue
        defaults = _default(info)
        for member, member_info in group.model_fields.items():
            own_name = next((item.name for item in member_info.metadata if isinstance(item, SettingName)), None)
            default = getattr(defaults, member) if isinstance(defaults, group) else _default(member_info)
            yield Setting(own_name or group.prefix + member, field, member, member_info, default)


def _groups(cls: type[BaseModel]) -> Iterator[tuple[str, type[SettingsGroup]]]:
    for field, info in cls.model_fields.items():
        if isinstance(info.annotation, type) and issubclass(info.annotation, SettingsGroup):
            yield field, info.annotation


def _default(info: FieldInfo) -> Any:
    return info.get_default(call_default_factory=True, validated_data={})
