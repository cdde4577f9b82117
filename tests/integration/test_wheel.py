"""What is installed is all that is here: scripts, migrations and templates included."""

from __future__ import annotations

import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

ROOT = Path(__file__).parents[2]
PACKAGES = ("app", "workers")


def test_the_wheel_has_every_file_of_the_packages(tmp_path: Path) -> None:
    for package in PACKAGES:
        shutil.copytree(ROOT / package, tmp_path / package, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, tmp_path)
    build = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-index", "--no-build-isolation"]
    subprocess.run([*build, "--wheel-dir", tmp_path / "dist", tmp_path], check=True)

    (wheel,) = (tmp_path / "dist").iterdir()
    packed = set(zipfile.ZipFile(wheel).namelist())
    here = {
        str(path.relative_to(tmp_path))
        for package in PACKAGES
        for path in (tmp_path / package).rglob("*")
        if path.is_file() and "build" not in path.parts
    }
    assert not here - packed
    assert any(name.endswith("licenses/LICENSE") for name in packed)
