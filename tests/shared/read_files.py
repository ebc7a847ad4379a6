"""Read a source's files and look at the results."""

import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import duckdb
import polars as pl
from conan_embedding.pipeline.ingest import readers
from conan_embedding.pipeline.ingest.columns import decide_columns
from conan_embedding.pipeline.ingest.files import FileSplit
from conan_embedding.pipeline.ingest.problems import no_problems
from conan_embedding.schemas.source_settings import Source

Rows = list[dict[str, Any]]
Problems = list[tuple[int | None, str, str | None]]
"""Line, reason, record."""


def load_batches(
    connection: duckdb.DuckDBPyConnection, source: Source, splits: Sequence[FileSplit]
) -> Iterator[pl.DataFrame]:
    """Read splits batch by batch into the table that the view `rows` shows; yield each batch's problems."""
    for frame, problems in readers.read_batches(connection, source, splits):
        yield pl.concat([problems, readers.load_batch(connection, source, frame)])


class Read:
    """The rows and problems of a source's files."""

    def __init__(self, paths: list[str], **source: Any) -> None:
        splits = [FileSplit(path) for path in paths]
        # With `rows` in the SQL, all keys of JSON become columns.
        one = decide_columns(
            Source.model_validate({"name": "web", "files": "*", "meta": "rows", **source}), splits
        ).source
        self.rows: Rows = []
        problems = [no_problems()]
        with readers.open_sandbox() as connection:
            for batch in load_batches(connection, one, splits):
                problems.append(batch)
                self.rows += connection.sql("FROM rows ORDER BY _row").pl().to_dicts()
        self.problems_frame = pl.concat(problems)
        self.problems: Problems = self.problems_frame.select("line", "reason", "record").rows()

    def values(self, *names: str) -> list[Any]:
        """Return the values of one column, or tuples of several columns' values."""
        found = [tuple(row.get(name) for name in names) for row in self.rows]
        return [value for (value,) in found] if len(names) == 1 else found

    @property
    def lines(self) -> list[Any]:
        return self.values("_line")

    @property
    def details(self) -> list[str]:
        return self.problems_frame["detail"].to_list()


Reader = Callable[..., Read]


def reader(folder: Path) -> Reader:
    """Return a function that writes a file and reads it, by its name's ending unless `read` is given."""

    def read(data: str | bytes, name: str, **source: Any) -> Read:
        path = folder / name
        path.write_bytes(data.encode() if isinstance(data, str) else data)
        return Read([str(path)], **({"read": path.suffix[1:]} | source))

    return read


def read_records(folder: Path, shape: str, *records: Any, **options: int) -> Read:
    """Write records as lines, and read them in a shape."""
    text = "\n".join(json.dumps(record, ensure_ascii=False) for record in records)
    return reader(folder)(text, "a.jsonl", read=shape, options=options)


def read_named(
    folder: Path, shape: str, records: dict[str, Any]
) -> tuple[list[tuple[Any, ...]], list[tuple[Any, ...]]]:
    """Read records in a shape, all at once.

    Returns:
        The name of the record, query, positive and negatives of each pair; name, reason and detail of each reject.
    """
    found = read_records(folder, shape, *records.values())
    names = list(records)
    pairs = found.values("_line", "query", "positive", "negatives")
    rejects = found.problems_frame.sort("line").select("line", "reason", "detail").rows()
    return [(names[line - 1], *pair) for line, *pair in pairs], [
        (names[line - 1], *reject) for line, *reject in rejects
    ]
