"""The building blocks of a page: facts, tables with thin bars, charts as inline SVG, and the style sheet.

The style sheet colours charts by class: s0, s1 and s2 are the first, second and third series.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from html import escape
from math import ceil, floor, isfinite, log10

import numpy as np
import numpy.typing as npt

_WIDTH, _HEIGHT = 480, 216
_LEFT, _RIGHT, _TOP, _BOTTOM = 44, 468, 12, 188
"""The plot area inside the drawing, in SVG units."""

_POINTS = 240
"""The most points of a line: more than the eye can distinguish."""


_VISIBLE = {code: 0x2400 + code for code in range(32)} | {0x7F: 0x2421}
_VISIBLE |= dict.fromkeys([*range(0x80, 0xA0), *range(0xD800, 0xE000)], 0xFFFD)
"""Control characters are shown as Unicode control pictures, characters that HTML forbids as U+FFFD."""


def escape_text(text: str) -> str:
    """Escape untrusted text for HTML."""
    return escape(text.translate(_VISIBLE))


def format_percent(part: int, whole: int) -> str:
    """Format a share as a percentage with one decimal; only exact 0 and 100% are shown as such."""
    share = part / whole if whole else 0.0
    if 0 < share < 0.0005:
        return "&lt;0.1%"
    return "&gt;99.9%" if 0.9995 <= share < 1 else f"{share:.1%}"


def format_size(count: float) -> str:
    """Format bytes in decimal units."""
    units = ["B", "kB", "MB", "GB", "TB"]
    while count >= 999.95 and len(units) > 1:
        count, units = count / 1000, units[1:]
    return f"{count:,.1f} {units[0]}"


def render_bar(part: int, whole: int) -> str:
    """Render a share as a thin bar."""
    return f'<i class="bar" style="--share:{min(part / whole, 1) if whole else 0:.2%}"></i>'


def render_facts(values: Mapping[str, str]) -> str:
    """Render a row of facts: names, each with its value (HTML) below it."""
    cells = "".join(f"<div><dt>{name}</dt><dd>{value}</dd></div>" for name, value in values.items())
    return f'<dl class="facts">{cells}</dl>'


def render_table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Render a table of numbers. Cells are HTML; the first cell of a row is its header."""
    heads = "".join(f'<th scope="col">{name}</th>' for name in head)
    body = "".join(
        f'<tr><th scope="row">{row[0]}</th>' + "".join(f"<td>{cell}</td>" for cell in row[1:]) + "</tr>" for row in rows
    )
    return f'<div class="wide"><table><thead><tr>{heads}</tr></thead><tbody>{body}</tbody></table></div>'


def choose_ticks(low: float, high: float) -> list[float]:
    """Choose about five round numbers that enclose `low` and `high`, in steps of 1, 2 or 5 times a power of ten."""
    span = (high - low) or abs(high) or 1.0
    power = 10.0 ** floor(log10(span / 5))
    step = power * next(multiple for multiple in (1, 2, 5, 10) if multiple * power * 5 >= span * 0.999)
    first, last = floor(low / step + 1e-9), ceil(high / step - 1e-9)
    return [round(number * step, 12) for number in range(first, max(last, first + 1) + 1)]


def format_short(value: float) -> str:
    """Format a number for an axis: 0.25, 1.5k, 20M."""
    for size, unit in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= size:
            return f"{value / size:.4g}{unit}"
    return f"{value:.4g}"


def render_histogram(
    title: str,
    unit: str,
    series: Mapping[str, Mapping[int, int]],
    edge: Callable[[int], str],
    mark: tuple[float, str] | None = None,
) -> str:
    """Render a histogram of each series, a mapping from bin to count (of `unit`); series are drawn over each other.

    Bin i lies between the edges i and i + 1; `edge(i)` is the label of edge i. `mark` is a position on that scale and
    its label.
    """
    bins = [place for counts in series.values() for place in counts] + ([floor(mark[0])] if mark else [])
    low, high = min(bins), max(bins) + 1
    every = next((step for step in (1, 2, 4, 8, 20, 40) if (high - low) / step <= 9), high - low)
    low, high = floor(low / every) * every, ceil(high / every) * every
    heights = choose_ticks(0, max(count for counts in series.values() for count in counts.values()))

    def across(place: float) -> float:
        return _LEFT + (place - low) / (high - low) * (_RIGHT - _LEFT)

    drawing = _render_frame(heights, [(across(place), edge(place)) for place in range(low, high + 1, every)])
    for number, counts in enumerate(series.values()):
        steps = "".join(
            f"V{_scale_y(counts.get(place, 0), heights):.1f}H{across(place + 1):.1f}" for place in range(low, high)
        )
        drawing += f'<path class="area s{number}" d="M{_LEFT} {_BOTTOM}{steps}V{_BOTTOM}"/>'
    if mark:
        place = across(mark[0])
        drawing += (
            f'<path class="mark" d="M{place:.1f} {_TOP - 4}V{_BOTTOM}"/>'
            f'<text class="mark" x="{place + 5:.1f}" y="{_TOP + 5}">{escape(mark[1])}</text>'
        )
    return _render_figure(title, unit, list(series), drawing)


def render_lines(
    title: str, unit: str, x: npt.NDArray[np.float64], series: Mapping[str, npt.NDArray[np.float64]]
) -> str:
    """Render curves over ascending x (in `unit`), on axes that include zero, with gaps where values are not finite."""
    finite = [values[np.isfinite(values)] for values in series.values()]
    heights = choose_ticks(
        min(0.0, *(part.min(initial=0) for part in finite)), max(part.max(initial=0) for part in finite)
    )
    low, high = min(0.0, float(x[0])), max(float(x[-1]), float(x[0]) + 1)

    def across(place: float) -> float:
        return _LEFT + (place - low) / (high - low) * (_RIGHT - _LEFT)

    shown = [place for place in choose_ticks(low, high) if low <= place <= high]
    drawing = _render_frame(heights, [(across(place), format_short(place)) for place in shown])
    for number, values in enumerate(series.values()):
        path, pen = "", "M"
        for place, value in zip(_thin(x), _thin(values), strict=True):
            if not isfinite(value):
                pen = "M"
                continue
            path += f"{pen}{across(place):.1f} {_scale_y(value, heights):.1f}" + ("h0" if pen == "M" else "")
            pen = "L"
        drawing += f'<path class="line s{number}" d="{path}"/>'
    return _render_figure(title, unit, list(series), drawing)


def _thin(values: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Average over equal parts, so that a long series has at most _POINTS points."""
    size = ceil(len(values) / _POINTS)
    return np.add.reduceat(values, np.arange(0, len(values), size)) / np.diff(
        np.append(np.arange(0, len(values), size), len(values))
    )


def _scale_y(value: float, heights: list[float]) -> float:
    return _BOTTOM - (value - heights[0]) / (heights[-1] - heights[0]) * (_BOTTOM - _TOP)


def _render_frame(heights: list[float], places: list[tuple[float, str]]) -> str:
    """Render horizontal grid lines at `heights`, and the tick labels of both axes."""
    grid = "".join(f"M{_LEFT} {_scale_y(height, heights):.1f}H{_RIGHT}" for height in heights)
    left = "".join(
        f'<text class="end" x="{_LEFT - 7}" y="{_scale_y(height, heights) + 4:.1f}">{format_short(height)}</text>'
        for height in heights
    )
    below = "".join(
        f'<text class="middle" x="{place:.1f}" y="{_BOTTOM + 18}">{escape(name)}</text>' for place, name in places
    )
    return f'<path class="grid" d="{grid}"/>{left}{below}'


def _render_figure(title: str, unit: str, names: list[str], drawing: str) -> str:
    keys = "".join(f'<span class="key s{number}">{escape(name)}</span>' for number, name in enumerate(names))
    caption = f'<figcaption><b>{escape(title)}</b> <span class="aside">{escape(unit)}</span>{keys}</figcaption>'
    label = escape(f"{title}: {', '.join(names)}")
    svg = f'<svg viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" aria-label="{label}">{drawing}</svg>'
    return f"<figure>{caption}{svg}</figure>"


STYLE = """
:root { color-scheme: light dark; --ink: #1c2024; --soft: #667079; --rule: #e3e6e9; --paper: #fff; --tint: #f5f6f7;
  --s0: #2a6fb0; --s1: #c8702a; --s2: #5d8a4a; --warn: #a33a2a; }
@media (prefers-color-scheme: dark) { :root { --ink: #e4e6e8; --soft: #98a1a9; --rule: #30353a; --paper: #16181b;
  --tint: #1e2124; --s0: #6aa9e0; --s1: #e59a58; --s2: #93c07d; --warn: #ec8d7d; } }
* { box-sizing: border-box; }
html { -webkit-text-size-adjust: 100%; }
body { margin: 0 auto; padding: 3rem 1.25rem 5rem; max-width: 62rem; color: var(--ink); background: var(--paper);
  font: 15px/1.55 system-ui, -apple-system, "Segoe UI", "Noto Sans", "PingFang SC", "Noto Sans CJK SC",
  "Microsoft YaHei", sans-serif; font-variant-numeric: tabular-nums; }
header p { margin: 0; color: var(--soft); font-size: .87rem; overflow-wrap: anywhere; }
h1 { margin: .1rem 0 .2rem; font-size: 2rem; line-height: 1.2; font-weight: 650; letter-spacing: -.015em;
  overflow-wrap: anywhere; }
h2 { margin: 3.25rem 0 1rem; padding-top: 1rem; border-top: 1px solid var(--ink); font-size: 1.25rem;
  font-weight: 650; }
h3 { margin: 2rem 0 .6rem; font-size: 1rem; font-weight: 650; overflow-wrap: anywhere; }
.aside, .note { color: var(--soft); font-size: .87rem; font-weight: 400; }
.warning { margin: 1.5rem 0 0; padding-left: .75rem; border-left: 3px solid var(--warn); color: var(--warn); }
.facts { display: flex; flex-wrap: wrap; gap: .9rem 2.25rem; margin: 1.5rem 0; }
.facts dt { color: var(--soft); font-size: .8rem; }
.facts dd { margin: 0; font-size: 1.15rem; }
.wide { overflow-x: auto; margin: 1rem 0; }
table { width: 100%; border-collapse: collapse; font-size: .9rem; }
th, td { padding: .34rem 0 .34rem 1.5rem; text-align: right; white-space: nowrap; vertical-align: top; }
th:first-child { padding-left: 0; text-align: left; font-weight: 400; }
thead th { color: var(--soft); font-weight: 400; font-size: .8rem; border-bottom: 1px solid var(--rule);
  vertical-align: bottom; }
tbody tr + tr > * { border-top: 1px solid var(--rule); }
.bar { display: block; height: 2px; margin-top: 1px; min-width: 3rem; background:
  linear-gradient(var(--s0), var(--s0)) left / var(--share) 100% no-repeat, var(--rule); print-color-adjust: exact;
  -webkit-print-color-adjust: exact; }
details { border-top: 1px solid var(--rule); font-size: .9rem; }
summary { display: grid; grid-template-columns: minmax(0, 1fr) 5.5rem 4.5rem minmax(3rem, 9rem); column-gap: 1rem;
  align-items: center; padding: .34rem 0; cursor: pointer; text-align: right; list-style: none; }
summary::-webkit-details-marker { display: none; }
summary .name { text-align: left; overflow-wrap: anywhere; }
summary .name::before { content: "+"; display: inline-block; width: 1.1rem; color: var(--soft); }
details[open] > summary .name::before { content: "\\2212"; }
summary .bar { margin: 0; min-width: 0; }
details dl { display: grid; grid-template-columns: 4.5rem minmax(0, 1fr); gap: .1rem .75rem; margin: 0 0 .5rem 1.1rem;
  padding: .6rem .8rem; background: var(--tint); break-inside: avoid; }
details dt { color: var(--soft); font-size: .8rem; line-height: 1.75; }
details dd { margin: 0; overflow-wrap: anywhere; }
.charts { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 24rem), 1fr)); gap: 1.5rem 2rem; }
figure { margin: .5rem 0; max-width: 30rem; break-inside: avoid; }
figcaption { display: flex; flex-wrap: wrap; gap: 0 .9rem; align-items: baseline; margin-bottom: .35rem;
  font-size: .87rem; }
figcaption b { font-weight: 600; margin-right: -.4rem; }
.key::before { content: ""; display: inline-block; width: .8rem; height: 3px; margin: 0 .35rem .22rem 0;
  background: currentColor; print-color-adjust: exact; -webkit-print-color-adjust: exact; }
span.key.s0 { color: var(--s0); } span.key.s1 { color: var(--s1); } span.key.s2 { color: var(--s2); }
svg { display: block; width: 100%; height: auto; overflow: visible; }
svg text { fill: var(--soft); font-size: 11.5px; } .end { text-anchor: end; } .middle { text-anchor: middle; }
.grid { stroke: var(--rule); fill: none; }
.area { stroke-width: 1.25; fill-opacity: .22; } .line { fill: none; stroke-width: 1.75; stroke-linecap: round;
  stroke-linejoin: round; }
path.s0 { stroke: var(--s0); } path.s1 { stroke: var(--s1); } path.s2 { stroke: var(--s2); }
.area.s0 { fill: var(--s0); } .area.s1 { fill: var(--s1); } .area.s2 { fill: var(--s2); }
path.mark { stroke: var(--ink); stroke-dasharray: 3 3; } svg text.mark { fill: var(--ink); }
@media (max-width: 40rem) { body { padding-top: 1.5rem; } th, td { padding-left: .9rem; }
  summary { grid-template-columns: minmax(0, 1fr) 3.6rem 3.4rem 3rem; column-gap: .6rem; } }
@media print { :root { color-scheme: light; } body { max-width: none; padding: 0; font-size: 10pt; }
  details::details-content { content-visibility: visible; block-size: auto; } h2, h3 { break-after: avoid; }
  tr, summary { break-inside: avoid; } }
"""
