"""Pools refreshed with the current weights: against loops over queries, against `conan mine`, through checkpoints."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any
from zlib import crc32

import duckdb
import numpy as np
import pyarrow as pa
import pytest
import torch
from conan_embedding.pipeline.corpus.pools import read_candidates
from conan_embedding.pipeline.encoder.encoder import encode, load_encoder
from conan_embedding.pipeline.engine.calls import Engine
from conan_embedding.pipeline.mine.stage import mine
from conan_embedding.schemas.dhnm_settings import HardNegativeMining
from conan_embedding.schemas.errors import CorpusError
from conan_embedding.schemas.prompts import Prompts
from conan_embedding.schemas.settings import EncoderSettings, MineSettings, PromptSettings, SourcePrompts
from conan_embedding.schemas.training_settings import FinetuneSettings
from conan_embedding.trainer.data.batches import finetune_batch
from conan_embedding.trainer.data.training_tables import (
    FinetuneData,
    pools_file,
    provided_counts,
    read_finetune,
    write_finetune,
)
from conan_embedding.trainer.dhnm import refresh
from conan_embedding.trainer.dhnm.refresh import read_mined, remine, rerank, vectors_of, write_mined
from conan_embedding.trainer.dhnm.window_miner import WindowMiner
from conan_embedding.trainer.dhnm.windows import Windows, advance, start
from conan_embedding.trainer.job import Job
from conan_embedding.trainer.loss.cbb import Losses
from conan_embedding.trainer.model.embedding_model import load
from training_data import column

Shards = Callable[[Path, str], list[Path]]


def vectors(seed: int, texts: pa.Array, side: str = "passage", sources: pa.Array = None) -> np.ndarray:
    """Encode as a model with these weights would: any two texts are a little similar."""
    assert isinstance(texts, pa.Array)
    rows = [np.random.default_rng([seed, crc32(text.encode())]).normal(0.5, 1, 8) for text in texts.to_pylist()]
    found = np.array(rows, np.float32).reshape(-1, 8)
    return found / np.linalg.norm(found, axis=1, keepdims=True)


def job_of(corpus: Path, **changes: Any) -> Job:
    mining = HardNegativeMining(check_every=3, **changes)
    settings = FinetuneSettings(negatives=4, hard_negative_mining=mining)
    return Job(corpus=corpus, name="finetune", model="", settings=settings, shards={}, fingerprint="")


@pytest.fixture
def data(training_corpus: Path, shards: Shards) -> FinetuneData:
    return written(training_corpus, shards)


def written(corpus: Path, shards: Shards) -> FinetuneData:
    folder = job_of(corpus).data
    folder.mkdir(parents=True)
    write_finetune(folder, corpus, {"retrieval": shards(corpus, "retrieval")}, [])
    write_mined(folder, corpus)
    return read_finetune(folder)


def expected(data: FinetuneData, row: int, in_use: list[int], n: int, mined: MineSettings, seed: int) -> list[int]:
    """Find the hardest candidates of one query with plain loops."""
    passages = column(data.passages, "text")
    of = lambda text: vectors(seed, pa.array([text]))[0]  # noqa: E731
    query = of(column(data.queries, "query")[row])
    pool = column(data.queries, "pool")[row]
    positive = min(float(query @ of(text)) for text in column(data.queries, "positives")[row])
    ceiling = {
        "topk-abs": 0.7,
        "topk-marginpos": positive - 0.05,
        "topk-percpos": 0.95 * positive if positive > 0 else 1.05 * positive,
    }.get(mined.method, 2.0)
    scores = {passage: float(query @ of(passages[passage])) for passage in pool}
    ranked = sorted((passage for passage in pool if scores[passage] < ceiling), key=lambda each: -scores[each])
    ranked = ranked[3:] if mined.method == "topk-shifted" else ranked
    ranked = [passage for passage in ranked if passage not in in_use]
    return ranked[:n] if len(ranked) >= n else [-1] * n


MARGINS = {"topk": 1.0, "topk-shifted": 3, "topk-abs": 0.7, "topk-marginpos": 0.05, "topk-percpos": 0.95}


@pytest.mark.parametrize("method", list(MARGINS))
def test_reranked_candidates_are_the_hardest_that_are_allowed(
    data: FinetuneData, method: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(refresh, "TOGETHER", 7)
    mined = MineSettings(method=method, margin=MARGINS[method])  # type: ignore[arg-type]
    windows = start(data.pool_sizes, 4, provided_counts(data))
    windows = advance(windows, np.arange(40) % 3 == 0, data.pool_sizes, 4)
    rows = np.array([39, 0, 3, 36, 20, 11, 25, 12, 30, 35, 38, 17, 33, 18])
    pools = column(data.queries, "pool")
    in_use = [pools[row][windows.lo[row] : windows.hi[row]] for row in rows]
    found = rerank(data, windows, rows, 4, mined, partial(vectors, 1))
    wanted = [expected(data, row, used, 4, mined, 1) for row, used in zip(rows, in_use, strict=True)]
    assert found.tolist() == wanted
    assert 2 <= sum(each[0] >= 0 for each in wanted) < len(rows)

    picked = np.full((40, 4), -1)
    there = found[:, 0] >= 0
    picked[rows[there]] = found[there]
    whole = Windows(**vars(windows) | {"lo": np.zeros(40, np.int64), "hi": np.full(40, 4)})
    again = rerank(FinetuneData(**vars(data) | {"picked": picked}), whole, rows[there], 4, mined, partial(vectors, 2))
    wanted = [expected(data, row, used, 4, mined, 2) for row, used in zip(rows[there], found[there], strict=True)]
    assert again.tolist() == wanted  # from the whole pool again, except the current negatives


@pytest.mark.parametrize(
    "changes",
    [
        {"method": "topk-percpos", "margin": 1.0, "top_k": 12},
        {"method": "topk-shifted", "margin": 5, "top_k": 7},
        {"method": "topk", "top_k": 30},
    ],
)
def test_with_the_same_weights_remine_makes_the_pools_of_mine(
    training_corpus: Path, shards: Shards, tiny: Path, changes: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("conan_embedding.pipeline.mine.search.QUERIES", 15)
    monkeypatch.setattr("conan_embedding.pipeline.mine.search.PAIRS", 9)
    settings = MineSettings(
        model=str(tiny), passages=["retrieval", "pretrain"], queries=["retrieval"], max_length=32, **changes
    )
    mine(training_corpus, settings, Engine(workers=1))
    pools = read_candidates(training_corpus)["passage_ids"].to_list()
    data = written(training_corpus, shards)
    folder = job_of(training_corpus).data
    encoder = load_encoder(EncoderSettings(model=str(tiny), max_length=32))
    made = remine(folder, data, 7, read_mined(folder), lambda texts, *_: encode(encoder, texts))
    assert column(made.pools, "pool") == pools
    assert made.pool_sizes.tolist() == [len(pool) for pool in pools]
    assert len({len(pool) for pool in pools}) > 1 or changes["method"] != "topk-percpos"
    assert not (folder / "vectors").exists()


def test_ranks_share_the_search(
    training_corpus: Path, shards: Shards, tiny: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("conan_embedding.pipeline.mine.search.PASSAGES", 16)
    monkeypatch.setattr("conan_embedding.pipeline.mine.search_stored.PASSAGES", 16)
    monkeypatch.setattr("conan_embedding.pipeline.mine.search_stored.COMPARED", 16)
    settings = MineSettings(model=str(tiny), passages=["retrieval", "pretrain"], max_length=32, top_k=12)
    mine(training_corpus, settings, Engine(workers=1))
    data, folder = written(training_corpus, shards), job_of(training_corpus).data
    encoder = load_encoder(EncoderSettings(model=str(tiny), max_length=32))
    for side, texts in (("query", column(data.queries, "query")), ("passage", column(data.passages, "text"))):
        (folder / "vectors" / side).mkdir(parents=True)
        np.save(folder / "vectors" / side / "part-000000.npy", encode(encoder, texts))
    searched = []
    for rank in (2, 1, 0):
        monkeypatch.setattr(refresh, "world", lambda rank=rank: (rank, 3))
        pools = refresh._searched(folder, data, read_mined(folder))
        searched.append({file.name for file in (folder / "vectors").glob("keys-*")})
    assert searched[0] < searched[1] < searched[2]
    assert len(searched[2]) == -(-len(data.passages) // 16) >= 3
    found = [pool for batch in pools for pool in batch["pool"].to_pylist()]
    assert found == read_candidates(training_corpus)["passage_ids"].to_list()


def test_rerank_and_remine_encode_each_text_after_the_prompt_of_its_source(
    training_corpus: Path, shards: Shards, tiny: Path
) -> None:
    own = {"big": SourcePrompts(query="丈", passage="三"), "b": SourcePrompts(query="上", passage="")}
    settings = MineSettings(
        model=str(tiny), passages=["retrieval", "pretrain"], max_length=32, method="topk", prompts={"passage": "下"}
    )
    mine(training_corpus, settings, Engine(workers=1), own)
    pools = read_candidates(training_corpus)["passage_ids"].to_list()
    data = written(training_corpus, shards)
    assert {*column(data.passages, "source")} == {"a", "b", "big"}
    folder, (model, tokenizer) = job_of(training_corpus).data, load(tiny, None, None, 32, settings.prompts, own)
    encode = partial(vectors_of, model, tokenizer)
    assert column(remine(folder, data, 7, read_mined(folder), encode).pools, "pool") == pools

    windows = start(data.pool_sizes, 4, provided_counts(data))
    found = rerank(data, windows, np.arange(40), 4, read_mined(folder), encode)  # type: ignore[arg-type]
    in_use = zip(windows.lo, windows.hi, strict=True)
    expected = [pool[:lo] + pool[hi:] for pool, (lo, hi) in zip(pools, in_use, strict=True)]
    assert found.tolist() == [pool[:4] for pool in expected]


def test_vectors_of_a_model_in_training_are_those_of_inference(tiny: Path) -> None:
    model, tokenizer = load(tiny, 24, None, 32, PromptSettings(query="丈", passage="三"))
    texts = pa.array(["一丁七万", "丈三上", "一丁七万"], pa.large_string())
    batch = tokenizer([f"三{text}" for text in texts.to_pylist()], padding=True, return_tensors="pt")
    wanted = torch.nn.functional.normalize(model.eval()(batch["input_ids"], batch["attention_mask"]), dim=1)
    model.train()
    assert np.allclose(vectors_of(model, tokenizer, texts, "passage", pa.nulls(3)), wanted.detach().numpy(), atol=1e-5)
    assert model.training


ROWS = np.array([2, 20, 30, 39])  # pools of 2, 20, 30 and 39; rows 20 and 30 start with provided negatives
SCRIPT = [(0.9, 0.6, 0.6, 0.5), (0.5, 0.4, 0.5, 0.5), (0.5, 0.5, 0.55, 0.1)]


def make_miner(corpus: Path, data: FinetuneData, **changes: Any) -> WindowMiner:
    return WindowMiner(job_of(corpus, **changes), job_of(corpus, **changes).settings, data, lambda step: ROWS)  # type: ignore[arg-type]


def replay(mining: WindowMiner, steps: range) -> list[tuple[Any, ...]]:
    """Run steps of a model that changes with each, writing as a run does; return what each found and the next batch."""
    seen: list[tuple[Any, ...]] = []
    for step in steps:
        scores = torch.tensor([[mean] * 4 for mean in SCRIPT[(step - 1) % 3]])
        nothing = torch.zeros(())
        losses = Losses(nothing, {}, torch.zeros(4), scores)
        found = mining.observe(step, losses, partial(vectors, step))
        if found:
            mining.write(step, whole=False)
        nobody = np.zeros(0, np.int64)
        update = finetune_batch(mining.data, mining.current, ROWS, nobody, 4, np.zeros(4, np.int64), Prompts())
        seen.append((step, found, update.texts))
    mining.write(steps[-1])
    return seen


def table(corpus: Path, name: str) -> list[tuple[Any, ...]]:
    with duckdb.connect(str(corpus / "pools.duckdb"), read_only=True) as connection:
        return connection.execute(f"FROM {name} ORDER BY ALL").fetchall()


def test_reranked_windows_are_the_next_negatives(data: FinetuneData, training_corpus: Path) -> None:
    mining = make_miner(training_corpus, data, refresh="rerank")
    assert mining.data.picked is None
    passages = column(data.passages, "text")
    before = replay(mining, range(1, 3))[-1][2]
    ((_, found, texts),) = replay(mining, range(3, 4))
    # The pool of row 2 is too short, and the score of row 30 has not fallen far enough.
    assert found == {"visited": 4, "eligible": 4, "flagged": 3, "replaced": 2, "exhausted": 1}
    assert mining.current.round[ROWS].tolist() == [0, 1, 0, 1]
    mined = MineSettings(method="topk", margin=1.0)
    of_39 = column(data.queries, "pool")[39][:4]
    for row, in_use in ((20, []), (39, of_39)):  # row 20 had provided negatives
        wanted = expected(data, row, in_use, 4, mined, 3)
        assert mining.data.picked is not None and mining.data.picked[row].tolist() == wanted
        assert {passages[each] for each in wanted} <= {*texts}
    assert {passages[each] for each in of_39} <= {*before}
    assert not {passages[each] for each in of_39} & {*texts}
    assert [row[:3] + row[5:7] for row in table(training_corpus, "replacements")] == [
        (3, 20, 1, 0, 4),
        (3, 39, 1, 0, 4),
    ]


def test_a_used_up_pool_is_not_scored_again(data: FinetuneData, training_corpus: Path) -> None:
    mining = make_miner(training_corpus, data, refresh="rerank")
    replay(mining, range(1, 4))
    assert mining.current.exhausted[2]
    asked: list[str] = []
    nothing = torch.zeros(())

    def encode(texts: pa.Array, side: str, sources: pa.Array) -> np.ndarray:
        asked.extend(texts.to_pylist())
        return vectors(6, texts, side)

    for step in (4, 5, 6):
        scores = torch.tensor([[mean] * 4 for mean in SCRIPT[step - 4]])
        found = mining.observe(step, Losses(nothing, {}, torch.zeros(4), scores), encode)
    assert found == {"visited": 4, "eligible": 4, "flagged": 3, "replaced": 2, "exhausted": 1}
    queries = column(data.queries, "query")
    assert [row for row in range(40) if queries[row] in asked] == [20, 39]


@pytest.mark.parametrize(
    "changes", [{"refresh": "static"}, {"refresh": "rerank"}, {"refresh": "remine", "remine_every": 4}]
)
@pytest.mark.parametrize("at", [2, 5, 9])
def test_a_run_goes_on_from_its_checkpoint(
    data: FinetuneData, training_corpus: Path, tmp_path: Path, changes: dict[str, Any], at: int
) -> None:
    whole = replay(make_miner(training_corpus, data, **changes), range(1, 15))
    replacements, windows = table(training_corpus, "replacements"), table(training_corpus, "windows")
    assert len(replacements) > 2

    killed = make_miner(training_corpus, data, **changes)
    killed.write(0)
    replay(killed, range(1, at + 1))
    np.savez(tmp_path / "windows.npz", **killed.state())
    replay(killed, range(at + 1, min(at + 6, 15)))
    resumed = make_miner(training_corpus, data, **changes)
    with np.load(tmp_path / "windows.npz") as arrays:
        resumed.restore(dict(arrays))
    resumed.write(at)
    assert replay(resumed, range(at + 1, 15)) == whole[at:]
    assert table(training_corpus, "replacements") == replacements
    assert table(training_corpus, "windows") == windows


def test_only_what_was_reranked_is_in_the_checkpoint(data: FinetuneData, training_corpus: Path) -> None:
    mining = make_miner(training_corpus, data, refresh="rerank")
    assert "picked" not in mining.state()
    replay(mining, range(1, 4))
    assert mining.state()["picked_rows"].tolist() == [20, 39]
    assert mining.state()["picked"].shape == (2, 4)


def test_remined_pools_start_anew(data: FinetuneData, training_corpus: Path) -> None:
    mining = make_miner(training_corpus, data, refresh="remine", remine_every=4)
    assert [step for step in range(1, 10) if mining.checks(step)] == [3, 4, 6, 8, 9]
    replay(mining, range(1, 4))
    assert mining.current.round[39] == 1
    ((_, found, texts),) = replay(mining, range(4, 5))
    assert found == {"visited": 4, "eligible": 2, "flagged": 0, "replaced": 0, "exhausted": 0, "remined": 40}
    assert not mining.current.round.any() and np.isnan(mining.current.last_score).all()
    assert table(training_corpus, "windows") == [] and len(table(training_corpus, "replacements")) == 2
    pool = column(mining.data.pools, "pool")[39]
    passages = vectors(4, pa.array(column(data.passages, "text")))
    query = vectors(4, pa.array(column(data.queries, "query")[39:]))[0]
    assert (
        pool == np.argsort(-passages @ query, kind="stable")[:100].tolist()
    )  # the corpus was mined with topk and has no positives
    assert {column(data.passages, "text")[each] for each in pool[:4]} <= {*texts}
    replay(mining, range(5, 7))
    assert mining.current.lo[39] == 10 and mining.current.hi[39] == 14  # from the new pool
    assert column(data.queries, "pool")[39][10:14] != pool[10:14]


def test_windows_of_earlier_pools_are_written_over(data: FinetuneData, training_corpus: Path) -> None:
    """Even if a query has the same number of visits as when its row was written."""
    mining = make_miner(training_corpus, data, refresh="remine", remine_every=4)
    replay(mining, range(1, 4))
    for step in range(4, 8):
        scores = torch.tensor([[mean] * 4 for mean in SCRIPT[(step - 1) % 3]])
        mining.observe(step, Losses(torch.zeros(()), {}, torch.zeros(4), scores), partial(vectors, step))
    columns = "(SELECT query_id, round, initial_score, last_score FROM windows)"
    mining.read_scores()
    assert mining.current.visits[30] == 3
    mining.write(7, whole=False)
    found = table(training_corpus, columns)
    mining.write(7)
    assert found == table(training_corpus, columns)


def test_pools_that_a_resume_needs_are_kept(data: FinetuneData, training_corpus: Path) -> None:
    mining = make_miner(training_corpus, data, refresh="remine", remine_every=1)
    folder = job_of(training_corpus).data

    def there() -> list[str]:
        return sorted(file.name for file in folder.glob("*pools-*"))

    replay(mining, range(1, 3))
    assert there() == ["pools-00000002.arrow"]
    state = mining.state()
    replay(mining, range(3, 6))
    assert there() == ["pools-00000002.arrow", "pools-00000005.arrow"]
    (folder / "pools-00000003.arrow").write_bytes(b"of a run that was killed")
    (folder / "vectors" / "queries").mkdir(parents=True)
    (folder / "vectors" / "queries" / "part-000000.npy").write_bytes(b"of a run that was killed")
    resumed = make_miner(training_corpus, data, refresh="remine", remine_every=1)
    resumed.restore(state)
    replay(resumed, range(3, 4))
    assert there() == ["pools-00000002.arrow", "pools-00000003.arrow"]
    assert len(resumed.data.pools) == 40
    pools_file(folder, 2).unlink()
    with pytest.raises(CorpusError, match="pools of the last checkpoint"):
        make_miner(training_corpus, data, refresh="remine").restore(state)


def test_after_the_last_step_nothing_is_remined(data: FinetuneData, training_corpus: Path) -> None:
    mining = make_miner(training_corpus, data, refresh="remine", remine_every=4)
    mining.steps = 8
    assert [step for step in range(1, 9) if mining.remines(step)] == [4]
    assert not make_miner(training_corpus, data, refresh="remine", remine_every=4, enabled=False).checks(4)
    assert not make_miner(training_corpus, data, refresh="static", remine_every=4).checks(4)
