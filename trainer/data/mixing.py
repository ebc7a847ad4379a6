"""Mixing: how often each source of training records is drawn, relative to the others."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from ...schemas.errors import RecipeError
from ...schemas.pairs import Category
from ...schemas.registry import check_names
from ...schemas.training_settings import Mixing

PAPER_SHARES: dict[Category, float] = {
    "news": 27.3,
    "knowledge_base": 7.7,
    "social_media": 39.9,
    "web_page": 4.6,
    "academic_paper": 6.0,
    "community_qa": 1.6,
    "instruction": 11.7,
    "llm_generated": 1.2,
}
"""Per cent of the pre-training pairs by category (Conan-embedding, arXiv 2408.15710, Table 1)."""


@dataclass(frozen=True)
class Sources:
    """The sources of a table of records: name, category and number of records of each, and the rows of its records."""

    names: list[str]
    categories: list[Category]
    sizes: list[int]
    rows: npt.NDArray[np.int64]  # row numbers in the table: those of the first source, then of the second, …


def source_weights(sources: Sources, mixing: Mixing) -> npt.NDArray[np.float64]:
    """Return the weight by which each source is drawn, float64 [sources].

    The weight is the source's size to the power `mixing.power`. If `mixing.categories` gives shares, the weights within
    each category are scaled to sum to its share. The factors in `mixing.sources` multiply the result.

    Raises:
        RecipeError: a category of these sources has no share, a number is negative, or all weights are 0.
    """
    weights = np.asarray(sources.sizes, np.float64) ** mixing.power
    if mixing.categories is not None:
        shares = PAPER_SHARES if mixing.categories == "paper" else mixing.categories
        if missing := sorted(set(sources.categories) - set(shares)):
            held = [name for name, own in zip(sources.names, sources.categories, strict=True) if own == missing[0]]
            raise RecipeError(
                f"mixing.categories has no share for {missing[0]}, the category of {', '.join(held)}; add one, or 0 to "
                "leave it out"
            )
        _, category = np.unique(sources.categories, return_inverse=True)
        weights *= np.array([shares[own] for own in sources.categories]) / np.bincount(category, weights)[category]
    weights *= np.array([mixing.sources.get(name, 1.0) for name in sources.names])
    if (weights < 0).any():
        raise RecipeError("mixing: category shares and source factors can't be negative")
    if len(weights) and not weights.any():
        raise RecipeError(f"mixing leaves nothing to draw from {', '.join(sources.names)}: every source has weight 0")
    return weights


def check_mixing(mixing: Mixing, *drawn: Sources) -> None:
    """Raise RecipeError if `mixing.sources` names a source that has no records."""
    known = sorted({name for sources in drawn for name in sources.names})
    check_names("source of these records", mixing.sources, known, "mixing.sources")
