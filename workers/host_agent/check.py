"""`headroom agent --check`: the settings, what each probe sees, one heartbeat. Sends and writes nothing."""

from __future__ import annotations

import sys
import time
from typing import Any, Final

import msgspec

from workers.host_agent.clock import SystemClock
from workers.host_agent.command import descriptions
from workers.host_agent.config import SECRET, Config, Loaded
from workers.host_agent.heartbeat import Look, Report, pack
from workers.host_agent.identity import read_agent_id
from workers.host_agent.machine import this_machine
from workers.host_agent.sensors import open_sensors

# The load figures come ready-made; a percentage needs some time between two readings.
_MEASURING_S: Final = 0.3


def check(loaded: Loaded) -> int:
    config = loaded.config
    _write("Settings (docs/agent.md explains them)")
    for name in descriptions():
        _write(f"  {name} = {_shown(name, config)}  [{loaded.sources.get(name, 'default')}]")
    clock = SystemClock()
    with open_sensors(config, clock, stopping=lambda: False) as reporter:
        machine = this_machine(config.host_root)
        agent_id = config.agent_id.lower() or read_agent_id(config.state_dir, machine)
        _write("\nIdentity")
        _write(f"  agent_id: {agent_id or 'none yet; made and kept at the first start'}")
        _write(f"  state: {config.state_dir}")
        time.sleep(_MEASURING_S)
        look = reporter.look()
    report = look.report
    _write("\nProbes")
    _write(f"  cpu: {_cpu_line(look)}")
    _write(f"  memory: {_memory_line(look)}")
    for line in _gpu_lines(report):
        _write(f"  gpu: {line}")
    for trouble in look.troubles:
        _write(f"  cannot be read: {trouble}")
    _write(f"  status: {report.status.value}")
    _write(f"  claims: {len(report.running_claims)} running")
    _write(f"\nHeartbeat ({len(pack(report))} bytes as it would be sent; nothing was)")
    _write(msgspec.json.format(msgspec.json.encode(report)).decode())
    return 0


def _cpu_line(look: Look) -> str:
    if look.cpu is None:
        return "no figures"
    metrics = look.report.resource_metrics
    percent = None if metrics is None else metrics.cpu_percent
    return (
        f"{look.cpu.cores_physical} physical cores, {'?' if percent is None else percent} % busy, "
        f"load {look.cpu.load_1min} (1 min) and {look.cpu.load_5min} (5 min), "
        f"{look.cpu.cores_available} cores available"
        + (f" ({', '.join(look.cpu.limits)})" if look.cpu.limits else "")
    )


def _memory_line(look: Look) -> str:
    if look.memory is None:
        return "no figures"
    return f"{look.memory.available_gb} of {look.memory.total_gb} GiB available" + (
        " (limit of the control group)" if look.memory.limited else ""
    )


def _gpu_lines(report: Report) -> list[str]:
    lines = [
        f"{gpu.index}: {gpu.name} ({gpu.uuid}): {gpu.vram_available_gb:.3f} of {gpu.vram_total_gb:.3f} GiB free"
        for gpu in report.gpus
    ]
    if report.gpu_reason:
        lines.append(f"figures are missing: {report.gpu_reason}")
    return lines or ["none found"]


def _shown(name: str, config: Config) -> str:
    value: Any = getattr(config, name)
    if name in SECRET and value:
        return "(set)"
    return ", ".join(value) if isinstance(value, tuple) else str(value)


def _write(line: str) -> None:
    sys.stdout.write(line + "\n")
