"""SQL views over the shards of a corpus.

Every data stage rebuilds them in catalog.duckdb; `conan sql` creates the same views in a temporary file.
"""

import re
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import duckdb
import pyarrow as pa

from ...schemas.errors import ConanError, CorpusError
from ...schemas.pairs import CLUSTERED, PAIR, REJECTED_AT_INGEST, SCORED, rejected
from ...schemas.results import RESULT
from ...schemas.synthesis import SYNTHESIZED
from ...schemas.training import TRAINING
from .atomic import replacing
from .folder import FOLDERS, STAGES, committed, read_footer, rejects
from .pools import FILE as POOLS_FILE
from .pools import has_pools
from .sql import quote, scan_shards
from .synthesis import ANSWERS
from .uris import fetch, has_files, is_mirror, name_uris

FILE = "catalog.duckdb"
RESULTS = "evaluation/results"
"""Where `conan evaluate` saves its results per query: one file per model."""

_PARTS = (*FOLDERS, ANSWERS, RESULTS, POOLS_FILE)
"""The parts of a corpus that views are made of."""

_SCHEMAS = {"ingest": PAIR, "filter": PAIR, "dedup": CLUSTERED, "score": SCORED} | {
    f"convert/{kind}": schema for kind, schema in TRAINING.items()
}
_REJECTED_SCHEMAS = {
    "ingest": REJECTED_AT_INGEST,
    "filter": rejected(PAIR),
    "dedup": rejected(PAIR),
    "score": rejected(SCORED),
} | {f"convert/{kind}": rejected(SCORED) for kind in TRAINING}  # convert rejects scored pairs


class QueryError(ConanError):
    """DuckDB rejected a query over a corpus."""


def rebuild(corpus: Path) -> Path:
    """Rebuild the catalog and return its path. The caller must hold the corpus lock (see lock.py).

    The catalog holds only views, so it may be deleted at any time.

    Raises:
        CorpusError: `corpus` is not a folder, or it holds a shard that Conan did not write.
    """
    statements = _statements(corpus)
    with replacing(corpus / FILE) as temporary:
        _write(temporary, statements)
    return corpus / FILE


def _write(file: Path, statements: list[str]) -> Path:
    with duckdb.connect(str(file)) as connection:
        connection.execute("SET enable_progress_bar = false")
        connection.execute("BEGIN")  # one commit instead of one per view
        for statement in statements:
            connection.execute(statement)
        connection.execute("COMMIT")
        connection.execute("CHECKPOINT")  # closing does this too, but without an error if the disk is full
    return file


def query(corpus: Path, sql: str, limit: int | None = None) -> pa.Table:
    """Run an SQL query over the views of a corpus and, as `pools.…`, over its negative pools.

    At most `limit` rows are returned. A statement without a result, such as SET, returns a table without columns.

    Raises:
        QueryError: DuckDB rejected the SQL; the message is DuckDB's.
        CorpusError: `corpus` is not a folder, or it holds a shard that Conan did not write.
    """
    with opened(corpus, _find_asked(corpus, sql)) as ask:
        return ask(sql, limit)


def _find_asked(corpus: Path, sql: str) -> Sequence[str]:
    """Return the parts of a corpus that a query may ask about. Those of a corpus at a URI have to be fetched first."""
    words = set(re.findall(r"\w+", sql.lower()))
    if not is_mirror(corpus) or words & {"convert", "rejected", "rules", "funnel", "runs", "query_table"}:
        return _PARTS
    views = {folder: {name := folder.rpartition("/")[2], f"{name}_rejected"} for folder in FOLDERS}
    views |= {ANSWERS: {"synthesis", "synthesis_funnel"}, RESULTS: {"results"}, POOLS_FILE: {"pools"}}
    return [part for part, names in views.items() if names & words]


@contextmanager
def opened(corpus: Path, parts: Sequence[str] = _PARTS) -> Iterator[Callable[..., pa.Table]]:
    """Open the views of a corpus for several queries; yields `query` without its first argument.

    `parts` are those that are asked about: the views of all others are empty.
    The views are created in a temporary folder, so a query needs no write access to the corpus and never blocks a
    stage.
    """
    with tempfile.TemporaryDirectory() as folder:
        catalog = _write(Path(folder) / FILE, _statements(corpus, parts))
        with duckdb.connect(str(catalog), read_only=True) as connection:
            connection.execute("SET enable_progress_bar = false")
            if POOLS_FILE in parts and has_pools(corpus):
                connection.execute(f"ATTACH {quote((corpus / POOLS_FILE).resolve())} AS pools (READ_ONLY)")

            def ask(sql: str, limit: int | None = None) -> pa.Table:
                try:
                    result = connection.sql(sql)
                    # `select("*")` renames duplicate columns (a, a_1), because an Arrow table needs distinct names.
                    return pa.table({}) if result is None else _limited(result.select("*"), limit).to_arrow_table()
                except duckdb.Error as error:
                    raise QueryError(str(error)) from error

            yield ask


def _limited(relation: duckdb.DuckDBPyRelation, limit: int | None) -> duckdb.DuckDBPyRelation:
    return relation if limit is None else relation.limit(limit)


def _statements(corpus: Path, parts: Sequence[str] = _PARTS) -> list[str]:
    """Build the CREATE VIEW statements, over some parts of a corpus.

    Each folder of shards has two views, named after the last part of the folder: `convert/sts` has `sts` and
    `sts_rejected`. The others are `convert` (all training records), `rejected` (all rejects), `funnel` (rows and bytes
    by stage, source and category), `rules` (number of rejects by stage, reason and source), `runs` (the footers of all
    shards), `synthesis` (what language models have written), `synthesis_funnel` (how much of it was left after each
    check, by source, kind and persona) and `results` (metrics per query). Raises CorpusError if `corpus` is not a
    folder or holds a shard that Conan did not write.
    """
    if not has_files(corpus):
        raise CorpusError(f"{corpus}: no such folder; name the corpus that `conan ingest` wrote")
    statements = []
    found = {folder: committed(corpus, folder) if folder in parts else [] for folder in (*FOLDERS, ANSWERS)}
    for folder in FOLDERS:
        name, shards = folder.rpartition("/")[2], found[folder]
        statements.append(f"CREATE VIEW {name} AS {scan(shards, _SCHEMAS[folder])}")
        reject_files = [rejects(shard) for shard in shards if rejects(shard).exists()]
        scan_rejects = scan(reject_files, _REJECTED_SCHEMAS[folder])
        stage = folder.partition("/")[0]
        statements.append(f"CREATE VIEW {name}_rejected AS SELECT '{stage}' AS stage, * FROM ({scan_rejects})")
    union = " UNION ALL BY NAME "
    names = [folder.rpartition("/")[2] for folder in FOLDERS]
    statements.append(
        "CREATE VIEW convert AS " + union.join(f"SELECT '{kind}' AS task, * FROM {kind}" for kind in TRAINING)
    )
    statements.append("CREATE VIEW rejected AS " + union.join(f"FROM {name}_rejected" for name in names))
    statements.append(f"CREATE VIEW funnel AS {_funnel()}")
    statements.append(
        "CREATE VIEW rules AS SELECT stage, reason, source, count(*) AS rows FROM rejected "
        "GROUP BY ALL ORDER BY stage, rows DESC"
    )
    statements.append(f"CREATE VIEW synthesis AS {_synthesis(found[ANSWERS])}")
    statements.append(f"CREATE VIEW synthesis_funnel AS {_SYNTHESIS_FUNNEL}")
    statements.append(f"CREATE VIEW runs AS {_runs(found)}")
    if RESULTS in parts:
        fetch(corpus, RESULTS)
    result_files = sorted((corpus / RESULTS).glob("*.parquet"))
    statements.append(f"CREATE VIEW results AS {scan(result_files, RESULT, union_by_name=True)}")
    return statements


def scan(files: list[Path], schema: pa.Schema, **options: bool) -> str:
    """Build a SELECT over shards or, if there are none, over an empty table with the columns of `schema`."""
    if files:
        return f"SELECT * FROM {scan_shards((file.resolve() for file in files), **options)}"
    columns = ", ".join(f'CAST(NULL AS {_type(field.type)}) AS "{field.name}"' for field in schema)
    return f"SELECT {columns} WHERE false"


def _type(arrow_type: pa.DataType) -> str:
    if pa.types.is_dictionary(arrow_type) or pa.types.is_string(arrow_type):
        return "VARCHAR"
    if pa.types.is_list(arrow_type):
        return f"{_type(arrow_type.value_type)}[]"
    return {"int32": "INTEGER", "int64": "BIGINT", "float": "FLOAT"}[str(arrow_type)]


_SYNTHESIS_FUNNEL = """
SELECT source, kind, persona, count(*) AS asked, count(raw) AS answered, count(query) AS parsed,
    count(*) FILTER (checked OR starts_with(reason, 'duplicate')) AS faultless,
    count(*) FILTER (checked) AS distinct_queries, count(*) FILTER (checked AND rank_fits) AS found,
    count(*) FILTER (reason IS NULL) AS kept,
    CAST(sum(tokens - answer_tokens) AS BIGINT) AS prompt_tokens, CAST(sum(answer_tokens) AS BIGINT) AS answer_tokens
FROM (
    SELECT *, reason IS NULL OR reason IN ('round_trip', 'ungraded', 'grade') AS checked,
        coalesce(reason <> 'round_trip', true) AS rank_fits
    FROM synthesis)
GROUP BY ALL ORDER BY ALL
"""


def _synthesis(shards: list[Path]) -> str:
    """Build the SQL for all requests of `conan synthesize`, kept or not: `reason` and `detail` are null for pairs."""
    kept, thrown = scan(shards, SYNTHESIZED), scan([rejects(shard) for shard in shards], rejected(SYNTHESIZED))
    return f"FROM ({kept}) UNION ALL BY NAME FROM ({thrown})"


def _funnel() -> str:
    """Build the SQL for rows and bytes of text by stage, source and category.

    A training record counts as the number of pairs that it was made from, so rows can be compared across stages; its
    bytes are counted once.
    """
    parts = [
        f"SELECT {number} AS stage_number, '{stage}' AS stage, source, category, count(*) AS rows, "
        f"sum(strlen(query) + strlen(positive)) AS bytes FROM {stage} GROUP BY ALL"
        for number, stage in enumerate(STAGES[:-1])
    ]
    bytes_by_kind = {
        "pretrain": "strlen(query) + strlen(positive)",
        "retrieval": "strlen(query) + list_sum(list_transform(positives, lambda text: strlen(text)))",
        "sts": "strlen(text_a) + strlen(text_b)",
        "passages": "strlen(text)",
    }
    parts += [
        f"SELECT {len(STAGES) - 1} AS stage_number, 'convert' AS stage, source, category, "
        f"sum(len(pair_ids)) AS rows, sum({text_bytes}) AS bytes FROM {kind} GROUP BY ALL"
        for kind, text_bytes in bytes_by_kind.items()
    ]
    return (
        "SELECT stage, source, category, CAST(sum(rows) AS BIGINT) AS rows, CAST(sum(bytes) AS BIGINT) AS bytes FROM ("
        + " UNION ALL ".join(parts)
        + ") GROUP BY stage_number, stage, source, category ORDER BY stage_number, category, source"
    )


def _runs(found: Mapping[str, list[Path]]) -> str:
    """Build the SQL that lists the footer of every shard."""
    rows = [
        (folder, name_uris(str(shard)), read_footer(shard).model_dump_json())
        for folder, shards in found.items()
        for shard in shards
    ]
    if not rows:
        rows = [("", "", "{}")]  # VALUES needs at least one row; the WHERE below drops this one
    values = ", ".join(f"({', '.join(map(quote, row))})" for row in rows)
    return (
        "SELECT folder, shard, footer ->> '$.fingerprint' AS fingerprint, "
        "CAST(footer ->> '$.rows_in' AS BIGINT) AS rows_in, CAST(footer ->> '$.rows_out' AS BIGINT) AS rows_out, "
        "footer -> '$.rejected' AS rejected, CAST(footer ->> '$.seconds' AS DOUBLE) AS seconds, "
        "footer -> '$.notes' AS notes "
        f"FROM (VALUES {values}) AS footers(folder, shard, text), "
        "LATERAL (SELECT CAST(text AS JSON) AS footer) WHERE folder <> ''"
    )
