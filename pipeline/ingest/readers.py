"""From the files of a source to rows in DuckDB, a batch at a time: the table `rows`, and what never became a row.

Files are decoded before DuckDB sees them, so its connection needs no access to any file: the recipe's SQL runs in a
database that holds the source's own rows and nothing else (external access off, configuration locked).
"""

from collections.abc import Iterator, Sequence

import duckdb
import polars as pl

from ...schemas.errors import ConanError
from ...schemas.settings import Source
from .files import FileError, FileSplit, open_file, read_chunks
from .hf_reader import read_arrow
from .html_reader import read_html, read_warc
from .json_reader import read_json, structure_of
from .parquet_reader import arrow_to_frame, read_parquet
from .problems import Frames, fitting, no_problems, problem
from .record_shapes import statement
from .records import LINE, LONGEST_RECORD, lines
from .table_reader import read_table
from .text_encodings import BROKEN, read_blocks
from .text_reader import MARKDOWN, read_document, read_lines

RECORD_SHAPES = ("alpaca", "sharegpt", "messages", "squad", "triples")

BATCH = 4 << 20
"""Chosen here: bytes of rows that DuckDB works on at a time."""

_MARK = f"{BROKEN}(\\d+){BROKEN}"


class SourceError(ConanError):
    """What the recipe says of a source does not fit its files."""


def sandbox() -> duckdb.DuckDBPyConnection:
    """A database in memory that can read and write no file, load no extension and change no setting."""
    connection = duckdb.connect(":memory:")
    for setting in (
        "threads = 1",
        "enable_progress_bar = false",
        "enable_external_access = false",
        "python_enable_replacements = false",
        "autoinstall_known_extensions = false",
        "autoload_known_extensions = false",
        "preserve_insertion_order = true",
        "lock_configuration = true",
    ):
        connection.execute(f"SET {setting}")
    return connection


def read(connection: duckdb.DuckDBPyConnection, source: Source, splits: Sequence[FileSplit]) -> Iterator[pl.DataFrame]:
    """Make `rows(_row, _file, _line, …)`, a view of the table `batch`, anew for each batch of a source's rows.

    Yields what was no row, with file, line and reason, while the rows of the same batch are there.
    """
    structure = None
    if source.read in ("json", "jsonl") and not source.options.whole:
        structure = structure_of(connection, _records(connection, source, splits))
    number = 0
    for frame, problems in _batches(connection, source, splits):
        connection.register("frame", frame.with_row_index("_row", number).to_arrow())
        number += frame.height
        barren = _make_batch(connection, source, structure)
        connection.execute("CREATE OR REPLACE VIEW rows AS FROM batch")
        connection.unregister("frame")
        yield _with_offsets(pl.concat([problems, barren]))


def _with_offsets(problems: pl.DataFrame) -> pl.DataFrame:
    """Problems as they are rejected: where bytes are no text, that is the reason, whatever else came of it."""
    broken = pl.col("record").str.contains(_MARK).fill_null(False)
    return problems.with_columns(
        record=pl.col("record").str.replace_all(_MARK, ""),
        reason=pl.when(broken).then(pl.lit("encoding")).otherwise("reason"),
        detail=pl.when(broken)
        .then(pl.format("no text at offset {}", pl.col("record").str.extract(_MARK)))
        .otherwise("detail"),
    )


def _records(
    connection: duckdb.DuckDBPyConnection, source: Source, splits: Sequence[FileSplit]
) -> Iterator[pl.DataFrame]:
    return (frame for frame, _ in _batches(connection, source, splits))


def read_joined(connection: duckdb.DuckDBPyConnection, source: Source) -> None:
    """Make a table of the lines of each file in the source's `join:`. Raises SourceError where it can't be read."""
    for name, path in source.join.items():
        try:
            frames = [_without_broken(fitting(frame)[0])[0] for frame in lines(read_blocks(FileSplit(path)), path)]
        except FileError as error:
            raise SourceError(f"join {name}: {path}: {error}") from error
        joined = pl.concat([pl.DataFrame(schema=LINE), *frames]).select(line="text", line_number="_line")
        connection.register("joined", joined.to_arrow())
        connection.execute(f'CREATE TABLE "{name}" AS FROM joined')
        connection.unregister("joined")


def _batches(connection: duckdb.DuckDBPyConnection, source: Source, splits: Sequence[FileSplit]) -> Iterator[Frames]:
    """Rows and problems of about BATCH bytes; small files share a batch."""
    frames: list[pl.DataFrame] = []
    problems: list[pl.DataFrame] = []
    size = 0.0
    for frame, bad in (found for split in splits for found in _frames(connection, source, split)):
        frame, broken = _without_broken(frame)
        frames.append(frame)
        problems += [bad, broken]
        size += frame.estimated_size() + bad.estimated_size()
        if size >= BATCH or source.read in ("parquet", "hf"):  # whose columns may have other types in the next file
            yield pl.concat(frames, how="diagonal"), pl.concat(problems)
            frames, problems, size = [], [], 0.0
    if frames:
        yield pl.concat(frames, how="diagonal"), pl.concat(problems)


def _frames(connection: duckdb.DuckDBPyConnection, source: Source, split: FileSplit) -> Iterator[Frames]:
    """The rows of one split, and its problems; where it can't be read further, that is the last problem."""
    try:
        match source.read:
            case "csv":
                yield from read_table(split, source.encoding, source.options, ",", '"')
            case "tsv":
                yield from read_table(split, source.encoding, source.options, "\t", "")
            case "text":
                yield from read_lines(split, source.encoding)
            case "markdown":
                yield read_document(split, source.encoding)
            case "parquet":
                yield from read_parquet(split)
            case "hf":
                with open_file(split.path) as file:
                    for table in read_arrow(file, split.name):
                        yield arrow_to_frame(table), no_problems()
            case "warc":
                yield from read_warc(read_chunks(split), split.name, source.encoding)
            case "html":
                yield from read_html(read_chunks(split), split.name, source.encoding)
            case _:
                yield from read_json(connection, split, source)
    except FileError as error:
        nothing = pl.DataFrame(schema=LINE)
        if source.read not in (*RECORD_SHAPES, "json", "jsonl", "markdown"):
            nothing = nothing.drop("text")  # the others would get a column of that name
        yield nothing, problem(split.name, error.line, None, error.reason, error.detail)


def _make_batch(connection: duckdb.DuckDBPyConnection, source: Source, structure: str | None) -> pl.DataFrame:
    """The table `batch` of the registered `frame`; returns the records of which a shape makes no row."""
    if source.read == "markdown":
        connection.execute("CREATE OR REPLACE TABLE texts AS FROM frame")
        connection.execute(f"CREATE OR REPLACE TABLE batch AS {MARKDOWN}")
        return no_problems()
    if source.read not in (*RECORD_SHAPES, "json", "jsonl"):
        connection.execute("CREATE OR REPLACE TABLE batch AS FROM frame")
        return no_problems()
    connection.execute(
        "CREATE OR REPLACE TABLE records AS SELECT _row, _file, _line, CAST(text AS JSON) AS record FROM frame"
    )
    if source.read in RECORD_SHAPES:
        options = source.options
        connection.execute(
            f"CREATE OR REPLACE TABLE batch AS {statement(source.read, options.turns, options.max_prompt_chars)}"
        )
    elif structure is None:
        connection.execute("CREATE OR REPLACE TABLE batch AS SELECT _row, _file, _line, record AS data FROM records")
    else:
        columns = f", unnest(from_json(record, {_quoted(structure)}))" if structure != "{}" else ""
        connection.execute(f"CREATE OR REPLACE TABLE batch AS SELECT _row, _file, _line{columns} FROM records")
    barren: pl.DataFrame = connection.sql(
        f"""SELECT _file AS file, _line AS line, CAST(record AS VARCHAR) AS record, 'no_pair' AS reason,
                'no pair of the shape {source.read} in it' AS detail
            FROM records ANTI JOIN batch USING (_row) ORDER BY _row"""
    ).pl()
    return barren


def _quoted(text: str) -> str:
    return "'" + text.replace("'", "''") + "'"


def _without_broken(frame: pl.DataFrame) -> Frames:
    """Split off the rows that hold bytes which are no text in the file's encoding."""
    columns = [name for name, kind in frame.schema.items() if kind == pl.String and name != "_file"]
    if not columns:
        return frame, no_problems()
    damaged = pl.any_horizontal(pl.col(columns).str.contains(_MARK).fill_null(False))
    bad = frame.filter(damaged)
    if bad.is_empty():
        return frame, no_problems()
    record = pl.concat_str(columns, separator="\t", ignore_nulls=True)
    return frame.filter(~damaged), bad.select(
        file="_file",
        line="_line",
        record=record.str.slice(0, LONGEST_RECORD),
        reason=pl.lit("encoding"),
        detail=pl.format("no text at offset {}", record.str.extract(_MARK)),
    )
