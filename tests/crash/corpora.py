"""The small corpus that crashes happen to: what it is made of, what a stage leaves in it, how to fail in one place."""

import json
import shutil
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import duckdb
import forks
import polars as pl
import pyarrow.parquet as pq
import yaml
from conan_embedding.pipeline.corpus.folder import read_footer, rejects

RECIPE = Path(__file__).parents[2] / "recipes" / "demo.yaml"
SOURCES = ("news", "triples", "sts")
STAGES = ("ingest", "filter", "dedup", "score", "convert", "mine")
WITH_WORKERS = ("ingest", "filter", "dedup", "convert")

State = dict[str, Any]


@dataclass
class Unbroken:
    """A corpus that no crash has met: before each stage a copy, after it the state, and how long the stage took."""

    folder: Path
    recipe: Path
    states: dict[str, State] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)

    def before(self, stage: str, corpus: Path) -> None:
        """Make `corpus` what it is before a stage."""
        shutil.rmtree(corpus, ignore_errors=True)
        shutil.copytree(self.folder / "before" / stage, corpus)

    def command(self, stage: str, corpus: Path, *overrides: str, workers: int = 1) -> list[str]:
        own = [f"--workers={workers}"] if stage in WITH_WORKERS else []
        own += [f"--recipe={self.recipe}"] if stage == "ingest" else []
        return [stage, str(corpus), *own, *(f"--set={override}" for override in overrides), "--json"]


def write_inputs(folder: Path) -> None:
    """The sample in `folder/sources`, and in `folder/model` an encoder of one layer that has learnt nothing."""
    import pyarrow as pa
    from conan_embedding.pipeline.demo.generate import write_sample
    from conan_embedding.trainer.model.bootstrap import tiny_bert

    write_sample(folder / "sources", rows=300)
    texts = pa.chunked_array([[chr(point) for point in range(0x4E00, 0x5200)]])
    tiny_bert(folder / "model", texts=texts, layers=1, hidden=32, heads=2, intermediate=64, max_length=64)


def run_unbroken(folder: Path) -> Unbroken:
    """Write the inputs and run every stage."""
    folder.mkdir(exist_ok=True)
    made = Unbroken(folder, folder / "recipe.yaml")
    assert forks.exit_codes([forks.start(write_inputs, folder)]) == [0]
    recipe = yaml.safe_load(RECIPE.read_text("utf-8"))
    encoder = {"model": str(folder / "model"), "pooling": "mean", "max_length": 32}
    sources = [source for name in SOURCES for source in recipe["sources"] if source["name"] == name]
    small = {
        "variables": {"root": str(folder / "sources")},
        "sources": [source | {"holdout": source["name"] == "triples"} for source in sources],
        "evaluation": recipe["evaluation"][:1],
        "holdout": {"share": 0.05, "min": 5},
        "score": {**encoder, "cutoff": 0.985},
        "dedup": {"recall": 0.3},  # few bands, few files to read
        "mine": {**encoder, "method": "topk", "top_k": 3},
    }
    made.recipe.write_text(yaml.safe_dump(small, allow_unicode=True), "utf-8")
    corpus, output = folder / "corpus", folder / "output"
    corpus.mkdir()
    for stage in STAGES:
        shutil.copytree(corpus, folder / "before" / stage)
        began = time.monotonic()
        assert forks.run(made.command(stage, corpus), output) == 0, output.read_text("utf-8")
        made.seconds[stage] = time.monotonic() - began
        made.states[stage] = state(corpus)
    return made


def state(corpus: Path) -> State:
    """All that is in a corpus, but for times and for where it lies."""
    found: State = {"files": sorted(str(place.relative_to(corpus)) for place in corpus.rglob("*"))}
    found["recipe.yaml"] = (corpus / "recipe.yaml").read_text("utf-8")
    for file in corpus.rglob("*.parquet"):
        footer = json.loads((pq.read_metadata(file).metadata or {}).get(b"conan", b"{}"))
        found[str(file.relative_to(corpus))] = {**footer, "seconds": None}, pl.read_parquet(file).rows()
    for file in corpus.glob("*.duckdb"):
        found[file.name] = tables(file)
    return found


def tables(file: Path) -> dict[str, list[Any]]:
    """All rows of all tables and views, but for times and paths."""
    with duckdb.connect(str(file), read_only=True) as connection:
        names = sorted(name for (name,) in connection.execute("SHOW TABLES").fetchall())
        columns = "COLUMNS(lambda name: name NOT IN ('created_at', 'seconds', 'shard'))"
        return {name: connection.execute(f"SELECT {columns} FROM {name} ORDER BY ALL").fetchall() for name in names}


def temporaries(corpus: Path) -> list[str]:
    """List temporary files, of which a command should leave none."""
    return [str(place.relative_to(corpus)) for place in corpus.rglob("*") if ".tmp" in place.name]


def check_full_disk(code: int, message: str, corpus: Path) -> None:
    """One message that says what to do; what is committed is whole, and nothing else is there."""
    assert code == 1, message
    assert sum(line.startswith("error: ") for line in message.splitlines()) == 1
    assert "No space left on device" in message
    assert f"There is no space left for {corpus}" in message
    assert "free some space, then run the same command again" in message
    assert temporaries(corpus) == []
    for shard in corpus.rglob("part-*.parquet"):
        if shard.parent.name != "rejected":
            thrown = pq.read_metadata(rejects(shard)).num_rows if rejects(shard).exists() else 0
            assert thrown == sum(read_footer(shard).rejected.values())
            assert pq.read_table(shard).num_rows == pq.read_metadata(shard).num_rows
    for file in corpus.glob("*.duckdb"):
        with duckdb.connect(str(file), read_only=True) as connection:
            assert connection.sql("SHOW TABLES").fetchall()


def fill_disk_until_done(arguments: list[str], corpus: Path, points: Path, output: Path) -> None:
    """Run a command again and again, on a disk that is full from another point on each time, until none is left."""
    failures = 0
    while True:
        output.write_text("")
        try:
            forks.conan(*arguments)
        except SystemExit as ended:
            if not ended.code:
                break
            check_full_disk(ended.code, output.read_text("utf-8"), corpus)
        points.with_suffix(".full").unlink()
        failures += 1
    assert failures == len(lines(points))


def faults(
    kind: str, corpus: Path, points: Path, *, each: bool = False, wanted: list[str] | None = None
) -> dict[str, str]:
    """The variables that sitecustomize.py reads."""
    chosen = {"FAULT": kind, "FAULT_FOLDER": str(corpus), "FAULT_POINTS": str(points)}
    chosen |= {} if wanted is None else {"FAULT_WANTED": "\n".join(wanted)}
    return chosen | ({"FAULT_EACH": "1"} if each else {})


def lines(file: Path) -> list[str]:
    return file.read_text("utf-8").splitlines() if file.exists() else []
