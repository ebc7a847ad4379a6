"""The weights of sources, against the same sums written out."""

from typing import Any

import numpy as np
import pytest
from conan_embedding.schemas.errors import RecipeError
from conan_embedding.schemas.pairs import CATEGORIES as CATEGORY_NAMES
from conan_embedding.schemas.training_settings import Mixing
from conan_embedding.trainer.data.mixing import PAPER_SHARES, Sources, check_mixing, source_weights


def sources_of(sizes: dict[str, int], **categories: str) -> Sources:
    """Build sources of these sizes, with the category news by default."""
    found: list[Any] = [categories.get(name, "news") for name in sizes]
    return Sources(list(sizes), found, list(sizes.values()), np.arange(sum(sizes.values())))


CATEGORIES = {"a": "news", "b": "news", "c": "web_page", "d": "instruction"}
SIZES = {"a": 900, "b": 100, "c": 400, "d": 1}


@pytest.mark.parametrize("power", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("factors", [{}, {"b": 3.0, "c": 0.5}, {"a": 0.0}])
@pytest.mark.parametrize("shares", [None, "paper", {"news": 2, "web_page": 1, "instruction": 0, "academic_paper": 5}])
def test_weights_of_sources(shares: Any, factors: dict[str, float], power: float) -> None:
    paper = {"news": 27.3, "web_page": 4.6, "instruction": 11.7}
    expected = {}
    for name, size in SIZES.items():
        within = sum(SIZES[other] ** power for other in SIZES if CATEGORIES[other] == CATEGORIES[name])
        share = (paper if shares == "paper" else shares)[CATEGORIES[name]] / within if shares else 1
        expected[name] = share * size**power * factors.get(name, 1)
    mixing = Mixing(power=power, categories=shares, sources=factors)
    weights = source_weights(sources_of(SIZES, **CATEGORIES), mixing)
    assert weights / weights.sum() == pytest.approx(np.array(list(expected.values())) / sum(expected.values()))


def test_the_papers_shares_are_of_all_categories() -> None:
    assert set(PAPER_SHARES) == set(CATEGORY_NAMES)
    assert sum(PAPER_SHARES.values()) == pytest.approx(100)


def test_a_mixing_that_does_not_fit_is_said() -> None:
    sources = sources_of({"weibo": 1, "xwlb": 1, "zhihu": 1}, weibo="social_media", zhihu="social_media")
    with pytest.raises(RecipeError, match=r"no share for social_media.*weibo, zhihu"):
        source_weights(sources, Mixing(categories={"news": 1}))
    with pytest.raises(RecipeError, match="negative"):
        source_weights(sources, Mixing(sources={"weibo": -1}))
    with pytest.raises(RecipeError, match="nothing to draw from weibo, xwlb, zhihu"):
        source_weights(sources, Mixing(sources={"weibo": 0, "zhihu": 0, "xwlb": 0}))
    pairs = sources_of({"stsb": 1})
    check_mixing(Mixing(sources={"weibo": 2, "stsb": 0.5}), sources, pairs)
    with pytest.raises(RecipeError, match=r"^mixing\.sources: no source of .* 'wiebo'; did you mean 'weibo'\?$"):
        check_mixing(Mixing(sources={"wiebo": 2}), sources, pairs)
    with pytest.raises(RecipeError, match="choose from stsb, weibo, xwlb, zhihu"):
        check_mixing(Mixing(sources={"q": 2}), sources, pairs)
