"""Corpora at URIs: each is worked on in a folder of this machine, its mirror (see mirror.py).

Code that reads or writes a corpus calls the functions below; for a local corpus, they do nothing.
"""

import os
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from ...schemas.errors import CorpusError

if TYPE_CHECKING:
    from .mirror import Mirror

_URI = re.compile(r"([A-Za-z][A-Za-z0-9+.-]+):(?:[:/]+(.*))?")  # two letters or more: `C:/` is a drive

_mirrors: dict[Path, "Mirror"] = {}
"""The mirrors that this process has opened, by folder. Its workers have none: they work on what is there; those on
other machines have one for what they are sent (see shipping.py)."""


def find_folder(corpus: str | Path) -> Path:
    """Return the folder to work in: that of a local corpus, or the mirror of one at a URI, as the store is now.

    Raises:
        CorpusError: the URI is neither s3:// nor file://.
        StoreError: the store can't be reached, or refuses what was asked.
        MissingExtraError: the extra `s3` is not installed.
    """
    found = _URI.fullmatch(str(corpus))  # a Path has one slash after the colon
    if not found:
        return Path(corpus)
    scheme, place = found[1].lower(), (found[2] or "").rstrip("/")
    if scheme == "file":
        return Path("/", place)
    if scheme != "s3" or not place:
        raise CorpusError(
            f"{_show(corpus)}: a corpus must be a folder on this machine, or s3://BUCKET/… in an object store; copy it "
            "to one of these"
        )
    from .mirror import open_mirror

    uri = f"s3://{place}"
    mirror = next((each for each in _mirrors.values() if each.store.uri == uri and each.root == find_cache()), None)
    if mirror is None:
        mirror = register(open_mirror(uri, find_cache()))
    if mirror.lease is None:
        mirror.refresh()
    return mirror.folder


def register(mirror: "Mirror") -> "Mirror":
    """Note that this process has opened a mirror, and return it."""
    _mirrors[mirror.folder] = mirror
    return mirror


def find_leased() -> "Mirror | None":
    """Return the mirror whose lock this process holds, if any."""
    return next((mirror for mirror in _mirrors.values() if mirror.lease is not None), None)


def refuse_uri(folder: Path) -> None:
    """Raise CorpusError if a folder is a URI, which a Path turns into the name of a local one: `s3:/bucket/zh`."""
    if _URI.fullmatch(str(folder)):
        raise CorpusError(f"{_show(folder)}: this must be a folder on this machine, not a URI; give a local path")


def _show(uri: str | Path) -> str:
    """Return a URI as it was before a Path made one slash of several."""
    text = str(uri)
    return text if "://" in text else text.replace(":/", ":///" if text.startswith("file:") else "://", 1)


def find_cache() -> Path:
    """Return the folder for copies of what lies elsewhere: CONAN_CACHE, by default `conan` in the user's cache."""
    place = os.environ.get("CONAN_CACHE") or Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache", "conan")
    return Path(place).resolve()


def is_mirror(corpus: Path) -> bool:
    """Whether a folder is the mirror of a corpus at a URI."""
    return corpus in _mirrors


def has_files(corpus: Path) -> bool:
    """Whether a local corpus is a folder, or a corpus at a URI has objects."""
    mirror = _mirrors.get(corpus)
    return corpus.is_dir() if mirror is None else bool(mirror.remote)


def name_uris(message: str) -> str:
    """Return a message with the URIs of corpora in place of the folders of their mirrors."""
    for folder, mirror in _mirrors.items():
        message = message.replace(str(folder), mirror.store.uri)
    return message


def refuse_elsewhere(corpus: Path, asked: str) -> None:
    """Raise CorpusError if the corpus is at a URI, and `asked` needs its files on other machines."""
    if mirror := _mirrors.get(corpus):
        raise CorpusError(
            f"{mirror.store.uri}: {asked} needs a corpus in a folder that all machines share; leave it out to work on "
            "this machine, or copy the corpus to such a folder"
        )


@contextmanager
def leased(corpus: Path) -> Iterator[None]:
    """Hold the lock of a corpus at a URI; in the end, upload all that has changed.

    Raises:
        CorpusError: another command holds the lock.
        StoreError: the store can't be reached, or does not do what a lock needs.
        LeaseLostError: the lock was lost; what was not uploaded until then is not committed.
    """
    with _mirrors[corpus].leased():
        yield


@contextmanager
def shown(corpus: Path, progress: Callable[[str, int, int, int], None]) -> Iterator[None]:
    """Show the progress of what is fetched and uploaded in this block (see Mirror)."""
    mirror = _mirrors.get(corpus)
    if mirror is None:
        yield
        return
    before, mirror.progress = mirror.progress, progress
    try:
        yield
    finally:
        mirror.progress = before


def fetch(corpus: Path, path: str) -> None:
    """Fetch the file at a path of the corpus, or all files below it."""
    if mirror := _mirrors.get(corpus):
        mirror.fetch(path)


def fetch_shards(corpus: Path, folder: str) -> None:
    """Fetch the shards of a stage and their rejects."""
    if mirror := _mirrors.get(corpus):
        mirror.fetch_shards(folder)


def upload(corpus: Path, path: str = "") -> None:
    """Make the store equal to the mirror at and below a path: put what has changed, delete what has been deleted."""
    if mirror := _mirrors.get(corpus):
        mirror.upload(path)


def upload_shard(corpus: Path, shard: Path, rejected: Path) -> None:
    """Put a shard that has just been written, with its rejects: it is committed only now."""
    if mirror := _mirrors.get(corpus):
        mirror.put_all(str(file.relative_to(corpus)) for file in (shard, rejected) if file.exists())


def settle(corpus: Path, folder: str) -> None:
    """Upload what has changed in a stage's folder, and wait until the store lists it.

    Raises:
        StoreError: it is not listed in time.
    """
    if mirror := _mirrors.get(corpus):
        mirror.settle(folder)
