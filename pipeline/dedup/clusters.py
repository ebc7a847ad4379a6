"""Clusters of near-duplicate texts on one side (query or positive) of all pairs.

The rows that share a band hash are a bucket. A bucket is stored as a star, one edge from its smallest row (the leader)
to each other row (the members), so it takes memory linear in its rows. Each edge is verified by the exact Jaccard
similarity of the texts' shingles, because the estimate from 128 permutations has a standard error of 0.04 at 0.7.
Members that are not similar to their leader are then compared with each other, so that a false leader hides no true
pair.

Only three numbers per pair grow with the corpus: its first equal text, its tree and its cluster.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import pyarrow.parquet as pq
from numpy.typing import NDArray

from ..engine.calls import Engine
from ..text.kernels import kernel
from .blocks import Block, call_all, compute_similarities, save, write_sets
from .lsh import NO_BUCKET, PART_ROWS, Rows, find_buckets, find_equal, pack
from .signatures import Side, band_columns, read_column

COMPARED = 64
"""Chosen here: from this bucket size on, rows are compared with HEADS of the bucket's rows, not all with all."""
HEADS = 8
"""Chosen here: see COMPARED. It makes the time for a bucket linear in its rows."""

_EDGES = 1 << 22
"""Chosen here: edges that are verified at a time."""
_SLICE = 1 << 18
"""Chosen here: rows of buckets whose pairs are listed at a time, at most 2**23 pairs."""
_BLOCK_BYTES = 128 << 20
"""Chosen here: bytes of shingle hashes per block."""
_FEW = 2_000_000
"""Chosen here: below this many rows, starting processes takes longer than it saves."""


@dataclass(frozen=True)
class Pairs:
    """All pairs of a corpus: the shards with their texts and the shards with their signatures.

    `starts` has the number of each shard's first row, followed by the number of all rows. `work` is a folder for
    temporary files.
    """

    filtered: tuple[Path, ...]
    signed: tuple[Path, ...]
    starts: tuple[int, ...]
    work: Path

    @property
    def rows(self) -> int:
        """The number of all pairs."""
        return self.starts[-1]

    def of_shard(self, number: int) -> "Pairs":
        """Return the pairs of one shard alone, with the numbers that their rows have among all."""
        one = slice(number, number + 1)
        return replace(self, filtered=self.filtered[one], signed=self.signed[one], starts=self.starts[number:][:2])

    def column(self, name: str) -> NDArray[Any]:
        """Read one column of the signatures for all pairs."""
        whole: NDArray[Any] = np.empty(0)  # filled shard by shard: to concatenate takes twice the memory
        for shard, start, stop in zip(self.signed, self.starts, self.starts[1:], strict=False):
            part = read_column(shard, name)
            whole = whole if start else np.empty(self.rows, part.dtype)
            whole[start:stop] = part
        return whole


def find_row_starts(shards: Sequence[Path]) -> tuple[int, ...]:
    """Find the number of each shard's first row, followed by the number of all rows."""
    return tuple(np.cumsum([0, *(pq.read_metadata(shard).num_rows for shard in shards)]).tolist())


@dataclass(frozen=True)
class Clusters:
    """The clusters of one side, as NumPy files, and the shingles of the texts that were compared.

    `ids` is a file with int64[n]: each row's cluster, identified by the smallest 63-bit text hash in it. `equals` is a
    file with int64[n]: the first row with the same text.
    """

    ids: Path
    equals: Path
    blocks: tuple[Block, ...]


def find_clusters(
    pairs: Pairs, side: Side, similar: NDArray[np.bool_], bands: int, threshold: float, engine: Engine
) -> Clusters:
    """Cluster the texts of one side: equal texts and, where `similar` (bool[n]) is true, near-duplicates.

    Rows that share a bucket and have a Jaccard similarity of `threshold` or more are joined, transitively. Texts
    without shingles, and rows where `similar` is false, are joined only with equal texts.

    Raises:
        StageError: a part of the work failed.
    """
    engine = fit_engine(engine, pairs)
    hashes = pairs.column(f"{side}_hash")
    forest = _find_equal_texts(hashes, similar)
    equals = save(pairs.work / f"{side}_equals.npy", forest)
    compared = save(pairs.work / f"{side}_compared.npy", similar & _is_root(forest))
    found = _write_all_buckets(pairs, side, compared, bands, engine)
    blocks = _write_all_sets(pairs, side, found, engine)
    for candidates in (_list_stars, _list_unjoined_pairs):
        for left, right in _gather_candidates(found, candidates, forest):
            is_near = compute_similarities(pairs.work, blocks, left, right, threshold, engine) >= threshold
            _join(forest, left[is_near], right[is_near])
    _take_least(forest, hashes)
    ids = save(pairs.work / f"{side}_ids.npy", hashes)
    return Clusters(ids, equals, blocks)


def fit_engine(engine: Engine, pairs: Pairs) -> Engine:
    """Choose the engine for work that is not split by shards: this process alone if there are few pairs."""
    return engine if pairs.rows >= _FEW else replace(engine, workers=1, address=None)


def write_buckets(
    signed: Sequence[Path], starts: Sequence[int], column: str, compared: Path, part: int, parts: int, file: Path
) -> None:
    """Write a band's buckets to `file`: int64[2, e], leaders and members (see `find_buckets`).

    The work is split into `parts`: this one has the band hashes h with h % parts = part.
    """
    bits = starts[-1].bit_length()
    chosen = np.load(compared)
    packed = []
    for shard, start, stop in zip(signed, starts, starts[1:], strict=False):
        hashes = read_column(shard, column)
        rows = np.flatnonzero(chosen[start:stop] & (hashes != NO_BUCKET) & (hashes % np.uint64(parts) == part))
        packed.append(pack(hashes[rows], rows + start, bits))
    save(file, np.stack(find_buckets(np.concatenate(packed), bits)))


def _write_all_buckets(pairs: Pairs, side: Side, compared: Path, bands: int, engine: Engine) -> list[Path]:
    parts = 1 + pairs.rows // PART_ROWS
    calls = []
    for column in band_columns(side, bands):
        for part in range(parts):
            file = pairs.work / f"{column}_{part}.npy"
            calls.append((str(file), (pairs.signed, pairs.starts, column, compared, part, parts, file)))
    call_all(f"buckets of {side}", write_buckets, calls, engine)
    return [Path(name) for name, _ in calls]


def _write_all_sets(pairs: Pairs, side: Side, found: Sequence[Path], engine: Engine) -> tuple[Block, ...]:
    """Write the shingles of every row that is in a bucket, shard by shard, and group the shards into blocks."""
    chosen = np.zeros(pairs.rows, np.bool_)
    for file in found:
        chosen[np.load(file).ravel()] = True
    wanted = save(pairs.work / f"{side}_wanted.npy", chosen)
    files = [pairs.work / f"{side}_sets_{number}.npy" for number in range(len(pairs.filtered))]
    parts = zip(pairs.filtered, pairs.starts, files, strict=False)
    calls = [(str(shard), (shard, side, start, wanted, file)) for shard, start, file in parts]
    call_all(f"shingles of {side}", write_sets, calls, engine)
    blocks: list[Block] = []
    room = 0
    for start, file in zip(pairs.starts, files, strict=False):
        if file.stat().st_size > room:
            blocks.append(Block(start, ()))
            room = _BLOCK_BYTES
        blocks[-1] = Block(blocks[-1].start, (*blocks[-1].files, file))
        room -= file.stat().st_size
    return tuple(blocks)


Edges = tuple[Rows, Rows]
Forest: TypeAlias = NDArray[Any]
"""uint32 or int64 [n]: each row's parent, itself for the root of a tree, which is its smallest row."""


def _gather_candidates(
    files: Sequence[Path], candidates: Callable[..., Iterator[Edges]], forest: Forest
) -> Iterator[Edges]:
    """Yield the candidates in all buckets that are not joined yet, in batches of _EDGES or more without repeats."""
    held: list[NDArray[np.int64]] = []
    size = 0
    for file in files:
        for edges in candidates(*np.load(file), forest):
            apart = np.stack(edges)[:, _apart(forest, *edges)]
            held.append(apart)
            size += apart.shape[1]
            if size >= _EDGES:
                yield _drop_repeats(held, len(forest))
                held, size = [], 0
    if size:
        yield _drop_repeats(held, len(forest))


def _drop_repeats(edges: Sequence[NDArray[np.int64]], rows: int) -> Edges:
    left, right = np.concatenate(edges, axis=1)
    both = np.unique(left.astype(np.uint64) * np.uint64(rows) + right.astype(np.uint64))
    first, second = np.divmod(both, np.uint64(rows))
    return first.astype(np.int64), second.astype(np.int64)


def _list_stars(leaders: Rows, members: Rows, forest: Forest) -> Iterator[Edges]:
    yield leaders, members


def _list_unjoined_pairs(leaders: Rows, members: Rows, forest: Forest) -> Iterator[Edges]:
    """List the pairs of a bucket's members (without its leader) that are in different trees."""
    borders = np.flatnonzero(np.diff(leaders, append=-1)) + 1
    start = 0
    while start < len(leaders):
        stop = int(borders[min(int(np.searchsorted(borders, start + _SLICE)), len(borders) - 1)])
        part = leaders[start:stop], members[start:stop], forest
        left, right = np.empty((2, _list_pairs(*part, *np.empty((2, 0), np.int64))), np.int64)
        _list_pairs(*part, left, right)
        yield left, right
        start = stop


def _find_equal_texts(hashes: NDArray[np.int64], similar: NDArray[np.bool_]) -> Forest:
    """Find, for each row, the first row with the same hash and the same `similar`, uint32 or int64 [n]."""
    forest = np.arange(len(hashes), dtype=np.uint32 if len(hashes) < 1 << 32 else np.int64)
    for leaders, members in find_equal(hashes.view(np.uint64)):
        of_leaders, of_members = (hashes[rows] << 1 | similar[rows] for rows in (leaders, members))
        equal = of_leaders == of_members
        forest[members[equal]] = leaders[equal]
        rest = members[~equal]  # other texts whose truncated hash is the same
        _, first, inverse = np.unique(of_members[~equal], return_index=True, return_inverse=True)
        forest[rest] = rest[first][inverse]
    return forest


@kernel
def _root(forest: Forest, row: int) -> int:
    """Return the root of a row's tree, halving the path to it."""
    while forest[row] != row:
        forest[row] = forest[forest[row]]
        row = forest[row]
    return row


@kernel
def _apart(forest: Forest, left: Rows, right: Rows) -> NDArray[np.bool_]:
    """Return, for each edge, whether its rows are in different trees."""
    result = np.empty(len(left), np.bool_)
    for i in range(len(left)):
        result[i] = _root(forest, left[i]) != _root(forest, right[i])
    return result


@kernel
def _join(forest: Forest, left: Rows, right: Rows) -> None:
    """Join the trees of each edge's rows; the smaller root becomes the root of both."""
    for i in range(len(left)):
        one, other = _root(forest, left[i]), _root(forest, right[i])
        if one < other:
            forest[other] = one
        else:
            forest[one] = other


@kernel
def _is_root(forest: Forest) -> NDArray[np.bool_]:
    """Return whether each row is the first with its text."""
    result = np.empty(len(forest), np.bool_)
    for row in range(len(forest)):
        result[row] = forest[row] == row
    return result


@kernel
def _take_least(forest: Forest, hashes: NDArray[np.int64]) -> None:
    """Replace each row's hash by the smallest in its tree."""
    for row in range(len(forest)):
        root = _root(forest, row)
        hashes[root] = min(hashes[root], hashes[row])
    for row in range(len(forest)):
        hashes[row] = hashes[_root(forest, row)]


@kernel
def _list_pairs(leaders: Rows, members: Rows, forest: Forest, left: Rows, right: Rows) -> int:
    """Write pairs of members of a bucket that are in different trees to `left` and `right`, while there is room.

    Returns the number of all such pairs. In a bucket with COMPARED or more members, a pair is an earlier head and a
    member; the heads are the first HEADS members that share no tree with the leader or an earlier head.
    """
    count = start = 0
    heads = np.empty(HEADS, np.int64)
    while start < len(members):
        stop = start
        while stop < len(members) and leaders[stop] == leaders[start]:
            stop += 1
        large = stop - start >= COMPARED
        held = 0
        for i in range(start, stop):
            mine = _root(forest, members[i])
            alone = mine != _root(forest, leaders[start])
            for j in range(held if large else i - start):
                other = heads[j] if large else members[start + j]
                if _root(forest, other) != mine:
                    if count < len(left):
                        left[count], right[count] = other, members[i]
                    count += 1
                else:
                    alone = False
            if large and held < HEADS and alone:
                heads[held] = members[i]
                held += 1
        start = stop
    return count
