"""The corpus folder: which files are shards, and when a stage is complete."""

import os
import shutil
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from conan_embedding.pipeline.corpus import folder as folders
from conan_embedding.schemas.errors import CorpusError
from small_shards import files, rows, writer


@pytest.mark.parametrize("data", [b"", b"garbage", b"PAR1garbagePAR1"])
def test_garbage_is_no_shard(tmp_path: Path, data: bytes) -> None:
    path = tmp_path / "part-00000.parquet"
    path.write_bytes(data)
    with pytest.raises(CorpusError, match=r"part-00000\.parquet: not a Conan shard"):
        folders.read_footer(path)


def test_parquet_of_others_is_no_shard(tmp_path: Path) -> None:
    pq.write_table(rows(0, 3), tmp_path / "a.parquet")
    with pytest.raises(CorpusError, match="not a Conan shard"):
        folders.read_footer(tmp_path / "a.parquet")
    with pytest.raises(CorpusError, match="not a Conan shard"):
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
        with pytest.raises(CorpusError, match="the path of a corpus must not contain"):
            use(tmp_path / name / "corpus", "filter")
    assert not (tmp_path / name).exists()


def test_no_records_of_a_kind(tmp_path: Path) -> None:
    """convert has been run, so the message must not ask to run it again."""
    (tmp_path / "convert/retrieval").mkdir(parents=True)
    with pytest.raises(CorpusError, match=r"no records of this kind.* passages: \[pretrain, passages\]"):
        folders.shards(tmp_path, "convert/retrieval")


def test_fingerprints() -> None:
    known = folders.fingerprint("filter", 1, {"b": 2, "a": "文"})
    assert known == folders.fingerprint("filter", 1, {"a": "文", "b": 2})
    assert len(known) == 32
    others = [("filter", 2, {"a": "文", "b": 2}), ("filter", 1, {"a": "文", "b": 3}), ("filter", 1), ("filter1",)]
    assert len({known, *(folders.fingerprint(*other) for other in others)}) == 5
    assert folders.fingerprint(os.fsdecode(b"\xd6\xd0.json")) != folders.fingerprint("中.json")
