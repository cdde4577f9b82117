"""The socket that the API listens on."""

from __future__ import annotations

import os
import socket
from typing import TYPE_CHECKING, Final

from app.errors import StartupRefusedError

if TYPE_CHECKING:
    from app.settings import Settings

LISTEN_FD_VARIABLE = "HEADROOM_LISTEN_FD"
"""Set by `headroom up`, which listens itself: a restarted API finds its callers waiting instead of turned away."""

BACKLOG: Final = 2048


def listen(settings: Settings) -> socket.socket:
    """Binds the API's address.

    Raises:
        StartupRefusedError: the port is taken, or the address is not this machine's.
    """
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            settings.host, settings.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        listener = socket.socket(family, kind, protocol)
    except OSError as error:
        raise StartupRefusedError(f"There is no address {settings.host}: choose another with --host") from error
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
        listener.listen(BACKLOG)
    except OSError as error:
        listener.close()
        raise StartupRefusedError(
            f"Cannot listen on {settings.host}:{settings.port} ({os.strerror(error.errno or 0)}): "
            "stop what uses the port, or choose another with --port"
        ) from error
    return listener


def address_of(listener: socket.socket) -> str:
    """A URL under which this machine reaches the listener."""
    host, port = listener.getsockname()[:2]
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)  # noqa: S104  compared with, not bound to
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
