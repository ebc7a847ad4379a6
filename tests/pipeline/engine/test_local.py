"""The local engine: every shard is written once, under its name, whichever process dies."""

import importlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import pyarrow.parquet as pq
import pytest
from conan_embedding.pipeline.corpus import folder as folders
from conan_embedding.pipeline.engine.calls import ATTEMPTS, Engine, devices
from conan_embedding.pipeline.engine.local import close_workers
from conan_embedding.pipeline.engine.stage import StageError, Task, run_calls, run_stage
from conan_embedding.schemas.errors import CorpusError, MissingExtraError
from conan_embedding.schemas.outcomes import Summary

HERE = Path(__file__).parent


@pytest.fixture
def stages(monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    close_workers()
    monkeypatch.syspath_prepend(HERE)  # a spawned worker gets this process's path
    yield importlib.import_module("engine_tasks")
    close_workers()


def tasks(*firsts: int, more: Sequence[Any] = ()) -> list[Task]:
    return [Task((first, first + 10, *more), folders.fingerprint(first)) for first in firsts]


def run(corpus: Path, function: Callable[..., None], todo: Sequence[Task], workers: int) -> Summary:
    return run_stage(corpus, "filter", function, todo, Engine(workers))


def found(corpus: Path) -> dict[str, list[int]]:
    """Return the numbers in each shard, by its name."""
    return {
        shard.name[5:10]: pq.read_table(shard)["number"].to_pylist() for shard in folders.committed(corpus, "filter")
    }


def processes(corpus: Path) -> set[int]:
    return {
        process for shard in folders.shards(corpus, "filter") for process in pq.read_table(shard)["process"].to_pylist()
    }


@pytest.mark.parametrize("workers", [1, 2])
def test_a_stage(workers: int, tmp_path: Path, stages: ModuleType) -> None:
    told: list[tuple[str, int, int, int]] = []
    engine = Engine(workers, lambda *said: told.append(said))
    summary = run_stage(tmp_path, "filter", stages.numbers, tasks(0, 10, 20), engine)
    assert found(tmp_path) == {
        "00000": [0, 2, 4, 6, 8],
        "00001": [10, 12, 14, 16, 18],
        "00002": [20, 22, 24, 26, 28],
    }
    assert len(folders.shards(tmp_path, "filter")) == summary.shards == 3
    assert (summary.rows_in, summary.rows_out, summary.rejected, summary.skipped) == (30, 15, {"odd": 15}, 0)
    assert told == [("filter", 0, 3, 0), ("filter", 1, 3, 10), ("filter", 2, 3, 20), ("filter", 3, 3, 30)]
    assert (processes(tmp_path) == {os.getpid()}) == (workers == 1)


def test_workers_make_the_same_shards(tmp_path: Path, stages: ModuleType) -> None:
    for workers in (1, 2):
        run(tmp_path / str(workers), stages.numbers, tasks(*range(0, 60, 10)), workers)
    assert found(tmp_path / "1") == found(tmp_path / "2")


def test_no_task_leaves_an_empty_stage(tmp_path: Path, stages: ModuleType) -> None:
    run(tmp_path, stages.numbers, tasks(0), 1)
    assert run(tmp_path, stages.numbers, [], 2).shards == 0
    assert found(tmp_path) == {}


def test_a_killed_worker_is_tried_again(tmp_path: Path, stages: ModuleType) -> None:
    attempts = tmp_path / "attempts"
    attempts.mkdir()
    summary = run(tmp_path, stages.die_first, tasks(0, 10, 20, 30, more=[attempts]), 2)
    assert summary.rows_in == 40
    assert len(list(attempts.iterdir())) == 6  # 0 and 20 twice
    run(tmp_path / "unbroken", stages.numbers, tasks(0, 10, 20, 30), 1)
    assert found(tmp_path) == found(tmp_path / "unbroken")


def test_a_shard_whose_worker_always_dies_is_reported(tmp_path: Path, stages: ModuleType) -> None:
    attempts = tmp_path / "attempts"
    attempts.mkdir()
    with pytest.raises(StageError, match=r"part-00001\.parquet: its worker died 3 times \(exit code -9\)") as raised:
        run(tmp_path, stages.die_always, tasks(0, 10, 20, more=[attempts]), 2)
    assert len(str(raised.value).splitlines()) == 1
    assert len(list(attempts.iterdir())) == ATTEMPTS == 3
    assert found(tmp_path).keys() == {"00000", "00002"}
    with pytest.raises(CorpusError, match="interrupted"):
        folders.shards(tmp_path, "filter")


@pytest.mark.parametrize("workers", [1, 2])
def test_an_exception_is_reported_and_the_rest_is_made(workers: int, tmp_path: Path, stages: ModuleType) -> None:
    with pytest.raises(StageError, match=r"part-00001\.parquet: ValueError: ten is too many"):
        run(tmp_path, stages.fail, tasks(0, 10, 20), workers)
    assert found(tmp_path).keys() == {"00000", "00002"}
    summary = run(
        tmp_path, stages.numbers, tasks(0, 10, 20), workers
    )  # the bug is fixed: only the missing shard is written
    assert summary.skipped == 2
    assert found(tmp_path)["00001"] == [10, 12, 14, 16, 18]


def test_a_shard_that_is_not_here_is_reported(tmp_path: Path, stages: ModuleType) -> None:
    with pytest.raises(StageError, match=r"part-00000\.parquet: written on a node that does not share this folder"):
        run(tmp_path, stages.forget, tasks(0), 1)


def noted(folder: Path, stages: ModuleType, workers: int = 2) -> set[int]:
    """Run six calls, check that none fails, and return the ids of the processes that ran them."""
    folder.mkdir()
    calls = [(str(number), (folder, number)) for number in range(6)]
    outcomes = list(run_calls(stages.note_process, calls, Engine(workers)))
    assert sorted(outcomes) == [(str(number), None) for number in range(6)]
    assert len(list(folder.iterdir())) == 6
    return {int(path.name.partition("-")[2]) for path in folder.iterdir()}


def test_workers_stay_for_the_next_calls(tmp_path: Path, stages: ModuleType) -> None:
    first = noted(tmp_path / "1", stages)
    assert len(first) == 2
    assert noted(tmp_path / "2", stages) == first
    run(tmp_path, stages.numbers, tasks(0, 10, 20), 2)  # calls of another function too
    assert processes(tmp_path) <= first
    close_workers()
    assert until(lambda: not any(alive(worker) for worker in first))
    assert not noted(tmp_path / "3", stages) & first


def test_workers_that_are_killed_between_calls_are_replaced(tmp_path: Path, stages: ModuleType) -> None:
    first = noted(tmp_path / "1", stages)
    os.kill(min(first), signal.SIGKILL)
    second = noted(tmp_path / "2", stages)
    assert len(second) == 2
    assert max(first) in second
    assert min(first) not in second


def test_workers_whose_outcome_nobody_waits_for_do_not_stay(tmp_path: Path, stages: ModuleType) -> None:
    started = tmp_path / "started"
    started.mkdir()
    calls = [("ends", (started, 0)), *((str(number), (started, number)) for number in range(1, 4))]
    outcomes = run_calls(stages.note_process, calls, Engine(2))
    next(outcomes)
    outcomes.close()  # as if the driver had raised
    busy = {int(path.name.partition("-")[2]) for path in started.iterdir()}
    assert until(lambda: not any(alive(worker) for worker in busy))
    assert len(noted(tmp_path / "next", stages)) == 2


def test_a_function_that_a_worker_can_not_import_is_reported(
    tmp_path: Path, stages: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    noted(tmp_path / "1", stages)  # starts workers, whose search path does not have the module below
    (tmp_path / "later.py").write_text("def run() -> None: ...")
    monkeypatch.syspath_prepend(tmp_path)
    later = importlib.import_module("later")
    outcomes = list(run_calls(later.run, [("one", ()), ("two", ())], Engine(2)))
    assert {error for _, error in outcomes} == {"ModuleNotFoundError: No module named 'later'"}


def test_ray_is_an_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)  # as if it were not installed
    monkeypatch.delitem(sys.modules, "conan_embedding.pipeline.engine.ray", raising=False)
    with pytest.raises(MissingExtraError, match=r"engine ray needs .*: pip install 'conan-embedding\[ray\]'"):
        list(run_calls(print, [("one", ())], Engine(address="auto")))


def test_the_debugger_gets_the_traceback(tmp_path: Path, stages: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(StageError) as plain:
        run(tmp_path, stages.fail, tasks(10), 1)
    monkeypatch.setenv("CONAN_DEBUG", "1")
    with pytest.raises(StageError) as traced:
        run(tmp_path, stages.fail, tasks(10), 1)
    assert "Traceback" not in str(plain.value)
    assert "engine_tasks.py" in str(traced.value)


def written(corpus: Path) -> dict[str, int]:
    return {shard.name[5:10]: shard.stat().st_mtime_ns for shard in folders.committed(corpus, "filter")}


def test_what_is_there_is_skipped_and_keeps_its_place(tmp_path: Path, stages: ModuleType) -> None:
    assert run(tmp_path, stages.numbers, tasks(0, 10, 20), 1).skipped == 0
    first = written(tmp_path)
    assert run(tmp_path, stages.numbers, tasks(0, 10, 20), 1).skipped == 3
    assert written(tmp_path) == first

    # A task is added in front: it takes the first free name, the others keep theirs.
    assert run(tmp_path, stages.numbers, tasks(90, 0, 10, 20), 1).skipped == 3
    assert found(tmp_path)["00003"] == [90, 92, 94, 96, 98]
    assert {name: time for name, time in written(tmp_path).items() if name != "00003"} == first

    # A task is removed: its shard and rejects are deleted.
    assert run(tmp_path, stages.numbers, tasks(90, 0, 20), 1).skipped == 3
    assert found(tmp_path).keys() == {"00000", "00002", "00003"}
    assert sorted(path.name for path in (tmp_path / "filter/rejected").iterdir()) == [
        f"part-{number}.parquet" for number in ("00000", "00002", "00003")
    ]


def test_a_damaged_shard_is_made_anew(tmp_path: Path, stages: ModuleType) -> None:
    run(tmp_path, stages.numbers, tasks(0, 10), 1)
    (tmp_path / "filter/part-00001.parquet").write_bytes(b"garbage")
    assert run(tmp_path, stages.numbers, tasks(0, 10), 1).skipped == 1
    assert found(tmp_path)["00001"] == [10, 12, 14, 16, 18]


def test_stale_shards_go_only_after_success(tmp_path: Path, stages: ModuleType) -> None:
    run(tmp_path, stages.numbers, tasks(70, 80, 90), 1)
    with pytest.raises(StageError):
        run(tmp_path, stages.fail, tasks(0, 10), 1)
    assert found(tmp_path) == {
        "00000": [0, 2, 4, 6, 8],
        "00001": [80, 82, 84, 86, 88],
        "00002": [90, 92, 94, 96, 98],
    }
    run(tmp_path, stages.numbers, tasks(0, 10), 1)
    assert found(tmp_path) == {"00000": [0, 2, 4, 6, 8], "00001": [10, 12, 14, 16, 18]}


DRIVER = """
import sys
from pathlib import Path
import engine_tasks
from conan_embedding.pipeline.engine.calls import Engine
from conan_embedding.pipeline.engine.stage import Task, run_stage
if __name__ == "__main__":
    folder = Path(sys.argv[1])
    tasks = [Task((folder / "started",), str(number)) for number in range(2)]
    run_stage(folder, "filter", engine_tasks.wait_for_ever, tasks, Engine(2))
"""


def alive(process: int) -> bool:
    try:
        return "Z" not in Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False


def until(happened: Callable[[], bool]) -> bool:
    end = time.monotonic() + 30
    while not happened() and time.monotonic() < end:
        time.sleep(0.02)
    return happened()


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="looks for processes in /proc")
def test_workers_die_with_their_driver(tmp_path: Path) -> None:
    """A worker that outlived its driver could overwrite shards of the next run that takes the lock."""
    started = tmp_path / "started"
    started.mkdir()
    script = tmp_path / "driver.py"
    script.write_text(DRIVER)
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(HERE), os.environ.get("PYTHONPATH", "")])}
    with subprocess.Popen([sys.executable, str(script), str(tmp_path)], env=environment) as driver:
        try:
            assert until(lambda: len(list(started.iterdir())) == 2)
        finally:
            driver.send_signal(signal.SIGKILL)
    workers = [int(path.name) for path in started.iterdir()]
    died = until(lambda: not any(alive(worker) for worker in workers))
    for worker in filter(alive, workers):
        os.kill(worker, signal.SIGKILL)
    assert died


def test_a_process_on_each_gpu(tmp_path: Path, stages: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.accelerator.is_available", lambda: True)
    monkeypatch.setattr("torch.accelerator.device_count", lambda: 2)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3,5")
    assert Engine(workers=7, one_a_device=True).processes == 2
    seen = []
    for turn in ("first", "second"):
        (tmp_path / turn).mkdir()
        calls = [(str(number), (tmp_path / turn, number)) for number in range(6)]
        assert [error for _, error in run_calls(stages.on_a_device, calls, Engine(one_a_device=True))] == [None] * 6
        seen.append({file.name.partition("-")[2] for file in (tmp_path / turn).iterdir()})
    close_workers()
    assert seen[0] == seen[1]  # the same processes, so a loaded model is kept between calls
    assert sorted(name.partition("-")[2] for name in seen[0]) == ["3", "5"]
    assert os.environ["CUDA_VISIBLE_DEVICES"] == "3,5"
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES")
    assert devices() == ["0", "1"]


def test_a_single_gpu_is_not_this_process_s(
    tmp_path: Path, stages: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    """This process would keep its model on the GPU while something else trains."""
    monkeypatch.setattr("torch.accelerator.is_available", lambda: True)
    monkeypatch.setattr("torch.accelerator.device_count", lambda: 1)
    calls = [(str(number), (tmp_path, number)) for number in range(2)]
    assert [error for _, error in run_calls(stages.note_process, calls, Engine(one_a_device=True))] == [None] * 2
    close_workers()
    (process,) = {int(file.name.partition("-")[2]) for file in tmp_path.iterdir()}
    assert process != os.getpid()
