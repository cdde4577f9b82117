"""A fake `libnvidia-ml.so.1` that says and does what a test writes into a file, also while it is loaded."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import pytest

from tests.compiling import compile_library

SOURCE = Path(__file__).with_name("fake_nvml.c")
GIB = 1 << 30
TITAN = {"gpu0.name": "NVIDIA Titan", "gpu0.total": 24 * GIB, "gpu0.free": 20 * GIB}


def build_library(folder: Path) -> Path:
    """Returns the folder that holds the library, for LD_LIBRARY_PATH."""
    compile_library(SOURCE, folder / "libnvidia-ml.so.1")
    return folder


class FakeNvml(NamedTuple):
    """A host with that library: `host_root` looks like a machine with the driver loaded."""

    library_dir: Path
    host_root: Path

    @property
    def script(self) -> Path:
        return self.host_root / "nvml"

    def say(self, what: Mapping[str, object]) -> None:
        """Replaces what the library says, atomically: it may be reading."""
        new = self.script.with_suffix(".new")
        new.write_text("".join(f"{key} {value}\n" for key, value in what.items()))
        new.replace(self.script)

    @property
    def environment(self) -> dict[str, str]:
        return {"LD_LIBRARY_PATH": str(self.library_dir), "FAKE_NVML": str(self.script)}

    def enter(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """For children that this process starts."""
        for name, value in self.environment.items():
            monkeypatch.setenv(name, value)


def fake_host(folder: Path, library_dir: Path) -> FakeNvml:
    """A root with this machine's /proc, and nothing of its GPUs."""
    (folder / "dev").mkdir(parents=True)
    (folder / "dev/nvidiactl").touch()
    (folder / "proc").symlink_to("/proc")
    fake = FakeNvml(library_dir, folder)
    fake.say(TITAN)
    return fake
