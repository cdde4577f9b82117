"""The API's socket."""

from __future__ import annotations

import socket

import pytest

from app.errors import StartupRefusedError
from app.listener import address_of, listen
from app.settings import Settings
from tests.waiting import PATIENCE_S


def test_port_0_picks_one_and_the_address_names_it() -> None:
    with listen(Settings(port=0)) as listener:
        port = listener.getsockname()[1]
        assert port > 0
        assert address_of(listener) == f"http://127.0.0.1:{port}"
        with socket.create_connection(("127.0.0.1", port), timeout=PATIENCE_S):
            pass


def test_the_address_of_a_wildcard_is_one_that_can_be_reached() -> None:
    with listen(Settings(host="0.0.0.0", port=0)) as listener:
        assert address_of(listener).startswith("http://127.0.0.1:")


def test_a_taken_port_is_refused_with_a_way_out() -> None:
    with listen(Settings(port=0)) as first:
        port = first.getsockname()[1]
        with pytest.raises(StartupRefusedError, match=rf"127\.0\.0\.1:{port}.*--port"):
            listen(Settings(port=port))


def test_an_address_of_another_machine_is_refused() -> None:
    with pytest.raises(StartupRefusedError, match="--port"):
        listen(Settings(host="192.0.2.1", port=0))


def test_a_host_that_is_no_address_is_refused() -> None:
    with pytest.raises(StartupRefusedError, match="--host"):
        listen(Settings(host="no such host", port=0))
