"""A shard is written atomically, and its footer describes it."""

from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from conan_embedding.pipeline.corpus import folder as folders
from conan_embedding.pipeline.corpus import shard_writer
from conan_embedding.pipeline.corpus.shard_writer import ShardWriter
from small_shards import SCHEMA, files, refused, rows, writer


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
    """A process that dies between the two commits must not leave a shard without its rejects."""
    commit = shard_writer.commit
    order: list[Path] = []

    def fail_at_second(temporary: Path, path: Path) -> None:
        order.append(path)
        if len(order) == 2:
            raise OSError("no space left")
        commit(temporary, path)

    monkeypatch.setattr(shard_writer, "commit", fail_at_second)
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
    monkeypatch.setattr(shard_writer, "GROUP_BYTES", 10_000)
    table = rows(0, 300)
    table = table.append_column("texts", pa.array([["一", None, "二三"] * (row % 7) for row in range(300)]))
    schema = SCHEMA.append(pa.field("texts", pa.list_(pa.string()), nullable=False))
    texts = [[row["text"], *row["texts"]] for row in table.to_pylist()]
    sizes = [sum(len(text.encode()) for text in each if text) for each in texts]
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
    monkeypatch.setattr(shard_writer, "GROUP_BYTES", 1 << 40)
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
