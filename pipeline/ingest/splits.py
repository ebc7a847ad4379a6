"""Plan what each task of ingest reads: small files together, large ones split between records."""

from collections.abc import Iterator, Sequence

from ...schemas.source_settings import Source
from .files import FileError, FileSplit, SourceFile
from .listing import Listing
from .readers import find_reader

SHARD_BYTES = 64 << 20
"""Chosen here: bytes of source files, as stored, that make one shard."""


def list_source_files(source: Source, globs: Sequence[str]) -> Listing:
    """List the files that match the globs, as the source's reader lists them."""
    return find_reader(source).list_files(globs, source.exclude)


def plan_splits(source: Source, files: Sequence[SourceFile]) -> Iterator[list[FileSplit]]:
    """Yield the splits of each task: the files in order, about SHARD_BYTES per task."""
    packed: list[FileSplit] = []
    size = 0
    for file in files:
        if file.size > SHARD_BYTES and len(cuts := _split(source, file)) > 1:
            if packed:
                yield packed
            yield from ([cut] for cut in cuts)
            packed, size = [], 0
            continue
        if packed and size + file.size > SHARD_BYTES:
            yield packed
            packed, size = [], 0
        packed.append(FileSplit(file.path))
        size += file.size
    if packed:
        yield packed


def _split(source: Source, file: SourceFile) -> list[FileSplit]:
    reader = find_reader(source)
    try:
        return reader.split(file.path, source, SHARD_BYTES) if reader.split else [FileSplit(file.path)]
    except FileError:
        return [FileSplit(file.path)]  # the reader reports the error
