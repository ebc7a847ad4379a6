"""Mining methods: how similar a query's negatives may be, given its positives (NV-Retriever, arXiv 2407.15831 §4).

The recipe, the SQL view `short_pools`, the help text and `conan mine --show` take the methods from this table. A plugin
registers a method of its own like this:

    METHODS.register("topk-half", Method(0.5, lambda lowest, margin: margin * lowest, "margin * lowest_positive"))
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from ...schemas.errors import RecipeError
from ...schemas.registry import Registry
from ...schemas.settings import MineSettings

Integers = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Method:
    """A method: its default margin, and the ceiling below which the scores of a query's negatives must be.

    `ceiling` computes the ceilings from each query's lowest positive score, float32 [queries], and the margin. `sql` is
    the same as SQL over `lowest_positive` and `margin`; `formula` is the same for messages, formatted with their
    values. A method without a ceiling sets none of the three. With `skips_ranks`, the margin is the number of best
    ranks to skip.
    """

    margin: float
    ceiling: Callable[[Floats, np.float32], Floats] | None = None
    sql: str = "NULL"
    formula: str = ""
    skips_ranks: bool = False


METHODS: Registry[Method] = Registry("mining method")
"""The methods, with the margins that were best in NV-Retriever's ablation (§4); naive top-k ignores its margin."""
METHODS.register("topk", Method(1.0))
METHODS.register("topk-shifted", Method(10, skips_ranks=True))
METHODS.register("topk-abs", Method(0.7, lambda lowest, margin: np.full_like(lowest, margin), "margin"))
METHODS.register(
    "topk-marginpos",
    Method(
        0.05,
        lambda lowest, margin: lowest - margin,
        "lowest_positive - margin",
        "{lowest:.2f} - {margin:g}",
    ),
)
METHODS.register(
    "topk-percpos",
    Method(
        0.95,
        # The absolute value also puts the ceiling below a negative score.
        lambda lowest, margin: np.asarray(lowest - (1 - margin) * np.abs(lowest), np.float32),
        "lowest_positive - (1 - margin) * abs(lowest_positive)",
        "{margin:g} × {lowest:.2f}",
    ),
)


def find_method(settings: MineSettings) -> Method:
    """Return the method that the settings name.

    Raises:
        RecipeError: no such method, or the margin is a number of ranks to skip but is negative or not whole.
    """
    method = METHODS.find(settings.method, "mine.method")
    margin = settings.margin
    if method.skips_ranks and margin is not None and (margin < 0 or margin % 1):
        raise RecipeError(
            f"mine.margin: {settings.method} skips whole ranks: expected a whole number, 0 or more; found {margin:g}"
        )
    return method


def margin_of(settings: MineSettings) -> float:
    """Return the margin of the settings, by default the method's own. Raises RecipeError as in `find_method`."""
    method = find_method(settings)
    return method.margin if settings.margin is None else settings.margin


def skipped_ranks(settings: MineSettings) -> int:
    """Return the number of best ranks to skip. Raises RecipeError as in `find_method`."""
    return int(margin_of(settings)) if find_method(settings).skips_ranks else 0


def ceilings(owner: Integers, positive_scores: Floats, queries: int, settings: MineSettings) -> Floats:
    """Return the ceiling of each query, float32 [queries]; infinite if the method has none.

    Positive i has the score `positive_scores[i]` and belongs to query `owner[i]`. The lowest of a query's positives
    counts.
    """
    lowest = np.full(queries, np.inf, np.float32)
    np.minimum.at(lowest, owner, positive_scores)
    ceiling = find_method(settings).ceiling
    if ceiling is None:
        return np.full(queries, np.inf, np.float32)
    return ceiling(lowest, np.float32(margin_of(settings)))


def ceiling_sql() -> str:
    """Return the ceilings of all methods as one SQL expression over `method`, `margin` and `lowest_positive`."""
    cases = " ".join(f"WHEN '{name}' THEN {method.sql}" for name, method in METHODS.items() if method.ceiling)
    return f"CASE method {cases} END"
