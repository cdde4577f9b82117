"""Bringing a heartbeat to a server, over real sockets."""

from __future__ import annotations

import contextlib
import logging
import socket
import ssl
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import msgspec
import pytest

from app.errors import StartupRefusedError
from tests.heartbeat_server import HeartbeatServer, Received, Reply, heartbeat_server
from tests.servers import free_port
from tests.waiting import PATIENCE_S, wait_until
from workers.host_agent.clock import NeverStops, StopRequestedError, SystemClock
from workers.host_agent.config import Config
from workers.host_agent.connection import HttpAnswer
from workers.host_agent.delivery import Delivery, Outcome, open_delivery, read_answer

PATH = "/api/v1/agents/x/heartbeat"
BODY = msgspec.msgpack.encode({"seq": 1})
DATA = Path(__file__).parents[2] / "data"
PROBLEM = {"code": "invalid_body", "detail": "The body has invalid fields", "errors": [{"field": "seq"}]}


@pytest.fixture
def server() -> Iterator[HeartbeatServer]:
    with heartbeat_server() as running:
        yield running


def opened(config: Config) -> Delivery:
    return open_delivery(config, NeverStops(), SystemClock())


@pytest.fixture
def deliver() -> Iterator[Callable[..., Outcome]]:
    """Delivers to the given ports with one Delivery for the whole test."""
    used: list[Delivery] = []

    def send(*ports: int, **settings: object) -> Outcome:
        if not used:
            servers = tuple(f"http://127.0.0.1:{port}" for port in ports)
            config = msgspec.convert({"server": servers, "timeout_s": PATIENCE_S, **settings}, Config)
            used.append(opened(config))
        return used[0].deliver(PATH, BODY)

    yield send
    for delivery in used:
        delivery.close()


def test_a_heartbeat_arrives_and_the_wish_comes_back(
    server: HeartbeatServer, deliver: Callable[..., Outcome]
) -> None:
    server.reply = lambda _: Reply(body={"stream_id": "5-0", "next_heartbeat_s": 12.5})
    outcome = deliver(server.port)
    assert outcome.accepted
    assert outcome.next_heartbeat_s == 12.5
    (received,) = server.received
    assert (received.path, received.heartbeat) == (PATH, {"seq": 1})
    assert received.headers["content-type"] == "application/msgpack"
    assert "authorization" not in received.headers


def test_the_connection_is_kept(server: HeartbeatServer, deliver: Callable[..., Outcome]) -> None:
    assert all(deliver(server.port).accepted for _ in range(5))
    assert len({received.connection for received in server.received}) == 1


def test_a_connection_that_the_server_closed_meanwhile_costs_no_failure(deliver: Callable[..., Outcome]) -> None:
    with heartbeat_server(idle_s=0.1) as server:
        assert deliver(server.port).accepted
        wait_until(lambda: server.closed == 1, what="the end of the connection")
        assert deliver(server.port).accepted
        assert len({received.connection for received in server.received}) == 2


def test_a_server_that_wants_to_close_is_left_alone(
    server: HeartbeatServer, deliver: Callable[..., Outcome]
) -> None:
    server.reply = lambda _: Reply(headers={"Connection": "close"})
    assert deliver(server.port).accepted
    assert deliver(server.port).accepted
    assert len({received.connection for received in server.received}) == 2


def test_the_token_is_sent(server: HeartbeatServer, deliver: Callable[..., Outcome]) -> None:
    deliver(server.port, token="s3cret")
    assert server.received[0].headers["authorization"] == "Bearer s3cret"


def test_the_token_is_read_anew_from_its_file_and_outlives_its_replacement(
    server: HeartbeatServer, deliver: Callable[..., Outcome], tmp_path: Path
) -> None:
    file = tmp_path / "token"
    file.write_text("first\n")
    deliver(server.port, token_file=str(file))
    file.write_text("second\n")
    deliver(server.port)
    file.write_text("")
    deliver(server.port)
    file.unlink()
    deliver(server.port)
    sent = [received.headers["authorization"] for received in server.received]
    assert sent == ["Bearer first", "Bearer second", "Bearer second", "Bearer second"]


def test_without_its_token_file_or_certificates_it_does_not_start(tmp_path: Path) -> None:
    with pytest.raises(StartupRefusedError, match="token_file"):
        opened(Config(token_file=str(tmp_path / "missing")))
    (tmp_path / "two-lines").write_text("hush-hush\nhush")
    with pytest.raises(StartupRefusedError, match="token_file") as refusal:
        opened(Config(token_file=str(tmp_path / "two-lines")))
    assert "hush" not in refusal.value.detail
    (tmp_path / "empty").write_text(" \n")
    with pytest.raises(StartupRefusedError, match="empty cannot be used: it is empty"):
        opened(Config(token_file=str(tmp_path / "empty")))
    with pytest.raises(StartupRefusedError, match="ca_file"):
        open_delivery(
            Config(server=("https://a",), ca_file=str(tmp_path / "missing")), NeverStops(), SystemClock()
        )


def test_the_next_server_is_tried_at_once_and_stayed_with(
    server: HeartbeatServer, deliver: Callable[..., Outcome]
) -> None:
    nobody = free_port()
    assert deliver(nobody, server.port).accepted
    assert deliver(nobody, server.port).accepted
    assert len({received.connection for received in server.received}) == 1


def test_every_server_is_tried_once_before_it_is_a_failure(deliver: Callable[..., Outcome]) -> None:
    with heartbeat_server() as first, heartbeat_server() as second:
        first.reply = second.reply = lambda _: Reply(503, b"", {"Retry-After": "7"})
        outcome = deliver(first.port, second.port)
        assert outcome == Outcome(detail="status 503", retry_after_s=outcome.retry_after_s)
        assert outcome.retry_after_s == pytest.approx(7.0, abs=2.0)
        assert (len(first.received), len(second.received)) == (1, 1)


def test_an_answer_that_got_lost_may_have_been_a_yes(server: HeartbeatServer) -> None:
    """The agent says goodbye then; one whose every connection was turned away does not."""
    server.reply = cut
    gone = f"http://127.0.0.1:{free_port()}"
    for servers, maybe_taken in (((f"http://127.0.0.1:{server.port}", gone), True), ((gone,), False)):
        delivery = opened(Config(server=servers, timeout_s=PATIENCE_S))
        outcome = delivery.deliver(PATH, BODY)
        assert not outcome.accepted
        assert outcome.maybe_taken is maybe_taken
        delivery.close()


def test_a_refusal_is_not_carried_to_the_next_server(deliver: Callable[..., Outcome]) -> None:
    with heartbeat_server() as first, heartbeat_server() as second:
        first.reply = lambda _: Reply(422, PROBLEM)
        outcome = deliver(first.port, second.port)
        assert outcome.refused
        assert not outcome.accepted
        assert "invalid_body" in outcome.detail
        assert second.received == []


def cut(_: Received) -> Reply:
    raise ConnectionError


@pytest.mark.parametrize("breaks_off", ["cut", "silent"])
def test_a_server_that_breaks_off_is_a_failure_while_it_does(
    server: HeartbeatServer, deliver: Callable[..., Outcome], breaks_off: str
) -> None:
    told = threading.Event()

    def stall(_: Received) -> Reply:
        told.wait()
        return Reply()

    server.reply = cut if breaks_off == "cut" else stall
    try:
        outcome = deliver(server.port, timeout_s=2.0)
        assert not outcome.accepted
        assert outcome.detail
    finally:
        told.set()
    server.reply = lambda _: Reply()
    assert deliver(server.port).accepted, "the next try uses a new connection"


@pytest.mark.parametrize(
    "answer",
    [
        b"",
        b"HTTP/1.1 202 Accepted\r\nX: ",
        b"nonsense\r\n\r\n",
        b"HTTP/1.1 202 A\r\nContent-Length: 99\r\n\r\nhalf",
    ],
    ids=["in the status line", "in the headers", "no HTTP", "in the body"],
)
def test_an_answer_that_drips_does_not_hold_the_agent(deliver: Callable[..., Outcome], answer: bytes) -> None:
    """A byte now and then never runs into a timeout for each read; the whole delivery has one deadline."""
    told = threading.Event()
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def drip() -> None:
            connection, _ = listener.accept()
            with connection:
                connection.recv(65536)
                try:
                    connection.sendall(answer)
                    while not told.wait(0.1):
                        connection.sendall(b"x")
                except OSError:
                    return

        thread = threading.Thread(target=drip)
        thread.start()
        try:
            assert not deliver(listener.getsockname()[1], timeout_s=1.0).accepted
        finally:
            told.set()
        thread.join()


def test_an_endless_answer_is_cut_off(server: HeartbeatServer, deliver: Callable[..., Outcome]) -> None:
    server.reply = lambda _: Reply(500, b"x" * 10_000_000)
    assert deliver(server.port).detail == "status 500"
    server.reply = lambda _: Reply()
    assert deliver(server.port).accepted


@pytest.mark.parametrize(
    ("host", "said"),
    [
        ("127.0.0.1", "refused"),
        ("no-such-host.invalid", ""),
        ("a" * 64 + ".example", "label"),
    ],
)
def test_what_cannot_be_reached_is_a_failure(host: str, said: str) -> None:
    delivery = open_delivery(
        Config(server=(f"http://{host}:{free_port()}",), timeout_s=2.0), NeverStops(), SystemClock()
    )
    outcome = delivery.deliver(PATH, BODY)
    assert not outcome.accepted
    assert said in outcome.detail.lower()
    delivery.close()


def test_tls_with_a_certificate_of_ones_own() -> None:
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    tls.load_cert_chain(DATA / "loopback.pem")
    with heartbeat_server(tls=tls) as server:
        trusting = Config(server=(f"https://127.0.0.1:{server.port}/",), ca_file=str(DATA / "loopback.crt"))
        delivery = opened(trusting)
        assert delivery.deliver(PATH, BODY).accepted
        assert delivery.deliver(PATH, BODY).accepted
        assert len({received.connection for received in server.received}) == 1
        delivery.close()
        untrusting = opened(Config(server=trusting.server))
        outcome = untrusting.deliver(PATH, BODY)
        assert not outcome.accepted
        assert "certificate" in outcome.detail.lower()
        untrusting.close()
        assert len(server.received) == 2


def test_a_path_before_the_api_is_kept(server: HeartbeatServer) -> None:
    delivery = open_delivery(
        Config(server=(f"http://127.0.0.1:{server.port}/site/a/",)), NeverStops(), SystemClock()
    )
    assert delivery.deliver(PATH, BODY).accepted
    assert server.received[0].path == "/site/a" + PATH
    delivery.close()


@pytest.mark.parametrize(
    ("status", "body"),
    [
        (200, b"<html>log in to the airport's network"),
        (202, b"<html>"),
        (202, b"{}"),
        (202, b'{"next_heartbeat_s": "soon"}'),
        (202, b'{"next_heartbeat_s": -1}'),
        (302, b""),
        (401, b'{"code": "unauthorized", "detail": "no"}'),
        (404, b""),
        (500, b'{"code": "internal_error"}'),
        (422, b"not from headroom"),
    ],
)
def test_only_a_headrooms_answer_counts(status: int, body: bytes) -> None:
    outcome = read_answer(HttpAnswer(status, body, None))
    assert not outcome.accepted
    assert not outcome.refused
    assert outcome.detail


@pytest.mark.parametrize("status", [400, 413, 415, 422])
def test_a_fault_of_the_heartbeat_is_told_from_one_of_the_way(status: int) -> None:
    assert read_answer(HttpAnswer(status, msgspec.json.encode(PROBLEM), None)).refused


def test_trouble_is_logged_once_and_its_end_too(
    server: HeartbeatServer, deliver: Callable[..., Outcome], caplog: pytest.LogCaptureFixture
) -> None:
    server.reply = lambda _: Reply(503, b"")
    with caplog.at_level(logging.INFO):
        for _ in range(3):
            deliver(server.port)
        server.reply = lambda _: Reply()
        for _ in range(3):
            deliver(server.port)
    assert [record.levelname for record in caplog.records] == ["WARNING", "INFO"]


def test_a_clone_is_told_by_flag_or_by_list(server: HeartbeatServer, deliver: Callable[..., Outcome]) -> None:
    for cloned, told in ((True, True), (["x"], True), (False, False), ([], False)):
        body = {"stream_id": "1-0", "next_heartbeat_s": 30.0, "cloned": cloned}
        server.reply = lambda _, body=body: Reply(body=body)  # type: ignore[misc]  # the default binds the body
        assert deliver(server.port).cloned is told


def test_a_stop_request_ends_the_wait_for_an_answer(server: HeartbeatServer) -> None:
    class Stopping(NeverStops):
        stopping = True

        @contextlib.contextmanager
        def interruptible(self) -> Iterator[None]:
            if self.stopping:
                raise StopRequestedError
            yield

    delivery = open_delivery(Config(server=(f"http://127.0.0.1:{server.port}",)), Stopping(), SystemClock())
    with pytest.raises(StopRequestedError):
        delivery.deliver(PATH, BODY)
    assert delivery.goodbye(PATH, BODY).accepted
    delivery.close()
