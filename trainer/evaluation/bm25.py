"""BM25, the baseline for retrieval metrics: it needs no model and only counts common words."""

import re
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

BM25 = "bm25"
"""The name under which BM25 appears among evaluated models."""

_HAN = "\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003134f"
_RUNS = re.compile(rf"([{_HAN}]+)|[^\W_{_HAN}]+")


def tokens(text: str) -> Iterator[str]:
    """Yield overlapping bigrams of Han characters, which need no word segmentation, and other words in lower case."""
    for run in _RUNS.finditer(text.lower()):
        found = run[0]
        if run[1]:
            yield from (found[start : start + 2] for start in range(max(1, len(found) - 1)))
        else:
            yield found


def bm25(passages: Sequence[str], queries: Sequence[str]) -> Callable[[int, int], Any]:
    """Return a function that scores all passages for queries start to stop: float32 [stop - start, passages].

    It is Lucene's variant with k1 = 1.5 and b = 0.75, the defaults of bm25s (arXiv 2407.03618).
    """
    import bm25s

    index = bm25s.BM25()
    # bm25s accepts no empty list. A passage without words gets "", a query without words gets " ", which never matches.
    index.index([list(tokens(passage)) or [""] for passage in passages], show_progress=False)
    asked = [list(tokens(query)) or [" "] for query in queries]
    return lambda start, stop: np.stack([index.get_scores(words) for words in asked[start:stop]])
