"""`conan demo`: write the sample, load its recipe; and what the demo shows at the end."""

from collections.abc import Iterable
from pathlib import Path

from ...schemas.errors import RecipeError
from ...schemas.outcomes import Evaluated, Outcome, Summary
from ...schemas.recipe import Recipe, load
from ..corpus.folder import committed, read_footer
from .generate import write_sample

DEMO_ROWS = 3000
"""Chosen here: with 1,200, the encoder knows all pairs by heart before it is fine-tuned, and hard negatives teach it
nothing."""

DEMO_QUESTIONS = (
    "PIVOT (SELECT stage, category, rows FROM funnel) ON stage IN ('ingest', 'filter', 'dedup', 'score', 'convert') "
    "USING sum(rows) ORDER BY category",
    "SELECT stage, reason, detail, coalesce(query, record)[:40] AS record FROM rejected "
    "WHERE reason IN ('broken_json', 'near_duplicate', 'refusal') "
    "QUALIFY row_number() OVER (PARTITION BY reason ORDER BY pair_id, file, line) = 1 ORDER BY reason",
    "SELECT kind, sum(asked) AS asked, sum(parsed) AS parsed, sum(faultless) AS faultless, "
    "sum(distinct_queries) AS distinct_queries, sum(kept) AS kept FROM synthesis_funnel GROUP BY kind ORDER BY kind",
    "SELECT q.text AS query, p.text[:40] AS hardest_negative, round(scores[1]::DOUBLE, 3) AS score "
    "FROM pools.candidates JOIN pools.queries q USING (query_id) "
    "JOIN pools.passages p ON p.passage_id = passage_ids[1] ORDER BY scores[1] DESC LIMIT 3",
    "SELECT q.text AS query, p.text[:40] AS answer, round(d.score::DOUBLE, 3) AS score, decision "
    "FROM pools.decisions d JOIN pools.queries q USING (query_id) JOIN pools.passages p USING (passage_id) "
    "ORDER BY d.score DESC LIMIT 3",
)
"""SQL over the demo's corpus: the funnel, one reject of each of three kinds, what was left of the queries that the
language model wrote, the hardest negatives, and answers that the teacher found among them."""


def prepare_demo(folder: Path, server: str) -> tuple[Recipe, Path]:
    """Write the sample to `folder/sources`; return its recipe and that path.

    `server` is the URL of the language model that the recipe asks.

    Raises:
        RecipeError: the folder holds something that is not a demo.
    """
    sources = folder / "sources"
    if folder.exists() and {place.name for place in folder.iterdir()} - {"sources", "corpus"}:
        raise RecipeError(f"{folder} holds something that is not a demo; name a new folder: conan demo FOLDER")
    write_sample(sources, DEMO_ROWS)
    recipe = Path(__file__).parents[2] / "recipes" / "demo.yaml"
    return load(recipe, [f"variables.root={sources.resolve()}", f"variables.server={server}"]), sources


def conclude(corpus: Path, outcomes: Iterable[Outcome]) -> str:
    """Say in three lines what a run of the demo did, what that was good for, and what to type next."""
    stages, scores = {}, {}
    for outcome in outcomes:
        if isinstance(outcome, Summary):
            stages[outcome.stage] = outcome
        elif isinstance(outcome, Evaluated):
            scores = {row["model"]: row["value"] for row in outcome.metrics if row["metric"] == "ndcg@10"}
    read = sum(read_footer(shard).rows_in for shard in committed(corpus, "ingest"))
    written, kept = stages["synthesize"].rows_out, stages["convert"].rows_out
    return "\n".join(
        [
            f"Of {read:,} records, {written:,} of which a language model wrote, {kept:,} were kept, and an encoder was "
            "trained on them, then on what it confuses.",
            f"Questions among near-misses, nDCG@10: {scores['bootstrap']:.3f} after training on pairs, "
            f"{scores['finetune']:.3f} after hard negatives; BM25 {scores['bm25']:.3f}.",
            f"Next: conan report {corpus}    or with your own files: conan init FOLDER -o recipe.yaml",
        ]
    )
