"""The engine on a Ray cluster of two nodes: the same rows as on one machine, whichever process or node dies."""

import importlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from types import ModuleType
from typing import Any
from unittest.mock import patch

import numpy as np
import polars as pl
import pyarrow.parquet as pq
import pytest
from command_line import Conan
from conan_embedding.pipeline import plugins
from conan_embedding.pipeline.corpus import folder as folders
from conan_embedding.pipeline.corpus.synthesis import ANSWERS
from conan_embedding.pipeline.demo.generate import write_sample
from conan_embedding.pipeline.engine.calls import ATTEMPTS, Engine
from conan_embedding.pipeline.engine.stage import StageError, Task, run_calls, run_stage
from conan_embedding.pipeline.filter.rules import RULES
from conan_embedding.pipeline.llm_client import client
from conan_embedding.pipeline.llm_client.client import Asked, Budget, Request, ask
from conan_embedding.pipeline.mine.search import PASSAGES
from conan_embedding.pipeline.mine.search_stored import search_stored
from conan_embedding.pipeline.synthesize.stage import synthesize
from conan_embedding.schemas.outcomes import Summary
from conan_embedding.schemas.recipe import Recipe
from conan_embedding.schemas.server_settings import ServerSettings
from llm_server import LLMProcess, llm_process
from ray_nodes import Nodes, find_children
from reader_plugin import PAIRS, python_path, read_corpus, write_plugin, write_plugin_recipe
from rule_plugin import write_rule_plugin, write_rule_recipe
from searched_vectors import drawn_rules, store, unit

ray = pytest.importorskip("ray", reason="the engine ray needs the extra [ray]")
from conan_embedding.pipeline.engine.ray import ClusterError  # noqa: E402

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("ray")]  # one worker starts the one cluster

HERE = Path(__file__).parent
RECIPE = HERE.parents[2] / "recipes" / "demo.yaml"
STAGES = ("ingest", "filter", "dedup")


@pytest.fixture
def stages(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(HERE)
    return importlib.import_module("engine_tasks")


def tasks(*firsts: int, more: Sequence[Any] = ()) -> list[Task]:
    return [Task((first, first + 10, *more), folders.fingerprint(first)) for first in firsts]


def run(corpus: Path, function: Callable[..., None], todo: Sequence[Task], engine: Engine) -> Summary:
    return run_stage(corpus, "filter", function, todo, engine)


def found(corpus: Path) -> dict[str, list[int]]:
    """Return the numbers in each shard, by its name."""
    return {
        shard.name[5:10]: pq.read_table(shard)["number"].to_pylist() for shard in folders.committed(corpus, "filter")
    }


def rows(corpus: Path) -> dict[str, list[dict[str, Any]]]:
    """Return all rows and columns of every shard and its rejects."""
    return {str(file.relative_to(corpus)): pq.read_table(file).to_pylist() for file in corpus.rglob("*.parquet")}


def until(happened: Callable[[], bool]) -> bool:
    end = time.monotonic() + 60
    while not happened() and time.monotonic() < end:
        time.sleep(0.02)
    return happened()


def test_the_same_rows_as_on_one_machine(
    nodes: Nodes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, conan: Conan
) -> None:
    monkeypatch.chdir(tmp_path)  # the paths below are relative to it, on the nodes as well
    write_sample(Path("sources"), rows=300)
    overrides = ("--set", "variables.root=sources", "--json")
    for corpus, engine in (("here", ["--workers", 1]), ("there", ["--engine", "ray", "--address", nodes.address])):
        for stage in STAGES:
            recipe = ["--recipe", RECIPE] if stage == "ingest" else []
            code, out, err = conan(stage, corpus, *recipe, *overrides, *engine)
            warnings = [line for line in err.splitlines() if " so far" not in line]  # progress, on a slow machine
            assert (code, warnings, out.count("\n")) == (0, [], 1)
    here, there = rows(Path("here")), rows(Path("there"))
    assert here == there
    assert {name.partition("/")[0] for name in here} >= set(STAGES)
    assert sum(map(len, here.values())) > 1000


def run_driver(nodes: Nodes, folder: Path, *command: object) -> int:
    """Run a command on the cluster from a process that can import the plugins; gives the process's number."""
    program = [sys.executable, "-c", "from conan_embedding.cli import main; main()", *map(str, command)]
    on_ray = ["--engine", "ray", "--address", nodes.address]
    with subprocess.Popen([*program, *on_ray], cwd=folder, env=python_path(nodes.plugins)) as driver:
        assert driver.wait() == 0
    return driver.pid


def test_nodes_read_with_a_plugins_reader(nodes: Nodes, tmp_path: Path) -> None:
    write_plugin(nodes.plugins)
    driver = run_driver(nodes, tmp_path, "ingest", "corpus", "--recipe", write_plugin_recipe(tmp_path))
    pairs, _, processes = read_corpus(tmp_path / "corpus")
    assert pairs == PAIRS
    assert driver not in processes


def test_nodes_filter_by_a_plugins_rule(
    nodes: Nodes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, conan: Conan
) -> None:
    imported = write_rule_plugin(nodes.plugins)
    recipe = write_rule_recipe(tmp_path)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(nodes.plugins)
    monkeypatch.setattr(plugins, "_loaded", {})
    with patch.dict(RULES):  # forgets the plugin's rule
        for stage in (["ingest", "corpus", "--recipe", recipe], ["filter", "corpus"]):
            code, _, err = conan(*stage, "--engine", "ray", "--address", nodes.address)
            assert code == 0, err
    assert {int(process.name) for process in imported.iterdir()} > {os.getpid()}  # and processes of the nodes
    shards = folders.shards(tmp_path / "corpus", "filter")
    kept, rejected = (pl.concat(map(pl.read_parquet, files)) for files in (shards, map(folders.rejects, shards)))
    assert kept["positive"].str.head(4).to_list() == ["one春", "two春"]
    assert rejected.select(pl.col("positive").str.head(4), "reason").rows() == [
        (f"{source}秋", "red_leaves") for source in ("one", "two")
    ]


def test_a_node_that_is_killed_midway_loses_nothing(nodes: Nodes, tmp_path: Path, stages: ModuleType) -> None:
    node = nodes.add(num_cpus=1)
    started = tmp_path / "started"
    started.mkdir()
    run(tmp_path / "warm", stages.numbers, tasks(0), Engine(address=nodes.address))  # connect in this thread
    todo = tasks(*range(0, 60, 10), more=[started])
    with ThreadPoolExecutor() as threads:
        broken = threads.submit(run, tmp_path, stages.wait_for_go, todo, Engine(address=nodes.address))
        try:
            assert until(lambda: len(list(started.iterdir())) == 3)  # one task on each node
            raylets = dict(path.name.split("-")[1:] for path in started.iterdir())
            (raylet,) = node.all_processes["raylet"]
            nodes.kill(node)
            with suppress(ProcessLookupError):  # the workers die with their machine
                os.kill(int(raylets[str(raylet.process.pid)]), signal.SIGKILL)
        finally:
            (started / "go").touch()
        assert broken.result().rows_in == 60
    assert len(raylets) == 3
    assert len(list(started.glob("*-*"))) == 7  # one task was started twice
    run(tmp_path / "unbroken", stages.numbers, tasks(*range(0, 60, 10)), Engine(workers=1))
    assert found(tmp_path) == found(tmp_path / "unbroken")


@pytest.mark.parametrize(("one_a_device", "death"), [(False, "WorkerCrashedError"), (True, "ActorDiedError")])
def test_what_dies_is_tried_again_and_what_raises_is_reported(
    one_a_device: bool,
    death: str,
    nodes: Nodes,
    tmp_path: Path,
    stages: ModuleType,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    attempts = {name: tmp_path / name for name in ("once", "always")}
    for folder in attempts.values():
        folder.mkdir()
    todo = [
        Task(("numbers", 0, 10), "0"),
        Task(("die_first", 20, 30, attempts["once"]), "1"),
        Task(("die_always", 10, 20, attempts["always"]), "2"),
        Task(("fail", 10, 20), "3"),
        Task(("die_first", 40, 50, attempts["once"]), "4"),
    ]
    monkeypatch.setenv("CONAN_DEBUG", "1" if one_a_device else "")
    with pytest.raises(StageError) as raised:
        run(tmp_path, stages.named, todo, Engine(address=nodes.address, one_a_device=one_a_device))
    assert found(tmp_path) == {f"{k:05d}": list(range(10 * n, 10 * n + 10, 2)) for k, n in ((0, 0), (1, 2), (4, 4))}
    assert len(list(attempts["once"].iterdir())) == 4
    assert 1 < len(list(attempts["always"].iterdir())) <= ATTEMPTS  # a worker may die before its call begins
    errors = sorted(line for line in str(raised.value).splitlines() if line.startswith(str(tmp_path)))
    assert [error.partition("filter/")[2][:56] for error in errors] == [
        f"part-00002.parquet: its worker died 3 times ({death}: "[:56],
        "part-00003.parquet: ValueError: ten is too many",
    ]
    assert ("Traceback" in str(raised.value)) == one_a_device
    assert capfd.readouterr().out == ""  # Ray would print a lot, where JSON is expected


def test_one_process_a_node_runs_a_model(nodes: Nodes, tmp_path: Path, stages: ModuleType) -> None:
    engine = Engine(address=nodes.address, one_a_device=True)
    assert len(places(tmp_path, stages, engine)) == 2


def test_one_process_a_gpu_runs_a_model(
    nodes: Nodes, tmp_path: Path, stages: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("POLARS_MAX_THREADS", raising=False)
    node = nodes.add(num_cpus=6, num_gpus=2)
    try:
        seen = places(tmp_path, stages, Engine(address=nodes.address, one_a_device=True))
    finally:
        nodes.remove(node)
    assert len({raylet for raylet, *_ in seen}) == 1  # all on the node with GPUs
    assert sorted((gpu, threads) for _, _, gpu, threads in seen) == [("0", "3"), ("1", "3")]


def places(folder: Path, stages: ModuleType, engine: Engine) -> set[tuple[str, ...]]:
    """Run six tasks; return the parent, id, GPUs and threads of the processes that ran them."""
    seen = folder / "seen"
    seen.mkdir()
    run(folder, stages.look_around, tasks(*range(0, 60, 10), more=[seen]), engine)
    return {tuple(path.name.split("-")[1:]) for path in seen.iterdir()}


def test_no_more_at_a_time_than_workers(nodes: Nodes, tmp_path: Path, stages: ModuleType) -> None:
    started = tmp_path / "started"
    started.mkdir()
    calls = [(str(k), (started, k)) for k in range(3)]
    outcomes = run_calls(stages.note_process, calls, Engine(workers=1, address=nodes.address))
    assert next(outcomes) == ("0", None)
    assert len(list(started.iterdir())) <= 2  # the second starts only after the first has ended
    assert list(outcomes) == [("1", None), ("2", None)]


@pytest.fixture
def server(tmp_path: Path) -> Iterator[LLMProcess]:
    with llm_process(tmp_path / "log.jsonl", delay=0.05) as running:
        yield running


def ask_from(address: str | None, server: LLMProcess, cache: Path, number: int, most: float = 1e9) -> Asked:
    chats = [[{"role": "user", "content": f"<passage>\n第{each}号的内容\n</passage>"}] for each in range(number)]
    settings = ServerSettings(url=server.url, model="m", concurrency=4)
    requests = [Request({"model": "m", "messages": chat}) for chat in chats]
    return ask(requests, settings, Budget(1e9, most), cache, lambda *_: None, engine=Engine(address=address))


def test_requests_are_sent_by_nodes_and_give_the_same_rows(
    nodes: Nodes,
    server: LLMProcess,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    pair: Callable[..., dict[str, Any]],
    write_shards: Callable[..., None],
) -> None:
    asked = {"server": {"url": server.url, "model": "m"}, "budget": {"requests": 99, "tokens": 1e6}, "judge": {}}
    files = {"name": "web", "files": "a.jsonl", "read": "jsonl", "task": "retrieval"}
    written = {"name": "written", "category": "llm_generated", "format": "question_answer", "task": "retrieval"}
    recipe = Recipe.model_validate({"sources": [files, written | {"synthesize": asked}]})
    texts = [f"第{each}条规定从明年起施行，各地另有规定的除外。" for each in range(9)]
    pairs = [pair(f"题{each}", text, task="retrieval") for each, text in enumerate(texts)]
    for place in ("here", "there"):
        for folder in STAGES:
            write_shards(tmp_path / place, folder, pairs)
        with monkeypatch.context() as patches:
            if place == "there":
                patches.setattr(client.httpx2, "Client", None)  # this process can send none
            synthesize(tmp_path / place, recipe, Engine(address=nodes.address if place == "there" else None))
    here, there = rows(tmp_path / "here" / ANSWERS), rows(tmp_path / "there" / ANSWERS)
    assert here == there and sum(map(len, there.values())) == 9


def test_the_budget_holds_for_all_nodes(nodes: Nodes, server: LLMProcess, tmp_path: Path) -> None:
    few = ask_from(nodes.address, server, tmp_path / "cache", 20, most=7)
    assert (few.paid, few.answers.count(None), len(server.requests)) == (7, 13, 7)
    all_of_them = ask_from(nodes.address, server, tmp_path / "cache", 20)
    assert (all_of_them.paid, all_of_them.answers.count(None), len(server.requests)) == (13, 0, 20)


def test_a_node_that_dies_loses_at_most_what_it_was_sending(nodes: Nodes, server: LLMProcess, tmp_path: Path) -> None:
    ask_from(nodes.address, server, tmp_path / "warm", 1)  # connect in this thread
    with ThreadPoolExecutor() as threads:
        asked = threads.submit(ask_from, nodes.address, server, tmp_path / "cache", 60)
        assert until(lambda: len(server.requests) > 20)
        killed = find_actors(nodes, b"_SenderActor")[0]
        os.kill(killed, signal.SIGKILL)
        answers = asked.result().answers
    assert answers == ask_from(None, server, tmp_path / "alone", 60).answers
    assert 121 <= len(server.requests) <= 121 + 4


def find_actors(nodes: Nodes, name: bytes) -> list[int]:
    """List the processes of this cluster that are actors of a class."""
    started = [each for node in nodes.cluster.list_all_nodes() for each in node.all_processes["raylet"]]
    workers = [worker for raylet in started for worker in find_children(raylet.process.pid)]
    return [worker for worker in workers if name in Path(f"/proc/{worker}/cmdline").read_bytes()]


def test_blocks_are_searched_by_nodes_and_a_killed_one_is_searched_again(nodes: Nodes, tmp_path: Path) -> None:
    dice = np.random.default_rng(0)
    passages = 6 * PASSAGES + 1  # a single one has another kernel than many
    stored = store(tmp_path, "queries", unit(dice, 300, 24)), store(tmp_path, "passages", unit(dice, passages, 24))
    rules = drawn_rules(dice, 300, passages, 900, dice.uniform(0.3, 0.9, 300))
    killed: list[int] = []

    def kill_one(stage: str, done: int, total: int, rows: int) -> None:
        assert total == 7
        if done == 1:
            killed.append(find_actors(nodes, b"_Device")[0])
            os.kill(killed[0], signal.SIGKILL)

    engine = Engine(address=nodes.address, progress=kill_one)
    alone, there = (
        list(search_stored(tmp_path, *stored, rules, 20, each, "search", block=PASSAGES)) for each in (Engine(), engine)
    )
    assert len(killed) == 1
    assert [(best.ids.tobytes(), best.scores.tobytes()) for best in alone] == [
        (best.ids.tobytes(), best.scores.tobytes()) for best in there
    ]


def test_another_version_on_a_node_is_reported(
    nodes: Nodes, tmp_path: Path, stages: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("conan_embedding.pipeline.engine.ray.__version__", "0.0")
    with pytest.raises(StageError, match=r"has conan-embedding \S+, the driver 0\.0; install one version"):
        run(tmp_path, stages.numbers, tasks(0), Engine(address=nodes.address))
    assert found(tmp_path) == {}


@pytest.mark.parametrize("address", ["127.0.0.1:1", "ray://127.0.0.1:1", "nonsense", "localhost:99999"])
def test_a_cluster_that_is_not_there(address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ray.is_initialized", lambda: False)
    begun = time.monotonic()
    with pytest.raises(ClusterError, match=rf"^Ray cluster {address}: .*`ray start --head` starts one"):
        list(run_calls(print, [("one", ())], Engine(address=address)))
    assert time.monotonic() - begun < 10


def test_a_cluster_without_a_cpu(nodes: Nodes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ray.nodes", lambda: [{"NodeID": "head", "Alive": True, "Resources": {"memory": 1.0}}])
    for one_a_device in (False, True):
        with pytest.raises(ClusterError, match="no node has a CPU"):
            list(run_calls(print, [("one", ())], Engine(address=nodes.address, one_a_device=one_a_device)))


def test_ray_is_imported_for_a_cluster_only() -> None:
    script = (
        "import conan_embedding.workflow, conan_embedding.pipeline.engine.local, sys; sys.exit('ray' in sys.modules)"
    )
    assert os.spawnl(os.P_WAIT, sys.executable, sys.executable, "-c", script) == 0
