"""Bands of MinHash signatures: how many to take, their hashes, and the buckets that equal hashes make."""

from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from .minhash import PERMUTATIONS, Hashes, kernel

Rows: TypeAlias = NDArray[np.int64]

NO_BUCKET = 0
"""Band hash of a text without shingles: it belongs in no bucket."""


def band_hashes(signatures: NDArray[np.uint32], bands: int = 20, rows: int = 6) -> NDArray[np.uint64]:
    """One hash for every band of every signature: uint64[n, bands].

    Band i covers permutations `[i * rows, (i + 1) * rows)` and its number is part of the hash; an empty
    text's hashes are NO_BUCKET. Raises ValueError if the bands need more permutations than there are.
    """
    if bands * rows > signatures.shape[1]:
        raise ValueError(f"{bands} bands of {rows} rows need more than {signatures.shape[1]} permutations")
    result = np.empty((len(signatures), bands), dtype=np.uint64)
    _hash_bands(signatures, rows, result)
    return result


def collision_probability(similarity: float, bands: int, rows: int) -> float:
    """Chance that two texts of this Jaccard similarity share a bucket: `1 - (1 - s**rows)**bands`.

    Source: Leskovec, Rajaraman, Ullman, Mining of Massive Datasets, section 3.4.2.
    """
    return float(1 - (1 - similarity**rows) ** bands)


def choose_bands(wanted: float, threshold: float, permutations: int = PERMUTATIONS) -> tuple[int, int]:
    """(bands, rows) with the most rows, then the fewest bands, whose recall at the threshold is at least
    `wanted`.

    More rows mean fewer false candidates; fewer bands mean less to sort. Raises ValueError if there is none.
    """
    for rows in range(permutations, 0, -1):
        if collision_probability(threshold, permutations // rows, rows) >= wanted:
            fewest = (
                b for b in range(1, permutations // rows + 1) if collision_probability(threshold, b, rows) >= wanted
            )
            return next(fewest), rows
    raise ValueError(f"no bands of {permutations} permutations reach a recall of {wanted} at {threshold}")


def buckets(packed: NDArray[np.uint64], bits: int) -> tuple[Rows, Rows]:
    """(leaders, members), int64[e] each: an edge from each row of a bucket to the bucket's smallest row.

    packed: a band hash whose lowest `bits` bits are the row's number in its place, as `pack` makes them; sorted in
    place. Edges of one leader are neighbours and their members ascend; a bucket of m rows is m - 1 edges.
    """
    packed.sort()
    return _edges(packed, np.uint64(bits))


def pack(hashes: NDArray[np.uint64], rows: Rows, bits: int) -> NDArray[np.uint64]:
    """Hashes and the numbers of their rows in one, uint64[n]: buckets then need no sorting but of numbers.

    What a hash loses is room for false neighbours, of which a comparison of texts finds out.
    """
    packed = hashes >> np.uint64(bits)
    packed <<= np.uint64(bits)
    packed |= rows.view(np.uint64)
    return packed


@kernel
def _edges(packed: NDArray[np.uint64], bits: np.uint64) -> tuple[Rows, Rows]:
    count = 0
    for i in range(1, len(packed)):
        count += packed[i] >> bits == packed[i - 1] >> bits
    leaders, members = np.empty(count, np.int64), np.empty(count, np.int64)
    mask = (np.uint64(1) << bits) - np.uint64(1)
    size = 0
    leader = packed[0] if len(packed) else np.uint64(0)
    for i in range(1, len(packed)):
        if packed[i] >> bits == leader >> bits:
            leaders[size], members[size] = leader & mask, packed[i] & mask
            size += 1
        else:
            leader = packed[i]
    return leaders, members


@kernel
def _hash_bands(signatures: Hashes, rows: int, result: NDArray[np.uint64]) -> None:
    """FNV-1a over a band's values with a 64-bit prime, seeded by the band's number, finished by fmix64."""
    for i in range(result.shape[0]):
        for band in range(result.shape[1]):
            value = np.uint64(0xCBF29CE484222325) ^ np.uint64(band)
            empty = True
            for k in range(band * rows, (band + 1) * rows):
                empty &= signatures[i, k] == np.uint32(0xFFFFFFFF)
                value = (value ^ np.uint64(signatures[i, k])) * np.uint64(0x100000001B3)
            value = (value ^ (value >> np.uint64(33))) * np.uint64(0xFF51AFD7ED558CCD)
            value = (value ^ (value >> np.uint64(33))) * np.uint64(0xC4CEB9FE1A85EC53)
            result[i, band] = np.uint64(NO_BUCKET) if empty else value ^ (value >> np.uint64(33))
