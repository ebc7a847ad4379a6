"""Mining methods: what a query's positives say of how similar its negatives may be (NV-Retriever, arXiv 2407.15831 §4).

The recipe, its SQL view `short_pools`, the help text and `conan mine --show` take the methods from this table. Register
yours in a plugin:

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
    """A method: its default margin, and the ceiling that the score of a query's negatives stays below.

    `ceiling` takes the score of each query's lowest positive, float32 [queries], and the margin. `sql` says the same
    in SQL over `lowest_positive` and `margin`, and `formula` shows it with their values. A method without a ceiling has
    none of the three. With `skips_ranks` the margin is a number of best ranks that are left out.
    """

    margin: float
    ceiling: Callable[[Floats, np.float32], Floats] | None = None
    sql: str = "NULL"
    formula: str = ""
    skips_ranks: bool = False


METHODS: Registry[Method] = Registry("mining method")
"""With the margins that NV-Retriever's ablation (§4) found best; naive top-k has none."""
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
        # Below a negative score by the same share.
        lambda lowest, margin: np.asarray(lowest - (1 - margin) * np.abs(lowest), np.float32),
        "lowest_positive - (1 - margin) * abs(lowest_positive)",
        "{margin:g} × {lowest:.2f}",
    ),
)


def find_method(settings: MineSettings) -> Method:
    """The method of the settings.

    Raises:
        RecipeError: no such method, or a margin that skips something else than whole ranks.
    """
    method = METHODS.find(settings.method, "mine.method")
    margin = settings.margin
    if method.skips_ranks and margin is not None and (margin < 0 or margin % 1):
        raise RecipeError(f"mine.margin: {settings.method} leaves out whole ranks, 0 or more of them; found {margin:g}")
    return method


def margin_of(settings: MineSettings) -> float:
    """The margin that the settings ask for, else the method's own. Raises RecipeError as `find_method`."""
    method = find_method(settings)
    return method.margin if settings.margin is None else settings.margin


def skipped_ranks(settings: MineSettings) -> int:
    """How many of the best ranks are left out. Raises RecipeError as `find_method`."""
    return int(margin_of(settings)) if find_method(settings).skips_ranks else 0


def ceilings(owner: Integers, positive_scores: Floats, queries: int, settings: MineSettings) -> Floats:
    """The score that a negative of each query stays below, float32 [queries]; infinite without a ceiling.

    Positive i has the score `positive_scores[i]` and belongs to query `owner[i]`. A query of several positives is held
    to the lowest of them.
    """
    lowest = np.full(queries, np.inf, np.float32)
    np.minimum.at(lowest, owner, positive_scores)
    ceiling = find_method(settings).ceiling
    if ceiling is None:
        return np.full(queries, np.inf, np.float32)
    return ceiling(lowest, np.float32(margin_of(settings)))


def ceiling_sql() -> str:
    """The ceiling of every method as one SQL expression over `method`, `margin` and `lowest_positive`."""
    cases = " ".join(f"WHEN '{name}' THEN {method.sql}" for name, method in METHODS.items() if method.ceiling)
    return f"CASE method {cases} END"
