"""The ledger's Lua scripts, as package resources."""

from __future__ import annotations

import re
from functools import cache
from importlib.resources import files

_SCRIPTS = files(__package__) / "scripts"
_INCLUDE = re.compile(r'^--- @include "(\w+)"$', re.MULTILINE)


@cache
def script(name: str) -> str:
    """Return the text of `scripts/<name>.lua`.

    A line `--- @include "now"` is replaced by `scripts/includes/now.lua`: Redis offers scripts no modules to share.
    """
    text = (_SCRIPTS / f"{name}.lua").read_text(encoding="utf-8")
    return _INCLUDE.sub(lambda include: _included(include[1]), text)


@cache
def _included(name: str) -> str:
    return (_SCRIPTS / "includes" / f"{name}.lua").read_text(encoding="utf-8")
