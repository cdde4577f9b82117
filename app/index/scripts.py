"""The Lua scripts in `scripts/`, one verb each, and calls of them, ready for any client, blocking or not."""

from __future__ import annotations

import hashlib
import re
from functools import cache
from importlib import resources
from typing import Final

import msgspec

from app.index.keys import LAYOUT

_INCLUDE: Final = re.compile(r"^--!include (.+)$", re.MULTILINE)
_FUNCTIONS: Final = re.compile(r"^--!functions (.+)$", re.MULTILINE)

Argument = str | bytes | int | float


class Script(msgspec.Struct, frozen=True):
    name: str
    source: str
    sha: str


@cache
def load(name: str) -> Script:
    """Reads `name.lua` with its includes put in place."""
    folder = resources.files("app.index") / "scripts"

    def included(match: re.Match[str]) -> str:
        return "\n".join((folder / f"{part}.lua").read_text("utf-8") for part in match[1].split())

    source = _INCLUDE.sub(included, (folder / f"{name}.lua").read_text("utf-8"))
    return Script(name, source, hashlib.sha1(source.encode(), usedforsecurity=False).hexdigest())


@cache
def library() -> str:
    """The source of the function library: the scripts it names as functions, so that both run the same body."""

    def functions(match: re.Match[str]) -> str:
        # Parameters named like the globals that a script reads take their place.
        return "\n".join(
            f"local function {name}(KEYS, ARGV)\n{load(name).source}\nend\n" for name in match[1].split()
        )

    source = load("library").source.replace("--!layout", f"local layout = '{LAYOUT}'")
    return _FUNCTIONS.sub(functions, source)


class Call(msgspec.Struct, frozen=True):
    """One script with its arguments, ready for any client, blocking or not.

    `prefix` is KEYS[1]: it routes the call to its shard, and every key the script touches starts with it.
    """

    script: Script
    prefix: str
    arguments: tuple[Argument, ...]
