"""Which machines a simulated fleet is made of: builds, and profiles as mixtures of builds."""

from __future__ import annotations

from typing import Final

import msgspec

from app.models.capacity import GpuType

Range = tuple[float, float]


class Card(msgspec.Struct, frozen=True):
    name: str
    vram_gb: float
    gpu_type: GpuType = GpuType.NVIDIA


class Load(msgspec.Struct, frozen=True, kw_only=True):
    """How much of a machine is in use: fractions, as ranges to draw from.

    Each card is taken with the likelihood `taken`, and then uses `vram` of its memory; a free one uses
    `DRIVER_VRAM`.
    """

    taken: float = 0.0
    vram: Range = (0.4, 0.98)
    cores: Range = (0.0, 0.15)


DRIVER_VRAM: Final[Range] = (0.01, 0.05)


class Habits(msgspec.Struct, frozen=True, kw_only=True):
    """How a machine spends its days. What follows an idle phase is drawn with these weights."""

    idle: Load = Load()
    burst: Load = Load(taken=1.0, cores=(0.4, 1.0))
    busy: Load = Load(taken=1.0, vram=(0.85, 0.99), cores=(0.7, 1.0))
    bursts: float = 60.0
    busy_spells: float = 20.0
    silences: float = 6.0
    goodbyes: float = 8.0
    restarts: float = 6.0


class Build(msgspec.Struct, frozen=True, kw_only=True):
    """A kind of machine. What appears twice in a tuple was bought twice as often."""

    name: str
    pools: tuple[str, ...]
    cores: tuple[int, ...]
    memory_gb: tuple[int, ...]
    cards: tuple[Card, ...] = ()
    cards_each: tuple[int, ...] = (1,)
    agent_type: str = "desktop"
    habits: Habits = Habits()


RTX_3060: Final = Card("NVIDIA GeForce RTX 3060", 12.0)
RTX_4060: Final = Card("NVIDIA GeForce RTX 4060", 8.0)
RTX_4070_TI_SUPER: Final = Card("NVIDIA GeForce RTX 4070 Ti SUPER", 16.0)
RTX_4090: Final = Card("NVIDIA GeForce RTX 4090", 24.0)
RX_7600: Final = Card("AMD Radeon RX 7600", 8.0, GpuType.AMD)
RX_7900_XTX: Final = Card("AMD Radeon RX 7900 XTX", 24.0, GpuType.AMD)
ARC_A770: Final = Card("Intel Arc A770", 16.0, GpuType.INTEL)
L4: Final = Card("NVIDIA L4", 24.0)
L40S: Final = Card("NVIDIA L40S", 48.0)
A100: Final = Card("NVIDIA A100-SXM4-80GB", 80.0)
H100: Final = Card("NVIDIA H100 80GB HBM3", 80.0)
H200: Final = Card("NVIDIA H200", 141.0)

SERVER_HABITS: Final = Habits(
    idle=Load(taken=0.4, cores=(0.05, 0.5)),
    burst=Load(taken=0.8, cores=(0.3, 0.9)),
    silences=1.0,
    goodbyes=2.0,
    restarts=2.0,
)
LAPTOP_HABITS: Final = Habits(silences=20.0, goodbyes=15.0, restarts=10.0)
RESTLESS_HABITS: Final = Habits(bursts=20.0, busy_spells=10.0, silences=25.0, goodbyes=20.0, restarts=25.0)

GAMING: Final = Build(
    name="gaming",
    pools=("studio", "studio", "lab", "render"),
    cores=(4, 6, 8, 8, 12, 16, 16, 24, 32),
    memory_gb=(16, 32, 32, 64, 128),
    cards=(RTX_4060, RTX_4060, RTX_3060, RTX_3060, RTX_4070_TI_SUPER, RTX_4070_TI_SUPER, RTX_4090),
)
OFFICE: Final = Build(
    name="office",
    pools=("office", "office", "campus"),
    cores=(2, 4, 4, 6, 8),
    memory_gb=(8, 16, 16, 32),
)
WORKSTATION: Final = Build(
    name="workstation",
    pools=("lab", "studio"),
    cores=(8, 12, 16, 24),
    memory_gb=(32, 64, 128),
    cards=(RX_7600, RX_7900_XTX, ARC_A770),
)
LAPTOP: Final = Build(
    name="laptop",
    pools=("campus", "office"),
    cores=(4, 6, 8),
    memory_gb=(8, 16, 32),
    agent_type="laptop",
    habits=LAPTOP_HABITS,
)
SERVER: Final = Build(
    name="server",
    pools=("inference", "inference", "training"),
    cores=(64, 64, 96, 128),
    memory_gb=(256, 512, 1024),
    cards=(L4, L4, L40S, L40S, A100),
    cards_each=(4, 4, 8),
    agent_type="infra",
    habits=SERVER_HABITS,
)
BIG_SERVER: Final = Build(
    name="bigserver",
    pools=("training",),
    cores=(96, 128),
    memory_gb=(1024, 2048),
    cards=(H100, H100, H200),
    cards_each=(8,),
    agent_type="infra",
    habits=SERVER_HABITS,
)

_NO_CORES: Final = Load(taken=0.0, cores=(0.9, 1.0))
_NO_VRAM: Final = Load(taken=1.0, vram=(0.92, 1.0), cores=(0.0, 0.4))
STARVED_OF_CORES: Final = Build(
    name="nocores",
    pools=("studio", "lab"),
    cores=(32,),
    memory_gb=(64,),
    cards=(RTX_4070_TI_SUPER, RTX_4090),
    habits=Habits(idle=_NO_CORES, burst=_NO_CORES, busy=_NO_CORES, busy_spells=0.0),
)
STARVED_OF_VRAM: Final = Build(
    name="novram",
    pools=("studio", "lab"),
    cores=(32, 64),
    memory_gb=(64, 128),
    cards=(RTX_4070_TI_SUPER, RTX_4090),
    habits=Habits(idle=_NO_VRAM, burst=_NO_VRAM, busy=_NO_VRAM, busy_spells=0.0),
)

Profile = tuple[tuple[Build, float], ...]

PROFILES: Final[dict[str, Profile]] = {
    "mixed": ((GAMING, 38), (OFFICE, 32), (WORKSTATION, 6), (LAPTOP, 10), (SERVER, 11), (BIG_SERVER, 3)),
    "desktop": ((GAMING, 50), (OFFICE, 40), (WORKSTATION, 10)),
    "office": ((OFFICE, 80), (LAPTOP, 20)),
    "gpu-servers": ((SERVER, 75), (BIG_SERVER, 25)),
    "unlucky": ((STARVED_OF_CORES, 50), (STARVED_OF_VRAM, 50)),
    "restless": tuple(
        (msgspec.structs.replace(build, habits=RESTLESS_HABITS), weight)
        for build, weight in ((GAMING, 60), (OFFICE, 40))
    ),
}
"""What each is for:

- `mixed`: desktops, laptops and servers, as a company has them.
- `desktop`: only the type that a search asks for unless told otherwise.
- `office`: hardly a GPU anywhere.
- `gpu-servers`: four or eight cards and 64 to 128 cores each.
- `unlucky`: half have free GPU memory and no free cores, half free cores and no GPU memory, so that both
  ranges of a search are huge and their intersection is empty.
- `restless`: desktops that keep falling silent, saying goodbye and restarting.
"""
