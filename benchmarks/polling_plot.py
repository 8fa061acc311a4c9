# SPDX-License-Identifier: Apache-2.0
"""Plot of the cost of poll schedules, as an SVG that is readable on light and dark pages."""

import math
from collections.abc import Iterator, Sequence
from typing import NamedTuple

TIMES = "\u00d7"
NAMES, PANEL, WIDTH = 216, 376, 960
"""Widths in pixels: the schedules' names, one panel beside them, and the whole plot."""
ROW, HEAD, TOP = 26, 58, 44
"""Heights in pixels: a bar with its gap, the space above a panel's bars, and above the panels."""
DOUBLING, LONGEST = 56, 168
"""Widths in pixels: one doubling of the product, and the longest bar."""
TEXT, LINE, OURS, OTHERS = "#757d87", "#757d87", "#2f8fe8", "#9aa2ac"
"""Colours with enough contrast on light (#ffffff) and on dark (#0d1117) pages."""


class Bar(NamedTuple):
    """One schedule on one profile: mean polls, mean lag in seconds, their least product."""

    name: str
    polls: float
    lag: float
    least: float

    @property
    def times(self) -> float:
        return self.polls * self.lag / self.least


def drawing(panels: Sequence[tuple[str, Sequence[Bar]]]) -> str:
    """Return two panels side by side, ours first in each; the bars have a logarithmic scale."""
    tall = HEAD + ROW * max(len(bars) for _, bars in panels)
    height = TOP + tall * math.ceil(len(panels) / 2)
    size = f'viewBox="0 0 {WIDTH} {height}" width="{WIDTH}" height="{height}"'
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" {size} font-family="sans-serif" fill="{TEXT}">',
        text(8, 24, f"Mean polls {TIMES} mean lag: how many times the least possible", size=18),
    ]
    for number, (title, bars) in enumerate(panels):
        top = TOP + tall * (number // 2)
        parts += panel(title, bars, NAMES + PANEL * (number % 2), top)
        if number % 2 == 0:
            parts += names(bars, top)
    return "\n".join([*parts, "</svg>\n"])


def names(bars: Sequence[Bar], top: float) -> Iterator[str]:
    """Return the schedules' names, left of both panels."""
    for row, bar in enumerate(bars):
        y = top + HEAD - 10 + ROW * row
        yield text(NAMES - 12, y + 17, bar.name, anchor="end", bold=row == 0)


def panel(title: str, bars: Sequence[Bar], left: float, top: float) -> Iterator[str]:
    """Return one profile: its title, a line at each doubling, and a bar per schedule."""
    first = top + HEAD - 10
    yield text(left, top + 18, f"mean {title}", bold=True, size=15)
    for doubling in range(4):
        x = left + DOUBLING * doubling
        yield (
            f'<line x1="{x}" y1="{first - 4}" x2="{x}" y2="{first + ROW * len(bars)}" '
            f'stroke="{LINE}" stroke-opacity="{0.3 if doubling else 1}"/>'
        )
        yield text(x, first - 9, f"{2**doubling}{TIMES}", anchor="middle", size=12)
    for row, bar in enumerate(bars):
        y, length = first + ROW * row, DOUBLING * math.log2(bar.times)
        yield (
            f'<rect x="{left}" y="{y + 3}" width="{max(2.0, length):.1f}" height="{ROW - 7}" '
            f'fill="{OTHERS if row else OURS}"/>'
        )
        told = f"{bar.times:.2f}{TIMES}"
        parts = f"{short(bar.polls)} polls {TIMES} {short(bar.lag)} s"
        yield text(left + LONGEST + 50, y + 17, told, anchor="end", bold=row == 0, size=13)
        yield text(left + LONGEST + 60, y + 17, parts, bold=row == 0, size=13)


def short(number: float) -> str:
    """Format a number with as many digits as a plot needs."""
    return (
        f"{number:.0f}" if number >= 100 else f"{number:.1f}" if number >= 0.1 else f"{number:.2f}"
    )


def text(
    x: float, y: float, words: str, *, anchor: str = "start", bold: bool = False, size: int = 14
) -> str:
    """Return a line of text."""
    weight = ' font-weight="bold"' if bold else ""
    place = f'x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" font-size="{size}"'
    return f"<text {place}{weight}>{words}</text>"
