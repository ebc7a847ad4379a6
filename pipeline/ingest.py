"""conan ingest: files of any shape to pairs, with a reason for everything that did not become one."""

from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

import duckdb
import polars as pl
import pyarrow as pa

from ..schemas.pairs import PAIR, REJECTED_AT_INGEST
from ..schemas.recipe import Recipe, RecipeError
from ..schemas.settings import EvaluationSet, Source
from . import readers
from .corpus import ShardWriter, committed, fingerprint, read_footer
from .engine import Engine, Summary, Task, made, run_stage
from .files import SourceFile, list_files
from .text import normalise

VERSION = 1
PART_BYTES = 64 << 20
"""Ours: bytes of source files (as they lie on disk) that make one shard."""


def ingest(corpus: Path, recipe: Recipe, engine: Engine) -> Summary:
    """Read every source of the recipe into `corpus/ingest`, and its evaluation sets into `corpus/evaluation`.

    Raises:
        RecipeError: no source has any file.
        StageError: a shard could not be made.
    """
    if not recipe.sources:
        raise RecipeError("the recipe has no `sources:`; nothing to ingest")
    files = {source.name: list_files(source.files, source.exclude) for source in recipe.sources}
    empty = [source for source in recipe.sources if not files[source.name]]
    if len(empty) == len(recipe.sources):
        raise RecipeError(
            f"no source has any file; {empty[0].name} looks for {', '.join(empty[0].files)}. Check the paths and "
            "`variables:`"
        )
    tasks = [
        Task((source, [file.path for file in part]), _fingerprint(source, part))
        for source in recipe.sources
        for part in _parts(files[source.name])
    ]
    summary = run_stage(corpus, "ingest", ingest_part, tasks, engine)
    summary.notes["empty sources"] = [f"{source.name}: no file matches {', '.join(source.files)}" for source in empty]
    summary.notes["empty sources"] += _barren(corpus, "ingest", tasks)
    summary.notes["empty sources"] += _ingest_evaluation(corpus, recipe.evaluation, engine)
    return summary


def _ingest_evaluation(corpus: Path, sets: Sequence[EvaluationSet], engine: Engine) -> list[str]:
    """Each evaluation set is a shard: its own pairs, then pairs of `passages:` with `passage_only` in meta.

    Returns the globs that no file matches, and the sets whose files hold no pair.
    """
    tasks, empty = [], []
    for one in sets:
        files, passages = list_files(one.files, one.exclude), list_files(one.passages)
        for globs, found in ((one.files, files), (one.passages, passages)):
            if globs and not found:
                empty.append(f"{one.name} (evaluation): no file matches {', '.join(globs)}")
        if files:
            paths = [file.path for file in files], [file.path for file in passages]
            tasks.append(Task((one, *paths), _fingerprint(one, [*files, *passages])))
    if tasks or committed(corpus, "evaluation"):
        run_stage(corpus, "evaluation", ingest_evaluation_set, tasks, engine)
    return empty + _barren(corpus, "evaluation", tasks)


def _barren(corpus: Path, folder: str, tasks: Sequence[Task]) -> list[str]:
    """The sources whose files hold no pair."""
    place = made(corpus, folder, tasks)
    pairs: Counter[str] = Counter()
    for task in tasks:
        pairs[task.arguments[0].name] += read_footer(place[task.fingerprint]).rows_out
    return [f"{name}: no pair in its files; {folder}/rejected says why" for name, rows in pairs.items() if not rows]


def _fingerprint(source: Source, files: Sequence[SourceFile]) -> str:
    settings = source.model_dump(mode="json", exclude={"priority", "licence", "label_range"})
    files = [*files, *list_files(list(source.join.values()))]
    return fingerprint("ingest", VERSION, settings, [(file.path, file.size, file.version) for file in files])


def _parts(files: Sequence[SourceFile]) -> Iterator[list[SourceFile]]:
    """Files packed in order into parts of about PART_BYTES."""
    part: list[SourceFile] = []
    size = 0
    for file in files:
        if part and size + file.size > PART_BYTES:
            yield part
            part, size = [], 0
        part.append(file)
        size += file.size
    if part:
        yield part


def ingest_part(source: Source, paths: Sequence[str], fingerprint: str, shard: Path) -> None:
    """One shard: the pairs of some files of a source, and their rejects."""
    with ShardWriter(
        shard, PAIR, REJECTED_AT_INGEST, stage="ingest", version=VERSION, fingerprint=fingerprint
    ) as writer:
        _ingest_files(source, paths, writer)


def ingest_evaluation_set(
    source: EvaluationSet, paths: Sequence[str], passages: Sequence[str], fingerprint: str, shard: Path
) -> None:
    """One evaluation set as a shard."""
    with ShardWriter(
        shard, PAIR, REJECTED_AT_INGEST, stage="evaluation", version=VERSION, fingerprint=fingerprint
    ) as writer:
        _ingest_files(source, paths, writer)
        if passages:
            _ingest_files(source.model_copy(update={"meta": "{'passage_only': true}"}), passages, writer)


def _ingest_files(source: Source, paths: Sequence[str], writer: ShardWriter) -> None:
    with readers.sandbox() as connection:
        problems = readers.read(connection, source, paths)
        try:
            readers.read_joined(connection, source)
            pairs, bad = _judge(connection, source, _project(connection, source))
        except (duckdb.Error, readers.SourceError, UnicodeDecodeError) as error:
            # The recipe's SQL does not fit these files: nothing is lost, every row says why it stayed out.
            names = [name for name in connection.sql("FROM rows").columns if name not in ("_row", "_file", "_line")]
            detail = f"source {source.name}: {str(error).strip()} Columns there are: {', '.join(names) or 'none'}"
            rows = connection.sql(f"SELECT {_REJECTED_ROW} FROM rows").pl()
            pairs, bad = None, rows.drop("_row").with_columns(reason=pl.lit("projection"), detail=pl.lit(detail))
    problems = pl.concat([problems, bad])
    if pairs is not None and not pairs.is_empty():
        writer.received(pairs.height)
        writer.keep(_pairs(source, pairs))
    if not problems.is_empty():
        writer.received(problems.height)
        writer.reject(_rejects(source, problems))


_REJECTED_ROW = "_row, _file AS file, _line AS line, CAST(to_json(rows) AS VARCHAR) AS record"


def _project(connection: duckdb.DuckDBPyConnection, source: Source) -> pl.DataFrame:
    """The pair's columns of every selected row; where SQL gives NULL, NULL.

    Rows of the file that `select` makes no row of are there too, with `no_pair` true.
    """
    select = f"{source.select}, rows.*" if source.select and not source.from_ else source.select or "*"
    connection.execute(f"CREATE VIEW selected AS SELECT {select} FROM {source.from_ or 'rows'}")
    has_place = "_row" in connection.sql("FROM selected").columns
    place = "_row, _file, _line" if has_place else "NULL AS _row, NULL AS _file, NULL AS _line"
    negatives = source.negatives or _own(connection, "negatives", "[]")
    kind = _kind(connection, negatives)
    if not kind.endswith("]") and kind not in ("JSON", '"NULL"', "NULL"):
        raise readers.SourceError(f"negatives: expected a list of strings, found {kind}.")
    own_meta = _own(connection, "meta", "{}")
    columns = {
        "query": _text(connection, source.query),
        "positive": _text(connection, source.positive),
        "negatives": f"TRY_CAST({_guarded(connection, negatives)} AS VARCHAR[])",
        "label": f"TRY_CAST({_guarded(connection, source.label or 'NULL')} AS FLOAT)",
        "meta": f"CAST({_guarded(connection, f'to_json({source.meta or own_meta})')} AS VARCHAR)",
    }
    values = ", ".join(f"{expression} AS {name}" for name, expression in columns.items())
    where = f"WHERE {source.where}" if source.where else ""
    projected: pl.DataFrame = connection.sql(f"SELECT {place}, {values}, false AS no_pair FROM selected {where}").pl()
    if has_place:
        unused = connection.sql("SELECT _row, _file, _line FROM rows ANTI JOIN selected USING (_row)").pl()
        projected = pl.concat([projected, unused.with_columns(no_pair=pl.lit(True))], how="diagonal")
    return projected


def _guarded(connection: duckdb.DuckDBPyConnection, expression: str) -> str:
    """The expression with NULL where it fails on a row; as it is where DuckDB can't guard it (a subquery)."""
    guarded = f"TRY({expression})"
    try:
        connection.sql(f"SELECT {guarded} FROM selected LIMIT 0")
    except duckdb.BinderException:
        return f"({expression})"
    return guarded


def _text(connection: duckdb.DuckDBPyConnection, expression: str) -> str:
    """An expression as text; of a JSON value its content, not its quoted form."""
    guarded = _guarded(connection, expression)
    return f"{guarded} ->> '$'" if _kind(connection, guarded) == "JSON" else f"CAST({guarded} AS VARCHAR)"


def _kind(connection: duckdb.DuckDBPyConnection, expression: str) -> str:
    return str(connection.sql(f"SELECT {expression} AS value FROM selected LIMIT 0").types[0])


def _own(connection: duckdb.DuckDBPyConnection, column: str, otherwise: str) -> str:
    """What a shape brings where the recipe gives no SQL."""
    return column if column in connection.sql("FROM selected").columns else f"'{otherwise}'::JSON"


def _judge(
    connection: duckdb.DuckDBPyConnection, source: Source, projected: pl.DataFrame
) -> tuple[pl.DataFrame, pl.DataFrame]:
    """Split projected rows into pairs and rejects."""
    reason = (
        pl.when(pl.col("no_pair"))
        .then(pl.lit("no_pair"))
        .when(pl.col("query").is_null())
        .then(pl.lit("no_query"))
        .when(pl.col("positive").is_null())
        .then(pl.lit("no_positive"))
        .when(pl.lit(source.task == "sts") & ~pl.col("label").is_finite().fill_null(False))
        .then(pl.lit("no_label"))
    )
    judged = projected.with_columns(reason=reason)
    bad = judged.filter(pl.col("reason").is_not_null())
    connection.register("bad", bad.select(pl.col("_row").cast(pl.Int64)).to_arrow())
    rows = connection.sql(f"SELECT {_REJECTED_ROW} FROM rows SEMI JOIN bad USING (_row)").pl()
    rejects = bad.select(pl.col("_row").cast(pl.Int64), "query", "positive", "label", "meta", "reason").join(
        rows.with_columns(pl.col("_row").cast(pl.Int64)), on="_row", how="left", maintain_order="left"
    )
    return judged.filter(pl.col("reason").is_null()), rejects.select(
        pl.col("file").fill_null(""),  # `from:` left the row's place out
        "line",
        pl.coalesce("record", pl.struct("query", "positive", "label", "meta").struct.json_encode()),
        "reason",
        detail=pl.when(pl.col("reason") == "no_pair")
        .then(pl.lit("`select` makes no row of it"))
        .otherwise(pl.lit("the recipe's SQL gave NULL here")),
    )


def _pairs(source: Source, frame: pl.DataFrame) -> pa.Table:
    named = frame.select(
        source=pl.lit(source.name),
        category=pl.lit(source.category),
        format=pl.lit(source.format),
        task=pl.lit(source.task),
        query=normalise(pl.col("query")),
        positive=normalise(pl.col("positive")),
        negatives=_normalised_lists(frame["negatives"]),
        label=pl.col("label").cast(pl.Float32),
        meta=pl.col("meta").fill_null("{}"),
    )
    with duckdb.connect(":memory:") as connection:
        connection.register("named", named.to_arrow())
        # The unit separator can't stand in normalised text, so no two pairs run into each other.
        return connection.sql(
            "SELECT md5(concat_ws(chr(31), source, task, query, positive)) AS pair_id, * FROM named"
        ).to_arrow_table()


def _normalised_lists(lists: pl.Series) -> pl.Series:
    """Normalise the texts of lists; empty ones and nulls are left out."""
    frame = pl.DataFrame({"row": pl.arange(len(lists), eager=True), "text": lists.cast(pl.List(pl.String))})
    texts = (
        frame.explode("text")
        .with_columns(normalise(pl.col("text")))
        .filter(pl.col("text").is_not_null() & (pl.col("text") != ""))
        .group_by("row", maintain_order=True)
        .agg("text")
    )
    joined = frame.select("row").join(texts, on="row", how="left", maintain_order="left")
    return joined["text"].fill_null([])


def _rejects(source: Source, problems: pl.DataFrame) -> pa.Table:
    table = problems.with_columns(
        source=pl.lit(source.name),
        category=pl.lit(source.category),
        format=pl.lit(source.format),
        task=pl.lit(source.task),
    ).to_arrow()
    for field in REJECTED_AT_INGEST:
        if field.name not in table.column_names:
            table = table.append_column(field.name, pa.nulls(table.num_rows, field.type))
    return table
