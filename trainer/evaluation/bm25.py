"""BM25, what retrieval metrics are to be compared with: no model, only words in common."""

import re
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

_HAN = "\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003134f"
_RUNS = re.compile(rf"([{_HAN}]+)|[^\W_{_HAN}]+")


def tokens(text: str) -> Iterator[str]:
    """Overlapping pairs of Han characters, which need no dictionary of words; other words in lower case."""
    for run in _RUNS.finditer(text.lower()):
        found = run[0]
        if run[1]:
            yield from (found[start : start + 2] for start in range(max(1, len(found) - 1)))
        else:
            yield found


def bm25(passages: Sequence[str], queries: Sequence[str]) -> Callable[[int, int], Any]:
    """A function that scores the passages for queries start to stop: float32 [stop - start, passages].

    Lucene's form with k1 = 1.5, b = 0.75: the defaults of bm25s (arXiv 2407.03618).
    """
    import bm25s

    index = bm25s.BM25()
    # bm25s takes no empty list: "" stands in a passage without words, " ", which is in none, in such a query.
    index.index([list(tokens(passage)) or [""] for passage in passages], show_progress=False)
    asked = [list(tokens(query)) or [" "] for query in queries]
    return lambda start, stop: np.stack([index.get_scores(words) for words in asked[start:stop]])
