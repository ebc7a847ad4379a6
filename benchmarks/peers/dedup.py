"""The deduplication tools that benchmarks/dedup.py compares Conan with. Runs without Conan, in their environment.

Run by benchmarks/dedup.py as `python dedup.py TOOL TEXTS OUT NGRAM`. TEXTS is a Parquet file with `row` (from 0),
`text` and `spaced` (the text with a space after each character, for tools that only split words). The tool reads it,
removes near-duplicates by character NGRAM-grams and writes the rest to OUT; a warm-up on a few rows comes first. The
answer is a line of JSON: wall time and CPU time in seconds, peak resident memory in bytes, and the file with the
cluster of each row, int64 [rows].

All tools use 128 permutations and a threshold of 0.7, with the bands that they choose for it. Those that need to be
told (datatrove, daft, numpy_rensa) get 16 bands of 8 rows, whose threshold is (1/16)**(1/8) = 0.71.
"""

import json
import os
import resource
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

PERMUTATIONS, THRESHOLD, BANDS, BAND_ROWS = 128, 0.7, 16, 8
WARM_UP = 200  # rows
BATCH = 20_000  # rows held as Python objects at a time

Labels = NDArray[np.int64]
Clusters = Callable[[], Labels]
"""Called after timing: returns the cluster of each row that the tool found, as equal numbers."""


def _components(rows: int, edges: Iterable[tuple[int, int]] | NDArray[np.int64]) -> Labels:
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    left, right = np.asarray(edges if isinstance(edges, np.ndarray) else list(edges), np.int64).reshape(-1, 2).T
    graph = coo_array((np.ones(len(left), bool), (left, right)), shape=(rows, rows))
    return connected_components(graph, directed=False)[1].astype(np.int64)


def _texts(texts: Path) -> Iterator[str]:
    for batch in pq.ParquetFile(texts).iter_batches(BATCH, columns=["text"]):
        yield from batch.column("text").to_pylist()


def _write_kept(texts: Path, out: Path, kept: NDArray[np.bool_]) -> None:
    """Write the rows that are kept in batches, compressed as Conan's are."""
    file, start = pq.ParquetFile(texts), 0
    schema = pa.schema([("row", pa.int64()), ("text", pa.string())])
    with pq.ParquetWriter(out / "kept.parquet", schema, compression="zstd") as writer:
        for batch in file.iter_batches(65_536, columns=schema.names):
            writer.write_batch(batch.filter(pa.array(kept[start : start + len(batch)])).cast(schema))
            start += len(batch)


def datasketch(texts: Path, out: Path, ngram: int) -> Clusters:
    """`MinHash.bulk`, then `MinHashLSH`: a text with matches in the index is a duplicate, any other is inserted."""
    from datasketch import MinHash, MinHashLSH

    shingles = ([text[i : i + ngram].encode() for i in range(len(text) - ngram + 1)] for text in _texts(texts))
    index = MinHashLSH(threshold=THRESHOLD, num_perm=PERMUTATIONS)
    kept, edges = [], []
    for row, minhash in enumerate(MinHash.bulk(shingles, num_perm=PERMUTATIONS)):
        found = index.query(minhash)
        if not found:
            index.insert(row, minhash)
        kept.append(not found)
        edges += [(row, other) for other in found]
    _write_kept(texts, out, np.array(kept))
    return lambda: _components(len(kept), edges)


def rensa(texts: Path, out: Path, ngram: int) -> Clusters:
    """As in its README: `RMinHashDeduplicator.add_pairs` over lists of tokens, which here are shingles."""
    from rensa import RMinHashDeduplicator

    def shingles(text: str) -> list[str]:
        return [text[i : i + ngram] for i in range(len(text) - ngram + 1)]

    index = RMinHashDeduplicator(threshold=THRESHOLD, num_perm=PERMUTATIONS, use_lsh=True)
    kept = np.array(index.add_pairs((str(row), shingles(text)) for row, text in enumerate(_texts(texts))))
    _write_kept(texts, out, kept)

    def clusters() -> Labels:
        gone = [(row, text) for row, text in enumerate(_texts(texts)) if not kept[row]]
        found = index.get_duplicate_sets([shingles(text) for _, text in gone])
        edges = [(row, int(other)) for (row, _), others in zip(gone, found, strict=True) for other in others]
        return _components(len(kept), edges)

    return clusters


def numpy_rensa(texts: Path, out: Path, ngram: int) -> Clusters:
    """The fastest combination that was found: NumPy hashes n-grams, rensa computes signatures, NumPy sorts the bands.

    The signature of each row in a bucket is compared with that of the bucket's first row.
    """
    from rensa import RMinHash

    signatures = []
    for batch in pq.ParquetFile(texts).iter_batches(BATCH, columns=["text"]):
        hashes, offsets = _rolling(batch.column("text").to_pylist(), ngram)
        matrix = RMinHash.digest_matrix_from_flat_token_hashes(hashes, offsets, PERMUTATIONS, 42)
        signatures.append(np.array(matrix.to_rows(), np.uint32))
    signed = np.concatenate(signatures)
    edges = []
    for band in np.ascontiguousarray(signed.reshape(len(signed), BANDS, BAND_ROWS).swapaxes(0, 1)):
        mixed = np.zeros(len(band), np.uint64)
        for column in band.T:
            mixed = (mixed ^ column) * np.uint64(0x9E3779B97F4A7C15)
            mixed ^= mixed >> np.uint64(32)
        order = np.argsort(mixed, kind="stable")
        starts = np.flatnonzero(np.diff(mixed[order], prepend=~mixed[order[:1]]))
        leaders = np.repeat(order[starts], np.diff(starts, append=len(order)))
        edges.append(np.stack([order, leaders], axis=1)[order != leaders])
    pairs = np.unique(np.concatenate(edges), axis=0)
    alike = [
        (signed[some[:, 0]] == signed[some[:, 1]]).mean(axis=1) >= THRESHOLD
        for some in np.array_split(pairs, 1 + len(pairs) // BATCH)
    ]
    labels = _components(len(signed), pairs[np.concatenate(alike)])
    kept = np.zeros(len(labels), bool)
    kept[np.unique(labels, return_index=True)[1]] = True
    _write_kept(texts, out, kept)
    return lambda: labels


def _rolling(texts: list[str], ngram: int) -> tuple[NDArray[np.uint64], NDArray[np.uint64]]:
    """Return the hashes of the n-grams of all texts, concatenated, and the start of each text's hashes."""
    lengths = np.array([len(text) for text in texts])
    points = np.frombuffer("".join(texts).encode("utf-32-le"), "<u4").astype(np.uint64)
    hashes = np.zeros(len(points) - ngram + 1, np.uint64)
    for place in range(ngram):
        hashes *= np.uint64(0x9E3779B97F4A7C15)
        hashes += points[place : place + len(hashes)]
    ends = np.cumsum(lengths)
    inside = np.ones(len(points), bool)
    for back in range(1, ngram):  # an n-gram that starts this close to the end of a text reaches into the next one
        inside[np.maximum(ends - back, 0)] = False
    counts = np.maximum(lengths - ngram + 1, 0)
    return hashes[inside[: len(hashes)]], np.concatenate([[0], np.cumsum(counts)]).astype(np.uint64)


def daft(texts: Path, out: Path, ngram: int) -> Clusters:
    """As in its guide to MinHash deduplication (docs.daft.ai): bands exploded and grouped, a star of edges per bucket.

    Connected components are found with SciPy, which is faster than the guide's repeated joins.
    """
    import daft as engine

    @engine.func()
    def numbers(bands: list[list[int]]) -> list[int]:
        return list(range(len(bands)))

    table = engine.read_parquet(str(texts))
    edges = (
        table.with_column(
            "hashes", engine.col("spaced").minhash(num_hashes=PERMUTATIONS, ngram_size=ngram, hash_function="xxhash")
        )
        .with_column("bands", engine.col("hashes").chunk(BAND_ROWS))
        .with_column("band", numbers(engine.col("bands")))
        .select("row", "bands", "band")
        .explode("bands", "band")
        .groupby("band", "bands")
        .agg(engine.col("row").list_agg().alias("members"))
        .where(engine.col("members").list_count() > 1)
        .with_column("leader", engine.col("members").list_min())
        .explode("members")
        .where(engine.col("members") != engine.col("leader"))
        .select("members", "leader")
        .distinct()
        .to_arrow()
    )
    rows = pq.read_metadata(texts).num_rows
    labels = _components(rows, np.stack([edges["members"], edges["leader"]], axis=1).astype(np.int64))
    gone = np.setdiff1d(np.arange(rows), np.unique(labels, return_index=True)[1])
    table.join(engine.from_pydict({"row": gone}), on="row", how="anti").select("row", "text").write_parquet(str(out))
    return lambda: labels


def datatrove(texts: Path, out: Path, ngram: int) -> Clusters:
    """The four steps of its example minhash_deduplication.py, each with its own executor.

    Words are characters. Numbers are kept, as the default of replacing each with the same word changes the similarity.
    """
    from datatrove.executor import LocalPipelineExecutor
    from datatrove.pipeline.dedup import MinhashDedupSignature
    from datatrove.pipeline.dedup.minhash import (
        MinhashConfig,
        MinhashDedupBuckets,
        MinhashDedupCluster,
        MinhashDedupFilter,
    )
    from datatrove.pipeline.readers import ParquetReader
    from datatrove.pipeline.writers import JsonlWriter
    from datatrove.utils.text import TextNormConfig
    from datatrove.utils.word_tokenizers import WordTokenizer

    class Characters(WordTokenizer):
        """Treats characters as words. The step accepts a tokenizer instead of a language."""

        def word_tokenize(self, text: str) -> list[str]:
            return list(text)

        def sent_tokenize(self, text: str) -> list[str]:
            raise NotImplementedError

        def span_tokenize(self, text: str) -> list[tuple[int, int]]:
            raise NotImplementedError

    config = MinhashConfig(
        n_grams=ngram,
        num_buckets=BANDS,
        hashes_per_bucket=BAND_ROWS,
        norm_config=TextNormConfig(norm_numbers=False),
    )
    reader = ParquetReader(str(texts), id_key="row", read_metadata=False)
    signed, matched, removed = (str(out / name) for name in ("signatures", "buckets", "clusters"))
    steps = [
        ([reader, MinhashDedupSignature(signed, config=config, language=Characters())], 1),
        ([MinhashDedupBuckets(signed, matched, config=config)], BANDS),
        ([MinhashDedupCluster(matched, removed, config=config, save_cluster_id=True)], 1),
        ([reader, MinhashDedupFilter(removed), JsonlWriter(str(out / "kept"), compression=None)], 1),
    ]
    for number, (pipeline, tasks) in enumerate(steps):
        LocalPipelineExecutor(pipeline, tasks=tasks, workers=1, logging_dir=str(out / f"logs-{number}")).run()

    def clusters() -> Labels:
        found = np.fromfile(out / "clusters" / "000000.clusters", np.uint32).reshape(-1, 2)
        rows = pq.read_metadata(texts).num_rows
        labels = np.arange(rows)
        labels[found[:, 0]] = rows + found[:, 1]
        return labels

    return clusters


def text_dedup(texts: Path, out: Path, ngram: int) -> Clusters:
    """`python -m text_dedup.minhash`, called in this process."""
    from text_dedup import minhash

    named = {
        "path": "parquet",
        "data_files": str(texts),
        "split": "train",
        "cache_dir": str(out / "cache"),
        "output": str(out / "kept"),
        "column": "spaced",
        "ngram": ngram,
        "num_perm": PERMUTATIONS,
        "threshold": THRESHOLD,
        "num_proc": 1,
    }
    minhash.main([f"--{name}={value}" for name, value in named.items()], standalone_mode=False)
    return lambda: np.array([minhash.uf.find(row) for row in range(pq.read_metadata(texts).num_rows)])


def data_juicer(texts: Path, out: Path, ngram: int) -> Clusters:
    """Its `document_minhash_deduplicator` with `tokenization: character`, on its own dataset class."""
    from data_juicer.core.data import NestedDataset
    from data_juicer.ops.deduplicator import DocumentMinhashDeduplicator
    from datasets import Dataset, disable_caching

    disable_caching()
    step = DocumentMinhashDeduplicator(
        tokenization="character",
        window_size=ngram,
        num_permutations=PERMUTATIONS,
        jaccard_threshold=THRESHOLD,
        num_proc=1,
    )
    loaded = NestedDataset(
        Dataset.from_parquet(str(texts), cache_dir=str(out / "cache")).select_columns(["row", "text"])
    )
    loaded.process(step).to_parquet(str(out / "kept.parquet"))

    def clusters() -> Labels:
        hashed = loaded.map(step.compute_hash, num_proc=1)
        _, found = step.process(hashed, show_num=len(hashed))
        edges = [(members[0]["row"], other["row"]) for members in found.values() for other in members[1:]]
        return _components(len(hashed), edges)

    return clusters


TOOLS: dict[str, Callable[[Path, Path, int], Clusters]] = {
    "datasketch": datasketch,
    "datatrove": datatrove,
    "text-dedup": text_dedup,
    "data-juicer": data_juicer,
    "daft": daft,
    "rensa": rensa,
    "numpy-rensa": numpy_rensa,
}


def _cpu_seconds() -> float:
    """Return user and system time, including that of finished children."""
    used = (resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return sum(each.ru_utime + each.ru_stime for each in used)


def _peak() -> int:
    """Return the peak resident memory in bytes; getrusage would include that of the parent process."""
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
    return 1024 * int(line.split()[1])


def main() -> None:
    """Run one tool once. Standard output is redirected to standard error, because the tools write to it."""
    answer = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    tool, texts, out, ngram = TOOLS[sys.argv[1]], Path(sys.argv[2]), Path(sys.argv[3]), int(sys.argv[4])
    few, warm_up = out / "few.parquet", out / "warm-up"
    warm_up.mkdir(parents=True)
    pq.write_table(pq.ParquetFile(texts).read_row_group(0).slice(0, WARM_UP), few)
    tool(few, warm_up, ngram)
    result = out / "result"
    result.mkdir()
    started, used = time.monotonic(), _cpu_seconds()
    clusters = tool(texts, result, ngram)
    figures = {"seconds": time.monotonic() - started, "cpu": _cpu_seconds() - used, "peak": _peak()}
    np.save(out / "clusters.npy", clusters())
    answer.write(json.dumps(figures | {"clusters": str(out / "clusters.npy")}))


if __name__ == "__main__":
    main()
