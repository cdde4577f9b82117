"""What tells this machine from a copy of its disk."""

from __future__ import annotations

import hashlib
import importlib
import re
import subprocess
import sys
from pathlib import Path
from typing import Any, Final, NamedTuple

_MACHINE_ID_FILES: Final = ("etc/machine-id", "var/lib/dbus/machine-id")
_PERMANENT: Final = "0"  # addr_assign_type of an address that came with the hardware, not one made up for privacy
_BUILT_IN_BUSES: Final = ("pci", "virtio", "vmbus", "xen")


class Machine(NamedTuple):
    """Hashes of what identifies the machine; empty where that cannot be known (from here, by this user).

    Attributes:
        machine_id: the operating system's; a careless copy of a disk carries it along.
        board: the mainboard's or virtual machine's UUID; readable by root only.
        network: those of built-in network cards with a permanent address.
    """

    machine_id: str = ""
    board: str = ""
    network: tuple[str, ...] = ()

    def completed(self, kept: Machine) -> Machine:
        """With what is unknown now taken from `kept`."""
        return Machine(self.machine_id or kept.machine_id, self.board or kept.board, self.network or kept.network)

    def differs_from(self, kept: Machine) -> str:
        """Names what proves that the state was made on another machine; empty when nothing does.

        What either side does not know proves nothing. Network cards count only while the board is unknown, and
        only when not one of them is the same: cards are added and swapped.
        """
        if self.machine_id and kept.machine_id and self.machine_id != kept.machine_id:
            return "machine id"
        if self.board and kept.board:
            return "mainboard" if self.board != kept.board else ""
        if self.network and kept.network and not set(self.network) & set(kept.network):
            return "network hardware"
        return ""


def this_machine(host_root: Path = Path("/")) -> Machine:
    read_id = {"darwin": _macos_id, "win32": _windows_id}.get(sys.platform)
    if read_id is None:
        machine_id = next((text for name in _MACHINE_ID_FILES if (text := _read(host_root / name))), "")
        return Machine(
            machine_id=_hash(machine_id),
            board=_hash(_read(host_root / "sys/class/dmi/id/product_uuid")),
            network=tuple(sorted(map(_hash, _permanent_addresses(host_root / "sys/class/net")))),
        )
    return Machine(machine_id=_hash(read_id()))


def _permanent_addresses(folder: Path) -> list[str]:
    found = []
    try:
        cards = list(folder.iterdir())
    except OSError:
        return []
    for card in cards:
        bus = (card / "device/subsystem").resolve().name
        if bus in _BUILT_IN_BUSES and _read(card / "addr_assign_type") == _PERMANENT:
            found.append(_read(card / "address"))
    return [address for address in found if address.strip("0:")]


def _macos_id() -> str:
    try:
        output = subprocess.run(
            ["/usr/sbin/ioreg", "-rd1", "-c", "IOPlatformExpertDevice"],
            capture_output=True,
            check=False,
            text=True,
            timeout=5,
        ).stdout
    except (OSError, subprocess.TimeoutExpired):
        return ""
    found = re.search(r'"IOPlatformUUID" = "([^"]+)"', output)
    return found[1] if found else ""


def _windows_id() -> str:
    winreg: Any = importlib.import_module("winreg")
    try:
        with winreg.OpenKey(winreg.HKEY_LOCAL_MACHINE, r"SOFTWARE\Microsoft\Cryptography") as key:
            return str(winreg.QueryValueEx(key, "MachineGuid")[0])
    except OSError:
        return ""


def _hash(value: str) -> str:
    """The machine id is confidential (machine-id(5)); the state file keeps a keyed hash of it."""
    return hashlib.blake2b(value.encode(), key=b"headroom-agent", digest_size=16).hexdigest() if value else ""


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace").strip()
    except OSError:
        return ""
