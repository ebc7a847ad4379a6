"""A folder of this machine in which a corpus in an object store is worked on.

Stages read and write a mirror as they do any corpus. What they read is fetched when they ask for it; what they commit
is uploaded right after, and the upload is the commit. The store decides: opening a mirror drops the files that differ
from the store's, for example shards of a run that was killed before it uploaded them.
"""

import fcntl
import hashlib
import json
import os
import re
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from fnmatch import fnmatch
from itertools import count
from pathlib import Path
from typing import IO, NamedTuple

from .atomic import replacing
from .lease import BorrowedLease, Lease, LeaseLostError, lease
from .object_store import THREADS, ChangedError, ObjectStore, Stored, StoreError

LISTED_WITHIN = 30.0
"""Chosen here: seconds in which the store must list what was put. S3 lists it at once; some stores lag."""

_MARKER = ".incomplete"
_EMPTY = ".empty"
"""An object in the folder of a stage that wrote no shards: an object store has no folders of its own."""
_LOCK = ".lock"
"""The file that a process holds locked as long as it uses the mirror, with the token of its lease."""
_COPIES = ".copies.jsonl"
"""The file that says which files of the mirror are copies of which objects."""
_SHARD = re.compile(r"(.*/)?(part-\d+\.parquet|\.incomplete)")
"""Shards, rejects and markers, on which only the store decides: what was not uploaded is not committed."""
_SMALL = re.compile(
    r"recipe\.yaml|holdout/questions/.*|evaluation/metrics\.json|train/[^/]*/(done|job\.json|log\.jsonl)|.*/\.incomplete"
)
"""Files that are fetched when a mirror is opened."""
_WORK = re.compile(r"(dedup/\.work|score/\.parts|\.search\.\d+\.tmp|vectors)/.*", re.DOTALL)
"""Files that calls on a cluster share (see shipping.py); they are in the store only while a command runs."""
_LOCAL = ("catalog.duckdb", "*.wal", "vectors/*", "train/*/checkpoints/*", "train/*/data/*")
"""Files that are never uploaded, besides names that begin with a dot: they can be made again from the rest."""


class _Copy(NamedTuple):
    """A file that is a copy of an object: the object's ETag, and the file's size and time of change."""

    etag: str
    size: int
    time: int


def open_mirror(uri: str, root: Path) -> "Mirror":
    """Return the mirror of a URI below `root`, in the first folder of its own that no other process uses."""
    store = ObjectStore(uri)
    for number in count():
        folder = find_place(uri, root) / str(number)
        folder.mkdir(parents=True, exist_ok=True)
        file = (folder / _LOCK).open("a", encoding="utf-8")
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.close()
        else:
            break
    return Mirror(store, root, folder, file)


def find_place(uri: str, root: Path) -> Path:
    """Return the folder below `root` for all mirrors of a URI."""
    name = re.sub(r"[^\w.-]+", "-", uri.removeprefix("s3://")) + "-" + hashlib.sha256(uri.encode()).hexdigest()[:8]
    return root / "corpora" / name


class Mirror:
    """The folder, what the store listed when it was last asked, and which files are copies of which objects.

    `lease` is set while this process may write to the store. `in_use` keeps the folder locked on this machine.
    `progress` is called with `fetch` or `upload`, the number of files done, the number of all, and 0.
    """

    def __init__(self, store: ObjectStore, root: Path, folder: Path, in_use: IO[str]) -> None:
        self.store, self.root, self.folder, self.in_use = store, root, folder, in_use
        self.lease: Lease | BorrowedLease | None = None
        self.progress: Callable[[str, int, int, int], None] = lambda *_: None
        self.remote: dict[str, Stored] = {}
        self.copies: dict[str, _Copy] = {}

    def refresh(self) -> None:
        """List the store, drop what it does not have, and fetch the small files.

        Other files than shards stay if they were written here and the store has not changed since: the run that wrote
        them could not upload them, and the end of the next one will.
        """
        self.remote = self.store.list_all()
        self.read_copies()
        for path, file in self._list_files():
            copy, stored = self.copies.get(path), self.remote.get(path)
            same_object = _etag(copy) == _etag(stored)
            is_copy = copy is not None and _describe(file, copy.etag) == copy
            if not same_object or (_SHARD.fullmatch(path) and not is_copy):
                file.unlink()
        self.write_copies()
        for parent in {path.rpartition("/")[0] for path in self.remote if not _is_local(path)}:
            (self.folder / parent).mkdir(parents=True, exist_ok=True)
        self._fetch(filter(_SMALL.fullmatch, self.remote))

    @contextmanager
    def leased(self) -> Iterator[None]:
        """Hold the lock of the corpus; in the end, upload all that has changed."""
        with lease(self.store, self.folder / _LOCK) as self.lease:
            try:
                self.refresh()
                self._delete_work()  # of a run that was killed
                try:
                    yield
                except (StoreError, LeaseLostError):  # to try again would only take time
                    raise
                except BaseException:
                    self.upload("")
                    raise
                self.upload("")
                self._delete_work()
            finally:
                self.lease = None

    def fetch(self, path: str) -> None:
        """Fetch the file at a path, or all files below it but those that are only for other machines."""
        self._fetch(each for each in self.remote if _is_below(each, path) and not _is_local(each))

    def fetch_shards(self, folder: str) -> None:
        """Fetch the shards of a stage and their rejects."""
        self._fetch(each for each in self.remote if _is_in(each, folder))

    def upload(self, path: str) -> None:
        """Put what has changed at and below a path, then delete what was here and is gone."""
        self.put_all(each for each, _ in self._list_files(path))
        gone = [each for each in self.copies if _is_below(each, path) and not (self.folder / each).exists()]
        self._check_folder()
        # A shard goes before its rejects, as in ShardWriter, and the marker last: until then, the stage is incomplete.
        for kind in _divide(gone):
            self._for_each(kind, self._end)

    def put_all(self, paths: Iterable[str]) -> None:
        """Put the files that have changed: rejects before shards, after deleting the shards that they replace."""
        changed = (path for path in paths if path not in self.remote or not self.is_copy(path))
        shards, rejected, others, markers = _divide(changed)
        self._for_each(markers, self._put)
        self._for_each([path for path in shards if path in self.remote], self._delete)
        for kind in (others, rejected, shards):
            self._for_each(kind, self._put, "upload")

    def receive(self, objects: Mapping[str, Stored]) -> None:
        """Fetch objects, unless they are here already; what is here in their place is replaced."""
        self.remote.update(objects)
        there = {path for path in objects if self.is_copy(path) and self.copies[path].etag == objects[path].etag}
        for path in objects.keys() - there:
            (self.folder / path).parent.mkdir(parents=True, exist_ok=True)
            (self.folder / path).unlink(missing_ok=True)
        self._for_each(objects.keys() - there, self.fetch_one)

    def list_again(self, folder: str) -> None:
        """List what is below a folder now, as other machines may have put and deleted objects there."""
        others = {path: stored for path, stored in self.remote.items() if not _is_below(path, folder)}
        self.remote = others | self.store.list_all(folder)

    def delete(self, paths: Iterable[str]) -> None:
        """Delete objects."""
        self._for_each(paths, self._delete)

    def settle(self, folder: str) -> None:
        """Put what has changed in a stage's folder, and wait until the store lists it all.

        Shards that were unknown until now are deleted: they were put by a writer that had lost its lock, or they are of
        an earlier sharding and a lagging listing left them out.

        Raises:
            StoreError: objects are not listed in time.
        """
        self.upload(folder)
        known = {path: stored for path, stored in self.remote.items() if _is_in(path, folder)}
        deadline = time.monotonic() + LISTED_WITHIN
        while True:
            listed = {path: stored for path, stored in self.store.list_all(folder).items() if _is_in(path, folder)}
            missing = [path for path, stored in known.items() if listed.get(path) != stored]
            if not missing:
                break
            if time.monotonic() > deadline:
                raise StoreError(
                    f"{self.store.uri}: {missing[0]} was put, but the store does not list it; run the same command "
                    "again later, and it continues from there"
                )
            time.sleep(0.2)
        self.delete(listed.keys() - known.keys())

    def _list_files(self, path: str = "") -> Iterator[tuple[str, Path]]:
        """List the files at and below a path that belong into the store, with their paths."""
        place = self.folder / path
        for file in [place] if place.is_file() else sorted(place.rglob("*")):
            name = file.relative_to(self.folder).as_posix()
            is_hidden = any(part.startswith(".") and part != _MARKER for part in name.split("/"))
            if not is_hidden and file.is_file() and not _is_local(name):
                yield name, file

    def _check_folder(self) -> None:
        """Raise StoreError if somebody has deleted the folder: its files are gone, but not for a stage's reasons."""
        try:
            is_there = os.path.samestat(os.fstat(self.in_use.fileno()), (self.folder / _LOCK).stat())
        except FileNotFoundError:
            is_there = False
        if not is_there:
            raise StoreError(
                f"{self.store.uri}: its copy in the cache was deleted while this command used it; run the command again"
            )

    def is_copy(self, path: str) -> bool:
        """Whether a file is still as it was when it was fetched or put."""
        copy, file = self.copies.get(path), self.folder / path
        return copy is not None and file.exists() and _describe(file, copy.etag) == copy

    def _delete_work(self) -> None:
        self.delete(list(filter(_WORK.fullmatch, self.remote)))

    def _fetch(self, paths: Iterable[str]) -> None:
        """Fetch the objects that are missing here. What a stage has written or deleted since is left alone."""
        wanted = [path for path in paths if path not in self.copies and not (self.folder / path).exists()]
        self._for_each(wanted, self.fetch_one, "fetch")

    def fetch_one(self, path: str) -> None:
        """Fetch an object. Raises ChangedError if it is no longer what was listed."""
        stored, file = self.remote[path], self.folder / path
        file.with_name(f"{file.name}.wal").unlink(missing_ok=True)  # DuckDB's, of an earlier database of this name
        try:
            with replacing(file) as temporary, temporary.open("wb") as target:
                target.writelines(self.store.read(path, stored))
        except ChangedError:
            if not path.endswith(_MARKER) or self.store.find(path) is not None:
                raise
            del self.remote[path]  # the stage has come to its end, which a lagging listing does not show
        else:
            os.utime(file, (stored.time, stored.time))  # so that results older than their model stay so
            self._note(path, stored.etag)

    def _put(self, path: str) -> None:
        assert self.lease is not None, f"{path} was written without the lock"
        check, file, write = self.lease.check, self.folder / path, self.lease.name_write(path)
        try:
            etag = self.store.upload(path, file, _etag(self.remote.get(path)), check, write)
        except ChangedError:
            # The owner of the lock decides which shards count. Another may be there: of a writer that lost the lock, or
            # one that was not listed.
            if not _SHARD.fullmatch(path) and not _WORK.fullmatch(path):
                raise
            etag = self.store.upload(path, file, _etag(self.store.find(path)), check, write)
        self.remote[path] = Stored(file.stat().st_size, etag)
        self._note(path, etag)

    def _end(self, path: str) -> None:
        """Delete an object; if it is the marker of a stage that wrote nothing, another one stands for its folder."""
        folder, _, name = path.rpartition("/")
        if name == _MARKER:
            sign = f"{folder}/{_EMPTY}"
            is_empty = not any(_is_in(each, folder) for each in self.remote.keys() - {path})
            if is_empty and sign not in self.remote:
                self.remote[sign] = Stored(0, self.store.put(sign, b"", None))
            elif not is_empty and sign in self.remote:
                self._delete(sign)
        self._delete(path)

    def _delete(self, path: str) -> None:
        assert self.lease is not None, f"{path} was deleted without the lock"
        self.lease.check()
        self.store.delete(path)
        self.remote.pop(path, None)
        self.copies.pop(path, None)

    def _for_each(self, paths: Iterable[str], work: Callable[[str], None], name: str = "") -> None:
        """Work on paths, in several threads if there are several; then, progress is shown under the name."""
        listed = list(paths)
        if len(listed) == 1:
            work(listed[0])
        elif listed:
            with ThreadPoolExecutor(THREADS) as threads:
                for done, _ in enumerate(threads.map(work, listed), start=1):
                    if name:
                        self.progress(name, done, len(listed), 0)

    def _note(self, path: str, etag: str) -> None:
        """Note that a file is a copy of an object."""
        copy = self.copies[path] = _describe(self.folder / path, etag)
        with (self.folder / _COPIES).open("a", encoding="utf-8") as file:
            file.write(_write_copy(path, copy))

    def read_copies(self) -> None:
        """Read which files are copies. A line that a killed process left incomplete makes none."""
        self.copies = {}
        file = self.folder / _COPIES
        for line in file.read_text("utf-8").splitlines() if file.exists() else []:
            try:
                path, *values = json.loads(line)
                self.copies[path] = _Copy(*values)
            except (ValueError, TypeError):
                continue

    def write_copies(self) -> None:
        """Write which files are copies, without those that are gone and what was noted more than once."""
        self.copies = {path: copy for path, copy in self.copies.items() if (self.folder / path).exists()}
        with replacing(self.folder / _COPIES) as temporary, temporary.open("w", encoding="utf-8") as lines:
            lines.writelines(_write_copy(path, copy) for path, copy in self.copies.items())


def _etag(found: _Copy | Stored | None) -> str | None:
    return None if found is None else found.etag


def _is_local(path: str) -> bool:
    return any(fnmatch(path, local) for local in _LOCAL)


def _write_copy(path: str, copy: _Copy) -> str:
    return json.dumps([path, *copy]) + "\n"


def _describe(file: Path, etag: str) -> _Copy:
    status = file.stat()
    return _Copy(etag, status.st_size, status.st_mtime_ns)


def _is_below(path: str, folder: str) -> bool:
    return not folder or path == folder or path.startswith(f"{folder}/")


def _is_in(path: str, folder: str) -> bool:
    """Whether a path is a shard of a stage's folder, its rejects, or its marker."""
    return bool(_SHARD.fullmatch(path)) and path.rpartition("/")[0] in (folder, f"{folder}/rejected")


def _divide(paths: Iterable[str]) -> list[list[str]]:
    """Divide paths into shards, rejects, all else, and markers."""
    shards, rejected, others, markers = kinds = [list[str]() for _ in range(4)]
    for path in paths:
        if path.endswith(_MARKER):
            markers.append(path)
        elif not _SHARD.fullmatch(path):
            others.append(path)
        else:
            (rejected if "/rejected/" in path else shards).append(path)
    return kinds
