"""The record as entry points wire it: one pool, and the implementations of the ports on top of it."""

from __future__ import annotations

from dataclasses import dataclass

from app.record.agent import RecordedAgents
from app.record.bulk import PostgresBulk, SqliteBulk
from app.record.capacity import RecordedCapacity
from app.record.connect import Database, open_database
from app.record.cordon import RecordedCordons
from app.record.migrate import require_migrated
from app.record.plan import RecordedPlans
from app.record.states import RecordedStates
from app.record.totals import RecordedTotals
from app.record.writer import Writer
from app.settings import Settings


@dataclass(frozen=True, slots=True)
class Record:
    """Attributes:

    capacity: a CapacityRecord.
    agents: an AgentRecord.
    cordons: a CordonRecord.
    plans: a PlanRecord.
    reader: a RecordReader.
    totals: a TotalsRecord.
    writer: a RecordWriter.
    """

    database: Database
    capacity: RecordedCapacity
    agents: RecordedAgents
    cordons: RecordedCordons
    plans: RecordedPlans
    reader: RecordedStates
    totals: RecordedTotals
    writer: Writer

    async def require_migrated(self) -> None:
        """Raises StartupRefusedError on a schema of another revision, RecordUnavailableError when away."""
        await require_migrated(self.database)

    async def close(self) -> None:
        await self.database.close()


def open_record(settings: Settings) -> Record:
    """Opens no connection yet; close it in the event loop that used it."""
    database = open_database(settings)
    bulk = PostgresBulk() if database.is_postgres else SqliteBulk()
    return Record(
        database=database,
        capacity=RecordedCapacity(database, settings),
        agents=RecordedAgents(database, settings),
        cordons=RecordedCordons(database, bulk),
        plans=RecordedPlans(database, bulk),
        reader=RecordedStates(database, bulk),
        totals=RecordedTotals(database, bulk, settings),
        writer=Writer(database, bulk, settings),
    )
