"""Whether NVIDIA GPUs are asleep, or would be if nobody looked at them: a laptop's battery pays for every look."""

from __future__ import annotations

from pathlib import Path
from typing import Final, NamedTuple

from workers.host_agent.probes.drm import read_text

_VENDOR_ID: Final = "0x10de"
_DISPLAY_CLASS: Final = "0x03"


class Rest(NamedTuple):
    """`asleep`: all are, and asking the driver would wake them. `allowed`: they sleep when nobody uses them."""

    asleep: bool
    allowed: bool


def nvidia_rest(host_root: Path) -> Rest:
    """Reads the kernel's own power management; asks no driver."""
    try:
        devices = list((host_root / "sys/bus/pci/devices").iterdir())
    except OSError:
        return Rest(asleep=False, allowed=False)
    gpus = [
        device
        for device in devices
        if read_text(device / "vendor") == _VENDOR_ID and read_text(device / "class").startswith(_DISPLAY_CLASS)
    ]
    asleep = bool(gpus) and all(read_text(gpu / "power/runtime_status") == "suspended" for gpu in gpus)
    managed = any(read_text(gpu / "power/control") == "auto" for gpu in gpus)
    # Servers have it on "auto" too; there the GPUs never sleep, and opening the driver anew would cost seconds.
    return Rest(asleep=asleep, allowed=asleep or (managed and _has_battery(host_root)))


def _has_battery(host_root: Path) -> bool:
    try:
        supplies = list((host_root / "sys/class/power_supply").iterdir())
    except OSError:
        return False
    # A wireless mouse has one as well; its scope is "Device".
    return any(
        read_text(supply / "type") == "Battery" and read_text(supply / "scope") != "Device" for supply in supplies
    )
