"""What the benchmark asks, and what an answer looks like whichever side gave it."""

from __future__ import annotations

from typing import Any, Final, Literal

import msgspec

Kind = Literal["top", "count", "one", "explain", "fit", "summary"]

INSIGHT_KINDS: Final[frozenset[Kind]] = frozenset({"explain", "fit", "summary"})
"""About the whole fleet: asked of the index alone, at rest."""

Row = tuple[str, str, float, int, float]
"""(agent id, pool, free VRAM, free cores, load): what of a full document the oracle compares."""

Promise = Literal["exact", "ties", "parts"]
"""What may be expected of a side's answers: the one right one; the same but for the order of ties; or, while the
fleet changes, only the agents and their VRAM, because the rest is read in a second step."""


class Told(msgspec.Struct, frozen=True):
    """What is told of a whole fleet, in comparable parts."""

    parts: tuple[Any, ...]


Answer = tuple[Row, ...] | int | Told


class Question(msgspec.Struct, frozen=True, kw_only=True):
    """One call. `top` is a search for the `limit` best, `one` reads a single agent.

    16 cores are a rung of the index's ladder; 12 lie one band below it, 17 four bands below the next one.
    """

    name: str
    kind: Kind = "top"
    min_vram_gb: float = 16.0
    min_cores: int = 16
    limit: int = 10


TOP_1: Final = Question(name="top 1", limit=1)
TOP_10: Final = Question(name="top 10")
TOP_10_ONE_BAND: Final = Question(name="top 10, one band", min_cores=12)
TOP_10_FOUR_BANDS: Final = Question(name="top 10, four bands", min_cores=17)
TOP_100: Final = Question(name="top 100", limit=100)
COUNT: Final = Question(name="count", kind="count")
ONE: Final = Question(name="one agent", kind="one")
EXPLAIN: Final = Question(name="explain", kind="explain")
EXPLAIN_CORES: Final = Question(name="explain, cores for nobody", kind="explain", min_cores=500)
EXPLAIN_VRAM: Final = Question(name="explain, VRAM for nobody", kind="explain", min_vram_gb=500.0)
FIT: Final = Question(name="fit", kind="fit", min_vram_gb=4.0, min_cores=2)
SUMMARY: Final = Question(name="summary", kind="summary")

QUESTIONS: Final = (TOP_10, TOP_10_ONE_BAND, TOP_10_FOUR_BANDS, TOP_1, TOP_100, COUNT, ONE)
INSIGHTS: Final = (EXPLAIN, EXPLAIN_CORES, EXPLAIN_VRAM, FIT, SUMMARY)
EVERYTHING: Final = (*QUESTIONS, *INSIGHTS)
