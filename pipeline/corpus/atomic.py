"""Atomic file replacement: write under a temporary name, fsync, rename."""

import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


def commit(temporary: Path, path: Path) -> None:
    """Rename a complete file or folder to its final name, and fsync the parent folder.

    The caller must have fsynced `temporary`. A folder can only be renamed to a name that is free or an empty folder.
    """
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
    """Yield a temporary path next to `path`, where the block must create a file.

    If the block succeeds, the file is fsynced and renamed to `path`; if it raises, the file is deleted. The caller must
    be the only process that replaces `path`, because temporary files that killed processes left for it are deleted.
    """
    # The process ID keeps a second writer, which should not exist, from writing into the same file.
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        clear_temporaries(path.parent, path.name)
        yield temporary
        with temporary.open("rb") as file:
            os.fsync(file.fileno())
        commit(temporary, path)
    except OSError as error:
        error.filename = error.filename or str(path)  # a failed fsync names no file; the user should see which one
        raise
    finally:
        clear_temporaries(path.parent, path.name)


def clear_temporaries(folder: Path, name: str | None = None) -> None:
    """Delete the temporary files that killed processes left for the file `name`, or by default for any file.

    The caller must be the only writer of that file or, without `name`, the only writer in the folder. Names that
    continue after `.tmp` are deleted as well: DuckDB adds `.wal` for its log and `.tmp` for the folder it spills to.
    """
    pattern = re.compile(rf"\.{'.+' if name is None else re.escape(name)}\.[0-9]+\.tmp.*", re.DOTALL)
    for leftover in folder.glob(".*.tmp*"):
        if not pattern.fullmatch(leftover.name):
            continue
        if leftover.is_dir():
            shutil.rmtree(leftover)
        else:
            leftover.unlink(missing_ok=True)
