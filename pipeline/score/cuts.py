"""The cuts of score: pairs below a cosine, in the lowest part of their source, or whose positive ranks low."""

from collections.abc import Mapping
from typing import Any

import polars as pl

from ...schemas.pairs import FORMATS
from ...schemas.settings import ScoreSettings

_MOST = 0.5
"""Chosen here: a cut that rejects more than this share of the scored pairs is warned of."""


def list_cutoffs(settings: ScoreSettings) -> dict[str, float | None]:
    """Return the cutoff of each format, None if it is not cut by cosine."""
    own: dict[Any, float] = settings.cutoffs
    return {name: own.get(name, settings.cutoff) for name in FORMATS}


def judge(scored: pl.DataFrame, settings: ScoreSettings, thresholds: Mapping[str, float], among: int) -> pl.DataFrame:
    """Add `reason` and `detail`, null for pairs that are kept.

    `thresholds` are the cosines of `settings.quantile` by source, empty if pairs are not cut by it; `among` is the
    number of passages that the ranks are among. A pair that several cuts reject has the reason of the first.
    """
    score, rank = pl.col("score"), pl.col("rank")
    cutoff = _look_up("format", list_cutoffs(settings))
    threshold = _look_up("source", thresholds)
    reasons = {
        "no_tokens": (pl.col("detail").is_not_null(), pl.col("detail")),
        "score_nan": (score.is_nan(), pl.lit("the cosine is NaN")),
        "score": (score < cutoff, pl.format("{} < {}", _round_below(score, cutoff), _shown(cutoff))),
        "score_quantile": (
            score < threshold,
            pl.format(
                f"{{}} < {{}}, quantile {settings.quantile} of the source",
                _round_below(score, threshold.round(3)),
                threshold.round(3),
            ),
        ),
        "score_rank": (
            rank > settings.rank if settings.rank is not None else pl.lit(False),
            pl.format(f"{{}} > {settings.rank} among {among} passages", rank),
        ),
    }
    first = pl.coalesce(pl.when(applies).then(pl.lit(name)) for name, (applies, _) in reasons.items())
    detail = pl.coalesce(pl.when(applies).then(shown) for applies, shown in reasons.values())
    return scored.with_columns(reason=first, detail=detail)


def _look_up(column: str, values: Mapping[str, float | None]) -> pl.Expr:
    """Return the value of each row by a column of names; null for names without one."""
    return pl.col(column).cast(pl.String).replace_strict(values, default=None, return_dtype=pl.Float32)


def _round_below(score: pl.Expr, limit: pl.Expr) -> pl.Expr:
    """Round to three decimals, or to as many as tell a float32 from the limit."""
    exact = score.cast(pl.Float64)
    return pl.when(score.round(3) < limit).then(exact.round(3)).otherwise(exact.round(9)).cast(pl.String)


def _shown(cutoff: pl.Expr) -> pl.Expr:
    """Write a cutoff as the recipe has it: 0.4, not its float32."""
    return cutoff.cast(pl.Float64).round(6).cast(pl.String).str.strip_suffix(".0")


def warn(settings: ScoreSettings, rejected: Mapping[str, int], scored: int) -> list[str]:
    """Say which cuts reject none of the scored pairs, or most of them: such a cut is for another model."""
    cutoffs = {name: value for name, value in list_cutoffs(settings).items() if value is not None and value > -1}
    cuts = {
        "score": "cutoff " + "/".join(f"{value:g}" for value in sorted(set(cutoffs.values()))) if cutoffs else "",
        "score_rank": f"rank {settings.rank}" if settings.rank is not None else "",
    }
    found = []
    for reason, cut in cuts.items():
        count = rejected.get(reason, 0)
        if cut and scored and (count == 0 or count > _MOST * scored):
            share = "none" if count == 0 else f"{count:,}"
            found.append(
                f"{cut} rejects {share} of {scored:,} pairs; compare the scores of pairs and of mismatched ones"
            )
    return found
