"""Locks: one command works on a corpus at a time, and is told what to do where its disk is full."""

import errno
import fcntl
import json
import os
import socket
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import Any

from ...schemas.errors import CorpusError


@contextmanager
def locked(corpus: Path) -> Iterator[None]:
    """Hold the corpus: one command works on it at a time.

    The operating system frees the lock of an owner that dies, so there is nothing to clear by hand.

    Raises:
        CorpusError: another command holds it; names its process, machine and start. Or its disk is full.
    """
    with _full_disk_explained(corpus):
        corpus.mkdir(parents=True, exist_ok=True)
        with (corpus / ".lock").open("a+", encoding="utf-8") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                file.seek(0)
                owner: Mapping[str, Any] = json.loads(file.read() or "{}")
                raise CorpusError(
                    f"{corpus} is in use by process {owner.get('process', '?')} on {owner.get('machine', '?')} "
                    f"since {owner.get('since', '?')}; wait for it or stop it"
                ) from error
            file.truncate(0)
            since = datetime.now().astimezone().isoformat(timespec="seconds")
            file.write(json.dumps({"process": os.getpid(), "machine": socket.gethostname(), "since": since}))
            file.flush()
            yield


@contextmanager
def alone_in(folder: Path) -> Iterator[None]:
    """Wait for whoever is alone in this folder, then be it: for a file that is read, changed and written anew."""
    with (folder / ".lock").open("a") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


@contextmanager
def _full_disk_explained(corpus: Path) -> Iterator[None]:
    """Say what to do about a full disk, whoever met it: this process, a worker, DuckDB or Polars."""
    try:
        yield
    except Exception as error:
        if not any(os.strerror(code) in str(error) for code in (errno.ENOSPC, errno.EDQUOT)):
            raise
        raise CorpusError(
            f"{error}\nThere is no space left for {corpus}. What is committed there is whole: make room, then run the "
            "same command again, and it goes on where it stopped"
        ) from error
