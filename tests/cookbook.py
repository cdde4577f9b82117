"""Reads the redis-cli lines of docs/redis.md, runs them on a small fleet, and prints replies as redis-cli does.

`python -m tests.cookbook` runs them anew and writes their output into the page.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import msgspec
import redis
from redis.exceptions import ResponseError

from tests.planning import fill, sweep
from tests.servers import start_valkey
from tests.waiting import PATIENCE_S

PAGE: Final = Path(__file__).resolve().parent.parent / "docs" / "redis.md"
PROMPT: Final = "$ redis-cli -p 6390 "

_BLOCK = re.compile(r"^```console\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_VARYING = (
    (re.compile(r"age_s=[0-9.]+"), "age_s=…"),
    (re.compile(r'("age_s"\n *\d+\) )"[0-9.]+"'), r'\1"…"'),
    (re.compile(r"\b1[0-9]{12}(-\d+)?\b"), "…"),
    (re.compile(r"\b[0-9a-f]{40}\b"), "…"),
)
_ESCAPES = {'"': '\\"', "\\": "\\\\", "\n": "\\n", "\r": "\\r", "\t": "\\t", "\a": "\\a", "\b": "\\b"}


class Line(msgspec.Struct, frozen=True):
    """A command as typed after the prompt, and what the page says that it prints."""

    command: str
    output: str


def lines(text: str) -> Iterator[Line]:
    """Every command of the page, in order."""
    for block in _BLOCK.findall(text):
        before, *parts = f"\n{block}".split(f"\n{PROMPT}")
        assert not before.strip(), f"output without a command: {before}"
        for part in parts:
            command, _, output = part.partition("\n")
            yield Line(command, output.rstrip("\n"))


def run(client: redis.Redis, command: str) -> str:
    """What redis-cli prints in a terminal."""
    connection: Any = client.connection_pool.get_connection()
    try:
        connection.send_command(*shlex.split(command))
        return "\n".join(_shown(connection.read_response()))
    except ResponseError as error:
        return f"(error) {error}"
    finally:
        client.connection_pool.release(connection)


def masked(output: str) -> str:
    """The output without moments, ages and run ids, which are others each time."""
    for pattern, placeholder in _VARYING:
        output = pattern.sub(placeholder, output)
    return output


def connect(url: str) -> redis.Redis:
    """A client whose replies are as plain as redis-cli's."""
    return redis.Redis.from_url(url, protocol=2, socket_timeout=PATIENCE_S)


def _shown(reply: Any) -> list[str]:
    if reply is None:
        return ["(nil)"]
    if isinstance(reply, int):
        return [f"(integer) {reply}"]
    if isinstance(reply, bytes):
        return ["OK" if reply == b"OK" else _quoted(reply)]
    if not reply:
        return ["(empty array)"]
    width = len(str(len(reply)))
    shown: list[str] = []
    for position, element in enumerate(reply, start=1):
        first, *rest = _shown(element)
        shown += [f"{position:>{width}}) {first}", *(" " * (width + 2) + line for line in rest)]
    return shown


def _quoted(text: bytes) -> str:
    escaped = [
        _ESCAPES.get(character) or (character if " " <= character <= "~" else f"\\x{ord(character):02x}")
        for character in text.decode("latin-1")
    ]
    return f'"{"".join(escaped)}"'


def _rewritten(text: str, client: redis.Redis) -> str:
    def block(match: re.Match[str]) -> str:
        parts = [f"{PROMPT}{line.command}\n{run(client, line.command)}\n" for line in lines(match[0])]
        return f"```console\n{''.join(parts)}```"

    return _BLOCK.sub(block, text)


def main() -> None:
    with start_valkey() as server:
        fill(server.url)
        sweep(server.url)
        with connect(server.url) as client:
            PAGE.write_text(_rewritten(PAGE.read_text(encoding="utf-8"), client), encoding="utf-8")


if __name__ == "__main__":
    main()
