"""What dedup finds, against brute force: pair recall and precision on real documents and edited copies of them.

Run: `python benchmarks/dedup_quality.py [--documents FOLDER]`. FOLDER is a folder of shards, or one Parquet file, with
the columns `query` and `positive`; without one the texts are made up from the demo's world, which repeats itself more
than real texts do. Needs opencc (the extra `zh`).

The sample: 5,000 documents of 600 to 1,000 characters and one edited copy of each, then the same of short texts of 20
to 60. A copy has characters inserted, deleted and swapped at a rate drawn so that its similarity to the original lies
between about 0.5 and 1; one in five has its ASCII in full width, one in five a stretch in Traditional characters, one
in five a signature line. Of short texts only those whose key has less than 50 characters are taken, so that all are
cut into 3-grams and all tools agree in what similarity is.

The truth is the Jaccard similarity of all pairs, exactly: each n-gram of characters of a text's key
(`pipeline.text.key`; n as in `pipeline.minhash.Shingling`) has a number of its own, no hash, and a sparse matrix
product counts those that two texts share.

Judged are clusters. A pair is found when both texts are in one cluster; a tool declares all pairs of a cluster, also
those that only a third text joins. Pair recall is the share of the pairs of similarity 0.7 (0.8) or more that are
found, precision the share of the declared pairs that are of 0.7 or more. Conan's clusters are its survivors with the
rejects that name them. The precision of the pairs (reject, survivor) alone, by which a corpus loses texts, is printed
too.
"""

import argparse
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from random import Random
from typing import NamedTuple

import numpy as np
import opencc
import polars as pl
from conan_embedding.pipeline.corpus.saved_recipe import save_recipe
from conan_embedding.pipeline.corpus.shard_writer import ShardWriter
from conan_embedding.pipeline.dedup.lsh import choose_bands, hash_bands
from conan_embedding.pipeline.dedup.minhash import SHINGLING, signatures
from conan_embedding.pipeline.dedup.stage import dedup
from conan_embedding.pipeline.demo.world import draw, passage
from conan_embedding.pipeline.engine.calls import Engine
from conan_embedding.pipeline.text.normalise import match_key
from conan_embedding.schemas.pairs import PAIR, rejected
from conan_embedding.schemas.recipe import Recipe
from conan_embedding.schemas.settings import DedupSettings
from numpy.typing import NDArray
from scipy.sparse import coo_array, csr_array
from scipy.sparse.csgraph import connected_components

SAMPLE = 5_000
THRESHOLD = 0.7
KINDS = {"long": (600, 1_000), "short": (20, 60)}
"""How many characters the documents have and the short texts."""
EDITS = {"long": 0.09, "short": 0.15}
"""Edits a character at most. One spoils as many shingles as an n-gram has characters: J is about s / (2 - s) where s is
`(1 - edits)**n`, so 0.5 at these rates."""

RECIPE = Recipe(dedup=DedupSettings(on="positive", threshold=THRESHOLD))
SHARD = 100_000  # rows

Labels = NDArray[np.int64]


def main() -> None:
    """Judge Conan on both kinds of texts; compare the two ways to verify."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--documents", type=Path, help="a folder of shards, or a Parquet file, of query and positive")
    texts = read_texts(parser.parse_args().documents)
    for kind in KINDS:
        drawn = sample(texts, kind)
        truth = similar_pairs(match_keys(drawn))
        _print_truth(kind, drawn, truth)
        with tempfile.TemporaryDirectory() as place:
            write_corpus(Path(place), drawn)
            dedup(Path(place), RECIPE, Engine(workers=1))
            edges = named_survivors(Path(place))
        print(f"  Conan, all pairs of its clusters     {judge(components(len(drawn), edges), truth)}")
        print(f"  Conan, rejects and their survivors   precision {_share_similar(edges, truth):.4f}")
        _compare_verification(match_keys(drawn), truth)


# Texts.


def read_texts(source: Path | None) -> pl.Series:
    """The distinct queries and positives of a folder or a file; without one, passages of the demo's world."""
    if source is None:
        rng = Random(0)
        passages = ("\n".join(passage(rng, draw(rng), "news") for _ in range(12)) for _ in range(10_000))
        return pl.Series("text", [*passages]).unique(maintain_order=True)
    files = sorted(source.glob("*.parquet")) if source.is_dir() else [source]
    rows = pl.scan_parquet(files).select("query", "positive").collect()
    return pl.concat([rows["positive"], rows["query"]]).rename("text").unique(maintain_order=True)


def whole_texts(texts: pl.Series, kind: str) -> pl.Series:
    """The texts of a kind's length, long ones cut where they reach its most; where there are none, sentences."""
    least, most = KINDS[kind]
    if kind == "long":
        return texts.str.extract_all(rf"(?s).{{{least},{most}}}").explode().drop_nulls().unique(maintain_order=True)
    short = texts.filter(texts.str.len_chars().is_between(least, most))
    return short if len(short) >= SAMPLE else of_length(sentences(texts), kind)


def sentences(texts: pl.Series) -> pl.Series:
    """The distinct sentences of texts."""
    found = texts.str.extract_all(r"[^。！？!?；;\n]+[。！？!?；;]*").explode().drop_nulls().str.strip_chars()
    return found.unique(maintain_order=True)


def of_length(texts: pl.Series, kind: str) -> pl.Series:
    """Those of a kind's length."""
    return texts.filter(texts.str.len_chars().is_between(*KINDS[kind]))


def match_keys(texts: pl.Series) -> pl.Series:
    """What texts are compared by."""
    return texts.to_frame("text").select(match_key(pl.col("text"))).to_series()


def sample(texts: pl.Series, kind: str) -> pl.Series:
    """Documents, then edited copies of them."""
    whole = _of_one_ngram(whole_texts(texts, kind), kind)
    chosen = whole.sample(min(SAMPLE, len(whole)), seed=0, shuffle=True)
    copies = pl.Series("text", [*edited(chosen, kind)])
    return pl.concat([chosen, _of_one_ngram(copies, kind)])


def _of_one_ngram(texts: pl.Series, kind: str) -> pl.Series:
    lengths = match_keys(texts).str.len_chars()
    if kind == "long":
        return texts.filter(lengths >= SHINGLING.short_below)
    return texts.filter(lengths.is_between(SHINGLING.short_ngram, SHINGLING.short_below - 1))


def edited(texts: pl.Series, kind: str) -> Iterator[str]:
    """A copy of each text, changed; the same ones each time."""
    rng, traditional = Random(0), opencc.OpenCC("s2t")
    for text in texts:
        characters = list(text)
        for _ in range(round(rng.random() * EDITS[kind] * len(text))):
            place, edit = rng.randrange(len(text) - 1), rng.random()
            if edit < 1 / 3:
                characters[place] += rng.choice(text)
            elif edit < 2 / 3:
                characters[place] = ""
            else:
                characters[place : place + 2] = characters[place + 1], characters[place]
        copy = "".join(characters)
        if rng.random() < 1 / 5:
            copy = copy.translate(_FULL_WIDTH)
        if rng.random() < 1 / 5:
            stretch = rng.randrange(len(text))
            copy = (
                copy[:stretch]
                + traditional.convert(copy[stretch : stretch + len(text) // 4])
                + copy[stretch + len(text) // 4 :]
            )
        if rng.random() < 1 / 5:
            copy += rng.choice(_SIGNATURES)
        yield copy


_FULL_WIDTH = {point: 0xFEE0 + point for point in range(0x21, 0x7F)}
_SIGNATURES = ("\n——转自网络", "\n（编辑：小李）", "\n来源：新浪网")


# The truth.


def similar_pairs(of: pl.Series, least: float = 0.5) -> pl.DataFrame:
    """All pairs of keys that are this similar: `left, right, similarity`, left < right."""
    shingles = _shingle_matrix(of)
    sizes = np.diff(shingles.indptr)
    shared = shingles[:, np.bincount(shingles.indices, minlength=shingles.shape[1]) > 1]
    other, found = shared.T.tocsr(), []
    for start in range(0, len(of), 500):
        common = (shared[start : start + 500] @ other).tocoo()
        left, right = common.row + start, common.col
        similarity = common.data / (sizes[left] + sizes[right] - common.data)
        wanted = (similarity >= least) & (left < right)
        found.append(pl.DataFrame({"left": left[wanted], "right": right[wanted], "similarity": similarity[wanted]}))
    return pl.concat(found).cast({"left": pl.Int64, "right": pl.Int64})


def _shingle_matrix(of: pl.Series) -> csr_array:
    """Which text has which n-gram, 0 or 1, int32 [texts, n-grams]; those of 3 and of 5 characters differ."""
    lengths = of.str.len_chars().to_numpy()
    ngrams = np.where(lengths < SHINGLING.short_below, SHINGLING.short_ngram, SHINGLING.ngram)
    rows, columns, size = [], [], 0
    for ngram in np.unique(ngrams):
        chosen = np.flatnonzero(ngrams == ngram)
        points = np.frombuffer("".join(of.gather(chosen)).encode("utf-32-le"), "<u4")
        owner = np.repeat(chosen, lengths[chosen])
        known, characters = np.unique(points, return_inverse=True)
        numbers = characters
        for step in range(1, ngram):  # the number of what is one character longer
            numbers = np.unique(numbers[:-1] * len(known) + characters[step:], return_inverse=True)[1]
        whole = owner[: len(numbers)] == owner[ngram - 1 :]
        rows.append(owner[: len(numbers)][whole])
        columns.append(numbers[whole] + size)
        size += len(points)
    row, column = np.concatenate(rows), np.concatenate(columns)
    matrix = csr_array((np.ones(len(row), np.int32), (row, column)), shape=(len(of), size))
    matrix.sum_duplicates()
    matrix.data[:] = 1
    return matrix


# Judging.


class Quality(NamedTuple):
    """Pair recall at two similarities, and precision; see above."""

    recall: float
    recall_at_08: float
    precision: float

    def __str__(self) -> str:
        return (
            f"recall {self.recall:.4f} at J ≥ {THRESHOLD}, {self.recall_at_08:.4f} at J ≥ 0.8, "
            f"precision {self.precision:.4f}"
        )


def judge(clusters: Labels, truth: pl.DataFrame) -> Quality:
    """Compare the pairs of clusters, int64 [texts], with the true ones."""
    together = clusters[truth["left"].to_numpy()] == clusters[truth["right"].to_numpy()]
    similarity = truth["similarity"].to_numpy()
    sizes = np.unique(clusters, return_counts=True)[1].astype(np.int64)
    declared = (sizes * (sizes - 1) // 2).sum()
    return Quality(
        together[similarity >= THRESHOLD].mean(),
        together[similarity >= 0.8].mean(),
        together[similarity >= THRESHOLD].sum() / max(declared, 1),
    )


def _share_similar(pairs: NDArray[np.int64], truth: pl.DataFrame) -> float:
    """How many of the pairs, int64 [pairs, 2], are of the threshold's similarity or more."""
    ordered = pl.DataFrame(np.sort(pairs, axis=1), schema=["left", "right"])
    similar = ordered.join(truth.filter(pl.col("similarity") >= THRESHOLD), on=["left", "right"], how="semi")
    return similar.height / max(ordered.height, 1)


def _print_truth(kind: str, drawn: pl.Series, truth: pl.DataFrame) -> None:
    bins = [truth.filter(pl.col("similarity").is_between(low, low + 0.1, closed="left")).height for low in (0.5, 0.6)]
    near, nearer = (truth.filter(pl.col("similarity") >= least).height for least in (THRESHOLD, 0.8))
    print(
        f"{kind}: {len(drawn):,} texts, {drawn.str.len_bytes().sum() / 1e6:.1f} MB; pairs with J in [0.5, 0.6): "
        f"{bins[0]:,}, [0.6, 0.7): {bins[1]:,}, [0.7, 0.8): {near - nearer:,}, [0.8, 1]: {nearer:,}"
    )


def _compare_verification(of: pl.Series, truth: pl.DataFrame) -> None:
    """Candidates judged one by one, without clusters: by agreement of their signatures, and exactly."""
    bands, rows = choose_bands(RECIPE.dedup.recall, THRESHOLD)
    signed = signatures(of.to_arrow())
    buckets = pl.DataFrame(hash_bands(signed, bands, rows)).with_row_index("text").unpivot(index="text")
    pairs = buckets.join(buckets, on=["variable", "value"]).select(left="text", right="text_right").unique()
    candidates = pairs.filter(pl.col("left") < pl.col("right")).to_numpy().astype(np.int64)
    agreement = (signed[candidates[:, 0]] == signed[candidates[:, 1]]).mean(axis=1)
    wanted = truth.filter(pl.col("similarity") >= THRESHOLD).height
    for name, declared in (
        ("no verification", candidates),
        ("signatures agree", candidates[agreement >= THRESHOLD]),
        ("exact Jaccard", _similar(candidates, truth)),
    ):
        right = _share_similar(declared, truth)
        print(
            f"  {len(candidates):,} candidates of {bands} × {rows} bands, {name:18}"
            f"recall {right * len(declared) / wanted:.4f}, precision {right:.4f}"
        )


def _similar(candidates: NDArray[np.int64], truth: pl.DataFrame) -> NDArray[np.int64]:
    known = truth.filter(pl.col("similarity") >= THRESHOLD)
    pairs = pl.DataFrame(candidates, schema=["left", "right"])
    return pairs.join(known, on=["left", "right"], how="semi").to_numpy()


# Conan.


def write_corpus(corpus: Path, texts: pl.Series) -> None:
    """A corpus whose filtered pairs have the texts as positives, under a query of their own: their row's number."""
    shutil.rmtree(corpus, ignore_errors=True)
    save_recipe(corpus, RECIPE)
    for number, start in enumerate(range(0, len(texts), SHARD)):
        part = texts.slice(start, SHARD)
        rows = pl.int_range(start, start + len(part), eager=True).cast(pl.String)
        frame = pl.DataFrame({"positive": part}).select(
            rows.str.zfill(32).alias("pair_id"),
            pl.lit("made_up").alias("source"),
            pl.lit("web_page").alias("category"),
            pl.lit("title_content").alias("format"),
            pl.lit("retrieval").alias("task"),
            rows.alias("query"),
            "positive",
            pl.lit([], pl.List(pl.String)).alias("negatives"),
            pl.lit(None, pl.Float32).alias("label"),
            pl.lit("{}").alias("meta"),
        )
        shard = corpus / "filter" / f"part-{number:05d}.parquet"
        with ShardWriter(shard, PAIR, rejected(PAIR), stage="filter", version=1, fingerprint=str(number)) as writer:
            writer.received(frame.height)
            writer.keep(frame.to_arrow())


def named_survivors(corpus: Path) -> NDArray[np.int64]:
    """(rejected row, the row that it names as its survivor), int64 [rejects, 2]."""
    gone = pl.read_parquet(corpus / "dedup" / "rejected" / "*.parquet", columns=["pair_id", "detail"])
    survivor = pl.col("detail").str.extract(r"([0-9a-f]{32})")
    return gone.select(pl.col("pair_id").cast(pl.Int64), survivor.cast(pl.Int64).alias("survivor")).to_numpy()


def components(rows: int, edges: NDArray[np.int64]) -> Labels:
    """The cluster of each row that edges, int64 [edges, 2], join."""
    graph = coo_array((np.ones(len(edges), bool), tuple(edges.T)), shape=(rows, rows))
    return connected_components(graph, directed=False)[1].astype(np.int64)


if __name__ == "__main__":
    main()
