"""Calls about a corpus at a URI, for machines that share no folder with the one that works on it, the driver.

A call's paths are sent as paths of the corpus. What they name is in the store, or is put there when the call is sent;
the machine fetches it into a folder of its own, runs the call, and puts what the call has written. A shard is committed
by that, if the driver still holds the lock. All processes of a machine use the same folder.
"""

import fcntl
import io
import pickle
import shutil
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from functools import lru_cache
from hashlib import sha256
from pathlib import Path
from typing import Any, NamedTuple
from uuid import uuid4

from .atomic import write_text
from .folder import rejects
from .lease import BorrowedLease, Lease
from .mirror import Mirror, find_place
from .object_store import ChangedError, ObjectStore, Stored
from .uris import find_cache, register

_TOKEN = ".token"
"""The file with the token of the last lease that the folder was used for."""


class Shipment(NamedTuple):
    """A pickled call, the paths below the corpus that its arguments name, and what the store has there.

    `token` is that of the driver's lease. Before the first call of a `run` that has a name, a machine forgets train/.
    """

    uri: str
    token: str
    run: str
    paths: tuple[str, ...]
    objects: dict[str, Stored]
    call: bytes


class _Pickler(pickle.Pickler):
    """Collects the paths below a folder, whether they are strings or paths, and pickles them relative to it."""

    def __init__(self, file: io.BytesIO, folder: Path) -> None:
        super().__init__(file)
        self.prefix = f"{folder}/"
        self.paths: dict[str, None] = {}

    def persistent_id(self, value: Any) -> tuple[bool, str] | None:
        if not isinstance(value, str | Path) or not f"{value}/".startswith(self.prefix):
            return None
        path = str(value).removeprefix(self.prefix.rstrip("/")).removeprefix("/")
        if path:  # not the corpus itself
            self.paths[path] = None
        return isinstance(value, str), path


class _Unpickler(pickle.Unpickler):
    def __init__(self, file: io.BytesIO, folder: Path) -> None:
        super().__init__(file)
        self.folder = folder

    def persistent_load(self, identity: tuple[bool, str]) -> str | Path:
        is_text, path = identity
        return str(self.folder / path) if is_text else self.folder / path


def ship(mirror: Mirror, function: Callable[..., Any], arguments: tuple[Any, ...], run: str = "") -> Shipment:
    """Prepare a call for another machine; put into the store what it names and only this machine has.

    Files below a folder that it names go with it, but not hidden ones, which it must name itself.
    """
    assert isinstance(mirror.lease, Lease)
    mirror.lease.check()
    file = io.BytesIO()
    pickler = _Pickler(file, mirror.folder)
    pickler.dump((function, arguments))
    paths = tuple(pickler.paths)
    mirror.put_all(path for path in paths if (mirror.folder / path).is_file())
    found = (each for path in paths for each in _list_objects(mirror, path))
    objects = {path: mirror.remote[path] for path in found}
    return Shipment(mirror.store.uri, mirror.lease.token, run, paths, objects, file.getvalue())


def _list_objects(mirror: Mirror, path: str) -> Iterator[str]:
    """List the objects at a path: a file, a shard and its rejects, or what is below a folder."""
    if path in mirror.remote:
        yield from (each for each in _with_rejects(path) if each in mirror.remote)
    elif (mirror.folder / path).is_dir():
        mirror.upload(path)
        below = (each for each in mirror.remote if each.startswith(f"{path}/"))
        yield from (each for each in below if "/." not in each)


def _with_rejects(path: str) -> tuple[str, ...]:
    return (path, str(rejects(Path(path)))) if Path(path).name.startswith("part-") else (path,)


def run_shipped(shipment: Shipment, written: dict[str, Stored]) -> Any:
    """On another machine, run a call, put what it has written, and note that in `written`; return what it returns.

    Raises:
        LeaseLostError: the driver no longer holds the lock.
    """
    mirror = _open(shipment.uri, find_cache())
    with (mirror.folder / ".lock").open("a") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        mirror.read_copies()
        _clear(mirror, shipment)
        mirror.receive(shipment.objects)
        for path in shipment.paths:
            (mirror.folder / path).parent.mkdir(parents=True, exist_ok=True)
    function, arguments = _Unpickler(io.BytesIO(shipment.call), mirror.folder).load()
    result = function(*arguments)
    mirror.lease = BorrowedLease(mirror.store, shipment.token, _hash(shipment))
    named = [each for path in shipment.paths for each in _with_rejects(path)]
    changed = [path for path in named if (mirror.folder / path).is_file() and not mirror.is_copy(path)]
    before = {path: shipment.objects[path] for path in changed if path in shipment.objects}
    # What is there no longer was replaced by a process that did the same work: its shard must not be deleted.
    mirror.remote = {path: stored for path, stored in before.items() if mirror.store.find(path) == stored}
    mirror.put_all(changed)
    # Asked for, as an earlier attempt may have put a file of another size: footers have times.
    written |= {path: stored for path in mirror.remote if (stored := mirror.store.find(path))}
    return result


def put(uri: str, token: str, paths: Iterable[str]) -> None:
    """On another machine, put files of its folder for the driver with this token, whatever they replace.

    Raises:
        LeaseLostError: the driver no longer holds the lock.
    """
    mirror, listed = _borrow(uri, token), list(paths)
    mirror.read_copies()
    mirror.remote = {path: stored for path in listed if (stored := mirror.store.find(path))}
    mirror.put_all(path for path in listed if (mirror.folder / path).is_file())


def keep_only(uri: str, token: str, folder: str, name: str) -> None:
    """On another machine, delete the objects below a folder except those in its folder `name`; raises as `put` does."""
    mirror = _borrow(uri, token)
    mirror.delete([path for path in mirror.store.list_all(folder) if not path.startswith(f"{folder}/{name}/")])


def _borrow(uri: str, token: str) -> Mirror:
    mirror = _open(uri, find_cache())
    mirror.lease = BorrowedLease(mirror.store, token, uuid4().hex)
    return mirror


class _SharedMirror(Mirror):
    """The folder that the processes of a machine share."""

    def fetch_one(self, path: str) -> None:
        """Fetch an object, if it is still there: what a call writes may have been written by an earlier attempt."""
        with suppress(ChangedError):
            super().fetch_one(path)


@lru_cache
def _open(uri: str, root: Path) -> Mirror:
    """Open the folder that the processes of this machine share."""
    folder = find_place(uri, root) / "shared"
    folder.mkdir(parents=True, exist_ok=True)
    return register(_SharedMirror(ObjectStore(uri), root, folder, (folder / ".lock").open("a", encoding="utf-8")))


def _clear(mirror: Mirror, shipment: Shipment) -> None:
    """Delete what is left of an earlier command: temporary files, and what its calls shared."""
    file, name = mirror.folder / _TOKEN, shipment.token + shipment.run
    if file.exists() and file.read_text("utf-8") == name:
        return
    folders = ("vectors", "train") if shipment.run else ("vectors",)
    for place in [*(mirror.folder / each for each in folders), *mirror.folder.rglob(".*")]:
        if place.is_dir():
            shutil.rmtree(place, ignore_errors=True)
        elif place.name.endswith(".tmp"):
            place.unlink(missing_ok=True)
    mirror.write_copies()
    write_text(file, name)


def _hash(shipment: Shipment) -> str:
    return sha256(shipment.call + repr(sorted(shipment.objects.items())).encode()).hexdigest()
