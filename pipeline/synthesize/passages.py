"""Choose the passages that queries are written for, and list those that a query must find its own among.

Translations are of pairs, so their passages have queries. Nothing here depends on what a language model has written:
else every run would find other passages than the one before it.
"""

from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path

import duckdb
import polars as pl

from ...schemas.errors import RecipeError
from ...schemas.pairs import CLUSTERED, PAIR
from ...schemas.synthesize_settings import SynthesizeSettings
from ..corpus.catalog import scan
from ..corpus.folder import shards
from ..corpus.sql import quote
from ..corpus.synthesis import leave_out
from ..text.personal_data import mask_texts

_VIEWS = {"ingest": PAIR, "filter": PAIR, "dedup": CLUSTERED}
"""The views that a recipe's SQL may read: those of the stages before this one."""
_SEARCHED = "task IN ('pretrain', 'retrieval', 'passage')"
_DEFAULT = f"SELECT positive AS text, query, pair_id FROM dedup WHERE {_SEARCHED}"


def choose_passages(
    corpus: Path, settings: SynthesizeSettings, synthesized: Collection[str], mask: bool, place: str
) -> pl.DataFrame:
    """Return the passages that queries are written for, `text, query, pair_id, hash`, by their hashes (MD5).

    For translations, each row is a pair that dedup has kept, as no question that is held out may be translated, and the
    hash is that of the query. Otherwise it is that of the text, and `query` is null.

    Args:
        synthesized: The sources that language models write; none of their rows is a passage.
        mask: Whether personal data is masked.
        place: The place of the SQL in the recipe, for messages.

    Raises:
        CorpusError: dedup has not been run, or was interrupted.
        RecipeError: DuckDB rejects the SQL, or it gives other columns.
    """
    files = {view: shards(corpus, view) for view in _VIEWS}
    with _open(files, synthesized) as connection:
        _choose(connection, settings, place)
        written = f"SELECT pair_id FROM ingest_of_all WHERE NOT {leave_out(synthesized)}"
        query, kept = "CAST(NULL AS VARCHAR)", ""
        if settings.translates:
            query, kept = "query", "AND query <> '' AND pair_id IN (SELECT pair_id FROM dedup)"
        sample = settings.passages.sample
        found: pl.DataFrame = connection.sql(
            "SELECT text, query, min(pair_id) AS pair_id FROM ("
            f"SELECT text, {query} AS query, pair_id FROM chosen ANTI JOIN ({written}) USING (pair_id) "
            f"WHERE text <> '' {kept}) GROUP BY text, query ORDER BY md5(coalesce(query, text)), text "
            f"{'' if sample is None else f'LIMIT {sample}'}"
        ).pl()
        if mask:
            masked = [mask_texts(found[name])[0].alias(name) for name in ("text", "query")]
            found = found.with_columns(masked).unique(["text", "query"], maintain_order=True)
        connection.register("found", found.to_arrow())
        hashed: pl.DataFrame = connection.sql(
            "SELECT *, md5(coalesce(query, text)) AS hash FROM found ORDER BY hash, text"
        ).pl()
        return hashed


def list_searched(corpus: Path, synthesized: Collection[str]) -> pl.DataFrame:
    """List the distinct passages of a corpus: `text, pair_id, source, clusters`, in the order of the texts.

    A text that several sources have is of the one whose name comes first.
    """
    with _open({"dedup": shards(corpus, "dedup")}, synthesized) as connection:
        searched: pl.DataFrame = connection.sql(
            "SELECT positive AS text, min(pair_id) AS pair_id, min(CAST(source AS VARCHAR)) AS source, "
            "list(DISTINCT cluster_id ORDER BY cluster_id) AS clusters "
            f"FROM dedup WHERE {_SEARCHED} GROUP BY positive ORDER BY positive"
        ).pl()
        return searched


def check_sql(settings: SynthesizeSettings, place: str) -> None:
    """Raise RecipeError if DuckDB can't run the SQL, or if it gives other columns. No corpus is needed."""
    if settings.passages.sql is not None:
        with _open({view: [] for view in _VIEWS}, ()) as connection:
            _choose(connection, settings, place)


@contextmanager
def _open(files: dict[str, list[Path]], synthesized: Collection[str]) -> Iterator[duckdb.DuckDBPyConnection]:
    """Open the views over these shards in a database that can read no other files, and can't change settings."""
    with duckdb.connect(":memory:") as connection:
        allowed = ", ".join(quote(shard.resolve()) for each in files.values() for shard in each)
        connection.execute(f"SET enable_progress_bar = false; SET allowed_paths = [{allowed}]")
        for view, found in files.items():
            connection.execute(f"CREATE VIEW {view}_of_all AS {scan(found, _VIEWS[view])}")
            connection.execute(f"CREATE VIEW {view} AS FROM {view}_of_all WHERE {leave_out(synthesized)}")
        locked = ("enable_external_access = false", "python_enable_replacements = false", "lock_configuration = true")
        connection.execute("; ".join(f"SET {setting}" for setting in locked))
        yield connection


def _choose(connection: duckdb.DuckDBPyConnection, settings: SynthesizeSettings, place: str) -> None:
    """Make the SQL the view `chosen`. Raises RecipeError as `check_sql` does."""
    sql = settings.passages.sql or _DEFAULT
    wanted = ("text", "query", "pair_id") if settings.translates else ("text", "pair_id")
    expected = f"expected the columns {', '.join(wanted)}, each VARCHAR"
    try:
        connection.execute(f"CREATE VIEW chosen AS FROM ({sql.strip().rstrip(';')}\n)")
        columns = {name: str(kind) for name, kind, *_ in connection.execute("DESCRIBE chosen").fetchall()}
    except duckdb.Error as error:
        raise RecipeError(f"{place}: {str(error).strip()}; {expected}") from error
    if any(columns.get(name) != "VARCHAR" for name in wanted):
        found = ", ".join(f"{name} {kind}" for name, kind in columns.items())
        raise RecipeError(f"{place}: {expected}, found {found}")
