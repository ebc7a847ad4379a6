"""conan synthesize: have a language model write queries for passages of the corpus, and check each of them.

What the model answers is kept for good (see llm_client); everything else follows from the answers, the corpus and the
recipe, and is computed again where one of these has changed.
"""

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import polars as pl

from ...schemas.errors import CorpusError, RecipeError
from ...schemas.outcomes import SourcePlan, Summary, SynthesisPlan
from ...schemas.pairs import rejected
from ...schemas.recipe import Recipe
from ...schemas.registry import check_names
from ...schemas.source_settings import own_prompts
from ...schemas.synthesis import SYNTHESIZED
from ...schemas.synthesize_settings import GradeSettings, SynthesizeSettings
from ..corpus.folder import committed, fingerprint, is_sample, read_footer, rejects
from ..corpus.shard_writer import ShardWriter
from ..corpus.synthesis import ANSWERS, REQUESTS, list_answers
from ..corpus.uris import fetch, upload
from ..engine.calls import Engine
from ..engine.stage import Task, run_stage
from ..judge.grades import read_grade
from ..llm_client.client import Asked, Budget, Request, ask, read_cache
from ..llm_client.tokens import estimate_tokens
from .checks import UNCHECKED, add_answers, read_queries, reject
from .draws import read_personas
from .languages import LANGUAGES
from .passages import check_sql, choose_passages, list_searched
from .requests import plan_grading, plan_requests
from .round_trip import PAIR, RANKS, RoundTrip, find_ranks, plan_round_trip

VERSION = 1
PART = 4_096
"""Chosen here: rows of a shard, about. A passage belongs to a shard by its hash, so another one changes that alone."""
ANSWER_TOKENS = 64
"""Chosen here: the tokens of an answer, to estimate by until there are any: JSON with a question of 20 words."""
PATIENCE = 4
"""Chosen here: requests in a row that may fail; with five, the server is taken to be down."""


@dataclass(frozen=True)
class _Planned:
    """A source with its settings, the passages chosen for it, a row for each request, and the requests."""

    name: str
    settings: SynthesizeSettings
    passages: pl.DataFrame
    rows: pl.DataFrame
    requests: Sequence[Request]


def synthesize(corpus: Path, recipe: Recipe, engine: Engine) -> Summary:
    """Ask for the queries of each source with `synthesize:`, check them, and write what is kept and what is not.

    The pairs are those of `CORPUS/synthesize/answers`, which ingest reads as it reads the files of other sources.

    Raises:
        RecipeError: no source has `synthesize:`, or one names something that isn't there.
        CorpusError: dedup has not been run, or was interrupted; the corpus is a sample.
        LLMError: the server does not answer, or refuses all requests; its answers so far are kept.
        ModelError: the model of the round trip can't be read.
    """
    started = time.monotonic()
    tasks: list[Task] = []
    sources: dict[str, Any] = {}
    for planned in _plan(corpus, recipe):
        answered = _ask(corpus, planned, planned.requests, engine)
        rows = read_queries(add_answers(planned.rows, answered.answers, answered.problems))
        told = {"requests": answered.paid, "tokens": answered.tokens}
        ranks = ""
        if (trip := _plan_round_trip(corpus, recipe, planned)) is not None:
            rows, ranks = _add_ranks(corpus, planned.name, trip, rows, engine), trip.fingerprint
        if (grading := planned.settings.judge) is not None:
            rows, graded = _add_grades(corpus, planned, grading, rows, engine)
            told = {"requests": told["requests"] + graded.paid, "tokens": told["tokens"] + graded.tokens}
        tasks += _list_tasks(planned.name, planned.settings.server.model, rows, ranks)
        sources[planned.name] = told | _find_left(corpus, planned)
    alone = replace(engine, workers=1, address=None, one_a_device=False)  # a worker takes longer to start than to write
    summary = run_stage(corpus, ANSWERS, write_answers, tasks, alone)
    summary.stage, summary.seconds = "synthesize", time.monotonic() - started
    summary.notes = {"paid_for": sources}
    summary.notes |= _add_up(corpus)
    return summary


def plan(corpus: Path, recipe: Recipe) -> SynthesisPlan:
    """Count the requests that `synthesize` would send, and estimate their tokens. Nobody is asked, nothing is written.

    Raises as `synthesize` does, as far as it reads.
    """
    sources = []
    for planned in _plan(corpus, recipe):
        known = read_cache(_find_cache(corpus, planned.name))
        asked = dict(zip(planned.rows["request"], planned.requests, strict=True))
        unknown = [request for key, request in asked.items() if key not in known]
        texts = planned.rows.filter(~pl.col("request").is_in(list(known)))["passage"]
        grading = []
        if planned.settings.judge is not None:
            grading = plan_grading(pl.repeat("", len(texts), eager=True), texts, planned.settings.server)
        lengths = [answer.answer_tokens for answer in known.values() if answer.answer_tokens]
        answer_tokens = sum(lengths) / len(lengths) if lengths else ANSWER_TOKENS
        to_send = [*unknown, *grading]
        tokens = estimate_tokens(request.body["messages"] for request in to_send) + len(to_send) * answer_tokens
        left = _find_left(corpus, planned)
        sources.append(
            SourcePlan(
                planned.name,
                planned.passages.height,
                planned.rows.height,
                len(unknown),
                len(grading),
                round(tokens),
                left["requests_left"],
                left["tokens_left"],
            )
        )
    return SynthesisPlan(sources)


def list_checks(recipe: Recipe) -> Iterator[Callable[[], object]]:
    """Yield checks of what `synthesize:` names: languages, a file of personas, the SQL. Each raises RecipeError."""
    for number, source in enumerate(recipe.sources):
        if (settings := source.synthesize) is not None:
            place = partial(recipe.locate, "sources", number, "synthesize")
            yield partial(check_names, "language", settings.languages, sorted(LANGUAGES), place("language"))
            yield partial(read_personas, settings.personas, place("personas"))
            yield partial(check_sql, settings, place("passages", "sql"))


def _name_synthesized(recipe: Recipe) -> list[str]:
    return [source.name for source in recipe.sources if source.synthesize]


def _plan(corpus: Path, recipe: Recipe) -> list[_Planned]:
    names = _name_synthesized(recipe)
    if is_sample(corpus):
        raise CorpusError(
            f"{corpus} is a sample, which has the pairs of language models that were taken with it; for others, run "
            "`conan synthesize` on the whole corpus, as it ends by reading the sources"
        )
    if not names:
        raise RecipeError("the recipe has no source with `synthesize:`, so there is nothing to write")
    for check in list_checks(recipe):
        check()
    found = []
    for number, source in enumerate(recipe.sources):
        if (settings := source.synthesize) is None:
            continue
        place = partial(recipe.locate, "sources", number, "synthesize")
        personas = read_personas(settings.personas, place("personas"))
        passages = choose_passages(corpus, settings, names, recipe.filter.mask, place("passages", "sql"))
        if passages.is_empty():
            raise RecipeError(f"{place('passages')}: no passage is chosen; `conan sql {corpus}` shows what there is")
        found.append(_Planned(source.name, settings, passages, *plan_requests(passages, settings, personas)))
    return found


def _find_cache(corpus: Path, name: str) -> Path:
    fetch(corpus, REQUESTS)
    return corpus / REQUESTS / f"{name}.jsonl"


def _ask(corpus: Path, planned: _Planned, requests: Sequence[Request], engine: Engine) -> Asked:
    budget = Budget(planned.settings.budget.tokens, planned.settings.budget.requests)

    def progress(done: int, total: int) -> None:
        engine.progress(f"synthesize: {planned.name}", done, total, done)

    cache = _find_cache(corpus, planned.name)
    asked = ask(requests, planned.settings.server, budget, cache, progress, PATIENCE, engine)
    upload(corpus, REQUESTS)
    return asked


def _find_left(corpus: Path, planned: _Planned) -> dict[str, int]:
    """Return what is left of the budget, and how many requests have no answer yet."""
    known, budget = read_cache(_find_cache(corpus, planned.name)), planned.settings.budget
    return {
        "unanswered": len(set(planned.rows["request"]) - known.keys()),
        "requests_left": max(0, budget.requests - len(known)),
        "tokens_left": max(0, int(budget.tokens) - sum(answer.tokens for answer in known.values())),
    }


def _plan_round_trip(corpus: Path, recipe: Recipe, planned: _Planned) -> RoundTrip | None:
    settings = planned.settings.round_trip
    if settings is None:
        return None
    searched = list_searched(corpus, _name_synthesized(recipe))
    return plan_round_trip(settings, own_prompts(recipe.sources), searched, planned.passages, recipe.dedup)


def _add_ranks(corpus: Path, name: str, trip: RoundTrip, rows: pl.DataFrame, engine: Engine) -> pl.DataFrame:
    """Add `rank` and `above`, and reject the queries whose passage is further down than the recipe allows."""
    known = _read_ranks(corpus, name, trip.fingerprint, rows)
    wanted = rows.filter(UNCHECKED).join(known, on=PAIR, how="anti", maintain_order="left")
    ranks = pl.concat([known, find_ranks(corpus, trip, name, wanted, engine)])
    rows = rows.join(ranks, on=PAIR, how="left", maintain_order="left")
    detail = pl.format(f"rank {{}} > {trip.settings.within}", "rank")
    return reject(rows, pl.col("rank") > trip.settings.within, "round_trip", detail)


def _read_ranks(corpus: Path, name: str, fingerprint: str, rows: pl.DataFrame) -> pl.DataFrame:
    """Read the ranks in the shards of an earlier run, as far as they are of the same model, passages and queries."""
    shards = [shard for shard in list_answers(corpus, name) if read_footer(shard).notes["ranks"] == fingerprint]
    known = pl.DataFrame(schema={**RANKS, "query": pl.String()})
    for file in (file for shard in shards for file in (shard, rejects(shard))):
        known.extend(pl.read_parquet(file, columns=known.columns).cast(known.schema))
    same = known.join(rows, on=[*PAIR, "query"], how="semi")
    return same.filter(pl.col("rank").is_not_null()).select(RANKS.names())


def _add_grades(
    corpus: Path, planned: _Planned, settings: GradeSettings, rows: pl.DataFrame, engine: Engine
) -> tuple[pl.DataFrame, Asked]:
    """Add `grade`, and reject the pairs that have a lower one than the recipe allows, or none."""
    left = rows.filter(UNCHECKED)
    requests = plan_grading(left["query"], left["positive"], planned.settings.server)
    asked = _ask(corpus, planned, requests, engine)
    said = [None if answer is None else answer.text for answer in asked.answers]
    problems = [asked.problems.get(request.key, "the budget is spent") for request in requests]
    grades = left.select(
        *PAIR,
        grade=pl.Series([None if text is None else read_grade(text) for text in said], dtype=pl.Int32),
        said=pl.coalesce(pl.Series(said, dtype=pl.String), pl.Series(problems, dtype=pl.String)),
    )
    rows = rows.join(grades, on=PAIR, how="left", maintain_order="left")
    rows = reject(rows, pl.col("grade").is_null(), "ungraded", "said")
    detail = pl.format(f"{{}} < {settings.min}", "grade")
    return reject(rows, pl.col("grade") < settings.min, "grade", detail).drop("said"), asked


def _list_tasks(name: str, model: str, rows: pl.DataFrame, ranks: str) -> list[Task]:
    """List the shards of a source. Rows are dealt to them by the hashes of their passages."""
    bits = (rows.height // PART).bit_length()
    shard = pl.col("hash").str.slice(0, 8).str.to_integer(base=16, dtype=pl.Int64) // 2 ** (32 - bits)
    missing = {column: pl.lit(None) for column in ("rank", "above", "grade") if column not in rows.columns}
    rows = rows.with_columns(**missing, source=pl.lit(name), model=pl.lit(model))
    parts = rows.with_columns(shard=shard).partition_by("shard", maintain_order=True, include_key=False)
    columns = [*SYNTHESIZED.names, "reason", "detail"]
    return [
        Task(
            (name, part.select(columns), ranks),
            fingerprint("synthesize", VERSION, ranks, part.select(columns).write_ndjson()),
        )
        for part in parts
    ]


def write_answers(name: str, rows: pl.DataFrame, ranks: str, fingerprint: str, shard: Path) -> None:
    """Write a shard: the pairs that are kept, and the rest with reasons."""
    with ShardWriter(
        shard,
        SYNTHESIZED,
        rejected(SYNTHESIZED),
        stage="synthesize",
        version=VERSION,
        fingerprint=fingerprint,
    ) as writer:
        writer.received(rows.height)
        writer.keep(rows.filter(UNCHECKED).to_arrow())
        writer.reject(rows.filter(~UNCHECKED).to_arrow())
        writer.notes = {"source": name, "ranks": ranks}


def _add_up(corpus: Path) -> dict[str, Any]:
    """Add up the tokens of all requests, and say for each kind how many of its requests are pairs."""
    columns, frames = ["kind", "tokens", "answer_tokens"], []
    for shard in committed(corpus, ANSWERS):
        for file in (shard, rejects(shard)):
            read = pl.read_parquet(file, columns=columns).with_columns(pl.col("kind").cast(pl.String))
            frames.append(read.with_columns(kept=pl.lit(file == shard)))
    if not frames:
        return {}
    rows = pl.concat(frames)
    counts = rows.group_by("kind").agg(pl.len(), pl.col("kept").sum()).sort("kind")
    tokens, of_answers = (int(rows[column].sum()) for column in ("tokens", "answer_tokens"))
    return {
        "prompt_tokens": tokens - of_answers,
        "answer_tokens": of_answers,
        "kept_by_kind": {kind: f"{kept:,} of {asked:,}" for kind, asked, kept in counts.iter_rows()},
    }
