"""What a text is made of: one pass that counts its characters by class, its lines and its repeated n-grams.

Most filter rules are quotients of these counts, so they are taken once for each text, in a kernel over the
UTF-8 bytes of an Arrow buffer: a regular expression for every count would read each text a dozen times.
"""

from functools import cache
from typing import Any

import numpy as np
import polars as pl

from ..text.kernels import code_point, kernel, utf8_buffers

PROFILE = (
    "characters",  # code points
    "letters",  # \p{L} and \p{M}, Han among them
    "han",
    "digits",  # \p{N}
    "punctuation",  # \p{P}
    "symbols",  # \p{S}: currency, mathematics, boxes, emoji
    "damaged",  # U+FFFD, private use and unassigned code points
    "misread",  # what misread UTF-8 begins with: À to ÿ in Windows-1252, MISREAD_AS_GBK in GBK
    "separators",  # characters in runs of four or more of `----====****`
    "dominant",  # occurrences of the commonest character that is neither white space nor a digit
    "lines",  # lines that are not blank
    "finished_lines",  # of these, the ones that end a sentence
    "repeated_line_characters",  # characters in lines that stood there before
    "top_10grams",  # occurrences of the commonest repeated 10-grams, as data-juicer counts them
    "repeated_13grams",  # occurrences of all repeated 13-grams, as ChineseWebText counts them
)
"""The counts of `profile`, in order."""

_OTHER, _HAN, _LETTER, _DIGIT, _PUNCTUATION, _SYMBOL, _SPACE, _DAMAGED = range(8)
_SENTENCE_END, _SEPARATOR, _MISREAD = 16, 32, 64  # flags beside the class
_CODE_POINTS = 0x110000
_NEWLINE = 0x0A
_BASE, _MIX = np.uint64(0x100000001B3), np.uint64(0x9E3779B97F4A7C15)  # FNV's prime; Fibonacci hashing's multiplier
_READ_FOR_REPEATS = 1 << 20  # characters: what bounds the tables of a text that is one endless line

# What may close a sentence: full stops of both scripts, and the quotes and brackets that follow one.
_SENTENCE_ENDS = '。．｡！？；…：.!?;:”’」』）)】》〉"~～'
MISREAD_AS_GBK = "锟烫屯銆鈥鐨锛"
_SEPARATORS = "-=_*#~+.·•…—|/\\^@$%&"
_SEPARATOR_RUN = 4


@cache
def _classes() -> Any:
    """The class of every code point: uint8 of shape (0x110000,), after the Unicode tables of Polars' regex.

    The planes from U+40000 on hold nothing but variation selectors, tags and private use.
    """
    points = [*range(0xD800), *range(0xE000, 0x40000), *range(0xE0000, 0xE0200)]
    text = pl.col("text")
    found = (
        pl.Series("text", [chr(point) for point in points])
        .to_frame()
        .select(
            pl.when(text.str.contains(r"\p{Han}"))
            .then(_HAN)
            .when(text.str.contains(r"\p{L}|\p{M}"))
            .then(_LETTER)
            .when(text.str.contains(r"\p{N}"))
            .then(_DIGIT)
            .when(text.str.contains(r"\p{P}"))
            .then(_PUNCTUATION)
            .when(text.str.contains(r"\x{fffd}|\p{Co}|\p{Cn}"))
            .then(_DAMAGED)
            .when(text.str.contains(r"\p{S}"))
            .then(_SYMBOL)
            .when(text.str.contains(r"\s"))
            .then(_SPACE)
            .otherwise(_OTHER)
        )
        .to_series()
    )
    classes = np.full(_CODE_POINTS, _DAMAGED, np.uint8)
    classes[np.array(points)] = found.to_numpy()
    classes[[ord(mark) for mark in _SENTENCE_ENDS]] |= _SENTENCE_END
    classes[[ord(mark) for mark in _SEPARATORS]] |= _SEPARATOR
    classes[[*range(0xC0, 0x100), *map(ord, MISREAD_AS_GBK)]] |= _MISREAD
    return classes


@kernel
def _read(data: Any, classes: Any, points: Any, seen: Any, of_class: Any, row: Any) -> int:
    """Write the code points of UTF-8 `data` to `points`, return how many, and set their counts, row[:10].

    `seen`, a number for every code point, is all zeros before and after. `of_class` has four rows that are used in
    turn: most characters are of one class, and each would wait for the one before to be counted.
    """
    of_class[:] = 0
    size, at = 0, 0
    misread, separators, run = 0, 0, 0
    while at < len(data):
        point, width = code_point(data, at)
        at += width
        points[size] = point
        kind = classes[point]
        of_class[size & 3, kind & 7] += 1
        size += 1
        seen[point] += 1
        if not kind & _SEPARATOR:
            run = 0
        if kind & (_SEPARATOR | _MISREAD):
            misread += kind & _MISREAD != 0
            run += kind & _SEPARATOR != 0
            if run >= _SEPARATOR_RUN:
                separators += _SEPARATOR_RUN if run == _SEPARATOR_RUN else 1
    dominant = 0
    for point in points[:size]:
        if seen[point] > dominant and classes[point] & 7 != _SPACE and classes[point] & 7 != _DIGIT:
            dominant = seen[point]
        seen[point] = 0
    for turn in range(1, 4):
        of_class[0] += of_class[turn]
    row[0] = size
    row[1] = of_class[0, _HAN] + of_class[0, _LETTER]
    row[2] = of_class[0, _HAN]
    row[3] = of_class[0, _DIGIT]
    row[4] = of_class[0, _PUNCTUATION]
    row[5] = of_class[0, _SYMBOL]
    row[6] = of_class[0, _DAMAGED]
    row[7] = misread
    row[8] = separators
    row[9] = dominant
    return size


@kernel
def _slot(key: np.uint64, keys: Any, counts: Any, mask: int) -> Any:
    """The place of `key` in an open-addressing table whose empty places have count 0."""
    place = np.int64((key * _MIX) >> np.uint64(20)) & mask
    while counts[place] != 0 and keys[place] != key:
        place = (place + 1) & mask
    return place


@kernel
def _cleared(wanted: int, counts: Any) -> int:
    """Empty a table for `wanted` keys at half load at most; return its mask (its size less one)."""
    size = 16
    while size < 2 * wanted:
        size *= 2
    counts[:size] = 0
    return size - 1


@kernel
def _count_lines(points: Any, size: int, classes: Any, places: Any, keys: Any, counts: Any, row: Any) -> None:
    """Set `lines`, `finished_lines` and `repeated_line_characters` in row[10:13]."""
    breaks = 0
    for at in range(size):
        places[breaks] = at
        breaks += points[at] == _NEWLINE
    places[breaks] = size
    mask = _cleared(breaks + 1, counts)
    start = 0
    for line_end in places[: breaks + 1]:
        end = line_end
        while end > start and classes[points[end - 1]] == _SPACE:
            end -= 1
        if end > start:
            row[10] += 1
            row[11] += classes[points[end - 1]] & _SENTENCE_END != 0
        if end > start and breaks:
            key = np.uint64(0)
            for point in points[start:line_end]:
                key = (key + np.uint64(point)) * _BASE
            place = _slot(key, keys, counts, mask)
            if counts[place]:
                row[12] += line_end - start
            keys[place] = key
            counts[place] = 1
        start = line_end + 1


@kernel
def _suspect_ngrams(points: Any, size: int, n: int, hashes: Any, marks: Any, places: Any) -> int:
    """Write a rolling hash of each n-gram of points[:size] to `hashes`, the places of what may repeat to `places`.

    Returns how many may: all that do, and a few more. Each hash marks one of eight bytes a hash or more, which fit
    the nearest cache: most texts repeat little, so few hashes are left for the table that counts them.
    """
    bits = 6
    while 1 << bits < 8 * size:
        bits += 1
    shift = np.uint64(64 - bits)
    marks[: 1 << bits] = 0
    out = np.uint64(1)
    for _ in range(n):
        out *= _BASE
    key = np.uint64(0)
    for at in range(n - 1):
        key = key * _BASE + np.uint64(points[at])
    first = np.uint64(0)  # the character that leaves
    for at in range(n - 1, size):
        key = key * _BASE + (np.uint64(points[at]) - out * first)
        hashes[at - n + 1] = key
        mark = (key * _MIX) >> shift
        marks[mark] = marks[mark] << 1 | 1
        first = np.uint64(points[at - n + 1])
    found = 0
    for at in range(size - n + 1):
        places[found] = at
        found += marks[(hashes[at] * _MIX) >> shift] > 1
    return found


@kernel
def _keep_repeated(hashes: Any, places: Any, size: int, keys: Any, counts: Any, slots: Any) -> int:
    """Keep those of places[:size] whose hash occurs more than once there; return how many.

    `slots` says for each that is kept where in `counts` its occurrences are.
    """
    mask = _cleared(size, counts)
    for at in range(size):
        key = hashes[places[at]]
        slot = _slot(key, keys, counts, mask)
        keys[slot], slots[at] = key, slot
        counts[slot] += 1
    kept = 0
    for at in range(size):
        places[kept], slots[kept] = places[at], slots[at]
        kept += counts[slots[at]] > 1
    return kept


@kernel
def _count_top(slots: Any, counts: Any, ngrams: int, tally: Any) -> int:
    """The occurrences of the √distinct commonest repeated n-grams; `slots` as _keep_repeated leaves them."""
    repeated, most = 0, 0
    for slot in slots:
        most = max(most, counts[slot])
    tally[: most + 1] = 0
    for slot in slots:
        if counts[slot]:
            tally[counts[slot]] += 1
            repeated += 1
            counts[slot] = 0
    left, total = int(np.sqrt(ngrams - len(slots) + repeated)), 0
    for occurrences in range(most, 1, -1):
        taken = min(left, tally[occurrences])
        total += taken * occurrences
        left -= taken
    return total


@kernel
def _profile(data: Any, offsets: Any, classes: Any, seen: Any, rows: Any) -> None:
    """Fill rows, int64 of shape (texts, len(PROFILE)), from UTF-8 `data` cut at `offsets`; `seen` is all zeros."""
    longest = 1
    for text in range(len(offsets) - 1):
        longest = max(longest, offsets[text + 1] - offsets[text])
    read = min(longest, _READ_FOR_REPEATS)
    table = 64
    while table < 2 * (read + 1):  # a text has one line more than it has breaks
        table *= 2
    points, of_class = np.empty(longest, np.uint32), np.empty((4, 8), np.int64)
    hashes, marks, places = np.empty(read, np.uint64), np.empty(8 * table, np.uint8), np.empty(read + 1, np.int32)
    keys, counts, slots = np.empty(table, np.uint64), np.empty(table, np.int32), np.empty(read, np.int32)
    tally = np.empty(read + 1, np.int32)

    for text in range(len(offsets) - 1):
        row = rows[text]
        size = _read(data[offsets[text] : offsets[text + 1]], classes, points, seen, of_class, row)
        size = min(size, _READ_FOR_REPEATS)
        _count_lines(points, size, classes, places, keys, counts, row)
        if size <= 10:
            continue
        found = _suspect_ngrams(points, size, 10, hashes, marks, places)
        found = _keep_repeated(hashes, places, found, keys, counts, slots)
        row[13] = _count_top(slots[:found], counts, size - 9, tally)
        # A 13-gram repeats only where its four 10-grams do; its hash goes on from that of the first.
        longer = 0
        for at in range(found - 3):
            place = places[at]
            if places[at + 3] == place + 3:
                for point in points[place + 10 : place + 13]:
                    hashes[place] = hashes[place] * _BASE + np.uint64(point)
                places[longer] = place
                longer += 1
        row[14] = _keep_repeated(hashes, places, longer, keys, counts, slots)


def profile(texts: pl.Series) -> pl.DataFrame:
    """Count what each text is made of: Int64 columns named by PROFILE, one row a text; null counts as empty.

    The n-gram counts are those of data-juicer's `character_repetition_filter` (rep_len 10) and of
    ChineseWebText's `judge_inner_repeat` (13-grams; arXiv 2311.01149), the latter on the text as it stands.
    Lines and n-grams are counted in a text's first 2²⁰ characters.
    """
    rows = np.zeros((len(texts), len(PROFILE)), np.int64)
    offsets, data = utf8_buffers(texts.to_arrow())
    seen = np.zeros(_CODE_POINTS, np.int32)  # 4 MB, of which NumPy, unlike Numba, touches nothing before it is used
    _profile(data, offsets, _classes(), seen, rows)
    return pl.DataFrame(rows, schema=list(PROFILE))
