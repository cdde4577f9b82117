"""Intel GPUs with their own memory: through the memory query of the xe and i915 drivers.

The drivers tell how much is in use only to a process with CAP_PERFMON; to others every byte looks free. A figure
that may be a lie is not reported as free memory.
"""

from __future__ import annotations

import ctypes
import os
import struct
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Final, NamedTuple

from workers.host_agent.probes import drm
from workers.host_agent.probes.devices import MIB, Device, Sample

VENDOR_ID: Final = "0x8086"

Ioctl = Callable[[int, int, bytearray], None]

# From the kernel's uapi headers xe_drm.h and i915_drm.h.
_XE_DEVICE_QUERY: Final = 0xC0286440
_XE_QUERY_MEM_REGIONS: Final = 1
_XE_QUERY: Final = struct.Struct("=QIIQQQ")  # extensions, query, size, data, reserved[2]
_XE_HEADER_BYTES: Final = 8
_XE_REGION: Final = struct.Struct("=HHIQQQQ48x")  # class, instance, page, total, used, visible, visible used
_I915_QUERY: Final = 0xC0106479
_I915_QUERY_MEMORY_REGIONS: Final = 4
_I915_QUERY_ARGUMENT: Final = struct.Struct("=IIQ")  # items, flags, pointer to items
_I915_ITEM: Final = struct.Struct("=QiIQ")  # query, length, flags, pointer to data
_I915_HEADER_BYTES: Final = 16
_I915_REGION: Final = struct.Struct("=HHIQQ64x")  # class, instance, reserved, probed, unallocated
_CLASS_DEVICE: Final = 1
_CAP_PERFMON: Final = 38
_CAP_SYS_ADMIN: Final = 21


class Memory(NamedTuple):
    """Bytes; `free` None where the driver would not say."""

    total: int
    free: int | None


def present(host_root: Path) -> bool:
    return any(drm.driver(device) in ("i915", "xe") for device in drm.cards(host_root, VENDOR_ID))


def _ioctl(descriptor: int, request: int, argument: bytearray) -> None:
    import fcntl  # noqa: PLC0415  # Windows lacks it, and has no DRM either

    fcntl.ioctl(descriptor, request, argument)


class IntelProbe:
    def __init__(self, host_root: Path, ioctl: Ioctl = _ioctl) -> None:
        self._host_root = host_root
        self._ioctl = ioctl

    def sample(self, *, with_processes: bool) -> Sample:
        del with_processes  # needs rights over the other process
        sample = Sample([], [])
        for index, device in enumerate(drm.cards(self._host_root, VENDOR_ID)):
            name = f"Intel GPU {drm.read_text(device / 'device').removeprefix('0x')}".strip()
            try:
                memory = self._memory(device)
            except (OSError, ValueError, struct.error) as error:
                sample.reasons.append(f"intel: {name}: {type(error).__name__}: {error}"[:200])
                continue
            if memory.total == 0:
                # Integrated: it has no memory of its own, and its driver keeps no count of what it borrows.
                continue
            if memory.free is None:
                sample.reasons.append(f"intel: {name}: free memory is told only to a process with CAP_PERFMON")
            sample.devices.append(
                Device(
                    vendor="intel",
                    number=index,
                    uuid=drm.address(device),
                    name=name,
                    total_mib=memory.total // MIB,
                    free_mib=(memory.free or 0) // MIB,
                )
            )
        return sample

    def _memory(self, device: Path) -> Memory:
        card = device.parent
        if (card / "lmem_total_bytes").exists():
            # Intel's own build of i915 for data-centre cards has files like amdgpu's.
            return Memory(drm.read_int(card / "lmem_total_bytes"), drm.read_int(card / "lmem_avail_bytes"))
        driver = drm.driver(device)
        if driver not in ("i915", "xe"):
            return Memory(0, None)
        nodes = sorted((device / "drm").glob("renderD*"))
        if not nodes:
            return Memory(0, None)
        descriptor = os.open(self._host_root / "dev/dri" / nodes[0].name, os.O_RDWR | os.O_CLOEXEC)
        try:
            memory = self._xe(descriptor) if driver == "xe" else self._i915(descriptor)
        finally:
            os.close(descriptor)
        return memory if may_see_usage() else memory._replace(free=None)

    def _xe(self, descriptor: int) -> Memory:
        size = self._xe_query(descriptor, size=0, data=0)
        buffer = bytearray(size)
        self._xe_query(descriptor, size=size, data=_address(buffer))
        (count,) = struct.unpack_from("=I", buffer)
        total = free = 0
        for position in range(count):
            region = _XE_REGION.unpack_from(buffer, _XE_HEADER_BYTES + position * _XE_REGION.size)
            if region[0] == _CLASS_DEVICE:
                total += region[3]
                free += max(region[3] - region[4], 0)
        return Memory(total, free)

    def _xe_query(self, descriptor: int, *, size: int, data: int) -> int:
        argument = bytearray(_XE_QUERY.pack(0, _XE_QUERY_MEM_REGIONS, size, data, 0, 0))
        self._ioctl(descriptor, _XE_DEVICE_QUERY, argument)
        return int(_XE_QUERY.unpack(argument)[2])

    def _i915(self, descriptor: int) -> Memory:
        size = self._i915_query(descriptor, length=0, data=0)
        buffer = bytearray(size)
        self._i915_query(descriptor, length=size, data=_address(buffer))
        (count,) = struct.unpack_from("=I", buffer)
        total = free = 0
        for position in range(count):
            region = _I915_REGION.unpack_from(buffer, _I915_HEADER_BYTES + position * _I915_REGION.size)
            if region[0] == _CLASS_DEVICE:
                total += region[3]
                free += min(region[4], region[3])
        return Memory(total, free)

    def _i915_query(self, descriptor: int, *, length: int, data: int) -> int:
        item = bytearray(_I915_ITEM.pack(_I915_QUERY_MEMORY_REGIONS, length, 0, data))
        self._ioctl(descriptor, _I915_QUERY, bytearray(_I915_QUERY_ARGUMENT.pack(1, 0, _address(item))))
        answered = int(_I915_ITEM.unpack(item)[1])
        if answered < 0:
            # The driver answers an item with a negated errno while the call itself succeeds.
            raise OSError(-answered, os.strerror(-answered))
        return answered


def may_see_usage() -> bool:
    """Whether this process holds CAP_PERFMON (or CAP_SYS_ADMIN, which includes it)."""
    if sys.platform != "linux":
        return False
    for line in Path("/proc/self/status").read_text(encoding="ascii", errors="replace").splitlines():
        if line.startswith("CapEff:"):
            effective = int(line.split()[1], 16)
            return bool(effective & (1 << _CAP_PERFMON | 1 << _CAP_SYS_ADMIN))
    return False


def _address(buffer: bytearray) -> int:
    return ctypes.addressof((ctypes.c_char * len(buffer)).from_buffer(buffer))
