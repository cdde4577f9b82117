"""`headroom cordon` and `headroom uncordon`."""

from __future__ import annotations

from typing import Any

from app.commands.api import Api, agent_path, console, print_json


def cordon(
    url: str,
    agent_id: str | None,
    *,
    pool_name: str | None,
    cordon: dict[str, Any] | None,
    as_json: bool,
) -> int:
    """Sets the cordon, or with None lifts it, of one agent or of all that a pool has now."""
    body = {"cordon": cordon}
    done = "uncordoned" if cordon is None else "cordoned"
    with Api(url) as api:
        if agent_id is not None:
            answer = api.patch(agent_path(agent_id), body)
        else:
            answer = api.patch("/api/v1/agents", body, pool_name=pool_name)
    if as_json:
        print_json(answer)
    elif agent_id is not None:
        console().print(f"{agent_id} is {done}.", highlight=False)
    else:
        console().print(
            f"{answer['changed']} agents of pool {pool_name} are {done}.", highlight=False, markup=False
        )
    return 0
