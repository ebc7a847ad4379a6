"""Trackers of a run: what the log has reaches them, once, and none of them can hold training up or end it.

Each real tracker is tested if its library is installed, without a network; a fake one in any case.
"""

import struct
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any
from unittest.mock import MagicMock, call

import pytest
from conan_embedding.schemas.errors import MissingExtraError, RecipeError
from conan_embedding.trainer import trackers, tracking
from conan_embedding.trainer.job import Job
from conan_embedding.trainer.run_log import Log
from conan_embedding.trainer.trackers import TRACKER_EXTRAS, TRACKERS, check_trackers

Points = dict[str, list[tuple[int, float]]]
"""Values by name, each with its step, in the order in which they were stored."""


class Fake:
    """A tracker in memory. `breaks` names the methods that raise; `waits_for` holds up the start."""

    breaks: tuple[str, ...] = ()
    waits_for: threading.Event | None = None

    def __init__(self) -> None:
        self.calls: list[tuple[Any, ...]] = []
        self.points: Points = {}
        started.append(self)

    def start(self, name: str, settings: Mapping[str, Any], folder: Path, run_id: str | None) -> str:
        if self.waits_for:
            self.waits_for.wait(30)
        self._call("start", name, run_id)
        self.settings = settings
        return run_id or "run 1"

    def log(self, metrics: Mapping[str, float], step: int) -> None:
        self._call("log", step)
        for name, value in metrics.items():
            self.points.setdefault(name, []).append((step, value))

    def finish(self, succeeded: bool) -> None:
        self._call("finish", succeeded)

    def _call(self, method: str, *arguments: Any) -> None:
        self.calls.append((method, *arguments))
        if method in self.breaks:
            raise ConnectionError("no route\n  to host")


started: list[Fake] = []


@pytest.fixture(autouse=True)
def fake(monkeypatch: pytest.MonkeyPatch) -> type[Fake]:
    started.clear()
    kind = type("Fresh", (Fake,), {})
    monkeypatch.setitem(TRACKERS, "fake", kind)
    return kind


def tracked(job: Job, *names: str) -> Job:
    return job.model_copy(update={"settings": job.settings.model_copy(update={"track": list(names)})})


def begin(job: Job, step: int = 0) -> Log:
    log = Log(job, step, 40)
    log.start(steps=40, parameters=1000, world_size=2)
    return log


def write(log: Log, *steps: int) -> None:
    for step in steps:
        log.write(step=step, loss=10 / step, gradient_norm=None, mining={"replaced": step // 10})


def validate(log: Log, step: int) -> None:
    metrics = {"asked": {"ndcg@10": 0.5}, "问答": {"spearman": 0.25}}
    log.write(event="validation", step=step, mean=0.375, best=True, metrics=metrics)


def run_and_resume(job: Job) -> None:
    """Log a run that is stopped after step 30, and resume it from a checkpoint at step 10."""
    log = begin(job)
    write(log, 10, 20)
    validate(log, 20)
    write(log, 30)
    log.close(succeeded=False)
    log = begin(job, 10)
    write(log, 20)
    validate(log, 20)
    write(log, 30, 40)
    validate(log, 40)
    log.close(succeeded=True)


EXPECTED: Points = {
    "loss": [(10, 1.0), (20, 0.5), (30, 1 / 3), (40, 0.25)],
    "mining/replaced": [(10, 1), (20, 2), (30, 3), (40, 4)],
    "validation/mean": [(20, 0.375), (40, 0.375)],
    "validation/metrics/asked/ndcg@10": [(20, 0.5), (40, 0.5)],
    "validation/metrics/问答/spearman": [(20, 0.25), (40, 0.25)],
}
"""The points of a tracker after run_and_resume, each once."""


def test_a_tracker_gets_what_the_log_has_and_no_point_twice(job: Job) -> None:
    run_and_resume(tracked(job, "fake"))
    first, second = started
    assert first.calls[0] == ("start", f"{job.corpus.name} pretrain", None)
    assert second.calls[0] == ("start", f"{job.corpus.name} pretrain", "run 1")
    assert (first.calls[-1], second.calls[-1]) == (("finish", False), ("finish", True))
    assert second.calls[1:-1] == [("log", 40), ("log", 40)]
    names = first.points.keys() | second.points.keys()
    assert {name: first.points.get(name, []) + second.points.get(name, []) for name in names} == EXPECTED
    expected = job.settings.model_dump(mode="json") | {"track": ["fake"], "steps": 40, "parameters": 1000}
    assert second.settings == first.settings == expected | {"world_size": 2}


def test_a_tracker_that_is_added_later_gets_the_log_from_the_beginning(job: Job) -> None:
    log = begin(job)
    write(log, 10, 20, 30)
    log.close(succeeded=False)
    log = begin(tracked(job, "fake"), 20)
    write(log, 30)
    log.close(succeeded=True)
    assert started[0].points["loss"] == EXPECTED["loss"][:3]


def test_a_run_that_starts_over_before_its_first_checkpoint_goes_on_in_the_tracker(job: Job) -> None:
    for steps in ((10,), (10, 20)):
        log = begin(tracked(job, "fake"))
        write(log, *steps)
        log.close(succeeded=True)
    assert [each.calls[1:-1] for each in started] == [[("log", 10)], [("log", 20)]]


@pytest.mark.parametrize("method", ["start", "log", "finish"])
def test_a_tracker_that_fails_is_reported_once_and_training_continues(
    job: Job, fake: type[Fake], monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], method: str
) -> None:
    fake.breaks = (method,)
    healthy = type("Healthy", (Fake,), {})
    monkeypatch.setitem(TRACKERS, "healthy", healthy)
    log = begin(tracked(job, "fake", "healthy"))
    write(log, 10, 20)
    log.close(succeeded=True)
    assert capfd.readouterr().err == (
        "track: fake failed (ConnectionError: no route to host); training continues without it; log.jsonl has all\n"
    )
    broken, well = sorted(started, key=lambda each: type(each) is healthy)
    assert [call[0] for call in broken.calls].count(method) == 1
    assert broken.calls[-1][0] == method
    assert well.points["loss"] == EXPECTED["loss"][:2]
    assert len((job.folder / "log.jsonl").read_text().splitlines()) == 3


def test_a_tracker_whose_start_failed_is_told_everything_when_the_run_resumes(job: Job, fake: type[Fake]) -> None:
    fake.breaks = ("start",)
    log = begin(tracked(job, "fake"))
    write(log, 10, 20)
    log.close(succeeded=False)
    fake.breaks = ()
    begin(tracked(job, "fake"), 20).close(succeeded=True)
    assert started[1].points["loss"] == EXPECTED["loss"][:2]


def test_a_slow_tracker_holds_up_neither_steps_nor_the_end(
    job: Job, fake: type[Fake], monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(tracking, "LAST_SECONDS", 0.05)
    fake.waits_for = threading.Event()
    log = begin(tracked(job, "fake"))
    write(log, 10)
    log.close(succeeded=True)
    assert started[0].points == {}
    assert capfd.readouterr().err.startswith("track: fake has not stored everything after 0.05 s")
    fake.waits_for.set()


def test_other_ranks_start_no_tracker(job: Job) -> None:
    log = Log(tracked(job, "fake"), 0, 40, writes=False)
    log.start(steps=40)
    write(log, 10)
    log.close(succeeded=True)
    assert started == []


def test_names_and_libraries_are_checked(monkeypatch: pytest.MonkeyPatch) -> None:
    assert TRACKERS.keys() == {*TRACKER_EXTRAS, "fake"}
    monkeypatch.setattr(trackers, "find_spec", lambda name: None)
    check_trackers(["fake"], "r.yaml:3: finetune.track")  # a plugin sees to its own library
    with pytest.raises(
        RecipeError, match=r"^r.yaml:3: finetune.track: no tracker is called 'wand'; did you mean 'wandb'"
    ):
        check_trackers(["wand"], "r.yaml:3: finetune.track")
    message = r"^r.yaml:3: finetune.track: wandb needs the extra wandb: pip install 'conan-embedding\[wandb\]'$"
    with pytest.raises(MissingExtraError, match=message):
        check_trackers(["wandb"], "r.yaml:3: finetune.track")


def test_wandb_continues_a_run_online(job: Job, monkeypatch: pytest.MonkeyPatch) -> None:
    """With a stand-in for wandb, as there is no server."""
    wandb = MagicMock()
    wandb.setup().settings.mode = "online"
    wandb.init.return_value.id = "1a2b3c4d"
    monkeypatch.setitem(sys.modules, "wandb", wandb)
    run_and_resume(tracked(job, "wandb"))
    first, second = (each.kwargs for each in wandb.init.call_args_list)
    assert (first["id"], first["resume"], second["id"], second["resume"]) == (None, None, "1a2b3c4d", "allow")
    run = wandb.init.return_value
    logged = [each.args[0] for each in run.log.call_args_list]
    assert [(entry["step"], "loss" in entry) for entry in logged] == [
        (10, True), (20, True), (20, False), (30, True), (40, True), (40, False)
    ]  # fmt: skip
    assert run.define_metric.call_args_list[1] == call("*", step_metric="step")
    assert [each.kwargs for each in run.finish.call_args_list] == [{"exit_code": 1}, {"exit_code": 0}]


def read_tensorboard(job: Job) -> tuple[Points, str]:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(job.folder / "tensorboard")).Reload()
    assert len(events.Tensors("settings/text_summary")) == 1
    points = {name: [(each.step, each.value) for each in events.Scalars(name)] for name in events.Tags()["scalars"]}
    return points, events.Tensors("settings/text_summary")[0].tensor_proto.string_val[0].decode()


def read_wandb(job: Job) -> tuple[Points, str]:
    from wandb.proto.wandb_internal_pb2 import Record

    points: Points = {}
    settings = ""
    (file,) = job.folder.glob(f"wandb/offline-run-*-{(job.folder / 'trackers' / 'wandb').read_text()}/*.wandb")
    for data in read_level_db(file.read_bytes()):
        record = Record.FromString(data)
        settings += str(record.run.config) + str(record.config)
        row = {item.key or "/".join(item.nested_key): item.value_json for item in record.history.item}
        for name in row.keys() & EXPECTED.keys():
            points.setdefault(name, []).append((int(row["step"]), float(row[name])))
    return points, settings


def read_level_db(data: bytes) -> Iterator[bytes]:
    """Yield the records of a log as LevelDB writes it (its doc/log_format.md), after the 7 bytes of wandb.

    A block of 32 KB has pieces of records, each after a checksum, its length, and whether it is whole (1), or the first
    (2), a middle (3) or the last (4) piece. Fewer than 7 bytes at the end of a block are padding.
    """
    place, record = 7, b""
    while place < len(data):
        if 32_768 - place % 32_768 < 7:
            place += 32_768 - place % 32_768
            continue
        length, kind = struct.unpack_from("<4xHB", data, place)
        record += data[place + 7 : place + 7 + length]
        place += 7 + length
        if kind in (1, 4):
            yield record
            record = b""


def read_mlflow(job: Job) -> tuple[Points, str]:
    from mlflow import MlflowClient

    client = MlflowClient()
    (run,) = client.search_runs([client.get_experiment_by_name("conan-embedding").experiment_id])
    assert (run.info.status, run.info.run_name) == ("FINISHED", f"{job.corpus.name} pretrain")
    names = {name.replace("@", "_at_"): name for name in EXPECTED}
    return {
        names[key]: [(each.step, each.value) for each in client.get_metric_history(run.info.run_id, key)]
        for key in run.data.metrics
    }, str(run.data.params)


def read_trackio(job: Job) -> tuple[Points, str]:
    from trackio.sqlite_storage import SQLiteStorage

    (run,) = SQLiteStorage.get_runs("conan-embedding")
    points: Points = {}
    for row in SQLiteStorage.get_logs("conan-embedding", run):
        for name in row.keys() & EXPECTED.keys():
            points.setdefault(name, []).append((row["step"], row[name]))
    return points, str(SQLiteStorage.get_run_config("conan-embedding", run))


@pytest.mark.parametrize(
    ("name", "read"),
    [
        ("wandb", read_wandb),
        ("mlflow", read_mlflow),
        ("trackio", read_trackio),
        ("tensorboard", read_tensorboard),
    ],
)
def test_a_real_tracker_has_each_point_once(
    job: Job, monkeypatch: pytest.MonkeyPatch, name: str, read: Callable[[Job], tuple[Points, str]]
) -> None:
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{job.corpus}/mlflow.db")
    monkeypatch.setenv("TRACKIO_DIR", str(job.corpus / "trackio"))
    monkeypatch.chdir(job.corpus)
    pytest.importorskip(name, reason=f"needs the extra {name}")
    run_and_resume(tracked(job, name))
    points, settings = read(job)
    assert {key: [step for step, _ in values] for key, values in points.items()} == {
        key: [step for step, _ in values] for key, values in EXPECTED.items()
    }
    for key, values in points.items():
        assert [value for _, value in values] == pytest.approx([value for _, value in EXPECTED[key]], rel=1e-6)
    for setting in ("learning_rate", "world_size", "1792"):
        assert setting in settings
