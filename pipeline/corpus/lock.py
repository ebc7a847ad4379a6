"""Locks, so that one command at a time works on a corpus; and what to tell the user if its disk is full."""

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
from .uris import is_mirror, leased, refuse_uri


@contextmanager
def locked(corpus: Path) -> Iterator[None]:
    """Hold the lock of a corpus: only one command at a time works on it.

    The operating system releases the lock if its owner dies, so nobody has to delete a stale lock. That of a corpus in
    an object store ends by itself (see lease.py), and what has changed is uploaded before.

    Raises:
        CorpusError: another command holds the lock (the message names its process, machine and start time), the disk
            is full, or the corpus is a URI that was not opened (see mirror.py).
        StoreError: an object store can't be used.
    """
    refuse_uri(corpus)
    with _full_disk_explained(corpus), leased(corpus) if is_mirror(corpus) else _locked_folder(corpus):
        yield


@contextmanager
def _locked_folder(corpus: Path) -> Iterator[None]:
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
    """Block until this process holds the folder's lock, so that it can read, change and rewrite a file there."""
    with (folder / ".lock").open("a") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


@contextmanager
def _full_disk_explained(corpus: Path) -> Iterator[None]:
    """Explain what to do about a full disk, whether this process, a worker, DuckDB or Polars reports it."""
    try:
        yield
    except Exception as error:
        if not any(os.strerror(code) in str(error) for code in (errno.ENOSPC, errno.EDQUOT)):
            raise
        raise CorpusError(
            f"{error}\nThere is no space left for {corpus}. Everything committed so far is intact: free some space, "
            "then run the same command again, and it continues where it stopped"
        ) from error
