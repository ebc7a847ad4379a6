# %% [markdown]
# # A corpus in SQL and Polars
# Run as a script (`python examples/sql_and_polars.py CORPUS`) or cell by cell in an editor that supports `# %%`.

# %%
import sys

import conan_embedding as conan
import polars as pl

corpus = conan.Corpus(sys.argv[1] if len(sys.argv) > 1 else "demo/corpus")

# %% The funnel: pairs per category after each stage.
print(
    corpus.sql(
        "PIVOT (SELECT stage, category, rows FROM funnel) ON stage IN ('ingest', 'filter', 'dedup', 'score', 'convert')"
        " USING sum(rows) ORDER BY category"
    )
)

# %% Rejects by reason, with an example of each.
rejected = corpus.rejected()
print(
    rejected.group_by("stage", "reason")
    .agg(pl.len().alias("rows"), pl.col("detail").first(), pl.col("query").first())
    .sort("rows", descending=True)
)

# %% Score quantiles per source, to choose another cutoff.
print(
    corpus.read("score")
    .filter(pl.col("score").is_not_null())
    .group_by(pl.col("source").cast(pl.String))
    .agg(pl.col("score").quantile(q).round(3).alias(f"p{q:.0%}") for q in (0.05, 0.5, 0.95))
    .sort("source")
)

# %% The hardest negatives: queries whose best candidate scores closest to their lowest positive.
print(
    corpus.sql(
        "WITH lowest AS (SELECT query_id, min(score) AS positive_score FROM pools.positives GROUP BY ALL) "
        "SELECT q.text AS query, n.text AS negative, round(scores[1], 3) AS score, round(positive_score, 3) AS lowest "
        "FROM pools.candidates JOIN lowest USING (query_id) JOIN pools.queries q USING (query_id) "
        "JOIN pools.passages n ON n.passage_id = passage_ids[1] ORDER BY positive_score - scores[1] LIMIT 10"
    )
)

# %% Sizes of the pools.
print(corpus.pools().select(pl.col("passage_ids").list.len().alias("candidates")).describe())
