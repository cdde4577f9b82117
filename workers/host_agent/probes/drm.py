"""GPUs in the kernel's device tree (`/sys/class/drm`). Listing them asks no driver; reading their files may."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Final

_CARD: Final = re.compile(r"card([0-9]+)")


def cards(host_root: Path, vendor_id: str) -> list[Path]:
    """The device folders of all cards of one PCI vendor, in the order of the card numbers."""
    try:
        entries = list((host_root / "sys/class/drm").iterdir())
    except OSError:
        return []
    numbered = sorted((int(match[1]), entry) for entry in entries if (match := _CARD.fullmatch(entry.name)))
    return [entry / "device" for _, entry in numbered if read_text(entry / "device/vendor") == vendor_id]


def address(device: Path) -> str:
    """The PCI address, as the name of the folder that `cardN/device` leads to."""
    return device.resolve().name


def driver(device: Path) -> str:
    return (device / "driver").resolve().name


def read_text(path: Path) -> str:
    """The file's one line; empty where it is missing or unreadable."""
    try:
        return path.read_text(encoding="utf-8", errors="replace").strip()
    except OSError:
        return ""


def read_int(path: Path) -> int:
    """The file's one number.

    Raises:
        OSError: missing, or the driver refuses (a GPU that fell off the bus answers ENODEV).
        ValueError: no number.
    """
    return int(path.read_text(encoding="ascii").strip())
