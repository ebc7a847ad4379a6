"""DHNM in a run with given scores: which windows move, what pools.duckdb contains, what a killed run leaves."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pytest
import torch
from conan_embedding.schemas.dhnm_settings import HardNegativeMining
from conan_embedding.schemas.training_settings import FinetuneSettings
from conan_embedding.trainer.data.training_tables import FinetuneData, read_finetune, write_finetune
from conan_embedding.trainer.dhnm.window_miner import WindowMiner
from conan_embedding.trainer.job import Job
from conan_embedding.trainer.loss.cbb import Losses

Shards = Callable[[Path, str], list[Path]]

ROWS = np.array([2, 20, 30, 39])  # pools of 2, 20, 30 and 39; rows 20 and 30 start with provided negatives
NAN = float("nan")


@pytest.fixture
def data(training_corpus: Path, shards: Shards, tmp_path: Path) -> FinetuneData:
    folder = tmp_path / "data"
    folder.mkdir()
    write_finetune(folder, training_corpus, {"retrieval": shards(training_corpus, "retrieval")}, [])
    return read_finetune(folder)


@pytest.fixture
def mining(training_corpus: Path, data: FinetuneData) -> WindowMiner:
    return make_miner(training_corpus, data)


def make_miner(corpus: Path, data: FinetuneData, **changes: Any) -> WindowMiner:
    settings = FinetuneSettings(negatives=4, hard_negative_mining=HardNegativeMining(check_every=3, **changes))
    job = Job(corpus=corpus, name="finetune", model="", settings=settings, shards={}, fingerprint="")
    return WindowMiner(job, settings, data, rows_of=lambda step: ROWS)


def observe(mining: WindowMiner, step: int, *means: float) -> dict[str, int] | None:
    """Observe a step in which the negatives of the queries in ROWS have these mean scores."""
    scores = torch.tensor([[mean - 0.05, mean + 0.05, NAN, mean] for mean in means])
    nothing = torch.zeros(())
    return mining.observe(step, Losses(nothing, {}, torch.zeros(4), scores))


def table(corpus: Path, name: str) -> list[tuple[Any, ...]]:
    with duckdb.connect(str(corpus / "pools.duckdb"), read_only=True) as connection:
        return connection.execute(f"FROM {name} ORDER BY ALL").fetchall()


def replay(mining: WindowMiner, steps: range) -> None:
    """Run steps with a check every third step, and write as a run does."""
    script = {
        1: (0.9, 0.6, 0.6, 0.5),
        2: (0.5, 0.4, 0.55, 0.5),
        3: (0.5, 0.5, 0.55, 0.1),
        4: (0.5, 0.6, 0.55, 0.7),
        5: (0.5, 0.6, 0.55, 0.65),
        6: (0.5, 0.6, 0.55, 0.65),
        7: (0.5, 0.2, 0.55, 0.6),
        8: (0.5, 0.2, 0.55, 0.6),
        9: (0.5, 0.2, 0.55, 0.1),
    }
    for step in steps:
        if observe(mining, step, *script[step]):
            mining.write(step)


def test_only_queries_with_easier_negatives_move(mining: WindowMiner) -> None:
    assert [step for step in range(1, 10) if mining.checks(step)] == [3, 6, 9]
    assert observe(mining, 1, 0.9, 0.6, 0.6, 0.5) is None
    assert observe(mining, 2, 0.5, 0.4, 0.55, 0.5) is None
    # The pool of row 2 is too short; 1.15 · 0.5 < 0.6 and 1.15 · 0.1 < 0.5 move, 1.15 · 0.55 > 0.6 does not.
    assert observe(mining, 3, 0.5, 0.5, 0.55, 0.1) == {
        "visited": 4,
        "eligible": 4,
        "flagged": 3,
        "replaced": 2,
        "exhausted": 1,
    }
    windows = mining.current
    assert windows.round[ROWS].tolist() == [0, 1, 0, 1]
    assert (windows.lo[ROWS].tolist(), windows.hi[ROWS].tolist()) == ([0, 10, 0, 10], [2, 14, 0, 14])
    assert np.isnan(windows.initial_score[ROWS]).tolist() == [False, True, False, True]
    others = np.setdiff1d(np.arange(40), ROWS)
    assert np.isnan(windows.last_score[others]).all()


def test_the_mean_is_over_the_negatives_there_are(mining: WindowMiner) -> None:
    nothing = torch.zeros(())
    scores = torch.tensor([[0.2, 0.4, NAN], [NAN, NAN, NAN], [0.9, NAN, NAN], [0.1, 0.2, 0.3]])
    mining.observe(1, Losses(nothing, {}, torch.zeros(4), scores))
    assert np.isnan(mining.current.last_score).all()  # the scores are still on the device
    mining.read_scores()
    assert mining.current.last_score[ROWS].tolist() == pytest.approx([0.3, NAN, 0.9, 0.2], nan_ok=True)


def test_a_step_without_a_finite_loss_is_passed_over_and_is_no_check(mining: WindowMiner) -> None:
    observe(mining, 1, 0.9, 0.9, 0.9, 0.9)
    scores = torch.full((4, 1), 0.1)
    for step in (2, 3):  # step 3 would be a check
        assert mining.observe(step, Losses(torch.tensor(float("inf")), {}, torch.zeros(4), scores)) is None
    mining.read_scores()
    assert mining.current.last_score[ROWS].tolist() == pytest.approx([0.9] * 4)
    assert mining.current.visits[ROWS].tolist() == [1] * 4


def test_a_step_without_any_negatives_changes_nothing(mining: WindowMiner) -> None:
    nothing = torch.zeros(())
    found = mining.observe(3, Losses(nothing, {}, torch.zeros(4), torch.zeros(4, 0)))
    assert found == {"visited": 0, "eligible": 0, "flagged": 0, "replaced": 0, "exhausted": 0}


def test_switched_off_nothing_moves(training_corpus: Path, data: FinetuneData) -> None:
    mining = make_miner(training_corpus, data, enabled=False)
    for step, mean in enumerate([0.9, 0.5, 0.1, 0.1], start=1):
        assert observe(mining, step, mean, mean, mean, mean) is None
    assert not mining.current.round.any()


def test_the_tables_are_the_state_and_its_history(mining: WindowMiner, training_corpus: Path) -> None:
    replay(mining, range(1, 10))
    assert [row[:3] + row[5:7] for row in table(training_corpus, "replacements")] == [
        (3, 20, 1, 10, 14),
        (3, 39, 1, 10, 14),
        (9, 20, 2, 14, 18),
        (9, 39, 2, 14, 18),
    ]
    scores = [row[3:5] for row in table(training_corpus, "replacements")]
    assert np.allclose(scores, [(0.5, 0.6), (0.1, 0.5), (0.2, 0.6), (0.1, 0.7)])
    windows, state = table(training_corpus, "windows"), mining.current
    assert [row[0] for row in windows] == ROWS.tolist()
    for query, rounds, lo, hi, initial, last, step, slot in windows:
        assert (rounds, lo, hi, step, slot) == (state.round[query], state.lo[query], state.hi[query], 9, None)
        assert (NAN if initial is None else initial) == pytest.approx(state.initial_score[query], nan_ok=True)
        assert (NAN if last is None else last) == pytest.approx(state.last_score[query], nan_ok=True)
    assert state.exhausted[ROWS].tolist() == [True, False, False, False]


def test_a_query_that_comes_once_is_not_eligible(mining: WindowMiner) -> None:
    observe(mining, 1, 0.9, 0.9, 0.9, NAN)
    found = observe(mining, 3, NAN, 0.9, 0.1, NAN)
    assert found == {"visited": 3, "eligible": 2, "flagged": 1, "replaced": 1, "exhausted": 0}
    found = observe(mining, 6, NAN, NAN, NAN, 0.5)
    assert found == {"visited": 4, "eligible": 1, "flagged": 0, "replaced": 0, "exhausted": 0}
    found = observe(mining, 9, 0.1, NAN, 0.5, 0.5)
    assert found == {"visited": 4, "eligible": 3, "flagged": 1, "replaced": 0, "exhausted": 1}


def test_changed_windows_alone_are_written_between_checkpoints(mining: WindowMiner, training_corpus: Path) -> None:
    """The table is the same as if all of it were written, except for the step of unchanged rows."""
    columns = "(SELECT query_id, round, lo, hi, initial_score, last_score FROM windows)"
    assert mining.write(0)
    steps = [
        (0.9, 0.6, 0.6, NAN),
        (0.5, 0.4, 0.6, NAN),
        (0.5, 0.5, 0.6, 0.5),
        (0.5, NAN, NAN, 0.1),
        (NAN, 0.4, NAN, 0.1),
    ]
    written = []
    for step, means in enumerate(steps, start=1):
        observe(mining, step, *means)
        assert mining.write(step, whole=False)
        changed = table(training_corpus, columns), table(training_corpus, "(SELECT query_id, step FROM windows)")
        assert mining.write(step)
        assert table(training_corpus, columns) == changed[0]
        written.append(changed[1])
    assert written[3] == [(2, 4), (20, 3), (30, 3), (39, 4)]
    assert written[4] == [(2, 4), (20, 5), (30, 4), (39, 5)]
    assert table(training_corpus, "(SELECT DISTINCT step FROM windows)") == [(5,)]


def through_a_checkpoint(mining: WindowMiner, corpus: Path, data: FinetuneData, tmp_path: Path) -> WindowMiner:
    np.savez(tmp_path / "windows.npz", **mining.state())
    resumed = make_miner(corpus, data)
    with np.load(tmp_path / "windows.npz") as arrays:
        resumed.restore(dict(arrays))
    return resumed


def test_a_resumed_run_forgets_what_it_did_after_its_checkpoint(
    mining: WindowMiner, training_corpus: Path, data: FinetuneData, tmp_path: Path
) -> None:
    replay(mining, range(1, 10))
    windows, replacements = table(training_corpus, "windows"), table(training_corpus, "replacements")

    killed = make_miner(training_corpus, data)
    assert killed.write(0)  # as at the start of a new run
    assert table(training_corpus, "windows") == table(training_corpus, "replacements") == []
    replay(killed, range(1, 5))
    resumed = through_a_checkpoint(killed, training_corpus, data, tmp_path)
    at_the_checkpoint = table(training_corpus, "replacements")
    replay(killed, range(5, 10))
    assert table(training_corpus, "replacements") == replacements
    assert resumed.write(4)
    assert table(training_corpus, "replacements") == at_the_checkpoint
    replay(resumed, range(5, 10))
    assert table(training_corpus, "windows") == windows
    assert table(training_corpus, "replacements") == replacements


@pytest.fixture
def elsewhere(training_corpus: Path) -> Callable[[], "subprocess.Popen[str]"]:
    """Open pools.duckdb in another process, until it is killed."""

    def open_file() -> "subprocess.Popen[str]":
        program = (
            f"import duckdb, time; held = duckdb.connect({str(training_corpus / 'pools.duckdb')!r}, read_only=True); "
            "print('open', flush=True); time.sleep(60)"
        )
        reader = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True)
        assert reader.stdout is not None
        assert reader.stdout.readline() == "open\n"
        return reader

    return open_file


@pytest.mark.parametrize("killed", [False, True])
def test_what_a_locked_file_held_up_is_written_later(
    mining: WindowMiner,
    training_corpus: Path,
    data: FinetuneData,
    tmp_path: Path,
    elsewhere: Callable[[], "subprocess.Popen[str]"],
    killed: bool,
) -> None:
    replay(mining, range(1, 10))
    windows, replacements = table(training_corpus, "windows"), table(training_corpus, "replacements")

    mining = make_miner(training_corpus, data)
    reader = elsewhere()
    try:
        assert not mining.write(0)
        replay(mining, range(1, 6))
        assert len(mining.unwritten) == 2
        if killed:  # and the run continues from a checkpoint that has what the file lacks
            mining = through_a_checkpoint(mining, training_corpus, data, tmp_path)
        assert not mining.write(5)
    finally:
        reader.kill()
        reader.wait()
        assert reader.stdout is not None
        reader.stdout.close()
    assert mining.write(5)
    assert table(training_corpus, "replacements") == replacements[:2]
    replay(mining, range(6, 10))
    assert table(training_corpus, "windows") == windows
    assert table(training_corpus, "replacements") == replacements
