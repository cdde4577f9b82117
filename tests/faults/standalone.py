"""A house outside pytest, straight on its servers: proxies would cost as much as what they lead to."""

from __future__ import annotations

import asyncio
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from app.record import migrate
from tests.faults.house import House
from tests.faults.nursery import Nursery
from tests.servers import PostgresServer, ValkeyServer


@contextmanager
def opened_house(
    valkey: ValkeyServer, postgres: PostgresServer, parts: Sequence[str], *, agents: int, **settings: Any
) -> Iterator[House]:
    """Every process runs, so many agents have reported, and a planner asks."""
    asyncio.run(migrate(postgres.url))
    nursery = Nursery()
    directory = tempfile.TemporaryDirectory(prefix="hr-house-")
    direct = {"redis_url": valkey.url, "database_url": postgres.url, "database_timeout_s": 10.0}
    house = House(nursery, valkey, postgres.url, Path(directory.name), {**direct, **settings})
    try:
        house.open(parts, agents=agents, lookups=True)
        yield house
    finally:
        house.close()
        nursery.close()
        directory.cleanup()
