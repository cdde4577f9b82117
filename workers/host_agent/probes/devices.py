"""What a GPU probe reports. Plain tuples: they cross a pipe as JSON, and the sampling child stays small."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final, NamedTuple

MIB: Final = 1 << 20
MIB_PER_GB: Final = 1024


class Device(NamedTuple):
    """One thing that a single task can fill: a GPU, a MIG slice, or the memory a GPU shares with the CPU.

    Attributes:
        vendor: `nvidia`, `amd` or `intel`.
        number: the driver's number; unique within the vendor only.
        uuid: the driver's lasting name for it; a PCI address where it has none.
        total_mib: memory in whole MiB, rounded down.
        free_mib: what of it a task could allocate now, rounded down.
        shared: whether it is the machine's own memory.
        used_by_pid: MiB in use by process id, where asked for and known.
    """

    vendor: str
    number: int
    uuid: str
    name: str
    total_mib: int
    free_mib: int
    shared: bool = False
    used_by_pid: dict[str, int] = {}  # noqa: RUF012  # a NamedTuple's default; nobody writes into it


class Sample(NamedTuple):
    """One look at the GPUs of one or several vendors; `reasons` say what is missing from it, and why."""

    devices: list[Device]
    reasons: list[str]


def merge(samples: Iterable[Sample]) -> Sample:
    """Joins vendors into one list with unique numbers.

    Memory shared with the CPU is left out where a GPU with its own memory is there: the idle half of a laptop's
    main memory must not hide its graphics card.
    """
    devices: list[Device] = []
    reasons: list[str] = []
    for sample in samples:
        first_free = 1 + max((device.number for device in devices), default=-1)
        devices += [device._replace(number=device.number + first_free) for device in sample.devices]
        reasons += sample.reasons
    dedicated = [device for device in devices if not device.shared]
    return Sample(dedicated or devices, reasons)


def best(devices: Iterable[Device]) -> Device | None:
    """The single device with the most free memory; ties go to the larger one, then to the lower number."""
    return max(devices, key=lambda device: (device.free_mib, device.total_mib, -device.number), default=None)
