"""Read the rows of Parquet and Arrow files as records of JSON, so that the shapes of JSON are read from them, too."""

from collections.abc import Callable, Iterator
from pathlib import PurePosixPath

import polars as pl
import polars.selectors as cs

from ...schemas.source_settings import Source
from .files import FileSplit
from .hf_reader import read_dataset
from .parquet_reader import read_parquet, split_row_groups
from .problems import Frames, fitting
from .shown_records import show_columns

_READERS: dict[str, Callable[[FileSplit], Iterator[Frames]]] = {
    ".parquet": read_parquet,
    ".pq": read_parquet,
    ".arrow": read_dataset,
}


def has_rows(path: str) -> bool:
    """Whether a file's name says that it holds columns, not text."""
    return _ending(path) in _READERS


def read_rows(split: FileSplit) -> Iterator[Frames]:
    """Read a file's rows as records of JSON (`_file`, `_line`, `text`), and problems.

    Raises:
        FileError: see parquet_reader.read_parquet and hf_reader.read_dataset.
    """
    for frame, problems in _READERS[_ending(split.path)](split):
        rows = frame.drop("_file", "_line").with_columns(cs.float().fill_nan(None))  # JSON has no NaN
        records, unfit = fitting(frame.select("_file", "_line", text=show_columns(rows)))
        yield records, pl.concat([problems, unfit])


def split_rows(path: str, source: Source, size: int) -> list[FileSplit]:
    """Split a Parquet file between row groups, as split_row_groups does; others stay whole."""
    return split_row_groups(path, source, size) if _READERS.get(_ending(path)) is read_parquet else [FileSplit(path)]


def _ending(path: str) -> str:
    return PurePosixPath(path).suffix.lower()
