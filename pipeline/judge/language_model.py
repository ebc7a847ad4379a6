"""Ask a language model to grade the pairs about which the scores are undecided."""

from pathlib import Path
from typing import Any, NamedTuple

import polars as pl

from ...schemas.judge_settings import LLMJudgeSettings
from ..corpus.folder import fingerprint
from ..corpus.judgements import add
from ..corpus.pools import open_pools
from ..corpus.uris import fetch, upload
from ..engine.calls import Engine
from ..llm_client.client import Budget, Request, ask
from ..llm_client.tokens import estimate_tokens
from .grades import PROMPT_VERSION, VERDICTS, build_body, build_messages, read_grade

FOLDER = "llm_answers"
"""The folder of the answers, a file for each judge."""
PATIENCE = 4
"""Chosen here: requests in a row that may fail. Vendors refuse single texts, by filters of what they call unsafe."""
PART = 4_096
"""Chosen here: pairs whose texts and grades are in memory at a time; a killed run finds their answers in the cache."""


class Graded(NamedTuple):
    """Numbers of pairs: graded now, answered by something else than a grade, failed, and left out by the budget."""

    graded: int
    unclear: int
    failed: int
    over_budget: int
    tokens: int


def name_model(settings: LLMJudgeSettings) -> str:
    """Name a language model as a judge: by the model's name and the version of the prompt."""
    return f"llm-{fingerprint(settings.model, PROMPT_VERSION)[:16]}"


def in_band(band: tuple[float, float] | None, scorer: str) -> tuple[str, dict[str, Any]]:
    """Build the join that keeps pairs whose score is in a band, and its parameters; without a band it keeps all."""
    if band is None:
        return "", {}
    join = (
        "SEMI JOIN (FROM judgements WHERE judge = $scorer "
        "AND score BETWEEN CAST($low AS FLOAT) AND CAST($high AS FLOAT)) USING (query_id, passage_id) "
    )
    return join, {"scorer": scorer, "low": band[0], "high": band[1]}


def find_undecided(corpus: Path, asked: str, settings: LLMJudgeSettings, scorer: str) -> pl.DataFrame:
    """List the pairs of a SELECT, `query_id, passage_id`, whose score is in the band, and that have no grade yet."""
    undecided, params = in_band(settings.band, scorer)
    params |= {"model": name_model(settings)}
    with open_pools(corpus) as pools:
        found: pl.DataFrame = pools.sql(
            f"SELECT query_id, passage_id FROM ({asked}) {undecided}"
            "ANTI JOIN (FROM judgements WHERE judge = $model) USING (query_id, passage_id) ORDER BY ALL",
            params=params,
        ).pl()
        return found


def build_prompts(corpus: Path, pairs: pl.DataFrame) -> tuple[pl.DataFrame, list[list[dict[str, str]]]]:
    """Return the texts of pairs, `query, passage`, and the messages that ask for the grade of each."""
    with open_pools(corpus) as pools:
        pools.register("pairs", pairs.with_row_index("place").to_arrow())
        texts: pl.DataFrame = pools.sql(
            "WITH known AS (SELECT query_id, list(text ORDER BY score DESC, text) AS positives FROM mined_positives "
            "JOIN passages USING (passage_id) GROUP BY query_id) "
            "SELECT q.text AS query, p.text AS passage, positives FROM pairs JOIN mined_queries q USING (query_id) "
            "JOIN passages p USING (passage_id) LEFT JOIN known USING (query_id) ORDER BY place"
        ).pl()
    prompts = [build_messages(query, passage, known or []) for query, passage, known in texts.iter_rows()]
    return texts.select("query", "passage"), prompts


def estimate_prompts(corpus: Path, pairs: pl.DataFrame) -> int:
    """Estimate the tokens of the prompts about pairs; most models count fewer."""
    return estimate_tokens(chat for part in pairs.iter_slices(PART) for chat in build_prompts(corpus, part)[1])


def grade(corpus: Path, pairs: pl.DataFrame, settings: LLMJudgeSettings, engine: Engine) -> Graded:
    """Ask for the grades of pairs, as far as the budget allows, and add them to the store.

    Raises:
        LLMError: the server can't be reached, or refuses request after request; what it has answered is kept.
    """
    name, found = name_model(settings), Graded(0, 0, 0, 0, 0)
    engine.progress("judge: llm", 0, pairs.height, 0)
    fetch(corpus, FOLDER)
    for start in range(0, pairs.height, PART):
        texts, prompts = build_prompts(corpus, pairs[start : start + PART])
        requests = [Request(build_body(settings.model, messages, settings.answer_tokens)) for messages in prompts]

        def progress(done: int, _: int, start: int = start) -> None:
            engine.progress("judge: llm", min(start + done, pairs.height), pairs.height, start + done)

        cache = corpus / FOLDER / f"{name}.jsonl"
        asked = ask(requests, settings, Budget(settings.max_tokens), cache, progress, PATIENCE, engine)
        grades = [None if answer is None else read_grade(answer.text) for answer in asked.answers]
        known = texts.with_columns(score=pl.Series(grades, dtype=pl.Int64)).drop_nulls("score")
        if known.height:
            verdicts = known["score"].replace_strict(dict(enumerate(VERDICTS)), return_dtype=pl.String)
            add(corpus, name, known.with_columns(verdict=verdicts))
        upload(corpus, FOLDER)
        failed = sum(request.key in asked.problems for request in requests)
        over = asked.answers.count(None) - failed
        unclear = texts.height - known.height - failed - over
        now = Graded(known.height, unclear, failed, over, asked.tokens)
        found = Graded(*(before + more for before, more in zip(found, now, strict=True)))
    return found
