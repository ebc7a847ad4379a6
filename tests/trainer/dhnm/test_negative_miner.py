"""DHNM v2 in a run with given scores: what is replaced, what pools.duckdb and the log hold, what a checkpoint keeps."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pyarrow as pa
import pytest
import torch
from conan_embedding.schemas.dhnm_settings import HardNegativeMining
from conan_embedding.schemas.prompts import Prompts
from conan_embedding.schemas.training_settings import FinetuneSettings
from conan_embedding.trainer.data.batches import finetune_batch
from conan_embedding.trainer.data.training_tables import FinetuneData, read_finetune, write_finetune
from conan_embedding.trainer.dhnm.negative_miner import NegativeMiner
from conan_embedding.trainer.dhnm.refresh import write_mined
from conan_embedding.trainer.job import Job
from conan_embedding.trainer.loss.cbb import Losses

Shards = Callable[[Path, str], list[Path]]

ROWS = np.array([2, 20, 30, 39])  # pools of 2, 20, 30 and 39; rows 20 and 30 start with two provided negatives
NAN = float("nan")
N = 4


@pytest.fixture
def data(training_corpus: Path, shards: Shards) -> FinetuneData:
    folder = job_of(training_corpus).data
    folder.mkdir(parents=True)
    write_finetune(folder, training_corpus, {"retrieval": shards(training_corpus, "retrieval")}, [])
    write_mined(folder, training_corpus)
    return read_finetune(folder)


def job_of(corpus: Path, **changes: Any) -> Job:
    mining = HardNegativeMining(policy="v2", **changes)
    settings = FinetuneSettings(negatives=N, log_every=3, hard_negative_mining=mining)
    return Job(corpus=corpus, name="finetune", model="", settings=settings, shards={}, fingerprint="")


def make_miner(corpus: Path, data: FinetuneData, **changes: Any) -> NegativeMiner:
    job = job_of(corpus, **changes)
    assert isinstance(job.settings, FinetuneSettings)
    return NegativeMiner(job, job.settings, data, lambda step: ROWS, steps=20)


def vectors(seed: int, texts: pa.Array, side: str, sources: pa.Array) -> np.ndarray:
    """Encode as a model with these weights would."""
    found = np.random.default_rng(seed).normal(size=(len(texts), 8)).astype(np.float32)
    return found / np.linalg.norm(found, axis=1, keepdims=True)


def observe(mining: NegativeMiner, step: int, scores: list[list[float]], loss: float = 0.0) -> dict[str, int] | None:
    losses = Losses(torch.tensor(loss), {}, torch.zeros(4), torch.tensor(scores))
    return mining.observe(step, losses, partial(vectors, step))


def scores_of(mining: NegativeMiner, step: int) -> list[list[float]]:
    """Score the current negatives of ROWS; NaN where a query has none."""
    values = np.random.default_rng(step).choice([0.9, 0.6, 0.45, 0.1], (4, N))
    return np.where(mining.current.rank[ROWS] == -2, NAN, values).tolist()


def negatives_of(mining: NegativeMiner) -> list[list[str]]:
    """Return the negatives of ROWS that the next batch would have."""
    nobody = np.zeros(0, np.int64)
    batch = finetune_batch(mining.data, mining.current, ROWS, nobody, N, np.zeros(4, np.int64), Prompts())
    return [[batch.texts[row] for row in rows if row >= 0] for rows in batch.negative_rows.tolist()]


def replay(mining: NegativeMiner, steps: range) -> list[Any]:
    """Run steps, with a checkpoint's write after every fourth; return what each logs and the negatives after it."""
    seen = []
    for step in steps:
        found = observe(mining, step, scores_of(mining, step))
        seen.append((found, negatives_of(mining)))
        if step % 4 == 0:
            mining.write(step, whole=False)
    mining.write(steps[-1])
    return seen


def table(corpus: Path, name: str) -> list[tuple[Any, ...]]:
    with duckdb.connect(str(corpus / "pools.duckdb"), read_only=True) as connection:
        return connection.execute(f"FROM {name} ORDER BY ALL").fetchall()


def texts_of(data: FinetuneData, row: int) -> tuple[list[str], list[str]]:
    """Return the texts that came with a query, and those of its pool."""
    (pool,) = data.pools.take(np.array([row]))["pool"].to_pylist()
    (provided,) = data.queries.take(np.array([row]))["provided"].to_pylist()
    return provided, data.passages.take(np.array(pool, np.int64))["text"].to_pylist()


def test_each_easy_negative_gets_the_next_candidate(data: FinetuneData, training_corpus: Path) -> None:
    mining = make_miner(training_corpus, data)
    pools = {row: texts_of(data, row)[1] for row in ROWS.tolist()}
    provided = texts_of(data, 20)[0]
    assert pools[20].pop(1) in provided  # and so it comes no second time
    assert negatives_of(mining) == [pools[2], provided, texts_of(data, 30)[0], pools[39][:4]]
    scores = [[0.1, 0.9, NAN, NAN], [0.9, 0.3, NAN, NAN], [0.9, 0.9, NAN, NAN], [0.9, 0.1, 0.9, 0.2]]
    assert observe(mining, 1, scores) is None
    assert negatives_of(mining) == [
        pools[2],  # its pool has no third candidate
        [provided[0], pools[20][0]],
        texts_of(data, 30)[0],
        [pools[39][0], pools[39][4], pools[39][2], pools[39][5]],
    ]
    assert (
        observe(mining, 2, [[0.1, 0.9, NAN, NAN], [0.6, 0.5, NAN, NAN], [0.9, 0.9, NAN, NAN], [0.69, 0.5, 0.71, 0.5]])
        is None
    )
    assert negatives_of(mining)[1] == [pools[20][1], pools[20][0]]
    assert negatives_of(mining)[3] == [pools[39][6], pools[39][4], pools[39][2], pools[39][5]]
    found = observe(
        mining, 3, [[0.1, 0.9, NAN, NAN], [0.9, 0.5, NAN, NAN], [0.9, 0.9, NAN, NAN], [0.9, 0.5, 0.71, 0.5]]
    )
    assert found == {"scored": 30, "flagged": 8, "replaced": 5, "exhausted": 1}
    assert observe(mining, 4, [[0.1, 0.9, NAN, NAN], *[[NAN] * 4] * 3]) is None
    assert observe(mining, 6, [[NAN] * 4] * 4) == {"scored": 2, "flagged": 1, "replaced": 0, "exhausted": 1}


def test_the_tables_are_the_state_and_its_history(data: FinetuneData, training_corpus: Path) -> None:
    mining = make_miner(training_corpus, data)
    replay(mining, range(1, 10))
    state = mining.current
    rows = table(training_corpus, "windows")
    assert {(row[0], row[7]) for row in rows} == {
        (row, slot) for row in ROWS.tolist() for slot in range(N) if state.rank[row, slot] != -2
    }
    for query, replaced, lo, hi, initial, last, step, slot in rows:
        rank = state.rank[query, slot]
        assert (replaced, lo, hi) == (state.replacements[query, slot], max(rank, 0), rank + 1)
        assert (NAN if initial is None else initial) == pytest.approx(state.initial_score[query, slot], nan_ok=True)
        assert (NAN if last is None else last) == pytest.approx(state.last_score[query, slot], nan_ok=True)
        assert step == 9
    replacements = table(training_corpus, "replacements")
    assert len(replacements) == state.replacements.sum() > 20
    for step, query, number, old, initial, lo, hi, slot in replacements:
        assert 1 <= step <= 9 and hi == lo + 1 and 1 <= number <= state.replacements[query, slot]
        assert initial < 0.4 or (1.2 * old < initial and old < 0.7)


def test_what_has_changed_alone_is_written_at_checkpoints(data: FinetuneData, training_corpus: Path) -> None:
    """The table is the same as if all of it were written, except for the step of unchanged rows."""
    columns = "(SELECT * EXCLUDE step FROM windows)"
    mining = make_miner(training_corpus, data)
    assert mining.write(0)
    drawn = np.array([[2, 20, 30, 39], [1, 5, 39, 7], [5, 6, 8, 20]])
    mining.rows_of = lambda step: drawn[step - 1]
    for step, rows in enumerate(drawn, start=1):
        observe(mining, step, np.where(mining.current.rank[rows] == -2, NAN, 0.1 * step).tolist())
        assert mining.write(step, whole=False)
        found, steps = table(training_corpus, columns), table(training_corpus, "(SELECT DISTINCT step FROM windows)")
        assert steps == ([(0,)] if step > 1 else []) + [(step,)]
        assert mining.write(step)
        assert table(training_corpus, columns) == found
        assert mining.write(0)


def test_a_query_never_gets_a_negative_that_it_had(data: FinetuneData, training_corpus: Path) -> None:
    """Neither a candidate again, nor one whose text came with its data."""
    in_pool = {row: {*texts_of(data, row)[0]} & {*texts_of(data, row)[1]} for row in range(40)}
    rows = np.array([row for row, both in in_pool.items() if both])
    assert len(rows)
    mining = make_miner(training_corpus, data)
    mining.rows_of = lambda step: rows
    seen = {row: [*texts_of(data, row)[0]] for row in rows.tolist()}
    nobody, visits = np.zeros(0, np.int64), np.zeros(len(rows), np.int64)
    for step in range(1, 41):
        before = mining.current.rank[rows].copy()
        observe(mining, step, np.where(before == -2, NAN, 0.1).tolist())
        batch = finetune_batch(mining.data, mining.current, rows, nobody, N, visits, Prompts())
        changed = mining.current.rank[rows] != before
        for row, negatives, new in zip(rows.tolist(), batch.negative_rows.tolist(), changed.tolist(), strict=True):
            seen[row] += [batch.texts[place] for place, is_new in zip(negatives, new, strict=False) if is_new]
    for row, texts in seen.items():
        assert len(texts) == len({*texts}) and {*texts} == {*texts_of(data, row)[0], *texts_of(data, row)[1]}


def test_a_query_twice_in_a_step_counts_once(data: FinetuneData, training_corpus: Path) -> None:
    mining = make_miner(training_corpus, data)
    mining.rows_of = lambda step: np.array([39, 2, 39])
    easy = [0.1, 0.9, 0.9, 0.9]
    assert observe(mining, 3, [easy, [0.9, 0.9, NAN, NAN], easy]) == {
        "scored": 6,
        "flagged": 1,
        "replaced": 1,
        "exhausted": 0,
    }
    assert mining.current.rank[39].tolist() == [4, 1, 2, 3]


def test_a_step_without_a_finite_loss_is_passed_over(data: FinetuneData, training_corpus: Path) -> None:
    mining = make_miner(training_corpus, data)
    before = negatives_of(mining)
    assert observe(mining, 3, [[0.1] * N] * 4, loss=float("nan")) == {
        "scored": 0,
        "flagged": 0,
        "replaced": 0,
        "exhausted": 0,
    }
    assert negatives_of(mining) == before and np.isnan(mining.current.last_score).all()


def test_switched_off_nothing_is_replaced(data: FinetuneData, training_corpus: Path) -> None:
    mining = make_miner(training_corpus, data, enabled=False)
    before = negatives_of(mining)
    for step in range(1, 4):
        found = observe(mining, step, [[0.1, 0.1, NAN, NAN]] * 4)
    assert found == {"scored": 24, "flagged": 0, "replaced": 0, "exhausted": 0}
    assert negatives_of(mining) == before


def test_the_next_batch_waits_only_if_it_has_a_query_of_this_step(data: FinetuneData, training_corpus: Path) -> None:
    mining = make_miner(training_corpus, data, refresh="remine", remine_every=5)
    drawn = {3: [0, 1], 4: [2, 3], 5: [4, 0], 6: [1, 2], 7: [2, 5], 8: [6, 2]}
    mining.rows_of = lambda step: np.array(drawn[step])
    assert [mining.changes_data(step) for step in range(3, 8)] == [False, False, True, True, True]
    assert [mining.checks(step) for step in range(3, 8)] == [False] * 5


@pytest.mark.parametrize("changes", [{"refresh": "static"}, {"refresh": "remine", "remine_every": 4}])
@pytest.mark.parametrize("at", [2, 6])
def test_a_run_goes_on_from_its_checkpoint(
    data: FinetuneData, training_corpus: Path, tmp_path: Path, changes: dict[str, Any], at: int
) -> None:
    whole = replay(make_miner(training_corpus, data, **changes), range(1, 11))
    replacements, windows = table(training_corpus, "replacements"), table(training_corpus, "windows")

    killed = make_miner(training_corpus, data, **changes)
    killed.write(0)
    replay(killed, range(1, at + 1))
    np.savez(tmp_path / "windows.npz", **killed.state())
    replay(killed, range(at + 1, 10))
    resumed = make_miner(training_corpus, data, **changes)
    with np.load(tmp_path / "windows.npz") as arrays:
        resumed.restore(dict(arrays))
    resumed.write(at)
    assert replay(resumed, range(at + 1, 11)) == whole[at:]
    assert table(training_corpus, "replacements") == replacements
    assert table(training_corpus, "windows") == windows


def test_remined_pools_start_anew(data: FinetuneData, training_corpus: Path) -> None:
    mining = make_miner(training_corpus, data, refresh="remine", remine_every=4)
    for step in range(1, 4):
        observe(mining, step, scores_of(mining, step))
    replaced = mining.current.replacements.sum()
    found = observe(mining, 4, scores_of(mining, 4))
    assert found is not None and found["remined"] == 40 and found["scored"] == 10
    assert not mining.current.replacements.any() and np.isnan(mining.current.last_score).all()
    pools = [texts_of(mining.data, row)[1] for row in ROWS.tolist()]
    assert negatives_of(mining) == [pool[:N] for pool in pools]
    assert pools[3] != texts_of(data, 39)[1]
    assert mining.write(4, whole=False) and table(training_corpus, "windows") == []
    assert len(table(training_corpus, "replacements")) == replaced > 0
    observe(mining, 5, [[0.1, 0.9, 0.9, 0.9]] * 4)
    assert negatives_of(mining) == [[pool[4], *pool[1:4]] for pool in pools]


def test_pools_mined_earlier_get_the_column(data: FinetuneData, training_corpus: Path) -> None:
    with duckdb.connect(str(training_corpus / "pools.duckdb")) as connection:
        for name in ("windows", "replacements"):
            connection.execute(f"ALTER TABLE {name} DROP COLUMN slot")
    replay(make_miner(training_corpus, data), range(1, 3))
    assert {row[-1] for row in table(training_corpus, "windows")} == {0, 1, 2, 3}
