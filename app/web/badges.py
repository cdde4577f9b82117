"""Pictures without script: badges, bars and lines as SVG. Text is escaped; nothing in them loads anything."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final
from xml.sax.saxutils import escape, quoteattr

import msgspec

GOOD: Final = "#0b7f70"
SHORT: Final = "#a86400"
NONE: Final = "#b3261e"
UNKNOWN: Final = "#6d7783"
_LABEL: Final = "#343d48"
_FONT: Final = "font-family='system-ui,-apple-system,Segoe UI,DejaVu Sans,Verdana,sans-serif' font-size='11'"
_STYLE: Final = (
    "<style>text{fill:#18202b}.of{fill:#e2e6eb}.muted{fill:#55606e}"
    "@media(prefers-color-scheme:dark){text{fill:#e4e9ef}.of{fill:#2a333f}.muted{fill:#9aa6b4}}</style>"
)


class Bar(msgspec.Struct, frozen=True):
    """One bar: its name, how much of how much, and that as text."""

    name: str
    part: float
    of: float
    text: str


def badge(label: str, message: str, colour: str) -> str:
    """Two fields side by side, as repository badges are."""
    left, right = _width(label) + 14, _width(message) + 14
    title = f"{label}: {message}"
    return (
        f"<svg xmlns='http://www.w3.org/2000/svg' width='{left + right}' height='20' role='img' "
        f"aria-label={quoteattr(title)}><title>{escape(title)}</title>"
        f"<clipPath id='r'><rect width='{left + right}' height='20' rx='3'/></clipPath>"
        f"<g clip-path='url(#r)'><rect width='{left}' height='20' fill='{_LABEL}'/>"
        f"<rect x='{left}' width='{right}' height='20' fill='{colour}'/></g>"
        f"<g fill='#fff' text-anchor='middle' {_FONT}>"
        f"<text x='{left / 2}' y='14' textLength='{left - 14}'>{escape(label)}</text>"
        f"<text x='{left + right / 2}' y='14' textLength='{right - 14}'>{escape(message)}</text></g></svg>"
    )


def bars(title: str, rows: Sequence[Bar]) -> str:
    """One line each: name, bar, text."""
    height = 24 + 26 * len(rows)
    lines = "".join(
        f"<g transform='translate(0 {24 + 26 * index})'><text x='0' y='12'>{escape(_shortened(row.name))}</text>"
        f"<rect class='of' x='120' y='4' width='170' height='9' rx='2'/>"
        f"<rect x='120' y='4' width='{170 * _share(row):.1f}' height='9' rx='2' fill='#14a08d'/>"
        f"<text class='muted' x='420' y='12' text-anchor='end'>{escape(row.text)}</text></g>"
        for index, row in enumerate(rows)
    )
    return (
        f"<svg xmlns='http://www.w3.org/2000/svg' width='420' height='{height}' viewBox='0 0 420 {height}' "
        f"role='img' aria-label={quoteattr(title)}><title>{escape(title)}</title>{_STYLE}"
        f"<g {_FONT}><text x='0' y='12' font-weight='600'>{escape(title)}</text>{lines}</g></svg>"
    )


def line(title: str, points: Sequence[tuple[float, float]], text: str) -> str:
    """A line over time: `points` are (when, how much), oldest first."""
    drawn = ""
    if len(points) > 1:
        first, last = points[0][0], points[-1][0]
        most = max(value for _, value in points) or 1.0
        places = [
            (4 + 412 * (at - first) / max(last - first, 1e-9), 96 - 68 * value / most) for at, value in points
        ]
        path = " ".join(f"{x:.1f},{y:.1f}" for x, y in places)
        drawn = (
            f"<polygon points='4,96 {path} 416,96' fill='#0a5ec2' opacity='.13'/>"
            f"<polyline points='{path}' fill='none' stroke='#3d86e0' stroke-width='1.75' stroke-linejoin='round'/>"
        )
    return (
        f"<svg xmlns='http://www.w3.org/2000/svg' width='420' height='100' viewBox='0 0 420 100' role='img' "
        f"aria-label={quoteattr(f'{title}: {text}')}><title>{escape(title)}</title>{_STYLE}"
        f"<g {_FONT}><text x='4' y='13' font-weight='600'>{escape(title)}</text>"
        f"<text class='muted' x='416' y='13' text-anchor='end'>{escape(text)}</text></g>{drawn}</svg>"
    )


def _share(row: Bar) -> float:
    return max(0.0, min(1.0, row.part / row.of)) if row.of > 0 else 0.0


def _shortened(name: str, longest: int = 18) -> str:
    return name if len(name) <= longest else f"{name[: longest - 1]}…"


def _width(text: str) -> int:
    """About how wide the text is at this size; `textLength` makes the letters take exactly that."""
    narrow = sum(character in "ilj.,:;|!' I1tf()[]" for character in text)
    wide = sum(character in "mwMW@%" or ord(character) > 0x2E80 for character in text)
    return max(6, round(6.6 * len(text) - 2.6 * narrow + 3.4 * wide))
