"""kill -9 of the whole process group in the middle of a stage, then the same command again: nothing is lost or doubled.

Two corpora are made of the same sample by the same command, side by side. One run is left alone; the other is killed
in the middle of ingest, dedup, synthesize, bootstrap, score and finetune, each time started again, and ends as the
first one did.
"""

import itertools
import json
import shutil
import signal
import time
from collections import Counter
from pathlib import Path
from typing import Any, Literal

import duckdb
import forks
import pyarrow.parquet as pq
import pytest
from conan_embedding.pipeline.corpus import catalog
from conan_embedding.pipeline.demo.generate import write_sample
from conan_embedding.pipeline.demo.language_model import serve
from conan_embedding.pipeline.demo.prepare import DEMO_QUESTIONS

RECIPE = Path(__file__).parents[1] / "recipes" / "demo.yaml"
SOURCES = 13  # of that recipe, each of one shard; what a language model writes comes later
STEPS = {"bootstrap": 16, "finetune": 24}
SMALL = [
    "bootstrap.layers=1",
    "bootstrap.hidden=32",
    "bootstrap.intermediate=64",
    f"bootstrap.training.steps={STEPS['bootstrap']}",
    "bootstrap.training.batch_size=16",
    "bootstrap.training.projection_dim=32",
    "bootstrap.training.matryoshka_dims=[32]",
    "bootstrap.training.checkpoint_every=4",
    "bootstrap.training.log_every=1",
    "mine.method=topk",
    "mine.top_k=20",
    f"finetune.steps={STEPS['finetune']}",
    "finetune.retrieval_batch=8",
    "finetune.sts_batch=8",
    "finetune.negatives=2",
    "finetune.matryoshka_dims=[32]",
    "finetune.hard_negative_mining={check_every: 3, factor: 0.5, ceiling: 2, offset: 0}",
    "finetune.checkpoint_every=4",
    "finetune.log_every=1",
    "evaluate.models=[finetune]",
]
"""Few steps of a tiny model; negatives are replaced at nearly every check, so that their state matters."""


def command(sources: Path, server: str, corpus: Path, *more: str) -> list[str]:
    overrides = [f"--set={each}" for each in [f"variables.root={sources}", f"variables.server={server}", *SMALL]]
    return ["run", str(RECIPE), str(corpus), *overrides, *more]


def state(corpus: Path, stage: str) -> Literal["before", "halfway", "after"]:
    """Halfway, some shards are there and others are not; training is past a checkpoint and not at its end."""
    if stage in STEPS:
        folder = corpus / "train" / stage
        saved = [int(place.name.removeprefix("step-")) for place in (folder / "checkpoints").glob("step-*")]
        logged = [entry["step"] for entry in log(folder) if "loss" in entry]
        is_halfway = bool(saved and logged) and max(saved) < max(logged) < STEPS[stage]
        is_over = (folder / "done").exists()
    elif stage == "synthesize":
        is_halfway = any(file.stat().st_size for file in (corpus / stage / "requests").glob("*.jsonl"))
        is_over = bool(list((corpus / stage / "answers").glob("part-*.parquet")))
    else:
        there = len(list((corpus / stage).glob("part-*.parquet")))
        is_halfway = 0 < there < SOURCES
        is_over = there > 0 and not (corpus / stage / ".incomplete").exists()
    return "after" if is_over else "halfway" if is_halfway else "before"


def log(folder: Path) -> list[dict[str, Any]]:
    """The whole lines of a training log."""
    file = folder / "log.jsonl"
    text = file.read_text("utf-8") if file.exists() else ""
    return [json.loads(line) for line in text.splitlines(keepends=True) if line.endswith("\n")]


def kill_halfway(arguments: list[str], output: Path, corpus: Path, stage: str) -> None:
    """Run the command and kill its group in the middle of a stage; if that came too late, run the stage again."""
    for _ in range(8):
        with forks.started(arguments, output) as process:
            while process.exitcode is None and state(corpus, stage) == "before":
                time.sleep(0.001)
        assert process.exitcode in (0, -signal.SIGKILL), output.read_text("utf-8")
        if state(corpus, stage) == "halfway":
            return
        shutil.rmtree(corpus / "train" / stage if stage in STEPS else corpus / stage)
    raise AssertionError(f"no attempt met {stage} halfway")


def rows(corpus: Path) -> dict[str, list[dict[str, Any]]]:
    """All rows and columns of every shard and of its rejects; judgements, which have times, are in the pools."""
    shards = (file for file in corpus.rglob("*.parquet") if file.parent != corpus / "judgements")
    return {str(file.relative_to(corpus)): pq.read_table(file).to_pylist() for file in shards}


def pools(corpus: Path) -> dict[str, list[Any]]:
    """All rows of pools.duckdb but for the time at which they were made."""
    with duckdb.connect(str(corpus / "pools.duckdb"), read_only=True) as connection:
        names = [name for (name,) in connection.execute("SHOW TABLES").fetchall()]
        return {
            name: connection.execute(
                f"SELECT COLUMNS(lambda name: name <> 'created_at') FROM {name} ORDER BY ALL"
            ).fetchall()
            for name in names
        }


def weights(corpus: Path) -> dict[str, bytes]:
    return {str(file.relative_to(corpus)): file.read_bytes() for file in corpus.rglob("*.safetensors")}


def losses(corpus: Path, stage: str) -> list[dict[str, Any]]:
    """The log without how fast it went: losses, scores, gradient norms, replacements."""
    entries = log(corpus / "train" / stage)
    return [{key: value for key, value in entry.items() if key != "tokens_per_second"} for entry in entries]


def files(corpus: Path) -> set[str]:
    """The files and folders; those of judgements have names of their own in each corpus."""
    named = (str(place.relative_to(corpus)) for place in corpus.rglob("*"))
    return {"judgements/…" if name.startswith("judgements/") else name for name in named}


def ask(corpus: Path, sql: str) -> list[dict[str, Any]]:
    """What `conan sql` answers."""
    return catalog.query(corpus, sql).to_pylist()


def check_accounts(corpus: Path, planted: dict[str, int]) -> None:
    """Every row in is out or rejected, in each shard and between stages; nothing that was planted is missing."""
    runs = ask(corpus, "SELECT folder, shard, rows_in, rows_out, rejected FROM runs")
    stages = ("ingest", "filter", "dedup", "score", "convert")
    assert {run["folder"].partition("/")[0] for run in runs} == {*stages, "synthesize"}
    came_in, went_out = Counter[str](), Counter[str]()
    for run in runs:
        shard, reasons = Path(run["shard"]), json.loads(run["rejected"])
        assert run["rows_in"] == run["rows_out"] + sum(reasons.values()), run
        rejects = pq.read_table(shard.parent / "rejected" / shard.name, columns=["reason"])
        assert Counter(rejects["reason"].to_pylist()) == reasons
        kept = pq.read_table(shard)
        if "pair_ids" in kept.column_names:  # a training record of several pairs
            assert sum(map(len, kept["pair_ids"].to_pylist())) == run["rows_out"]
        else:
            assert kept.num_rows == run["rows_out"]
        stage = run["folder"].partition("/")[0]
        came_in[stage] += run["rows_in"]
        went_out[stage] += run["rows_out"]
    for before, after in itertools.pairwise(stages):
        assert went_out[before] == came_in[after]
    found = {row["source"]: row["n"] for row in ask(corpus, "SELECT source, count(*) AS n FROM ingest GROUP BY 1")}
    expected = {key.removeprefix("records/"): count for key, count in planted.items() if key.startswith("records/")}
    (expected["web_questions"],) = (row["n"] for row in ask(corpus, "SELECT sum(kept) AS n FROM synthesis_funnel"))
    assert found.keys() == expected.keys()
    several = {"chats", "triples"}  # pairs of one record: its turns, its positives
    assert {name: found[name] for name in found if name not in several} == {
        name: expected[name] for name in expected if name not in several
    }
    assert all(found[name] > expected[name] for name in several)


@pytest.mark.slow
@pytest.mark.xdist_group("crash")  # which has the server that commands are forks of
def test_a_run_that_is_killed_in_every_stage_ends_as_one_that_is_not(tmp_path: Path) -> None:
    sources, whole, broken = tmp_path / "sources", tmp_path / "whole", tmp_path / "broken"
    planted = write_sample(sources, rows=300)
    output = tmp_path / "broken.log"
    with serve() as server:
        again = command(sources, server, broken, "--workers=1")
        once = command(sources, server, whole, "--workers=1")
        with forks.started(once, tmp_path / "whole.log") as unbroken:
            for stage in ("ingest", "dedup", "synthesize", "bootstrap", "score", "finetune"):
                workers = ["--workers=2"] if stage in ("ingest", "dedup") else []  # which take seconds to start
                kill_halfway([*again, *workers], output, broken, stage)
            assert forks.run(again, output) == 0, output.read_text("utf-8")
            assert forks.exit_codes([unbroken]) == [0], (tmp_path / "whole.log").read_text("utf-8")
    assert forks.run(again, output) == 0, output.read_text("utf-8")  # with nobody left who could be asked

    check_accounts(whole, planted)
    assert all(ask(whole, question) for question in DEMO_QUESTIONS)
    assert files(broken) == files(whole)
    assert not [name for name in files(whole) if ".tmp" in name or name.endswith((".incomplete", ".decisions.parquet"))]
    assert rows(broken) == rows(whole)
    assert losses(broken, "bootstrap") == losses(whole, "bootstrap")
    assert losses(broken, "finetune") == losses(whole, "finetune")
    assert pools(broken) == pools(whole)
    assert len(pools(whole)["replacements"]) > 0
    assert weights(broken) == weights(whole)
    assert "model/model.safetensors" in weights(whole)
