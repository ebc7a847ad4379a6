"""MinHash signatures of a text column, bit for bit those of datasketch, by kernels over its UTF-8 bytes.

A text is the set of its character n-grams (shingles); a shingle is hashed by MurmurHash3 over its Unicode
code points; a signature is what `datasketch.MinHash(num_perm=128, scheme="affine32", hashfunc=shingle_hash)`
makes of that set. The kernels read Arrow's UTF-8 buffers directly: no Python object stands for a text or a
shingle.

Texts are compared as they are given; the caller normalises them.
"""

from collections.abc import Callable
from typing import Any, NamedTuple, TypeAlias, TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from datasketch import MinHash
from numba import njit
from numpy.typing import NDArray

Texts: TypeAlias = pa.Array | pa.ChunkedArray
Offsets: TypeAlias = NDArray[np.int64]
Hashes: TypeAlias = NDArray[np.uint32]

Function = TypeVar("Function", bound=Callable[..., Any])
kernel: Callable[[Function], Function] = njit(cache=True, nogil=True)

PERMUTATIONS = 128
NO_BUCKET = 0
"""Band hash of a text without shingles: it belongs in no bucket."""

# Shingles that meet the 128 permutations together, so that a signature is loaded and stored once for eight.
_TOGETHER = 8

_NOTHING = pa.array([], type=pa.large_string())


class Shingling(NamedTuple):
    """How a text is cut: n-grams of `ngram` characters, of `short_ngram` for texts under `short_below`
    characters.

    A text shorter than its n-gram is one shingle, itself; an empty text has none. Two texts on either side of
    `short_below` share no shingle, however alike they are: their similarity is 0.
    """

    ngram: int = 5
    short_ngram: int = 3
    short_below: int = 50


SHINGLING = Shingling()


class ShingleSets(NamedTuple):
    """The sets of shingle hashes of n texts; set i is `hashes[offsets[i] : offsets[i + 1]]`.

    offsets: int64[n + 1]; hashes: uint32[offsets[n]], ascending and distinct within a set.
    """

    offsets: NDArray[np.int64]
    hashes: NDArray[np.uint32]


def shingle_hash(shingle: bytes) -> int:
    """MurmurHash3_x86_32 with seed 0 of a shingle's UTF-32-LE bytes: the `hashfunc` that makes datasketch
    agree.

    In UTF-32-LE each code point is one 4-byte block of MurmurHash3 and there is never a tail, so the kernel
    hashes code points as they are decoded. This is the plain form of the kernel's hash. Source of the
    constants: MurmurHash3.cpp, https://github.com/aappleby/smhasher.
    """
    mask = 0xFFFFFFFF
    value = 0
    for point in np.frombuffer(shingle, dtype="<u4").tolist():
        block = point * 0xCC9E2D51 & mask
        block = (block << 15 | block >> 17) * 0x1B873593 & mask
        value ^= block
        value = ((value << 13 | value >> 19) * 5 + 0xE6546B64) & mask
    value ^= len(shingle)
    value = (value ^ value >> 16) * 0x85EBCA6B & mask
    value = (value ^ value >> 13) * 0xC2B2AE35 & mask
    return value ^ value >> 16


def signatures(texts: Texts, shingling: Shingling = SHINGLING) -> NDArray[np.uint32]:
    """MinHash signatures of a string column: uint32[n, 128].

    Equal to datasketch's (seed 1). A null is an empty text; an empty text has datasketch's empty signature,
    all 2**32 - 1. Raises TypeError for a column that does not hold strings.
    """
    multipliers, increments = MinHash(num_perm=PERMUTATIONS, scheme="affine32").permutations
    result = np.empty((len(texts), PERMUTATIONS), dtype=np.uint32)
    _sign(*_utf8(texts), shingling, multipliers, increments, result)
    return result


def shingle_sets(
    texts: Texts,
    rows: NDArray[np.int64] | None = None,
    shingling: Shingling = SHINGLING,
) -> ShingleSets:
    """The sets of shingle hashes of a string column, or of some rows of it in the order given.

    A null is an empty text. Raises TypeError for a column that does not hold strings and IndexError for a row
    that it does not have.
    """
    chosen = np.arange(len(texts)) if rows is None else rows
    if len(chosen) and not 0 <= chosen.min() <= chosen.max() < len(texts):
        raise IndexError(f"rows {chosen.min()} to {chosen.max()} of a column of {len(texts)}")
    return ShingleSets(*_collect(*_utf8(texts), chosen, shingling))


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


def recall(similarity: float, bands: int, rows: int) -> float:
    """Chance that two texts of this Jaccard similarity share a bucket: `1 - (1 - s**rows)**bands`.

    Source: Leskovec, Rajaraman, Ullman, Mining of Massive Datasets, section 3.4.2.
    """
    return float(1 - (1 - similarity**rows) ** bands)


def band_choice(wanted: float, threshold: float, permutations: int = PERMUTATIONS) -> tuple[int, int]:
    """(bands, rows) with the most rows, then the fewest bands, whose recall at the threshold is at least
    `wanted`.

    More rows mean fewer false candidates; fewer bands mean less to sort. Raises ValueError if there is none.
    """
    for rows in range(permutations, 0, -1):
        if recall(threshold, permutations // rows, rows) >= wanted:
            fewest = (b for b in range(1, permutations // rows + 1) if recall(threshold, b, rows) >= wanted)
            return next(fewest), rows
    raise ValueError(f"no bands of {permutations} permutations reach a recall of {wanted} at {threshold}")


def _utf8(texts: Texts) -> tuple[NDArray[np.int64], NDArray[np.uint8]]:
    """(offsets int64[n + 1], data uint8) of a string column, without copying the data of a single chunk."""
    kind = texts.type
    if not (pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind)):
        raise TypeError(f"expected a column of strings, not {kind}")
    # Large offsets first: combining the chunks of 32-bit offsets would overflow at 2 GiB.
    column = texts.cast(pa.large_string())
    if column.null_count:  # a null slot may still own bytes
        column = pc.fill_null(column, "")
    if isinstance(column, pa.ChunkedArray):
        column = column.chunk(0) if column.num_chunks == 1 else pa.concat_arrays(column.chunks or [_NOTHING])
    if not len(column):  # which need not have buffers
        return np.frombuffer(bytes(8), dtype=np.int64), np.frombuffer(b"", dtype=np.uint8)
    _, ends, data = column.buffers()
    offsets = np.frombuffer(ends, dtype=np.int64)[column.offset : column.offset + len(column) + 1]
    return offsets, np.frombuffer(data or b"", dtype=np.uint8)


@kernel
def _longest(offsets: Offsets, rows: NDArray[np.int64]) -> int:
    """Bytes of the longest of the chosen texts."""
    longest = 0
    for row in rows:
        longest = max(longest, offsets[row + 1] - offsets[row])
    return longest


@kernel
def _decode(data: NDArray[np.uint8], start: int, end: int, points: Hashes) -> int:
    """Write the code points of `data[start:end]`, reading no byte beyond it, to `points`; their number."""
    count = 0
    at = start
    while at < end:
        lead = np.uint32(data[at])
        if lead < 0x80:
            point, width = lead, 1
        elif lead < 0xE0:
            point, width = lead & np.uint32(0x1F), 2
        elif lead < 0xF0:
            point, width = lead & np.uint32(0x0F), 3
        else:
            point, width = lead & np.uint32(0x07), 4
        for i in range(at + 1, min(at + width, end)):
            point = np.uint32(point << 6) | np.uint32(data[i] & 0x3F)
        points[count] = point
        count += 1
        at += width
    return count


@kernel
def _hash_shingles(
    data: NDArray[np.uint8], start: int, end: int, shingling: Shingling, points: Hashes, hashes: Hashes
) -> int:
    """Write `shingle_hash` of each shingle of the text to `hashes`, repeats included; their number.

    Every step runs over all positions before the next one, so that each becomes a vector loop.
    """
    length = _decode(data, start, end, points)
    if length == 0:
        return 0
    ngram = shingling.short_ngram if length < shingling.short_below else shingling.ngram
    ngram = min(ngram, length)
    count = length - ngram + 1
    for i in range(length):
        block = np.uint32(points[i] * np.uint32(0xCC9E2D51))
        points[i] = np.uint32(np.uint32(block << 15) | np.uint32(block >> 17)) * np.uint32(0x1B873593)
    for i in range(count):
        hashes[i] = 0
    for j in range(ngram):
        for i in range(count):
            value = np.uint32(hashes[i] ^ points[i + j])
            value = np.uint32(value << 13) | np.uint32(value >> 19)
            hashes[i] = np.uint32(value * np.uint32(5) + np.uint32(0xE6546B64))
    for i in range(count):
        hashes[i] = _fmix32(hashes[i] ^ np.uint32(4 * ngram))
    return count


@kernel
def _fmix32(value: np.uint32) -> np.uint32:
    """MurmurHash3's finaliser, with which datasketch's affine32 mixes each hash once more."""
    value = np.uint32(np.uint32(value ^ (value >> 16)) * np.uint32(0x85EBCA6B))
    value = np.uint32(np.uint32(value ^ (value >> 13)) * np.uint32(0xC2B2AE35))
    return np.uint32(value ^ (value >> 16))


@kernel
def _sign(
    offsets: Offsets,
    data: NDArray[np.uint8],
    shingling: Shingling,
    multipliers: Hashes,
    increments: Hashes,
    result: Hashes,
) -> None:
    """Write each text's signature to `result`: for each permutation the minimum of `a * h + b mod 2**32`."""
    room = _longest(offsets, np.arange(len(result))) + _TOGETHER
    points = np.empty(room, dtype=np.uint32)
    hashes = np.empty(room, dtype=np.uint32)
    for row in range(len(result)):
        signature = result[row]
        signature[:] = np.uint32(0xFFFFFFFF)
        count = _hash_shingles(data, offsets[row], offsets[row + 1], shingling, points, hashes)
        for i in range(count):
            hashes[i] = _fmix32(hashes[i])
        # A minimum does not mind repeats: fill up the last eight.
        for i in range(count, count + (-count) % _TOGETHER):
            hashes[i] = hashes[count - 1]
        for i in range(0, count, _TOGETHER):
            _lower(signature, multipliers, increments, hashes[i : i + _TOGETHER])


@kernel
def _lower(signature: Hashes, multipliers: Hashes, increments: Hashes, hashes: Hashes) -> None:
    """Lower a signature to the minimum over eight more hashes."""
    for k in range(PERMUTATIONS):
        least, a, b = signature[k], multipliers[k], increments[k]
        for i in range(_TOGETHER):
            least = min(least, np.uint32(a * hashes[i] + b))
        signature[k] = least


@kernel
def _collect(
    offsets: Offsets, data: NDArray[np.uint8], rows: NDArray[np.int64], shingling: Shingling
) -> tuple[Offsets, Hashes]:
    """(offsets, hashes) of the sorted sets of shingle hashes of the chosen rows."""
    total = 0
    for row in rows:
        total += offsets[row + 1] - offsets[row]
    room = _longest(offsets, rows)
    points = np.empty(room, dtype=np.uint32)
    hashes, ordered = np.empty(room, dtype=np.uint32), np.empty(room, dtype=np.uint32)
    places = np.empty(room + 1, dtype=np.int64)
    ends = np.zeros(len(rows) + 1, dtype=np.int64)
    kept = np.empty(total, dtype=np.uint32)
    size = 0
    for i in range(len(rows)):
        count = _hash_shingles(data, offsets[rows[i]], offsets[rows[i] + 1], shingling, points, hashes)
        _sort(hashes[:count], places, ordered)
        for j in range(count):
            if j == 0 or ordered[j] != ordered[j - 1]:
                kept[size] = ordered[j]
                size += 1
        ends[i + 1] = size
    return ends, kept[:size]


@kernel
def _sort(hashes: Hashes, places: NDArray[np.int64], ordered: Hashes) -> None:
    """Write n hashes to `ordered`, ascending, in linear time: h * n / 2**32 is about a uniform h's rank."""
    n = np.uint64(len(hashes))
    places[: n + 1] = 0
    for value in hashes:
        places[(value * n >> np.uint64(32)) + 1] += 1
    for i in range(n):
        places[i + 1] += places[i]
    for value in hashes:
        bucket = value * n >> np.uint64(32)
        ordered[places[bucket]] = value
        places[bucket] += 1
    for i in range(1, len(hashes)):
        value, j = ordered[i], i
        while j > 0 and ordered[j - 1] > value:
            ordered[j] = ordered[j - 1]
            j -= 1
        ordered[j] = value


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
