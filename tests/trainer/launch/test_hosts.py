"""Training on several machines: the hostfile, and processes under a fake ssh. test_train_stops.py trains on two."""

import multiprocessing
import os
import signal
import socket
import stat
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from conan_embedding.schemas.outcomes import Trained, TrainingPlan
from conan_embedding.schemas.training_settings import PretrainSettings
from conan_embedding.trainer.job import Job, TrainingError, make_job
from conan_embedding.trainer.launch import launcher as module
from conan_embedding.trainer.launch.hosts import (
    Cluster,
    Host,
    HostError,
    end,
    is_here,
    read_hostfile,
    rendezvous,
    send,
    start,
    training_place,
)
from conan_embedding.trainer.launch.launcher import count_processes, run_job
from processes import has_ended, wait_until

FAKE_SSH = """#!/bin/sh
while [ "$1" = -o ]; do shift 2; done
host=$1; shift
[ "$host" = closed ] && exit 255
cd / && exec env -i PATH=/usr/bin:/bin FAKE_HOST="$host" sh -c "$*"
"""
"""Runs the command on this machine as ssh would on another: in another folder, without this environment."""


def program(file: Path, text: str) -> Path:
    file.parent.mkdir(exist_ok=True)
    file.write_text(text)
    file.chmod(file.stat().st_mode | stat.S_IXUSR)
    return file


@pytest.fixture
def fake_ssh(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program(tmp_path / "bin" / "ssh", FAKE_SSH)
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:{os.environ['PATH']}")


@pytest.fixture
def scripted(
    training_corpus: Path, tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[[str], Job]:
    """Make a job whose training processes are a shell script; it also prints a port when rendezvous asks for one."""

    def write(script: str) -> Job:
        text = f'#!/bin/sh\nif [ "$1" = -c ]; then echo 4711; exit; fi\n{script}\n'
        monkeypatch.setattr(module.sys, "executable", str(program(tmp_path / "it's python", text)))
        return make_job(training_corpus, "pretrain", str(tiny), PretrainSettings(), {})

    return write


def test_a_hostfile_is_deepspeeds(tmp_path: Path) -> None:
    file = tmp_path / "hosts"
    file.write_text("# two machines\n\nworker-1 slots=4\n  10.0.0.7\tslots = 2   # the old one\n")
    assert read_hostfile(file) == [Host("worker-1", 4), Host("10.0.0.7", 2)]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a slots=1\n\nb\n", r"hosts:3: expected `HOST slots=N`, with N at least 1; found 'b'"),
        ("a slots=0", r"hosts:1: expected .* found 'a slots=0'"),
        ("a b slots=2", r"hosts:1: expected"),
        ("-oProxyCommand=x slots=2", r"hosts:1: expected"),
        ("a slots=1\na slots=2", r"hosts:2: the host a is listed twice"),
        ("# nothing\n", r"hosts: no hosts; expected one line `HOST slots=N`"),
    ],
)
def test_a_line_that_is_none_is_named(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "hosts").write_text(text)
    with pytest.raises(HostError, match=message):
        read_hostfile(tmp_path / "hosts")


def test_this_machine_has_many_names() -> None:
    for name in ("127.0.0.1", "127.0.0.2", "localhost", socket.gethostname()):
        assert is_here(name), name
    for name in ("192.0.2.1", "no-such-host.invalid"):  # reserved by RFC 5737 and RFC 2606
        assert not is_here(name), name


def test_the_first_host_is_where_all_meet(fake_ssh: None, scripted: Callable[[str], Job]) -> None:
    name, port = rendezvous([Host("127.0.0.2", 1)])
    assert name == "127.0.0.2"
    with socket.create_server((name, port)):
        pass
    scripted("")
    assert rendezvous([Host("far", 1), Host("127.0.0.2", 1)]) == ("far", 4711)
    with pytest.raises(HostError, match=r"closed: `ssh -o BatchMode=yes closed .*exit code 255"):
        rendezvous([Host("closed", 1)])
    with pytest.raises(HostError, match="localhost, which every machine calls itself"):
        rendezvous([Host("localhost", 1), Host("far", 1)])


def test_a_process_elsewhere_has_its_environment_and_folder(
    fake_ssh: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    place = tmp_path / "it's here"
    place.mkdir()
    monkeypatch.chdir(place)
    monkeypatch.setenv("NCCL_DEBUG", "a b")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "hidden")
    script = 'echo "$FAKE_HOST|$(pwd)|$NCCL_DEBUG|$RANK|$AWS_SECRET_ACCESS_KEY|$1"; echo oops >&2; exit 3'
    process = start("far", ["sh", "-c", script, "x", "a 'quoted' \"argument\""], {"RANK": "7"})
    assert process.wait(10) == 3
    out, err = capfd.readouterr()
    assert out == ""
    assert sorted(err.splitlines()) == [f"far|{place}|a b|7||a 'quoted' \"argument\"", "oops"]


def test_a_process_elsewhere_gets_signals(fake_ssh: None, tmp_path: Path) -> None:
    ready = tmp_path / "ready"
    process = start("far", ["sh", "-c", f'trap "exit 143" TERM; touch {ready}; while :; do sleep 0.05; done'], {})
    wait_until(ready.exists)
    send(process, signal.SIGTERM)
    assert process.wait(10) == 143
    send(process, signal.SIGTERM)
    end(process)


def test_a_process_elsewhere_ends_with_the_one_that_started_it(fake_ssh: None, tmp_path: Path) -> None:
    file = tmp_path / "number"
    stubborn = ["sh", "-c", f'trap "" TERM HUP INT; echo $$ > {file}.new; mv {file}.new {file}; exec sleep 60']
    process = start("far", stubborn, {})
    wait_until(file.exists)
    end(process)
    assert process.wait(10) == 128 + signal.SIGKILL
    assert has_ended(int(file.read_text()))

    file.unlink()
    parent = multiprocessing.get_context("fork").Process(target=lambda: start("far", stubborn, {}).wait())
    parent.start()
    wait_until(file.exists)
    parent.kill()
    parent.join(10)
    wait_until(lambda: has_ended(int(file.read_text())))


def test_ranks_are_counted_through_the_hosts(
    fake_ssh: None, scripted: Callable[[str], Job], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RANK", "9")  # as a cluster's scheduler might
    names = ["RANK", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT", "FAKE_HOST"]
    job = scripted(f'echo {" ".join(f"${name}" for name in names)} "$@" > {tmp_path}/told-$RANK')
    assert run_job(job, [Host("127.0.0.2", 1), Host("far", 2)]) is True
    told = [(tmp_path / f"told-{rank}").read_text().split() for rank in range(3)]
    assert [line[:5] for line in told] == [
        ["0", "0", "1", "3", "127.0.0.2"],
        ["1", "0", "2", "3", "127.0.0.2"],
        ["2", "1", "2", "3", "127.0.0.2"],
    ]
    assert len({line[5] for line in told}) == 1
    command = ["-m", "conan_embedding.trainer.train", str(job.file)]
    assert [line[6:] for line in told] == [command, ["far", *command], ["far", *command]]


def test_a_failure_elsewhere_ends_all_and_is_named(
    fake_ssh: None, scripted: Callable[[str], Job], tmp_path: Path
) -> None:
    job = scripted(f'[ "$RANK" = 1 ] && exit 3; echo $$ > {tmp_path}/process-$RANK; exec sleep 60')
    began = time.monotonic()
    with pytest.raises(
        TrainingError, match=r"training failed \(3 processes.*: process 1 on far ended with exit code 3"
    ):
        run_job(job, [Host("127.0.0.2", 1), Host("far", 2)])
    assert time.monotonic() - began < 20
    for file in tmp_path.glob("process-*"):
        assert not file.read_text() or has_ended(int(file.read_text()))


@pytest.mark.parametrize("places", [1, [Host("far", 1)]], ids=["here", "elsewhere"])
def test_a_run_that_is_asked_to_stop_saves_its_step(
    fake_ssh: None, scripted: Callable[[str], Job], tmp_path: Path, places: int | list[Host]
) -> None:
    """The signal reaches the processes, on this machine and on another."""
    checkpoint = '"$(dirname "$3")/checkpoints/step-00000007"'
    job = scripted(f'trap "mkdir -p {checkpoint}; exit 143" TERM; touch {tmp_path}/ready; while :; do sleep 0.05; done')
    asked = multiprocessing.get_context("fork").Process(target=run_quietly, args=(job, places, tmp_path))
    asked.start()
    wait_until((tmp_path / "ready").exists)
    assert asked.pid is not None
    os.kill(asked.pid, signal.SIGTERM)
    asked.join(20)
    assert "asked to stop and saved its step in" in (tmp_path / "message").read_text()


def run_quietly(job: Job, places: int | list[Host], folder: Path) -> None:
    try:
        run_job(job, places)
    except TrainingError as error:
        (folder / "message").write_text(str(error))


def test_the_command_takes_a_hostfile(
    conan: Callable[..., tuple[int, str, str]], training_corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (training_corpus / "recipe.yaml").write_text("{}")
    asked: list[Any] = []
    trained, planned = Trained("finetune", True, "m", {}), TrainingPlan({}, 1, 1, 1.0, 1, 1, 1, 1, [])
    monkeypatch.setattr("conan_embedding.workflow.train", lambda *given: asked.append(given) or trained)
    monkeypatch.setattr("conan_embedding.workflow.plan", lambda *given: asked.append(given) or planned)
    file = tmp_path / "hosts"
    file.write_text("a slots=2\nb slots=3\n")
    assert conan("train", training_corpus, "--hostfile", file)[0] == 0
    assert conan("train", training_corpus, "--hostfile", file, "--dry-run")[0] == 0
    assert [given[3] for given in asked] == 2 * [[Host("a", 2), Host("b", 3)]]
    assert count_processes(asked[0][3]) == 5
    file.write_text("a\n")
    code, _, error = conan("train", training_corpus, "--hostfile", file)
    assert (code, error.replace("\n", " ").startswith(f"error: {file}:1: expected `HOST slots=N`")) == (1, True)
    assert conan("train", training_corpus, "--hostfile", tmp_path / "none")[0] == 2


def test_training_is_on_the_cluster_of_the_data_stages() -> None:
    assert training_place(None, None) == 1
    assert training_place(None, 3) == 3
    assert training_place("auto", None) == Cluster("auto", None)
    assert training_place("head:6379", 16) == Cluster("head:6379", 16)
