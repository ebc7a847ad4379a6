"""Parts of SQL statements for DuckDB: literals, and scans of shards.

Statements that accept parameters should use those instead; views and ATTACH don't accept any.
"""

from collections.abc import Iterable
from pathlib import Path


def quote(value: str | Path) -> str:
    """Quote a text or a path as an SQL string literal."""
    return "'" + str(value).replace("'", "''") + "'"


def scan_shards(files: Iterable[Path], **options: bool) -> str:
    """Build a `read_parquet` call over files; `options` are further options of `read_parquet`.

    A folder called `year=2024` above the corpus must not become a column, so Hive partitioning is off.
    """
    listed = ", ".join(quote(file) for file in files)
    settings = {"hive_partitioning": False} | options
    return f"read_parquet([{listed}], {', '.join(f'{name} = {value}' for name, value in settings.items())})"


def quote_name(name: str) -> str:
    """Quote a name as an SQL identifier."""
    return '"' + name.replace('"', '""') + '"'
