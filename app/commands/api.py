"""How the commands for people ask the API, and how they print."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Final, Self
from urllib.parse import quote, urlsplit

import httpx
import msgspec
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from app.errors import HeadroomError, UnavailableError

NOTHING: Final = 3
"""Exit status of a question whose answer is "none"."""

_WIDE: Final = 200

Rows = list[dict[str, Any]]


@contextmanager
def naming(url: str) -> Iterator[None]:
    """Adds to "nobody answers" who was asked."""
    try:
        yield
    except UnavailableError as error:
        detail = f"{error.detail} (asked: {shown(url)}; --url names another)"
        raise UnavailableError(detail, retry_after_s=error.retry_after_s) from error


def shown(url: str) -> str:
    """The URL without a name and password that stand in it."""
    parts = urlsplit(url)
    return parts._replace(netloc=parts.netloc.rpartition("@")[2]).geturl()


class RefusedError(HeadroomError):
    """The API said no; the detail is what it said."""


class Api:
    """A connection to the API. Raises UnavailableError when nobody answers, RefusedError when it says no."""

    def __init__(self, url: str, *, timeout_s: float = 5.0) -> None:
        self.url = url
        self._client = httpx.Client(base_url=url, timeout=timeout_s, headers={"accept": "application/json"})

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_exc: object) -> None:
        self._client.close()

    def get(self, path: str, **params: Any) -> Any:
        return self._send("GET", path, params=_given(params))

    def pages(self, path: str, **params: Any) -> Iterator[Any]:
        """The items of all pages, followed by their `Link` headers."""
        answer = self._answer("GET", path, params=_given(params))
        while True:
            yield from msgspec.json.decode(answer.content)
            following = answer.links.get("next")
            if following is None:
                return
            answer = self._answer("GET", following["url"])

    def patch(self, path: str, body: Any, **params: Any) -> Any:
        return self._send("PATCH", path, params=_given(params), json=body)

    def events(self, **params: Any) -> Iterator[dict[str, Any]]:
        """Server-sent events as they come: the data of each, with its `id` as `version`."""
        try:
            with self._client.stream(
                "GET", "/api/v1/events", params=_given(params), timeout=httpx.Timeout(5.0, read=60.0)
            ) as answer:
                if answer.is_error:
                    answer.read()
                    raise _refusal(answer)
                version = ""
                for line in answer.iter_lines():
                    name, _, value = line.partition(":")
                    if name == "id":
                        version = value.strip()
                    elif name == "data":
                        yield {"version": version, **msgspec.json.decode(value)}
        except httpx.HTTPError as error:
            raise self._unreachable() from error

    def _send(self, method: str, path: str, **options: Any) -> Any:
        return msgspec.json.decode(self._answer(method, path, **options).content)

    def _answer(self, method: str, path: str, **options: Any) -> httpx.Response:
        try:
            answer = self._client.request(method, path, **options)
        except httpx.HTTPError as error:
            raise self._unreachable() from error
        if answer.is_error:
            raise _refusal(answer)
        return answer

    def _unreachable(self) -> UnavailableError:
        return UnavailableError(
            f"Nobody answers at {shown(self.url)}: is `headroom up` running? (--url names another API)"
        )


def agent_path(agent_id: str, *rest: str) -> str:
    return "/".join(("/api/v1/agents", quote(agent_id, safe=""), *rest))


def console() -> Console:
    """Colours and the terminal's width at a terminal; plain wide lines anywhere else."""
    return Console() if sys.stdout.isatty() else Console(width=_WIDE, no_color=True, highlight=False)


def print_json(value: Any) -> None:
    sys.stdout.write(msgspec.json.encode(value).decode() + "\n")


def table_of(rows: Rows, columns: dict[str, str]) -> Table:
    """A table with the given fields under the given titles; numbers stand to the right."""
    table = Table(box=None, header_style="bold", pad_edge=False)
    for field, title in columns.items():
        numeric = any(isinstance(row.get(field), int | float) for row in rows)
        table.add_column(title, justify="right" if numeric else "left", no_wrap=True)
    for row in rows:
        table.add_row(*(_cell(row.get(field)) for field in columns))
    return table


def _cell(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, float):
        return f"{value:.1f}"
    return escape(str(value))


def _given(params: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in params.items() if value is not None}


def _refusal(answer: httpx.Response) -> HeadroomError:
    try:
        problem = msgspec.json.decode(answer.content)
        detail = problem.get("detail") or problem.get("title") or problem["code"]
        for error in problem.get("errors", []):
            detail += f"\n  {error.get('field')}: {error.get('message')}"
    except (msgspec.DecodeError, AttributeError, KeyError):
        detail = f"{answer.url} answers {answer.status_code}, and not as Headroom does"
    if answer.status_code == httpx.codes.SERVICE_UNAVAILABLE:
        return UnavailableError(detail)
    return RefusedError(detail)
