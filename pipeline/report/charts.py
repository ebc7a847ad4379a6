"""Charts as inline SVG, with axes and a description for screen readers.

The style sheet gives each series a colour and a pattern, so that they differ without colours, too: s0 is the first.
"""

from collections.abc import Callable, Mapping, Sequence
from math import ceil, floor, isfinite, log10
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from .elements import NAME, escape_text

_WIDTH, _HEIGHT = 380, 210
_LEFT, _RIGHT, _TOP, _BOTTOM = 42, 374, 24, 164
"""The plot area inside the drawing, in SVG units: pixels of a narrow screen."""

_POINTS = 240
"""The most points of a line: more than the eye can distinguish."""

Curve: TypeAlias = tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]
"""Ascending places on the x axis, and the value at each; gaps are NaN."""


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
    axes: tuple[str, str],
    series: Mapping[str, Mapping[int, int]],
    edge: Callable[[int], str],
    marks: Sequence[tuple[float, str]] = (),
    span: tuple[int, int] | None = None,
) -> str:
    """Render a histogram of each series, a mapping from bin to count; series are drawn over each other.

    Bin i lies between the edges i and i + 1; `edge(i)` is the label of edge i. `axes` are the names of the two axes,
    `marks` are positions on the horizontal one with their labels. `span` is the first and the last bin to draw, by
    default those that are needed.
    """
    bins = [place for counts in series.values() for place in counts] + [floor(place) for place, _ in marks]
    low, high = span or (min(bins), max(bins))
    high += 1
    every = next((step for step in (1, 2, 5, 10, 20, 50) if (high - low) / step <= 7), high - low)
    low, high = floor(low / every) * every, ceil(high / every) * every
    heights = choose_ticks(0, max((count for counts in series.values() for count in counts.values()), default=1))

    def across(place: float) -> float:
        return _LEFT + (min(max(place, low), high) - low) / (high - low) * (_RIGHT - _LEFT)

    drawing = _render_frame(axes, heights, [(across(place), edge(place)) for place in range(low, high + 1, every)])
    said = []
    for number, (name, counts) in enumerate(series.items()):
        if not counts:
            continue
        steps = "".join(
            f"V{_scale_y(counts.get(place, 0), heights):.1f}H{across(place + 1):.1f}" for place in range(low, high)
        )
        drawing += f'<path class="area s{number}" d="M{_LEFT} {_BOTTOM}{steps}V{_BOTTOM}"/>'
        top = max(counts, key=lambda place: (counts[place], -place))
        said.append(f"{name}: {sum(counts.values()):,}, most between {edge(top) or 0} and {edge(top + 1)}")
    drawing += "".join(f'<path class="mark" d="M{across(place):.1f} {_TOP}V{_BOTTOM}"/>' for place, _ in marks)
    for row, (place, label) in enumerate(marks):
        x, left = across(place), across(place) > (_LEFT + _RIGHT) / 2
        drawing += (
            f'<text class="mark{" end" if left else ""}" x="{x + (-4 if left else 4):.1f}" y="{_TOP + 10 + 14 * row}">'
            f"{escape_text(label)}</text>"
        )
        said.append(label)
    drawn = [(number, name) for number, (name, counts) in enumerate(series.items()) if counts]
    return _render_figure(title, drawn, drawing, f"{axes[1]} by {axes[0]}; {'; '.join(said)}")


def render_lines(title: str, axes: tuple[str, str], curves: Mapping[str, Curve]) -> str:
    """Render curves on axes that include zero, with gaps where values are not finite. `axes` are the names of both.

    A curve without values is left out; the others keep the colours they have with it.
    """
    finite = {name: values[np.isfinite(values)] for name, (_, values) in curves.items()}
    drawn = [(number, name) for number, name in enumerate(curves) if finite[name].size]
    values = np.concatenate([[0.0], *finite.values()])
    heights = choose_ticks(float(values.min()), float(values.max()))
    places = np.concatenate([x for x, _ in curves.values()])
    low = min(0.0, float(places.min(initial=0)))
    high = max(float(places.max(initial=0)), float(places.min(initial=np.inf)) + 1) if places.size else 1.0

    def across(place: float) -> float:
        return _LEFT + (place - low) / (high - low) * (_RIGHT - _LEFT)

    shown = [place for place in choose_ticks(low, high) if low <= place <= high]
    drawing = _render_frame(axes, heights, [(across(place), format_short(place)) for place in shown])
    for number, name in drawn:
        path, pen = "", "M"
        for place, value in zip(*map(_thin, curves[name]), strict=True):
            if not isfinite(value):
                pen = "M"
                continue
            path += f"{pen}{across(place):.1f} {_scale_y(value, heights):.1f}" + ("h0" if pen == "M" else "")
            pen = "L"
        drawing += f'<path class="line s{number}" d="{path}"/>'
    said = [f"{name}: from {finite[name][0]:.3g} to {finite[name][-1]:.3g}" for _, name in drawn]
    return _render_figure(title, drawn, drawing, f"{axes[1]} by {axes[0]}; {'; '.join(said)}")


def _thin(values: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Average over equal parts, so that a long series has at most _POINTS points."""
    size = ceil(len(values) / _POINTS)
    return np.add.reduceat(values, np.arange(0, len(values), size)) / np.diff(
        np.append(np.arange(0, len(values), size), len(values))
    )


def _scale_y(value: float, heights: list[float]) -> float:
    return _BOTTOM - (value - heights[0]) / (heights[-1] - heights[0]) * (_BOTTOM - _TOP)


def _render_frame(axes: tuple[str, str], heights: list[float], places: list[tuple[float, str]]) -> str:
    """Render horizontal grid lines at `heights`, the tick labels of both axes, and the names of the axes."""
    grid = "".join(f"M{_LEFT} {_scale_y(height, heights):.1f}H{_RIGHT}" for height in heights)
    left = "".join(
        f'<text class="end" x="{_LEFT - 6}" y="{_scale_y(height, heights) + 4:.1f}">{format_short(height)}</text>'
        for height in heights
    )
    below = "".join(
        f'<text class="middle" x="{place:.1f}" y="{_BOTTOM + 16}">{escape_text(name)}</text>' for place, name in places
    )
    names = (
        f'<text class="middle" x="{(_LEFT + _RIGHT) / 2:g}" y="{_BOTTOM + 36}">{escape_text(axes[0])}</text>'
        f'<text x="0" y="11">{escape_text(axes[1])}</text>'
    )
    return f'<path class="grid" d="{grid}"/>{left}{below}{names}'


def _render_figure(title: str, series: list[tuple[int, str]], drawing: str, description: str) -> str:
    keys = "".join(f'<span class="key s{number}">{escape_text(name)}</span>' for number, name in series)
    label = escape_text(f"{title}. {description}", 1000)
    svg = f'<svg viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" aria-label="{label}">{drawing}</svg>'
    return f"<figure><figcaption><b>{escape_text(title, 2 * NAME)}</b>{keys}</figcaption>{svg}</figure>"
