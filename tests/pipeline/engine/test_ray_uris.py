"""A corpus at s3:// on a Ray cluster whose nodes share no folder: the rows of a local one, whichever node dies."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from threading import Lock

import pytest
from conan_embedding.api import Corpus, run_stage
from conan_embedding.pipeline.corpus import folder as folders
from conan_embedding.pipeline.corpus.lock import locked
from conan_embedding.pipeline.corpus.object_store import ObjectStore
from conan_embedding.pipeline.corpus.uris import find_folder
from conan_embedding.schemas.judge_settings import JudgeSettings
from conan_embedding.schemas.recipe import Recipe
from conan_embedding.schemas.training_settings import FinetuneSettings
from conan_embedding.trainer.launch.hosts import Cluster
from conan_embedding.workflow import export, train
from cross_encoders import write_cross_encoder
from properties import FUZZ
from ray_nodes import Nodes
from s3_proxy import Bucket, serve_bucket
from uri_corpora import make_recipe, read_rows

pytest.importorskip("ray", reason="the engine ray needs the extra [ray]")

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("ray")]

KILLED_AT = {
    "ingest": "/ingest/part-",
    "filter": "/filter/rejected/part-",
    "dedup": "/dedup/.work/",
    "score": "/score/part-",
    "convert": "/convert/",
    "mine": "/vectors/",
    "judge": "/judgements/",
}
"""The stages, and the write of a shard or of something else that a node sends when it is killed."""


@pytest.fixture
def bucket(nodes: Nodes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Bucket]:
    with serve_bucket(monkeypatch, tmp_path / "driver", nodes.s3_port) as bucket:
        yield bucket


@contextmanager
def a_node_killed_at(nodes: Nodes, bucket: Bucket, write: str) -> Iterator[None]:
    """Have a node that is killed when it sends such a write, which then comes through: the driver never hears of it."""
    node, lock, killed = nodes.add(num_cpus=2), Lock(), []

    def watch(sender: str, request: str) -> None:
        with lock:
            if node.name in sender and request.startswith("PUT") and write in request and not killed:
                killed.append(request)
                nodes.kill_with_workers(node)

    bucket.proxy.watch = watch
    yield
    bucket.proxy.watch = lambda *_: None
    assert killed


def train_and_export(corpus: str | Path, recipe: Recipe, where: int | Cluster) -> list[float]:
    """Return the losses of fine-tuning."""
    folder = find_folder(corpus)
    with locked(folder):
        train("finetune", folder, recipe, where)
        export(folder, recipe)
    assert next((folder / recipe.export.folder).rglob("model.safetensors")).exists()
    entries = map(json.loads, (folder / "train" / "finetune" / "log.jsonl").read_text("utf-8").splitlines())
    return [entry["loss"] for entry in entries if "loss" in entry]


@pytest.mark.fuzz
def test_the_rows_of_a_local_corpus_though_a_node_dies(
    nodes: Nodes, bucket: Bucket, tmp_path: Path, tiny: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("conan_embedding.pipeline.dedup.clusters._FEW", 0)  # or the driver does this alone
    monkeypatch.setattr("conan_embedding.pipeline.encoder.vector_cache.LEAST", 1)  # or there is one part for all nodes
    monkeypatch.setattr("conan_embedding.pipeline.judge.scorers.PART", 9)
    judge = JudgeSettings(model=str(write_cross_encoder(tmp_path / "judge")))
    tuning = {"checkpoint_every": 3, "log_every": 1, "negatives": 1, "retrieval_batch": 4, "sts_batch": 0}
    finetune = FinetuneSettings(model=str(tiny), steps=8, max_length=32, matryoshka_dims=[16], **tuning)
    recipe = make_recipe(tmp_path, sources=5, model=tiny).model_copy(update={"judge": judge, "finetune": finetune})
    local, uri = tmp_path / "local", f"{bucket.uri}/corpora/zh"
    for stage in KILLED_AT if FUZZ else ("ingest", "filter", "dedup"):
        run_stage(stage, local, recipe, workers=1)
        if FUZZ or stage == "dedup":
            with a_node_killed_at(nodes, bucket, KILLED_AT[stage]):
                run_stage(stage, uri, recipe, address=nodes.address)
        else:
            run_stage(stage, uri, recipe, address=nodes.address)
    monkeypatch.setenv("CONAN_CACHE", str(tmp_path / "elsewhere"))
    mirror = find_folder(uri)
    for folder in folders.FOLDERS if FUZZ else ("ingest", "filter", "dedup"):
        assert read_rows(mirror, folder) == read_rows(local, folder), folder
    if FUZZ:
        assert Corpus(uri).pools().equals(Corpus(local).pools())
        trained = train_and_export(local, recipe, 2)
        with a_node_killed_at(nodes, bucket, "/checkpoints/step-00000006/"):
            assert train_and_export(uri, recipe, Cluster(nodes.address, 2)) == pytest.approx(trained, abs=1e-6)
        judged = "SELECT query_id, passage_id, score FROM pools.judgements ORDER BY ALL"
        ours, theirs = (Corpus(place).sql(judged) for place in (uri, local))
        assert ours.drop("score").equals(theirs.drop("score"))
        # Nodes have other numbers of threads, on which rounding depends.
        assert ours["score"].to_list() == pytest.approx(theirs["score"].to_list(), abs=1e-6)
    shared = (".work/", ".parts/", ".search.", "vectors/", "checkpoints/")
    assert [path for path in ObjectStore(uri).list_all() if any(part in path for part in shared)] == []
    assert not list(nodes.caches.glob("*/corpora/*/0"))
