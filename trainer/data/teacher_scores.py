"""A judge's scores of passages for the training queries: taken from pools.duckdb, and mapped like the queries.

The file scores.arrow has a row for each query of queries.arrow. Passages are named by hashes of their texts, so that a
score is found wherever the text comes from: the positives, the data's own negatives, the pool, or one rebuilt in
training.
"""

from collections.abc import Iterator, Sequence
from hashlib import md5
from math import nan
from pathlib import Path

import duckdb
import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from ...pipeline.corpus.folder import fingerprint
from ...pipeline.corpus.pools import open_pools
from ...pipeline.corpus.sql import quote
from ...schemas.errors import CorpusError
from .mapped_table import ROWS, MappedTable, write_records
from .training_tables import MEMORY, SCORES, SCORES_FILE, THREADS


def find_judge(corpus: Path, judge: str | None) -> str:
    """Return the name of the one judge of the pools whose name begins with `judge`; None stands for any name.

    Raises:
        CorpusError: there is no such judge, or several.
    """
    with open_pools(corpus) as pools:
        try:
            rows = pools.sql("SELECT DISTINCT judge FROM judgements ORDER BY judge").fetchall()
        except duckdb.CatalogException:  # pools mined before there were judges
            rows = []
    names = [name for (name,) in rows]
    found = [name for name in names if name.startswith(judge or "")]
    if len(found) == 1:
        return str(found[0])
    if not names:
        raise CorpusError(f"{corpus}: finetune.distill has no scores to learn; run `conan judge {corpus}` first")
    problem = f"expected the beginning of one judge's name, found {judge!r}" if judge else "expected the judge's name"
    raise CorpusError(f"{corpus}: finetune.distill.judge: {problem}; the pools have been judged by {', '.join(names)}")


def fingerprint_scores(corpus: Path, judge: str | None) -> str:
    """Return a hash of all scores of a judge, which `find_judge` finds; raises CorpusError as it does."""
    name = find_judge(corpus, judge)
    with open_pools(corpus) as pools:
        content = "md5_number_lower(concat_ws(' ', query_id, passage_id, score))"
        sql = f"SELECT count(*), bit_xor({content}) FROM judgements WHERE judge = ?"
        return fingerprint(name, *pools.execute(sql, [name]).fetchall()[0])


def write_scores(folder: Path, corpus: Path, judge: str | None) -> None:
    """Write the scores that a judge gave to passages of the queries in a run's data folder.

    Raises:
        CorpusError: `find_judge` finds no such judge.
    """
    name = find_judge(corpus, judge)
    with open_pools(corpus) as pools:
        pools.execute(f"SET memory_limit = '{MEMORY}'; SET threads = {THREADS}")
        pools.execute(f"SET temp_directory = {quote(folder / 'spilled')}")
        pools.execute(
            "CREATE TEMP TABLE scored AS "
            "SELECT query_id, md5_number_lower(text) AS passage, score "
            "FROM judgements JOIN passages USING (passage_id) WHERE judge = ? AND isfinite(score) ORDER BY query_id",
            [name],
        )
        write_records(folder / SCORES_FILE, SCORES, _by_query(pools, MappedTable(folder / "queries.arrow")))


def teacher_scores(
    scores: MappedTable, rows: npt.NDArray[np.int64], positives: Sequence[str], negatives: Sequence[Sequence[str]]
) -> list[list[float]]:
    """Return the scores of each query's positive and then of its negatives, NaN for those not judged."""
    taken = scores.take(rows)
    known = [
        dict(zip(passages, own, strict=True))
        for passages, own in zip(taken["passages"].to_pylist(), taken["scores"].to_pylist(), strict=True)
    ]
    return [
        [own.get(_hash(text), nan) for text in (positive, *others)]
        for own, positive, others in zip(known, positives, negatives, strict=True)
    ]


def count_scored(scores: MappedTable) -> int:
    """Count the queries that have a score."""
    return sum(pc.sum(pc.greater(pc.list_value_length(batch["scores"]), 0)).as_py() for batch in scores)


def _by_query(pools: duckdb.DuckDBPyConnection, queries: MappedTable) -> Iterator[pa.RecordBatch]:
    """Yield the passages and scores of each query, in the order of the queries, which are sorted by id."""
    for batch in queries:
        pools.register("asked", pa.table({"query_id": batch["query_id"]}))
        yield from pools.sql(
            "SELECT coalesce(list(passage) FILTER (passage IS NOT NULL), []) AS passages, "
            "coalesce(list(score) FILTER (passage IS NOT NULL), []) AS scores "
            "FROM asked LEFT JOIN scored USING (query_id) GROUP BY query_id ORDER BY query_id"
        ).to_arrow_reader(ROWS)
        pools.unregister("asked")


def _hash(text: str) -> int:
    """Hash a text as DuckDB's md5_number_lower does."""
    return int.from_bytes(md5(text.encode(), usedforsecurity=False).digest()[8:], "little")
