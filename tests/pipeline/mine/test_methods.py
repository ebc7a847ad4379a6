"""Every method's ceiling, as a function and as SQL, against values computed by hand; bad margins are refused."""

import duckdb
import numpy as np
import pytest
from conan_embedding.pipeline.mine.methods import METHODS, ceiling_sql, ceilings, margin_of, skipped_ranks
from conan_embedding.schemas.errors import RecipeError
from conan_embedding.schemas.settings import MineSettings

LOWEST = [0.8, -0.2]
BY_HAND = {
    "topk": [np.inf, np.inf],
    "topk-shifted": [np.inf, np.inf],
    "topk-abs": [0.7, 0.7],
    "topk-marginpos": [0.75, -0.25],
    "topk-percpos": [0.76, -0.21],
}


@pytest.mark.parametrize("method", METHODS)
def test_a_ceiling_by_hand_and_in_sql(method: str) -> None:
    owner, scores = np.array([0, 0, 1]), np.array([0.9, 0.8, -0.2], np.float32)
    found = ceilings(owner, scores, 2, MineSettings(method=method))
    assert found.dtype == np.float32
    assert found.tolist() == pytest.approx(BY_HAND[method], abs=1e-6)
    values = ", ".join(f"('{method}', {METHODS[method].margin}, {lowest})" for lowest in LOWEST)
    sql = f"SELECT {ceiling_sql()} FROM (VALUES {values}) AS rows(method, margin, lowest_positive)"
    in_sql = [np.inf if value is None else float(value) for (value,) in duckdb.sql(sql).fetchall()]
    assert in_sql == pytest.approx(BY_HAND[method])


def test_margins() -> None:
    assert margin_of(MineSettings()) == 0.95
    assert margin_of(MineSettings(margin=0.9)) == 0.9
    assert skipped_ranks(MineSettings()) == 0
    assert skipped_ranks(MineSettings(method="topk-shifted")) == 10
    assert skipped_ranks(MineSettings(method="topk-shifted", margin=3)) == 3
    for margin in (-1, 2.5):
        with pytest.raises(RecipeError, match="whole ranks"):
            skipped_ranks(MineSettings(method="topk-shifted", margin=margin))


def test_an_unknown_method_names_the_nearest() -> None:
    with pytest.raises(RecipeError, match=r"mine\.method: no mining method is called 'topk-absolute'.*'topk-abs'"):
        margin_of(MineSettings(method="topk-absolute"))


def test_ceilings() -> None:
    owner = np.array([0, 0, 1])
    scores = np.array([0.8, 0.6, -0.2], np.float32)
    for method, expected in (
        ("topk", [np.inf, np.inf]),
        ("topk-shifted", [np.inf, np.inf]),
        ("topk-abs", [0.7, 0.7]),
        ("topk-marginpos", [0.55, -0.25]),
        ("topk-percpos", [0.57, -0.21]),
    ):
        assert np.allclose(ceilings(owner, scores, 2, MineSettings(method=method)), expected)
    assert np.allclose(ceilings(owner, scores, 2, MineSettings(margin=0.5)), [0.3, -0.3])
