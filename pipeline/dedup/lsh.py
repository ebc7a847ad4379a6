"""Bands of MinHash signatures: how many to use, their hashes, and the buckets of equal hashes."""

from collections.abc import Iterator
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from ..text.kernels import kernel
from .minhash import PERMUTATIONS, Hashes

Rows: TypeAlias = NDArray[np.int64]

PART_ROWS = 1 << 25
"""Chosen here: rows whose hashes are sorted together, 256 MB."""

NO_BUCKET = 0
"""The band hash of a text without shingles, which is in no bucket."""


def hash_bands(signatures: NDArray[np.uint32], bands: int = 20, rows: int = 6) -> NDArray[np.uint64]:
    """Hash every band of every signature, uint64[n, bands].

    Band i covers permutations `[i * rows, (i + 1) * rows)`, and i is part of the hash. The hashes of an empty text are
    NO_BUCKET. Raises ValueError if the bands need more permutations than there are.
    """
    if bands * rows > signatures.shape[1]:
        raise ValueError(f"{bands} bands of {rows} rows need more than {signatures.shape[1]} permutations")
    result = np.empty((len(signatures), bands), dtype=np.uint64)
    _hash_bands(signatures, rows, result)
    return result


def collision_probability(similarity: float, bands: int, rows: int) -> float:
    """Compute the chance that two texts of this Jaccard similarity share a bucket: `1 - (1 - s**rows)**bands`.

    Source: Leskovec, Rajaraman, Ullman, Mining of Massive Datasets, section 3.4.2.
    """
    return float(1 - (1 - similarity**rows) ** bands)


def choose_bands(wanted: float, threshold: float, permutations: int = PERMUTATIONS) -> tuple[int, int]:
    """Choose (bands, rows) that reach the recall `wanted` at the threshold, with the most rows, then the fewest bands.

    More rows mean fewer false candidates, fewer bands less to sort. Raises ValueError if no choice reaches the recall.
    """
    for rows in range(permutations, 0, -1):
        if collision_probability(threshold, permutations // rows, rows) >= wanted:
            fewest = (
                b for b in range(1, permutations // rows + 1) if collision_probability(threshold, b, rows) >= wanted
            )
            return next(fewest), rows
    raise ValueError(f"no bands of {permutations} permutations reach a recall of {wanted} at {threshold}")


def find_equal(values: NDArray[np.uint64]) -> Iterator[tuple[Rows, Rows]]:
    """Yield the buckets of `find_buckets` for uint64[n] that any rows may share, a part of them at a time.

    Equal values are in one bucket. A part has the values with the same lowest bits, of PART_ROWS rows or fewer.
    """
    bits, parts = len(values).bit_length(), 1 << (len(values) // PART_ROWS).bit_length()
    for part in range(parts):
        rows = _rows_of_part(values, np.uint64(parts - 1), np.uint64(part))
        yield find_buckets(pack(values[rows], rows, bits), bits)


def find_buckets(packed: NDArray[np.uint64], bits: int) -> tuple[Rows, Rows]:
    """Find the buckets as edges from the smallest row of each to its other rows: (leaders, members), int64[e] each.

    packed: band hashes with their row numbers in the lowest `bits` bits, as made by `pack`; sorted in place. The edges
    of a leader are contiguous and their members ascend. A bucket of m rows has m - 1 edges.
    """
    packed.sort()
    return _edges(packed, np.uint64(bits))


def pack(hashes: NDArray[np.uint64], rows: Rows, bits: int) -> NDArray[np.uint64]:
    """Replace the lowest `bits` bits of each hash by its row number, uint64[n], so that sorting them finds buckets.

    The truncation adds false candidates; the exact Jaccard check rejects them.
    """
    packed = hashes >> np.uint64(bits)
    packed <<= np.uint64(bits)
    packed |= rows.view(np.uint64)
    return packed


@kernel
def _rows_of_part(values: NDArray[np.uint64], mask: np.uint64, part: np.uint64) -> Rows:
    """Return the rows with a value v for which v & mask = part."""
    count = 0
    for value in values:
        count += value & mask == part
    rows = np.empty(count, np.int64)
    count = 0
    for row in range(len(values)):
        if values[row] & mask == part:
            rows[count] = row
            count += 1
    return rows


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
    """Hash each band by FNV-1a over its values with a 64-bit prime, seeded by its number and finished by fmix64."""
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
