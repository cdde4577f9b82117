"""Plots as SVG: readable as files, in light and dark, without a library."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from html import escape
from typing import Final

_STYLE: Final = """\
    svg { --paper: #ffffff; --ink: #1c2733; --soft: #5b6876; --grid: #dde3e9;
          --c0: #0b6e99; --c1: #c2410c; --c2: #6a4c93; --c3: #5b6876; --c4: #2f7d32; --c5: #a1660a;
          --c6: #b0305c; --c7: #0f766e; }
    @media (prefers-color-scheme: dark) {
      svg { --paper: #12171d; --ink: #e6ecf2; --soft: #a3b0bd; --grid: #2c3641;
            --c0: #5cc3ec; --c1: #fb923c; --c2: #c3a5ee; --c3: #a3b0bd; --c4: #7ccf82; --c5: #e0b354;
            --c6: #f08bab; --c7: #5fd0c3; }
    }
    text { font: 13px system-ui, -apple-system, "Segoe UI", Roboto, sans-serif; fill: var(--ink); }
    .title { font-size: 16px; font-weight: 600; }
    .soft { fill: var(--soft); font-size: 12px; }
    .grid { stroke: var(--grid); stroke-width: 1; }
    .paper { fill: var(--paper); }
"""
_COLOURS: Final = 8
_WIDTH: Final = 860
_LEFT: Final = 64.0
_RIGHT: Final = 210.0


class _LogScale:
    """Milliseconds (or whatever) to pixels."""

    def __init__(self, values: Sequence[float], first: float, last: float) -> None:
        self._low = math.floor(math.log10(min(values)))
        self._high = max(self._low + 1, math.ceil(math.log10(max(values))))
        self._first = first
        self._last = last

    def __call__(self, value: float) -> float:
        share = (math.log10(value) - self._low) / (self._high - self._low)
        return self._first + share * (self._last - self._first)

    def ticks(self) -> list[float]:
        return [10.0**power for power in range(self._low, self._high + 1)]


def line_plot(title: str, description: str, lines: Mapping[str, Sequence[tuple[float, float]]]) -> str:
    """Milliseconds over the size of the fleet, both on logarithmic scales; a line per side."""
    height, top, bottom = 470, 60.0, 420.0
    points = [point for line in lines.values() for point in line]
    across = _LogScale([x for x, _ in points], _LEFT, _WIDTH - _RIGHT)
    up = _LogScale([y for _, y in points], bottom, top)
    parts = [_tick_line(_LEFT, up(tick), _WIDTH - _RIGHT, _duration(tick)) for tick in up.ticks()]
    parts += [
        f'<text class="soft" x="{across(tick):.1f}" y="{bottom + 20:.0f}" text-anchor="middle">{tick:,.0f}</text>'
        for tick in across.ticks()
    ]
    parts.append(
        f'<text class="soft" x="{(_LEFT + _WIDTH - _RIGHT) / 2:.0f}" y="{bottom + 40:.0f}" '
        'text-anchor="middle">agents</text>'
    )
    labels = _apart({name: up(line[-1][1]) for name, line in lines.items()})
    for i, (name, line) in enumerate(lines.items()):
        colour = f"var(--c{i % _COLOURS})"
        path = " ".join(f"{across(x):.1f},{up(y):.1f}" for x, y in line)
        parts.append(f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="2.5"/>')
        parts += [f'<circle cx="{across(x):.1f}" cy="{up(y):.1f}" r="3.5" fill="{colour}"/>' for x, y in line]
        end = across(line[-1][0])
        parts.append(
            f'<text x="{end + 12:.1f}" y="{labels[name] + 4:.1f}" style="fill: {colour}">{escape(name)}</text>'
        )
    return _document(title, description, parts, height)


def bar_plot(title: str, description: str, groups: Mapping[str, Mapping[str, float]]) -> str:
    """Milliseconds on a logarithmic scale: a group of bars per fleet, a bar per side."""
    sides = list(dict.fromkeys(side for bars in groups.values() for side in bars))
    bar, gap, left = 16.0, 18.0, 170.0
    top = 84.0
    bottom = top + sum(len(bars) * bar + gap for bars in groups.values())
    scale = _LogScale([value for bars in groups.values() for value in bars.values()], left, _WIDTH - 70.0)
    parts = [
        f'<line class="grid" x1="{scale(tick):.1f}" x2="{scale(tick):.1f}" y1="{top - 8:.0f}" y2="{bottom:.0f}"/>'
        f'<text class="soft" x="{scale(tick):.1f}" y="{bottom + 16:.0f}" text-anchor="middle">'
        f"{_duration(tick)}</text>"
        for tick in scale.ticks()
    ]
    place = left
    for i, side in enumerate(sides):
        parts.append(
            f'<rect x="{place:.0f}" y="46" width="12" height="12" fill="var(--c{i % _COLOURS})"/>'
            f'<text x="{place + 18:.0f}" y="57">{escape(side)}</text>'
        )
        place += 40 + 7.2 * len(side)
    y = top
    for group, bars in groups.items():
        middle = y + len(bars) * bar / 2 + 4
        parts.append(f'<text x="{left - 12:.0f}" y="{middle:.1f}" text-anchor="end">{escape(group)}</text>')
        for side, value in bars.items():
            end = max(scale(value), left + 2)
            parts.append(
                f'<rect x="{left:.0f}" y="{y:.1f}" width="{end - left:.1f}" height="{bar - 3:.0f}" '
                f'fill="var(--c{sides.index(side) % _COLOURS})"/>'
                f'<text class="soft" x="{end + 6:.1f}" y="{y + 11:.1f}">{_duration(value)}</text>'
            )
            y += bar
        y += gap
    return _document(title, description, parts, round(bottom + 34))


def _tick_line(left: float, y: float, right: float, label: str) -> str:
    return (
        f'<line class="grid" x1="{left:.0f}" x2="{right:.0f}" y1="{y:.1f}" y2="{y:.1f}"/>'
        f'<text class="soft" x="{left - 8:.0f}" y="{y + 4:.1f}" text-anchor="end">{label}</text>'
    )


def _apart(places: Mapping[str, float], least: float = 16.0) -> dict[str, float]:
    """Moves labels down until none covers another."""
    moved: dict[str, float] = {}
    free_from = -math.inf
    for name, place in sorted(places.items(), key=lambda item: item[1]):
        moved[name] = max(place, free_from)
        free_from = moved[name] + least
    return moved


def _duration(ms: float) -> str:
    if ms >= 1000:
        return f"{ms / 1000:.3g} s"
    return f"{ms:.3g} ms" if ms >= 1 else f"{ms * 1000:.3g} µs"


def _document(title: str, description: str, parts: Sequence[str], height: int) -> str:
    body = "\n  ".join(parts)
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {height}" role="img" '
        'aria-labelledby="title desc">\n'
        f'  <title id="title">{escape(title)}</title>\n  <desc id="desc">{escape(description)}</desc>\n'
        f"  <style>\n{_STYLE}  </style>\n"
        f'  <rect class="paper" width="{_WIDTH}" height="{height}"/>\n'
        f'  <text class="title" x="{_LEFT:.0f}" y="28">{escape(title)}</text>\n'
        f"  {body}\n</svg>\n"
    )
