"""AMD GPUs through the files of the kernel's amdgpu driver; `amdsmi` where those are missing."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any, Final

from workers.host_agent.probes import drm
from workers.host_agent.probes.devices import MIB, Device, Sample
from workers.host_agent.probes.system_memory import read_system_memory

VENDOR_ID: Final = "0x1002"
_NAMES: Final = "usr/share/libdrm/amdgpu.ids"


def present(host_root: Path) -> bool:
    return bool(drm.cards(host_root, VENDOR_ID))


class AmdProbe:
    def __init__(self, host_root: Path) -> None:
        self._host_root = host_root
        self._names: dict[Path, str] = {}
        self._integrated: dict[Path, bool] = {}

    def sample(self, *, with_processes: bool) -> Sample:
        del with_processes  # amdgpu tells only a process's owner what it uses
        sample = Sample([], [])
        unread = []
        for index, device in enumerate(drm.cards(self._host_root, VENDOR_ID)):
            try:
                sample.devices.append(self._device(index, device))
            except FileNotFoundError:
                unread.append(device.name)
            except (OSError, ValueError) as error:
                sample.reasons.append(f"amdgpu: {device.name}: {type(error).__name__}: {error}")
        if unread and not sample.devices:
            return _amdsmi_sample()
        sample.reasons.extend(f"amdgpu: {name}: the driver publishes no memory figures" for name in unread)
        return sample

    def _device(self, index: int, device: Path) -> Device:
        total = drm.read_int(device / "mem_info_vram_total")
        free = max(total - drm.read_int(device / "mem_info_vram_used"), 0)
        shared = self._is_integrated(device)
        if shared:
            # The firmware's carve-out is often 512 MB; what a task can use is the GTT, as far as memory is free.
            _, available = read_system_memory(self._host_root)
            gtt = drm.read_int(device / "mem_info_gtt_total")
            gtt_free = max(gtt - drm.read_int(device / "mem_info_gtt_used"), 0)
            total, free = total + gtt, free + min(gtt_free, available)
        return Device(
            vendor="amd",
            number=index,
            uuid=drm.read_text(device / "unique_id") or drm.address(device),
            name=self._name(device),
            total_mib=total // MIB,
            free_mib=free // MIB,
            shared=shared,
        )

    def _is_integrated(self, device: Path) -> bool:
        """By the layout of `gpu_metrics`: revision 1 is a card's, 2 and 3 an APU's. Once: it wakes the GPU."""
        if device not in self._integrated:
            if drm.read_text(device / "power/runtime_status") == "suspended":
                # Only a laptop's card sleeps, never its APU.
                return False
            try:
                with (device / "gpu_metrics").open("rb") as file:
                    header = file.read(4)
            except OSError:
                header = b""
            self._integrated[device] = len(header) == 4 and header[2] in (2, 3)
        return self._integrated[device]

    def _name(self, device: Path) -> str:
        if device not in self._names:
            identifier = drm.read_text(device / "device").removeprefix("0x")
            self._names[device] = (
                drm.read_text(device / "product_name")
                or self._listed_name(identifier, drm.read_text(device / "revision").removeprefix("0x"))
                or f"AMD GPU {identifier}".strip()
            )
        return self._names[device]

    def _listed_name(self, identifier: str, revision: str) -> str:
        try:
            lines = (self._host_root / _NAMES).read_text(encoding="utf-8", errors="replace").splitlines()
        except OSError:
            return ""
        for line in lines:
            parts = [part.strip() for part in line.split(",", 2)]
            if len(parts) == 3 and (parts[0].lower(), parts[1].lower()) == (identifier.lower(), revision.lower()):
                return parts[2]
        return ""


def _amdsmi_sample() -> Sample:
    missing = "amdgpu: the driver publishes no memory figures"
    try:
        smi: Any = importlib.import_module("amdsmi")
    except (ImportError, KeyError, OSError):
        # Without ROCm the package raises KeyError while it is imported.
        return Sample([], [f"{missing}, and amdsmi is not usable"])
    sample = Sample([], [])
    try:
        smi.amdsmi_init()
        for index, handle in enumerate(smi.amdsmi_get_processor_handles()):
            memory = smi.amdsmi_get_gpu_vram_usage(handle)
            sample.devices.append(
                Device(
                    vendor="amd",
                    number=index,
                    uuid=str(smi.amdsmi_get_gpu_device_uuid(handle)),
                    name=str(smi.amdsmi_get_gpu_asic_info(handle).get("market_name", "AMD GPU")),
                    total_mib=int(memory["vram_total"]),
                    free_mib=max(int(memory["vram_total"]) - int(memory["vram_used"]), 0),
                )
            )
        smi.amdsmi_shut_down()
    except (smi.AmdSmiException, KeyError, ValueError) as error:
        sample.reasons.append(f"amdsmi: {type(error).__name__}: {error}"[:200])
    return sample
