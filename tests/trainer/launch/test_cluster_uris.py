"""Training on nodes that share no folder, with a corpus at s3://: the losses of one machine, also after a lost node."""

import shutil
import threading
from collections.abc import Iterator
from pathlib import Path

import forks
import pytest
from conan_embedding.pipeline.corpus.lock import locked
from conan_embedding.pipeline.corpus.object_store import ObjectStore
from conan_embedding.pipeline.corpus.uris import find_folder
from conan_embedding.schemas.training_settings import FinetuneSettings
from conan_embedding.trainer.job import TrainingError
from conan_embedding.trainer.launch import hosts
from conan_embedding.trainer.launch.hosts import Cluster
from conan_embedding.trainer.launch.launcher import run_job
from properties import FUZZ
from ray_nodes import Nodes
from s3_proxy import Bucket, serve_bucket
from training_runs import EASILY, FINETUNE, LONG, REMINE, job_of, log_of, losses_of, replacements, weights_of, windows

pytest.importorskip("ray", reason="the engine ray needs the extra [ray]")

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("ray")]


@pytest.fixture
def bucket(nodes: Nodes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Bucket]:
    with serve_bucket(monkeypatch, tmp_path / "driver", nodes.s3_port) as bucket:
        yield bucket


@pytest.mark.fuzz
@pytest.mark.skipif(not FUZZ, reason="takes two minutes: make fuzz")
def test_a_lost_node_changes_no_loss(
    nodes: Nodes,
    bucket: Bucket,
    training_corpus: Path,
    tiny: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    settings = FinetuneSettings(**FINETUNE, **LONG, hard_negative_mining=EASILY)
    here = job_of(Path(shutil.copytree(training_corpus, training_corpus.with_name("here"))), tiny, settings)
    with monkeypatch.context() as patched:
        patched.setattr(hosts, "start", forks.Rank)
        run_job(here, 2)
    folder = find_folder(f"{bucket.uri}/zh")
    nodes.add(num_cpus=1)  # takes the place of the one that is killed
    lock, killed = threading.Lock(), []

    def watch(sender: str, request: str) -> None:
        with lock:
            if killed or not request.startswith("PUT") or "/checkpoints/step-00000014/" not in request:
                return
            for node in nodes.cluster.worker_nodes:
                if node.name in sender:
                    killed.append(node)
                    nodes.kill_with_workers(node)

    with locked(folder):
        shutil.copytree(training_corpus, folder, dirs_exist_ok=True)
        bucket.proxy.watch = watch
        there = job_of(folder, tiny, settings)
        assert run_job(there, Cluster(nodes.address, 2)) is True
        assert killed
        said = [line for line in capfd.readouterr().err.splitlines() if "training continues" in line]
        assert losses_of(there) == pytest.approx(losses_of(here), abs=1e-6)
        assert len(log_of(there)) == LONG["steps"]
        assert replacements(there) == replacements(here) != []
        assert windows(there) == windows(here)
        assert weights_of(there.model_folder).keys() == weights_of(here.model_folder).keys()
        assert run_job(there, Cluster(nodes.address, 2)) is False
        assert [line.partition("; ")[2] for line in said] == ["training continues from step-00000007"]
    assert not any("/checkpoints/" in path or "/data/" in path for path in ObjectStore(f"{bucket.uri}/zh").list_all())


def test_pools_are_not_rebuilt_without_a_folder_that_all_share(
    nodes: Nodes, bucket: Bucket, training_corpus: Path, tiny: Path
) -> None:
    folder = find_folder(f"{bucket.uri}/zh")
    with locked(folder):
        shutil.copytree(training_corpus, folder, dirs_exist_ok=True)
        job = job_of(folder, tiny, FinetuneSettings(**FINETUNE, steps=16, hard_negative_mining=REMINE))
        with pytest.raises(TrainingError, match="remine needs a corpus in a folder that all machines share; choose"):
            run_job(job, Cluster(nodes.address, 2))
