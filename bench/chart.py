# SPDX-License-Identifier: Apache-2.0
"""docs/performance.svg: ADD, DEL and bursts as bars, drawn by hand."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Final
from xml.sax.saxutils import escape

from bench.measure import BRIDGE, BRIDGE_MODE, FLOOR, PIP, PTP, STATIC, Sample
from bench.report import Report

_WIDTH: Final = 860
_LEFT, _RIGHT = 250, 130  # room for names and for values
_BAR, _GAP, _HEAD, _FOOT = 20, 8, 46, 22
_LINE: Final = 16  # of the footnotes
_FOOTNOTES: Final = (
    "ADD and DEL: the calls by which a container runtime attaches and detaches a pod. p10 to p90:"
    " eight of ten calls lie between.",
    "static: the one static file, with pods in routed mode unless it says bridge mode. pip: the"
    " same program, installed with pip.",
    "bridge, ptp, host-local: the CNI project's reference plugins; host-local chooses addresses.",
    "C floor: a C program that makes the plugin's own system calls and nothing else; no plugin that"
    " makes them can be faster.",
    "ptp's ADD waits for duplicate address detection (RFC 4862), one to two seconds: its bar is"
    " cut.",
)
_OURS, _OURS_TOO, _THEIRS, _BELOW = "#0b7a5e", "#74b8a3", "#c2683c", "#8a8f98"
_COLOURS: Final = {
    STATIC: _OURS,
    PIP: _OURS_TOO,
    BRIDGE_MODE: _OURS_TOO,
    FLOOR: _BELOW,
    BRIDGE: _THEIRS,
    PTP: _THEIRS,
}


# Overrides the colours that the elements have by themselves.
_DARK: Final = """<style>@media (prefers-color-scheme: dark) {
  .page { fill: #0d1117 } .cut { stroke: #0d1117 }
  .whisker { stroke: #e6edf3 } text { fill: #e6edf3 }
}</style>"""


@dataclass(frozen=True)
class _Bar:
    label: str
    colour: str
    sample: Sample


def draw(report: Report) -> str:
    """The chart as an SVG document. A bar is the median, its whisker p10 to p90."""
    order = (FLOOR, STATIC, BRIDGE_MODE, PIP, BRIDGE, PTP)
    figures = report.figures
    panels = []
    for measure, note in (
        ("ADD", "attach one pod, whole process"),
        ("DEL", "detach one pod, whole process"),
    ):
        bars = [
            _Bar(name, _COLOURS[name], figures[measure][name])
            for name in order
            if name in figures[measure]
        ]
        panels.append((f"{measure}: {note}", bars))
    burst = []
    count = report.size.burst
    for parallel in (1, 4, 16):
        by_candidate = figures[f"{count} ADDs, {parallel} at a time"]
        for name in (STATIC, BRIDGE):
            label = f"{name.removesuffix(' + host-local')}, {parallel} at a time"
            burst.append(_Bar(label, _COLOURS[name], by_candidate[name]))
    panels.append((f"{count} pods at once, until the last is attached", burst))
    grown = [
        _Bar(f"static, pod {level:,}", _OURS, figures[f"ADD of pod {level}"][STATIC])
        for level in report.size.levels
    ]
    panels.append(("ADD on a node that has pods already", grown))

    parts: list[str] = []
    y = 0
    for title, bars in panels:
        parts += _panel(title, bars, y)
        y += _HEAD + len(bars) * (_BAR + _GAP) + _FOOT
    subtitle = f"{report.machine['cpu']}, Linux {report.machine['kernel']}, {report.date}"
    captions = (f"Milliseconds; bar: median, line: p10 to p90. {subtitle}", *_FOOTNOTES)
    foot = y + _LINE * len(captions) + 4
    return "\n".join(
        (
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {foot}"'
            f' width="{_WIDTH}" height="{foot}" font-family="system-ui, sans-serif">',
            _DARK,
            f'<rect class="page" width="{_WIDTH}" height="{foot}" fill="#fff"/>',
            *parts,
            *(_text(16, y + 4 + n * _LINE, line, 11, "#666") for n, line in enumerate(captions)),
            "</svg>",
            "",
        )
    )


def _panel(title: str, bars: Sequence[_Bar], top: int) -> list[str]:
    # A bar that is ten times longer than the next one would flatten all others: it is cut.
    lengths = sorted(bar.sample.median for bar in bars)
    end = next(
        (small for small, large in pairwise(lengths) if large > 10 * small),
        lengths[-1],
    )
    end = max(bar.sample.p90 for bar in bars if bar.sample.median <= end) * 1.05
    scale = (_WIDTH - _LEFT - _RIGHT) / end
    parts = [_text(16, top + 28, title, 15, "#111", weight="600")]
    for row, bar in enumerate(bars):
        y = top + _HEAD + row * (_BAR + _GAP)
        middle = y + _BAR / 2
        cut = bar.sample.median > end
        length = min(bar.sample.median, end) * scale
        parts.append(_text(_LEFT - 10, middle + 4, bar.label, 12, "#333", anchor="end"))
        parts.append(
            f'<rect x="{_LEFT}" y="{y}" width="{length:.1f}" height="{_BAR}" rx="2"'
            f' fill="{bar.colour}"/>'
        )
        right = _LEFT + length
        if cut:
            for shift in (30, 36):
                x = right - shift
                parts.append(
                    f'<path class="cut" d="M{x:.1f} {y + _BAR + 2} l8 -{_BAR + 4}" stroke="#fff"'
                    ' stroke-width="3"/>'
                )
        else:
            low, high = _LEFT + bar.sample.p10 * scale, _LEFT + min(bar.sample.p90, end) * scale
            parts.append(
                f'<path class="whisker" d="M{low:.1f} {middle} H{high:.1f} M{low:.1f} {middle - 4}'
                f' v8 M{high:.1f} {middle - 4} v8" stroke="#222" stroke-width="1.2" fill="none"/>'
            )
            right = max(right, high)
        parts.append(_text(right + 8, middle + 4, _ms(bar.sample.median), 12, "#111"))
    return parts


def _ms(value: float) -> str:
    return f"{value:,.0f} ms" if value >= 100 else f"{value:.1f} ms"


def _text(
    x: float,
    y: float,
    text: str,
    size: int,
    colour: str,
    *,
    weight: str = "400",
    anchor: str = "start",
) -> str:
    return (
        f'<text x="{x:.1f}" y="{y:.1f}" font-size="{size}" fill="{colour}" font-weight="{weight}"'
        f' text-anchor="{anchor}">{escape(text)}</text>'
    )
