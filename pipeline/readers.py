"""From the files of a source to rows in DuckDB: the table `rows`, and `problems` for what never became a row.

Files are decoded before DuckDB sees them, so its connection needs no access to any file: the recipe's SQL runs in a
database that holds the source's own rows and nothing else (external access off, configuration locked).
"""

import csv
import io
import json
import tempfile
from collections.abc import Sequence
from pathlib import Path

import duckdb
import polars as pl
import pyarrow.parquet as pq

from ..schemas.settings import ReaderOptions, Source
from .files import BROKEN, FileError, read_text
from .shapes import statement

RECORD_SHAPES = ("alpaca", "sharegpt", "messages", "squad", "triples")
LONGEST_RECORD = 16 << 20
"""Ours: characters; a longer record is a broken file or no text for an embedding model, and is rejected."""

_PROBLEM = {"file": pl.String, "line": pl.Int64, "record": pl.String, "reason": pl.String, "detail": pl.String}
_LINE = {"_file": pl.String, "_line": pl.Int64, "text": pl.String}


class SourceError(ValueError):
    """The recipe's SQL does not fit the source's rows."""


def sandbox() -> duckdb.DuckDBPyConnection:
    """A database in memory that can read and write no file, load no extension and change no setting."""
    connection = duckdb.connect(":memory:")
    for setting in (
        "threads = 1",
        "enable_progress_bar = false",
        "enable_external_access = false",
        "autoinstall_known_extensions = false",
        "autoload_known_extensions = false",
        "preserve_insertion_order = true",
        "lock_configuration = true",
    ):
        connection.execute(f"SET {setting}")
    return connection


def read(connection: duckdb.DuckDBPyConnection, source: Source, paths: Sequence[str]) -> pl.DataFrame:
    """Make the table `rows(_row, _file, _line, …)` from files; returns what was no row, with file, line and reason."""
    problems: list[pl.DataFrame] = []
    texts: list[tuple[str, str]] = []
    frames: list[pl.DataFrame] = []
    for path in paths:
        try:
            if source.read == "parquet":
                frames.append(_parquet(path))
            else:
                text, _, cut = read_text(path, source.encoding)
                texts.append((path, text))
                if cut:
                    problems.append(problem(path, None, None, "truncated", cut))
        except FileError as error:
            problems.append(problem(path, None, None, error.reason, error.detail))
    if source.read in ("csv", "tsv", "text", "markdown"):
        read = [_table(path, text, source) for path, text in texts]
    else:
        read = [_records(connection, texts, source)]
    for frame, bad in read:
        good, broken = _without_broken(frame)
        frames.append(good)
        problems += [bad, broken]
    for name, path in source.join.items():
        connection.register(f"{name}_table", _join_table(path).to_arrow())
        connection.execute(f'CREATE TABLE "{name}" AS FROM "{name}_table"')
    rows = pl.concat(frames, how="diagonal") if frames else pl.DataFrame(schema=_LINE)
    connection.register("frame", rows.with_row_index("_row").to_arrow())
    _make_rows(connection, source)
    connection.unregister("frame")
    return pl.concat([_no_problems(), *problems])


def _make_rows(connection: duckdb.DuckDBPyConnection, source: Source) -> None:
    if source.read in ("csv", "tsv", "text", "parquet"):
        connection.execute("CREATE TABLE rows AS FROM frame")
    elif source.read == "markdown":
        connection.execute("CREATE TABLE texts AS FROM frame")
        connection.execute(f"CREATE TABLE rows AS {statement('markdown', 1)}")
    else:
        connection.execute("CREATE TABLE records AS SELECT _row, _file, _line, CAST(text AS JSON) AS record FROM frame")
        if source.read in RECORD_SHAPES:
            connection.execute(f"CREATE TABLE rows AS {statement(source.read, source.options.turns)}")
        elif source.options.whole:
            connection.execute("CREATE TABLE rows AS SELECT _row, _file, _line, record AS data FROM records")
        else:
            found = connection.execute("SELECT json_group_structure(record) FROM records").fetchone()
            structure = found[0] if found and found[0] else "{}"
            columns = f", unnest(from_json(record, {_quoted(structure)}))" if structure != "{}" else ""
            connection.execute(f"CREATE TABLE rows AS SELECT _row, _file, _line{columns} FROM records")


def _quoted(text: str) -> str:
    return "'" + text.replace("'", "''") + "'"


def problem(file: str, line: int | None, record: str | None, reason: str, detail: str) -> pl.DataFrame:
    """One reject that is no row."""
    return pl.DataFrame([[file], [line], [record], [reason], [detail]], _PROBLEM)


def _no_problems() -> pl.DataFrame:
    return pl.DataFrame(schema=_PROBLEM)


def _lines(path: str, text: str) -> tuple[pl.DataFrame, pl.DataFrame]:
    """The lines of a text that hold something, with their numbers; over-long ones and NUL bytes are problems."""
    lines = (
        pl.DataFrame({"text": text.split("\n")})
        .with_columns(_line=pl.int_range(1, pl.len() + 1, dtype=pl.Int64), _file=pl.lit(path))
        .with_columns(pl.col("text").str.strip_suffix("\r"))
        .filter(pl.col("text").str.strip_chars() != "")
        .select("_file", "_line", "text")
    )
    reason = (
        pl.when(pl.col("text").str.len_chars() > LONGEST_RECORD)
        .then(pl.lit("too_long"))
        .when(pl.col("text").str.contains("\0", literal=True))
        .then(pl.lit("nul_bytes"))
    )
    marked = lines.with_columns(reason=reason)
    bad = marked.filter(pl.col("reason").is_not_null()).select(
        file="_file",
        line="_line",
        record=pl.col("text").str.slice(0, LONGEST_RECORD).str.replace_all("\0", "␀", literal=True),
        reason="reason",
        detail=pl.format("{} characters", pl.col("text").str.len_chars()),
    )
    return marked.filter(pl.col("reason").is_null()).drop("reason"), bad


def _without_broken(frame: pl.DataFrame) -> tuple[pl.DataFrame, pl.DataFrame]:
    """Split off the rows that hold bytes which are no text in the file's encoding."""
    columns = [name for name, kind in frame.schema.items() if kind == pl.String and name != "_file"]
    damaged = pl.any_horizontal(pl.col(columns).str.contains(BROKEN, literal=True).fill_null(False))
    bad = frame.filter(damaged)
    if bad.is_empty():
        return frame, _no_problems()
    record = pl.concat_str(columns, separator="\t", ignore_nulls=True)
    return frame.filter(~damaged), bad.select(
        file="_file",
        line="_line",
        record=record.str.replace_all(f"{BROKEN}\\d+{BROKEN}", ""),
        reason=pl.lit("encoding"),
        detail=pl.format("undecodable byte at offset {}", record.str.extract(f"{BROKEN}(\\d+){BROKEN}")),
    )


def _records(
    connection: duckdb.DuckDBPyConnection, texts: Sequence[tuple[str, str]], source: Source
) -> tuple[pl.DataFrame, pl.DataFrame]:
    """The JSON records of files: of their lines, of their arrays, or the documents themselves."""
    documents = pl.DataFrame(texts, {"_file": pl.String, "text": pl.String}, orient="row")
    if source.read == "jsonl":
        return _json_lines(connection, documents)
    connection.register("documents", documents.to_arrow())
    if source.options.whole:
        found = connection.sql("SELECT *, json_valid(text) AS valid FROM documents").pl()
    else:
        is_chat = source.read in ("sharegpt", "messages")
        found = connection.sql(
            f"""WITH judged AS (
                    SELECT *, CASE WHEN json_valid(text) THEN json_type(text) END AS kind,
                           CASE WHEN {is_chat} AND kind = 'ARRAY' THEN json_exists(text, '$[0].role') ELSE false END
                               AS conversation
                    FROM documents)
                SELECT _file, unnest(CASE
                           WHEN conversation THEN ['{{"messages":' || text || '}}']
                           WHEN kind = 'ARRAY' THEN CAST(from_json(text, '["JSON"]') AS VARCHAR[])
                           ELSE [text] END) AS text,
                       kind IS NOT NULL AS valid
                FROM judged"""
        ).pl()
    connection.unregister("documents")
    records, not_objects = _objects(
        connection, found.filter("valid").select("_file", pl.lit(None, pl.Int64).alias("_line"), "text")
    )
    # Lines under a .json name; and of a damaged file of lines, the records that are whole.
    lines, bad_lines = _json_lines(connection, found.filter(~pl.col("valid")).select("_file", "text"))
    no_lines = found.filter(~pl.col("valid")).join(lines, on="_file", how="anti")
    bad_lines = bad_lines.join(no_lines, left_on="file", right_on="_file", how="anti")
    broken = [
        problem(path, error.lineno, text[:LONGEST_RECORD], "broken_json", str(error))
        for path, text in no_lines.select("_file", "text").iter_rows()
        if (error := _json_error(text)) is not None
    ]
    return pl.concat([records, lines]), pl.concat([not_objects, bad_lines, *broken])


def _json_error(text: str) -> json.JSONDecodeError | None:
    try:
        json.loads(text)
    except json.JSONDecodeError as error:
        return error
    except RecursionError:
        return json.JSONDecodeError("nested too deep", "", 0)
    return json.JSONDecodeError("not valid JSON", "", 0)


def _json_lines(connection: duckdb.DuckDBPyConnection, documents: pl.DataFrame) -> tuple[pl.DataFrame, pl.DataFrame]:
    split = [_lines(path, text) for path, text in documents.iter_rows()]
    lines = pl.concat([pl.DataFrame(schema=_LINE), *[good for good, _ in split]])
    frame, not_objects = _objects(connection, lines)
    return frame, pl.concat([_no_problems(), *[bad for _, bad in split], not_objects])


def _objects(connection: duckdb.DuckDBPyConnection, frame: pl.DataFrame) -> tuple[pl.DataFrame, pl.DataFrame]:
    """Split off what is not a JSON object."""
    connection.register("objects", frame.to_arrow())
    judged = connection.sql("SELECT *, CASE WHEN json_valid(text) THEN json_type(text) END AS kind FROM objects").pl()
    connection.unregister("objects")
    is_object = (pl.col("kind") == "OBJECT").fill_null(False)
    bad = judged.filter(~is_object).select(
        file="_file",
        line="_line",
        record="text",
        reason=pl.lit("broken_json"),
        detail=pl.when(pl.col("kind").is_null())
        .then(pl.lit("not valid JSON"))
        .otherwise(pl.format("expected an object, found {}", pl.col("kind"))),
    )
    return judged.filter(is_object).drop("kind"), bad


def _table(path: str, text: str, source: Source) -> tuple[pl.DataFrame, pl.DataFrame]:
    """The rows of a file of lines, of a table or of a document."""
    match source.read:
        case "csv":
            return _csv(path, text, source.options, default_delimiter=",", default_quote='"')
        case "tsv":
            return _csv(path, text, source.options, default_delimiter="\t", default_quote="")
        case "text":
            frame, bad = _lines(path, text)
            return frame.rename({"text": "line"}).with_columns(line_number=pl.col("_line")), bad
        case _:
            return pl.DataFrame({"_file": [path], "_line": [1], "text": [text]}, _LINE), _no_problems()


def _csv(
    path: str, text: str, options: ReaderOptions, default_delimiter: str, default_quote: str
) -> tuple[pl.DataFrame, pl.DataFrame]:
    delimiter = options.delimiter if options.delimiter is not None else default_delimiter
    quote = options.quote if options.quote is not None else default_quote
    has_header = options.header if options.header is not None else options.columns is None
    if not text.strip():
        return pl.DataFrame(schema=_LINE), _no_problems()
    first = text.lstrip("\r\n").partition("\n")[0].rstrip("\r")
    header = next(csv.reader(io.StringIO(first), delimiter=delimiter)) if quote else first.split(delimiter)
    names = options.columns or ([*header] if has_header else [f"column{index}" for index in range(len(header))])
    names = [name.strip() or f"column{index}" for index, name in enumerate(names)]
    read = _quoted_table if quote else _plain_table
    return read(path, text, delimiter, quote, names, has_header)


def _plain_table(
    path: str, text: str, delimiter: str, quote: str, names: list[str], has_header: bool
) -> tuple[pl.DataFrame, pl.DataFrame]:
    """A table whose lines are its rows: nothing is quoted, so a stray quote is a character as any other."""
    lines, bad = _lines(path, text)
    split = lines.slice(1 if has_header else 0).with_columns(fields=pl.col("text").str.split(delimiter))
    fits = pl.col("fields").list.len() == len(names)
    misfits = split.filter(~fits).select(
        file="_file",
        line="_line",
        record="text",
        reason=pl.lit("columns"),
        detail=pl.format("expected {} fields, found {}", pl.lit(len(names)), pl.col("fields").list.len()),
    )
    fields = [pl.col("fields").list.get(index).alias(name) for index, name in enumerate(names)]
    return split.filter(fits).select("_file", "_line", *fields), pl.concat([bad, misfits])


def _quoted_table(
    path: str, text: str, delimiter: str, quote: str, names: list[str], has_header: bool
) -> tuple[pl.DataFrame, pl.DataFrame]:
    """A table with quoted fields, read by DuckDB, which tells the line of each row that it rejects."""
    nul = text.count("\0")
    with tempfile.TemporaryDirectory(prefix="conan-") as folder, duckdb.connect(":memory:") as connection:
        file = Path(folder) / "table.csv"
        file.write_text(text.replace("\0", "␀"), "utf-8", errors="replace", newline="")
        columns = "{" + ", ".join(f"{_quoted(name)}: 'VARCHAR'" for name in names) + "}"
        connection.execute(
            f"""CREATE TABLE found AS FROM read_csv(?, auto_detect = false, columns = {columns}, header = false,
                    skip = {int(has_header)}, delim = {_quoted(delimiter)}, quote = {_quoted(quote)},
                    escape = {_quoted(quote)}, strict_mode = true, store_rejects = true, rejects_limit = 0,
                    parallel = false, max_line_size = {4 * LONGEST_RECORD}, nullstr = chr(1))""",
            [str(file)],
        )
        frame = connection.sql("FROM found").pl()
        rejected = connection.sql(
            "SELECT line, any_value(csv_line) AS record, any_value(error_type) AS kind, "
            "any_value(error_message) AS message FROM reject_errors GROUP BY line ORDER BY line"
        ).pl()
    bad = rejected.select(
        file=pl.lit(path),
        line=pl.col("line").cast(pl.Int64),
        record="record",
        reason=pl.lit("columns"),
        detail=pl.format("{}: {}", pl.col("kind").cast(pl.String).str.to_lowercase(), pl.col("message")),
    )
    # A row's line: those before it, and the line breaks inside their fields.
    breaks = pl.sum_horizontal([pl.col(name).str.count_matches("\n", literal=True).fill_null(0) for name in names])
    before = (breaks + 1).cum_sum() - breaks
    frame = frame.with_columns(pl.col(names).fill_null("")).with_columns(
        _file=pl.lit(path), _line=(before + int(has_header)).cast(pl.Int64)
    )
    if nul:
        damaged = pl.any_horizontal(pl.col(names).str.contains("␀", literal=True))
        nul_rows = frame.filter(damaged).select(
            file="_file",
            line="_line",
            record=pl.concat_str(names, separator=delimiter),
            reason=pl.lit("nul_bytes"),
            detail=pl.lit("NUL bytes in a field"),
        )
        frame, bad = frame.filter(~damaged), pl.concat([bad, nul_rows])
    return frame, bad


def _parquet(path: str) -> pl.DataFrame:
    try:
        frame = pl.from_arrow(pq.read_table(path))
    except (OSError, ValueError) as error:
        raise FileError("unreadable", f"{type(error).__name__}: {error}") from error
    assert isinstance(frame, pl.DataFrame)
    return frame.with_columns(_file=pl.lit(path), _line=pl.int_range(1, pl.len() + 1, dtype=pl.Int64))


def _join_table(path: str) -> pl.DataFrame:
    """The lines of a file that the recipe joins."""
    frame, _ = _lines(path, read_text(path)[0])
    return frame.select(line="text", line_number="_line")
