"""Training on a Ray cluster of two nodes: the losses of one machine, also after a node is lost."""

import os
import shutil
import signal
import threading
from contextlib import suppress
from pathlib import Path

import forks
import pytest
from conan_embedding.schemas.training_settings import PretrainSettings
from conan_embedding.trainer.job import Job
from conan_embedding.trainer.launch import hosts
from conan_embedding.trainer.launch.hosts import Cluster
from conan_embedding.trainer.launch.launcher import run_job
from processes import wait_until
from ray_nodes import Nodes
from training_runs import LONG, PRETRAIN, job_of, log_of, losses_of

pytest.importorskip("ray", reason="the engine ray needs the extra [ray]")
from conan_embedding.trainer.launch import cluster
from conan_embedding.trainer.launch.cluster import ClusterError, Place, number_ranks, started

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("ray")]


def test_a_lost_node_changes_no_loss(
    nodes: Nodes,
    training_corpus: Path,
    tiny: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    settings = PretrainSettings(**PRETRAIN, **LONG)
    here = job_of(Path(shutil.copytree(training_corpus, training_corpus.with_name("here"))), tiny, settings)
    with monkeypatch.context() as patched:
        patched.setattr(hosts, "start", forks.Rank)
        run_job(here, 2)
    there = job_of(Path(shutil.copytree(training_corpus, training_corpus.with_name("there"))), tiny, settings)
    added = nodes.add(num_cpus=2)  # both processes fit here alone, and on the others together
    kill = threading.Thread(target=_kill_after_a_checkpoint, args=(there, nodes, added))
    kill.start()
    assert run_job(there, Cluster(nodes.address, 2)) is True
    kill.join()
    assert losses_of(there) == pytest.approx(losses_of(here), abs=1e-6)
    assert len(log_of(there)) == LONG["steps"]
    assert "lost the node of training process" in capfd.readouterr().err
    assert run_job(there, Cluster(nodes.address, 2)) is False


def _kill_after_a_checkpoint(job: Job, nodes: Nodes, node: object) -> None:
    """Stop the processes once they have saved a checkpoint, and kill all that dies with their node."""
    wait_until(lambda: len(find_ranks(job)) == 2)
    ranks = find_ranks(job)
    wait_until(lambda: bool(job.checkpoints))
    for rank in ranks:
        os.kill(rank, signal.SIGSTOP)
    actors = [int(Path(f"/proc/{rank}/stat").read_text().rpartition(")")[2].split()[1]) for rank in ranks]
    nodes.kill(node)
    for each in [*actors, *ranks]:
        with suppress(ProcessLookupError):  # it has noticed
            os.kill(each, signal.SIGKILL)


def find_ranks(job: Job) -> list[int]:
    """Return the numbers of a run's processes."""
    found = []
    for place in Path("/proc").glob("[0-9]*"):
        try:
            if str(job.file) in (place / "cmdline").read_text() and (place / "exe").exists():
                found.append(int(place.name))
        except OSError:
            continue
    return found


def test_what_a_process_prints_and_its_exit_code_come_back(
    nodes: Nodes, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GLOO_NAME", "passed on")
    program = "import os; print(*map(os.environ.get, ['RANK', 'WORLD_SIZE', 'GLOO_NAME', 'X'])); raise SystemExit(3)"
    with started(Cluster(nodes.address), 2, ["-c", program], {"X": "x"}) as (ranks, addresses):
        assert [rank.wait() for rank in ranks] == [3, 3]
        assert len(addresses) == 2
    assert capfd.readouterr().err == "0 2 passed on x\n1 2 passed on x\n"
    with started(Cluster(nodes.address), 1, ["-c", "import time; time.sleep(600)"], {}) as ([rank], _):
        assert rank.poll() is None
        rank.send_signal(signal.SIGTERM)
        assert rank.wait() == -signal.SIGTERM


def test_more_processes_than_places_are_refused(nodes: Nodes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cluster, "TOLD_AFTER", 0.1)
    monkeypatch.setattr(cluster, "PLACED_WITHIN", 0.1)
    refused = pytest.raises(ClusterError, match=r"training needs 64 free CPUs, and the cluster has \d CPUs now; choose")
    with refused, started(Cluster(nodes.address), 64, [], {}):
        pass


def test_ranks_are_numbered_node_by_node(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    places = [Place("a", "10.0.0.1", 16, ("1",)), Place("b", "10.0.0.2", 8, ("0",)), Place("a", "10.0.0.1", 16, ("0",))]
    names = ("RANK", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "CUDA_VISIBLE_DEVICES", "OMP_NUM_THREADS")
    assert [(index, *(own[name] for name in names)) for index, own in number_ranks(places)] == [
        (2, "0", "0", "2", "0,1", "8"),
        (0, "1", "1", "2", "0,1", "8"),
        (1, "2", "0", "1", "0", "8"),
    ]
    assert number_ranks([Place("a", "10.0.0.1", 4, ())])[0][1]["DS_ACCELERATOR"] == "cpu"
