"""Bad heartbeats over a real socket: the right answer, never a 5xx, never a hang."""

from __future__ import annotations

import json
import struct
from typing import Any

import msgpack
import msgspec
import pytest

from tests.indexing import agent_id
from tests.serving import Answer, check, exchange, http_request

HEARTBEAT = f"/api/v1/agents/{agent_id(1)}/heartbeat"
BATCH = "/api/v1/heartbeats"
LIMIT = 1024 * 1024
TAKEN, MALFORMED, INVALID = {202}, {400}, {422}


def post(port: int, body: bytes, *, target: str = HEARTBEAT, media_type: str = "application/json") -> Answer:
    return exchange(port, http_request("POST", target, body, Content_Type=media_type))


def metric(name: str, value: str) -> str:
    return f'{{"resource_metrics": {{"{name}": {value}}}}}'


def field(name: str, value: str) -> str:
    return f'{{"resource_metrics": {{}}, "{name}": {value}}}'


def ordered(boot_id: str, seq: str) -> str:
    return f'{{"resource_metrics": {{}}, "boot_id": "{boot_id}", "seq": {seq}}}'


VRAM, CORES = "gpu_vram_available_gb", "cpu_cores_available"

JSON_BODIES: dict[str, tuple[str | bytes, set[int]]] = {
    "NaN": (metric(VRAM, "NaN"), INVALID),
    "Infinity": (metric(VRAM, "Infinity"), INVALID),
    "-Infinity": (metric(VRAM, "-Infinity"), INVALID),
    "NaN as cores": (metric(CORES, "NaN"), INVALID),
    "lone surrogate as value": (field("hostname", r'"\ud800"'), {400, 422}),
    "lone surrogate as key": (field(r"\udfff", "1"), {400, 422}),
    "lone surrogate in an unknown field": (field("unknown", r'["\uDBFF"]'), {400, 422}),
    "a pair of surrogates": (field("hostname", r'"\ud83d\ude00"'), TAKEN),
    "1e999": (metric(VRAM, "1e999"), INVALID),
    "NaN as text": (metric(VRAM, '"NaN"'), INVALID),
    "NUL": (field("hostname", r'"a\u0000b"'), INVALID),
    "CR LF": (field("pool_name", r'"a\r\nb"'), INVALID),
    "raw control character": (field("pool_name", '"a\nb"'), MALFORMED),
    "empty id": (field("agent_id", '""'), INVALID),
    "empty pool": (field("pool_name", '""'), INVALID),
    "pool at its limit": (field("pool_name", f'"{"é" * 128}"'), TAKEN),
    "pool over its limit": (field("pool_name", f'"{"p" * 129}"'), INVALID),
    "hostname over its limit": (field("hostname", f'"{"h" * 256}"'), INVALID),
    "agent type in capitals": (field("agent_type", '"Desktop"'), INVALID),
    "agent type over its limit": (field("agent_type", f'"{"t" * 33}"'), INVALID),
    "agent type with a line feed": (field("agent_type", r'"desktop\n"'), INVALID),
    "look-alike digit in an id": (field("agent_id", json.dumps(agent_id(1).replace("1", "\uff11"))), INVALID),
    "look-alike letter in an id": (field("agent_id", json.dumps(agent_id(0xA).replace("a", "\u0430"))), INVALID),
    "negative VRAM": (metric(VRAM, "-0.1"), INVALID),
    "-0.0": (metric(VRAM, "-0.0"), TAKEN),
    "5e-324": (metric(VRAM, "5e-324"), TAKEN),
    "cores 2^64": (metric(CORES, str(2**64)), INVALID),
    "cores 65,536": (metric(CORES, "65536"), TAKEN),
    "cores 65,537": (metric(CORES, "65537"), INVALID),
    "4,000 digits as VRAM": (metric(VRAM, "9" * 4000), INVALID),
    "4,000 digits as cores": (metric(CORES, "9" * 4000), INVALID),
    "5,000 digits": (metric(VRAM, "9" * 5000), {400, 422}),
    "2^53+1 as VRAM": (metric(VRAM, str(2**53 + 1)), INVALID),
    "2^53+1 as cores": (metric(CORES, str(2**53 + 1)), INVALID),
    "true as cores": (metric(CORES, "true"), INVALID),
    "true as VRAM": (metric(VRAM, "true"), INVALID),
    "text as cores": (metric(CORES, '"4"'), INVALID),
    "1.0 as cores": (metric(CORES, "1.0"), TAKEN),
    "1.5 as cores": (metric(CORES, "1.5"), INVALID),
    "null as cores": (metric(CORES, "null"), TAKEN),
    "free VRAM above total": (
        '{"resource_metrics": {"gpu_vram_available_gb": 9, "gpu_vram_total_gb": 8}}',
        INVALID,
    ),
    "free VRAM without total": (metric(VRAM, "9"), TAKEN),
    "free cores above total": (
        '{"resource_metrics": {"cpu_cores_available": 9, "cpu_cores_physical": 8}}',
        INVALID,
    ),
    "memory above 100 %": (metric("memory_percent", "100.1"), INVALID),
    "unknown kind of GPU": (metric("gpu_type", '"cuda"'), INVALID),
    "unknown status": (field("status", '"away"'), INVALID),
    "null as body": ("null", INVALID),
    "array as body": ("[]", INVALID),
    "text as body": ('"heartbeat"', INVALID),
    "empty object": ("{}", INVALID),
    "null as metrics": ('{"resource_metrics": null}', TAKEN),
    "array as metrics": ('{"resource_metrics": []}', INVALID),
    "empty body": ("", MALFORMED),
    "blank body": (" ", MALFORMED),
    "truncated": ('{"resource_metrics": {', MALFORMED),
    "trailing": ('{"resource_metrics": {}} x', MALFORMED),
    "duplicate keys": ('{"resource_metrics": 1, "resource_metrics": {}}', TAKEN),
    "duplicate keys, the last one wrong": ('{"resource_metrics": {}, "resource_metrics": 1}', INVALID),
    "900 arrays in an unknown field": (field("unknown", "[" * 900 + "]" * 900), {202, 422}),
    "900 objects in an unknown field": (field("unknown", '{"a":' * 900 + "1" + "}" * 900), {202, 422}),
    "100,000 levels": (field("unknown", "[" * 100_000 + "]" * 100_000), MALFORMED),
    "100,000 levels without an end": ("[" * 100_000, MALFORMED),
    "invalid UTF-8": (b'{"resource_metrics": {}, "hostname": "\xff"}', MALFORMED),
    "UTF-16": ('{"resource_metrics": {}}'.encode("utf-16"), MALFORMED),
    "UTF-16 without a mark": ('{"resource_metrics": {}}'.encode("utf-16-le"), MALFORMED),
    "byte order mark": (b'\xef\xbb\xbf{"resource_metrics": {}}', MALFORMED),
    "year 9999": (field("sent_at", '"9999-12-31T23:59:59+00:00"'), INVALID),
    "year 1999": (field("sent_at", '"1999-12-31T23:59:59+00:00"'), INVALID),
    "time without offset": (field("sent_at", '"2027-01-01T00:00:00"'), INVALID),
    "day that does not exist": (field("sent_at", '"2027-02-30T00:00:00Z"'), INVALID),
    "negative time": (field("sent_at", "-1"), INVALID),
    "time with offset": (field("sent_at", '"2027-01-01T00:00:00.5-03:30"'), TAKEN),
    "seq -1": (ordered("b", "-1"), INVALID),
    "seq 2^63": (ordered("b", str(2**63)), INVALID),
    "seq 2^63-1": (ordered("b", str(2**63 - 1)), TAKEN),
    "seq without boot": (field("seq", "1"), INVALID),
    "boot without seq": (field("boot_id", '"b"'), INVALID),
    "boot that is not ASCII": (ordered("é", "1"), INVALID),
    "boot over its limit": (ordered("b" * 65, "1"), INVALID),
    "10,000 GPUs": (field("gpus", json.dumps([{"index": n} for n in range(10_000)])), INVALID),
    "256 GPUs": (field("gpus", json.dumps([{"index": n} for n in range(256)])), TAKEN),
    "two GPUs of one index": (field("gpus", '[{"index": 0}, {"index": 0}]'), INVALID),
    "GPU with more free than total": (
        field("gpus", '[{"index": 0, "vram_total_gb": 1, "vram_available_gb": 2}]'),
        INVALID,
    ),
    "another id than in the path": (field("agent_id", f'"{agent_id(2)}"'), INVALID),
    "the id of the path in capitals": (field("agent_id", f'"{agent_id(1).upper()}"'), TAKEN),
    "unknown field": (field("from_the_future", '{"a": [1]}'), TAKEN),
}


@pytest.mark.parametrize(("body", "expected"), JSON_BODIES.values(), ids=JSON_BODIES)
def test_json_heartbeat(port: int, body: str | bytes, expected: set[int]) -> None:
    check(post(port, body if isinstance(body, bytes) else body.encode()), expected)


ITEMS = {
    name: (body, expected)
    for name, (body, expected) in JSON_BODIES.items()
    if isinstance(body, str) and expected <= {202, 422} and "id" not in name and body.startswith("{")
}


@pytest.mark.parametrize(("body", "expected"), ITEMS.values(), ids=ITEMS)
def test_the_same_as_one_item_of_a_batch(port: int, body: str, expected: set[int]) -> None:
    item = body.rstrip()[:-1] + (", " if len(body) > 2 else "") + f'"agent_id": "{agent_id(1)}"}}'
    sound = f'{{"agent_id": "{agent_id(2)}", "resource_metrics": {{}}}}'

    alone = post(port, f'{{"heartbeats": [{item}]}}'.encode(), target=BATCH)
    beside = post(port, f'{{"heartbeats": [{sound}, {item}]}}'.encode(), target=BATCH)

    check(alone, expected)
    assert beside.status == 202
    document = msgspec.json.decode(beside.body)
    accepted = [entry["index"] for entry in document["accepted"]]
    rejected = [entry["index"] for entry in document["rejected"]]
    assert (accepted, rejected) == (([0, 1], []) if alone.status == 202 else ([0], [1]))


@pytest.mark.parametrize(
    "body",
    [
        '{"heartbeats": []}',
        '{"heartbeats": null}',
        '{"heartbeats": {}}',
        "{}",
        "[]",
        '{"heartbeats": [{}]}',
        '{"heartbeats": [null, 1, "a", []]}',
        json.dumps({"heartbeats": [{}] * 1_000}),
        json.dumps({"heartbeats": [{"agent_id": agent_id(1), "resource_metrics": {}}] * 1_001}),
    ],
)
def test_a_batch_without_a_sound_item(port: int, body: str) -> None:
    answer = post(port, body.encode(), target=BATCH)

    check(answer, INVALID)
    assert len(msgspec.json.decode(answer.body)["errors"]) <= 100


def packed(value: Any, **fields: Any) -> bytes:
    return msgpack.packb({"resource_metrics": {VRAM: value}, **fields})


def nested(levels: int, opening: bytes) -> bytes:
    return b"\x82\xb0resource_metrics\x80\xa1u" + opening * levels + b"\xc0"


MSGPACK_BODIES: dict[str, tuple[bytes, set[int]]] = {
    "sound": (packed(4.0), TAKEN),
    "empty": (b"", MALFORMED),
    "truncated": (packed(4.0)[:-1], MALFORMED),
    "array32 of 4 billion": (b"\xdd" + struct.pack(">I", 4_000_000_000), MALFORMED),
    "map32 of 4 billion": (b"\xdf" + struct.pack(">I", 4_000_000_000), MALFORMED),
    "1 MiB of nested array32": ((b"\xdd\x00\x00\x00\x01" * (LIMIT // 5 + 1))[:LIMIT], MALFORMED),
    "1 MiB of nested long array32": ((b"\xdd\x00\x00\x3f\xff" * (LIMIT // 5 + 1))[:LIMIT], MALFORMED),
    "a million levels": (b"\x91" * 1_000_000, MALFORMED),
    "600 levels": (b"\x91" * 600 + b"\xc0", INVALID),
    "600 levels in an unknown field": (nested(600, b"\x91"), {202, 422}),
    "600 maps in an unknown field": (nested(600, b"\x81\xa1a"), {202, 422}),
    "extension type": (packed(msgpack.ExtType(5, b"abc")), INVALID),
    "extension type in an unknown field": (packed(1.0, unknown=msgpack.ExtType(5, b"abc")), INVALID),
    "timestamp as a metric": (packed(msgpack.Timestamp(1, 0)), INVALID),
    "timestamp as sent_at": (packed(1.0, sent_at=msgpack.Timestamp(1_800_000_000, 5)), TAKEN),
    "timestamp96 overflow": (packed(1.0, sent_at=msgpack.Timestamp(2**62, 0)), INVALID),
    "timestamp96 before 1970": (packed(1.0, sent_at=msgpack.Timestamp(-(2**62), 0)), INVALID),
    "timestamp96 with too many ns": (b"\x81\xa1a\xc7\x0c\xff" + b"\xff" * 12, {400, 422}),
    "bad UTF-8": (b"\x82\xb0resource_metrics\x80\xa8hostname\xa1\xff", MALFORMED),
    "surrogate in UTF-8": (b"\x82\xb0resource_metrics\x80\xa8hostname\xa3\xed\xa0\x80", MALFORMED),
    "bytes as id": (packed(1.0, agent_id=agent_id(1).encode()), INVALID),
    "integer as key": (msgpack.packb({"resource_metrics": {}, 1: 2}), INVALID),
    "nil as key": (msgpack.packb({"resource_metrics": {}, None: 2}), INVALID),
    "array as key": (b"\x82\xb0resource_metrics\x80\x90\x01", INVALID),
    "integer as key, then broken": (b"\x82\x01\x02\xc1", MALFORMED),
    "integer as key, then an extension": (b"\x82\x01\x02\xa1a\xd4\x05\x00", INVALID),
    "NaN double": (packed(float("nan")), INVALID),
    "infinite float32": (b"\x81\xb0resource_metrics\x81\xb5gpu_vram_available_gb\xca\x7f\x80\x00\x00", INVALID),
    "trailing bytes": (packed(4.0) + b"\xc0", MALFORMED),
    "reserved 0xc1": (b"\xc1", MALFORMED),
    "nil": (b"\xc0", INVALID),
    "uint64": (packed(2**64 - 1), INVALID),
}


@pytest.mark.parametrize(("body", "expected"), MSGPACK_BODIES.values(), ids=MSGPACK_BODIES)
@pytest.mark.parametrize("target", [HEARTBEAT, BATCH])
def test_msgpack_heartbeat(port: int, target: str, body: bytes, expected: set[int]) -> None:
    # As a batch none of them is one, so what would be taken is invalid there.
    wanted = expected if target == HEARTBEAT else {422 if status == 202 else status for status in expected}
    check(post(port, body, target=target, media_type="application/msgpack"), wanted)
