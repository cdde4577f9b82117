"""How pages and their files go out: rendered, with their policy, compressed, cached by what they are."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

from starlette.requests import Request
from starlette.responses import Response

from app.api.answers import compressed
from app.api.problems import RouteNotFoundError
from app.web.assets import Asset, load_assets
from app.web.rendering import Line, Page, content_security_policy, render

_FOR_EVER: Final = {"Cache-Control": "public, max-age=31536000, immutable"}


async def icon(request: Request) -> Response:
    """Where browsers look by themselves, beside documents that name none."""
    return file(request, load_assets().by_path["icon.svg"], {"Cache-Control": "public, max-age=86400"})


async def static(request: Request) -> Response:
    assets = load_assets()
    found = assets.by_path.get(request.path_params["path"])
    if found is None or request.path_params["digest"] != assets.digest:
        raise RouteNotFoundError
    return file(request, found, _FOR_EVER)


def file(request: Request, asset: Asset, headers: Mapping[str, str]) -> Response:
    headers = {**headers, "ETag": asset.etag, "Vary": "Accept-Encoding", "X-Content-Type-Options": "nosniff"}
    if request.headers.get("if-none-match") == asset.etag:
        return Response(status_code=304, headers=headers)
    if "gzip" in request.headers.get("accept-encoding", ""):
        return Response(
            asset.compressed, media_type=asset.media_type, headers={**headers, "Content-Encoding": "gzip"}
        )
    return Response(asset.body, media_type=asset.media_type, headers=headers)


def page(
    request: Request,
    which: Page,
    *,
    data: Mapping[str, Any],
    lines: Sequence[Line] = (),
    frame_ancestors: str = "'self'",
    theme: str = "",
    **values: object,
) -> Response:
    """A rendered page with its policy. `frame_ancestors`: who may show it in a frame."""
    text = render(which, data=data, lines=_absolute(request, lines), theme=theme, **values)
    response = Response(
        text,
        media_type="text/html",
        headers={
            "Cache-Control": "no-store",
            "Content-Security-Policy": content_security_policy(which, frame_ancestors),
            "X-Content-Type-Options": "nosniff",
            "Referrer-Policy": "same-origin",
        },
    )
    return compressed(request, response)


def lines(address: str, json: str, redis_line: str) -> tuple[Line, ...]:
    """What to copy from a view. Address and JSON are paths; the page shows them with its host."""
    return (Line("Address", address), Line("JSON", json), Line("redis-cli", redis_line))


def _absolute(request: Request, lines: Sequence[Line]) -> list[Line]:
    origin = str(request.base_url).rstrip("/")
    return [line if line.name == "redis-cli" else Line(line.name, f"{origin}{line.text or '/'}") for line in lines]
