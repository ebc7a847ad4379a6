"""The corpus folder: a shard is whole or not there, says what it is, and one command works on it at a time."""

import hashlib
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from conan_embedding.pipeline.corpus.folder import CorpusError, ShardWriter
from conan_embedding.pipeline.corpus.folder import folder as folders
from conan_embedding.schemas.pairs import NAME
from conan_embedding.schemas.recipe import Recipe, RecipeError

SCHEMA = pa.schema([pa.field("text", pa.string(), nullable=False), pa.field("source", NAME, nullable=False)])
REJECTED = pa.schema([*SCHEMA, pa.field("reason", pa.string()), pa.field("detail", pa.string())])


def rows(first: int, last: int) -> pa.Table:
    numbers = range(first, last)
    texts = [hashlib.md5(str(number).encode()).hexdigest() * (1 + number % 50) for number in numbers]
    return pa.table({"text": texts, "source": [f"source {number // 1000}" for number in numbers]})


def refused(first: int, last: int, reason: str = "too_short") -> pa.Table:
    table = rows(first, last)
    for name in ("reason", "detail"):
        table = table.append_column(name, [[reason] * table.num_rows])
    return table


def writer(path: Path, fingerprint: str = "f") -> ShardWriter:
    return ShardWriter(path, SCHEMA, REJECTED, stage="filter", version=3, fingerprint=fingerprint)


def files(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


def test_a_shard_and_its_rejects(tmp_path: Path) -> None:
    shard = tmp_path / "filter" / "part-00000.parquet"
    with writer(shard) as out:
        out.received(130)
        out.keep(rows(0, 100))
        out.reject(refused(100, 120))
        out.reject(refused(120, 130, "mojibake"))
        out.notes["masked"] = {"mobile": 1}
    assert files(tmp_path) == {"filter/part-00000.parquet", "filter/rejected/part-00000.parquet"}
    footer = folders.read_footer(shard)
    assert (footer.stage, footer.version, footer.fingerprint) == ("filter", 3, "f")
    assert (footer.rows_in, footer.rows_out, footer.rejected) == (130, 100, {"mojibake": 10, "too_short": 20})
    assert footer.notes == {"masked": {"mobile": 1}}
    assert len(footer.content) == 32
    assert pq.read_table(shard).schema.equals(SCHEMA)
    assert pq.read_table(shard)["text"].equals(rows(0, 100)["text"])
    assert pq.read_table(folders.rejects(shard))["reason"].to_pylist() == ["too_short"] * 20 + ["mojibake"] * 10


def test_an_empty_shard_is_a_shard(tmp_path: Path) -> None:
    with writer(tmp_path / "part-00000.parquet"):
        pass
    assert pq.read_table(tmp_path / "part-00000.parquet").schema.equals(SCHEMA)
    assert folders.read_footer(tmp_path / "part-00000.parquet").rows_in == 0


def test_an_exception_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="midway"), writer(tmp_path / "part-00000.parquet") as out:
        out.received(70_000)
        out.keep(rows(0, 70_000))
        raise RuntimeError("midway")
    assert files(tmp_path) == set()


def test_an_exception_leaves_the_shard_of_before(tmp_path: Path) -> None:
    for fingerprint in ("old", "new"):
        try:
            with writer(tmp_path / "part-00000.parquet", fingerprint) as out:
                out.received(1)
                out.keep(rows(0, 1))
                if fingerprint == "new":
                    raise KeyboardInterrupt
        except KeyboardInterrupt:
            pass
    assert folders.read_footer(tmp_path / "part-00000.parquet").fingerprint == "old"


@pytest.mark.parametrize(("received", "kept", "rejected"), [(10, 9, 0), (10, 8, 1), (10, 10, 1), (0, 1, 0)])
def test_rows_in_are_rows_out_and_rejected(tmp_path: Path, received: int, kept: int, rejected: int) -> None:
    with pytest.raises(ValueError, match="was not committed"), writer(tmp_path / "part-00000.parquet") as out:
        out.received(received)
        out.keep(rows(0, kept))
        out.reject(refused(0, rejected))
    assert files(tmp_path) == set()


def test_rows_out_may_stand_for_another_number(tmp_path: Path) -> None:
    with writer(tmp_path / "part-00000.parquet") as out:
        out.received(30)
        out.keep(rows(0, 10), rows=30)
    assert folders.read_footer(tmp_path / "part-00000.parquet").rows_out == 30


def test_the_rejects_are_committed_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """So a process that dies between the two leaves no shard without its rejects."""
    commit = folders.commit
    order: list[Path] = []

    def fail_at_second(temporary: Path, path: Path) -> None:
        order.append(path)
        if len(order) == 2:
            raise OSError("no space left")
        commit(temporary, path)

    monkeypatch.setattr(folders, "commit", fail_at_second)
    shard = tmp_path / "part-00000.parquet"
    with pytest.raises(OSError, match="no space left"), writer(shard) as out:
        out.received(1)
        out.reject(refused(0, 1))
    assert order == [folders.rejects(shard), shard]
    assert files(tmp_path) == {"rejected/part-00000.parquet"}


def batches(size: int, total: int) -> Iterator[pa.Table]:
    for first in range(0, total, size):
        yield rows(first, min(total, first + size))


def test_the_content_depends_on_the_rows_alone(tmp_path: Path) -> None:
    total = 70_000
    everything = rows(0, total)
    contents = {}
    for size in (total, 30_000, 65_536, 997):
        shard = tmp_path / str(size) / "part-00000.parquet"
        with writer(shard, fingerprint=str(size)) as out:
            out.received(total)
            for batch in batches(size, total):
                out.keep(batch)
        assert pq.read_table(shard)["text"].equals(everything["text"])
        contents[size] = folders.read_footer(shard).content
    assert len(set(contents.values())) == 1

    with writer(tmp_path / "other.parquet") as out:
        out.received(total)
        out.keep(rows(1, total + 1))
    assert folders.read_footer(tmp_path / "other.parquet").content not in contents.values()


def test_a_row_group_is_full_by_its_bytes_however_rows_arrive(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(folders, "GROUP_BYTES", 10_000)
    table = rows(0, 300)
    table = table.append_column("texts", pa.array([["一", "二三"] * (row % 7) for row in range(300)]))
    schema = SCHEMA.append(pa.field("texts", pa.list_(pa.string()), nullable=False))
    sizes = [len(row["text"].encode()) + sum(len(text.encode()) for text in row["texts"]) for row in table.to_pylist()]
    expected, filled = [0], 0
    for size in sizes:
        expected[-1] += 1
        filled += size
        if filled >= 10_000:
            expected.append(0)
            filled = 0
    expected = [count for count in expected if count]
    for step in (300, 7, 1):
        shard = tmp_path / f"{step}.parquet"
        with ShardWriter(shard, schema, schema, stage="filter", version=1, fingerprint="f") as out:
            out.received(300)
            for first in range(0, 300, step):
                out.keep(table.slice(first, step))
        metadata = pq.read_metadata(shard)
        assert [metadata.row_group(group).num_rows for group in range(metadata.num_row_groups)] == expected
        assert folders.read_footer(shard).content == folders.read_footer(tmp_path / "300.parquet").content


def test_row_groups_are_full_and_no_longer_than_64k(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(folders, "GROUP_BYTES", 1 << 40)
    shard = tmp_path / "part-00000.parquet"
    with writer(shard) as out:
        out.received(150_000)
        for batch in batches(10_000, 150_000):
            out.keep(batch)
    metadata = pq.read_metadata(shard)
    assert [metadata.row_group(group).num_rows for group in range(metadata.num_row_groups)] == [65_536, 65_536, 18_928]
    assert [table.num_rows for table in folders.read_batches(shard)] == [65_536, 65_536, 18_928]
    (names,) = {tuple(table.column_names) for table in folders.read_batches(shard, ["text"])}
    assert names == ("text",)


@pytest.mark.parametrize("data", [b"", b"garbage", b"PAR1garbagePAR1"])
def test_garbage_is_no_shard(tmp_path: Path, data: bytes) -> None:
    path = tmp_path / "part-00000.parquet"
    path.write_bytes(data)
    with pytest.raises(CorpusError, match=r"part-00000\.parquet: not a shard"):
        folders.read_footer(path)


def test_parquet_of_others_is_no_shard(tmp_path: Path) -> None:
    pq.write_table(rows(0, 3), tmp_path / "a.parquet")
    with pytest.raises(CorpusError, match="not a shard"):
        folders.read_footer(tmp_path / "a.parquet")
    with pytest.raises(CorpusError, match="not a shard"):
        folders.read_footer(tmp_path / "nowhere.parquet")


def test_a_stage_begins_goes_on_and_ends(tmp_path: Path) -> None:
    with pytest.raises(CorpusError, match="run `conan filter"):
        folders.shards(tmp_path, "filter")
    folders.begin(tmp_path, "filter")
    for number in (0, 1, 2):
        with writer(tmp_path / "filter" / f"part-{number:05d}.parquet"):
            pass
    (tmp_path / "filter/.part-00003.parquet.77.tmp").touch()
    (tmp_path / "filter/rejected/.part-00003.parquet.77.tmp").touch()
    with pytest.raises(CorpusError, match="`conan filter` was interrupted"):
        folders.shards(tmp_path, "filter")
    folders.begin(tmp_path, "filter")
    assert not [name for name in files(tmp_path) if name.endswith(".tmp")]
    assert len(folders.committed(tmp_path, "filter")) == 3
    folders.finish(tmp_path, "filter", {"part-00000.parquet", "part-00002.parquet"})
    assert [shard.name for shard in folders.shards(tmp_path, "filter")] == ["part-00000.parquet", "part-00002.parquet"]
    assert files(tmp_path / "filter/rejected") == {"part-00000.parquet", "part-00002.parquet"}


def test_copies_of_shards_are_none(tmp_path: Path) -> None:
    with writer(tmp_path / "filter" / "part-00000.parquet"):
        pass
    shutil.copy(tmp_path / "filter/part-00000.parquet", tmp_path / "filter/part-00000 (conflicted copy).parquet")
    assert [shard.name for shard in folders.shards(tmp_path, "filter")] == ["part-00000.parquet"]


@pytest.mark.parametrize("name", ["c[12]", "why?", "a*b"])
def test_a_path_that_is_a_pattern_is_refused(name: str, tmp_path: Path) -> None:
    for use in (folders.begin, folders.shards):
        with pytest.raises(CorpusError, match="a corpus can't lie below a folder with"):
            use(tmp_path / name / "corpus", "filter")
    assert not (tmp_path / name).exists()


def test_no_records_of_a_kind(tmp_path: Path) -> None:
    """convert was run, and running it again is no help."""
    (tmp_path / "convert/retrieval").mkdir(parents=True)
    with pytest.raises(CorpusError, match="no pair became such a record"):
        folders.shards(tmp_path, "convert/retrieval")


def test_fingerprints() -> None:
    known = folders.fingerprint("filter", 1, {"b": 2, "a": "文"})
    assert known == folders.fingerprint("filter", 1, {"a": "文", "b": 2})
    assert len(known) == 32
    others = [("filter", 2, {"a": "文", "b": 2}), ("filter", 1, {"a": "文", "b": 3}), ("filter", 1), ("filter1",)]
    assert len({known, *(folders.fingerprint(*other) for other in others)}) == 5
    assert folders.fingerprint(os.fsdecode(b"\xd6\xd0.json")) != folders.fingerprint("中.json")


def test_the_recipe_is_kept(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=r"no recipe\.yaml here"):
        folders.load_recipe(tmp_path)
    recipe = Recipe.model_validate({"dedup": {"on": "query"}, "corpus": "语料"})
    folders.save_recipe(tmp_path / "corpus", recipe)
    assert folders.load_recipe(tmp_path / "corpus") == recipe
    assert folders.load_recipe(tmp_path / "corpus", ["dedup.recall=0.5"]).dedup.recall == 0.5
    assert files(tmp_path) == {"corpus/recipe.yaml"}
