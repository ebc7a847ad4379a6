"""conan sample: cut a small corpus out of a finished one; every later stage runs on it."""

import os
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path

import duckdb
import numpy as np
import numpy.typing as npt
import polars as pl
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from ..schemas.errors import CorpusError
from ..schemas.outcomes import Summary
from .corpus.atomic import clear_temporaries, commit
from .corpus.folder import FOLDERS, HELD_OUT, HOLDOUT, committed, fingerprint, read_footer, rejects, shards
from .corpus.judgements import FOLDER, copy_rows, list_parts, scan
from .corpus.pools import FILE as POOLS_FILE
from .corpus.pools import TABLES, check_version, has_pools, open_pools, write_pools
from .corpus.shard_writer import ShardWriter
from .corpus.sql import quote, scan_shards
from .engine.stage import summarise
from .mine.methods import ceiling_sql

VERSION = 1
_SETS = ("evaluation", HOLDOUT)
"""The folders of evaluation sets."""
_BATCH = 2048
"""Rows, with their texts, that are in memory at a time."""

_REJECT = "md5(concat_ws(chr(31), source, file, line, reason, record))"
"""Identifies a reject of ingest, which has no pair_id."""


def cut(corpus: Path, out: Path, rows: int, seed: int = 0) -> list[Summary]:
    """Copy about `rows` of the pairs that ingest kept, with their results in every stage; return a summary per stage.

    - ingest: every source and format gets its share of the pairs, at least one. A pair that ingest found twice is taken
      twice, so there may be a few more. The same share of the rejects is taken, by source, format and reason.
    - Later stages: what they kept and rejected of these pairs. A training record lists only those of its pairs that
      were taken. A duplicate's survivor may be missing, since results are copied, not computed again.
    - pools.duckdb: the queries of the training records taken, and the passages that their pools refer to; of the
      judgements those of these queries and passages.
    - Evaluation sets: at most `rows` rows each, and the list of questions that are held out of the sources. Trained
      models are left out.

    The choice depends only on pair_ids and the seed, not on how the corpus is divided into shards. Memory grows with
    `rows`, not with the corpus. `out` appears complete or not at all.

    Raises:
        CorpusError: `out` is not empty, ingest was not run, or a stage was interrupted.
        ValueError: `rows` is below 1.
    """
    if rows < 1:
        raise ValueError(f"rows must be 1 or more, got {rows}")
    if out.exists() and not (out.is_dir() and not any(out.iterdir())):
        raise CorpusError(f"{out} already exists; name a new folder, or remove this one")
    inputs = {folder: shards(corpus, folder) for folder in FOLDERS if folder == "ingest" or committed(corpus, folder)}
    sets = [(folder, shard) for folder in _SETS if committed(corpus, folder) for shard in shards(corpus, folder)]
    clear_temporaries(out.parent, out.name)
    temporary = out.with_name(f".{out.name}.{os.getpid()}.tmp")
    try:
        spill = temporary / ".spill"
        with duckdb.connect(":memory:", config={"temp_directory": str(spill)}) as connection:
            connection.execute("SET enable_progress_bar = false")
            for folder, shard in sets:
                _pick(connection, [shard], ["source", "task = 'passage'"], rows, seed)
                _write(connection, folder, [shard], temporary, (rows, seed))
            _pick(connection, inputs["ingest"], ["source", "format"], rows, seed)
            for folder, files in inputs.items():
                _write(connection, folder, files, temporary, (rows, seed))
            written = dict.fromkeys([*inputs, *(folder for folder, _ in sets)])
            summaries = [summarise(temporary, folder) for folder in written]
            records = [shard for kind in ("retrieval", "pretrain") for shard in committed(temporary, f"convert/{kind}")]
            if records and has_pools(corpus):
                summaries.append(_cut_pools(connection, corpus, records, temporary))
        if (corpus / "recipe.yaml").exists():
            shutil.copyfile(corpus / "recipe.yaml", temporary / "recipe.yaml")
        if (corpus / HELD_OUT).exists():
            (temporary / HELD_OUT).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(corpus / HELD_OUT, temporary / HELD_OUT)
        shutil.rmtree(spill, ignore_errors=True)
        commit(temporary, out)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return summaries


def allotted(sizes: npt.NDArray[np.int64], rows: int) -> npt.NDArray[np.int64]:
    """Return how many rows to take of each stratum, int64 [strata].

    One of each, and the rest in proportion to size, by largest remainder; all if there are no more than `rows`.
    """
    total, strata = int(sizes.sum()), len(sizes)
    if rows >= total:
        return sizes
    left = max(0, rows - strata)
    shares, remainders = np.divmod((sizes - 1) * left, max(1, total - strata))
    shares[np.argsort(-remainders, kind="stable")[: left - int(shares.sum())]] += 1
    return 1 + shares


def _pick(
    connection: duckdb.DuckDBPyConnection, files: Sequence[Path], strata: Sequence[str], rows: int, seed: int
) -> None:
    """Create tables `picked` and `picked_rejects` (column `identity`): the pairs and rejects of ingest to take."""
    kept = _sizes(connection, files, strata)
    thrown_files, thrown_strata = [rejects(file) for file in files], ["source", "format", "reason"]
    thrown = _sizes(connection, thrown_files, thrown_strata)
    total = int(kept["size"].sum())
    thrown_rows = round(int(thrown["size"].sum()) * min(1.0, rows / max(1, total)))
    for table, picked in (
        ("picked", _lowest(connection, files, strata, "pair_id", kept, rows, seed)),
        ("picked_rejects", _lowest(connection, thrown_files, thrown_strata, _REJECT, thrown, thrown_rows, seed)),
    ):
        connection.register("found", picked.to_arrow())
        connection.execute(f"CREATE OR REPLACE TEMP TABLE {table} AS SELECT DISTINCT identity FROM found")
        connection.unregister("found")


def _sizes(connection: duckdb.DuckDBPyConnection, files: Sequence[Path], strata: Sequence[str]) -> pl.DataFrame:
    """Count the rows of each stratum: `stratum, size`, sorted by stratum."""
    sizes: pl.DataFrame = connection.sql(
        f"SELECT {_stratum(strata)} AS stratum, count(*) AS size FROM {scan_shards(files)} GROUP BY ALL ORDER BY ALL"
    ).pl()
    return sizes


def _stratum(strata: Sequence[str]) -> str:
    return f"concat_ws(chr(31), {', '.join(strata)})"


def _lowest(
    connection: duckdb.DuckDBPyConnection,
    files: Sequence[Path],
    strata: Sequence[str],
    identity: str,
    sizes: pl.DataFrame,
    rows: int,
    seed: int,
) -> pl.DataFrame:
    """Return the rows of each stratum with the lowest hashes of seed and identity: `stratum, place, identity, copies`.

    Works file by file, so that only these rows and one file's are in memory.
    """
    quotas = sizes.select("stratum", quota=pl.Series(allotted(sizes["size"].to_numpy().astype(np.int64), rows)))
    picked: pl.DataFrame | None = None
    for file in files:
        found = connection.sql(
            f"SELECT {_stratum(strata)} AS stratum, md5(concat_ws(chr(31), ?, {identity})) AS place, "
            f"{identity} AS identity, CAST(count(*) AS BIGINT) AS copies FROM {scan_shards([file])} "
            "GROUP BY ALL",
            params=[str(seed)],
        ).pl()
        picked = (
            (found if picked is None else pl.concat([picked, found]))
            .group_by("stratum", "place", "identity")
            .agg(pl.col("copies").sum())
            .join(quotas, on="stratum")
            .sort("place", "identity")
            .filter((pl.col("copies").cum_sum() - pl.col("copies")).over("stratum") < pl.col("quota"))
            .drop("quota")
        )
    assert picked is not None
    return picked


_PICKED_PAIRS = "SELECT * FROM {shards} SEMI JOIN picked ON pair_id = identity"
_PICKED_REJECTS = f"SELECT * FROM {{shards}} SEMI JOIN picked_rejects ON {_REJECT} = identity"

_PICKED_RECORDS = """
WITH known AS (
    SELECT filename, file_row_number, list(place ORDER BY place) AS places
    FROM (SELECT filename, file_row_number, unnest(pair_ids) AS pair_id, generate_subscripts(pair_ids, 1) AS place
          FROM {shards}) SEMI JOIN picked ON pair_id = identity
    GROUP BY ALL)
SELECT * EXCLUDE (filename, file_row_number, places) REPLACE ({columns})
FROM {shards} JOIN known USING (filename, file_row_number)
"""
_OWN_PAIRS = "list_select(pair_ids, places) AS pair_ids"
# Retrieval records have one positive per pair. Those from classes have a set number, texts of other pairs: all stay.
_OWN_POSITIVES = ", ".join(
    f"CASE WHEN len({name}) = len(pair_ids) THEN list_select({name}, places) ELSE {name} END AS {name}"
    for name in ("positives", "cluster_ids")
)


def _write(
    connection: duckdb.DuckDBPyConnection, folder: str, files: Sequence[Path], out: Path, decisive: tuple[int, int]
) -> None:
    """Write what was picked of a folder's shards and their rejects: one shard per source, sorted by pair_id."""
    if folder.startswith("convert/"):
        columns = f"{_OWN_PAIRS}, {_OWN_POSITIVES}" if folder == "convert/retrieval" else _OWN_PAIRS
        numbered = scan_shards(files, filename=True, file_row_number=True)
        kept = _PICKED_RECORDS.format(shards=numbered, columns=columns)
    else:
        kept = _PICKED_PAIRS.format(shards=scan_shards(files))
    thrown_files = [rejects(file) for file in files]
    thrown = _PICKED_REJECTS if folder in ("ingest", *_SETS) else _PICKED_PAIRS
    for table, sql in (("kept", kept), ("thrown", thrown.format(shards=scan_shards(thrown_files)))):
        connection.execute(f"CREATE OR REPLACE TEMP TABLE {table} AS {sql}")
    sources = connection.sql("SELECT source FROM kept UNION SELECT source FROM thrown ORDER BY source").fetchall()
    footer = read_footer(files[0])
    content = sorted(read_footer(file).content for file in files)
    for number, (source,) in enumerate(sources, start=len(committed(out, folder))):
        with ShardWriter(
            out / folder / f"part-{number:05d}.parquet",
            pq.read_schema(files[0]).remove_metadata(),
            pq.read_schema(thrown_files[0]).remove_metadata(),
            stage=footer.stage,
            version=footer.version,
            fingerprint=fingerprint("sample", VERSION, decisive, folder, source, content),
        ) as writer:
            writer.notes = {"sample": True}
            for table in _batches(connection, "kept", source):
                pairs = len(pc.list_flatten(table["pair_ids"])) if "pair_ids" in table.column_names else len(table)
                writer.received(pairs)
                writer.keep(table, rows=pairs)
            for table in _batches(connection, "thrown", source):
                writer.received(len(table))
                writer.reject(table)


def _batches(connection: duckdb.DuckDBPyConnection, table: str, source: str) -> Iterator[pa.Table]:
    rows = connection.sql(f"SELECT * FROM {table} WHERE source = ? ORDER BY ALL", params=[source])
    return (pa.Table.from_batches([batch]) for batch in rows.to_arrow_reader(_BATCH))


def _cut_pools(connection: duckdb.DuckDBPyConnection, corpus: Path, records: Sequence[Path], out: Path) -> Summary:
    """Write the pools for the queries in `records`, with the passages that these refer to, both renumbered from 0.

    Results that a training run wrote into the pools are left out.
    """
    with open_pools(corpus) as pools:
        check_version(pools, corpus)
    connection.execute(f"ATTACH {quote(corpus / POOLS_FILE)} AS pools (READ_ONLY)")
    connection.execute(
        f"""
        CREATE TEMP TABLE asked AS
        SELECT query_id AS old, * REPLACE (row_number() OVER (ORDER BY query_id) - 1 AS query_id)
        FROM pools.mined_queries
        SEMI JOIN {scan_shards(records, union_by_name=True)} AS records ON text = records.query
        """
    )
    connection.execute(
        """
        CREATE TEMP TABLE ranked AS
        SELECT query_id AS old_query, unnest(passage_ids) AS old, generate_subscripts(passage_ids, 1) AS place
        FROM pools.mined_candidates SEMI JOIN asked ON mined_candidates.query_id = asked.old;
        CREATE TEMP TABLE told AS
        SELECT passage_id AS old, * REPLACE (row_number() OVER (ORDER BY passage_id) - 1 AS passage_id)
        FROM pools.passages SEMI JOIN (
            SELECT old FROM ranked UNION
            SELECT passage_id FROM pools.mined_positives SEMI JOIN asked ON mined_positives.query_id = asked.old
        ) AS named ON passage_id = named.old;
        CREATE TEMP TABLE renamed AS
        SELECT old_query, list(passage_id ORDER BY place) AS passage_ids FROM ranked JOIN told USING (old) GROUP BY ALL
        """
    )
    selects = {
        "runs": "FROM pools.runs",
        "passages": "SELECT * EXCLUDE (old) FROM told ORDER BY passage_id",
        "queries": "SELECT * EXCLUDE (old) FROM asked ORDER BY query_id",
        "positives": "SELECT asked.query_id, told.passage_id, score FROM pools.mined_positives AS positives "
        "JOIN asked ON positives.query_id = asked.old JOIN told ON positives.passage_id = told.old ORDER BY ALL",
        "candidates": "SELECT asked.query_id, run_id, coalesce(renamed.passage_ids, []) AS passage_ids, scores "
        "FROM pools.mined_candidates AS candidates JOIN asked ON candidates.query_id = asked.old "
        "LEFT JOIN renamed ON renamed.old_query = asked.old ORDER BY asked.query_id",
    }
    tables = {name: connection.sql(selects[name]).to_arrow_table() for name in TABLES}
    if parts := list_parts(corpus):
        judged = (
            f"FROM ({scan(corpus)}) SEMI JOIN asked ON query_hash = md5(asked.text) "
            "SEMI JOIN told ON passage_hash = md5(told.text) ORDER BY ALL"
        )
        name = fingerprint("sample", [part.name for part in parts], judged)
        copy_rows(connection, out / FOLDER / f"{name}.parquet", judged)
    write_pools(out, tables, ceiling_sql())
    queries = tables["queries"].num_rows
    return Summary("pools", queries, queries, notes={"passages": tables["passages"].num_rows})
