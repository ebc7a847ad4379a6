"""Bands against their theory, buckets against brute force."""

from collections import defaultdict

import numpy as np
import pyarrow as pa
import pytest
from conan_embedding.pipeline.dedup import lsh
from conan_embedding.pipeline.dedup.lsh import (
    NO_BUCKET,
    choose_bands,
    collision_probability,
    find_buckets,
    hash_bands,
    pack,
)
from conan_embedding.pipeline.dedup.minhash import signatures
from hypothesis import example, given
from hypothesis import strategies as st


def plain_band_hash(values: list[int], band: int) -> int:
    """Hash 32-bit values by FNV-1a (http://www.isthe.com/chongo/tech/comp/fnv), seeded by the band, then by fmix64."""
    mask = 2**64 - 1
    value = 14695981039346656037 ^ band
    for each in values:
        value = (value ^ each) * 1099511628211 & mask
    for factor in (0xFF51AFD7ED558CCD, 0xC4CEB9FE1A85EC53):
        value = (value ^ value >> 33) * factor & mask
    return value ^ value >> 33


def test_band_hashes_are_equal_where_the_bands_are() -> None:
    first = np.random.default_rng(0).integers(0, 2**32, 128, dtype=np.uint32)
    second = first.copy()
    second[[0, 25]] += 1  # bands 0 and 4 of six rows
    second[120:] = 0  # in no band
    equal = np.equal(*hash_bands(np.stack([first, second])))
    assert np.flatnonzero(~equal).tolist() == [0, 4]


def test_band_hashes_tell_bands_apart_and_spread() -> None:
    same = np.full((1, 128), 7, dtype=np.uint32)
    assert len(np.unique(hash_bands(same))) == 20
    small = np.arange(1000 * 128, dtype=np.uint32).reshape(1000, 128)
    hashes = hash_bands(small, 16, 8).ravel()
    assert len(np.unique(hashes)) == 16_000
    ones = np.unpackbits(hashes.view(np.uint8)).reshape(-1, 64).mean(axis=0)
    assert np.abs(ones - 0.5).max() < 4.5 * 0.5 / np.sqrt(len(hashes))


def test_a_band_hash_is_fnv_with_its_number() -> None:
    rng = np.random.default_rng(1)
    signatures = rng.integers(0, 2**32, (3, 128), dtype=np.uint32)
    expected = [[plain_band_hash(row[4 * i : 4 * i + 4].tolist(), i) for i in range(32)] for row in signatures]
    assert hash_bands(signatures, 32, 4).tolist() == expected


def test_an_empty_text_is_in_no_bucket() -> None:
    hashes = hash_bands(signatures(pa.array(["", None, "中"])))
    assert (hashes[:2] == NO_BUCKET).all()
    assert (hashes[2] != NO_BUCKET).all()


def test_bands_must_fit_the_signature() -> None:
    with pytest.raises(ValueError, match="22 bands of 6 rows"):
        hash_bands(np.zeros((1, 128), dtype=np.uint32), 22, 6)


@pytest.mark.parametrize("similarity", [0.5, 0.7, 0.8])
@pytest.mark.parametrize(("bands", "rows"), [(20, 6), (14, 9)])
def test_recall_is_the_share_of_signatures_that_meet(similarity: float, bands: int, rows: int) -> None:
    rng = np.random.default_rng(0)
    first = rng.integers(0, 2**32, (20_000, 128), dtype=np.uint32)
    second = np.where(rng.random(first.shape) < similarity, first, first + np.uint32(1))
    met = (hash_bands(first, bands, rows) == hash_bands(second, bands, rows)).any(axis=1).mean()
    assert met == pytest.approx(collision_probability(similarity, bands, rows), abs=0.015)


def test_published_band_choices() -> None:
    assert collision_probability(0.7, 20, 6) == pytest.approx(0.918, abs=5e-4)
    assert collision_probability(0.7, 14, 9) == pytest.approx(0.44, abs=5e-3)
    assert choose_bands(0.918, 0.7) == (20, 6)
    assert choose_bands(0.92, 0.7) == (21, 6)


@given(st.floats(0.05, 0.9999), st.floats(0.3, 0.95))
def test_band_choice_is_the_brute_force_best(wanted: float, threshold: float) -> None:
    choices = [(bands, rows) for rows in range(1, 129) for bands in range(1, 128 // rows + 1)]
    enough = [(bands, rows) for bands, rows in choices if 1 - (1 - threshold**rows) ** bands >= wanted]
    assert choose_bands(wanted, threshold) == max(enough, key=lambda choice: (choice[1], -choice[0]))


def test_a_recall_out_of_reach_is_refused() -> None:
    with pytest.raises(ValueError, match="reach a recall"):
        choose_bands(0.9, 0.001)


def edges(hashes: list[int], bits: int) -> list[tuple[int, int]]:
    leaders, members = find_buckets(pack(np.array(hashes, np.uint64), np.arange(len(hashes)), bits), bits)
    return list(zip(leaders.tolist(), members.tolist(), strict=True))


def stars(hashes: list[int], bits: int) -> list[tuple[int, int]]:
    """List the edges from each bucket's smallest row to its other rows; buckets are in the order of their hashes."""
    rows = defaultdict(list)
    for row, value in enumerate(hashes):
        rows[value >> bits].append(row)
    return [(bucket[0], row) for _, bucket in sorted(rows.items()) for row in bucket[1:]]


@given(st.lists(st.sampled_from([1, 2, 63, 64, 65, 2**40, 2**63, 2**63 + 1, 2**64 - 1]), max_size=40))
@example([])
@example([7])
@example([5 << 6, 1 << 6, 5 << 6, 5 << 6, 1 << 6])
def test_a_bucket_is_a_star_to_its_smallest_row(hashes: list[int]) -> None:
    assert edges(hashes, 6) == stars(hashes, 6)


@given(st.lists(st.integers(0, 40) | st.sampled_from([2**64 - 1, 2**64 - 2]), max_size=60))
def test_equal_values_share_a_bucket_of_some_part(values: list[int]) -> None:
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(lsh, "PART_ROWS", 7)
        parts = list(lsh.find_equal(np.array(values, np.uint64)))
    assert len(parts) == 1 << (len(values) // 7).bit_length()
    buckets = defaultdict(set)
    for leaders, members in parts:
        for leader, member in zip(leaders.tolist(), members.tolist(), strict=True):
            buckets[leader] |= {leader, member}
    for value in set(values):
        rows = {row for row, other in enumerate(values) if other == value}
        assert len(rows) == 1 or sum(rows <= bucket for bucket in buckets.values()) == 1
    assert len(set().union(*buckets.values())) == sum(map(len, buckets.values()))


def test_rows_keep_their_numbers_and_any_order() -> None:
    rows = np.array([900, 17, 4, 1023])
    packed = pack(np.array([9 << 20, 8 << 20, 9 << 20, 9 << 20], np.uint64), rows, 10)
    leaders, members = find_buckets(packed, 10)
    assert (leaders.tolist(), members.tolist()) == ([4, 4], [900, 1023])


def test_a_bucket_of_a_million_is_a_million_edges_at_once() -> None:
    packed = pack(np.full(1_000_000, 9 << 40, np.uint64), np.arange(1_000_000), 20)
    leaders, members = find_buckets(packed, 20)
    assert not leaders.any()
    np.testing.assert_array_equal(members, np.arange(1, 1_000_000))
