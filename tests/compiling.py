"""Small libraries in C that tests put below a program, to say what hardware or a disk would say."""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
import sys
from pathlib import Path


def compiler() -> list[str]:
    """The machine's C compiler, or the one that `scripts/install --dev` brings where there is none."""
    for name in ("cc", "gcc", "clang"):
        if path := shutil.which(name):
            return [path]
    if importlib.util.find_spec("ziglang"):
        return [sys.executable, "-m", "ziglang", "cc"]
    raise AssertionError("no C compiler: run scripts/install --dev, which brings one")


def compile_library(source: Path, library: Path) -> None:
    cache = {name: str(library.parent / "zig") for name in ("ZIG_GLOBAL_CACHE_DIR", "ZIG_LOCAL_CACHE_DIR")}
    subprocess.run(
        [*compiler(), "-shared", "-fPIC", "-O1", "-o", str(library), str(source), "-ldl"],
        check=True,
        env={**os.environ, **cache},
    )
