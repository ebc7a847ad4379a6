"""conan judge: ask judges about the positives and the best candidates of the pools, and follow what they say.

The store of judgements outlives the pools (see corpus/judgements.py), so no judge is asked twice about the same texts.
"""

import time
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from ...schemas.errors import CorpusError
from ...schemas.judge_settings import JudgeSettings
from ...schemas.outcomes import JudgingPlan, Summary
from ...schemas.settings import SourcePrompts
from ..corpus.atomic import clear_temporaries
from ..corpus.judgements import FOLDER
from ..corpus.pools import check_judging, refresh_judgements
from ..engine.calls import Engine
from ..engine.stage import StageError
from .decisions import decide
from .labels import Shown, label
from .language_model import estimate_prompts, find_undecided, grade, name_model
from .pairs import asked_pairs, count_rows, find_missing
from .scorers import find_scorer


def judge(corpus: Path, settings: JudgeSettings, engine: Engine, sources: Mapping[str, SourcePrompts] = {}) -> Summary:
    """Judge the positives and the first candidates of each query, except the pairs that the judge has judged before.

    `sources` are the prompts of the sources that have their own, for a bi-encoder.

    Raises:
        CorpusError: there are no pools, or the file of scores has none of their pairs.
        RecipeError: the file of scores can't be read.
        ModelError: the model can't be read, or gives a score that is NaN or infinite.
        StageError: some pairs could not be judged; the others are in the store.
        LLMError: the language model can't be reached, or refuses request after request; its answers are kept.
    """
    started = time.monotonic()
    clear_temporaries(corpus / FOLDER)
    refresh_judgements(corpus)
    name, ask = find_scorer(settings, sources)
    unknown = find_missing(corpus, settings, name)
    ask(corpus, unknown, engine)
    refresh_judgements(corpus)
    asked = asked_pairs(settings)
    missing = find_missing(corpus, settings, name).height
    if settings.scores is None and missing:
        raise StageError(f"{missing} judgements were written on a node that does not share {corpus}")
    if missing and missing == count_rows(corpus, f"FROM ({asked})"):
        raise CorpusError(
            f"judge.scores: {settings.scores} has no pair of the pools; its texts must be those of pools.queries and "
            "pools.passages to the letter, as `conan sql` prints them"
        )
    notes: dict[str, Any] = {"judge": name, "scored": unknown.height - missing, "without_score": missing}
    grader = ""
    if settings.llm is not None:
        grader = name_model(settings.llm)
        undecided = find_undecided(corpus, asked, settings.llm, name)
        notes["llm"] = {"judge": grader, **grade(corpus, undecided, settings.llm, engine)._asdict()}
        refresh_judgements(corpus)
    decided = decide(corpus, settings, name, grader)
    # Candidates that were scored before, or in a file, count too.
    deeper = "SELECT query_id, passage_id FROM decisions WHERE decision <> 'near_duplicate'"
    pairs = count_rows(corpus, f"FROM ({asked} UNION {deeper})")
    rejected = Counter({reason: decided[reason] for reason in ("ambiguous", "irrelevant") if decided[reason]})
    notes |= {
        "relabelled": decided["positive"],
        "near_duplicates": decided["near_duplicate"],
        "queries_set_aside": count_rows(corpus, "FROM mined_queries ANTI JOIN queries USING (query_id)"),
    }
    return Summary("judge", pairs, pairs - rejected.total(), rejected, seconds=time.monotonic() - started, notes=notes)


def label_pairs(
    corpus: Path,
    settings: JudgeSettings,
    number: int,
    ask: Callable[[Shown], str],
    sources: Mapping[str, SourcePrompts] = {},
) -> Summary:
    """Take the grades of a person for up to `number` undecided pairs (see `label`), and follow them.

    Asks no model, so `judge` must have run before. Raises as `judge` does, as far as it reads.

    Raises:
        CorpusError: there are no pools, or they are not judged with these settings.
    """
    started = time.monotonic()
    refresh_judgements(corpus)
    check_judging(corpus, settings.decisive)
    name, _ = find_scorer(settings, sources)
    labels = label(corpus, settings, name, number, ask)
    refresh_judgements(corpus)
    decide(corpus, settings, name, name_model(settings.llm) if settings.llm else "")
    return Summary("label", labels, labels, seconds=time.monotonic() - started)


def plan(corpus: Path, settings: JudgeSettings, sources: Mapping[str, SourcePrompts] = {}) -> JudgingPlan:
    """Count the pairs that `judge` would ask about, and estimate what the language model would cost.

    Asks nobody. Pairs without a score may turn out to be in the band of the language model.

    Raises as `judge` does, as far as it reads.
    """
    refresh_judgements(corpus)
    name, _ = find_scorer(settings, sources)
    pairs = count_rows(corpus, f"FROM ({asked_pairs(settings)})")
    found = JudgingPlan(name, pairs, find_missing(corpus, settings, name).height)
    if settings.llm is None:
        return found
    undecided = find_undecided(corpus, asked_pairs(settings), settings.llm, name)
    tokens = estimate_prompts(corpus, undecided)
    return JudgingPlan(
        name, pairs, found.to_score, name_model(settings.llm), undecided.height, tokens, settings.llm.max_tokens
    )
