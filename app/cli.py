"""The commands of `headroom`. What one needs is imported when it runs, so that `--help` is quick."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final, Literal

import typer

from app import __version__
from app.commands.people import add_commands
from app.errors import StartupRefusedError

if TYPE_CHECKING:
    from pydantic import ValidationError

    from app.settings import Settings

_EXAMPLES: Final = """
[bold]Examples[/]

[dim]Everything on this machine, with nothing else installed, and 200 machines that do not exist:[/]

[cyan]headroom up --simulate 200[/]

[dim]One part alone, in production, with the servers that HEADROOM_REDIS_URL and HEADROOM_DATABASE_URL name:[/]

[cyan]headroom worker ingest[/]

[dim]What this machine would report, without reporting it:[/]

[cyan]headroom agent --check[/]
"""

_UP_EXAMPLES: Final = """
[bold]Examples[/]

[dim]Beside another one, with its data in a directory of its own:[/]

[cyan]headroom up --port 8080 --data-dir ./data[/]

[dim]With servers of your own and 1,000 simulated machines:[/]

[cyan]headroom up --redis-url redis://localhost --database-url postgresql://localhost/headroom --simulate 1000[/]

[dim]Every setting is a flag of the same name: HEADROOM_OFFLINE_AFTER_S is[/] [cyan]--offline-after-s[/]
"""

_AUDIT_EXAMPLES: Final = """
[bold]Examples[/]

[dim]Beside a running `headroom up`:[/]

[cyan]headroom audit[/]

[dim]In a script, with servers of your own, putting right what differs:[/]

[cyan]headroom audit --repair --json --redis-url redis://localhost --database-url postgresql://localhost/headroom[/]
"""

# A setting without a flag of its own below is taken from the arguments that are left over.
_ANY_SETTING: Final = {"allow_extra_args": True, "ignore_unknown_options": True}

app = typer.Typer(
    help="Which machines have this much GPU memory and this many CPU cores free, right now?",
    epilog=_EXAMPLES,
    no_args_is_help=True,
    add_completion=True,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

add_commands(app)

DataDir = Annotated[
    Path | None, typer.Option(help="Where the embedded server and the SQLite record keep their files.")
]
RedisUrl = Annotated[str | None, typer.Option(help="Redis or Valkey to use instead of the embedded one.")]
DatabaseUrl = Annotated[str | None, typer.Option(help="The record, instead of SQLite in the data directory.")]
Host = Annotated[str | None, typer.Option(help="Address the API listens on.  [dim]default: 127.0.0.1[/]")]
Port = Annotated[int | None, typer.Option(help="Port the API listens on; 0 picks one.  [dim]default: 8000[/]")]
LogLevel = Annotated[str | None, typer.Option(help="DEBUG, INFO, WARNING or ERROR.  [dim]default: INFO[/]")]


def _tell_version(value: bool) -> None:  # noqa: FBT001  typer hands the flag's value over like this
    if value:
        typer.echo(__version__)
        raise typer.Exit


@app.callback()
def headroom(
    *,
    version: Annotated[
        bool, typer.Option("--version", help="Show the version and exit.", callback=_tell_version, is_eager=True)
    ] = False,
) -> None:
    del version


@app.command(context_settings=_ANY_SETTING, epilog=_UP_EXAMPLES)
def up(
    context: typer.Context,
    *,
    host: Host = None,
    port: Port = None,
    data_dir: DataDir = None,
    redis_url: RedisUrl = None,
    database_url: DatabaseUrl = None,
    log_level: LogLevel = None,
    simulate: Annotated[int, typer.Option(min=0, help="Add this many simulated machines.")] = 0,
    agent: Annotated[bool, typer.Option(help="Report this machine itself.")] = True,
) -> None:
    """Run everything on this machine: server, API, workers and this machine's own agent."""
    settings = _settings(
        context,
        host=host,
        port=port,
        data_dir=data_dir,
        redis_url=redis_url,
        database_url=database_url,
        log_level=log_level,
    )
    from workers.up import up as run_up

    run_up(settings, simulate=simulate, agent=agent)


@app.command(context_settings=_ANY_SETTING)
def api(
    context: typer.Context,
    *,
    host: Host = None,
    port: Port = None,
    redis_url: RedisUrl = None,
    database_url: DatabaseUrl = None,
    log_level: LogLevel = None,
) -> None:
    """Serve the HTTP API alone."""
    settings = _settings(
        context, host=host, port=port, redis_url=redis_url, database_url=database_url, log_level=log_level
    )
    _require_redis(settings)
    from app.main import create_app, refuse_unfit
    from app.serve import serve

    asyncio.run(refuse_unfit(settings))
    serve(create_app(settings), settings)


@app.command(context_settings=_ANY_SETTING)
def worker(
    context: typer.Context,
    name: Annotated[Literal["ingest", "recorder", "reaper"], typer.Argument(help="Which worker.")],
    *,
    redis_url: RedisUrl = None,
    database_url: DatabaseUrl = None,
    log_level: LogLevel = None,
) -> None:
    """Run one worker: stream to index (ingest), stream to record (recorder), silence to offline (reaper).

    Any number of each may run side by side.
    """
    from workers.process import run_worker

    settings = _settings(context, redis_url=redis_url, database_url=database_url, log_level=log_level)
    _require_redis(settings)
    asyncio.run(run_worker(name, settings))


@app.command(context_settings={**_ANY_SETTING, "help_option_names": []}, add_help_option=False)
def agent(context: typer.Context) -> None:
    """Report this machine to a Headroom; [cyan]headroom agent --help[/] says more."""
    # `app.__main__` comes first as a rule; this is for the list above and for callers of `app` itself.
    from workers.host_agent.command import run

    raise typer.Exit(run(context.args))


def _profiles() -> list[str]:
    from workers.simulate.hardware import PROFILES

    return sorted(PROFILES)


@app.command()
def simulate(
    count: Annotated[int, typer.Argument(min=1, help="How many machines.")],
    *,
    url: Annotated[str, typer.Option(help="The API to report to.")] = "http://127.0.0.1:8000",
    profile: Annotated[
        str | None, typer.Option(help="What the fleet is made of.", autocompletion=_profiles)
    ] = None,
    seed: Annotated[int | None, typer.Option(help="Same seed, same machines.")] = None,
    rounds: Annotated[int | None, typer.Option(min=1, help="End after so many heartbeats of each.")] = None,
    allow_remote: Annotated[bool, typer.Option(help="Permit an API that is not on this machine.")] = False,
) -> None:
    """Let a fleet that does not exist report, with plausible hardware and behaviour."""
    from workers.simulate import command

    chosen: dict[str, Any] = {"profile": profile, "seed": seed}
    asyncio.run(
        command.simulate(
            count,
            url=url,
            rounds=rounds,
            allow_remote=allow_remote,
            **{name: value for name, value in chosen.items() if value is not None},
        )
    )


@app.command(name="migrate", context_settings=_ANY_SETTING)
def migrate_record(context: typer.Context, *, database_url: DatabaseUrl = None, data_dir: DataDir = None) -> None:
    """Bring the record's schema to this version; does nothing when it is."""
    settings = _settings(context, database_url=database_url, data_dir=data_dir)
    from app.record.migrate import migrate

    asyncio.run(migrate(settings.record_url))
    typer.echo("The record is at this version.")


@app.command(context_settings=_ANY_SETTING, epilog=_AUDIT_EXAMPLES)
def audit(
    context: typer.Context,
    *,
    repair: Annotated[bool, typer.Option("--repair", help="Put right what differs.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object a line.")] = False,
    redis_url: RedisUrl = None,
    database_url: DatabaseUrl = None,
    data_dir: DataDir = None,
) -> None:
    """Compare index, hashes and record, slice by slice, on a live system.

    Ends with 0 when they agree or were brought to, 1 when something differs or a server is away.
    """
    settings = _settings(context, redis_url=redis_url, database_url=database_url, data_dir=data_dir)
    from app.commands.audit import audit as run_audit

    raise typer.Exit(asyncio.run(run_audit(_with_running_redis(settings), repair=repair, as_json=as_json)))


def _with_running_redis(settings: Settings) -> Settings:
    """Settings that name a server: the embedded one of a running `headroom up` where none is set."""
    if settings.redis_url is not None:
        return settings
    from app.index.embedded import EmbeddedValkey

    url = EmbeddedValkey(settings).url_of_running()
    if url is None:
        raise StartupRefusedError(
            f"HEADROOM_REDIS_URL is not set, and no `headroom up` runs with the data directory {settings.data_dir}"
        )
    return settings.model_copy(update={"redis_url": url})


def _settings(context: typer.Context, **flags: Any) -> Settings:
    """The environment's settings, overridden by the flags that were given; sets logging up accordingly."""
    from pydantic import ValidationError

    from app.settings import Settings
    from app.telemetry import configure_logging

    given: dict[str, Any] = {name: value for name, value in flags.items() if value is not None}
    given |= _left_over(context)
    unknown = given.keys() - Settings.model_fields.keys()
    if unknown:
        raise typer.BadParameter(f"no such option: --{min(unknown).replace('_', '-')}")
    try:
        settings = Settings(**given)
    except ValidationError as invalid:
        raise StartupRefusedError("\n".join(_explanations(invalid))) from None
    configure_logging(settings.log_level, settings.log_format)
    return settings


def _left_over(context: typer.Context) -> dict[str, str]:
    """`--some-setting value` and `--some-setting=value` as the settings of these names."""
    given: dict[str, str] = {}
    arguments = iter(context.args)
    for argument in arguments:
        if not argument.startswith("--"):
            raise typer.BadParameter(f"unexpected argument: {argument}")
        name, equals, value = argument[2:].partition("=")
        if not equals:
            value = next(arguments, "")
        given[name.replace("-", "_")] = value
    return given


def _explanations(invalid: ValidationError) -> list[str]:
    lines = []
    for error in invalid.errors(include_url=False, include_context=False, include_input=False):
        where = "_".join(str(part) for part in error["loc"]).upper()
        message = error["msg"].removeprefix("Value error, ")
        lines.append(f"HEADROOM_{where}: {message}" if where else message)
    return lines


def _require_redis(settings: Settings) -> None:
    if settings.redis_url is None:
        raise StartupRefusedError(
            "HEADROOM_REDIS_URL is not set: name a Redis or Valkey, or run `headroom up`, which brings its own"
        )
