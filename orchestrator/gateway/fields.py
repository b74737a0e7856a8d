"""Types of request fields: those that OpenAI's API has and this server only takes at their neutral values."""

from __future__ import annotations

import json
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, WithJsonSchema


class RequestModel(BaseModel):
    """A JSON object of a request. An unknown field is an error, not ignored."""

    # The length is that of no real text. With a limit, pydantic also refuses text that is not valid Unicode (JSON can
    # spell lone surrogates), which could not be sent to the services.
    model_config = ConfigDict(extra="forbid", str_max_length=2**26)


def only(*neutral: Any) -> Any:
    """Return the type of a field that this server does not offer: null, or one of the values without an effect."""

    def check(value: Any) -> Any:
        # True == 1 in Python, but n: true is not n: 1.
        if value is None or any(value == one and isinstance(value, bool) == isinstance(one, bool) for one in neutral):
            return value
        remedy = f"leave it out, or send {' or '.join(map(json.dumps, neutral))}" if neutral else "leave it out"
        raise ValueError(f"this server does not offer it; {remedy}")

    return Annotated[Any, AfterValidator(check), WithJsonSchema({"enum": [None, *neutral]})]


def _as_list(value: Any) -> Any:
    return [value] if isinstance(value, str) else value


_STRING_OR_LIST = {"anyOf": [{"type": "string"}, {"type": "array", "items": {"type": "string"}}]}

#: One string, or a list of them.
Strings = Annotated[list[str], BeforeValidator(_as_list), WithJsonSchema(_STRING_OR_LIST)]

#: A field that has no effect on an answer by OpenAI's own semantics: accepted and not used.
Unused = Annotated[Any, WithJsonSchema({})]
