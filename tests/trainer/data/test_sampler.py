"""The order of draws, against draws counted one by one; and its permutations, against the statistics of chance."""

from collections import Counter
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from conan_embedding.schemas.errors import RecipeError
from conan_embedding.schemas.training_settings import Mixing
from conan_embedding.trainer.data import sampler as module
from conan_embedding.trainer.data.mixing import Sources
from conan_embedding.trainer.data.sampler import Sampler, SourceSchedule, keys_of, permuted
from scipy.stats import chisquare

SIZES = {"large": 400, "middle": 100, "single": 1}


def sources_of(sizes: dict[str, int]) -> Sources:
    """Build sources of the category news, whose records are interleaved."""
    rows = np.random.default_rng(8).permutation(sum(sizes.values()))
    return Sources(list(sizes), ["news"] * len(sizes), list(sizes.values()), rows)


SOURCES = sources_of(SIZES)
NAMES = dict(zip(SOURCES.rows.tolist(), [name for name, size in SIZES.items() for _ in range(size)], strict=True))


@pytest.fixture(autouse=True)
def small_windows(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make windows small, so that a short order has many of them."""
    monkeypatch.setattr(module, "WINDOW", 64)


def order_of(seed: int = 0, run: int = 1, **mixing: float) -> Sampler:
    return Sampler(SOURCES, Mixing(**mixing), seed, run)


@pytest.mark.parametrize("run", [1, 7, 100])
def test_any_stretch_is_that_part_of_the_whole(run: int) -> None:
    whole, visits = order_of(3, run).draw(0, 3000)
    random = np.random.default_rng(0)
    one = order_of(3, run)
    for start, stop in [(0, 0), (0, 1), (64, 64), (63, 65), (2999, 3000), (640, 704), (128, 1), (5, 2900)] + [
        sorted(random.integers(0, 3001, 2)) for _ in range(60)
    ]:
        stop = max(start, stop)
        for order in (one, order_of(3, run)):  # after any earlier draw, and in a new sampler
            found, seen = order.draw(int(start), int(stop))
            assert found.tolist() == whole[start:stop].tolist()
            assert seen.tolist() == visits[start:stop].tolist()


def test_threads_may_ask_at_the_same_time() -> None:
    whole, _ = order_of().draw(0, 4000)
    order = order_of()
    with ThreadPoolExecutor(max_workers=8) as threads:
        found = list(threads.map(lambda start: order.draw(start, start + 20)[0], range(0, 4000, 20)))
    assert np.concatenate(found).tolist() == whole.tolist()


@pytest.mark.parametrize("run", [1, 6])
@pytest.mark.parametrize("power", [0.0, 0.5, 1.0])
def test_no_record_comes_back_before_its_source_is_used_up(power: float, run: int) -> None:
    drawn, visits = order_of(4, run, power=power).draw(0, 3000)
    seen: Counter[int] = Counter()
    for row, visit in zip(drawn.tolist(), visits.tolist(), strict=True):
        assert visit == seen[row]
        seen[row] += 1
    for source, size in SIZES.items():
        records = [row for row in drawn.tolist() if NAMES[row] == source]
        for begin in range(0, len(records), size):
            assert len(set(records[begin : begin + size])) == len(records[begin : begin + size])


@pytest.mark.parametrize(("power", "shares"), [(0.0, [1, 1, 1]), (0.5, [20, 10, 1]), (1.0, [400, 100, 1])])
def test_sources_mix_by_their_size_to_a_power(power: float, shares: list[int]) -> None:
    drawn = Counter(NAMES[row] for row in order_of(0, power=power).draw(0, 30_000)[0].tolist())
    for source, share in zip(SIZES, shares, strict=True):
        expected = share / sum(shares)
        assert abs(drawn[source] / 30_000 - expected) < 4 * np.sqrt(expected / 30_000)


def test_a_source_of_no_weight_is_never_drawn() -> None:
    mixing = Mixing(categories={"news": 3}, sources={"single": 0, "large": 2})
    drawn = Counter(NAMES[row] for row in Sampler(SOURCES, mixing, 0).draw(0, 3000)[0].tolist())
    assert drawn["single"] == 0
    assert drawn["large"] / 3000 == pytest.approx(0.8, abs=0.03)
    with pytest.raises(RecipeError, match="nothing to draw"):
        Sampler(SOURCES, Mixing(sources=dict.fromkeys(SIZES, 0)), 0)


def test_draws_in_runs_share_their_source() -> None:
    drawn, _ = order_of(3, run=10).draw(0, 995)
    names = [NAMES[row] for row in drawn.tolist()]
    for first in range(0, 995, 10):
        assert len(set(names[first : first + 10])) == 1
    assert len(set(names)) == 3


def test_the_order_follows_from_the_seed_alone() -> None:
    first, _ = order_of(1).draw(0, 700)
    assert first.tolist() == order_of(1).draw(0, 700)[0].tolist()
    assert first.tolist() != order_of(2).draw(0, 700)[0].tolist()


def test_of_nothing_nothing_is_drawn() -> None:
    rows, visits = Sampler(sources_of({}), Mixing(), 0, run=0).draw(0, 0)
    assert (len(rows), len(visits)) == (0, 0)
    assert Sampler(sources_of({"one": 1}), Mixing(), 0).draw(0, 5)[0].tolist() == [0] * 5


def test_rounds_and_sources_have_orders_of_their_own() -> None:
    drawn, _ = Sampler(sources_of({"a": 50, "b": 50}), Mixing(), 0, run=50).draw(0, 400)
    rounds = [tuple(np.argsort(each)) for each in drawn.reshape(8, 50)]
    assert len(set(rounds)) == 8


def test_turns_are_counted() -> None:
    takers, earlier = SourceSchedule([1, 3], seed=5).draw(0, 5000)
    seen: Counter[int] = Counter()
    for taker, before in zip(takers.tolist(), earlier.tolist(), strict=True):
        assert before == seen[taker]
        seen[taker] += 1
    assert seen[1] / 5000 == pytest.approx(0.75, abs=0.03)


@pytest.mark.parametrize("size", [*range(1, 20), 63, 64, 65, 255, 256, 257, 1000, 4097, 70_001])
def test_it_is_a_permutation(size: int) -> None:
    for seed in range(3):
        found = permuted(np.arange(size), np.full(size, size), np.full(size, keys_of(seed, 0, 0)))
        assert np.array_equal(np.sort(found), np.arange(size))


def test_sizes_and_keys_do_not_mind_their_neighbours() -> None:
    random = np.random.default_rng(1)
    sizes = random.integers(1, 10**12, 300)
    places, keys = random.integers(0, sizes), keys_of(0, random.integers(0, 5, 300), 0)
    together = permuted(places, sizes, keys)
    alone = [permuted(places[i : i + 1], sizes[i : i + 1], keys[i : i + 1])[0] for i in range(300)]
    assert together.tolist() == alone
    assert (together < sizes).all()


@pytest.mark.parametrize("size", [2, 3, 5, 7, 20])
def test_any_two_records_are_as_likely_to_come_first(size: int) -> None:
    """Chi-square over 40,000 keys, from different seeds and from different visits of one seed."""
    number = np.arange(40_000)
    for keys in (keys_of(number, 1, 0), keys_of(7, 1, number)):
        first, second = (permuted(np.full(len(keys), place), np.full(len(keys), size), keys) for place in (0, 1))
        pairs = np.bincount(first * size + second, minlength=size * size).reshape(size, size)
        assert not np.diag(pairs).any()
        assert chisquare(pairs[~np.eye(size, dtype=bool)]).pvalue > 1e-3


def test_each_place_is_as_likely_for_each_record() -> None:
    keys = keys_of(np.arange(20_000), 0, 0)
    for place in (0, 1, 50, 99):
        counts = np.bincount(permuted(np.full(20_000, place), np.full(20_000, 100), keys), minlength=100)
        assert chisquare(counts).pvalue > 1e-3


def test_neighbours_in_the_order_are_none_in_the_file() -> None:
    size = 50_000
    found = permuted(np.arange(size), np.full(size, size), np.full(size, keys_of(0, 0, 0)))
    for lag in (1, 2, 64):
        assert abs(np.corrcoef(found[lag:], found[:-lag])[0, 1]) < 4 / np.sqrt(size)
    steps = np.diff(found) % size
    assert chisquare(np.bincount(steps * 50 // size, minlength=50)).pvalue > 1e-3


def test_splitmix64_is_the_published_one() -> None:
    """The first outputs of the public-domain C program for seed 1234567, as listed on Rosetta Code and elsewhere."""
    state, outputs = np.array([1234567], np.uint64), []
    for _ in range(3):
        outputs.append(int(module._mixed(state)[0]))
        state = state + np.uint64(0x9E3779B97F4A7C15)
    assert outputs == [6457827717110365317, 3203168211198807973, 9817491932198370423]
