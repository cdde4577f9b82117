"""Describes the machine and the versions that a run was made with."""

from __future__ import annotations

import os
import platform
from importlib.metadata import version
from pathlib import Path

import psutil
import redis

from tests.bench.cores import cores_to_place
from tests.bench.lookups import Grounds
from tests.bench.results import Machine


def describe(grounds: Grounds) -> Machine:
    with redis.Redis.from_url(grounds.valkey.url, decode_responses=True) as client:
        info = client.info("server")
    name, number = (
        ("Valkey", info["valkey_version"]) if "valkey_version" in info else ("Redis", info["redis_version"])
    )
    packages = ("redis", "hiredis", "asyncpg", "sqlalchemy", "fastapi", "uvicorn", "uvloop", "msgspec")
    return Machine(
        processor=_processor(),
        cores=os.cpu_count() or 1,
        memory_gb=round(psutil.virtual_memory().total / 2**30, 1),
        apart=cores_to_place() is not None,
        system=f"{platform.system()} {platform.release().split('-')[0]}",
        versions={
            name: number,
            "PostgreSQL": grounds.postgres.version(),
            "Python": platform.python_version(),
            **{package: version(package) for package in packages},
        },
    )


def _processor() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        for line in cpuinfo.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()
