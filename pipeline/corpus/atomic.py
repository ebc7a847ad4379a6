"""Atomic file replacement: write under a temporary name, fsync, rename."""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


def commit(temporary: Path, path: Path) -> None:
    """Rename a complete, fsynced file or folder to its final name, and fsync the parent folder."""
    temporary.replace(path)
    descriptor = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_text(path: Path, text: str) -> None:
    """Write a small text file atomically."""
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yield a temporary name to write to; rename it to `path` if the block succeeds, delete it if the block raises.

    Temporary files that killed runs left for `path` are deleted too, so only one process at a time may replace a file.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        clear_temporaries(path.parent, path.name)
        yield temporary
        with temporary.open("rb") as file:
            os.fsync(file.fileno())
        commit(temporary, path)
    except OSError as error:
        error.filename = error.filename or str(path)
        raise
    finally:
        clear_temporaries(path.parent, path.name)


def clear_temporaries(folder: Path, name: str = "*") -> None:
    """Delete the temporary files that killed processes left for a file, including folders that DuckDB spills to."""
    for leftover in folder.glob(f".{name}.*.tmp*"):
        if leftover.is_dir():
            shutil.rmtree(leftover)
        else:
            leftover.unlink(missing_ok=True)
