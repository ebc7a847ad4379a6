"""The lock of a corpus in an object store: an object with its owner, which holds it for as long as it renews it.

Nobody can tell whether a process on another machine is alive, so the lock is a lease: an owner that does not renew it
loses it. All writes of the lock are conditional, so that of two writers who take it at once only one succeeds.
"""

import json
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import datetime
from hashlib import sha256
from pathlib import Path
from threading import Event, Lock, Thread
from time import monotonic
from typing import Any
from uuid import uuid4

from ...schemas.errors import CorpusError
from .object_store import ChangedError, ObjectStore, StoreError

LOCK = ".lock"
"""The name of the object."""
SECONDS = 60.0
"""Chosen here: how long a lease holds without being renewed; how long others wait for an owner that was killed."""
RENEWALS = 4
"""Chosen here: how often a lease is renewed in its time, so that it outlasts faults of some seconds."""


class LeaseLostError(CorpusError):
    """This process may no longer write to the corpus."""


@contextmanager
def lease(store: ObjectStore, own: Path) -> Iterator["Lease"]:
    """Hold the lock of a corpus; a thread renews it.

    The file `own` keeps the lease's token. Only one process at a time may use that file, so an owner with the token in
    it is dead: its lock is taken over at once.

    Raises:
        CorpusError: another command holds the lock (the message names its process, machine and start time), or the
            store ignores conditions of writes.
    """
    held = Lease(store, own)
    held.take()
    held.check_store()
    thread = Thread(target=held.renew, daemon=True)
    thread.start()
    try:
        yield held
    finally:
        held.over.set()
        thread.join()
        held.release()


class Lease:
    """A lock that this process holds, or has lost."""

    def __init__(self, store: ObjectStore, own: Path) -> None:
        self.store, self.own = store, own
        self.over, self.writing = Event(), Lock()
        self.etag: str | None = None
        self.until = 0.0
        self.token = uuid4().hex
        self.owner = {
            "process": os.getpid(),
            "machine": socket.gethostname(),
            "since": datetime.now().astimezone().isoformat(timespec="seconds"),
            "token": self.token,
            "seconds": SECONDS,
        }

    def take(self) -> None:
        """Take the lock if it is free: absent, released, expired, or of a dead process."""
        found = self.store.read_with_age(LOCK)
        content, self.etag, age = found or (b"{}", None, 0.0)
        owner = json.loads(content)
        own = self.own.read_text("utf-8") if self.own.exists() else ""
        if owner and owner["token"] != own and age <= owner["seconds"]:
            raise CorpusError(
                f"{self.store.uri} is in use by process {owner['process']} on {owner['machine']} since "
                f"{owner['since']}; wait for it or stop it (the lock of a process that was killed ends after "
                f"{owner['seconds']:.0f} s; this one was renewed {age:.0f} s ago)"
            )
        self.own.write_text(self.token, encoding="utf-8")
        try:
            self._write(self.owner)
        except ChangedError as error:
            raise CorpusError(f"{self.store.uri} has just been taken by another process; wait for it") from error

    def check_store(self) -> None:
        """Raise StoreError if the store carries out writes whose conditions don't hold, as two writers could then."""
        for wrong in (None, '"another"'):
            try:
                self.etag = self.store.put(LOCK, self._content(self.owner), wrong)
            except ChangedError:
                continue
            self.release()
            raise StoreError(
                f"{self.store.uri}: this store ignores the conditions of writes (If-Match and If-None-Match), so it "
                "can't hold a corpus: two commands could write to it at once. Use a newer release of it, or a folder"
            )

    def renew(self) -> None:
        """Renew the lease until it is over or lost; faults of the network are borne until it ends."""
        while not self.over.wait(SECONDS / RENEWALS):
            try:
                self._write(self.owner)
            except ChangedError:
                self.until = 0.0
                return
            except StoreError:
                continue

    def check(self) -> None:
        """Raise LeaseLostError if this process no longer holds the lock, or can't know whether it does.

        A lease whose time is over, because the process or its machine was stopped, is renewed if nobody has taken it.
        """
        if monotonic() > self.until:
            with suppress(StoreError):
                self._write(self.owner)
        if monotonic() > self.until:
            raise LeaseLostError(
                f"{self.store.uri}: the lock was lost, as it could not be renewed in time or another process took it; "
                "nothing more was uploaded. Run the same command again: what is committed stays, and it continues "
                "from there"
            )

    @staticmethod
    def name_write(path: str) -> str:
        """Return an id for the next write of an object."""
        return uuid4().hex

    def release(self) -> None:
        """Free the lock, unless it was lost."""
        if monotonic() <= self.until:
            try:
                self._write({})
            except StoreError:  # it ends by itself
                return

    def _write(self, owner: dict[str, Any]) -> None:
        with self.writing:
            began = monotonic()
            self.etag = self.store.put(LOCK, self._content(owner), self.etag)
            self.until = began + SECONDS

    @staticmethod
    def _content(owner: dict[str, Any]) -> bytes:
        # Each content differs from all others, as an ETag is a hash of it: a renewal must not look like what it renews.
        return json.dumps(owner and owner | {"write": uuid4().hex}).encode()


@dataclass(frozen=True)
class BorrowedLease:
    """The lock as a process uses it that works for its owner on another machine, by the owner's token.

    `work` is what the process does. It names the writes, so that a second process that does the same, since the first
    seemed lost, finds that they are done.
    """

    store: ObjectStore
    token: str
    work: str

    def check(self) -> None:
        """Raise LeaseLostError unless the owner holds the lock."""
        content, _, age = self.store.read_with_age(LOCK) or (b"{}", "", 0.0)
        owner = json.loads(content)
        if owner.get("token") != self.token or age > owner["seconds"]:
            raise LeaseLostError(f"{self.store.uri}: the command that gave out this work no longer holds the lock")

    def name_write(self, path: str) -> str:
        """Return the id of the write of an object."""
        return sha256(f"{self.token} {self.work} {path}".encode()).hexdigest()[:32]
