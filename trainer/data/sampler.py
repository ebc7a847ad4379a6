"""The order in which records are drawn. Any part of it is computed from the seed; no shuffled list is stored.

A run is a fixed number of successive draws from one source, which is picked by weight. Each draw takes the source's
next record in a random order of that source, with a new order each time all its records have been drawn. Two things
make a draw computable from its number:

- Sources are picked in windows of many runs, each with a random generator of its own, so a window needs only the counts
  of the windows before it.
- The order of a source is a permutation that can be evaluated at any position: a Feistel network.
"""

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt

from ...schemas.training_settings import Mixing
from .mixing import Sources, source_weights

Integers = npt.NDArray[np.int64]
Words = npt.NDArray[np.uint64]

WINDOW = 65_536
"""Chosen here: the number of runs in a window; picking their sources takes 2 ms."""
ROUNDS = 8
"""Chosen here: rounds of the Feistel network. Luby and Rackoff (1988) prove that 4 suffice for wide blocks. For blocks
of 6 bits, 8 rounds pass a chi-square test (which two of seven records come first, over 400,000 keys); blocks of 4 bits
fail it."""


@dataclass(frozen=True)
class _Window:
    """The sources picked for WINDOW runs. `before` and `after` count each source's runs up to the start and the end."""

    number: int
    before: Integers
    picked: Integers  # [WINDOW]
    after: Integers

    @cached_property
    def earlier(self) -> Integers:
        """For each run, how many earlier runs, in this window or before, picked the same source: [WINDOW]."""
        by_source = np.argsort(self.picked, kind="stable")
        counts = self.after - self.before
        firsts = np.cumsum(counts) - counts
        result = np.empty(WINDOW, np.int64)
        result[by_source] = np.arange(WINDOW) + np.repeat(self.before - firsts, counts)
        return result


class SourceSchedule:
    """Picks the source of each run by weight, independently of the other runs.

    Keeps two windows in memory. Moving forward costs the same at any position; a jump computes all windows in between,
    at about 2 ms per 65,536 runs.
    """

    def __init__(self, weights: npt.ArrayLike, seed: int) -> None:
        weights = np.asarray(weights, np.float64)
        self.odds, self.seed = weights / weights.sum(), seed
        nothing = np.zeros(len(weights), np.int64)
        self._beginning = _Window(-1, nothing, nothing[:0], nothing)
        self._latest: tuple[_Window, ...] = ()

    def draw(self, start: int, stop: int) -> tuple[Integers, Integers]:
        """Return the source of each run in [start, stop), and how many earlier runs picked it: int64 [stop - start].

        Several threads may call this at the same time.
        """
        windows = [self._window(number) for number in range(start // WINDOW, -(-stop // WINDOW))]
        own = slice(start % WINDOW, start % WINDOW + stop - start)
        picked, earlier = ([getattr(window, name) for window in windows] for name in ("picked", "earlier"))
        return np.concatenate(picked)[own], np.concatenate(earlier)[own]

    def _window(self, number: int) -> _Window:
        """Return a window, computed forward from the nearest cached one before it.

        The last two windows are cached, because one thread may still need a step while another is one step ahead.
        """
        at_hand = [window for window in (self._beginning, *self._latest) if window.number <= number]
        window = max(at_hand, key=lambda window: window.number)
        if window.number < number:
            while window.number < number:
                before, window = window, self._following(window)
            self._latest = (before, window)
        return window

    def _following(self, window: _Window) -> _Window:
        number = window.number + 1
        picked = np.random.default_rng([self.seed, number]).choice(len(self.odds), WINDOW, p=self.odds)
        counts = np.bincount(picked, minlength=len(self.odds))
        return _Window(number, window.after, picked, window.after + counts)


class Sampler:
    """Draws records from several sources. No record is drawn again before all records of its source have been drawn.

    `run` is the number of successive draws from the same source.

    Raises:
        RecipeError: see `source_weights`.
    """

    def __init__(self, sources: Sources, mixing: Mixing, seed: int, run: int = 1) -> None:
        self.rows, self.sizes = sources.rows, np.asarray(sources.sizes, np.int64)
        self.starts = np.cumsum(self.sizes) - self.sizes
        self.schedule = SourceSchedule(source_weights(sources, mixing), seed)
        self.seed, self.run = seed, run

    def draw(self, start: int, stop: int) -> tuple[Integers, Integers]:
        """Return the row of each draw in [start, stop), and how often it was drawn before: int64 [stop - start] both.

        Several threads may call this at the same time.
        """
        if start == stop:
            return np.zeros(0, np.int64), np.zeros(0, np.int64)
        runs, within = np.divmod(np.arange(start, stop), self.run)
        picked, earlier = self.schedule.draw(int(runs[0]), int(runs[-1]) + 1)
        source = picked[runs - runs[0]]
        sizes = self.sizes[source]
        visits, place = np.divmod(earlier[runs - runs[0]] * self.run + within, sizes)
        own = permuted(place, sizes, keys_of(self.seed, source, visits))
        return np.asarray(self.rows[self.starts[source] + own]), visits


def permuted(places: Integers, sizes: Integers, keys: Words) -> Integers:
    """Permute each place in 0 … size - 1 by the random permutation of that range that its key selects: int64 [n].

    The permutation is a Feistel network over the next power of 4, at least 64. Results outside the range go through the
    network again until they are inside (cycle walking: Black and Rogaway, "Ciphers with arbitrary finite domains",
    CT-RSA 2002). For 17 records or more, that power is less than 4 times the size, so a place needs fewer than four
    passes on average.
    """
    half = np.maximum((np.frexp(sizes - 1.0)[1] + 1) // 2, 3).astype(np.uint64)  # bits of half a block
    result = _feistel(places.astype(np.uint64), half, keys)
    while len(outside := np.flatnonzero(result >= sizes.astype(np.uint64))):
        result[outside] = _feistel(result[outside], half[outside], keys[outside])
    return result.astype(np.int64)


def keys_of(*parts: npt.ArrayLike) -> Words:
    """Hash integers, each an array [n] or a number, to 64-bit keys: uint64 [n], or [1] if all are numbers."""
    key = np.zeros(1, np.uint64)  # an array, because NumPy warns when a scalar overflows
    for part in parts:
        key = _mixed(_mixed(key) + np.asarray(part).astype(np.uint64))
    return key


def _feistel(blocks: Words, half: Words, keys: Words) -> Words:
    mask = (np.uint64(1) << half) - np.uint64(1)
    left, right = blocks >> half, blocks & mask
    for _ in range(ROUNDS):
        keys = _mixed(keys)
        left, right = right, left ^ (_mixed(keys + right) & mask)
    return (left << half) | right


def _mixed(words: Words) -> Words:
    """Apply one step of splitmix64 (Steele, Lea and Flood, OOPSLA 2014; constants of prng.di.unimi.it/splitmix64.c)."""
    words = words + np.uint64(0x9E3779B97F4A7C15)
    words = (words ^ (words >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    words = (words ^ (words >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return words ^ (words >> np.uint64(31))
