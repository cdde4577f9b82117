"""The commands for people and scripts that ask a running Headroom; added to the command line by `app.cli`."""

from __future__ import annotations

import getpass
from typing import Annotated, Any, Final

import typer


def _url_of(*schemes: str) -> Any:
    def check(url: str) -> str:
        if url.partition("://")[0] not in schemes or not url.partition("://")[2]:
            raise typer.BadParameter(f"it must begin with {' or '.join(f'{name}://' for name in schemes)}")
        return url

    return typer.Option(envvar="HEADROOM_URL", help="The API to ask.", show_default=True, callback=check)


Url = Annotated[str, _url_of("http", "https")]
AnyUrl = Annotated[str, _url_of("http", "https", "redis", "rediss", "unix")]
Vram = Annotated[float, typer.Option("--vram", min=0.0, help="Free GPU memory on one GPU, in GB.")]
Cores = Annotated[int, typer.Option("--cores", min=1, help="Free CPU cores.")]
AgentType = Annotated[str, typer.Option("--type", help="Kind of agents to look among.")]
AnyType = Annotated[str | None, typer.Option("--type", help="Of this kind of agents alone.")]
Pool = Annotated[str | None, typer.Option("--pool", help="Of this pool alone.")]
GpuKind = Annotated[
    str | None,
    typer.Option(
        "--gpu", help="nvidia, amd, intel or none.", autocompletion=lambda: ["nvidia", "amd", "intel", "none"]
    ),
]
AsJson = Annotated[bool, typer.Option("--json", help="JSON for scripts.")]

API: Final = "http://127.0.0.1:8000"

_FIND_EXAMPLES: Final = """
[bold]Examples[/]

[dim]Who has 24 GB on one GPU and 8 cores, the best first:[/]

[cyan]headroom find --vram 24 --cores 8[/]

[dim]The id of the best one, for a script; the exit status is 3 when nobody fits:[/]

[cyan]headroom find --vram 24 --limit 1 --json | jq -r .agent_id[/]

[dim]As it changes, or why there is nobody:[/]

[cyan]headroom find --vram 80 --watch[/]   [cyan]headroom find --vram 80 --explain[/]
"""
_CORDON_EXAMPLES: Final = """
[bold]Examples[/]

[cyan]headroom cordon e16f6b29-9297-43a8-ab79-c3fae1387c21 --reason "new disk" --for 3600[/]

[cyan]headroom cordon --pool lab --reason "power works"[/]   [cyan]headroom uncordon --pool lab[/]
"""


def add_commands(app: typer.Typer) -> None:
    """Each imports what it needs when it runs, so that `--help` is quick."""
    app.command(epilog=_FIND_EXAMPLES)(find)
    for command in (explain, fit, show, pools, events, top):
        app.command()(command)
    app.command(epilog=_CORDON_EXAMPLES)(cordon)
    app.command()(uncordon)


def find(
    *,
    vram: Vram = 0.0,
    cores: Cores = 1,
    agent_type: AgentType = "desktop",
    pool: Pool = None,
    gpu: GpuKind = None,
    memory: Annotated[float, typer.Option(min=0.0, help="Free main memory, in GB.")] = 0.0,
    limit: Annotated[int, typer.Option(min=1, max=10_000, help="List at most so many.")] = 20,
    as_json: AsJson = False,
    watch: Annotated[bool, typer.Option("--watch", help="Keep showing the answer as it changes.")] = False,
    explain: Annotated[bool, typer.Option("--explain", help="Say why others do not fit.")] = False,
    url: AnyUrl = API,
) -> None:
    """Which machines have this much free right now? Ends with 3 when none has."""
    from app.commands import find as command
    from app.models.capacity import CapacityQuery

    query = CapacityQuery(
        min_gpu_vram_gb=vram,
        min_cpu_cores=cores,
        agent_type=agent_type,
        pool_name=pool,
        gpu_type=_gpu_type(gpu),
        min_memory_gb=memory,
        limit=limit,
    )
    raise typer.Exit(command.find(url, query, as_json=as_json, watch=watch, explain=explain))


def explain(
    *,
    vram: Vram = 0.0,
    cores: Cores = 1,
    agent_type: AgentType = "desktop",
    pool: Pool = None,
    gpu: GpuKind = None,
    as_json: AsJson = False,
    url: Url = API,
) -> None:
    """Why does nothing fit, and what is nearest? Ends with 3 when nothing fits."""
    from app.commands import explain as command

    raise typer.Exit(command.explain(url, _search(vram, cores, agent_type, pool, gpu), as_json=as_json))


def fit(
    *,
    vram: Vram = 0.0,
    cores: Cores = 1,
    agent_type: AgentType = "desktop",
    pool: Pool = None,
    as_json: AsJson = False,
    url: Url = API,
) -> None:
    """How many tasks of one size fit now? Ends with 3 when none does."""
    from app.commands import explain as command

    raise typer.Exit(command.fit(url, _search(vram, cores, agent_type, pool, None), as_json=as_json))


def show(
    agent_id: Annotated[str, typer.Argument(help="Its id, a UUID.")], *, as_json: AsJson = False, url: Url = API
) -> None:
    """One machine: what it has free, its GPUs, its cordon, its latest transitions."""
    from app.commands import show as command

    raise typer.Exit(command.show(url, agent_id, as_json=as_json))


def pools(*, agent_type: AnyType = None, as_json: AsJson = False, url: Url = API) -> None:
    """Totals by pool and GPU type."""
    from app.commands import show as command

    raise typer.Exit(command.pools(url, agent_type=agent_type, as_json=as_json))


def events(
    *,
    agent_type: AnyType = None,
    pool: Pool = None,
    kinds: Annotated[str | None, typer.Option(help="capacity, status, cordon, …, with commas.")] = None,
    after: Annotated[str | None, typer.Option(help="Go on after this version.")] = None,
    as_json: AsJson = False,
    url: Url = API,
) -> None:
    """What changes, as it happens."""
    from app.commands import show as command

    raise typer.Exit(
        command.events(url, agent_type=agent_type, pool_name=pool, kinds=kinds, after=after, as_json=as_json)
    )


def top(*, url: Url = API) -> None:
    """The fleet live: v n l p s sort, / filters, c cordons, q ends."""
    from app.commands import top as command

    raise typer.Exit(command.top(url, actor=getpass.getuser()))


def cordon(
    agent_id: Annotated[str | None, typer.Argument(help="One machine; or --pool.")] = None,
    *,
    reason: Annotated[str, typer.Option(help="Why, for others to read.")],
    pool: Pool = None,
    seconds: Annotated[float | None, typer.Option("--for", min=1, help="End by itself after seconds.")] = None,
    actor: Annotated[str | None, typer.Option(help="Who; your user name if left out.")] = None,
    as_json: AsJson = False,
    url: Url = API,
) -> None:
    """Place nothing on a machine, or on a pool's machines, whatever they report."""
    body: dict[str, Any] = {"reason": reason, "actor": actor or getpass.getuser()}
    if seconds is not None:
        body["expires_in_s"] = seconds
    _change_cordon(url, agent_id, pool, body, as_json=as_json)


def uncordon(
    agent_id: Annotated[str | None, typer.Argument(help="One machine; or --pool.")] = None,
    *,
    pool: Pool = None,
    as_json: AsJson = False,
    url: Url = API,
) -> None:
    """Lift a cordon."""
    _change_cordon(url, agent_id, pool, None, as_json=as_json)


def _change_cordon(
    url: str, agent_id: str | None, pool: str | None, body: dict[str, Any] | None, *, as_json: bool
) -> None:
    if (agent_id is None) == (pool is None):
        raise typer.BadParameter("name one machine, or a pool with --pool")
    from app.commands import cordon as command

    raise typer.Exit(command.cordon(url, agent_id, pool_name=pool, cordon=body, as_json=as_json))


def _search(vram: float, cores: int, agent_type: str, pool: str | None, gpu: str | None) -> dict[str, Any]:
    found = {"min_gpu_vram_gb": vram, "min_cpu_cores": cores, "agent_type": agent_type}
    return found | {name: value for name, value in (("pool_name", pool), ("gpu_type", gpu)) if value is not None}


def _gpu_type(name: str | None) -> Any:
    from app.models.capacity import GpuType

    if name is None:
        return None
    try:
        return GpuType(name)
    except ValueError:
        raise typer.BadParameter(f"--gpu is one of {', '.join(GpuType)}") from None
