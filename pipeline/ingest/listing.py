"""List the files of a source from globs of paths and URIs, and account for what the globs leave out."""

import os
import re
from collections.abc import Hashable, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import chain
from pathlib import PurePosixPath

import fsspec
from fsspec.implementations.local import LocalFileSystem

from .archives import ARCHIVES, find_members, open_archive
from .files import FileError, SourceFile, open_file, stat_file
from .globs import HIDDEN, Matches, expand_braces, is_wild, match

EMPTY = "empty"
FOLDER = "folder"

_Found = Iterator[tuple[SourceFile, str]]
"""Files, each with the reason why it is skipped; the reason is empty if it is not."""


@dataclass(frozen=True)
class Listing:
    """The files of a source by path, the globs that match nothing, and the reason for each path that is skipped."""

    files: list[SourceFile] = field(default_factory=list)
    unmatched: list[str] = field(default_factory=list)
    skipped: dict[str, str] = field(default_factory=dict)

    def join(self, other: "Listing") -> "Listing":
        """Return the listing of the files of both."""
        return Listing(
            [*self.files, *other.files], [*self.unmatched, *other.unmatched], {**self.skipped, **other.skipped}
        )


def list_files(globs: Sequence[str], exclude: Sequence[str] = (), folders: bool = False) -> Listing:
    """List the files that match any of the globs (paths or fsspec URIs) and none of `exclude`.

    An archive (.zip, .tar) is listed as its members, and a file to which several links lead once. Unreadable files (a
    dangling link, a folder named like a file) are listed too, so that the reader reports them.

    Args:
        folders: Whether to list folders as well as files.
    """
    left_out = {
        file.path for glob in chain.from_iterable(map(expand_braces, exclude)) for file, _ in _find(glob, folders)
    }
    listing = Listing()
    matched: dict[str, tuple[SourceFile, str]] = {}
    for glob in chain.from_iterable(map(expand_braces, globs)):
        found = list(_find(glob, folders))
        if not found:
            listing.unmatched.append(glob)
        matched |= {file.path: (file, why) for file, why in found if not why or file.path not in matched}
    wanted = [(file, why) for path, (file, why) in sorted(matched.items()) if path not in left_out]
    listing.skipped.update({file.path: why for file, why in wanted if why})
    for archive in _drop_links(file for file, why in wanted if not why):
        for file, why in _list_members(archive):
            if why:
                listing.skipped[file.path] = why
            else:
                listing.files.append(file)
    return listing


def _find(glob: str, folders: bool) -> _Found:
    filesystem, path = fsspec.core.url_to_fs(glob)
    folders = folders or "." in path.rpartition("/")[2]
    is_local = isinstance(filesystem, LocalFileSystem)
    for name, why in match(path) if is_local else _match_objects(filesystem, path):
        uri = name
        if "::" in glob:
            uri = glob.replace(path.lstrip("/"), name.lstrip("/"), 1)
        elif not is_local:
            uri = filesystem.unstrip_protocol(name)
        if why:
            yield SourceFile(uri, 0, why), why
        elif folders or not filesystem.isdir(name):
            try:
                file = stat_file(uri)
            except OSError:
                yield SourceFile(uri, 0, "unreadable"), ""
            else:
                is_empty = file.size == 0 and filesystem.isfile(name) and filesystem.size(name) == 0
                yield file, EMPTY if is_empty else ""
        elif not is_wild(path):
            yield SourceFile(uri, 0, FOLDER), FOLDER


def _match_objects(filesystem: fsspec.AbstractFileSystem, path: str) -> Matches:
    fitting = re.sub(r"(?<=[^/])\*\*+|\*\*+(?=[^/*])", "*", path)  # as in Python's glob; fsspec's refuses `**.csv`
    found = filesystem.glob(fitting) if is_wild(path) else []
    return ((name, "") for name in found or ([path] if filesystem.lexists(path) else []))


def _drop_links(files: Iterable[SourceFile]) -> list[SourceFile]:
    """Keep one path for each file on a disk: its own, if that is among them, rather than a link's."""
    paths: dict[Hashable, list[SourceFile]] = {}
    for file in files:
        try:
            status = os.stat(file.path)  # noqa: PTH116
        except OSError:  # a URI, or a dangling link
            paths[file.path] = [file]
        else:
            paths.setdefault((status.st_dev, status.st_ino), []).append(file)
    own = (
        same[0] if len(same) == 1 else min(same, key=lambda file: (os.path.realpath(file.path) != file.path, file.path))
        for same in paths.values()
    )
    return sorted(own, key=lambda file: file.path)


def _list_members(file: SourceFile) -> _Found:
    """List the members of an archive as chained fsspec URIs; the archive itself if it can't be listed to its end."""
    protocol = ARCHIVES.get(PurePosixPath(file.path).suffix.lower())
    if not protocol or "::" in file.path:
        yield file, ""
        return
    members: dict[str, SourceFile] = {}  # the last of each name, which is the one that would be extracted
    is_whole = False
    with suppress(FileError), open_file(file.path) as opened:
        for name, size, checksum in find_members(open_archive(opened, protocol)):
            members[name] = SourceFile(f"{protocol}://{name}::{file.path}", size, f"{file.version} {checksum}")
        is_whole = bool(members)
    for name, member in members.items():
        is_hidden = any(part.startswith(".") and part not in (".", "..") for part in re.split(r"[/\\]", name))
        yield member, HIDDEN if is_hidden else EMPTY if not member.size else ""
    if not is_whole:
        yield file, ""
