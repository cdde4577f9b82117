"""Which processes a test has started, told from those that serve the whole run."""

from __future__ import annotations

import contextlib

import psutil

_there_before: set[psutil.Process] = set()


def forget_children() -> None:
    """What lives now counts as there before; called before each test that asks `children`."""
    _there_before.clear()
    _there_before.update(psutil.Process().children())


def children() -> list[psutil.Process]:
    """All descendants that came since, zombies too."""
    found = []
    for child in psutil.Process().children():
        if child not in _there_before:
            found.append(child)
            with contextlib.suppress(psutil.NoSuchProcess):
                found += child.children(recursive=True)
    return found
