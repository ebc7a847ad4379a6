"""The pairs of a query and a passage that are judged, and their texts."""

from pathlib import Path

import polars as pl

from ...schemas.judge_settings import JudgeSettings
from ..corpus.pools import open_pools


def asked_pairs(settings: JudgeSettings) -> str:
    """Build the SQL for the pairs that are judged: the positives, and the first candidates of each query."""
    return (
        "SELECT query_id, passage_id FROM mined_positives "
        f"UNION SELECT query_id, unnest(passage_ids[:{settings.candidates}]) FROM mined_candidates"
    )


def count_rows(corpus: Path, rows: str) -> int:
    """Count the rows of a FROM clause over the pools."""
    with open_pools(corpus) as pools:
        return int(pools.sql(f"SELECT count(*) {rows}").fetchall()[0][0])


def find_missing(corpus: Path, settings: JudgeSettings, judge: str) -> pl.DataFrame:
    """List the pairs that a judge has not judged: `query_id, passage_id`, in this order."""
    with open_pools(corpus) as pools:
        found: pl.DataFrame = pools.sql(
            f"SELECT query_id, passage_id FROM ({asked_pairs(settings)}) "
            "ANTI JOIN (FROM judgements WHERE judge = ?) USING (query_id, passage_id) ORDER BY ALL",
            params=[judge],
        ).pl()
        return found


def read_texts(corpus: Path, pairs: pl.DataFrame) -> pl.DataFrame:
    """Return the texts of pairs, in their order: `query, passage`."""
    with open_pools(corpus) as pools:
        pools.register("pairs", pairs.with_row_index("place").to_arrow())
        texts: pl.DataFrame = pools.sql(
            "SELECT queries.text AS query, passages.text AS passage FROM pairs "
            "JOIN mined_queries AS queries USING (query_id) JOIN passages USING (passage_id) ORDER BY place"
        ).pl()
        return texts
