"""The durable record, and the only package that knows SQL. `open_record` and `migrate` are its way in."""

from __future__ import annotations

from app.record.migrate import is_migrated, migrate
from app.record.store import Record, open_record

__all__ = ["Record", "is_migrated", "migrate", "open_record"]
