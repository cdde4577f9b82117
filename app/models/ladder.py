"""Rungs and bands: how one dimension of a two-dimensional search is paid at write time.

An agent with v free cores is a member of every rung `r+` (r a power of two, r <= v) and of one band for each
further bit set in v: the dyadic range of that bit's size that v falls into. A search for at least c cores then
reads the rung at or above c and the bands that tile the gap below it: disjoint sets, at most log2(c) + 1 of
them, whatever the fleet looks like.

`app/index/scripts/ladder.lua` is the same arithmetic where Redis needs it; a test holds the two together over
the whole range.
"""

from __future__ import annotations


def memberships(cores: int) -> tuple[str, ...]:
    """Names of the sets an agent with that many free cores is in: 13 -> 1+, 2+, 4+, 8+, 12-15, 13-13.

    No cores, no sets.
    """
    if cores < 1:
        return ()
    top = cores.bit_length() - 1
    rungs = [f"{1 << bit}+" for bit in range(top + 1)]
    bands = [_band(cores >> bit << bit, 1 << bit) for bit in reversed(range(top)) if cores >> bit & 1]
    return (*rungs, *bands)


def covering(min_cores: int) -> tuple[str, ...]:
    """Names of the disjoint sets whose union is exactly the agents with at least that many free cores."""
    start = max(1, min_cores)
    names: list[str] = []
    while start & (start - 1):
        size = start & -start
        names.append(_band(start, size))
        start += size
    return (*names, f"{start}+")


def _band(start: int, size: int) -> str:
    return f"{start}-{start + size - 1}"
