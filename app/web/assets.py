"""The static files, in memory: their bytes, compressed once, under an address that changes with their content."""

from __future__ import annotations

import base64
import gzip
import hashlib
from functools import cache
from importlib.resources import files
from importlib.resources.abc import Traversable
from typing import Final

import msgspec

_MEDIA_TYPES: Final = {
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
    ".txt": "text/plain; charset=utf-8",
    ".md": "text/plain; charset=utf-8",
}


class Asset(msgspec.Struct, frozen=True):
    body: bytes
    compressed: bytes
    media_type: str

    @property
    def etag(self) -> str:
        return f'"{hashlib.sha256(self.body).hexdigest()[:32]}"'


class Assets(msgspec.Struct, frozen=True):
    """Attributes:

    digest: of all files; part of their address, so that they may be cached for ever.
    by_path: every file, by its path below `static/`.
    """

    digest: str
    by_path: dict[str, Asset]

    @property
    def base(self) -> str:
        return f"/static/{self.digest}/"

    def text(self, path: str) -> str:
        return self.by_path[path].body.decode("utf-8")


@cache
def load_assets() -> Assets:
    """Reads and compresses them on the first call of a process."""
    by_path = dict(_read(files("app.web") / "static", ""))
    digest = hashlib.sha256()
    for path in sorted(by_path):
        digest.update(path.encode() + b"\0" + by_path[path].body + b"\0")
    return Assets(digest.hexdigest()[:16], by_path)


def _read(folder: Traversable, prefix: str) -> list[tuple[str, Asset]]:
    found: list[tuple[str, Asset]] = []
    for entry in folder.iterdir():
        path = f"{prefix}{entry.name}"
        if entry.is_dir():
            found += _read(entry, f"{path}/")
            continue
        media_type = _MEDIA_TYPES.get(path[path.rfind(".") :])
        if media_type is not None:
            body = entry.read_bytes()
            found.append((path, Asset(body, gzip.compress(body, mtime=0), media_type)))
    return found


def csp_hash(text: str) -> str:
    """How a Content-Security-Policy names an inline style or script."""
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode('utf-8')).digest()).decode('ascii')}'"
