"""Tells systemd that the agent is up and alive (sd_notify), so that a wedged agent is started anew."""

from __future__ import annotations

import contextlib
import os
import socket
import sys


class ServiceManager:
    """Does nothing outside a service of type notify."""

    def __init__(self) -> None:
        # Taken out of the environment: no child shall speak in the agent's name.
        self._address = os.environ.pop("NOTIFY_SOCKET", "")
        self._ready = False

    def alive(self) -> None:
        self._send("WATCHDOG=1" if self._ready else "READY=1\nWATCHDOG=1")
        self._ready = True

    def stopping(self) -> None:
        self._send("STOPPING=1")

    def _send(self, message: str) -> None:
        if not self._address or sys.platform == "win32":
            return
        address = "\0" + self._address[1:] if self._address.startswith("@") else self._address
        # A manager that is restarting itself misses one message of many.
        with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as notification:
            notification.setblocking(False)
            notification.sendto(message.encode(), address)
