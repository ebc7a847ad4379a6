"""Files that are whole or not there: written under a temporary name, fsynced, renamed."""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


def commit(temporary: Path, path: Path) -> None:
    """Give a whole, fsynced file or folder its name: after this it is there, before it is not."""
    temporary.replace(path)
    descriptor = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_text(path: Path, text: str) -> None:
    """Write a small file whole or not at all."""
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A name to write a file under, which gets its own when the block ends well; nothing stays when it raises.

    What killed runs left goes, too: one process at a time may replace a file.
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
    """Remove what killed processes left of a file; where DuckDB had no memory left, that is a folder, too."""
    for leftover in folder.glob(f".{name}.*.tmp*"):
        if leftover.is_dir():
            shutil.rmtree(leftover)
        else:
            leftover.unlink(missing_ok=True)
