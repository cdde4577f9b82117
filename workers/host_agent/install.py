"""`headroom agent install`: a systemd service that can read the hardware, reach the server, and nothing else."""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Final, NamedTuple

from app.errors import StartupRefusedError
from workers.host_agent.config import Loaded
from workers.host_agent.probes import gpu_intel

_PACKAGE_ROOT: Final = Path(__file__).resolve().parents[2]
UNIT: Final = "headroom-agent.service"
_HOMES: Final = ("/home", "/root", "/run/user")
# In the order in which a reader asks: who it is, what it may see, what it may do, what it may use.
_UNIT_TEXT: Final = """\
[Unit]
Description=Headroom agent: reports what this machine has free
Wants=network-online.target
After=network-online.target

[Service]
Type=notify
NotifyAccess=main
ExecStart={command}
Restart=always
RestartSec=5
# 78: the settings are wrong; starting again would not mend them.
RestartPreventExitStatus=78
# The agent reports at least every 10 s that it is alive, whatever its drivers do.
WatchdogSec=120
TimeoutStopSec=15
KillMode=mixed
{user}
StateDirectory=headroom-agent
StateDirectoryMode=0755
UMask=0022

# Invisible to the people who work here.
Nice=5
IOSchedulingClass=idle
# For the agent itself; it does not count as a limit of the machine.
MemoryMax=256M
TasksMax=64

# It reads the hardware and talks to the network. Everything else is shut.
NoNewPrivileges=yes
CapabilityBoundingSet={capabilities}
AmbientCapabilities={capabilities}
ProtectSystem=strict
ProtectHome=yes
PrivateTmp=yes
ProtectKernelTunables=yes
ProtectKernelModules=yes
ProtectKernelLogs=yes
ProtectControlGroups=yes
ProtectClock=yes
ProtectHostname=yes
RestrictAddressFamilies=AF_INET AF_INET6 AF_UNIX AF_NETLINK
RestrictNamespaces=yes
RestrictRealtime=yes
RestrictSUIDSGID=yes
LockPersonality=yes
# MemoryDenyWriteExecute is left out: libffi, which calls the GPU libraries, needs such memory on some systems.
RemoveIPC=yes
SystemCallArchitectures=native
SystemCallFilter=@system-service
SystemCallErrorNumber=EPERM
# GPU nodes, and of the rest only null, random and the like.
DevicePolicy=closed
DeviceAllow=char-nvidia* rw
DeviceAllow=char-drm rw
DeviceAllow=char-kfd rw
{devices}
[Install]
WantedBy={target}
"""
_WSL_NODE: Final = Path("/dev/dxg")
# By its path: its number belongs to the class of all small drivers. Only where it is, for systemd warns of paths
# that lead nowhere.
_WSL_DEVICES: Final = f"""\
# WSL: the GPUs of Windows.
DeviceAllow={_WSL_NODE} rw
"""
_SETTINGS_HEAD: Final = (
    "# Settings of the Headroom agent; docs/agent.md lists them all. Flags and environment win.\n"
)


# A user's own manager may not change users, capabilities, devices or mounts.
_SYSTEM_ONLY: Final = (
    "Wants=network",
    "After=network",
    "IOSchedulingClass=",
    "CapabilityBoundingSet=",
    "AmbientCapabilities=",
    "Protect",
    "PrivateTmp=",
    "RemoveIPC=",
    "# GPU nodes",
    "# WSL",
    "Device",
)


class _File(NamedTuple):
    path: Path
    content: str
    secret: bool = False


def install(loaded: Loaded, *, print_only: bool, enable: bool) -> int:
    """Writes the unit, and the settings given by flag or environment; asks systemd to read them.

    As root a service of the machine, else one of this user.

    Raises:
        StartupRefusedError: no systemd, or the service could not run from where Headroom is installed.
    """
    if not sys.platform.startswith("linux"):
        raise StartupRefusedError("install writes a systemd service; docs/agent.md says how to start it elsewhere")
    plan = _plan(loaded, system=os.geteuid() == 0)
    if print_only:
        for file in plan.files:
            sys.stdout.write(f"# {file.path}\n{'(the token)' if file.secret else file.content}\n")
        return 0
    if plan.system:
        _refuse_home(Path(sys.prefix))
    systemctl = ["systemctl"] if plan.system else ["systemctl", "--user"]
    for file in plan.files:
        _write(file)
    _run_systemctl([*systemctl, "daemon-reload"])
    start = [*systemctl, "enable", "--now", UNIT]
    if enable:
        _run_systemctl(start)
    else:
        sys.stdout.write(f"Start it now and at every boot with: {' '.join(start)}\n")
    return 0


def unit_text(
    *,
    system: bool,
    groups: tuple[str, ...] = (),
    perfmon: bool = False,
    wsl: bool = False,
    token: Path | None = None,
) -> str:
    """The service file.

    Args:
        system: of the machine, run by a user that exists only while it runs; else of one user.
        groups: existing groups that may open GPU nodes.
        perfmon: whether a GPU's driver tells its use only to a process with CAP_PERFMON.
        wsl: whether GPUs are reached through the node that Windows offers its Linux.
        token: file with the token, readable by root only; systemd hands it to the service.
    """
    command = [*_command(), "agent"]
    identity = ["DynamicUser=yes"] if system else []
    if "-m" in command:
        identity.append(f"WorkingDirectory={_PACKAGE_ROOT}")
    if groups:
        identity.append(f"SupplementaryGroups={' '.join(groups)}")
    line = " ".join(map(_quoted, command))
    if token is not None:
        identity.append(f"LoadCredential=token:{token}")
        line += " --token-file ${CREDENTIALS_DIRECTORY}/token"
    text = _UNIT_TEXT.format(
        command=line,
        user="\n".join(identity),
        capabilities="CAP_PERFMON" if perfmon else "",
        devices=_WSL_DEVICES if wsl else "",
        target="multi-user.target" if system else "default.target",
    )
    if system:
        return text
    kept = (line for line in text.splitlines() if not line.startswith(_SYSTEM_ONLY))
    return "\n".join(kept) + "\n"


class _Plan(NamedTuple):
    system: bool
    files: list[_File]


def _plan(loaded: Loaded, *, system: bool) -> _Plan:
    config_dir = Path("/etc/headroom") if system else Path.home() / ".config/headroom"
    unit_dir = Path("/etc/systemd/system") if system else Path.home() / ".config/systemd/user"
    given = [name for name, source in loaded.sources.items() if source in ("flag", "environment")]
    values = {name: getattr(loaded.config, name) for name in given if not name.startswith("gateway_")}
    files = []
    token = None
    if secret := values.pop("token", ""):
        token = config_dir / "agent.token"
        files.append(_File(token, f"{secret}\n", secret=True))
        if not system:
            values["token_file"] = token
    if values:
        files.append(_File(config_dir / "agent.yml", _settings_text(values)))
    unit = unit_text(
        system=system,
        groups=tuple(filter(_group_exists, ("render", "video"))) if system else (),
        perfmon=gpu_intel.present(Path("/")),
        wsl=_WSL_NODE.exists(),
        token=token if system else None,
    )
    files.append(_File(unit_dir / UNIT, unit))
    return _Plan(system, files)


def _settings_text(values: Mapping[str, object]) -> str:
    import yaml  # noqa: PLC0415  # like the settings file itself: only where it is used

    plain = {
        name: list(value) if isinstance(value, tuple) else str(value) if isinstance(value, Path) else value
        for name, value in values.items()
    }
    return _SETTINGS_HEAD + str(yaml.safe_dump(plain, sort_keys=False, allow_unicode=True))


def _write(file: _File) -> None:
    """A settings file that is there is somebody's work: it is kept, and the lines to add are shown."""
    if file.path.name == "agent.yml" and file.path.exists():
        if file.path.read_text(encoding="utf-8") != file.content:
            sys.stdout.write(f"Kept {file.path}; make sure that it has:\n{file.content}")
        return
    try:
        file.path.parent.mkdir(parents=True, exist_ok=True)
        mode = 0o600 if file.secret else 0o644
        # The mode is set before the content is there, and on a file that was there before too.
        descriptor = os.open(file.path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, mode)
        with os.fdopen(descriptor, "w", encoding="utf-8") as opened:
            os.fchmod(descriptor, mode)
            opened.write(file.content)
    except OSError as error:
        raise StartupRefusedError(f"{file.path} cannot be written: {error.strerror}") from error
    sys.stdout.write(f"Wrote {file.path}\n")


def _refuse_home(prefix: Path) -> None:
    for home in _HOMES:
        if prefix.is_relative_to(home):
            raise StartupRefusedError(
                f"The service has no access to {home}, where Headroom is installed ({prefix}): "
                "install it under /opt, or install the service as the user who owns it"
            )


def _command() -> list[str]:
    """How systemd starts this installation: by its own program where there is one."""
    program = Path(sys.prefix) / "bin" / "headroom"
    return [str(program)] if program.exists() else [sys.executable, "-m", "app"]


def _quoted(part: str) -> str:
    """For ExecStart=, where % and $ have meanings of their own."""
    return shlex.quote(part).replace("%", "%%").replace("$", "$$")


def _group_exists(name: str) -> bool:
    import grp  # noqa: PLC0415  # there is none on Windows

    try:
        grp.getgrnam(name)
    except KeyError:
        return False
    return True


def _run_systemctl(command: list[str]) -> None:
    program = shutil.which(command[0])
    if program is None:
        sys.stdout.write(f"There is no systemctl here. Where systemd runs: {' '.join(command)}\n")
        return
    done = subprocess.run([program, *command[1:]], check=False)  # noqa: S603  # fixed arguments
    if done.returncode != 0:
        raise StartupRefusedError(f"`{' '.join(command)}` ended with status {done.returncode}")
