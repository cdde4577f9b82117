"""Writes commands with hiredis: redis-py's connections do much of it in Python, a microsecond an argument."""

from __future__ import annotations

from collections.abc import Iterable
from functools import cached_property
from typing import Any, TypeVar

import hiredis

T = TypeVar("T")


class Repeated(list[tuple[Any, ...]]):
    """Commands that are sent again and again: written only once. Threads share them, so nobody may change them."""

    @cached_property
    def packed(self) -> bytes:
        return _packed_all(self)


class _Packing:
    def pack_command(self, *args: Any) -> list[bytes]:
        return [_packed(args)]

    def pack_commands(self, commands: Iterable[Iterable[Any]]) -> list[bytes]:
        return [commands.packed if isinstance(commands, Repeated) else _packed_all(commands)]


def packing(connection_class: type[T]) -> type[T]:
    """The same kind of connection, blocking or not, writing faster."""
    return type(connection_class.__name__, (_Packing, connection_class), {})


def _packed_all(commands: Iterable[Iterable[Any]]) -> bytes:
    return b"".join(_packed(tuple(command)) for command in commands)


def _packed(args: tuple[Any, ...]) -> bytes:
    name = args[0]
    # redis-py names some commands in two words, which the server wants as two arguments.
    if isinstance(name, str) and " " in name:
        args = (*name.split(), *args[1:])
    packed: bytes = hiredis.pack_command(args)
    return packed
