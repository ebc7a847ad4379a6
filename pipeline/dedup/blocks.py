"""The shingles of texts, in files: written shard by shard, and compared block by block.

Shards are grouped into blocks, so that the shingles of two blocks are in memory at a time.
"""

import errno
import os
from collections.abc import Callable, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from ..corpus.folder import read_batches
from ..engine.calls import Call, Engine
from ..engine.stage import StageError, run_calls
from ..text.match_key import match_keys
from .lsh import Rows
from .minhash import NO_LETTERS, SHINGLING, ShingleSets, jaccard, shingle_sets, text_hashes
from .signatures import Side


class Block(NamedTuple):
    """Consecutive shards whose shingles are in memory together: their first row's number, and files by `write_sets`."""

    start: int
    files: tuple[Path, ...]


def compute_similarities(
    work: Path, blocks: Sequence[Block], left: Rows, right: Rows, threshold: float, engine: Engine
) -> NDArray[np.float64]:
    """Compute the exact Jaccard similarity of pairs of rows whose shingles are in the blocks, float64[pairs].

    A similarity below the threshold is returned as 0: the comparison stops once the threshold is out of reach. So is
    that of short texts that differ in signs alone.

    Raises:
        StageError: a part of the work failed.
    """
    starts = [block.start for block in blocks]
    first, second = np.minimum(left, right), np.maximum(left, right)
    place = (np.searchsorted(starts, first, "right") - 1) * len(blocks) + np.searchsorted(starts, second, "right") - 1
    order = np.argsort(place, kind="stable")
    cuts = np.flatnonzero(np.diff(place[order], prepend=-1, append=-1))
    calls = []
    for start, stop in pairwise(cuts.tolist()):
        chosen = order[start:stop]
        one, other = divmod(int(place[chosen[0]]), len(blocks))
        edges = save(work / f"edges-{one}-{other}.npy", np.stack([first[chosen], second[chosen]]))
        file = work / f"similarities-{one}-{other}.npy"
        calls.append((str(file), (blocks[one], blocks[other], edges, threshold, file)))
    call_all("comparing", compare_blocks, calls, engine)
    found = np.empty(len(left), np.float64)
    for (name, _), (start, stop) in zip(calls, pairwise(cuts.tolist()), strict=True):
        found[order[start:stop]] = np.load(name)
    return found


def compare_blocks(one: Block, other: Block, edges: Path, threshold: float, file: Path) -> None:
    """Write the similarities of edges (int64[2, e]: rows of block `one`, rows of block `other`) to `file`."""
    first, second = np.load(edges)
    left_rows, left_letters, left = load_sets(one.files)
    right_rows, right_letters, right = (left_rows, left_letters, left) if other == one else load_sets(other.files)
    left_places, right_places = np.searchsorted(left_rows, first), np.searchsorted(right_rows, second)
    similarities = jaccard(left, left_places, right, right_places, threshold)
    left_letters, right_letters = left_letters[left_places], right_letters[right_places]
    in_signs_alone = (left_letters == right_letters) & (left_letters != NO_LETTERS) & (first != second)
    similarities[in_signs_alone] = 0
    save(file, similarities)


def write_sets(filtered: Path, side: Side, start: int, wanted: Path, file: Path) -> None:
    """Write the shingle sets of a shard's wanted rows: their numbers, `hash_letters`, the arrays of ShingleSets.

    The shard's first row has the number `start`; `wanted` is a file with bool[n].
    """
    left = np.load(wanted, mmap_mode="r")[start : start + pq.read_metadata(filtered).num_rows].nonzero()[0]
    numbers, letters = [left + start], [np.zeros(0, np.int64)]
    offsets, hashes = [np.zeros(1, np.int64)], [np.zeros(0, np.uint32)]
    at = size = 0
    for table in read_batches(filtered, [side]) if len(left) else ():
        here = left[np.searchsorted(left, at) : np.searchsorted(left, at + table.num_rows)] - at
        keys = match_keys(table.column(side).take(here))
        sets = shingle_sets(keys)
        letters.append(hash_letters(keys))
        offsets.append(sets.offsets[1:] + size)
        hashes.append(sets.hashes)
        at, size = at + table.num_rows, size + len(sets.hashes)
    save(file, *(np.concatenate(parts) for parts in (numbers, letters, offsets, hashes)))


def hash_letters(keys: pa.LargeStringArray) -> NDArray[np.int64]:
    """Hash what short texts have besides signs, int64[n]; NO_LETTERS for the others.

    Two short texts with the same letters and digits differ in a sign, and in so short a text that is another meaning:
    they are not near-duplicates.
    """
    texts = pl.Series(keys)
    short = (texts.str.len_chars() < SHINGLING.short_below).arg_true()
    hashes = np.full(len(texts), NO_LETTERS)
    hashes[short] = text_hashes(texts.gather(short).str.replace_all(r"[^\p{L}\p{M}\p{N}]+", "").to_arrow())
    return hashes


def load_sets(files: Sequence[Path]) -> tuple[Rows, NDArray[np.int64], ShingleSets]:
    """Load what `write_sets` wrote to several files."""
    numbers, letters, offsets, hashes, size = [], [], [np.zeros(1, np.int64)], [], 0
    for file in files:
        with file.open("rb") as opened:
            numbers.append(np.load(opened))
            letters.append(np.load(opened))
            offsets.append(np.load(opened)[1:] + size)
            hashes.append(np.load(opened))
        size += len(hashes[-1])
    sets = ShingleSets(np.concatenate(offsets), np.concatenate(hashes))
    return np.concatenate(numbers), np.concatenate(letters), sets


def gather_sets(blocks: Sequence[Block], rows: Rows) -> tuple[NDArray[np.int64], ShingleSets]:
    """Gather what `write_sets` wrote about some rows, which ascend: `hash_letters` and the sets."""
    letters, sizes, hashes = [np.zeros(0, np.int64)], [np.zeros(1, np.int64)], [np.zeros(0, np.uint32)]
    for file in (file for block in blocks for file in block.files):
        numbers, of_file, sets = load_sets([file])
        wanted = np.isin(numbers, rows, assume_unique=True)
        lengths = np.diff(sets.offsets)
        letters.append(of_file[wanted])
        sizes.append(lengths[wanted])
        hashes.append(sets.hashes[np.repeat(wanted, lengths)])
    return np.concatenate(letters), ShingleSets(np.cumsum(np.concatenate(sizes)), np.concatenate(hashes))


def call_all(step: str, function: Callable[..., None], calls: Sequence[Call], engine: Engine) -> None:
    """Run all calls and report progress. Raises StageError if any failed."""
    failures = []
    for done, (name, error) in enumerate(run_calls(function, calls, engine), start=1):
        engine.progress(f"dedup: {step}", done, len(calls), 0)
        if error:
            failures.append(f"{name}: {error}")
    if failures:
        raise StageError("\n".join(failures))


def save(file: Path, *arrays: NDArray[Any]) -> Path:
    """Write arrays to a file, one after another.

    Raises OSError with a reason and the file's name; the error that NumPy raises on a full disk has neither.
    """
    try:
        with file.open("wb") as out:
            for array in arrays:
                np.save(out, array)
    except OSError as error:
        raise OSError(error.errno or errno.ENOSPC, error.strerror or os.strerror(errno.ENOSPC), str(file)) from error
    return file
