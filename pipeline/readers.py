"""From the files of a source to rows in DuckDB: the table `rows`, and `problems` for what never became a row.

Files are decoded before DuckDB sees them, so its connection needs no access to any file: the recipe's SQL runs in a
database that holds the source's own rows and nothing else (external access off, configuration locked).
"""

import json
import re
from collections.abc import Sequence
from typing import Any

import duckdb
import fsspec
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq

from ..schemas.settings import Source
from .files import BROKEN, FileError, read_text
from .shapes import statement
from .tables import LINE, LONGEST_RECORD, distinct, lines_of, no_problems, problem, table

RECORD_SHAPES = ("alpaca", "sharegpt", "messages", "squad", "triples")
DEEPEST_RECORD = 100
"""Ours: levels of JSON; DuckDB's json_structure ends at 128 and takes its database with it."""

_MARK = f"{BROKEN}(\\d+){BROKEN}"


class SourceError(ValueError):
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


def read(connection: duckdb.DuckDBPyConnection, source: Source, paths: Sequence[str]) -> pl.DataFrame:
    """Make the table `rows(_row, _file, _line, …)` from files; returns what was no row, with file, line and reason."""
    problems = [no_problems()]
    frames: list[pl.DataFrame] = []
    texts: list[tuple[str, str]] = []
    for path in paths:
        name = path.encode("utf-8", "backslashreplace").decode()  # the bytes of a file's name may be no text
        try:
            if source.read == "parquet":
                frames = [_beside(frames, _parquet(path, name))]
                continue
            text, _, cut = read_text(path, source.encoding)
            if cut:
                problems.append(problem(name, None, None, "truncated", cut))
            if source.read in ("csv", "tsv", "text", "markdown"):
                frame, bad = _table(name, text, source)
                frames.append(frame)
                problems.append(bad)
            else:
                texts.append((name, _mark_lone_surrogates(text)))
        except FileError as error:
            problems.append(problem(name, None, None, error.reason, error.detail))
    if texts:
        frame, bad = _records(connection, texts, source)
        frames.append(frame)
        problems.append(bad)
    rows = pl.concat(frames, how="diagonal") if frames else pl.DataFrame(schema=LINE)
    if source.read != "parquet":
        rows, broken = _without_broken(rows)
        problems.append(broken)
    connection.register("frame", rows.with_row_index("_row").to_arrow())
    problems.append(_make_rows(connection, source))
    connection.unregister("frame")
    return pl.concat(problems).with_columns(pl.col("record").str.replace_all(_MARK, ""))


def read_joined(connection: duckdb.DuckDBPyConnection, source: Source) -> None:
    """Make a table of the lines of each file in the source's `join:`. Raises SourceError where it can't be read."""
    for name, path in source.join.items():
        try:
            text, _, _ = read_text(path)
        except FileError as error:
            raise SourceError(f"join {name}: {path}: {error}") from error
        lines, _ = _without_broken(lines_of(path, text)[0])
        connection.register("joined", lines.select(line="text", line_number="_line").to_arrow())
        connection.execute(f'CREATE TABLE "{name}" AS FROM joined')
        connection.unregister("joined")


def _make_rows(connection: duckdb.DuckDBPyConnection, source: Source) -> pl.DataFrame:
    """The table `rows`; returns the records of which a shape makes no row."""
    if source.read in ("csv", "tsv", "text", "parquet"):
        connection.execute("CREATE TABLE rows AS FROM frame")
        return no_problems()
    if source.read == "markdown":
        connection.execute("CREATE TABLE texts AS FROM frame")
        connection.execute(f"CREATE TABLE rows AS {statement('markdown', 1)}")
        return no_problems()
    connection.execute("CREATE TABLE records AS SELECT _row, _file, _line, CAST(text AS JSON) AS record FROM frame")
    if source.read in RECORD_SHAPES:
        connection.execute(f"CREATE TABLE rows AS {statement(source.read, source.options.turns)}")
    elif source.options.whole:
        connection.execute("CREATE TABLE rows AS SELECT _row, _file, _line, record AS data FROM records")
    else:
        found = connection.execute("SELECT json_group_structure(record) FROM records").fetchone()
        structure = _nameable(json.loads(found[0])) if found and found[0] else {}
        columns = f", unnest(from_json(record, {_quoted(json.dumps(structure))}))" if structure else ""
        connection.execute(f"CREATE TABLE rows AS SELECT _row, _file, _line{columns} FROM records")
    barren: pl.DataFrame = connection.sql(
        f"""SELECT _file AS file, _line AS line, CAST(record AS VARCHAR) AS record, 'no_pair' AS reason,
                'no pair of the shape {source.read} in it' AS detail
            FROM records ANTI JOIN rows USING (_row) ORDER BY _row"""
    ).pl()
    return barren


def _nameable(structure: Any) -> dict[str, Any]:
    """The keys of an object that can be columns: DuckDB knows no empty name, and none in both upper and lower case.

    Objects further in that have such keys stay JSON.
    """

    def inner(kind: Any) -> Any:
        if isinstance(kind, list):
            return [inner(kind[0])]
        if isinstance(kind, dict):
            return _nameable(kind) if len(_nameable(kind)) == len(kind) else "JSON"
        return kind

    columns: dict[str, Any] = {}
    for key, kind in structure.items() if isinstance(structure, dict) else ():
        if key and key.lower() not in map(str.lower, columns):
            columns[key] = inner(kind)
    return columns


def _quoted(text: str) -> str:
    return "'" + text.replace("'", "''") + "'"


def _without_broken(frame: pl.DataFrame) -> tuple[pl.DataFrame, pl.DataFrame]:
    """Split off the rows that hold bytes which are no text in the file's encoding."""
    columns = [name for name, kind in frame.schema.items() if kind == pl.String and name != "_file"]
    damaged = pl.any_horizontal(pl.col(columns).str.contains(_MARK).fill_null(False))
    bad = frame.filter(damaged)
    if bad.is_empty():
        return frame, no_problems()
    record = pl.concat_str(columns, separator="\t", ignore_nulls=True)
    return frame.filter(~damaged), bad.select(
        file="_file",
        line="_line",
        record=record,
        reason=pl.lit("encoding"),
        detail=pl.format("no text at offset {}", record.str.extract(_MARK)),
    )


_SURROGATES = re.compile(
    r"\\\\|\\u[dD][89abAB][0-9a-fA-F]{2}\\u[dD][c-fC-F][0-9a-fA-F]{2}|(\\u[dD][89a-fA-F][0-9a-fA-F]{2})"
)


def _mark_lone_surrogates(text: str) -> str:
    """Half a character, escaped (`\\ud83d` alone), makes one record no text, not the whole document no JSON."""
    if "\\ud" not in text and "\\uD" not in text:
        return text
    return _SURROGATES.sub(lambda found: f"{BROKEN}{found.start()}{BROKEN}" if found[1] else found[0], text)


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
        problem(path, error.lineno, text[:LONGEST_RECORD].replace("\0", "␀"), "broken_json", str(error))
        for path, text in no_lines.select("_file", "text").iter_rows()
        for error in (_json_error(text),)
    ]
    return pl.concat([records, lines]), pl.concat([not_objects, bad_lines, *broken])


def _json_error(text: str) -> json.JSONDecodeError:
    try:
        json.loads(text)
    except json.JSONDecodeError as error:
        return error
    except RecursionError:
        return json.JSONDecodeError("nested too deep", "", 0)
    return json.JSONDecodeError("not valid JSON", "", 0)


def _json_lines(connection: duckdb.DuckDBPyConnection, documents: pl.DataFrame) -> tuple[pl.DataFrame, pl.DataFrame]:
    split = [lines_of(path, text) for path, text in documents.iter_rows()]
    lines = pl.concat([pl.DataFrame(schema=LINE), *[good for good, _ in split]])
    frame, not_objects = _objects(connection, lines)
    return frame, pl.concat([no_problems(), *[bad for _, bad in split], not_objects])


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
    good, deep = _without_deep(judged.filter(is_object).drop("kind"))
    return good, pl.concat([bad, deep])


def _without_deep(frame: pl.DataFrame) -> tuple[pl.DataFrame, pl.DataFrame]:
    """Split off records of more levels than DEEPEST_RECORD."""
    text = pl.col("text")
    frame = frame.with_row_index("row")
    nested = frame.filter(text.str.count_matches(r"[\[{]") > DEEPEST_RECORD)
    brackets = nested.select("row", text.str.replace_all(r'"(?:[^"\\]|\\.)*"|[^\[\]{}]', ""))
    for _ in range(DEEPEST_RECORD):  # each pass takes the innermost levels away
        brackets = brackets.with_columns(text.str.replace_all(r"\[\]|\{\}", "")).filter(text != "")
    deep = pl.col("row").is_in(brackets["row"].implode())
    bad = frame.filter(deep).select(
        file="_file",
        line="_line",
        record="text",
        reason=pl.lit("too_deep"),
        detail=pl.lit(f"more than {DEEPEST_RECORD} levels"),
    )
    return frame.filter(~deep).drop("row"), bad


def _table(path: str, text: str, source: Source) -> tuple[pl.DataFrame, pl.DataFrame]:
    """The rows of a file of lines, of a table or of a document."""
    match source.read:
        case "csv":
            return table(path, text, source.options, default_delimiter=",", default_quote='"')
        case "tsv":
            return table(path, text, source.options, default_delimiter="\t", default_quote="")
        case "text":
            frame, bad = lines_of(path, text)
            return frame.rename({"text": "line"}).with_columns(line_number=pl.col("_line")), bad
        case _:
            return pl.DataFrame({"_file": [path], "_line": [1], "text": [text]}, LINE), no_problems()


def _beside(frames: Sequence[pl.DataFrame], frame: pl.DataFrame) -> pl.DataFrame:
    try:
        return pl.concat([*frames, frame], how="diagonal_relaxed")
    except pl.exceptions.PolarsError as error:
        raise FileError("columns", f"they don't fit those of the files before: {str(error).splitlines()[0]}") from error


def _parquet(path: str, name: str) -> pl.DataFrame:
    try:
        with fsspec.open(path, "rb") as file:
            frame = pl.from_arrow(pq.read_table(file))
    except (OSError, ValueError, pa.ArrowException, pl.exceptions.PolarsError) as error:
        raise FileError("unreadable", f"{type(error).__name__}: {error}") from error
    assert isinstance(frame, pl.DataFrame)
    frame.columns = distinct(frame.columns)
    return frame.with_columns(_file=pl.lit(name), _line=pl.int_range(1, pl.len() + 1, dtype=pl.Int64))
