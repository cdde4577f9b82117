"""NVIDIA GPUs through NVML. Runs in the sampling child only: the library may hang or crash."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from types import ModuleType
from typing import Any, Final

from workers.host_agent.probes.devices import MIB, Device, Sample
from workers.host_agent.probes.nvidia_smi import NvidiaSmi
from workers.host_agent.probes.power import nvidia_rest
from workers.host_agent.probes.system_memory import read_system_memory

_TRACES: Final = ("dev/nvidiactl", "dev/dxg", "proc/driver/nvidia/version", "etc/nv_tegra_release")


def present(host_root: Path) -> bool:
    """Whether a driver left its traces; asks no driver."""
    if any((host_root / trace).exists() for trace in _TRACES):
        return True
    return os.name == "nt" and shutil.which("nvidia-smi") is not None


class NvidiaProbe:
    """Holds NVML open between samples, since opening it can take seconds; after any error it is opened anew.

    A GPU that sleeps is not woken to be asked, and one that may sleep is let go of after each look.
    """

    def __init__(self, host_root: Path) -> None:
        self._host_root = host_root
        self._nvml: Any = None
        self._smi: NvidiaSmi | None = None
        self._last: list[Device] = []
        self._most_free_mib: dict[str, int] = {}

    def sample(self, *, with_processes: bool) -> Sample:
        rest = nvidia_rest(self._host_root)
        if rest.asleep and self._last:
            # Nothing is in the memory of a GPU without power, so it has as much free as it ever had.
            free = self._most_free_mib
            return Sample(
                [device._replace(free_mib=free[device.uuid], used_by_pid={}) for device in self._last], []
            )
        sample = self._ask(with_processes=with_processes, keep_open=not rest.allowed)
        self._last = sample.devices
        for device in sample.devices:
            most = self._most_free_mib.get(device.uuid, 0)
            self._most_free_mib[device.uuid] = max(most, device.free_mib)
        return sample

    def _ask(self, *, with_processes: bool, keep_open: bool) -> Sample:
        if self._smi is not None:
            return self._smi.sample()
        import pynvml  # noqa: PLC0415  # 17 MB that only a machine with an NVIDIA driver should pay for

        try:
            if self._nvml is None:
                pynvml.nvmlInit()
                self._nvml = pynvml
            sample = _Reading(pynvml, self._host_root, with_processes=with_processes).read()
        except pynvml.NVMLError as error:
            if error.value in (pynvml.NVML_ERROR_LIBRARY_NOT_FOUND, pynvml.NVML_ERROR_FUNCTION_NOT_FOUND):
                self._smi = NvidiaSmi(self._host_root)
                return self._smi.sample()
            sample = Sample([], [f"NVML: {_text(error)}"])
        if sample.reasons or not keep_open:
            self._close(pynvml)
        return sample

    def _close(self, pynvml: ModuleType) -> None:
        if self._nvml is not None:
            self._nvml = None
            try:
                pynvml.nvmlShutdown()
            except pynvml.NVMLError:
                # A library that lost its GPU may refuse to close; the next nvmlInit() tells.
                return


class _Reading:
    """One walk over GPUs and MIG slices."""

    def __init__(self, nvml: Any, host_root: Path, *, with_processes: bool) -> None:
        self._nvml = nvml
        self._host_root = host_root
        self._with_processes = with_processes
        self._devices: list[Device] = []
        self._reasons: list[str] = []

    def read(self) -> Sample:
        nvml = self._nvml
        count = nvml.nvmlDeviceGetCount()
        slices: list[Any] = []
        for index in range(count):
            try:
                handle = nvml.nvmlDeviceGetHandleByIndex(index)
                if self._mig_enabled(handle):
                    slices += self._slices(handle)
                else:
                    self._add(handle, index)
            except nvml.NVMLError as error:
                # One GPU off the bus must not hide the others.
                self._reasons.append(f"NVML: GPU {index}: {_text(error)}")
        for number, handle in enumerate(slices, start=count):
            try:
                self._add(handle, number)
            except nvml.NVMLError as error:
                self._reasons.append(f"NVML: MIG slice {number - count}: {_text(error)}")
        return Sample(self._devices, self._reasons)

    def _mig_enabled(self, handle: Any) -> bool:
        nvml = self._nvml
        try:
            current, _pending = nvml.nvmlDeviceGetMigMode(handle)
        except (
            nvml.NVMLError_NotSupported,
            nvml.NVMLError_FunctionNotFound,
            nvml.NVMLError_InvalidArgument,
        ):
            return False
        return bool(current == nvml.NVML_DEVICE_MIG_ENABLE)

    def _slices(self, handle: Any) -> list[Any]:
        nvml = self._nvml
        found = []
        for slot in range(nvml.nvmlDeviceGetMaxMigDeviceCount(handle)):
            try:
                found.append(nvml.nvmlDeviceGetMigDeviceHandleByIndex(handle, slot))
            except (nvml.NVMLError_NotFound, nvml.NVMLError_InvalidArgument):
                # An empty slot; slots need not be filled in order.
                continue
        return found

    def _add(self, handle: Any, index: int) -> None:
        nvml = self._nvml
        shared = False
        try:
            total, free = self._memory(handle)
        except nvml.NVMLError_NotSupported:
            # Grace-Blackwell desktops and Jetsons: the GPU works in the machine's own memory.
            total, free = read_system_memory(self._host_root)
            shared = True
        self._devices.append(
            Device(
                vendor="nvidia",
                number=index,
                uuid=_string(nvml.nvmlDeviceGetUUID(handle)),
                name=_string(nvml.nvmlDeviceGetName(handle)),
                total_mib=total // MIB,
                free_mib=free // MIB,
                shared=shared,
                used_by_pid=self._processes(handle) if self._with_processes else {},
            )
        )

    def _memory(self, handle: Any) -> tuple[int, int]:
        """Total and free bytes; version 2 leaves what the driver reserved out of both used and free."""
        nvml = self._nvml
        try:
            memory = nvml.nvmlDeviceGetMemoryInfo(handle, version=nvml.nvmlMemory_v2)
        except (nvml.NVMLError_FunctionNotFound, nvml.NVMLError_ArgumentVersionMismatch):
            memory = nvml.nvmlDeviceGetMemoryInfo(handle)
        return int(memory.total), int(memory.free)

    def _processes(self, handle: Any) -> dict[str, int]:
        nvml = self._nvml
        try:
            running = nvml.nvmlDeviceGetComputeRunningProcesses(handle)
        except nvml.NVMLError:
            return {}
        return {str(process.pid): (process.usedGpuMemory or 0) // MIB for process in running}


def _text(error: Exception) -> str:
    return _string(str(error)) or type(error).__name__


def _string(value: str | bytes) -> str:
    return value.decode(errors="replace") if isinstance(value, bytes) else value
