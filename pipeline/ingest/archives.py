"""Read the members of zip and tar archives in place: nothing is extracted to disk."""

import tarfile
import zipfile
from collections.abc import Iterator
from contextlib import suppress
from functools import lru_cache
from typing import IO, Any

Archive = zipfile.ZipFile | tarfile.TarFile

ARCHIVES = {".zip": "zip", ".tar": "tar"}
"""Endings of archives, and the protocols of fsspec under which their members are read: `zip://MEMBER::ARCHIVE`."""

OFFICE = "[Content_Types].xml"
"""The member that makes an Office file of a zip archive (ECMA-376, part 2, "Open Packaging Conventions")."""


def open_archive(file: Any, protocol: str) -> Archive:
    """Open an archive. Raises an error of zipfile or tarfile if it is damaged."""
    return zipfile.ZipFile(file) if protocol == "zip" else tarfile.TarFile(fileobj=file)


def find_members(archive: Archive) -> Iterator[tuple[str, int, int]]:
    """Yield name, size (as stored; 0 only if the member is empty) and checksum of each file in an archive."""
    if isinstance(archive, zipfile.ZipFile):
        for member in archive.infolist():
            if not member.is_dir():
                yield member.filename, member.file_size and member.compress_size, member.CRC
    else:
        for entry in archive:
            if entry.isfile():
                yield entry.name, entry.size, entry.chksum
        _check_end(archive)


def _check_end(archive: tarfile.TarFile) -> None:
    """Raise an error if the archive breaks off: tarfile takes a header that is cut for the end."""
    assert archive.fileobj
    archive.fileobj.seek(archive.offset)
    if archive.fileobj.read(tarfile.BLOCKSIZE) != tarfile.NUL * tarfile.BLOCKSIZE:
        raise tarfile.ReadError("the archive ends early")


def open_member(archive: Archive, name: str, step: int) -> IO[bytes]:
    """Open a member; zip archives are read in steps of that many bytes. Raises KeyError if it is not there."""
    if isinstance(archive, zipfile.ZipFile):
        member = archive.open(name)
        member.MIN_READ_SIZE = step  # type: ignore[attr-defined]
        return member
    opened = archive.extractfile(_index(archive)[name])
    assert opened  # find_members lists files only
    return opened


@lru_cache(maxsize=1)
def _index(archive: tarfile.TarFile) -> dict[str, tarfile.TarInfo]:
    entries = {}
    with suppress(tarfile.TarError):  # the archive breaks off: what is before that can be read
        for entry in archive:
            entries[entry.name] = entry
    return entries
