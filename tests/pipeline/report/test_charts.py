"""The charts: axes, curves and bars are where the numbers say."""

import re

import numpy as np
import pytest
from conan_embedding.pipeline.report.charts import choose_ticks, render_histogram, render_lines
from report_pages import Page, steps_of


def test_a_line_breaks_where_a_value_is_none() -> None:
    x = np.arange(1.0, 7.0)
    values = np.array([1, 2, np.nan, 4, np.inf, 3])
    path = re.search(r'class="line s0" d="(.*?)"', render_lines("t", ("u", "v"), {"a": (x, values)}))
    assert path
    assert (path[1].count("M"), path[1].count("L")) == (3, 1)
    assert "nan" not in path[1]
    nothing = np.full(6, np.nan)
    Page(render_lines("t", ("u", "v"), {"a": (x, nothing)}))


def test_a_long_line_is_thinned_by_means() -> None:
    x = np.arange(1000.0)
    path = re.search(r'class="line s0" d="(.*?)"', render_lines("t", ("u", "v"), {"a": (x, x)}))
    assert path
    points = [tuple(map(float, point.split())) for point in re.findall(r"[ML]([\d. ]+)", path[1])]
    assert 100 < len(points) <= 240
    heights = [(164 - down) / (164 - 24) * 1000 for _, down in points]
    across = [(place - 42) / (374 - 42) * 999 for place, _ in points]
    assert np.allclose(heights, across, atol=1.0)


@pytest.mark.parametrize(("low", "high"), [(0, 0), (0, 1), (-0.2, 0.83), (3, 3), (0, 1e9), (0.999, 1.001), (-5, -5)])
def test_ticks_are_round_and_enclose(low: float, high: float) -> None:
    found = choose_ticks(low, high)
    assert found[0] <= low <= high <= found[-1]
    assert 2 <= len(found) <= 8
    step = found[1] - found[0]
    assert np.allclose(np.diff(found), step)
    assert float(f"{step:.1e}") / 10 ** np.floor(np.log10(step) + 1e-9) == pytest.approx(
        round(step / 10 ** np.floor(np.log10(step) + 1e-9))
    )


def test_a_histogram_takes_any_range() -> None:
    for counts in ({0: 1}, {-20: 3, 19: 1}, {3: 10**9, 400: 1}):
        html = render_histogram("t", ("u", "v"), {"a": counts}, str, [(0.5, "m")])
        Page(html)
        (area,) = re.findall(r'class="area s0" d="(.*?)"', html)
        assert sum(height > 0 for height in steps_of(area)) == sum(
            count > max(counts.values()) / 1e4 for count in counts.values()
        )
