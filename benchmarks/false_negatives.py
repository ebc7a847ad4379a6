"""The share of false negatives among mined negatives, by mining method, on labelled retrieval sets.

Run: `python benchmarks/false_negatives.py --corpus CORPUS --model MODEL [--first 10] [--queries 100] [--judge MODEL]`.
The sets are the retrieval sets in CORPUS/evaluation, which were held out from training. Each query searches the
passages of all sets.
`conan mine` is given only one positive per query and no clusters, so that nothing but the mining method keeps other
passages that answer the query out of its negatives. Among the first negatives of each query, these count as false:

- another labelled positive of the query, or a passage with the same text;
- a near-duplicate of a labelled positive (Jaccard similarity of 0.7 or more, on 5-grams of the match keys);
- a passage that contains one of the query's labelled answers (`answers` in `meta`) of two characters or more.

With a judge, such as `benchmarks/train_cross_encoder.py` makes, the pools of each method are judged by each of RULES,
twice as deep as they are counted. Precision is the share of the relabelled and set aside candidates that are false
negatives; recall is the share of the false negatives that are relabelled or set aside.
"""

import argparse
import tempfile
from pathlib import Path

import duckdb
import polars as pl
from conan_embedding.pipeline.corpus.pools import FILE
from conan_embedding.pipeline.corpus.shard_writer import ShardWriter
from conan_embedding.pipeline.engine.calls import Engine
from conan_embedding.pipeline.judge.stage import judge
from conan_embedding.pipeline.mine.methods import METHODS
from conan_embedding.pipeline.mine.stage import mine
from conan_embedding.pipeline.text.match_key import match_key
from conan_embedding.schemas.judge_settings import JudgeSettings, Threshold
from conan_embedding.schemas.settings import MineSettings
from conan_embedding.schemas.training import RETRIEVAL

ALIKE, NGRAM, ANSWER = 0.7, 5, 2
RULES = {
    "as the positive": Threshold(margin=0),
    "0.1 below it": Threshold(margin=0.1),
    "0.5 and as it": Threshold(score=0.5, margin=0),
    "0.9": Threshold(score=0.9),
}
"""The scores that make a candidate a positive: probabilities of a cross-encoder."""
FIRST = "SELECT query_id, unnest(passage_ids[1:$1]) AS passage_id FROM candidates"
MINED = "SELECT query_id, unnest(passage_ids[1:$1]) AS passage_id FROM mined_candidates"
REMOVED = f"SELECT query_id, passage_id FROM decisions SEMI JOIN ({MINED}) USING (query_id, passage_id)"


def main() -> None:
    """Mine with each method and print the share of false negatives by set."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--corpus", type=Path, required=True, help="a corpus with evaluation sets")
    parser.add_argument("--model", required=True, help="a model folder")
    parser.add_argument("--first", type=int, default=10, help="how many negatives of each query to check")
    parser.add_argument("--queries", type=int, help="of how many queries of each set; by default of all")
    parser.add_argument("--judge", help="a cross-encoder: folder or hub name")
    options = parser.parse_args()
    pairs = pl.read_parquet(options.corpus / "evaluation" / "part-*.parquet").filter(pl.col("task") == "retrieval")
    pairs = pairs.with_columns(pl.col("source").cast(pl.String))
    labels = labelled(pairs)
    if options.queries:
        labels = labels.sort(pl.col("query").hash(0)).group_by("source", maintain_order=True).head(options.queries)
    print(f"{labels.height:,} queries, the first {options.first} negatives of each")
    print(f"{'':32}{'set':>18}{'queries':>9}{'negatives':>11}{'false':>8}{'share':>9}{'precision':>11}{'recall':>9}")
    with tempfile.TemporaryDirectory() as place:
        write(Path(place), pairs, labels)
        for name, method in METHODS.items():
            mine(Path(place), MineSettings(model=options.model, method=name), Engine(workers=1))
            title = f"{name} {method.margin:g}"
            show(title, false_negatives(Path(place), FIRST, labels, options.first))
            for rule, threshold in RULES.items() if options.judge else ():
                settings = JudgeSettings(model=options.judge, candidates=2 * options.first, relabel=threshold)
                judge(Path(place), settings, Engine(workers=1))
                left = false_negatives(Path(place), FIRST, labels, options.first)
                show(f"  {rule}", left, found_by(Path(place), labels, settings.candidates))


def show(title: str, counts: pl.DataFrame, quality: pl.DataFrame | None = None) -> None:
    """Print the counts of each set, with precision and recall of a rule if they are known."""
    rows = counts if quality is None else counts.join(quality, on="source", how="left")
    for row in rows.iter_rows(named=True):
        print(
            f"{title:32}{row['source']:>18}{row['queries']:9,}{row['negatives']:11,}{row['false']:8,}"
            f"{row['false'] / max(1, row['negatives']):9.2%}"
            + ("" if quality is None else f"{row['precision'] or 0:11.1%}{row['recall'] or 0:9.1%}")
        )


def labelled(pairs: pl.DataFrame) -> pl.DataFrame:
    """Return the queries that are not empty: `source, query, positives, answers`."""
    asked = pairs.filter((pl.col("query") != "") & (pl.col("positive") != ""))
    answers = pl.col("meta").str.json_path_match("$.answers").str.json_decode(pl.List(pl.String))
    return asked.group_by("source", "query", maintain_order=True).agg(
        positives="positive", answers=answers.explode().drop_nulls()
    )


def write(corpus: Path, pairs: pl.DataFrame, labels: pl.DataFrame) -> None:
    """Write a corpus as after convert: only the first positive of each query, each passage in a cluster of its own."""
    asked = labels.select("query", positive=pl.col("positives").list.first())
    passages = pl.concat([pairs["positive"], pairs["negatives"].explode().drop_nulls().cast(pl.String)])
    others = passages.filter((passages != "") & ~passages.is_in(asked["positive"].implode())).unique(
        maintain_order=True
    )
    # Mining takes passages from positives, so each other passage becomes the positive of a query with its own text.
    rows = pl.concat([asked, pl.DataFrame({"query": others, "positive": others})])
    records = rows.select(
        pl.lit([], pl.List(pl.String)).alias("pair_ids"),
        pl.lit("evaluation").alias("source"),
        pl.lit("web_page").alias("category"),
        "query",
        pl.concat_list("positive").alias("positives"),
        pl.concat_list(pl.col("positive").rank("dense").cast(pl.Int64)).alias("cluster_ids"),
        pl.lit([], pl.List(pl.String)).alias("negatives"),
    )
    shard = corpus / "convert" / "retrieval" / "part-00000.parquet"
    with ShardWriter(shard, RETRIEVAL, None, stage="convert", version=1, fingerprint="") as writer:
        writer.received(records.height)
        writer.keep(records.to_arrow())


def found_by(corpus: Path, labels: pl.DataFrame, judged: int) -> pl.DataFrame:
    """Return `source, precision, recall` of what the rule took out of the first candidates that were mined."""
    removed = false_negatives(corpus, REMOVED, labels, judged)
    mined = false_negatives(corpus, MINED, labels, judged)
    return removed.join(mined, on="source").select(
        "source", precision=pl.col("false") / pl.col("negatives"), recall=pl.col("false") / pl.col("false_right")
    )


def false_negatives(corpus: Path, candidates: str, labels: pl.DataFrame, first: int) -> pl.DataFrame:
    """Count the false negatives among candidates (a query of SQL) by set: `source, queries, negatives, false`."""
    with duckdb.connect(str(corpus / FILE), read_only=True) as connection:
        mined = connection.sql(
            "SELECT queries.text AS query, passages.text AS passage "
            f"FROM ({candidates}) JOIN queries USING (query_id) JOIN passages USING (passage_id)",
            params=[first],
        ).pl()
    found = mined.join(labels, on="query")
    texts = pl.concat([found["passage"], found["positives"].explode()]).unique().alias("text")
    letters = texts.to_frame().select("text", match_key(pl.col("text")).alias("letters"))
    shingles = {
        text: {word[start : start + NGRAM] for start in range(max(1, len(word) - NGRAM + 1))}
        for text, word in letters.iter_rows()
    }

    def alike(one: str, other: str) -> bool:
        return len(shingles[one] & shingles[other]) >= ALIKE * len(shingles[one] | shingles[other])

    false = [
        any(alike(passage, positive) for positive in positives)
        or any(answer in passage for answer in answers if len(answer) >= ANSWER)
        for passage, positives, answers in found.select("passage", "positives", "answers").iter_rows()
    ]
    return (
        found.with_columns(pl.Series("false", false, pl.Boolean))
        .group_by("source")
        .agg(queries=pl.col("query").n_unique(), negatives=pl.len(), false=pl.col("false").sum())
        .sort("source")
    )


if __name__ == "__main__":
    main()
