"""Pages as text. Templates escape whatever they are given; what a heartbeat says stays text."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any, Final

import msgspec
from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from app import __version__
from app.web.assets import csp_hash, load_assets

_encode = msgspec.json.Encoder().encode

_THEME_SCRIPT: Final = (
    "try{const t=localStorage.getItem('headroom-theme');"
    "if(t==='light'||t==='dark')document.documentElement.dataset.theme=t}catch{}"
)
"""Before the first paint, so that a page does not flash in the other theme."""


class Page(msgspec.Struct, frozen=True, kw_only=True):
    """One view.

    Attributes:
        path: its address, as the navigation names it.
        template: below `templates/`.
        script: the module that brings it to life, below `static/js/`.
        modules: what that module imports, to be fetched along with it.
        css: stands in the page itself, so that its first paint waits for nothing.
        foreign: whether somebody else's script draws it.
    """

    path: str
    template: str
    script: str
    modules: tuple[str, ...] = ()
    css: tuple[str, ...] = ("css/page.css",)
    foreign: bool = False


class Line(msgspec.Struct, frozen=True):
    """What a person may copy: the address, the JSON, or the redis-cli line of the view."""

    name: str
    text: str


def render(
    page: Page, *, data: Mapping[str, Any], lines: Sequence[Line] = (), theme: str = "", **values: Any
) -> str:
    """Args:

    page: which.
    data: for its script, as JSON within the page.
    lines: what to copy; the script keeps them in step.
    theme: `light` or `dark`; the system's when empty.
    values: for its template.
    """
    template = environment().get_template(page.template)
    return template.render(
        here=page.path,
        script=page.script,
        css=Markup(_css(page.css)),  # noqa: S704  # our own files
        modules=page.modules,
        data=as_script_data(data),
        lines=lines,
        theme=theme,
        **values,
    )


@cache
def environment() -> Environment:
    made = Environment(
        loader=PackageLoader("app.web"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        auto_reload=False,
    )
    assets = load_assets()
    made.globals |= {
        "base": assets.base,
        "theme_script": Markup(_THEME_SCRIPT),  # noqa: S704  # our own text
        "version": __version__,
    }
    return made


def as_script_data(data: Any) -> Markup:
    """JSON that may stand inside a script element: no end tag, no comment, no entity can begin in it."""
    text = _encode(data).decode("utf-8")
    for character in "<>&\u2028\u2029":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return Markup(text)  # noqa: S704  # every character that HTML knows is escaped


@cache
def _css(paths: tuple[str, ...]) -> str:
    return "".join(load_assets().text(path) for path in paths)


@cache
def content_security_policy(page: Page, frame_ancestors: str) -> str:
    """Nothing from elsewhere, no inline script but the theme's, and no text that becomes HTML."""
    directives = [
        "default-src 'none'",
        f"script-src 'self' {csp_hash(_THEME_SCRIPT)}",
        f"style-src 'self' {csp_hash(_css(page.css))}",
        "img-src 'self' data:",
        "connect-src 'self'",
        "frame-src 'self'",
        "form-action 'none'",
        "base-uri 'none'",
        f"frame-ancestors {frame_ancestors}",
    ]
    if page.foreign:
        # It makes its elements from text, and brings styles as it goes. It is shown the description only.
        directives[2] = "style-src 'self' 'unsafe-inline'"
    else:
        directives += ["require-trusted-types-for 'script'", "trusted-types 'none'"]
    return "; ".join(directives)
