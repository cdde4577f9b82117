"""The agent's settings: files, environment and flags, in rising order. docs/agent.md lists them."""

from __future__ import annotations

import os
import socket
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Final, Literal, NamedTuple
from urllib.parse import urlsplit

import msgspec
from msgspec import Meta

from app.errors import StartupRefusedError
from app.models.identity import AGENT_TYPE_PATTERN, DEFAULT_AGENT_TYPE, DEFAULT_POOL_NAME
from workers.host_agent.probes.gpu import VENDORS

ENV_PREFIX: Final = "HEADROOM_AGENT_"
_LISTS: Final = ("server", "gpu")
# What a header can carry; a line break would be an error at every delivery.
_HEADER_TEXT: Final = r"^[\x20-\x7e]*\Z"
_SYSTEM_STATE_DIR: Final = Path("/var/lib/headroom-agent")


def default_state_dir() -> Path:
    """The StateDirectory of systemd, else /var/lib for root, else the user's own place for state."""
    given = os.environ.get("STATE_DIRECTORY")
    if given:
        return Path(given.split(":", maxsplit=1)[0])
    if sys.platform == "win32":
        return Path(os.environ.get("PROGRAMDATA", r"C:\ProgramData")) / "headroom-agent"
    if os.geteuid() == 0:
        return _SYSTEM_STATE_DIR
    if given := os.environ.get("XDG_STATE_HOME"):
        return Path(given) / "headroom-agent"
    home = _home()
    return _SYSTEM_STATE_DIR if home is None else home / ".local/state/headroom-agent"


def config_files() -> tuple[Path, ...]:
    """Where settings are looked for, the weaker first."""
    home = _home()
    system = Path("/etc/headroom/agent.yml")
    return (system,) if home is None else (system, home / ".config/headroom/agent.yml")


def _home() -> Path | None:
    """None for a user without one, as a container may run its processes."""
    try:
        return Path.home()
    except RuntimeError:
        return None


class Config(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Everything that can be set. The description of each field is its line in docs/agent.md and in --help."""

    server: Annotated[
        tuple[Annotated[str, Meta(pattern=r"^https?://[^/]")], ...],
        Meta(min_length=1, description="Addresses of the API or of a gateway; the next is tried when one fails."),
    ] = ("http://127.0.0.1:8000",)
    token: Annotated[str, Meta(pattern=_HEADER_TEXT, description="Sent as `Authorization: Bearer …`.")] = ""
    token_file: Annotated[
        str, Meta(description="File that holds the token; read anew for each connection, so it can be rotated.")
    ] = ""
    ca_file: Annotated[str, Meta(description="Certificates (PEM) to trust for https instead of the system's.")] = (
        ""
    )
    timeout_s: Annotated[
        float, Meta(gt=0, le=60, description="Longest time for one delivery to one server, answer included.")
    ] = 5.0
    interval_s: Annotated[
        float, Meta(ge=0.05, le=3600, description="Distance of heartbeats until a server has named its wish.")
    ] = 30.0

    state_dir: Annotated[
        Path,
        Meta(
            description="Where the identity is kept. Unset: systemd's state directory, `/var/lib/headroom-agent` "
            "for root, else `~/.local/state/headroom-agent`."
        ),
    ] = msgspec.field(default_factory=default_state_dir)
    agent_id: Annotated[
        str,
        Meta(
            pattern=r"^$|^[0-9a-fA-F]{8}(-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}$",
            description="A fixed UUID instead of the kept one, for machines without a lasting disk.",
        ),
    ] = ""
    agent_type: Annotated[
        str,
        Meta(
            pattern=f"^{AGENT_TYPE_PATTERN}$", description="What kind of machine this is (`desktop`, `infra`, …)."
        ),
    ] = DEFAULT_AGENT_TYPE
    pool_name: Annotated[
        str, Meta(min_length=1, max_length=128, description="The pool that the machine belongs to.")
    ] = DEFAULT_POOL_NAME
    hostname: Annotated[str, Meta(max_length=255, description="Name shown to people. Unset: the host's own.")] = (
        msgspec.field(default_factory=socket.gethostname)
    )

    gpu: Annotated[
        tuple[Literal["nvidia", "amd", "intel"], ...],
        Meta(description="GPU vendors to look for; empty (`--gpu ''`) looks for none."),
    ] = VENDORS  # type: ignore[assignment]  # mypy does not see the literals through the tuple() of a mapping
    gpu_deadline_s: Annotated[
        float,
        Meta(gt=0, le=30, description="How long a GPU driver may take for one answer before it is given up."),
    ] = 3.0
    gpu_start_s: Annotated[
        float, Meta(gt=0, le=600, description="How long a GPU driver may take for its first answer.")
    ] = 60.0
    gpu_shared_memory: Annotated[
        bool, Meta(description="Whether main memory that a GPU shares with the CPU counts as its memory.")
    ] = True
    host_root: Annotated[
        Path, Meta(description="Where the host's `/` is, for an agent in a container that has it mounted.")
    ] = Path("/")

    busy_when: Annotated[
        str, Meta(description="Shell command that is run before each heartbeat: status 0 means busy, 1 not busy.")
    ] = ""
    busy_file: Annotated[
        str, Meta(description="The machine is busy while this file exists. Unset: `busy` in the state directory.")
    ] = ""
    claims_dir: Annotated[
        str, Meta(description="Folder with a file per running claim. Unset: `claims.d` in the state directory.")
    ] = ""
    log_level: Annotated[
        Literal["DEBUG", "INFO", "WARNING", "ERROR"], Meta(description="Least severe line that is logged.")
    ] = "INFO"

    gateway_listen: Annotated[
        str,
        Meta(pattern=r"^.+:[0-9]{1,5}$", description="Address and port that `headroom agent gateway` listens on."),
    ] = "127.0.0.1:8010"
    gateway_token: Annotated[
        str,
        Meta(
            pattern=_HEADER_TEXT, description="Token that agents must send to this gateway; empty asks for none."
        ),
    ] = ""
    gateway_batch_s: Annotated[
        float, Meta(gt=0, le=10, description="How long a gateway collects heartbeats before it sends them on.")
    ] = 1.0

    @property
    def busy_path(self) -> Path:
        return Path(self.busy_file) if self.busy_file else self.state_dir / "busy"

    @property
    def claims_path(self) -> Path:
        return Path(self.claims_dir) if self.claims_dir else self.state_dir / "claims.d"


SECRET: Final = frozenset({"token", "gateway_token"})


class Loaded(NamedTuple):
    """`sources` names, for each setting that is not at its default, what set it last."""

    config: Config
    sources: dict[str, str]


def load_config(
    flags: Mapping[str, Any],
    *,
    environ: Mapping[str, str] = os.environ,
    files: Sequence[Path] | None = None,
) -> Loaded:
    """Merges files, environment and flags.

    Args:
        flags: by setting name; None means not given.
        environ: where `HEADROOM_AGENT_*` is looked up; an empty value is a value.
        files: YAML files, the weaker first; missing ones are fine.

    Raises:
        StartupRefusedError: an unknown setting, a value out of range, an unreadable file; it names where.
    """
    merged: dict[str, Any] = {}
    sources: dict[str, str] = {}
    layers = [(str(path), _read_file(path)) for path in (config_files() if files is None else files)]
    layers.append(("environment", _read_environment(environ)))
    layers.append(("flag", {name: value for name, value in flags.items() if value is not None}))
    for source, layer in layers:
        for name, value in layer.items():
            where = f"{ENV_PREFIX}{name.upper()}" if source == "environment" else f"{source}: {name}"
            if name not in Config.__struct_fields__:
                raise StartupRefusedError(f"{where} is no setting of the agent; docs/agent.md lists them")
            _check(name, _listed(name, value), where)
            merged[name] = _listed(name, value)
            sources[name] = source
    config = msgspec.convert(merged, Config, strict=False, dec_hook=_path)
    if config.token and config.token_file:
        raise StartupRefusedError("Give the token or the file that holds it, not both")
    return Loaded(config, sources)


def _check(name: str, value: Any, where: str) -> None:
    try:
        msgspec.convert({name: value}, Config, strict=False, dec_hook=_path)
    except msgspec.ValidationError as error:
        # The message names the rule and the path, never the value: tokens pass here too.
        raise StartupRefusedError(f"{where}: {error}") from error
    for server in value if name == "server" else ():
        try:
            complete = bool(urlsplit(server).hostname) and urlsplit(server).port != 0
        except ValueError as error:
            raise StartupRefusedError(f"{where}: {server}: {error}") from error
        if not complete:
            raise StartupRefusedError(f"{where}: {server} names no host, or port 0")


def _path(expected: type, value: Any) -> Any:
    if expected is Path and isinstance(value, str) and value:
        return Path(value)
    raise ValueError("Expected a path")


def _listed(name: str, value: Any) -> Any:
    """Lists may be written as one text with commas, as the environment needs it."""
    if name not in _LISTS:
        return value
    texts = value.split(",") if isinstance(value, str) else value
    if isinstance(texts, list | tuple) and all(isinstance(text, str) for text in texts):
        return [part.strip() for text in texts for part in text.split(",") if part.strip()]
    return value


def _read_environment(environ: Mapping[str, str]) -> dict[str, str]:
    return {
        name.removeprefix(ENV_PREFIX).lower(): value
        for name, value in environ.items()
        if name.startswith(ENV_PREFIX)
    }


def _read_file(path: Path) -> dict[str, Any]:
    try:
        content = path.read_text(encoding="utf-8")
    except (FileNotFoundError, NotADirectoryError):
        return {}
    except (OSError, UnicodeDecodeError) as error:
        raise StartupRefusedError(f"{path} cannot be read: {error}") from error
    import yaml  # noqa: PLC0415  # only a machine with a settings file pays for the parser

    try:
        values = yaml.safe_load(content)
    except yaml.YAMLError as error:
        raise StartupRefusedError(f"{path} is no YAML: {error}") from error
    if values is None:
        return {}
    if not isinstance(values, dict) or not all(isinstance(name, str) for name in values):
        raise StartupRefusedError(f"{path} must hold `setting: value` lines")
    return values
