"""`/widgets/…`: small pages for frames, pictures without script, and JSON as other dashboards read it."""

from __future__ import annotations

from typing import Any, Final

from starlette.requests import Request
from starlette.responses import Response

from app.api.answers import answer
from app.api.fields import MAX_POOL_NAME
from app.api.html import file, lines, page
from app.api.problems import FieldError, InvalidParametersError, RouteNotFoundError
from app.api.query import agent, choice, number, read_query, text, whole
from app.api.wiring import Wiring, wiring_of
from app.errors import UnavailableError
from app.models.capacity import MAX_MIN_CORES, CapacityQuery
from app.models.identity import AGENT_TYPE_PATTERN, DEFAULT_AGENT_TYPE
from app.models.insight import TrendQuery
from app.web import badges, widgets
from app.web.assets import load_assets
from app.web.rendering import Page
from app.web.widgets import Figures, Form, Theme, View

_CSS: Final = ("css/page.css", "css/widget.css")
_SHELL: Final = ("dom", "format", "page")
WIDGET: Final = Page(
    path="/widgets/x", template="widget.html", script="widget", modules=(*_SHELL, "chart", "trend"), css=_CSS
)
MAP: Final = Page(
    path="/widgets/x",
    template="widget.html",
    script="widget-map",
    modules=(*_SHELL, "feed", "fleet", "map"),
    css=_CSS,
)
GALLERY: Final = Page(path="/widgets/", template="gallery.html", script="page-widgets", modules=_SHELL)

PARAMETERS: Final = (
    number("min_vram", "Free memory of one GPU, in GiB.", default=0.0),
    whole("min_cores", "Free cores.", least=1, most=MAX_MIN_CORES, default=1),
    text("type", "Kind of agent.", longest=32, pattern=AGENT_TYPE_PATTERN, default=DEFAULT_AGENT_TYPE),
    text("pool", "Only this pool.", longest=MAX_POOL_NAME),
    agent("agent_id", "Which agent, for its card."),
    choice("theme", "Light or dark; as the system when left out.", Theme),
    choice("form", "Of the JSON.", Form),
)

_MOST_POOLS: Final = 1_000
_SHORT: Final = {"Cache-Control": "public, max-age=300", "Access-Control-Allow-Origin": "*"}
_PICTURE: Final = {
    # Proxies of pictures, such as those of code hosts, keep what they are not told to drop.
    "Cache-Control": "no-cache, max-age=0",
    "Content-Security-Policy": "default-src 'none'; style-src 'unsafe-inline'",
    "X-Content-Type-Options": "nosniff",
    "Access-Control-Allow-Origin": "*",
}


async def script(request: Request) -> Response:
    return file(request, load_assets().by_path["headroom-widget.js"], _SHORT)


async def gallery(request: Request) -> Response:
    wiring = wiring_of(request)
    example = {"TYPE": DEFAULT_AGENT_TYPE, "VRAM": "8", "CORES": "4"}
    redis_line = wiring.redis_lines.get("find", "")
    for word, value in example.items():
        redis_line = redis_line.replace(word, value)
    found = None
    try:
        some = await wiring.orchestrator.find(CapacityQuery(limit=1))
        found = some.agents[0].agent_id if some.agents else None
    except UnavailableError:
        pass
    return page(
        request,
        GALLERY,
        data={},
        lines=lines("/widgets/", "/widgets/fit.json?min_vram=8&min_cores=4", redis_line),
        origin=str(request.base_url).rstrip("/"),
        agent_id=found,
        shown=widgets.gallery(found),
    )


async def widget(request: Request) -> Response:
    wiring = wiring_of(request)
    view, sent = _view(request), read_query(request, PARAMETERS)
    try:
        figures = await _figures(wiring, view, sent)
    except UnavailableError:
        figures = None
    query = f"?{request.url.query}" if request.url.query else ""
    vram, cores, pool = sent.get("min_vram", 0.0), sent.get("min_cores", 1), sent.get("pool")
    data: dict[str, Any] = {
        "view": view,
        "json": f"/widgets/{view}.json{query}",
        "most": 8,
        "ask": {"vram": vram, "cores": cores, "type": sent.get("type", DEFAULT_AGENT_TYPE), "pool": pool or ""},
    }
    return page(
        request,
        MAP if view is View.MAP else WIDGET,
        data=data,
        frame_ancestors=wiring.settings.frame_ancestors,
        theme=sent.get("theme", ""),
        title=view.value,
        view=view.value,
        figures=figures,
        link=widgets.link(view, sent),
    )


async def picture(request: Request) -> Response:
    view, sent = _view(request), read_query(request, PARAMETERS)
    try:
        drawn = (await _figures(wiring_of(request), view, sent)).svg()
    except UnavailableError:
        # A picture cannot say 503: it would be shown broken.
        drawn = badges.badge(view.value, "away", badges.UNKNOWN)
    return Response(drawn, media_type="image/svg+xml", headers=_PICTURE)


async def json(request: Request) -> Response:
    view, sent = _view(request), read_query(request, PARAMETERS)
    figures = await _figures(wiring_of(request), view, sent)
    return answer(figures.json(sent.get("form", Form.PLAIN)))


def _view(request: Request) -> View:
    try:
        return View(request.path_params["view"])
    except ValueError:
        raise RouteNotFoundError from None


async def _figures(wiring: Wiring, view: View, sent: dict[str, Any]) -> Figures:
    vram, cores, pool = sent.get("min_vram", 0.0), sent.get("min_cores", 1), sent.get("pool")
    agent_type = sent.get("type", DEFAULT_AGENT_TYPE)
    if view is View.FIT:
        query = CapacityQuery(min_gpu_vram_gb=vram, min_cpu_cores=cores, agent_type=agent_type, pool_name=pool)
        return widgets.fit(await wiring.insight.fit(query), vram_gb=vram, cores=cores, pool=pool)
    if view is View.TREND:
        trend = TrendQuery(agent_type=sent.get("type"), pool_name=pool)
        series = await wiring.totals.trend(trend, until_ms=wiring.clock.now_ms())
        return widgets.trend(series[0].points if series else [], pool)
    if view is View.AGENT:
        agent_id = sent.get("agent_id")
        if agent_id is None:
            raise InvalidParametersError([FieldError("agent_id", "missing", "Says which agent")])
        located = await wiring.orchestrator.get(agent_id)
        known = await wiring.record.agent(agent_id)
        return widgets.agent(located.agent, "" if known is None else known.hostname)
    named, more = await wiring.insight.summary(agent_type=sent.get("type"), pool_name=pool, limit=_MOST_POOLS)
    beyond = [] if more is None else (await wiring.insight.overall(agent_type=sent.get("type"))).beyond(named)
    return widgets.pools(named, beyond) if view is View.POOLS else widgets.fleet([*named, *beyond])
