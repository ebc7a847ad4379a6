"""False alarms of the rules of `conan synthesize`: the share of questions by people that each rule would reject.

Run: `python benchmarks/query_faults.py CORPUS`, where CORPUS is that of recipes/zh-real.yaml after ingest.

Each question is judged as if a model had written it to the passage that answers it, in Chinese. A question of
toyhom_medical is a title and a letter, which asks several questions; the title is taken. The rejects of cmrc2018 are
printed, for its questions are about passages, as those of a model are.
"""

import argparse
from pathlib import Path

import polars as pl
from conan_embedding.pipeline.synthesize.faults import REASONS, faults

SOURCES = ("cmrc2018", "kdconv", "toyhom_medical", "egret_wenda", "sim_webank")


def main() -> None:
    """Print a row for each source, and the shares of all."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("corpus", type=Path)
    corpus = parser.parse_args().corpus
    found = read_questions(corpus).with_columns(kind=pl.lit("question"), language=pl.lit("zh"))
    found = found.with_columns(reason=faults(found))
    shares = [(100 * (pl.col("reason") == reason).fill_null(False).mean()).round(2).alias(reason) for reason in REASONS]
    table = pl.concat(
        [
            found.group_by("source", maintain_order=True).agg(pl.len().alias("questions"), *shares),
            found.select(pl.lit("all").alias("source"), pl.len().alias("questions"), *shares),
        ]
    )
    with pl.Config(tbl_rows=-1, tbl_cols=-1, tbl_width_chars=240, tbl_hide_dataframe_shape=True):
        print(table.transpose(include_header=True, column_names="source", header_name="% rejected"))
    for query, reason in (
        found.filter(pl.col("reason").is_not_null(), source="cmrc2018").select("query", "reason").rows()
    ):
        print(f"{reason}: {query}")


def read_questions(corpus: Path) -> pl.DataFrame:
    """Read the distinct questions of the sources, each with a passage that answers it."""
    title = pl.when(pl.col("source") == "toyhom_medical").then(pl.col("query").str.split(" ").list.first())
    return (
        pl.scan_parquet(corpus / "ingest" / "*.parquet")
        .with_columns(pl.col("source").cast(pl.String))
        .filter(pl.col("source").is_in(SOURCES))
        .select("source", query=title.otherwise("query"), passage="positive", answer=pl.lit(None, pl.String))
        .unique(["source", "query"], keep="first", maintain_order=True)
        .sort("source", maintain_order=True)
        .collect()
    )


if __name__ == "__main__":
    main()
