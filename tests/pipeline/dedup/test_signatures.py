"""A shard's signatures against match_key, datasketch and plain hashes of each text."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from conan_embedding.pipeline.corpus.folder import read_footer
from conan_embedding.pipeline.dedup import signatures as made_by
from conan_embedding.pipeline.dedup.lsh import NO_BUCKET, hash_bands
from conan_embedding.pipeline.dedup.minhash import shingle_hash, text_hashes
from conan_embedding.pipeline.dedup.signatures import SIDES, band_columns, plan_signing, read_column, sign_shard
from conan_embedding.pipeline.text.match_key import match_key
from datasketch import MinHash
from hypothesis import example, given
from hypothesis import strategies as st
from properties import max_examples

HAN = "".join(map(chr, range(0x4E00, 0x4E00 + 200)))
BANDS, ROWS = 21, 6


def datasketch_bands(texts: Sequence[str]) -> np.ndarray:
    """Compute the band hashes of datasketch's signatures of the texts' match keys, uint64 [n, BANDS]."""
    found = []
    for text in keyed(texts):
        width = 3 if len(text) < 50 else 5
        shingles = {text[i : i + width] for i in range(max(len(text) - width + 1, 1))} - {""}
        sketch = MinHash(num_perm=128, scheme="affine32", hashfunc=shingle_hash)
        sketch.update_batch([shingle.encode("utf-32-le") for shingle in shingles])
        found.append(sketch.hashvalues)
    return hash_bands(np.array(found, np.uint32).reshape(-1, 128), BANDS, ROWS)


def keyed(texts: Sequence[str]) -> list[str]:
    return pl.DataFrame({"text": texts}, schema={"text": pl.String}).select(match_key(pl.col("text")))["text"].to_list()


def bands_of(shard: Path, side: str) -> np.ndarray:
    return pl.read_parquet(shard).select(pl.col(f"^{side}_band_.*$")).to_numpy()


TEXT = st.text(st.characters(exclude_categories=["Cs"]) | st.sampled_from("的一是。，ａA"), max_size=70)


@max_examples(25)
@given(st.lists(st.tuples(TEXT, TEXT), max_size=8))
@example([("", "。"), (HAN[:49], HAN[:50]), ("，".join(HAN[:50]), HAN), ("ΟΔΟΣ！", "e\u0301" * 60)])
def test_bands_are_those_of_datasketch_and_hashes_those_of_the_keys(
    tmp_path: Path, pair, write_shards, texts: list[tuple[str, str]]
) -> None:
    write_shards(tmp_path, "filter", [pair(query, positive) for query, positive in texts])
    shard = tmp_path / "signed.parquet"
    sign_shard(tmp_path / "filter/part-00000.parquet", SIDES, BANDS, ROWS, "f", shard)
    for place, side in enumerate(SIDES):
        mine = [one[place] for one in texts]
        np.testing.assert_array_equal(bands_of(shard, side).reshape(-1, BANDS), datasketch_bands(mine))
        np.testing.assert_array_equal(
            read_column(shard, f"{side}_hash"), text_hashes(pa.array(keyed(mine), pa.string()))
        )
    assert read_column(shard, "length").tolist() == [len(positive) for _, positive in texts]


def test_texts_that_are_signed_in_several_windows_and_row_groups(
    tmp_path: Path, pair, write_shards, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(made_by, "_ROWS_AT_ONCE", 3)
    monkeypatch.setattr("conan_embedding.pipeline.corpus.shard_writer.ROW_GROUP", 8)
    texts = [HAN[start : start + 60] for start in range(20)]
    write_shards(tmp_path, "filter", [pair(text[::-1], text) for text in texts])
    filtered, shard = tmp_path / "filter/part-00000.parquet", tmp_path / "signed.parquet"
    assert pq.ParquetFile(filtered).num_row_groups == 3
    sign_shard(filtered, SIDES, BANDS, ROWS, "f", shard)
    np.testing.assert_array_equal(bands_of(shard, "positive"), datasketch_bands(texts))
    np.testing.assert_array_equal(bands_of(shard, "query"), datasketch_bands([text[::-1] for text in texts]))


def test_a_class_name_goes_with_its_source_and_into_no_bucket(tmp_path: Path, pair, write_shards) -> None:
    rows = [
        pair(HAN[:60], "体育", "web"),
        pair(HAN[:60], "体育", "topics", "classification"),
        pair(HAN[:60], "体育", "others", "classification"),
        pair(HAN[:60], "体育！", "topics", "classification"),
        pair(HAN[:60], "体育！", "scored", "sts"),
    ]
    write_shards(tmp_path, "filter", rows)
    shard = tmp_path / "signed.parquet"
    sign_shard(tmp_path / "filter/part-00000.parquet", SIDES, BANDS, ROWS, "f", shard)
    expected = ["体育", "topics\n体育", "others\n体育", "topics\n体育！", "体育"]
    np.testing.assert_array_equal(read_column(shard, "positive_hash"), text_hashes(pa.array(expected)))
    assert (bands_of(shard, "positive") == NO_BUCKET).all(axis=1).tolist() == [False, True, True, True, False]
    assert len(np.unique(bands_of(shard, "query"), axis=0)) == 1
    assert (bands_of(shard, "query") != NO_BUCKET).all()


def test_only_the_sides_asked_for_have_bands(tmp_path: Path, pair, write_shards) -> None:
    write_shards(tmp_path, "filter", [pair("问", "答")])
    filtered, shard = tmp_path / "filter/part-00000.parquet", tmp_path / "dedup/signed.parquet"
    sign_shard(filtered, ("positive",), 3, 2, "f", shard)
    assert pl.read_parquet(shard).columns == [
        "query_hash", "positive_hash", "length", "positive_band_00", "positive_band_01", "positive_band_02",
    ]  # fmt: skip
    assert band_columns("query", 11)[::10] == ["query_band_00", "query_band_10"]
    footer = read_footer(shard)
    assert (footer.stage, footer.fingerprint, footer.rows_in, footer.rows_out) == ("signatures", "f", 1, 1)
    assert [file.name for file in shard.parent.iterdir()] == ["signed.parquet"]  # and no rejects


def test_what_decides_signatures(tmp_path: Path, pair, write_shards) -> None:
    """A shard is signed again if its rows, the sides or the bands change, not if the same rows are written again."""
    rows = [pair("问", "答"), pair("甲", "乙")]

    def decided(folder: str, rows: list[dict], *more: object) -> str:
        write_shards(tmp_path / folder, "filter", rows)
        [task] = plan_signing([tmp_path / folder / "filter/part-00000.parquet"], *more)
        assert task.arguments == (tmp_path / folder / "filter/part-00000.parquet", *more)
        return task.fingerprint

    one = decided("one", rows, SIDES, 21, 6)
    assert decided("same", rows, SIDES, 21, 6) == one
    others = [
        decided("rows", rows[::-1], SIDES, 21, 6),
        decided("sides", rows, ("positive",), 21, 6),
        decided("bands", rows, SIDES, 20, 6),
        decided("more", rows, SIDES, 21, 5),
    ]
    assert len({one, *others}) == 5
