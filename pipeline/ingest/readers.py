"""The table of readers that a recipe may name, and the code that puts their rows into DuckDB, batch by batch.

To add a reader, write its file and an entry in READERS; a plugin calls `READERS.register(name, Reader(…))`.

Files are decoded before DuckDB sees them, so its connection needs no file access: the recipe's SQL runs in a database
that contains only the source's own rows (external access off, configuration locked).
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import duckdb
import polars as pl

from ...schemas.errors import ConanError, RecipeError
from ...schemas.recipe import Recipe
from ...schemas.registry import Registry
from ...schemas.source_settings import Source
from .chat_shapes import select_instructions, select_replies
from .documents_reader import read_documents
from .files import FileError, FileSplit, read_chunks
from .hf_reader import list_dataset_files, read_dataset
from .html_reader import read_html, read_warc
from .json_columns import select_from_records, select_objects
from .json_reader import read_chats, read_json, read_json_lines, split_json_lines
from .json_rows import has_rows, read_rows, split_rows
from .listing import Listing, list_files
from .markdown_reader import read_markdown
from .misfits import cast_columns, find_misfits
from .parquet_reader import read_parquet, split_row_groups
from .problems import RECORD, Frames, fitting, no_problems, problem, stack
from .quoted_numbers import NUMBER_MARK, quote_numbers
from .record_shapes import SQUAD, TRIPLES
from .records import LINE, LONGEST_RECORD, lines
from .shown_records import show_bytes, show_records
from .table_reader import CSV, TSV, Dialect, check_dialect, choose_dialect, read_table
from .text_encodings import BROKEN_BYTES, read_blocks
from .text_reader import read_lines, split_lines

BATCH = 8 << 20
"""Chosen here: bytes of rows that DuckDB processes at a time."""


class SourceError(ConanError):
    """A source whose description in the recipe does not fit its files."""


@dataclass(frozen=True)
class Reader:
    """Everything that distinguishes one kind of `read:` from the others.

    Attributes:
        read: Yields the frames of a split: rows with `_file`, `_line` and their own columns, and problems. Raises
            FileError if the split can't be read any further.
        select: Needed if `read` yields records (`_file`, `_line`, `text`) instead of rows. Returns the SQL that selects
            a batch's rows from its records, `frame(_row, _file, _line, text)`, and keeps `_row, _file, _line`. A record
            that gives no row is rejected. For a reader of JSON, `frame` has a column `quoted`, too: the record with
            decimals and long integers as strings, so that they keep their digits; and a row of it with a reason in the
            column `_reason` is rejected, with the detail in `_detail`.
        split: Divides a large file into splits of about the given number of bytes. Raises FileError if the file can't
            be read. Without it, one task reads the whole file.
        list_files: Lists the files that match the globs in the first argument and none of those in the second. The
            default lists no folders.
        check: Returns what is wrong with a source's options, or None. Called before any work starts.
        mixes_files: Whether rows of several files may share a batch; false if a column's type may differ between files.
        is_json: Whether the records are JSON.
        has_keys: Whether the keys of the records become columns, whose types are decided once for all files.
    """

    read: Callable[[FileSplit, Source, duckdb.DuckDBPyConnection], Iterator[Frames]]
    select: Callable[[Source], str] | None = None
    split: Callable[[str, Source, int], list[FileSplit]] | None = None
    list_files: Callable[[Sequence[str], Sequence[str]], Listing] = list_files
    check: Callable[[Source], str | None] | None = None
    mixes_files: bool = True
    is_json: bool = False
    has_keys: bool = False


def _make_table_reader(default: Dialect) -> Reader:
    """Return a reader of tables in this dialect, unless a source's options set another."""

    def read(split: FileSplit, source: Source, _: duckdb.DuckDBPyConnection) -> Iterator[Frames]:
        return read_table(split, source, default)

    def split(path: str, source: Source, size: int) -> list[FileSplit]:
        has_quotes = choose_dialect(source.options, default).quote  # which may hold line breaks
        return [FileSplit(path)] if has_quotes else split_lines(path, source, size)

    def check(source: Source) -> str | None:
        return check_dialect(choose_dialect(source.options, default))

    return Reader(read, split=split, check=check)


def _make_shape_reader(
    read: Callable[[FileSplit, Source, duckdb.DuckDBPyConnection], Iterator[Frames]], select: Callable[[Source], str]
) -> Reader:
    """Return a reader of records in a well-known shape, of JSON or of rows with such columns.

    `select` gives SQL over the table `records`.
    """

    def read_records(split: FileSplit, source: Source, connection: duckdb.DuckDBPyConnection) -> Iterator[Frames]:
        return read_rows(split) if has_rows(split.path) else read(split, source, connection)

    return Reader(read_records, lambda source: select_from_records(select(source)), split_rows, is_json=True)


READERS: Registry[Reader] = Registry("reader")
READERS.update(
    {
        "json": Reader(read_json, select_objects, is_json=True, has_keys=True),
        "jsonl": Reader(read_json_lines, select_objects, split_json_lines, is_json=True, has_keys=True),
        "csv": _make_table_reader(CSV),
        "tsv": _make_table_reader(TSV),
        "parquet": Reader(lambda split, *_: read_parquet(split), split=split_row_groups, mixes_files=False),
        "text": Reader(lambda split, source, _: read_lines(split, source.encoding), split=split_lines),
        "markdown": Reader(lambda split, source, _: read_markdown(split, source.encoding)),
        "alpaca": _make_shape_reader(read_json, select_instructions),
        "sharegpt": _make_shape_reader(read_chats, select_replies),
        "messages": _make_shape_reader(read_chats, select_replies),
        "squad": _make_shape_reader(read_json, lambda _: SQUAD),
        "triples": _make_shape_reader(read_json, lambda _: TRIPLES),
        "hf": Reader(lambda split, *_: read_dataset(split), list_files=list_dataset_files, mixes_files=False),
        "html": Reader(lambda split, source, _: read_html(read_chunks(split), split.name, source.encoding)),
        "documents": Reader(lambda split, source, _: read_documents(split, source)),
        "warc": Reader(lambda split, source, _: read_warc(read_chunks(split), split.name, source.encoding)),
    }
)


def check_readers(recipe: Recipe) -> None:
    """Check that every source and evaluation set of a recipe names a known reader, with options that it supports.

    Raises:
        RecipeError: names the place in the recipe and suggests the most similar reader.
    """
    for section, number, source in list_sources(recipe):
        check_reader(recipe, section, number, source)


def list_sources(recipe: Recipe) -> Iterator[tuple[str, int, Source]]:
    """Yield every source and evaluation set of a recipe, with its section and its place there."""
    for section, sources in (("sources", recipe.sources), ("evaluation", recipe.evaluation)):
        yield from ((section, number, source) for number, source in enumerate(sources))


def check_reader(recipe: Recipe, section: str, number: int, source: Source) -> None:
    """Check one source of a recipe as `check_readers` does. Raises RecipeError."""
    reader = READERS.find(source.read, recipe.locate(section, number, "read"))
    if reader.check and (fault := reader.check(source)):
        raise RecipeError(f"{recipe.locate(section, number, 'options')}: {fault}")


def find_reader(source: Source) -> Reader:
    """Find the reader of a source. Raises RecipeError if none is registered under that name."""
    return READERS.find(source.read, f"source {source.name}: read")


@contextmanager
def open_sandbox() -> Iterator[duckdb.DuckDBPyConnection]:
    """Open an empty database in memory that can't access files, load extensions or change settings."""
    try:
        engine = _idle_engines.pop()
    except IndexError:
        engine = _start_engine()
    try:
        with engine.cursor() as connection:
            connection.execute("ATTACH ':memory:' AS sandbox; USE sandbox")
            yield connection
    finally:
        try:
            engine.execute("DETACH sandbox")
            _idle_engines.append(engine)
        except duckdb.Error:  # it has failed for good
            engine.close()


_idle_engines: list[duckdb.DuckDBPyConnection] = []
"""Instances of DuckDB that no sandbox uses. Starting one takes 20 ms, attaching a database to it less than one."""


def _start_engine() -> duckdb.DuckDBPyConnection:
    engine = duckdb.connect(":memory:", config={"threads": "1"})  # else it starts a thread per core first
    settings = (
        "enable_progress_bar = false",
        "enable_external_access = false",
        "python_enable_replacements = false",
        "autoinstall_known_extensions = false",
        "autoload_known_extensions = false",
        "preserve_insertion_order = true",
        "lock_configuration = true",
    )
    engine.execute("; ".join(f"SET {setting}" for setting in settings))
    return engine


def load_batch(connection: duckdb.DuckDBPyConnection, source: Source, frame: pl.DataFrame) -> pl.DataFrame:
    """Put the rows of a frame into the table `batch`, which the view `rows` shows. Returns those that can't be rows.

    Raises:
        duckdb.Error: the rows can't be represented.
    """
    reader = find_reader(source)
    select = reader.select(source) if reader.select else "FROM frame"
    if reader.is_json:
        frame = frame.with_columns(quoted=quote_numbers(frame["text"]))
    if NUMBER_MARK in select:
        frame = frame.with_columns(marked=quote_numbers(frame["text"], NUMBER_MARK))
    connection.register("frame", frame.drop(RECORD, strict=False).to_arrow(compat_level=pl.CompatLevel.newest()))
    connection.execute(f"CREATE OR REPLACE TABLE batch AS {select}")
    gives_rows_of_its_own = reader.select and not reader.has_keys  # none or several for a record
    problems = _take_refused(connection, source, frame) if gives_rows_of_its_own else no_problems()
    if source.columns and frame.height:
        misfits = (
            find_misfits(connection, source)
            if reader.has_keys
            else cast_columns(connection, source, has_types=not reader.mixes_files)
        )
        if misfits.height:
            connection.register("misfits", misfits.to_arrow())
            connection.execute("CREATE OR REPLACE TABLE batch AS FROM batch ANTI JOIN misfits USING (_row)")
            connection.unregister("misfits")
            problems = pl.concat([problems, show_records(frame, misfits.with_columns(reason=pl.lit("column_type")))])
    connection.execute("CREATE OR REPLACE VIEW rows AS FROM batch")
    connection.unregister("frame")
    return problems


def _explain_broken(problems: pl.DataFrame) -> pl.DataFrame:
    """Set the reason `encoding` for problems whose record has undecodable bytes, whatever else is wrong with it."""
    if problems.is_empty():
        return problems
    record = pl.col("record")
    broken = record.str.contains(BROKEN_BYTES).fill_null(False)
    return problems.with_columns(
        record=pl.when(broken).then(show_bytes(pl.when(broken).then(record))).otherwise(record),
        reason=pl.when(broken).then(pl.lit("encoding")).otherwise("reason"),
        detail=pl.when(broken)
        .then(pl.format("undecodable bytes at offset {}", record.str.extract(BROKEN_BYTES)))
        .otherwise("detail"),
    )


def _take_refused(connection: duckdb.DuckDBPyConnection, source: Source, frame: pl.DataFrame) -> pl.DataFrame:
    """Return the records in `frame` that gave no row in `batch`, and the rows with a `_reason`, taken out of `batch`.

    Only the first of a record's rows has the whole record, since a record may give thousands.
    """
    barren: pl.DataFrame = connection.sql("SELECT _row FROM frame ANTI JOIN batch USING (_row) ORDER BY _row").pl()
    said = pl.lit(f"contains no pair in the shape {source.read}")
    problems = show_records(frame, barren.with_columns(reason=pl.lit("no_pair"), detail=said))
    if "_reason" not in connection.sql("FROM batch").columns:
        return problems
    refused: pl.DataFrame = connection.sql(
        "SELECT _row, _reason AS reason, _detail AS detail, to_json({query: query, positive: positive, negatives:"
        " negatives}) AS pair FROM batch WHERE _reason IS NOT NULL ORDER BY rowid"
    ).pl()
    connection.execute("DELETE FROM batch WHERE _reason IS NOT NULL")
    for column in ("_reason", "_detail"):
        connection.execute(f"ALTER TABLE batch DROP COLUMN {column}")
    record = pl.when(refused["_row"].is_first_distinct()).then("record").otherwise(refused["pair"])
    return pl.concat([problems, show_records(frame, refused).with_columns(record=record)])


def read_joined(connection: duckdb.DuckDBPyConnection, source: Source) -> None:
    """Create a table of lines for each file in the source's `join:`. Raises SourceError if one can't be read."""
    for name, path in source.join.items():
        try:
            frames = [_split_off_broken(fitting(frame)[0])[0] for frame in lines(read_blocks(FileSplit(path)), path)]
        except FileError as error:
            raise SourceError(f"join {name}: {path}: {error}") from error
        joined = pl.concat([pl.DataFrame(schema=LINE), *frames]).select(line="text", line_number="_line")
        connection.register("joined", joined.to_arrow())
        connection.execute(f'CREATE TABLE "{name}" AS FROM joined')
        connection.unregister("joined")


def read_batches(
    connection: duckdb.DuckDBPyConnection, source: Source, splits: Sequence[FileSplit], enough: float = BATCH
) -> Iterator[Frames]:
    """Gather rows and problems into batches of about BATCH bytes; small files share a batch. Rows have a `_row`.

    Args:
        enough: Bytes of rows that are a batch, however few the problems.
    """
    reader = find_reader(source)
    frames: list[pl.DataFrame] = []
    problems: list[pl.DataFrame] = []
    size, rows_size, number = 0.0, 0.0, 0
    for frame, bad in (both for split in splits for both in read_split(connection, source, split)):
        frame, broken = _split_off_broken(frame)
        frames.append(frame)
        problems += [bad, broken]
        rows_size += frame.estimated_size()
        size += frame.estimated_size() + bad.estimated_size()
        if size >= BATCH or rows_size >= enough or not reader.mixes_files:
            rows = _number_rows(reader, frames, number)
            yield rows, _explain_broken(pl.concat(problems))
            frames, problems, size, rows_size, number = [], [], 0.0, 0.0, number + rows.height
    if frames:
        yield _number_rows(reader, frames, number), _explain_broken(pl.concat(problems))


def _number_rows(reader: Reader, frames: list[pl.DataFrame], number: int) -> pl.DataFrame:
    rows = stack(frames).with_row_index("_row", number)
    if not reader.select:
        return rows
    return rows.with_columns(pl.coalesce(pl.col(f"^{RECORD}$"), "text").alias(RECORD))


def read_split(connection: duckdb.DuckDBPyConnection, source: Source, split: FileSplit) -> Iterator[Frames]:
    """Yield the frames of one split; if it can't be read any further, the last problem says why."""
    reader = find_reader(source)
    try:
        yield from reader.read(split, source, connection)
    except FileError as error:
        nothing = pl.DataFrame(schema=LINE)
        nothing = nothing if reader.select else nothing.drop("text")  # else other files' rows would get that column
        yield nothing, problem(split.name, error.line, None, error.reason, error.detail)


def _split_off_broken(frame: pl.DataFrame) -> Frames:
    """Split off the rows that contain undecodable bytes."""
    columns = [name for name, kind in frame.schema.items() if kind == pl.String and name != "_file"]
    columns = [RECORD] if RECORD in columns else columns
    if not columns:
        return frame, no_problems()
    damaged = pl.any_horizontal(pl.col(columns).str.contains(BROKEN_BYTES).fill_null(False))
    bad = frame.filter(damaged)
    if bad.is_empty():
        return frame, no_problems()
    record = pl.concat_str(columns, separator="\t", ignore_nulls=True)
    return frame.filter(~damaged), bad.select(
        file="_file",
        line="_line",
        record=record.str.slice(0, LONGEST_RECORD),
        reason=pl.lit("encoding"),
        detail=pl.format("undecodable bytes at offset {}", record.str.extract(BROKEN_BYTES)),
    )
