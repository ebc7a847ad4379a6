"""Mining holds texts, vectors and passages of an index in blocks, whose size changes no pool."""

import shutil
from pathlib import Path

import duckdb
import numpy as np
import pytest
from conan_embedding.pipeline.corpus.pools import FILE
from conan_embedding.pipeline.mine import search, texts
from conan_embedding.pipeline.mine.stage import mine
from conan_embedding.schemas.settings import SourcePrompts
from mined_pools import ONE, settings, vectors


@pytest.mark.parametrize("index", [None, "IVF1,Flat"])
def test_pools_are_the_same_for_any_block(
    index: str | None, tmp_path: Path, bge: Path, records, write_shards, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Texts are encoded block by block, and an index that finds everything is as good as several."""
    known = vectors(monkeypatch)
    named = [record | {"source": "bac"[number % 3]} for number, record in enumerate(records)]
    write_shards(tmp_path, "convert/retrieval", named[::2], named[1::2])
    monkeypatch.setattr(search, "APPROXIMATE_DEPTH", 1000)
    sources = {"b": SourcePrompts(query="问：")}
    mined = []
    for block in (1_000, *np.random.default_rng(7).integers(20, 190, 2).tolist()):
        mine(tmp_path, settings(bge, index=index, block=block), ONE, sources)
        tables = ("runs", "passages", "mined_queries", "mined_positives", "mined_candidates")
        with duckdb.connect(str(tmp_path / FILE), read_only=True) as pools:
            rows = [pools.sql(f"FROM {table}").fetchall() for table in tables]
        mined.append([[row[:-1] for row in rows[0]], *rows[1:]])  # but for the time
        (tmp_path / FILE).unlink()
        if len(mined) == 1:  # encode in blocks, then find what is stored in other blocks
            shutil.rmtree(tmp_path / "vectors")
            monkeypatch.setattr(texts, "BATCH", 7)  # a text and its clusters are in several batches
    assert all(each == mined[0] for each in mined)
    assert [row[0] for row in mined[0][1]] == list(range(len(mined[0][1])))
    assert [row[1] for row in mined[0][1]] == sorted(row[1] for row in mined[0][1])
    assert len(known) > len(mined[0][1])
