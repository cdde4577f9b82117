"""When agents are asked to come again."""

from __future__ import annotations

from unittest.mock import AsyncMock

import pytest

from app.models.identity import StreamId
from app.service.intake import HeartbeatIntake
from app.service.ports import IntakeLoad
from tests.indexing import heartbeat

DRAWS = 500


async def wishes(*, agents: int, interval_s: float) -> list[float]:
    log = AsyncMock()
    log.load.return_value = IntakeLoad(agents=agents)
    log.append.return_value = [StreamId(1)]
    intake = HeartbeatIntake(
        log, interval_s=interval_s, offline_after_s=90.0, target_per_s=4_000.0, max_backlog=1_000_000
    )
    return [(await intake.accept([heartbeat(1)])).next_heartbeat_s for _ in range(DRAWS)]


async def test_an_ordinary_fleet_comes_at_its_interval_with_jitter() -> None:
    drawn = await wishes(agents=100, interval_s=30.0)
    assert 27.0 <= min(drawn) < 28.0
    assert 32.0 < max(drawn) <= 33.0


@pytest.mark.parametrize(
    ("interval_s", "longest_s"),
    [
        pytest.param(30.0, 40.5, id="45 % of the silence that makes an agent offline"),
        pytest.param(45.0, 45.0, id="an interval that was set longer than that"),
    ],
)
async def test_no_jitter_goes_past_the_longest_interval(interval_s: float, longest_s: float) -> None:
    """An agent that was asked for less often would be offline after one lost heartbeat."""
    drawn = await wishes(agents=10_000_000, interval_s=interval_s)
    assert max(drawn) <= longest_s
    assert len(set(drawn)) > DRAWS / 2, "a fleet that comes at its longest interval is spread, too"
