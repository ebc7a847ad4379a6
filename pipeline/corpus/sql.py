"""Parts of SQL statements for DuckDB: literals, and scans of shards.

Where a statement takes parameters, values go in as those; views and ATTACH take none.
"""

from collections.abc import Iterable
from pathlib import Path


def quote(value: str | Path) -> str:
    """Write a text or a path as a string literal."""
    return "'" + str(value).replace("'", "''") + "'"


def scan_shards(files: Iterable[Path], **options: bool) -> str:
    """Write a scan of Parquet files, with more options of `read_parquet` if given.

    A folder called `year=2024` above the corpus must not become a column, so Hive partitioning is off.
    """
    listed = ", ".join(quote(file) for file in files)
    settings = {"hive_partitioning": False} | options
    return f"read_parquet([{listed}], {', '.join(f'{name} = {value}' for name, value in settings.items())})"
