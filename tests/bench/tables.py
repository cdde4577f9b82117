"""The tables that a user without this index would build, and what is asked of them."""

from __future__ import annotations

from typing import Final

import msgspec

from tests.bench.fleets import Fleet

_COLUMNS: Final = (
    "agent_id uuid PRIMARY KEY, agent_type text NOT NULL, pool_name text NOT NULL, status text NOT NULL, "
    "last_heartbeat_at timestamptz NOT NULL"
)
_FIGURES: Final = "gpu_vram_available_gb float8 NOT NULL, cpu_cores_available int4 NOT NULL, cpu_load_1min float8"
_ALIVE: Final = "agent_type = 'desktop' AND status = 'online' AND last_heartbeat_at > $1"


class PeerTable(msgspec.Struct, frozen=True, kw_only=True):
    """A peer's own table with the same fleet in it.

    Attributes:
        side: the name of the side that asks it.
        upsert: one batch of heartbeats as arrays: ids, times, VRAM, cores, load, documents.
    """

    side: str
    name: str
    columns: str
    indexes: tuple[str, ...]
    selected: str
    fits: str
    best_first: str
    upsert: str

    def top(self) -> str:
        return (
            f"SELECT agent_id, agent_type, pool_name, status, last_heartbeat_at, {self.selected} "
            f"FROM {self.name} WHERE {_ALIVE} AND {self.fits} ORDER BY {self.best_first} LIMIT $4"
        )

    def count(self) -> str:
        return f"SELECT count(*) FROM {self.name} WHERE {_ALIVE} AND {self.fits}"

    def one(self) -> str:
        return (
            f"SELECT agent_id, agent_type, pool_name, status, last_heartbeat_at, {self.selected} "
            f"FROM {self.name} WHERE agent_id = $1"
        )


def _with_figures(side: str, name: str, index: str, *, fits: str, best_first: str) -> PeerTable:
    return PeerTable(
        side=side,
        name=name,
        columns=f"{_COLUMNS}, {_FIGURES}",
        indexes=(index,),
        selected="gpu_vram_available_gb, cpu_cores_available, cpu_load_1min",
        fits=fits,
        best_first=best_first,
        upsert=f"UPDATE {name} AS a SET last_heartbeat_at = n.at, gpu_vram_available_gb = n.vram, "
        "cpu_cores_available = n.cores, cpu_load_1min = n.load "
        "FROM unnest($1::uuid[], $2::timestamptz[], $3::float8[], $4::int4[], $5::float8[], $6::text[]) "
        "AS n(id, at, vram, cores, load, document) WHERE a.agent_id = n.id",
    )


BTREE: Final = _with_figures(
    "Postgres btree",
    "fleet_btree",
    "CREATE INDEX ON fleet_btree (gpu_vram_available_gb DESC, cpu_cores_available)",
    fits="gpu_vram_available_gb >= $2::float8 AND cpu_cores_available >= $3::int4",
    best_first="gpu_vram_available_gb DESC",
)
# Only ordering by a distance lets GiST hand rows out in order; nobody has as much VRAM as the far end.
GIST: Final = _with_figures(
    "Postgres GiST",
    "fleet_gist",
    "CREATE INDEX ON fleet_gist USING gist (gpu_vram_available_gb, cpu_cores_available)",
    fits="gpu_vram_available_gb >= $2::float8 AND cpu_cores_available >= $3::int4",
    best_first="gpu_vram_available_gb <-> 1000000::float8",
)
JSON: Final = PeerTable(
    side="Postgres JSON filter",
    name="fleet_json",
    columns=f"{_COLUMNS}, resource_metrics jsonb NOT NULL",
    indexes=(),
    selected="resource_metrics",
    fits="(resource_metrics->>'gpu_vram_available_gb')::float8 >= $2::float8 "
    "AND (resource_metrics->>'cpu_cores_available')::int4 >= $3::int4",
    best_first="(resource_metrics->>'gpu_vram_available_gb')::float8 DESC",
    upsert="UPDATE fleet_json AS a SET last_heartbeat_at = n.at, resource_metrics = n.document::jsonb "
    "FROM unnest($1::uuid[], $2::timestamptz[], $3::float8[], $4::int4[], $5::float8[], $6::text[]) "
    "AS n(id, at, vram, cores, load, document) WHERE a.agent_id = n.id",
)
TABLES: Final = (BTREE, GIST, JSON)

_encoder: Final = msgspec.json.Encoder()


def plain_url(url: str) -> str:
    return url.replace("+asyncpg", "")


def metrics_document(fleet: Fleet, number: int, beat: int) -> str:
    return _encoder.encode(fleet.heartbeat(number, beat).resource_metrics).decode()
