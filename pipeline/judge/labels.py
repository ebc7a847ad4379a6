"""Grades that a person gives: undecided pairs in the terminal, one key each."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import polars as pl

from ...schemas.judge_settings import JudgeSettings
from ..corpus.judgements import add
from ..corpus.pools import open_pools
from .grades import PERSON, VERDICTS
from .language_model import in_band
from .pairs import asked_pairs

SKIP = "s"
"""The key that leaves a pair for another time. Any key that is neither this nor a grade ends the labelling."""

Shown = dict[str, Any]
"""A pair to label: `query, passage, positives, score`."""


def label(corpus: Path, settings: JudgeSettings, scorer: str, number: int, ask: Callable[[Shown], str]) -> int:
    """Show up to `number` undecided pairs that no person has labelled; add each grade to the store when it is given.

    Pairs are undecided if their score is in the band of `judge.llm`; without a band, all judged pairs may be shown.
    They come in the order of a hash, so that labels are a sample of them. `ask` shows a pair and returns a key. Returns
    the number of labels.
    """
    labels = 0
    for pair in _find_unlabelled(corpus, settings, scorer, number).iter_rows(named=True):
        key = ask(pair)
        if key == SKIP:
            continue
        if key not in map(str, range(len(VERDICTS))):
            break
        row = {"query": pair["query"], "passage": pair["passage"], "score": float(key), "verdict": VERDICTS[int(key)]}
        add(corpus, PERSON, pl.DataFrame([row]))
        labels += 1
    return labels


def _find_unlabelled(corpus: Path, settings: JudgeSettings, scorer: str, number: int) -> pl.DataFrame:
    undecided, params = in_band(settings.llm.band if settings.llm else None, scorer)
    with open_pools(corpus) as pools:
        found: pl.DataFrame = pools.sql(
            "WITH known AS (SELECT query_id, list(text ORDER BY score DESC, text) AS positives FROM mined_positives "
            "JOIN passages USING (passage_id) GROUP BY query_id), "
            "scored AS (SELECT query_id, passage_id, score FROM judgements WHERE judge = $scored) "
            "SELECT q.text AS query, p.text AS passage, positives, scored.score "
            f"FROM ({asked_pairs(settings)}) {undecided}"
            "ANTI JOIN (FROM judgements WHERE judge = $person) USING (query_id, passage_id) "
            "LEFT JOIN scored USING (query_id, passage_id) LEFT JOIN known USING (query_id) "
            "JOIN mined_queries q USING (query_id) JOIN passages p USING (passage_id) "
            f"ORDER BY md5(q.text || chr(31) || p.text) LIMIT {number}",
            params={**params, "scored": scorer, "person": PERSON},
        ).pl()
        return found
