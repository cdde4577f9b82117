"""The machine's own memory as the kernel sees it, read without a library: the sampling child stays small."""

from __future__ import annotations

from pathlib import Path


def read_system_memory(host_root: Path) -> tuple[int, int]:
    """Total and available bytes; zeros where /proc/meminfo does not say."""
    figures = {"MemTotal": 0, "MemAvailable": 0}
    for line in (host_root / "proc/meminfo").read_text(encoding="ascii", errors="replace").splitlines():
        name, _, rest = line.partition(":")
        if name in figures:
            figures[name] = int(rest.split()[0]) * 1024
    return figures["MemTotal"], figures["MemAvailable"]
