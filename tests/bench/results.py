"""Everything that one run found out; what `--json` writes and what the report is made of."""

from __future__ import annotations

import msgspec

from tests.bench.ingestion import Ingestion
from tests.bench.lookups import Line, Load
from tests.bench.waiting import Waiting


class Machine(msgspec.Struct, frozen=True, kw_only=True):
    """What it ran on, and with which versions."""

    processor: str
    cores: int
    memory_gb: float
    system: str
    versions: dict[str, str]
    apart: bool = False
    """At rest the one who asks and the servers had cores of their own, none of which slept."""


class Results(msgspec.Struct, kw_only=True):
    """Attributes.

    whole: nothing was left out, so that it may be published.
    quick: the times mean nothing.
    """

    started: str
    machine: Machine
    whole: bool = False
    quick: bool = False
    took_s: float = 0.0
    checked: int = 0
    lines: list[Line] = []
    loads: list[Load] = []
    ingestion: Ingestion | None = None
    waiting: Waiting | None = None
