"""What operators are told of log, workers and index."""

from __future__ import annotations

from app.index.clock import ManualClock
from tests.indexing import apply_everything, heartbeat, index_settings, opened_index


async def test_it_counts_what_waits_and_who_works(redis_url: str) -> None:
    clock = ManualClock(1_800_000_000_000)
    async with opened_index(index_settings(redis_url), clock=clock) as index:
        empty = await index.health.health()
        assert (empty.reporting, empty.log_entries, empty.reaper, empty.receivers) == (0, 0, False, 0)
        assert empty.grace_s == 90.0
        await index.log.append([heartbeat(n) for n in range(5)])
        await apply_everything(index)
        clock.advance(4)
        await index.log.append([heartbeat(1), heartbeat(2)])
        await index.upkeep.lease("reaper", "me", ttl_s=5)
        await index.upkeep.receive("api", gap_s=15)
        clock.advance(3)
        health = await index.health.health()
        assert health.reporting == 5
        assert (health.reaper, health.receivers) == (True, 1)
        assert health.grace_s == 83.0
        of_index, of_record = health.groups
        assert (of_index.group, of_index.workers) == ("index", 1)
        assert (of_index.backlog_entries, of_index.backlog_age_s) == (2, 3.0)
        # Seven heartbeats, and five transitions: the agents came online.
        assert (of_record.workers, of_record.backlog_entries, of_record.backlog_age_s) == (0, 12, 7.0)


async def test_without_an_epoch_it_says_so(redis_url: str) -> None:
    async with opened_index(index_settings(redis_url), epoch=False) as index:
        assert (await index.health.health()).epoch_opened_at is None
