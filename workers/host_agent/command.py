"""`headroom agent`: its flags and subcommands. Imported by `app.cli` before, and instead of, everything else."""

from __future__ import annotations

import argparse
import logging
import os
import random
import sys
import typing
from typing import Any, Final

import msgspec

from app.errors import StartupRefusedError
from workers.host_agent.config import ENV_PREFIX, Config, Loaded, load_config

_EX_CONFIG: Final = 78
_log = logging.getLogger("headroom.agent")

_INTRODUCTION: Final = """\
Reports what this machine has free (CPU cores, memory, GPU memory) to a Headroom server, until it is ended.

  headroom agent --server http://10.0.0.5:8000    report to that server every 30 s, or as often as it asks
  headroom agent --check                          show settings, what each probe sees, one heartbeat; send nothing
  headroom agent --busy-when 'pgrep -x blender'   report busy while that command succeeds
  headroom agent install --server URL             run it as a systemd service, started with the machine
  headroom agent gateway --server URL             collect the heartbeats of a site and send them on in batches
"""

_SETTINGS: Final = f"""\
Every setting can also stand in /etc/headroom/agent.yml, ~/.config/headroom/agent.yml (`pool_name: lab`) or in the
environment ({ENV_PREFIX}POOL_NAME=lab); flags win over the environment, that over the files.
"""


def run(argv: list[str]) -> int:
    """Runs `headroom agent ARGV` and returns its exit status."""
    parser = _parser()
    arguments = vars(parser.parse_args(argv))
    subcommand, check = arguments.pop("subcommand"), arguments.pop("check")
    printed, enable = arguments.pop("print"), arguments.pop("enable")
    try:
        loaded = load_config(arguments)
        _configure_logging(loaded.config.log_level)
        if check:
            from workers.host_agent.check import check as show  # noqa: PLC0415  # not in the running agent's memory

            return show(loaded)
        if subcommand == "install":
            from workers.host_agent.install import install  # noqa: PLC0415  # not in the running agent's memory

            return install(loaded, print_only=printed, enable=enable)
        if subcommand == "gateway":
            from workers.host_agent.gateway import serve  # noqa: PLC0415  # brings an HTTP server along

            return serve(loaded.config)
        return _run_agent(loaded)
    except StartupRefusedError as error:
        sys.stderr.write(f"headroom agent: {error.detail}\n")
        return _EX_CONFIG


def _run_agent(loaded: Loaded) -> int:
    from workers.host_agent.agent import Agent  # noqa: PLC0415  # --help stays quick
    from workers.host_agent.clock import SignalPause, SystemClock  # noqa: PLC0415  # likewise
    from workers.host_agent.delivery import open_delivery  # noqa: PLC0415  # likewise
    from workers.host_agent.identity import keep_agent_id, only_agent  # noqa: PLC0415  # likewise
    from workers.host_agent.machine import this_machine  # noqa: PLC0415  # likewise
    from workers.host_agent.notify import ServiceManager  # noqa: PLC0415  # likewise
    from workers.host_agent.schedule import Schedule  # noqa: PLC0415  # likewise
    from workers.host_agent.sensors import open_sensors  # noqa: PLC0415  # likewise

    config = loaded.config
    # A dead name server would hold a delivery for up to 30 s: no deadline of ours reaches into the C library.
    os.environ.setdefault("RES_OPTIONS", "timeout:2 attempts:2")
    clock, rng, manager = SystemClock(), random.Random(), ServiceManager()  # noqa: S311  # jitter, not secrets
    with (
        SignalPause() as pause,
        only_agent(config.state_dir),
        open_sensors(config, clock, stopping=lambda: pause.stopping) as reporter,
    ):
        agent_id = config.agent_id.lower() or keep_agent_id(config.state_dir, this_machine(config.host_root))
        delivery = open_delivery(config, pause, clock, manager.alive)
        _log.info("Agent %s reports to %s", agent_id, ", ".join(config.server))
        Agent(
            agent_id,
            source=reporter,
            sender=delivery,
            schedule=Schedule(config.interval_s, rng),
            clock=clock,
            pause=pause,
            rng=rng,
            alive=manager.alive,
        ).run()
        manager.stopping()
        delivery.close()
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="headroom agent",
        description=_INTRODUCTION,
        epilog="docs/agent.md has the whole story, platform by platform.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("subcommand", nargs="?", choices=["run", "install", "gateway"], default="run")
    parser.add_argument("--check", action="store_true", help="Show what would be sent, and send nothing.")
    installing = parser.add_argument_group("only with install")
    installing.add_argument("--print", action="store_true", help="Print the files instead of writing them.")
    installing.add_argument("--enable", action="store_true", help="Also start the service now and at every boot.")
    settings = parser.add_argument_group("settings", _SETTINGS)
    for name, description in descriptions().items():
        flag = "--" + name.replace("_", "-")
        if name == "gpu_shared_memory":
            settings.add_argument(flag, dest=name, action=argparse.BooleanOptionalAction, help=description)
        elif name == "server":
            settings.add_argument(
                flag, dest=name, action="append", metavar="URL", help=description + " May be repeated."
            )
        else:
            settings.add_argument(flag, dest=name, metavar=name.rsplit("_", 1)[-1].upper(), help=description)
    return parser


def descriptions() -> dict[str, str]:
    """One sentence for each setting, as the configuration has it."""
    hints = typing.get_type_hints(Config, include_extras=True)
    return {name: _description(hints[name]) for name in Config.__struct_fields__}


def _description(hint: Any) -> str:
    return next(str(meta.description) for meta in hint.__metadata__ if isinstance(meta, msgspec.Meta))


def _configure_logging(level: str) -> None:
    # The journal has its own clock.
    stamp = "" if "JOURNAL_STREAM" in os.environ else "%(asctime)s "
    logging.basicConfig(level=level, stream=sys.stderr, format=f"{stamp}%(levelname)s %(message)s")
