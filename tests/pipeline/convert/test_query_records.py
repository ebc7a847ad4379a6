"""Retrieval records of a source that is larger than what is in memory together, against a dictionary of queries."""

from pathlib import Path
from random import Random

import pytest
from conan_embedding.pipeline.convert import query_records
from conan_embedding.pipeline.convert.stage import convert
from conan_embedding.pipeline.corpus import shard_writer
from conan_embedding.pipeline.engine.calls import Engine
from conan_embedding.schemas.recipe import Recipe

ONE = Engine(workers=1)


@pytest.mark.parametrize(("part_bytes", "most", "least"), [(1 << 20, 500, 1), (2_000, 500, 16), (2_000, 7, 7)])
def test_the_parts_in_memory_change_nothing(
    tmp_path: Path, pair, write_shards, read, monkeypatch: pytest.MonkeyPatch, part_bytes: int, most: int, least: int
) -> None:
    dice = Random(3)
    rows = [
        pair(
            f"问{dice.randrange(200)}", f"答{number}", "exam", "retrieval", negatives=[f"错{number % 9}", f"答{number}"]
        )
        for number in range(400)
    ]
    monkeypatch.setattr(shard_writer, "ROW_GROUP", 50)
    write_shards(tmp_path, "score", [], rows[:130], [pair("问1", "答", "other", "retrieval")], rows[130:])
    sizes = []
    group = query_records.group_by_query

    def note_size(frame):
        sizes.append(frame.height)
        return group(frame)

    monkeypatch.setattr(query_records, "PART_BYTES", part_bytes)
    monkeypatch.setattr(query_records, "MOST_PARTS", most)
    monkeypatch.setattr(query_records, "group_by_query", note_size)
    summary = convert(tmp_path, Recipe(), ONE)
    assert (summary.rows_in, summary.rows_out) == (401, 401)
    assert sum(sizes) == 401 and max(sizes) < 400 * 2.5 / least
    assert len(sizes) > least
    assert sorted(file.name for file in (tmp_path / "convert" / "retrieval").iterdir()) == [
        "part-00000.parquet",
        "part-00001.parquet",
        "rejected",
    ]
    expected: dict[str, list] = {}
    for row in rows:
        expected.setdefault(row["query"], []).append(row)
    found = [record for record in read(tmp_path, "convert/retrieval").to_dicts() if record["source"] == "exam"]
    assert [record["query"] for record in found] == list(expected)
    for record, own in zip(found, expected.values(), strict=True):
        assert record["positives"] == [row["positive"] for row in own]
        assert record["pair_ids"] == [row["pair_id"] for row in own]
        assert record["cluster_ids"] == [row["cluster_id"] for row in own]
        assert record["negatives"] == list(dict.fromkeys(row["negatives"][0] for row in own))
