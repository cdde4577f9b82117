"""Statements for many rows at once, in the one form that is fast on each database.

On Postgres a batch travels as one array per column, which costs a fraction of one parameter set per row; SQLite
has no arrays, but runs a prepared statement in its own process as fast.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from sqlalchemy import (
    JSON,
    Column,
    ColumnElement,
    CursorResult,
    DateTime,
    TableValuedAlias,
    Text,
    any_,
    bindparam,
    cast,
    column,
    func,
    select,
    tuple_,
    update,
)
from sqlalchemy import Table as SqlTable
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.ext.asyncio import AsyncConnection
from sqlalchemy.types import TypeEngine

from app.models.identity import AgentId
from app.record.tables import AGENT_UUID, UtcTimestamp

Row = Mapping[str, Any]
"""One row by column name; JSON columns as text."""


class Bulk(Protocol):
    def agents(self) -> TableValuedAlias:
        """The ids handed in as `parameters(...)`, as a table with the column `agent_id`."""
        ...

    def among(self, agent_id: Column[str]) -> ColumnElement[bool]:
        """Whether the column is one of these ids."""
        ...

    def parameters(self, agent_ids: Sequence[AgentId]) -> dict[str, Any]: ...

    async def insert(
        self, connection: AsyncConnection, table: SqlTable, rows: Sequence[Row], *, newer_by: Sequence[str] = ()
    ) -> int:
        """Inserts rows with distinct keys and returns how many took effect.

        A row that exists stays as it is; with `newer_by`, it is replaced if it is smaller in these columns.
        """
        ...

    async def update(
        self, connection: AsyncConnection, table: SqlTable, rows: Sequence[Row], *, not_above: Sequence[str] = ()
    ) -> int:
        """Updates rows by primary key and returns how many took effect.

        With `not_above`, a row that is greater in these columns than the new values stays as it is.
        """
        ...


class PostgresBulk:
    def agents(self) -> TableValuedAlias:
        return (
            func.unnest(self._ids()).table_valued(column("agent_id", AGENT_UUID), name="wanted").render_derived()
        )

    def among(self, agent_id: Column[str]) -> ColumnElement[bool]:
        return agent_id == any_(self._ids())

    def parameters(self, agent_ids: Sequence[AgentId]) -> dict[str, Any]:
        return {"agent_ids": list(agent_ids)}

    async def insert(
        self, connection: AsyncConnection, table: SqlTable, rows: Sequence[Row], *, newer_by: Sequence[str] = ()
    ) -> int:
        if not rows:
            return 0
        names = list(rows[0])
        source = self._source(table, names)
        statement = postgresql.insert(table).from_select(names, select(*self._values(table, source).values()))
        if newer_by:
            new = statement.excluded
            final = statement.on_conflict_do_update(
                index_elements=list(table.primary_key.columns),
                set_={name: new[name] for name in names if not table.c[name].primary_key},
                where=_less(table, newer_by, [new[name] for name in newer_by]),
            )
        else:
            final = statement.on_conflict_do_nothing()
        return _count(await connection.execute(final, _columns(names, rows)))

    async def update(
        self, connection: AsyncConnection, table: SqlTable, rows: Sequence[Row], *, not_above: Sequence[str] = ()
    ) -> int:
        if not rows:
            return 0
        names = list(rows[0])
        values = self._values(table, self._source(table, names))
        statement = (
            update(table)
            .values({name: value for name, value in values.items() if not table.c[name].primary_key})
            .where(*(key == values[key.name] for key in table.primary_key.columns))
        )
        if not_above:
            statement = statement.where(_less_or_equal(table, not_above, [values[name] for name in not_above]))
        return _count(await connection.execute(statement, _columns(names, rows)))

    def _ids(self) -> ColumnElement[Any]:
        return bindparam("agent_ids", type_=postgresql.ARRAY(AGENT_UUID))

    def _source(self, table: SqlTable, names: Sequence[str]) -> TableValuedAlias:
        arrays = [bindparam(f"new_{name}", type_=postgresql.ARRAY(_sent_as(table.c[name]))) for name in names]
        columns = [column(name, _sent_as(table.c[name])) for name in names]
        return func.unnest(*arrays).table_valued(*columns, name="batch").render_derived()

    def _values(self, table: SqlTable, source: TableValuedAlias) -> dict[str, ColumnElement[Any]]:
        return {
            value.name: cast(value, table.c[value.name].type)
            if isinstance(table.c[value.name].type, JSON)
            else value
            for value in source.c
        }


class SqliteBulk:
    def agents(self) -> TableValuedAlias:
        return func.json_each(bindparam("agent_ids", type_=Text)).table_valued(
            column("value", Text), name="wanted"
        )

    def among(self, agent_id: Column[str]) -> ColumnElement[bool]:
        return agent_id.in_(select(self.agents().c.value))

    def parameters(self, agent_ids: Sequence[AgentId]) -> dict[str, Any]:
        return {"agent_ids": json.dumps(list(agent_ids))}

    async def insert(
        self, connection: AsyncConnection, table: SqlTable, rows: Sequence[Row], *, newer_by: Sequence[str] = ()
    ) -> int:
        if not rows:
            return 0
        names = list(rows[0])
        statement = sqlite.insert(table).values(
            {name: bindparam(name, type_=_kept_as(table.c[name])) for name in names}
        )
        if newer_by:
            new = statement.excluded
            final = statement.on_conflict_do_update(
                index_elements=list(table.primary_key.columns),
                set_={name: new[name] for name in names if not table.c[name].primary_key},
                where=_less(table, newer_by, [new[name] for name in newer_by]),
            )
        else:
            final = statement.on_conflict_do_nothing()
        return _count(await connection.execute(final, list(rows)))

    async def update(
        self, connection: AsyncConnection, table: SqlTable, rows: Sequence[Row], *, not_above: Sequence[str] = ()
    ) -> int:
        if not rows:
            return 0
        names = list(rows[0])
        new = {name: bindparam(f"new_{name}", type_=_kept_as(table.c[name])) for name in names}
        statement = (
            update(table)
            .values({name: value for name, value in new.items() if not table.c[name].primary_key})
            .where(*(key == new[key.name] for key in table.primary_key.columns))
        )
        if not_above:
            statement = statement.where(_less_or_equal(table, not_above, [new[name] for name in not_above]))
        parameters = [{f"new_{name}": value for name, value in row.items()} for row in rows]
        return _count(await connection.execute(statement, parameters))


def _columns(names: Sequence[str], rows: Sequence[Row]) -> dict[str, list[Any]]:
    return {f"new_{name}": [row[name] for row in rows] for name in names}


def _less(table: SqlTable, names: Sequence[str], than: Sequence[ColumnElement[Any]]) -> ColumnElement[bool]:
    return tuple_(*(table.c[name] for name in names)) < tuple_(*than)


def _less_or_equal(
    table: SqlTable, names: Sequence[str], than: Sequence[ColumnElement[Any]]
) -> ColumnElement[bool]:
    return tuple_(*(table.c[name] for name in names)) <= tuple_(*than)


def _sent_as(target: Column[Any]) -> TypeEngine[Any]:
    """The element type of the array in which a column's values travel to Postgres."""
    if isinstance(target.type, JSON):
        return Text()
    return DateTime(timezone=True) if isinstance(target.type, UtcTimestamp) else target.type


def _kept_as(target: Column[Any]) -> TypeEngine[Any]:
    return Text() if isinstance(target.type, JSON) else target.type


def _count(result: CursorResult[Any]) -> int:
    return result.rowcount
