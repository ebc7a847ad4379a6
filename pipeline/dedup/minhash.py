"""MinHash signatures of a text column (bit-identical to datasketch's), and exact Jaccard similarity.

A text is the set of its character n-grams (shingles). A shingle is hashed by MurmurHash3 over its Unicode code points.
A signature is what `datasketch.MinHash(num_perm=128, scheme="affine32", hashfunc=shingle_hash)` computes for that set.
Jaccard similarity is exact over the sets of 32-bit hashes: two different shingles with the same hash count as one. The
kernels read Arrow's UTF-8 buffers directly, so no text or shingle becomes a Python object.

Texts are compared as they are given; the caller normalises them.
"""

from typing import NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray

from ..text.kernels import Offsets, Texts, decode, inner_kernel, kernel, utf8_buffers

Hashes: TypeAlias = NDArray[np.uint32]

PERMUTATIONS = 128
# A signature is updated with this many hashes at a time, so that it is loaded and stored once for all of them.
_BATCH = 8


class Shingling(NamedTuple):
    """How a text is cut: n-grams of `ngram` characters, or of `short_ngram` if it has fewer than `short_below`.

    A text shorter than its n-gram is a single shingle; an empty text has none. If one text has fewer than `short_below`
    characters and the other does not, they share no shingle, however alike they are: their similarity is 0.
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


NO_LETTERS = -1
"""Stands for the letters of a text that is long enough to differ in signs alone."""


class Compared(NamedTuple):
    """One side of n pairs, as `choose_representatives` compares it.

    places: the place of each row's set in `sets`, int64[n]; equal if the texts are, or if the side doesn't count.
    letters: what `hash_letters` returns for each set.
    """

    sets: ShingleSets
    letters: NDArray[np.int64]
    places: NDArray[np.int64]


def shingle_hash(shingle: bytes) -> int:
    """Return MurmurHash3_x86_32, seed 0, of a shingle's UTF-32-LE bytes; use it as the `hashfunc` of datasketch.

    A readable reference implementation; `_hash_shingles` computes the same. In UTF-32-LE each code point is one 4-byte
    block of MurmurHash3 and there is never a tail, so `_hash_shingles` works on code points and builds no
    bytes. Source of the constants: MurmurHash3.cpp, https://github.com/aappleby/smhasher.
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
    """Compute the MinHash signatures of a string column, uint32[n, 128], identical to datasketch's with seed 1.

    A null counts as an empty text, and the signature of an empty text is all 2**32 - 1, as in datasketch. Raises
    TypeError if the column does not hold strings.
    """
    from datasketch import MinHash  # which imports much of SciPy: half a second that only signing needs

    multipliers, increments = MinHash(num_perm=PERMUTATIONS, scheme="affine32").permutations
    result = np.empty((len(texts), PERMUTATIONS), dtype=np.uint32)
    _write_signatures(*utf8_buffers(texts), shingling, multipliers, increments, result)
    return result


def shingle_sets(
    texts: Texts,
    rows: NDArray[np.int64] | None = None,
    shingling: Shingling = SHINGLING,
) -> ShingleSets:
    """Compute the sets of shingle hashes of a string column, or of the given rows in the given order.

    A null counts as an empty text. Raises TypeError if the column does not hold strings, and IndexError for a row that
    it does not have.
    """
    chosen = np.arange(len(texts)) if rows is None else rows
    if len(chosen) and not 0 <= chosen.min() <= chosen.max() < len(texts):
        raise IndexError(f"rows {chosen.min()} to {chosen.max()} of a column with {len(texts)} rows")
    return ShingleSets(*_collect(*utf8_buffers(texts), chosen, shingling))


def jaccard(
    left_sets: ShingleSets,
    left: NDArray[np.int64],
    right_sets: ShingleSets,
    right: NDArray[np.int64],
    threshold: float = 0.0,
) -> NDArray[np.float64]:
    """Compute the Jaccard similarity of pairs of sets, float64[pairs]; 0 if both sets are empty.

    Pair i is the set `left[i]` of `left_sets` and the set `right[i]` of `right_sets`. A similarity below the threshold
    is returned as 0: the comparison stops once the threshold is out of reach.
    """
    return _compare(left_sets, left, right_sets, right, threshold)


def text_hashes(texts: Texts) -> NDArray[np.int64]:
    """Hash each text's UTF-8 bytes to 63 bits of MurmurHash64A (seed 0): int64[n], never negative.

    Dedup compares these hashes to find texts that are equal after normalisation. A null counts as an empty text.
    Source: MurmurHash2.cpp, https://github.com/aappleby/smhasher.
    """
    result = np.empty(len(texts), dtype=np.int64)
    _hash_texts(*utf8_buffers(texts), result)
    return result


@kernel
def _longest(offsets: Offsets, rows: NDArray[np.int64]) -> int:
    """Return the length of the longest of the chosen texts, in bytes."""
    longest = 0
    for row in rows:
        longest = max(longest, offsets[row + 1] - offsets[row])
    return longest


@kernel
def _hash_shingles(
    data: NDArray[np.uint8], start: int, end: int, shingling: Shingling, points: Hashes, hashes: Hashes
) -> int:
    """Write the `shingle_hash` of each shingle of the text to `hashes`, repeats included; return their number.

    `points` is scratch space and is overwritten. Both buffers must have at least as many elements as the text has
    bytes. Each loop does one step for all positions, so that LLVM can vectorize it.
    """
    length = decode(data, start, end, points)
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
    """Apply MurmurHash3's finaliser. datasketch's affine32 scheme applies it to each hash once more."""
    value = np.uint32(np.uint32(value ^ (value >> 16)) * np.uint32(0x85EBCA6B))
    value = np.uint32(np.uint32(value ^ (value >> 13)) * np.uint32(0xC2B2AE35))
    return np.uint32(value ^ (value >> 16))


@kernel
def _write_signatures(
    offsets: Offsets,
    data: NDArray[np.uint8],
    shingling: Shingling,
    multipliers: Hashes,
    increments: Hashes,
    result: Hashes,
) -> None:
    """Write each text's signature to `result`: per permutation the minimum of `a * h + b mod 2**32` over its shingles.

    h is the shingle's hash after another `_fmix32`, as in datasketch's scheme affine32.
    """
    size = _longest(offsets, np.arange(len(result))) + _BATCH  # room to fill up the last batch
    points = np.empty(size, dtype=np.uint32)
    hashes = np.empty(size, dtype=np.uint32)
    for row in range(len(result)):
        signature = result[row]
        signature[:] = np.uint32(0xFFFFFFFF)
        count = _hash_shingles(data, offsets[row], offsets[row + 1], shingling, points, hashes)
        for i in range(count):
            hashes[i] = _fmix32(hashes[i])
        # Fill up the last batch with repeats, which don't change a minimum.
        for i in range(count, count + (-count) % _BATCH):
            hashes[i] = hashes[count - 1]
        for i in range(0, count, _BATCH):
            _update_minima(signature, multipliers, increments, hashes[i : i + _BATCH])


@kernel
def _update_minima(signature: Hashes, multipliers: Hashes, increments: Hashes, hashes: Hashes) -> None:
    """Update a signature with a batch of hashes: for each permutation the minimum of `a * h + b`."""
    for k in range(PERMUTATIONS):
        least, a, b = signature[k], multipliers[k], increments[k]
        for i in range(_BATCH):
            least = min(least, np.uint32(a * hashes[i] + b))
        signature[k] = least


@kernel
def _collect(
    offsets: Offsets, data: NDArray[np.uint8], rows: NDArray[np.int64], shingling: Shingling
) -> tuple[Offsets, Hashes]:
    """Return (offsets, hashes), the sorted sets of shingle hashes of the chosen rows."""
    total = 0
    for row in rows:
        total += offsets[row + 1] - offsets[row]
    longest = _longest(offsets, rows)
    points = np.empty(longest, dtype=np.uint32)
    hashes, ordered = np.empty(longest, dtype=np.uint32), np.empty(longest, dtype=np.uint32)
    bucket_starts = np.empty(longest + 1, dtype=np.int64)
    set_offsets = np.zeros(len(rows) + 1, dtype=np.int64)
    set_hashes = np.empty(total, dtype=np.uint32)
    size = 0
    for i in range(len(rows)):
        count = _hash_shingles(data, offsets[rows[i]], offsets[rows[i] + 1], shingling, points, hashes)
        _bucket_sort(hashes[:count], bucket_starts, ordered)
        for j in range(count):
            if j == 0 or ordered[j] != ordered[j - 1]:
                set_hashes[size] = ordered[j]
                size += 1
        set_offsets[i + 1] = size
    return set_offsets, set_hashes[:size]


@kernel
def _bucket_sort(hashes: Hashes, bucket_starts: NDArray[np.int64], ordered: Hashes) -> None:
    """Write n hashes to `ordered`, ascending, in expected linear time: a uniform hash h has about rank h * n / 2**32.

    `bucket_starts` is scratch space of at least n + 1 elements; `ordered` must have at least n.
    """
    n = np.uint64(len(hashes))
    # Count the hashes per bucket.
    bucket_starts[: n + 1] = 0
    for value in hashes:
        bucket_starts[(value * n >> np.uint64(32)) + 1] += 1
    # Prefix sums turn the counts into starts.
    for i in range(n):
        bucket_starts[i + 1] += bucket_starts[i]
    # Scatter the hashes; each moves the start of its bucket on by one.
    for value in hashes:
        bucket = value * n >> np.uint64(32)
        ordered[bucket_starts[bucket]] = value
        bucket_starts[bucket] += 1
    # An insertion sort orders the few hashes of each bucket.
    for i in range(1, len(hashes)):
        value, j = ordered[i], i
        while j > 0 and ordered[j - 1] > value:
            ordered[j] = ordered[j - 1]
            j -= 1
        ordered[j] = value


@kernel
def _hash_texts(offsets: Offsets, data: NDArray[np.uint8], result: NDArray[np.int64]) -> None:
    """Write the upper 63 bits of each text's MurmurHash64A to `result`."""
    factor = np.uint64(0xC6A4A7935BD1E995)
    for row in range(len(result)):
        start, end = offsets[row], offsets[row + 1]
        value = np.uint64(end - start) * factor
        for at in range(start, end - 7, 8):
            block = np.uint64(0)
            for i in range(8):
                block |= np.uint64(data[at + i]) << np.uint64(8 * i)
            block *= factor
            value = (value ^ (block ^ block >> np.uint64(47)) * factor) * factor
        tail = (end - start) % 8
        if tail:
            for i in range(tail):
                value ^= np.uint64(data[end - tail + i]) << np.uint64(8 * i)
            value *= factor
        value = (value ^ value >> np.uint64(47)) * factor
        result[row] = np.int64((value ^ value >> np.uint64(47)) >> np.uint64(1))


@kernel
def _intersection_size(left: Hashes, right: Hashes, needed: int) -> int:
    """Return the size of the intersection of two ascending sets.

    If the size is less than `needed`, the result may be smaller than the size, because the merge stops early.
    """
    spare_left, spare_right = len(left) - needed, len(right) - needed
    i = j = common = 0
    while i < len(left) and j < len(right) and i - common <= spare_left and j - common <= spare_right:
        a, b = left[i], right[j]
        common += a == b
        i += a <= b
        j += b <= a
    return common


@inner_kernel
def _similarity(left_sets: ShingleSets, left: int, right_sets: ShingleSets, right: int, threshold: float) -> float:
    """Compute the similarity of two sets; one below the threshold is returned as 0."""
    a = left_sets.hashes[left_sets.offsets[left] : left_sets.offsets[left + 1]]
    b = right_sets.hashes[right_sets.offsets[right] : right_sets.offsets[right + 1]]
    # J >= t means |a & b| >= t / (1 + t) * (|a| + |b|). Subtract one, so that rounding can't stop the merge early.
    common = _intersection_size(a, b, int(threshold / (1 + threshold) * (len(a) + len(b))) - 1)
    similarity = common / (len(a) + len(b) - common) if common else 0.0
    return similarity if similarity >= threshold else 0.0


@kernel
def _compare(
    left_sets: ShingleSets, left: NDArray[np.int64], right_sets: ShingleSets, right: NDArray[np.int64], threshold: float
) -> NDArray[np.float64]:
    """Compute what `jaccard` returns."""
    result = np.empty(len(left), np.float64)
    for k in range(len(left)):
        result[k] = _similarity(left_sets, left[k], right_sets, right[k], threshold)
    return result


@kernel
def choose_representatives(
    buckets: NDArray[np.int64], sides: tuple[Compared, Compared], threshold: float, most: int
) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Choose rows such that each other row resembles an earlier one of them, and no two of them do.

    Rows are compared if they share a bucket; int64[n, b] has each row's buckets, numbered from 0, and no number occurs
    in two columns. Only the first `most` chosen rows of a bucket are compared, so that the time is linear in the rows.
    Returns each row's earliest representative, -1 for the chosen ones, and its similarity: the lowest of both sides.
    """
    rows, columns = buckets.shape
    chosen, similarities = np.full(rows, -1), np.ones(rows)
    first = np.full(buckets.max() + 1, -1)  # per bucket: its first representative, its last, and how many it has
    last, held = first.copy(), np.zeros(len(first), np.int64)
    following = np.full(buckets.shape, -1)  # the next representative in the same bucket
    compared_with = np.full(rows, -1)
    for row in range(rows):
        for column in range(columns):
            other = first[buckets[row, column]]
            while other >= 0 and (chosen[row] < 0 or other < chosen[row]):
                if compared_with[other] != row:
                    compared_with[other] = row
                    similarity = min(
                        _side_similarity(sides[0], row, other, threshold),
                        _side_similarity(sides[1], row, other, threshold),
                    )
                    if similarity >= threshold:
                        chosen[row], similarities[row] = other, similarity
                other = following[other, column]
        if chosen[row] >= 0:
            continue
        for column in range(columns):
            bucket = buckets[row, column]
            if held[bucket] == most:
                continue
            if held[bucket]:
                following[last[bucket], column] = row
            else:
                first[bucket] = row
            last[bucket] = row
            held[bucket] += 1
    return chosen, similarities


@inner_kernel
def _side_similarity(side: Compared, row: int, other: int, threshold: float) -> float:
    one, two = side.places[row], side.places[other]
    if one == two:
        return 1.0
    if side.letters[one] == side.letters[two] and side.letters[one] != NO_LETTERS:
        return 0.0
    return _similarity(side.sets, one, side.sets, two, threshold)
