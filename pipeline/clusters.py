"""Near-duplicates of text columns: buckets of equal band hashes, verified by exact Jaccard, joined.

A bucket is held as a star, an edge from each member to its smallest row, so its size is linear in its rows.
The candidates of a bucket are compared by the exact Jaccard similarity of their shingle hashes, since
agreement of 128 permutations errs by 0.04 (one standard deviation) at 0.7; a comparison stops as soon as the
threshold is out of reach.

Empty texts (and nulls) have no shingles: they are nobody's near-duplicate, not even each other's. Equal texts
are the exact stage's to join.
"""

from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from .minhash import (
    NO_BUCKET,
    SHINGLING,
    Hashes,
    ShingleSets,
    Shingling,
    Texts,
    band_hashes,
    kernel,
    shingle_sets,
    signatures,
)

Rows: TypeAlias = NDArray[np.int64]

COMPARED = 64
"""Rows of one bucket against which each other row of it is compared, at most."""

_ROWS_AT_ONCE = 65_536


def candidate_edges(band: NDArray[np.uint64]) -> tuple[Rows, Rows]:
    """(members, leaders), int64[e] each: an edge from each row of a bucket to the bucket's smallest row.

    band: the hashes of one band, uint64[n]; rows with NO_BUCKET have no edges. Members ascend. A bucket of m
    rows is m - 1 edges.
    """
    order = np.argsort(band)  # not stable, which NumPy sorts six times as slowly
    hashes = band[order]
    starts = np.flatnonzero(np.diff(hashes, prepend=~hashes[:1]))
    leaders = np.empty(len(band), dtype=np.int64)
    leaders[order] = np.repeat(np.minimum.reduceat(order, starts), np.diff(starts, append=len(band)))
    members = np.flatnonzero((leaders < np.arange(len(band))) & (band != NO_BUCKET))
    return members, leaders[members]


def verified_edges(
    texts: Texts,
    members: Rows,
    leaders: Rows,
    threshold: float = 0.7,
    shingling: Shingling = SHINGLING,
) -> tuple[Rows, Rows]:
    """The edges of near-duplicates in the buckets of the candidate edges: (members, leaders), int64[e] each.

    The candidates may come from any number of bands in any order; those of one leader are one bucket. In a
    bucket of up to COMPARED rows every pair not yet joined is compared, so its components are those of brute
    force. In a larger one a row is compared with the rows before it that joined nobody, and with the first
    COMPARED of these only: a false leader hides no true pair, a bucket of m rows costs at most `COMPARED * m`
    comparisons, and what remains apart in a bucket of more than COMPARED dissimilar rows is left to its other
    bands.

    The edges are a forest: rows that are joined already, through any bucket, are not compared again.
    """
    rows, places = np.unique(np.concatenate([members, leaders]), return_inverse=True)
    # One number for an edge: sorting the numbers groups the buckets and drops what several bands have found.
    edges = np.unique(places[len(members) :] * len(rows) + places[: len(members)])
    sets = shingle_sets(texts, rows, shingling)
    member, leader = _join(sets, edges % max(len(rows), 1), edges // max(len(rows), 1), threshold)
    return rows[member], rows[leader]


def jaccard(texts: Texts, left: Rows, right: Rows, shingling: Shingling = SHINGLING) -> NDArray[np.float64]:
    """Exact Jaccard similarity of the shingles of pairs of rows, float64[pairs]; 0 if both are empty."""
    rows, places = np.unique(np.concatenate([left, right]), return_inverse=True)
    sets = shingle_sets(texts, rows, shingling)
    return np.asarray(_similarities(sets, places[: len(left)], sets, places[len(left) :]), dtype=np.float64)


def components(n: int, members: Rows, leaders: Rows) -> Rows:
    """The smallest row of each row's component, int64[n]."""
    graph = coo_array((np.ones(len(members)), (members, leaders)), shape=(n, n))
    _, label = connected_components(graph, directed=False)
    _, smallest = np.unique(label, return_index=True)
    return np.asarray(smallest[label], dtype=np.int64)


def near_duplicates(
    texts: Texts, threshold: float = 0.7, bands: int = 20, rows: int = 6, shingling: Shingling = SHINGLING
) -> Rows:
    """The smallest row of each row's cluster of near-duplicates, int64[n], for a column in memory.

    Rows of Jaccard similarity `threshold` or more that share a bucket are joined, and so are their
    neighbours.
    """
    hashes = _hashed(texts, bands, rows, shingling)
    edges = [candidate_edges(band) for band in hashes.T]
    members = np.concatenate([member for member, _ in edges])
    leaders = np.concatenate([leader for _, leader in edges])
    return components(len(texts), *verified_edges(texts, members, leaders, threshold, shingling))


def matches(
    texts: Texts,
    others: Texts,
    threshold: float = 0.7,
    bands: int = 20,
    rows: int = 6,
    shingling: Shingling = SHINGLING,
) -> tuple[Rows, Rows, NDArray[np.float64]]:
    """The best near-duplicate of each text among others: (row of texts, row of others, similarity).

    int64, int64 and float64[matches]; rows of texts ascend, those without a match are left out, and of
    equally good matches the smallest row of others is named. In each band a text is compared with the first
    COMPARED others of its bucket.
    """
    ours, theirs = (_hashed(column, bands, rows, shingling) for column in (texts, others))
    known = [np.isin(our, their) & (our != NO_BUCKET) for our, their in zip(ours.T, theirs.T, strict=True)]
    candidates = np.flatnonzero(np.any(known, axis=0))
    left_sets, right_sets = shingle_sets(texts, candidates, shingling), shingle_sets(others, None, shingling)
    left = right = np.empty(0, dtype=np.int64)
    similarity = np.empty(0, dtype=np.float64)
    for our, their in zip(ours[candidates].T, theirs.T, strict=True):
        more_left, more_right = _meetings(our, their)
        more = _similarities(left_sets, more_left, right_sets, more_right)
        left, right = np.append(left, more_left), np.append(right, more_right)
        similarity = np.append(similarity, more)
        order = np.lexsort((right, -similarity, left))
        order = order[similarity[order] >= threshold]
        best = order[np.unique(left[order], return_index=True)[1]]
        left, right, similarity = left[best], right[best], similarity[best]
    return candidates[left], right, similarity


def _hashed(texts: Texts, bands: int, rows: int, shingling: Shingling) -> NDArray[np.uint64]:
    """Band hashes of a column, uint64[n, bands]; the larger signatures exist for a slice at a time."""
    result = np.empty((len(texts), bands), dtype=np.uint64)
    for start in range(0, len(texts), _ROWS_AT_ONCE):
        window = slice(start, start + _ROWS_AT_ONCE)
        result[window] = band_hashes(signatures(texts[window], shingling), bands, rows)
    return result


def _meetings(our: NDArray[np.uint64], their: NDArray[np.uint64]) -> tuple[Rows, Rows]:
    """Pairs of places of equal hashes in two bands, the first COMPARED of `their` for each of `our`."""
    order = np.argsort(their, stable=True)
    start, stop = (np.searchsorted(their, our, side, sorter=order) for side in ("left", "right"))
    count = np.where(our == NO_BUCKET, 0, np.minimum(stop - start, COMPARED))
    left = np.repeat(np.arange(len(our)), count)
    within = np.arange(len(left)) - np.repeat(np.cumsum(count) - count, count)
    return left, order[start[left] + within]


@kernel
def _common(left: Hashes, right: Hashes, needed: int) -> int:
    """Size of the intersection of two ascending sets, or less than `needed` if it is less than that."""
    spare_left, spare_right = len(left) - needed, len(right) - needed
    i = j = common = 0
    while i < len(left) and j < len(right) and i - common <= spare_left and j - common <= spare_right:
        a, b = left[i], right[j]
        common += a == b
        i += a <= b
        j += b <= a
    return common


@kernel
def _similarities(
    left_sets: ShingleSets,
    left: Rows,
    right_sets: ShingleSets,
    right: Rows,
) -> NDArray[np.float64]:
    """Jaccard similarity of pairs of sets, float64[pairs]; 0 for two empty ones."""
    result = np.zeros(len(left), dtype=np.float64)
    for k in range(len(left)):
        a = left_sets.hashes[left_sets.offsets[left[k]] : left_sets.offsets[left[k] + 1]]
        b = right_sets.hashes[right_sets.offsets[right[k]] : right_sets.offsets[right[k] + 1]]
        common = _common(a, b, 0)
        if common:
            result[k] = common / (len(a) + len(b) - common)
    return result


@kernel
def _alike(sets: ShingleSets, left: int, right: int, threshold: float) -> bool:
    """Whether the Jaccard similarity of two sets is at least the threshold."""
    a = sets.hashes[sets.offsets[left] : sets.offsets[left + 1]]
    b = sets.hashes[sets.offsets[right] : sets.offsets[right + 1]]
    # J >= t is |a & b| >= t / (1 + t) * (|a| + |b|); one less, so that rounding can't stop a comparison too
    # soon.
    common = _common(a, b, int(threshold / (1 + threshold) * (len(a) + len(b))) - 1)
    return common > 0 and common / (len(a) + len(b) - common) >= threshold


@kernel
def _root(forest: Rows, row: int) -> int:
    """The root of a row's tree, halving the path to it."""
    while forest[row] != row:
        forest[row] = forest[forest[row]]
        row = forest[row]
    return row


@kernel
def _join(sets: ShingleSets, members: Rows, leaders: Rows, threshold: float) -> tuple[Rows, Rows]:
    """(members, leaders) of the forest that the alike rows of each bucket make; see verified_edges.

    The edges of one leader are neighbours, their members ascend.
    """
    forest = np.arange(len(sets.offsets) - 1)
    joined = np.empty((2, len(members)), dtype=np.int64)
    compared = np.empty(COMPARED, dtype=np.int64)
    size = start = 0
    while start < len(members):
        stop = start
        while stop < len(members) and leaders[stop] == leaders[start]:
            stop += 1
        compared[0], held = leaders[start], 1
        for row in members[start:stop]:
            alone = True
            for other in compared[:held]:
                mine, yours = _root(forest, row), _root(forest, other)
                if mine != yours and _alike(sets, row, other, threshold):
                    forest[mine] = mine = yours
                    joined[0, size], joined[1, size] = max(row, other), min(row, other)
                    size += 1
                alone &= mine != yours
            if held < COMPARED and (alone or stop - start < COMPARED):
                compared[held] = row
                held += 1
        start = stop
    return joined[0, :size], joined[1, :size]
