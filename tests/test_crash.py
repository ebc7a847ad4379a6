"""A crash at any moment of any data stage, then the same command again: the end is that of an unbroken run.

The corpus is small: three sources of the sample (news with a broken file, triples, sentence pairs: all three
folders of convert), one evaluation set, an encoder of one layer with random weights. The end of a stage is every row of
every shard and its rejects, their footers, the pools, the catalog's views and the names of all files, so that no
temporary file, no orphan and no work folder is overlooked.

- Kills: SIGKILL to the process group at seeded moments of every stage, with one worker and with two, each followed by
  the same command, which may be killed in turn.
- Death at every kind of rename and unlink of every stage, before the call and after it: a chain of runs, each of which
  dies at the first point of a kind that none before it has met (points.py says what a kind is). In workers: the worker
  alone dies, and the run continues.
- Another recipe, killed after each change of a name, then the recipe of before: nothing of the other must stay.
- A disk that is full from some open, write, fsync, rename or mkdir on, each kind of point in turn, for two stages,
  under `make fuzz` for all; and a real one: a tmpfs that grows from run to run. A full disk is one message and exit
  code 1, and what is committed stays whole.

`make fuzz` kills at other moments, for longer; `python tests/crash/every_point.py STAGE` takes every point, not one of
a kind, on a corpus of its own, followed by one run.
"""

import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from random import Random

import pytest
import yaml

sys.path.append(str(Path(__file__).parent / "crash"))

import forks
from corpora import (
    STAGES,
    WITH_WORKERS,
    Unbroken,
    check_full_disk,
    faults,
    fill_disk_until_done,
    lines,
    run_unbroken,
    state,
    temporaries,
)
from llm_server import llm_process
from points import kind_of
from properties import FUZZ, SEED, time_is_over

pytestmark = [
    pytest.mark.slow,
    pytest.mark.xdist_group("crash"),  # one worker makes the unbroken corpus
    pytest.mark.skipif(sys.platform != "linux", reason="the name of an open file is read from /proc"),
]

KILLS = {1: 2, 2: 1}
"""Number of kills per stage, by its workers; `make fuzz` continues for as long as it has time."""
STARTING_WORKERS = 0.3
"""Seconds in which two workers start: a kill may come then, too."""
KILLED = [(stage, 1) for stage in STAGES] + [(stage, 2) for stage in WITH_WORKERS]
FILLED = STAGES if FUZZ else ["ingest", "convert"]
"""Stages whose disk is filled at each kind of point. The others write in the same ways, and take a minute more."""
CHANGES = {"ingest": "evaluation=[]", "score": "score.cutoff=0.995"}


@pytest.fixture(scope="session")
def unbroken(tmp_path_factory: pytest.TempPathFactory) -> Unbroken:
    made = run_unbroken(tmp_path_factory.mktemp("unbroken"))
    assert {"convert/pretrain", "convert/retrieval", "convert/sts"} <= set(made.states["mine"]["files"])
    assert all(made.states["mine"]["pools.duckdb"][name] for name in ("queries", "passages", "positives", "candidates"))
    assert {"ingest", "filter", "dedup", "score"} <= {
        row[0] for row in made.states["mine"]["catalog.duckdb"]["rejected"]
    }
    assert not temporaries(made.folder / "corpus")
    return made


@pytest.fixture
def crashed_corpus(tmp_path: Path) -> Path:
    return tmp_path / "corpus"


@pytest.fixture
def output(tmp_path: Path) -> Path:
    return tmp_path / "output"


@pytest.fixture
def points(tmp_path: Path) -> Path:
    """Where the points met are put down."""
    return tmp_path / "points"


@pytest.mark.fuzz
@pytest.mark.parametrize(("stage", "workers"), KILLED)
def test_kills_at_random_moments(
    unbroken: Unbroken, crashed_corpus: Path, output: Path, stage: str, workers: int
) -> None:
    again, random = unbroken.command(stage, crashed_corpus, workers=workers), Random(f"{SEED} {stage} {workers}")
    seconds = unbroken.seconds[stage] + STARTING_WORKERS * (workers > 1)
    unbroken.before(stage, crashed_corpus)
    kills, is_over = 0, False
    while (is_wanted := kills < KILLS[workers] or (FUZZ and not time_is_over())) or not is_over:
        began = time.monotonic()
        with forks.started(again, output) as process:
            process.join(random.uniform(0, seconds) if is_wanted else None)
        is_over = process.exitcode == 0
        assert is_over or process.exitcode == -signal.SIGKILL, output.read_text("utf-8")
        kills += not is_over
        if is_over:  # before it was to be killed, or at last
            assert state(crashed_corpus) == unbroken.states[stage]
            unbroken.before(stage, crashed_corpus)
            seconds = min(seconds, time.monotonic() - began)


def test_kills_while_a_language_model_writes(
    unbroken: Unbroken, crashed_corpus: Path, output: Path, tmp_path: Path
) -> None:
    """The corpus is as if nobody had killed the stage, and nothing is paid for twice but what was in flight."""
    recipe = yaml.safe_load(unbroken.recipe.read_text("utf-8"))
    with llm_process(tmp_path / "log.jsonl", delay=0.005) as server:
        written = {"name": "written", "format": "question_answer", "task": "retrieval", "category": "llm_generated"}
        written["synthesize"] = {
            "server": {"url": server.url, "model": "m", "concurrency": 1},  # so that answers come in the same order
            "passages": {"sample": 40},
            "budget": {"requests": 1000, "tokens": 1e9},
        }
        recipe["sources"].append(written)
        (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe, allow_unicode=True), "utf-8")
        found, seconds = [], 0.0
        for corpus, kills in ((tmp_path / "whole", 0), (crashed_corpus, 2)):
            unbroken.before("score", corpus)
            command = ["synthesize", str(corpus), f"--recipe={tmp_path / 'recipe.yaml'}", "--workers=1"]
            before, random = len(server.requests), Random(f"{SEED} synthesize")
            for _ in range(kills):
                with forks.started(command, output) as process:
                    process.join(random.uniform(0, seconds))
            began = time.monotonic()
            assert forks.run(command, output) == 0, output.read_text("utf-8")
            seconds = time.monotonic() - began
            assert 40 <= len(server.requests) - before <= 40 + kills
            found.append(state(corpus))
    assert found[0] == found[1] and found[0]["synthesize/answers/part-00000.parquet"][1]


@pytest.mark.parametrize("stage", STAGES)
def test_death_at_every_point(unbroken: Unbroken, crashed_corpus: Path, output: Path, points: Path, stage: str) -> None:
    unbroken.before(stage, crashed_corpus)
    again, deaths = unbroken.command(stage, crashed_corpus), 0
    while forks.run(again, output, faults("death", crashed_corpus, points)) == 9:
        deaths += 1
    assert deaths == len(lines(points)), output.read_text("utf-8")
    assert state(crashed_corpus) == unbroken.states[stage]
    found = unbroken.folder / "before" / stage
    made = {name for name in unbroken.states[stage]["files"] if Path(name).suffix and not (found / name).exists()}
    for when in ("before", "after"):
        replaced = {point.rpartition(" ")[2] for point in lines(points) if point.startswith(f"{when} replace ")}
        replaced -= {name for name in replaced if "/." in name}  # work folders
        assert replaced == {kind_of(name) for name in made} | {"catalog.duckdb"}


def test_death_of_workers(unbroken: Unbroken, crashed_corpus: Path, output: Path, points: Path) -> None:
    """One with each shard of a run; the engine starts others, and nothing is left of the dead ones."""
    wanted = [
        "before replace filter/rejected/part-00000.parquet",
        "after replace filter/rejected/part-00001.parquet",
        "after replace filter/part-00002.parquet",
    ]
    unbroken.before("filter", crashed_corpus)
    again = unbroken.command("filter", crashed_corpus, workers=2)
    assert forks.run(again, output, faults("death", crashed_corpus, points, each=True, wanted=wanted)) == 0, (
        output.read_text("utf-8")
    )
    assert sorted(lines(points)) == sorted(wanted)
    assert state(crashed_corpus) == unbroken.states["filter"]


@pytest.mark.parametrize("stage", CHANGES)
def test_back_to_the_recipe_of_before(
    unbroken: Unbroken, crashed_corpus: Path, output: Path, points: Path, stage: str
) -> None:
    """No shard of one recipe is taken as complete together with the rejects of another."""
    before, changed = unbroken.command(stage, crashed_corpus), unbroken.command(stage, crashed_corpus, CHANGES[stage])
    unbroken.before(stage, crashed_corpus)
    assert forks.run(before, output) == 0, output.read_text("utf-8")
    shutil.copytree(crashed_corpus, crashed_corpus.with_name("whole"))
    assert forks.run(changed, output, faults("death", crashed_corpus, points, wanted=[])) == 0, output.read_text(
        "utf-8"
    )
    wanted = [point for point in lines(points) if point.startswith("after ")]  # before it, names are as after the last
    points.unlink()
    end = state(crashed_corpus)
    assert end["catalog.duckdb"] != unbroken.states[stage]["catalog.duckdb"] or stage == "ingest"
    shutil.rmtree(crashed_corpus)
    crashed_corpus.with_name("whole").rename(crashed_corpus)
    while forks.run(changed, output, faults("death", crashed_corpus, points, wanted=wanted)) == 9:
        assert forks.run(before, output) == 0, output.read_text("utf-8")
        assert state(crashed_corpus) == unbroken.states[stage]
    assert state(crashed_corpus) == end
    assert len(lines(points)) == len(wanted)


def test_death_while_the_last_shard_is_taken_away(
    unbroken: Unbroken, crashed_corpus: Path, output: Path, points: Path
) -> None:
    shutil.copytree(unbroken.folder / "before" / "filter", crashed_corpus)
    without = unbroken.command("ingest", crashed_corpus, "evaluation=[]")
    wanted = ["after unlink evaluation/part-00000.parquet"]
    assert forks.run(without, output, faults("death", crashed_corpus, points, each=True, wanted=wanted)) == 9
    assert forks.run(without, output) == 0, output.read_text("utf-8")
    assert [file for file in (crashed_corpus / "evaluation").rglob("*") if file.is_file()] == []


@pytest.mark.parametrize("stage", FILLED)
def test_a_disk_full_from_any_point_on(
    unbroken: Unbroken, crashed_corpus: Path, output: Path, points: Path, stage: str
) -> None:
    unbroken.before(stage, crashed_corpus)
    again, disk = unbroken.command(stage, crashed_corpus), faults("full", crashed_corpus, points)
    filling = forks.start(fill_disk_until_done, again, crashed_corpus, points, output, output=output, environment=disk)
    assert forks.exit_codes([filling]) == [0], output.read_text("utf-8")
    assert {"create", "write", "before"} <= {point.partition(" ")[0] for point in lines(points)}
    assert state(crashed_corpus) == unbroken.states[stage]


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A small disk; `give_room` makes it larger."""
    place = tmp_path / "disk"
    place.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(place)]
    tried = subprocess.run(mount, capture_output=True, text=True, check=False)
    if tried.returncode:
        pytest.skip(f"can't mount a tmpfs ({tried.stderr.strip()}); under `unshare -rm` everyone can")
    yield place
    subprocess.run(["umount", "--lazy", str(place)], check=True)


def give_room(disk: Path, room: int) -> None:
    size = shutil.disk_usage(disk).used + room
    subprocess.run(["mount", "-o", f"remount,size={size}", str(disk)], check=True)


def test_a_small_disk(unbroken: Unbroken, disk: Path, output: Path) -> None:
    corpus, failures = disk / "corpus", dict.fromkeys(STAGES, 0)
    for stage in STAGES:
        room = 16 << 10
        give_room(disk, room)
        while code := forks.run(unbroken.command(stage, corpus), output):
            check_full_disk(code, output.read_text("utf-8"), corpus)
            failures[stage] += 1
            room *= 4
            give_room(disk, room)
        assert state(corpus) == unbroken.states[stage]
    assert all(failures.values()), failures
