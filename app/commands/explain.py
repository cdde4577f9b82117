"""`headroom explain` and `headroom fit`: why nothing fits, and how much does."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from rich.console import Group
from rich.text import Text

from app.commands.api import NOTHING, Api, console, print_json, table_of

if TYPE_CHECKING:
    from rich.console import RenderableType

_MISSES: Final = {
    "agent_id": "nearest",
    "gpu_vram_available_gb": "VRAM GB",
    "lacks_gpu_vram_gb": "lacks GB",
    "cpu_cores_available": "cores",
    "lacks_cpu_cores": "lacks cores",
    "fails": "fails",
    "pool_name": "pool",
}
_CRITERIA: Final = {
    "gpu_vram": "VRAM",
    "cpu_cores": "cores",
    "gpu_type": "GPU type",
    "memory": "memory",
    "age": "age",
}


def explain(url: str, parameters: dict[str, Any], *, as_json: bool) -> int:
    """Returns 0 when something fits, else NOTHING."""
    with Api(url) as api:
        answer = api.get("/api/v1/capacity/explain", **parameters)
    if as_json:
        print_json(answer)
    else:
        console().print(explanation(answer))
    return 0 if answer["fitting"] else NOTHING


def fit(url: str, parameters: dict[str, Any], *, as_json: bool) -> int:
    """Returns 0 when at least one task fits, else NOTHING."""
    with Api(url) as api:
        answer = api.get("/api/v1/capacity/fit", **parameters)
    if as_json:
        print_json(answer)
    else:
        lost = f"{answer['fragmentation']:.0%} of what is free is of no use to tasks of this size"
        console().print(f"{answer['tasks']} tasks fit now, on {answer['agents']} agents; {lost}.", highlight=False)
    return 0 if answer["tasks"] else NOTHING


def explanation(answer: dict[str, Any]) -> RenderableType:
    """An explanation as a person reads it."""
    lines = [f"{answer['fitting']} of {answer['agents']} placeable agents fit."]
    for criteria, agents in answer["failing"].items():
        names = " and ".join(_CRITERIA.get(one, one) for one in criteria.split("+"))
        lines.append(f"  {agents} have too little {names}" if "type" not in names else f"  {agents} fail {names}")
    hidden = {state: number for state, number in answer["hidden"].items() if number}
    if hidden:
        states = ", ".join(f"{number} {state}" for state, number in hidden.items())
        lines.append(f"  would fit but may not be found: {states}")
    if not answer["fitting"]:
        lines.append(
            {
                True: "Possible later: some machine is big enough when idle.",
                False: "Never possible: no machine of that type and pool is big enough.",
                None: "Whether it can ever fit is unknown: some machines do not say how big they are.",
            }[answer["possible"]]
        )
    text = Text("\n".join(lines))
    if not answer["nearest"]:
        return text
    misses = [
        {**miss, "fails": ", ".join(_CRITERIA.get(one, one) for one in miss.get("fails", ()))}
        for miss in answer["nearest"]
    ]
    return Group(text, Text(), table_of(misses, _MISSES))
