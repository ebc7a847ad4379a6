"""The lengths of texts."""

from pathlib import Path

import numpy as np
from conan_embedding.pipeline.report.lengths import render_lengths
from report_pages import render, rows_of


def test_quantiles_are_those_of_the_pairs_kept(scored_corpus: Path) -> None:
    html = render(render_lengths, scored_corpus)
    lengths = {"query": [3] * 15 + [4] * 2, "positive": sorted([*range(4, 13), *[40] * 8])}
    assert [row[1:] for row in rows_of(html, "Lengths")] == [
        [str(np.quantile(lengths[side], share, method="inverted_cdf")) for share in (0.05, 0.5, 0.95, 1)]
        for side in ("query", "positive")
    ]
