"""The store of judgements, CORPUS/judgements: what judges have said about pairs of a query and a passage.

Files are only ever added. A row has the hashes of its texts in place of ids, so it holds whatever is mined, converted
or ingested again. To take over the judgements of another corpus, copy its files into the folder.
"""

from datetime import UTC, datetime
from pathlib import Path
from uuid import uuid4

import duckdb
import polars as pl

from .atomic import replacing
from .sql import quote, scan_shards
from .uris import fetch

FOLDER = "judgements"

_COLUMNS = "query_hash, passage_hash, judge, score, verdict, created_at"
_TYPES = "VARCHAR, VARCHAR, VARCHAR, FLOAT, VARCHAR, TIMESTAMP"


def list_parts(corpus: Path) -> list[Path]:
    """List the files of the store."""
    fetch(corpus, FOLDER)
    return sorted((corpus / FOLDER).glob("*.parquet"))


def scan(corpus: Path) -> str:
    """Build a SELECT over the store: the hashes (MD5) of the texts, the judge, its score and verdict, and the time.

    If a judge has judged the same texts twice, as a person may, its last judgement counts.
    """
    parts = list_parts(corpus)
    if not parts:
        empty = ", ".join(
            f"CAST(NULL AS {kind}) AS {name}"
            for name, kind in zip(_COLUMNS.split(", "), _TYPES.split(", "), strict=True)
        )
        return f"SELECT {empty} WHERE false"
    return (
        f"SELECT {_COLUMNS} FROM {scan_shards(part.resolve() for part in parts)} "
        "QUALIFY row_number() OVER (PARTITION BY query_hash, passage_hash, judge ORDER BY created_at DESC) = 1"
    )


def name_part(corpus: Path) -> Path:
    """Return the path of a file to add."""
    return corpus / FOLDER / f"{uuid4().hex}.parquet"


def add(corpus: Path, judge: str, pairs: pl.DataFrame) -> None:
    """Add what a judge says about pairs, columns `query, passage, score` and, if it gives verdicts, `verdict`."""
    write_part(name_part(corpus), judge, pairs)


def write_part(file: Path, judge: str, pairs: pl.DataFrame) -> None:
    """Write a file of the store, as in `add`."""
    with duckdb.connect(":memory:") as connection:
        connection.register("pairs", pairs.to_arrow())
        write_from(connection, file, judge, "pairs")


def write_from(connection: duckdb.DuckDBPyConnection, file: Path, judge: str, pairs: str) -> None:
    """Write the rows of an SQL table, as in `add`; they are not all loaded into memory."""
    verdict = "verdict" if "verdict" in connection.table(pairs).columns else "CAST(NULL AS VARCHAR)"
    now = datetime.now(UTC).replace(tzinfo=None)
    copy_rows(
        connection,
        file,
        f"SELECT md5(query) AS query_hash, md5(passage) AS passage_hash, {quote(judge)} AS judge, "
        f"CAST(score AS FLOAT) AS score, {verdict} AS verdict, TIMESTAMP {quote(str(now))} AS created_at "
        f"FROM {pairs} ORDER BY ALL",
    )


def copy_rows(connection: duckdb.DuckDBPyConnection, file: Path, select: str) -> None:
    """Write the rows of a SELECT, in the columns of the store, as a file of it."""
    file.parent.mkdir(parents=True, exist_ok=True)
    with replacing(file) as temporary:
        connection.execute(f"COPY ({select}) TO {quote(temporary)} (FORMAT parquet, COMPRESSION zstd)")


def fill(connection: duckdb.DuckDBPyConnection, corpus: Path) -> None:
    """Fill the table `judgements` of opened pools from the store."""
    connection.execute(
        "DELETE FROM judgements; "
        "INSERT INTO judgements SELECT query_id, passage_id, judge, score, verdict, created_at "
        f"FROM ({scan(corpus)}) AS stored "
        "JOIN mined_queries AS queries ON query_hash = md5(queries.text) "
        "JOIN passages ON passage_hash = md5(passages.text) "
        "ORDER BY query_id, passage_id, judge"
    )
