"""A file of scores as the judge: scores that another tool gave to pairs of texts."""

import hashlib
from pathlib import Path

import duckdb

from ...schemas.errors import RecipeError
from ..corpus.judgements import name_part, scan, write_from
from ..corpus.sql import quote

COLUMNS = {"query": "VARCHAR", "passage": "VARCHAR", "score": "DOUBLE"}
_WHOLE = "query IS NOT NULL AND passage IS NOT NULL AND coalesce(isfinite(TRY_CAST(score AS FLOAT)), false)"


def name_file(file: Path) -> str:
    """Name a file as a judge, by its hash. Raises RecipeError if there is no such file."""
    check_scores_file(file, "judge.scores")
    with file.open("rb") as stream:
        return f"file-{hashlib.file_digest(stream, 'blake2b').hexdigest()[:16]}"


def add_scores(corpus: Path, file: Path, judge: str) -> None:
    """Add those of a file's scores to the store, as scores of `judge`, that are not there yet.

    A store that `conan sample` has cut has some of them.

    Raises:
        RecipeError: the file can't be read, lacks a column, or has a row without a text or a finite score, or two
            scores of one pair.
    """
    with duckdb.connect(":memory:") as connection:
        connection.execute("SET enable_progress_bar = false")
        try:
            connection.execute(f"CREATE VIEW scores AS SELECT {', '.join(COLUMNS)} FROM {_reader(file)}")
            connection.execute(
                "CREATE VIEW pairs AS SELECT DISTINCT * FROM scores "
                f"ANTI JOIN (FROM ({scan(corpus)}) WHERE judge = {quote(judge)}) "
                "ON query_hash = md5(query) AND passage_hash = md5(passage)"
            )
            bad = connection.sql(f"FROM scores WHERE NOT ({_WHOLE})").count("*").fetchall()[0][0]
            twice = connection.sql(
                "SELECT query FROM scores GROUP BY query, passage HAVING min(score) < max(score) LIMIT 1"
            ).fetchall()
        except (OSError, duckdb.Error) as error:
            expected = "expected the columns query, passage (texts) and score (a number)"
            raise RecipeError(f"judge.scores: {file}: {expected}: {error}") from error
        if bad:
            raise RecipeError(f"judge.scores: {file}: {bad} rows have no query, no passage or no finite score")
        if twice:
            raise RecipeError(f"judge.scores: {file}: a passage has two scores for the query {twice[0][0][:80]!r}")
        if connection.sql("FROM pairs LIMIT 1").fetchall():
            write_from(connection, name_part(corpus), judge, "pairs")


def check_scores_file(file: Path, place: str) -> None:
    """Raise RecipeError if there is no such file, or none that can hold scores. `place` is as in `Registry.find`."""
    if file.suffix not in (".parquet", ".jsonl"):
        raise RecipeError(f"{place}: {file}: expected a file that ends in .parquet or .jsonl")
    if not file.is_file():
        raise RecipeError(f"{place}: there is no file {file}")
    if found := sorted(set("*?[") & set(str(file))):  # DuckDB would read the files that match
        raise RecipeError(f"{place}: {file}: the path must not contain {found[0]}; move or rename the file")


def _reader(file: Path) -> str:
    """Build the SQL that reads the file."""
    if file.suffix == ".parquet":
        return f"read_parquet({quote(file)}, hive_partitioning = false)"
    return f"read_json({quote(file)}, format = 'newline_delimited', columns = {COLUMNS}, hive_partitioning = false)"
