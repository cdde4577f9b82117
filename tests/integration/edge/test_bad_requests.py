"""Bad queries, paths and media types over a real socket, and that no answer repeats what was sent."""

from __future__ import annotations

import base64
import struct

import pytest

from tests.indexing import agent_id
from tests.serving import check, exchange, http_request

HEARTBEAT = f"/api/v1/agents/{agent_id(1)}/heartbeat"
SEARCH = "/api/v1/agents/available-capacity"
LIMIT = 1024 * 1024
SOUND = b'{"resource_metrics": {}}'


def forged(version: int, vram_gb: float) -> str:
    return base64.urlsafe_b64encode(struct.pack(">Bd16s", version, vram_gb, b"x" * 16)).decode().rstrip("=")


QUERIES = [
    *(
        f"min_gpu_vram_gb={value}"
        for value in ("NaN", "nan", "inf", "-inf", "-1", "", "1e999", "1_0", "0x1", "%D9%A4", "%00")
    ),
    *(f"min_gpu_vram_gb={value}" for value in ("4,5", "%204", "4%0a", "true", "--1", "1e", "%ff")),
    *(f"min_cpu_cores={value}" for value in ("0", "-1", "1.5", "1_000", "18446744073709551616", "2147483648", "")),
    *(f"min_cpu_cores={value}" for value in ("NaN", "1e1", "9" * 5000, "%D9%A4", "true")),
    *(f"min_memory_gb={value}" for value in ("-1", "NaN")),
    *(f"max_age_s={value}" for value in ("-1", "inf", "1e10")),
    *(f"limit={value}" for value in ("0", "-1", "1000000000", "10001", "1.0", "")),
    *(f"cursor={value}" for value in ("", "abc", "AAAA", "A" * 34, "A" * 10_000, "%00", "../../etc")),
    f"cursor={forged(1, float('nan'))}",
    f"cursor={forged(1, float('inf'))}",
    f"cursor={forged(1, -1.0)}",
    f"cursor={forged(2, 4.0)}",
    f"cursor={forged(1, 4.0)}%3D%3D",
    f"cursor={forged(1, 4.0)}&cursor={forged(1, 4.0)}",
    "agent_type=",
    "agent_type=Desktop",
    "agent_type=desktop%0a",
    "agent_type=" + "a" * 33,
    "pool_name=",
    "pool_name=%00",
    "pool_name=a%0d%0aSet-Cookie:x",
    "pool_name=" + "p" * 129,
    "pool_name=%ed%a0%80",
    "pool_name=%ff",
    "gpu_type=cuda",
    "gpu_type=",
    "min_gpu_vram=4",
    "min_gpu_vram_gb=4&min_gpu_vram_gb=4",
    "MIN_CPU_CORES=4",
    "min_cpu_cores",
    "=",
    "&".join(["a=1"] * 1_000),
]


@pytest.mark.parametrize("query", QUERIES, ids=[query[:40] for query in QUERIES])
def test_query(port: int, query: str) -> None:
    check(exchange(port, http_request("GET", f"{SEARCH}?{query}")), {400})


@pytest.mark.parametrize(
    "query",
    [
        "",
        "&",
        "min_cpu_cores=2147483647",
        "min_gpu_vram_gb=-0.0",
        "min_gpu_vram_gb=1e308",
        f"cursor={forged(1, 4.0)}",
    ],
)
def test_an_unusual_query_that_is_sound(port: int, query: str) -> None:
    answer = exchange(port, http_request("GET", f"{SEARCH}?{query}"))

    assert answer.status == 200
    assert answer.headers["content-type"] == "application/json"


@pytest.mark.parametrize(
    ("method", "target", "expected"),
    [
        ("GET", f"/api/v1/agents/{agent_id(1)}%0d%0a/capacity", {400}),
        ("GET", f"/api/v1/agents/{agent_id(1)}/capacity%0a", {400}),
        ("GET", f"/api/v1/agents/{agent_id(1)}%00/capacity", {400}),
        ("GET", "/api/v1/agents/%00/capacity", {400}),
        ("GET", "/api/v1/agents/%ff%fe/capacity", {400}),
        ("GET", f"/api/v1/agents/{agent_id(1)}%0a", {400}),
        ("GET", "/%0d%0aSet-Cookie:x", {400}),
        ("GET", "/api/v1/agents/abc/capacity", {400}),
        ("GET", f"/api/v1/agents/{agent_id(1)}%2fcapacity%2fx", {404}),
        ("GET", f"/api/v1/agents/{agent_id(404)}/capacity", {404}),
        ("GET", f"/api/v1/agents/{agent_id(404)}", {404}),
        ("GET", f"/api/v1/agents/{agent_id(404)}/history", {404}),
        ("GET", f"/api/v1/agents/{agent_id(404)}/history?limit=0", {400}),
        ("GET", f"/api/v1/agents/{agent_id(404)}?x=1", {400}),
        ("DELETE", f"/api/v1/agents/{agent_id(404)}", {404}),
        ("DELETE", "/api/v1/agents/abc", {400}),
        ("GET", "/api/v1/agents?after=abc", {400}),
        ("GET", "/api/v1/agents?status=gone", {400}),
        ("GET", "/api/v1/agents?limit=1001", {400}),
        ("GET", "/api/v1/agents/", {404}),
        ("GET", "/nothing/here", {404}),
        ("PUT", SEARCH, {405}),
        ("BREW", SEARCH, {400, 405}),
        ("POST", "/api/v1/agents/abc/heartbeat", {400}),
    ],
)
def test_path(port: int, method: str, target: str, expected: set[int]) -> None:
    answer = exchange(port, http_request(method, target, b""))

    assert answer.status in expected, answer
    assert b"Set-Cookie" not in b"".join(name.encode() for name in answer.headers)


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"Content_Type": "text/plain"},
        {"Content_Type": "application/x-www-form-urlencoded"},
        {"Content_Type": "application/json; charset=utf-16"},
        {"Content_Type": "application/jsonx"},
        {"Content_Type": ""},
        {"Content_Type": "application/json", "Content_Encoding": "gzip"},
        {"Content_Type": "application/json", "Content_Encoding": "br, gzip"},
    ],
)
def test_a_body_of_another_kind(port: int, headers: dict[str, str]) -> None:
    check(exchange(port, http_request("POST", HEARTBEAT, SOUND, **headers)), {415})


@pytest.mark.parametrize(
    "media_type", ["application/json; charset=UTF-8", "Application/JSON", "application/json;"]
)
def test_other_spellings_of_json(port: int, media_type: str) -> None:
    check(exchange(port, http_request("POST", HEARTBEAT, SOUND, Content_Type=media_type)), {202})


def test_a_body_over_the_limit_as_announced(port: int) -> None:
    answer = exchange(port, http_request("POST", HEARTBEAT, b" " * (LIMIT + 1), Content_Type="application/json"))

    assert (answer.status, answer.code) == (413, "body_too_large")
    assert answer.headers["connection"] == "close"


def test_a_body_over_the_limit_that_was_only_announced(port: int) -> None:
    request = http_request("POST", HEARTBEAT, Content_Type="application/json", Content_Length=str(10**12))

    check(exchange(port, request), {413})


def test_a_body_over_the_limit_in_chunks(port: int) -> None:
    head = http_request("POST", HEARTBEAT, Content_Type="application/json", Transfer_Encoding="chunked")
    chunk = b"10000\r\n" + b" " * 0x10000 + b"\r\n"

    check(exchange(port, head + chunk * (LIMIT // 0x10000 + 1) + b"0\r\n\r\n"), {413})


def test_a_body_in_chunks(port: int) -> None:
    head = http_request("POST", HEARTBEAT, Content_Type="application/json", Transfer_Encoding="chunked")

    check(exchange(port, head + b'18\r\n{"resource_metrics": {}}\r\n0\r\n\r\n'), {202})


def test_a_body_exactly_at_the_limit(port: int) -> None:
    body = SOUND + b" " * (LIMIT - len(SOUND))

    check(exchange(port, http_request("POST", HEARTBEAT, body, Content_Type="application/json")), {202})


def test_nothing_that_was_sent_comes_back(port: int) -> None:
    marker = "zqx9"
    requests = [
        http_request("GET", f"/api/v1/agents/{marker}/capacity"),
        http_request("GET", f"/{marker}"),
        http_request("GET", f"{SEARCH}?{marker}={marker}&min_cpu_cores={marker}&gpu_type={marker}"),
        http_request("GET", f"{SEARCH}?cursor={marker}"),
        http_request("POST", HEARTBEAT, marker.encode(), Content_Type="application/json"),
        http_request("POST", HEARTBEAT, b"{}", Content_Type=marker),
        *(
            http_request("POST", HEARTBEAT, body.encode(), Content_Type="application/json")
            for body in (
                f'{{"resource_metrics": {{"gpu_vram_available_gb": "{marker}"}}}}',
                f'{{"resource_metrics": {{"gpu_type": "{marker}"}}}}',
                f'{{"resource_metrics": {{}}, "status": "{marker}"}}',
                f'{{"resource_metrics": {{}}, "agent_type": "{marker}_"}}',
                f'{{"resource_metrics": {{}}, "sent_at": "{marker}"}}',
                f'{{"resource_metrics": {{}}, "agent_id": "{marker}"}}',
                f'{{"resource_metrics": {{}}, "hostname": "{marker}\\u0000"}}',
                f'{{"resource_metrics": {{}}, "gpus": [{{"{marker}": 1}}]}}',
                f'{{"{marker}": 1}}',
            )
        ),
    ]
    for request in requests:
        answer = exchange(port, request)
        assert answer.status >= 400, request
        assert marker.encode() not in answer.body, request
