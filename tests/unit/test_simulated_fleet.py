"""A simulated fleet is repeatable, plausible, and obeys the order rule as real agents do."""

from __future__ import annotations

from collections import Counter

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from app.models.capacity import AgentStatus, GpuType
from app.models.heartbeat import Heartbeat, ResourceMetrics
from app.models.identity import StreamId, parse_agent_id
from app.models.order import Boot, Order, Outcome, advance
from workers.simulate.fleet import Fleet, fleet
from workers.simulate.hardware import PROFILES


def _metrics(heartbeat: Heartbeat) -> ResourceMetrics:
    assert heartbeat.metrics is not None
    return heartbeat.metrics


def test_the_same_seed_gives_the_same_fleet_and_the_same_life() -> None:
    one, other = Fleet(50, seed=7), Fleet(50, seed=7)
    for _ in range(40):
        assert one.beat() == other.beat()


def test_another_seed_gives_other_agents() -> None:
    assert not {h.agent_id for h in fleet(50, seed=1)} & {h.agent_id for h in fleet(50, seed=2)}


def test_a_larger_fleet_contains_the_smaller_one() -> None:
    assert fleet(300)[:100] == fleet(100)


def test_a_life_does_not_depend_on_whose_turn_comes_first() -> None:
    together, apart = Fleet(10), Fleet(10)
    expected = {h.agent_id: h for h in together.beat()}
    backwards = tuple(reversed(apart.machines))
    assert {h.agent_id: h for h in apart.beat(backwards)} == expected


def test_ids_are_canonical_and_unique() -> None:
    heartbeats = fleet(2_000)
    assert all(parse_agent_id(h.agent_id) == h.agent_id for h in heartbeats)
    assert len({h.agent_id for h in heartbeats}) == 2_000


@pytest.mark.parametrize("profile", sorted(PROFILES))
def test_every_report_is_possible_on_such_a_machine(profile: str) -> None:
    machines = Fleet(60, profile=profile, seed=3)
    for _ in range(60):
        for heartbeat in machines.beat():
            metrics = _metrics(heartbeat)
            assert metrics.cpu_cores_physical is not None
            assert metrics.cpu_cores_available is not None
            assert 0 <= metrics.cpu_cores_available <= metrics.cpu_cores_physical
            assert 0.0 <= (metrics.gpu_vram_available_gb or 0.0) <= (metrics.gpu_vram_total_gb or 0.0) <= 141.0
            assert 0.0 <= (metrics.cpu_percent or 0.0) <= 100.0
            assert 0.0 <= (metrics.memory_percent or 0.0) <= 100.0
            assert (metrics.memory_available_gb or 0.0) >= 0.0
            if heartbeat.gpus:
                best = max(heartbeat.gpus, key=lambda gpu: gpu.vram_available_gb)
                assert metrics.gpu_vram_available_gb == best.vram_available_gb
                assert metrics.gpu_type is not GpuType.NONE
            else:
                assert metrics.gpu_type is GpuType.NONE


def test_the_mixed_profile_has_what_it_promises() -> None:
    heartbeats = fleet(2_000, "mixed")
    types = Counter(h.agent_type for h in heartbeats)
    gpus = Counter(_metrics(h).gpu_type for h in heartbeats)
    assert types["desktop"] > types["infra"] > 100
    assert types["laptop"] > 100
    assert min(gpus[kind] for kind in GpuType) > 10
    assert {len(h.gpus) for h in heartbeats} == {0, 1, 4, 8}
    assert len({h.pool_name for h in heartbeats}) >= 5


def test_the_unlucky_profile_has_both_ranges_and_no_intersection() -> None:
    heartbeats = [_metrics(h) for h in fleet(1_000, "unlucky")]
    roomy = [m for m in heartbeats if (m.gpu_vram_available_gb or 0.0) >= 8]
    many_cores = [m for m in heartbeats if (m.cpu_cores_available or 0) >= 8]
    assert len(roomy) > 400
    assert len(many_cores) > 400
    assert not [m for m in roomy if (m.cpu_cores_available or 0) >= 8]


def test_every_kind_of_spell_happens_and_ends() -> None:
    machines = Fleet(200, profile="mixed")
    statuses: Counter[AgentStatus] = Counter()
    away_before: set[str] = set()
    came_back = 0
    for _ in range(120):
        heartbeats = machines.beat()
        statuses.update(h.status for h in heartbeats)
        reporting = {h.agent_id for h in heartbeats}
        came_back += len(away_before & reporting)
        away_before = {m.agent_id for m in machines.machines if m.agent_id not in reporting}
    assert all(statuses[status] for status in AgentStatus)
    assert came_back > 50
    assert len(away_before) < 60


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(min_value=-(2**70), max_value=2**70))
def test_every_heartbeat_would_be_applied(seed: int) -> None:
    """A restart comes with a new boot and `seq` from 1, a mere silence goes on counting."""
    machines = Fleet(10, profile="restless", seed=seed)
    orders: dict[str, Order] = {}
    boots: Counter[str] = Counter()
    for beat in range(80):
        for n, heartbeat in enumerate(machines.beat()):
            assert heartbeat.boot_id is not None
            assert heartbeat.seq is not None
            boot = Boot(heartbeat.boot_id, heartbeat.seq)
            before = orders.get(heartbeat.agent_id)
            outcome, orders[heartbeat.agent_id] = advance(
                before, StreamId(1_000 + 30_000 * beat, n), boot, offline_after_ms=90_000
            )
            assert outcome is Outcome.APPLIED
            boots[heartbeat.agent_id] += heartbeat.seq == 1
    assert max(boots.values()) > 1


def test_a_second_run_comes_with_boots_of_its_own() -> None:
    first, second = Fleet(5, run="a").beat(), Fleet(5, run="b").beat()
    assert [msgspec.structs.replace(h, boot_id=None) for h in first] == [
        msgspec.structs.replace(h, boot_id=None) for h in second
    ]
    assert not {h.boot_id for h in first} & {h.boot_id for h in second}
