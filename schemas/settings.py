"""One validated model per stage: the paper's values as defaults, each with where it comes from.

The description of a field begins with its origin: a section of the paper (Conan-embedding, arXiv 2408.15710), another
source, or "chosen here" for what no source gives.
"""

import re
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from .pairs import Category, Format, Task


def setting(value: Any, origin: str, **limits: Any) -> Any:
    """A default with its origin and its limits."""
    return Field(value, description=origin, **limits)


BATCH_TOKENS = "chosen here: tokens a batch, padding included; by default 2,048 on a CPU, 16,384 on a GPU"


class Settings(BaseModel):
    """Base of all settings: frozen, unknown keys and numbers that are none are errors."""

    model_config = ConfigDict(extra="forbid", frozen=True, populate_by_name=True, allow_inf_nan=False)


def _as_list(value: Any) -> Any:
    return [value] if isinstance(value, str) else value


Globs = list[str]

RESERVED_TABLES = ("rows", "batch", "records", "texts", "selected", "bad", "frame", "joined", "objects")
"""Names that a table of `join:` may not have."""


class ReaderOptions(Settings):
    """How to read tables that don't describe themselves."""

    header: bool | None = setting(None, "chosen here: csv and tsv have a header unless columns are named")
    delimiter: str | None = setting(None, "chosen here: a comma for csv, a tab for tsv", min_length=1)
    quote: str | None = setting(
        None, 'chosen here: " for csv, none for tsv: a stray quote there must not lose lines', max_length=1
    )
    columns: list[str] | None = setting(None, "chosen here: names for a table without a header")
    whole: bool = setting(False, "chosen here: json only: one row a file, its document in the column `data`")
    turns: int = setting(3, "chosen here: chats only: exchanges of history kept in a prompt, the last included", ge=1)
    max_prompt_chars: int = setting(
        2000, "chosen here: chats only: the oldest exchanges are left out of a prompt longer than this", ge=1
    )


class Source(Settings):
    """Files, a reader and a projection to the pair."""

    name: str = Field(pattern=r"^[A-Za-z0-9_.-]+$")
    category: Category = setting("web_page", "chosen here: used by evaluation sets, which need no category")
    format: Format = setting("title_content", "paper Table 1: the most common format")
    task: Task = setting("pretrain", "paper §2.1.1: most data is for pre-training")
    files: Globs
    exclude: Globs = setting([], "chosen here")
    read: str = Field(description="chosen here: one of the readers in pipeline/ingest/readers.py, or a plugin's")
    encoding: str | None = setting(None, "chosen here: detected unless declared")
    simplify: bool = setting(False, "chosen here: Traditional Chinese becomes Simplified (opencc, the extra `[zh]`)")
    options: ReaderOptions = setting(ReaderOptions(), "chosen here")
    join: dict[str, str] = setting({}, "chosen here: name → file whose lines are a table of that name")
    select: str | None = setting(None, "chosen here: DuckDB SQL over the file's rows")
    from_: str | None = Field(None, alias="from", description="chosen here: replaces `rows` after FROM")
    where: str | None = setting(None, "chosen here: which rows belong to this source")
    query: str = setting("query", "chosen here: SQL; shapes bring a column of that name")
    positive: str = setting("positive", "chosen here: SQL; shapes bring a column of that name")
    negatives: str | None = setting(None, "chosen here: SQL, a list of strings")
    label: str | None = setting(None, "chosen here: SQL; needed for task sts")
    label_range: tuple[float, float] = setting((0.0, 1.0), "chosen here: the labels' own scale, mapped to 0…1")
    meta: str | None = setting(None, "chosen here: SQL struct, kept as JSON")
    priority: int | None = setting(None, "chosen here: the lower survives a duplicate; default: place in the recipe")
    licence: str | None = setting(None, "chosen here: for the reader of the recipe and the model card")

    _listed = field_validator("files", "exclude", mode="before")(_as_list)

    @model_validator(mode="after")
    def _labelled(self) -> "Source":
        if self.task == "sts" and self.label is None:
            raise ValueError(f"source {self.name} has task sts and needs `label:`, an SQL expression")
        if self.label_range[0] >= self.label_range[1]:
            raise ValueError(f"source {self.name}: label_range must rise, got {list(self.label_range)}")
        for name in self.join:
            if not re.fullmatch(r"[A-Za-z_]\w*", name) or name.lower() in RESERVED_TABLES:
                raise ValueError(f"source {self.name}: join can't be named {name!r}")
        return self


class EvaluationSet(Source):
    """A source kept out of training."""

    passages: Globs = setting([], "chosen here: more files whose positives are searched among")

    _listed_passages = field_validator("passages", mode="before")(_as_list)


Thresholds = dict[str, float | bool]


class ClassifierSettings(Settings):
    """A model that judges texts as one more rule of the filter."""

    model: str = Field(description="chosen here: a folder or hub name of a classifier")
    label: str | int = Field(description="chosen here: the class whose probability is measured, by name or place")
    min: float = setting(0.5, "chosen here: pairs below this probability are rejected", ge=0, le=1)
    side: Literal["query", "positive"] = setting("positive", "chosen here: the text that is judged")
    tasks: list[Task] = setting(["pretrain"], "chosen here: labelled tasks pass")
    max_length: int = setting(512, "paper §3.1: tokens", ge=2)
    batch_tokens: int | None = setting(None, BATCH_TOKENS, ge=16)


class FilterSettings(Settings):
    """Rules by name; see pipeline/filter/rules.py for what they measure and where thresholds come from."""

    rules: Thresholds = setting({}, "rules.py: name → another threshold, or false for off")
    categories: dict[Category, Thresholds] = setting({}, "chosen here: the same for one category; over `rules`")
    sources: dict[str, Thresholds] = setting({}, "chosen here: the same for one source; over `categories`")
    classifiers: dict[str, ClassifierSettings] = setting(
        {}, "InternLM2 (arXiv 2403.17297) §3.1.1: advert, fluency, toxicity, pornography; the name is the reason"
    )
    mask: bool = setting(True, "chosen here: personal data is masked, not dropped (mobile, ID card, e-mail, bank card)")
    blocked_words: str | None = setting(None, "InternLM2 (arXiv 2403.17297) §3.1.1: a file, a word a line")
    blocked_domains: str | None = setting(None, "InternLM2 (arXiv 2403.17297) §3.1.1: a file, a domain a line")


class DedupSettings(Settings):
    """Exact, then MinHash-LSH near-duplicates."""

    on: Literal["pair", "query", "positive"] = setting("pair", "chosen here: what must be alike to be a duplicate")
    threshold: float = setting(0.7, "InternLM2 (arXiv 2403.17297) §3.1.1: MinHash, 128 permutations, 0.7", ge=0.1, le=1)
    recall: float = setting(
        0.92,
        "chosen here: share of the pairs at the threshold that meet in a bucket; the usual 14 × 9 bands find 44 %",
        gt=0,
        le=0.9999,
    )
    decontaminate: bool | list[str] = setting(
        True, "chosen here: evaluation sets (all of the recipe's, or names and files) that training may not contain"
    )


class EncoderSettings(Settings):
    """Which model encodes and how."""

    model: str = setting("BAAI/bge-large-zh-v1.5", "paper §2.1.1: hub name, folder, or a stage of train")
    pooling: Literal["cls", "mean"] | None = setting(
        None, "chosen here: the folder's own; cls where it says nothing (bge)"
    )
    max_length: int = setting(512, "paper §3.1", ge=2)
    batch_tokens: int | None = setting(None, BATCH_TOKENS, ge=16)
    query_prompt: str | None = setting(
        None,
        "chosen here: what stands before a query; the folder's own, bge's own (FlagEmbedding README), else nothing",
    )
    compile: bool = setting(False, "chosen here: torch.compile, for GPUs; a CPU is faster without")
    trust_remote_code: bool = setting(False, "chosen here: run the Python code that comes with a model")


class ScoreSettings(EncoderSettings):
    """Cosine of query and positive."""

    query_prompt: str | None = setting("", "paper §2.1.1 names no instruction; null: the model's own")
    cutoff: float = setting(0.4, "paper §2.1.1: pairs scored below 0.4 are discarded", ge=-1, le=1)
    cutoffs: dict[Format, Annotated[float, Field(ge=-1, le=1)]] = setting(
        {}, "chosen here: another cutoff for a format"
    )


class ConvertSettings(Settings):
    """From curated pairs to training records."""

    max_prompt_chars: int = setting(2000, "chosen here: longer prompts are code or pasted documents", ge=1)
    min_response_chars: int = setting(3, "chosen here: 氟西汀 is an answer", ge=1)
    class_positives: int = setting(1, "paper §3.2: the same class positive; how many is chosen here", ge=1)
    class_negatives: int = setting(4, "paper §3.2: other classes negative; how many is chosen here", ge=1)
    seed: int = setting(0, "chosen here")


class MineSettings(EncoderSettings):
    """Negative pools."""

    method: str = setting("topk-percpos", "NV-Retriever (arXiv 2407.15831): the best of its methods")
    margin: float | None = setting(
        None, "NV-Retriever §4: by method: shifted by 10 ranks, abs 0.7, marginpos 0.05, percpos 0.95"
    )
    top_k: int = setting(100, "chosen here: ranks kept for each query: nine windows of ten after rank 10", ge=1)
    passages: list[Literal["retrieval", "pretrain"]] = setting(
        ["retrieval"], "chosen here: whose positives are searched; convert's folders"
    )
    queries: list[Literal["retrieval", "pretrain"]] = setting(["retrieval"], "chosen here: whose queries get pools")
    index: str | None = setting(None, "chosen here: Flat up to a million passages, else IVF; a FAISS factory string")
