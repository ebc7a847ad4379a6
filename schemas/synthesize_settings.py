"""Settings of `conan synthesize`: which passages a language model writes queries for, and which of these are kept."""

import re
from typing import Annotated, Literal, cast

from pydantic import Field, field_validator, model_validator

from .pairs import FORMATS, Format
from .server_settings import ServerSettings
from .settings import EncoderSettings, Settings, setting

Kind = Literal["question", "keyword", "statement", "comparison", "title", "prompt", "paraphrase", "translation"]

FORMATS_OF_KINDS: dict[Kind, tuple[Format, ...]] = {
    "question": ("question_answer",),
    "keyword": ("question_answer",),
    "statement": ("question_answer",),
    "comparison": ("question_answer",),
    "title": ("title_content",),
    "prompt": ("prompt_response", "input_output"),
    "paraphrase": ("question_answer", "input_output"),
    "translation": cast(tuple[Format, ...], FORMATS),
}
"""The formats of a source to which a kind of query belongs. Filter and convert treat titles and responses apart. A
translation has that of the query which it is of."""

DEEPEST = 100
"""Chosen here: ranks in the round trip are counted to here, so that `within` moves below without another search."""

Share = Annotated[float, Field(gt=0)]


class PassagesSettings(Settings):
    """The passages that queries are written for: all of the corpus's, or those that SQL chooses."""

    sql: str | None = setting(
        None,
        "DuckDB SQL that gives the columns `text` and `pair_id`, over the views `ingest`, `filter` and `dedup` without"
        " what language models wrote. By default the positives that dedup kept of the tasks pretrain, retrieval and"
        " passage. For translations it gives `query`, too, by default that of the pairs of pretrain and retrieval.",
    )
    sample: int | None = setting(
        None,
        "At most this many passages, chosen by the hashes of their texts: a corpus that grows keeps most of them.",
        ge=1,
    )


class WriterSettings(ServerSettings):
    """The language model that writes the queries."""

    temperature: float = setting(
        0.7, "Temperature of the sampling; 0 writes the likeliest query each time.", ge=0, le=2
    )


class BudgetSettings(Settings):
    """The most to be spent on a source, earlier runs in this corpus included."""

    requests: int = Field(description="Requests that may be paid for.", ge=0)
    tokens: float = Field(
        description="Tokens of prompts and answers that may be paid for. A request is sent only if its longest answer"
        " fits.",
        ge=0,
    )


class RoundTripSettings(EncoderSettings):
    """The round trip: a query is kept if its passage is among the nearest of all the corpus's passages."""

    within: int = setting(
        20,
        "Queries are rejected whose passage ranks lower than this. Moving it sends no requests and encodes nothing.",
        origin="chosen here; Promptagator (arXiv 2209.11755 §3.2) keeps rank 1, by a retriever trained on the queries",
        ge=1,
        le=DEEPEST,
    )


class GradeSettings(Settings):
    """Grades of relevance by the same language model, with the prompt of `conan judge`: 0 irrelevant … 3 relevant."""

    min: int = setting(2, "Queries whose passage has a lower grade are rejected.", ge=0, le=3)


class SynthesizeSettings(Settings):
    """Queries that a language model writes for passages of the corpus, in place of a source's files."""

    passages: PassagesSettings = setting(PassagesSettings(), "The passages that queries are written for.")
    server: WriterSettings = Field(description="The language model.")
    queries: int = setting(1, "Queries per passage.", ge=1)
    kinds: dict[Kind, Share] = setting(
        {"question": 1.0},
        "Kinds of queries, each with its share; the `format` of the source must fit. `translation` stands alone.",
    )
    personas: str | None = setting(
        "auto",
        "Who asks: `auto` draws from a list that comes with Conan, a file has one persona per line, `null` names none.",
    )
    language: str | dict[str, Share] = setting(
        "zh",
        "Language of the queries, by its ISO 639-1 code, or several with their shares, as in `{zh: 3, en: 1}`. Prompts"
        " are in Chinese for zh, else in English.",
    )
    budget: BudgetSettings = Field(description="What may be spent.")
    seed: int = setting(0, "Seed of the draws of kind, language, persona, difficulty and length.")
    round_trip: RoundTripSettings | None = setting(
        None, "Whether a query must find its passage again. `round_trip: {}` takes the defaults."
    )
    judge: GradeSettings | None = setting(
        None, "Whether the pairs that are left are graded. `judge: {}` takes the defaults."
    )

    @property
    def translates(self) -> bool:
        """Whether the queries are translations of those that passages have already."""
        return "translation" in self.kinds

    @property
    def languages(self) -> dict[str, float]:
        """The languages with their shares."""
        return {self.language: 1.0} if isinstance(self.language, str) else self.language

    @field_validator("language")
    @classmethod
    def _is_code(cls, language: str | dict[str, float]) -> str | dict[str, float]:
        codes = [language] if isinstance(language, str) else list(language)
        if not codes or any(not re.fullmatch("[a-z]{2}", code) for code in codes):
            raise ValueError("expected the ISO 639-1 code of a language, as in `zh`, or several with their shares")
        return language

    @model_validator(mode="after")
    def _has_kinds(self) -> "SynthesizeSettings":
        if not self.kinds:
            raise ValueError("`kinds` is empty; expected kinds with their shares, as in `{question: 3, keyword: 1}`")
        if self.translates and len(self.kinds) > 1:
            raise ValueError(
                "`kinds` has `translation` and others; translations are of pairs, the others of passages, so give"
                " translations a source of their own"
            )
        return self
