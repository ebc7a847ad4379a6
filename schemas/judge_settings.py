"""Settings of `conan judge`: who judges the pools, how many candidates, and what follows from the scores."""

from pydantic import Field, model_validator

from .server_settings import ServerSettings
from .settings import EncoderSettings, Settings, setting


class Threshold(Settings):
    """The score that a candidate must reach: a score, a distance to the query's positives, or both."""

    score: float | None = setting(None, "The least score.")
    margin: float | None = setting(
        None,
        "How far the score may be below the lowest one of the query's positives (of those that are not irrelevant): 0"
        " is as good as the positive. A query whose positives have no score then keeps its candidates.",
    )

    @model_validator(mode="after")
    def _says_something(self) -> "Threshold":
        if self.score is None and self.margin is None:
            raise ValueError("expected `score`, `margin` or both")
        return self


class LLMJudgeSettings(ServerSettings):
    """A language model that grades pairs from 0 to 3."""

    max_tokens: int = Field(
        description="Budget: tokens of prompts and answers that may be paid for, earlier runs of this model in this"
        " corpus included.",
        ge=0,
    )
    band: tuple[float, float] | None = setting(
        None, "Only pairs are graded whose score by `judge.model` is between these two. By default all are."
    )

    @model_validator(mode="after")
    def _band_is_not_empty(self) -> "LLMJudgeSettings":
        if self.band and self.band[0] > self.band[1]:
            raise ValueError(f"`band` is empty: {self.band[0]} is above {self.band[1]}")
        return self


class JudgeSettings(EncoderSettings):
    """The judge of the pools: a model that scores pairs of a query and a passage, or a file of scores."""

    model: str = setting(
        "BAAI/bge-reranker-v2-m3",
        "Cross-encoder: a folder or hub name of a Hugging Face sequence classifier with one label, or of a CrossEncoder"
        " of sentence-transformers. Any other name is a bi-encoder, as in `mine.model`; its scores are cosines.",
        origin="chosen here: of the rerankers with an open license, the one most used for Chinese",
    )
    scores: str | None = setting(
        None,
        "File of scores that takes the place of the model: `.parquet` or `.jsonl` with the columns `query`, `passage`"
        " and `score`.",
    )
    candidates: int = setting(10, "Candidates per query to judge, the best first; positives are always judged.", ge=0)
    relabel: Threshold | None = setting(
        None,
        "Candidates that reach this become positives. By default none do; look at the scores first, as every judge has"
        " a scale of its own.",
        origin="RLHN (arXiv 2505.16967), which relabels by a language model",
    )
    set_aside: Threshold | None = setting(
        None, "Other candidates that reach this are set aside as ambiguous: neither positives nor negatives."
    )
    irrelevant: float | None = setting(
        None,
        "Positives with a lower score are set aside as irrelevant, and so are queries that have no other positive.",
    )

    llm: LLMJudgeSettings | None = setting(
        None,
        "Language model that grades the pairs about which `judge.model` is undecided. A candidate with 3 is a positive,"
        " one with 2 is set aside; a positive with 0 or 1 is irrelevant. A grade counts in place of the score.",
        origin="UMBRELA (arXiv 2406.06519) for the grades; what follows is chosen here",
    )

    @model_validator(mode="after")
    def _relabelling_is_stricter(self) -> "JudgeSettings":
        if self.relabel and self.set_aside:
            score, margin = self.set_aside.score, self.set_aside.margin
            above = self.relabel.score is not None and score is not None and score > self.relabel.score
            nearer = self.relabel.margin is not None and margin is not None and margin < self.relabel.margin
            if above or nearer:
                raise ValueError("`set_aside` asks for more than `relabel`; expected a lower score or a wider margin")
        return self

    @property
    def decisive(self) -> str:
        """The settings on which judgements and decisions depend, as JSON."""
        of_server = {"url", "key_env", "concurrency", "timeout", "max_tokens"}
        return self.model_dump_json(exclude={"batch_tokens": True, "compile": True, "llm": of_server})
