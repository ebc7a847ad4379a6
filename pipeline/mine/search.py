"""Search for the best allowed passages of every query: exactly, or by FAISS above a million passages.

The vectors of both sides are read in blocks, and each query keeps only its best passages so far, so memory holds a few
blocks (or one FAISS index), never all vectors or all results. Passages that the rules drop are dropped before ranking:
they take up no place among the `top_k`. The rules see true scores: what a compressing index finds is scored again.
"""

import re
from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise
from pathlib import Path
from tempfile import TemporaryFile
from typing import BinaryIO, NamedTuple

import faiss
import numpy as np
import numpy.typing as npt
from numba import prange

from ...schemas.errors import RecipeError
from ..encoder.onednn import inner_products
from ..text.kernels import inner_kernel, parallel_kernel

Integers = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float32]
Rows = Callable[[Integers], Floats]
"""Returns the vectors at n places, float32 [n, D]."""
Progress = Callable[[int, int], None]
"""Called with the number of blocks searched so far and the number of all blocks."""

FLAT_LIMIT = 1_000_000
"""Chosen here: up to this many passages, all are compared by default."""
QUERIES, PASSAGES, TOGETHER = 16_384, 4_096, 256
"""Chosen here: QUERIES and PASSAGES are in memory at a time; TOGETHER queries are multiplied at a time, so that their
scores (4 MB) stay in the cache."""
PAIRS = 16_384
"""Chosen here: pairs of a query and a positive whose vectors are in memory at a time."""
TRAINING = 262_144
"""Chosen here: passages that an index is trained on, 65 per list; FAISS asks for at least 39 and uses at most 256."""
APPROXIMATE_DEPTH, COMPRESSED_DEPTH = 10, 20
"""Chosen here: an index is asked for this many times `top_k` neighbours, as the rules then drop some; a compressing one
for more, as it has some of the best further down (docs/mining.md has the measurement)."""
UNCOMPRESSED = (faiss.IndexFlat, faiss.IndexIVFFlat)
"""Indexes that hold the vectors as they are, so that their scores are the true ones."""
RECALL, JUDGED, SAMPLE = 0.97, 100, 256
"""Chosen here: an IVF index searches as many lists as it takes to find this share (RECALL) of the JUDGED best
passages of SAMPLE queries among the neighbours that it is asked for."""
GPU_DEPTH = 2_048
"""The maximum number of neighbours that FAISS finds on a GPU."""
NONE = np.iinfo(np.int64).min
"""The key for no passage, less than any other."""
_EXPECTED = "expected a factory string such as IVF1024,Flat or OPQ16,IVF1024,PQ16"


class Rules(NamedTuple):
    """The passages that a query may not have: those in one of its clusters, and those whose score reaches its ceiling.

    ceiling: float32 [queries]. Query i's clusters are `own[own_starts[i] : own_starts[i + 1]]`; passage j's clusters
    are `members[member_starts[j] : member_starts[j + 1]]`.
    """

    ceiling: Floats
    own_starts: Integers
    own: Integers
    member_starts: Integers
    members: Integers


class Best(NamedTuple):
    """The best passages of each query, best first, ties by passage number: ids and scores, both [queries, top_k].

    Where a query has fewer, the rest is -1 and -inf.
    """

    ids: Integers
    scores: Floats


def search(
    queries: Rows,
    passages: Rows,
    rules: Rules,
    top_k: int,
    index: str | None = None,
    *,
    block: int = FLAT_LIMIT,
    folder: Path | None = None,
    progress: Progress = lambda *_: None,
) -> Iterator[Best]:
    """Yield the `top_k` passages with the greatest inner products among those that the rules allow each query.

    Each `Best` is of the next QUERIES queries. All passages are compared, so even a query whose nearest neighbours are
    all dropped gets its `top_k`. If `index` is a FAISS factory string (on a CPU, other than Flat), and by default above
    FLAT_LIMIT passages, only the neighbours are considered that are found by indexes, each of at most `block` passages;
    the best so far are then in a temporary file in `folder`.
    """
    edges = block_edges(len(rules.member_starts) - 1, block)
    return map(rank, find_keys(queries, passages, rules, top_k, index, edges, block, folder, progress))


def find_keys(
    queries: Rows,
    passages: Rows,
    rules: Rules,
    top_k: int,
    index: str | None,
    edges: Sequence[int],
    block: int,
    folder: Path | None,
    progress: Progress = lambda *_: None,
) -> Iterator[Integers]:
    """Yield what `search` yields as keys for `rank`, int64 [queries, top_k], of some blocks of passages only.

    The blocks are those between two `edges`; each has an index of its own, unless all passages are compared. Edges that
    are multiples of PASSAGES change no bit of a score.
    """
    factory = index or default_index(len(rules.member_starts) - 1, block)
    if factory == "Flat" and (index is None or not faiss.get_num_gpus()):
        return _compare_all(queries, passages, rules, top_k, edges[0], edges[-1], progress)
    return _ask_indexes(queries, passages, rules, top_k, factory, edges, folder, progress)


def block_edges(passages: int, block: int) -> list[int]:
    """Return where equal blocks of at most `block` passages begin and, last, where the last one ends."""
    blocks = _shards(passages, block)
    return [number * passages // blocks for number in range(blocks + 1)]


def map_keys(file: Path | BinaryIO, asked: Integers, top_k: int) -> Integers:
    """Map the keys of a block of queries in a file of all queries' keys: int64 [len(asked), top_k], to be changed."""
    place = 8 * top_k * int(asked[0])
    return np.asarray(np.memmap(file, np.int64, "r+", place, (len(asked), top_k)))


def check_index(factory: str, width: int, passages: int, block: int = FLAT_LIMIT) -> None:
    """Check that FAISS can build indexes of at most `block` of these passages, with vectors of `width` dimensions.

    Raises:
        RecipeError: the factory string is wrong, does not fit the vectors, or asks for more lists than passages.
    """
    inverted = faiss.try_extract_index_ivf(_create_index(factory, width))
    shard = passages // _shards(passages, block)
    if inverted is not None and inverted.nlist > shard:
        raise RecipeError(
            f"mine.index: {factory} has {inverted.nlist:,} lists, more than the {shard:,} passages that it would hold; "
            "take fewer, about 4 × the square root of the passages"
        )


def check_index_syntax(factory: str, place: str) -> None:
    """Raise RecipeError if FAISS can't parse a factory string, whatever the model. `place` is as in `Registry.find`."""
    try:
        faiss.index_factory(1, factory, faiss.METRIC_INNER_PRODUCT)
    except RuntimeError as error:
        if "could not parse" in str(error):
            raise RecipeError(f"{place}: FAISS can't read {factory!r}; {_EXPECTED}") from error


def pair_cosines(queries: Rows, owner: Integers, passages: Rows, passage: Integers) -> Floats:
    """Return the cosines of query `owner[i]` and passage `passage[i]`, float32 [pairs]; both sides are unit vectors."""
    scores = np.empty(len(owner), np.float32)
    for start in range(0, len(owner), PAIRS):
        pairs = slice(start, start + PAIRS)
        np.einsum("nd,nd->n", queries(owner[pairs]), passages(passage[pairs]), out=scores[pairs])
    return scores


def default_index(passages: int, block: int = FLAT_LIMIT) -> str:
    """Return FAISS's factory string: Flat (exhaustive) up to FLAT_LIMIT passages, else IVF with 4√n lists per shard."""
    lists = int(4 * (passages / _shards(passages, block)) ** 0.5)
    return "Flat" if passages <= FLAT_LIMIT else f"IVF{lists},Flat"


def _shards(passages: int, block: int) -> int:
    return max(1, -(-passages // block))


def _compare_all(
    queries: Rows, passages: Rows, rules: Rules, top_k: int, begin: int, end: int, progress: Progress
) -> Iterator[Integers]:
    """Do what `find_keys` does with all scores of the passages from `begin` to `end`."""
    count = len(rules.ceiling)
    blocks, done = -(-count // QUERIES) * -(-(end - begin) // PASSAGES), 0
    for asked in blocks_of(0, count, QUERIES):
        vectors, own = queries(asked), _of_queries(rules, asked)
        best = np.full((len(asked), top_k), NONE)  # one heap of keys per query
        for searched in blocks_of(begin, end, PASSAGES):
            products = inner_products(passages(searched))
            for start in range(0, len(asked), TOGETHER):
                _offer(start, searched[None], products(vectors[start : start + TOGETHER]), own, best)
            done += 1
            progress(done, blocks)
        yield best


def _ask_indexes(
    queries: Rows,
    passages: Rows,
    rules: Rules,
    top_k: int,
    factory: str,
    edges: Sequence[int],
    folder: Path | None,
    progress: Progress,
) -> Iterator[Integers]:
    """Do what `find_keys` does with the passages that the index of each block finds nearest, several times `top_k`."""
    count = len(rules.ceiling)
    with TemporaryFile(dir=folder) as file:
        file.truncate(8 * count * top_k)
        for asked in blocks_of(0, count, PASSAGES):
            map_keys(file, asked, top_k)[:] = NONE
        for asked, ids, scores in _nearest(queries, passages, count, top_k, factory, edges, progress):
            _offer(0, ids, scores, _of_queries(rules, asked), map_keys(file, asked, top_k))
        for asked in blocks_of(0, count, QUERIES):
            yield map_keys(file, asked, top_k).copy()


def _of_queries(rules: Rules, asked: Integers) -> Rules:
    """Return the rules of a block of queries."""
    first, end = int(asked[0]), int(asked[-1]) + 1
    return rules._replace(ceiling=rules.ceiling[first:end], own_starts=rules.own_starts[first : end + 1])


def _nearest(
    queries: Rows, passages: Rows, count: int, top_k: int, factory: str, edges: Sequence[int], progress: Progress
) -> Iterator[tuple[Integers, Integers, Floats]]:
    """Yield what the index of each block finds nearest to some queries: these, ids (-1 for none) and scores [n, m]."""
    blocks, done = -(-count // PASSAGES) * (len(edges) - 1), 0
    sample = queries(np.unique(np.linspace(0, count - 1, SAMPLE, dtype=np.int64))[:count])
    for start, end in pairwise(edges):
        trained = min(TRAINING, end - start)
        of_training = passages(start + np.arange(trained) * (end - start) // trained)
        index = _create_index(factory, of_training.shape[1])
        has_true_scores = isinstance(index, UNCOMPRESSED)
        depth = top_k * (APPROXIMATE_DEPTH if has_true_scores else COMPRESSED_DEPTH)
        wanted = min(depth, end - start, GPU_DEPTH if faiss.get_num_gpus() else depth)
        try:
            index = _fill(index, of_training, passages, start, end)
        except RuntimeError as error:
            raise _refused(factory, of_training.shape[1], error) from error
        _choose_probes(index, sample, passages, start, end, wanted)
        for asked in blocks_of(0, count, PASSAGES):
            scores, ids = index.search(queries(asked), wanted)
            ids = np.where(ids < 0, -1, ids + start)
            yield asked, ids, scores if has_true_scores else _true_scores(queries, asked, passages, ids)
            done += 1
            progress(done, blocks)


def _true_scores(queries: Rows, asked: Integers, passages: Rows, ids: Integers) -> Floats:
    """Score the passages found for some queries with their own vectors: ids [n, m] (-1 for none) to float32 [n, m]."""
    there = ids >= 0
    scores = np.full(ids.shape, -np.inf, np.float32)
    scores[there] = pair_cosines(queries, asked[there.nonzero()[0]], passages, ids[there])
    return scores


def _create_index(factory: str, width: int) -> faiss.Index:
    """Create an empty index by inner product. Raises RecipeError if FAISS can't."""
    try:
        return faiss.index_factory(width, factory, faiss.METRIC_INNER_PRODUCT)
    except RuntimeError as error:
        raise _refused(factory, width, error) from error


def _refused(factory: str, width: int, error: RuntimeError) -> RecipeError:
    reason = re.split(r"failed: |\.cpp:\d+: ", str(error))[-1].removeprefix("Error: ").strip()
    return RecipeError(
        f"mine.index: FAISS can't build {factory!r} of vectors with {width:,} dimensions, by inner product: {reason}; "
        f"{_EXPECTED}"
    )


def _fill(index: faiss.Index, sample: Floats, passages: Rows, start: int, end: int) -> faiss.Index:
    """Train an index on a sample and add the passages of a shard, on all GPUs if there are any.

    On GPUs, an IVF searches 1/16 of its lists.
    """
    if faiss.get_num_gpus():
        if (inverted := faiss.try_extract_index_ivf(index)) is not None:
            inverted.nprobe = max(1, inverted.nlist // 16)
        index = faiss.index_cpu_to_all_gpus(index)
    index.train(sample)
    for added in blocks_of(start, end, QUERIES):
        index.add(passages(added))
    return index


def _choose_probes(index: faiss.Index, sample: Floats, passages: Rows, start: int, end: int, depth: int) -> None:
    """Double the number of lists that an IVF searches, from 1/64 of them on, until its recall is high enough."""
    inverted = faiss.try_extract_index_ivf(index)
    if inverted is None or not len(sample):  # not an IVF, or on a GPU
        return
    nothing = np.zeros(0, np.int64)
    starts = np.zeros(max(end, len(sample)) + 1, np.int64)
    rules = Rules(np.full(len(sample), np.inf, np.float32), starts, nothing, starts, nothing)
    best = np.full((len(sample), min(JUDGED, end - start)), NONE)
    for searched in blocks_of(start, end, PASSAGES):
        _offer(0, searched[None], inner_products(passages(searched))(sample), rules, best)
    expected = rank(best).ids - start
    for shift in range(6, -1, -1):
        inverted.nprobe = max(1, inverted.nlist >> shift)
        found = index.search(sample, depth)[1]
        shared = [len(np.intersect1d(*each)) for each in zip(found, expected, strict=True)]
        if np.mean(shared) >= RECALL * expected.shape[1]:
            break


def blocks_of(start: int, end: int, size: int) -> Iterator[Integers]:
    """Divide the numbers from `start` to `end` into blocks of `size`, the last one smaller."""
    return (np.arange(first, min(first + size, end)) for first in range(start, end, size))


@inner_kernel
def _intersects(left: Integers, right: Integers) -> bool:
    """Return whether two short lists have a value in common."""
    for one in left:
        for other in right:
            if one == other:
                return True
    return False


@inner_kernel
def _pack_key(score: float, passage: int) -> np.int64:
    """Pack a passage into a key that is greater for a greater score or, if the scores are equal, for a smaller id.

    The bits of float32 numbers, read as int32, sort like the numbers if all bits but the sign are inverted in negative
    ones.
    """
    bits = np.int64(np.float32(score).view(np.int32))
    return (bits ^ (bits >> 31 & 0x7FFFFFFF)) << 32 | 0xFFFFFFFF - passage


@inner_kernel
def _unpack_score(key: np.int64) -> np.float32:
    """Return the score in a key."""
    ordered = key >> 32
    return np.int32(ordered ^ (ordered >> 31 & 0x7FFFFFFF)).view(np.float32)


@inner_kernel
def _replace_root(heap: Integers, key: np.int64) -> None:
    """Replace the least key of a heap, its root."""
    at, child, last = 0, 1, len(heap) - 1
    while child <= last:
        child += child < last and heap[child + 1] < heap[child]
        if key <= heap[child]:
            break
        heap[at] = heap[child]
        at, child = child, 2 * child + 1
    heap[at] = key


@parallel_kernel
def _offer(first: int, ids: Integers, scores: Floats, rules: Rules, best: Integers) -> None:
    """Offer passages to each query of a block, whose heap keeps the best allowed ones.

    Row i is query `first + i`. The order in which passages are offered makes no difference.
    """
    for row in prange(len(scores)):
        query = first + row
        heap, below = best[query], rules.ceiling[query]
        own = rules.own[rules.own_starts[query] : rules.own_starts[query + 1]]
        floor = np.float32(-np.inf) if heap[0] == NONE else _unpack_score(heap[0])
        for start in range(0, scores.shape[1], 64):
            stretch = scores[row, start : start + 64]
            promising = np.int32(0)  # branch-free, so that it is vectorized: most stretches have none
            for score in stretch:
                promising += np.int32(score >= floor) & np.int32(score < below)
            if promising == 0:
                continue
            for place, score in enumerate(stretch, start):
                if not floor <= score < below:
                    continue
                passage = ids[row % len(ids), place]
                key = _pack_key(score, passage)
                if passage < 0 or key <= heap[0]:
                    continue
                if _intersects(own, rules.members[rules.member_starts[passage] : rules.member_starts[passage + 1]]):
                    continue
                _replace_root(heap, key)
                if heap[0] != NONE:
                    floor = _unpack_score(heap[0])


def rank(keys: Integers) -> Best:
    """Convert the keys of some queries' passages, int64 [queries, top_k] in any order, to ids and scores."""
    keys = np.sort(keys, axis=1)[:, ::-1]
    there = keys != NONE
    ordered = (keys >> 32).astype(np.int32)
    scores = (ordered ^ (ordered >> 31 & 0x7FFFFFFF)).view(np.float32)
    return Best(np.where(there, 0xFFFFFFFF - (keys & 0xFFFFFFFF), -1), np.where(there, scores, np.float32(-np.inf)))
