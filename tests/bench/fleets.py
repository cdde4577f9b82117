"""The fleets that the benchmark measures: every agent's figures at every heartbeat, computed from its number.

Nothing is stored and nothing is drawn at random: each process that loads, reports or checks computes the same
figures for itself.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime
from typing import Final, NamedTuple

import msgspec

from app.models.agent import RecordedState, RegisteredAgent
from app.models.capacity import AgentStatus, GpuType
from app.models.heartbeat import Gpu, Heartbeat, ResourceMetrics
from app.models.identity import AgentId, StreamId
from app.models.order import Boot, Order

AGENT_TYPE: Final = "desktop"
POOLS: Final = 20

_MASK: Final = (1 << 64) - 1
_HALF: Final = float(1 << 32)
_VRAM_TOTALS: Final = (8.0, 12.0, 16.0, 24.0, 24.0, 48.0, 80.0)
_CORE_TOTALS: Final = (4, 8, 8, 16, 16, 32, 64, 128)


class Figures(NamedTuple):
    """What an agent has free at one heartbeat: GB, cores, load."""

    vram_gb: float
    cores: int
    load: float


Draw = Callable[[int, int, float, float], tuple[float, int]]
"""(agent's number, size of the fleet, two numbers in [0, 1)) -> free VRAM and cores."""


class Fleet(msgspec.Struct, frozen=True, kw_only=True):
    """One fleet of one size.

    Attributes:
        pools: how many pools the agents are spread over; 0: each has one of its own.
        seed: another seed, other figures.
    """

    name: str
    size: int
    draw: Draw
    pools: int = POOLS
    seed: int = 1

    def agent_id(self, number: int) -> AgentId:
        """Looks random, as the ids of real agents do, and belongs to one number only."""
        high, low = _mix(number * 2 + 1), _mix(number * 2 + 2)
        return AgentId(
            f"{high >> 32:08x}-{high >> 16 & 0xFFFF:04x}-4{high & 0xFFF:03x}-"
            f"{0x8000 | low >> 48 & 0x3FFF:04x}-{low & 0xFFFFFFFFFFFF:012x}"
        )

    def pool(self, number: int) -> str:
        return f"pool-{number}" if self.pools == 0 else f"lab-{number % self.pools:02d}"

    def figures(self, number: int, beat: int) -> Figures:
        """What the agent reports with its heartbeat number `beat`; 0 is what it starts with."""
        drawn = _mix(number * 0x9E3779B97F4A7C15 + beat * 0xD1B54A32D192ED03 + self.seed)
        vram_gb, cores = self.draw(number, self.size, (drawn >> 32) / _HALF, (drawn & 0xFFFFFFFF) / _HALF)
        return Figures(round(vram_gb, 2), cores, (drawn >> 20) % 1600 / 100)

    def machine(self, number: int) -> tuple[float, int]:
        """What it has in all, whatever is free: VRAM of its best GPU in GB, and physical cores."""
        return _kind(number) if self.draw is _mixed else (_VRAM_TOTALS[-1], _CORE_TOTALS[-1])

    def heartbeat(self, number: int, beat: int, *, seq: int | None = None) -> Heartbeat:
        """The heartbeat with the figures of `beat`; `seq` is counted on where the figures stay the same."""
        figures = self.figures(number, beat)
        vram_total_gb, cores_physical = self.machine(number)
        return Heartbeat(
            agent_id=self.agent_id(number),
            agent_type=AGENT_TYPE,
            pool_name=self.pool(number),
            hostname=f"ws-{number:07d}",
            boot_id=f"{_mix(number + 7):016x}",
            seq=1 + (beat if seq is None else seq),
            gpus=(
                Gpu(
                    index=0,
                    name="NVIDIA GeForce RTX 4090",
                    vram_total_gb=vram_total_gb,
                    vram_available_gb=figures.vram_gb,
                ),
            ),
            resource_metrics=ResourceMetrics(
                cpu_percent=figures.load * 6,
                cpu_cores_physical=cores_physical,
                cpu_cores_available=figures.cores,
                cpu_load_1min=figures.load,
                cpu_load_5min=figures.load / 2,
                memory_percent=37.5,
                memory_available_gb=40.0,
                gpu_vram_total_gb=vram_total_gb,
                gpu_vram_available_gb=figures.vram_gb,
                gpu_type=GpuType.NVIDIA,
            ),
        )

    def recorded(self, number: int, position: StreamId) -> RecordedState:
        """The agent as a record that has its first heartbeat, received at `position`, would hand it out."""
        heartbeat = self.heartbeat(number, 0)
        received = datetime.fromtimestamp(position.ms / 1000, UTC)
        return RecordedState(
            agent=RegisteredAgent(
                agent_id=heartbeat.agent_id,
                agent_type=heartbeat.agent_type,
                pool_name=heartbeat.pool_name,
                hostname=heartbeat.hostname,
                status=AgentStatus.ONLINE,
                last_heartbeat_at=received,
                registered_at=received,
                boot_id=heartbeat.boot_id,
                seq=heartbeat.seq,
                gpus=heartbeat.gpus,
                resource_metrics=heartbeat.resource_metrics,
            ),
            order=Order(last_id=position, holder=Boot(heartbeat.boot_id or "", heartbeat.seq or 0)),
        )


def _mix(value: int) -> int:
    """The finaliser of splitmix64: neighbouring numbers come out unrelated."""
    value = (value + 0x9E3779B97F4A7C15) & _MASK
    value = (value ^ value >> 30) * 0xBF58476D1CE4E5B9 & _MASK
    value = (value ^ value >> 27) * 0x94D049BB133111EB & _MASK
    return value ^ value >> 31


def _kind(number: int) -> tuple[float, int]:
    kind = _mix(number + 3)
    return _VRAM_TOTALS[kind % 7], _CORE_TOTALS[kind // 7 % 8]


def _mixed(number: int, _size: int, a: float, b: float) -> tuple[float, int]:
    vram_total_gb, cores = _kind(number)
    return a * vram_total_gb, int(b * (cores + 1))


def _unlucky(number: int, size: int, a: float, b: float) -> tuple[float, int]:
    # Whoever fits has just enough VRAM: a walk downwards passes everybody else first.
    if number < max(12, size // 5_000):
        return 16.0 + a, 64 + int(b * 64)
    return (17.5 + a * 62, int(b * 4)) if number % 2 else (a * 4, 16 + int(b * 112))


def _just_below(_number: int, _size: int, a: float, _b: float) -> tuple[float, int]:
    return a * 80, 8


def _everything_fits(_number: int, _size: int, a: float, b: float) -> tuple[float, int]:
    return 24.0 + a * 56, 32 + int(b * 96)


def _almost_nothing_fits(number: int, _size: int, a: float, b: float) -> tuple[float, int]:
    return (20.0 + a, 24) if number < 5 else (a * 15.9, int(b * 12))


_DRAWS: Final[dict[str, tuple[Draw, str]]] = {
    "mixed": (_mixed, "free VRAM and free cores independent, 20 pools"),
    "unlucky": (
        _unlucky,
        "much VRAM and up to 3 cores, or little VRAM and many cores; the few that fit come last",
    ),
    "just-below": (_just_below, "everyone has 8 free cores, the question asks for more"),
    "everything-fits": (_everything_fits, "every agent is an answer"),
    "almost-nothing-fits": (_almost_nothing_fits, "five agents are answers"),
    "pools": (_mixed, "as mixed, with one pool per agent"),
}

FLEETS: Final = tuple(_DRAWS)
DESCRIPTIONS: Final = {name: description for name, (_, description) in _DRAWS.items()}


def make_fleet(name: str, size: int, *, pools: int | None = None) -> Fleet:
    """Args: pools: overrides how many pools the agents are spread over."""
    if pools is None:
        pools = 0 if name == "pools" else POOLS
    return Fleet(name=name, size=size, draw=_DRAWS[name][0], pools=pools)
