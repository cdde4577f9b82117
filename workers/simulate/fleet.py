"""Machines that report: deterministic by seed, without clock, network or shared state.

A machine lives in beats, one per heartbeat interval. The same seed gives the same machines and the same lives,
however many of them are made: machine 7 of 10 is machine 7 of 10,000.
"""

from __future__ import annotations

from enum import Enum, auto
from random import Random
from typing import Final
from uuid import UUID

from app.models.capacity import AgentStatus, GpuType
from app.models.heartbeat import Gpu, Heartbeat, ResourceMetrics
from app.models.identity import AgentId
from workers.simulate.hardware import DRIVER_VRAM, PROFILES, Build, Card, Load, Profile

DEFAULT_PROFILE: Final = "mixed"
DEFAULT_SEED: Final = 1


class Phase(Enum):
    IDLE = auto()
    BURST = auto()
    BUSY = auto()
    SILENT = auto()
    GOODBYE = auto()
    RESTART = auto()


_BEATS: Final[dict[Phase, tuple[int, int]]] = {
    Phase.IDLE: (4, 30),
    Phase.BURST: (2, 10),
    Phase.BUSY: (4, 20),
    Phase.SILENT: (4, 16),
    Phase.GOODBYE: (4, 40),
    Phase.RESTART: (1, 2),
}
"""How long a phase lasts. A silence is always longer than three beats, so that it is noticed."""

_AWAY: Final = frozenset({Phase.SILENT, Phase.GOODBYE, Phase.RESTART})


class Machine:
    """One simulated agent. `beat()` is its next heartbeat, or None while it is away."""

    __slots__ = (
        "_beats",
        "_boots",
        "_build",
        "_cards",
        "_cores",
        "_cores_used",
        "_gpu_type",
        "_gpus",
        "_identity",
        "_left",
        "_load_5min",
        "_memory_gb",
        "_phase",
        "_run",
        "_seq",
        "agent_id",
        "hostname",
        "pool_name",
    )

    _left: int
    _phase: Phase

    def __init__(self, rng: Random, *, index: int, identity: int, build: Build, run: str) -> None:
        rng.seed(identity)
        self.agent_id = AgentId(str(UUID(int=rng.getrandbits(128), version=4)))
        self.hostname = f"sim-{build.name}-{index:05d}"
        self.pool_name = rng.choice(build.pools)
        self._identity = identity
        self._build = build
        self._run = run
        self._cores = rng.choice(build.cores)
        self._memory_gb = rng.choice(build.memory_gb)
        card = rng.choice(build.cards) if build.cards else None
        self._gpu_type = card.gpu_type if card else GpuType.NONE
        self._cards = _bought(rng, card, rng.choice(build.cards_each)) if card else ()
        self._beats = self._seq = 0
        self._boots = 1
        self._load_5min = 0.0
        self._enter(rng, rng.choices((Phase.IDLE, Phase.BURST, Phase.BUSY), (70, 20, 10))[0])
        self._left = rng.randint(1, self._left)

    @property
    def away(self) -> bool:
        return self._phase in _AWAY

    def beat(self, rng: Random) -> Heartbeat | None:
        """Lives one heartbeat interval on. `rng` is only a tool: its state before does not matter."""
        self._beats += 1
        rng.seed(self._identity + self._beats)
        said_goodbye = False
        if self._left == 0:
            self._enter(rng, self._next_phase(rng))
            said_goodbye = self._phase is Phase.GOODBYE
        self._left -= 1
        if self.away and not said_goodbye:
            return None
        self._seq += 1
        return self._report(rng, goodbye=said_goodbye)

    def _next_phase(self, rng: Random) -> Phase:
        if self._phase is not Phase.IDLE:
            return Phase.IDLE
        habits = self._build.habits
        return rng.choices(
            (Phase.BURST, Phase.BUSY, Phase.SILENT, Phase.GOODBYE, Phase.RESTART),
            (habits.bursts, habits.busy_spells, habits.silences, habits.goodbyes, habits.restarts),
        )[0]

    def _enter(self, rng: Random, phase: Phase) -> None:
        # A silence is a network that was away: same boot, seq goes on. Whoever left or restarted boots anew.
        if self._beats and self._phase in {Phase.GOODBYE, Phase.RESTART}:
            self._boots += 1
            self._seq = 0
        self._phase = phase
        self._left = rng.randint(*_BEATS[phase])
        if phase not in _AWAY:
            self._work(rng, self._load_of(phase))

    def _load_of(self, phase: Phase) -> Load:
        habits = self._build.habits
        return {Phase.BURST: habits.burst, Phase.BUSY: habits.busy}.get(phase, habits.idle)

    def _work(self, rng: Random, load: Load) -> None:
        """Draws what is in use for the phase that begins."""
        self._cores_used = self._cores * rng.uniform(*load.cores)
        self._gpus = tuple(
            Gpu(
                index=gpu.index,
                uuid=gpu.uuid,
                name=gpu.name,
                vram_total_gb=gpu.vram_total_gb,
                vram_available_gb=round(
                    gpu.vram_total_gb
                    * (1 - rng.uniform(*(load.vram if rng.random() < load.taken else DRIVER_VRAM))),
                    2,
                ),
            )
            for gpu in self._cards
        )

    def _report(self, rng: Random, *, goodbye: bool) -> Heartbeat:
        if goodbye:
            status = AgentStatus.OFFLINE
        else:
            status = AgentStatus.BUSY if self._phase is Phase.BUSY else AgentStatus.ONLINE
        return Heartbeat(
            agent_id=self.agent_id,
            agent_type=self._build.agent_type,
            pool_name=self.pool_name,
            hostname=self.hostname,
            status=status,
            boot_id=f"{self._run}-{self._boots}",
            seq=self._seq,
            gpus=self._gpus,
            resource_metrics=self._metrics(rng),
        )

    def _metrics(self, rng: Random) -> ResourceMetrics:
        used = min(self._cores, self._cores_used * rng.uniform(0.97, 1.03))
        load_1min = used * rng.uniform(0.85, 1.15)
        self._load_5min += (load_1min - self._load_5min) * 0.3
        memory_used = min(0.97, 0.15 + 0.6 * used / self._cores + rng.uniform(0.0, 0.05))
        # What one task can use is one card: the one with the most free memory stands for the machine.
        best = max(self._gpus, key=lambda gpu: gpu.vram_available_gb, default=None)
        return ResourceMetrics(
            cpu_percent=round(100 * used / self._cores, 1),
            cpu_cores_physical=self._cores,
            cpu_cores_available=max(0, round(self._cores - used)),
            cpu_load_1min=round(load_1min, 2),
            cpu_load_5min=round(self._load_5min, 2),
            memory_percent=round(100 * memory_used, 1),
            memory_available_gb=round(self._memory_gb * (1 - memory_used), 2),
            gpu_vram_total_gb=best.vram_total_gb if best else 0.0,
            gpu_vram_available_gb=best.vram_available_gb if best else 0.0,
            gpu_type=self._gpu_type,
        )


class Fleet:
    """N machines of a profile.

    Attributes:
        machines: in a fixed order.
    """

    def __init__(
        self, count: int, *, profile: str = DEFAULT_PROFILE, seed: int = DEFAULT_SEED, run: str = "run"
    ) -> None:
        """Makes the machines; raises KeyError for an unknown profile.

        Args:
            count: how many machines.
            profile: a name of `hardware.PROFILES`.
            seed: same seed, same machines with the same ids and lives.
            run: names the boots. A fleet that reports to a server that knows it already must come with a new
                one: its `seq` starts again, which only a new boot may.
        """
        self._rng = Random()  # noqa: S311 - a simulation has to be repeatable, not secret
        self.machines = tuple(self._machines(count, PROFILES[profile], seed, run))

    def _machines(self, count: int, profile: Profile, seed: int, run: str) -> list[Machine]:
        builds = [build for build, _ in profile]
        weights = [weight for _, weight in profile]
        machines = []
        for index in range(count):
            # Seed, machine and beat are separate digits of one number: no two draws ever share a state.
            identity = (seed % 2**64) << 128 | (index + 1) << 64
            self._rng.seed(identity | 2**64 - 1)
            build = self._rng.choices(builds, weights)[0]
            machines.append(Machine(self._rng, index=index, identity=identity, build=build, run=run))
        return machines

    def beat(self, machines: tuple[Machine, ...] | None = None) -> list[Heartbeat]:
        """The next heartbeats of these machines (default: all); those away are left out."""
        beats = (machine.beat(self._rng) for machine in (self.machines if machines is None else machines))
        return [heartbeat for heartbeat in beats if heartbeat is not None]

    @property
    def away(self) -> int:
        return sum(machine.away for machine in self.machines)


def fleet(count: int, profile: str = DEFAULT_PROFILE, seed: int = DEFAULT_SEED) -> list[Heartbeat]:
    """The first heartbeat of every machine of a fleet."""
    return Fleet(count, profile=profile, seed=seed).beat()


def _bought(rng: Random, card: Card, number: int) -> tuple[Gpu, ...]:
    return tuple(
        Gpu(
            index=index,
            uuid=f"GPU-{UUID(int=rng.getrandbits(128), version=4)}",
            name=card.name,
            vram_total_gb=card.vram_gb,
        )
        for index in range(number)
    )
