"""Settings of sources and evaluation sets: which files they have, how these are read, and the SQL that makes pairs."""

import re
from collections.abc import Sequence
from typing import Any, Literal

from pydantic import Field, field_validator, model_validator

from .pairs import Category, Format, Task
from .settings import PromptSettings, Settings, SourcePrompts, setting
from .synthesize_settings import FORMATS_OF_KINDS, SynthesizeSettings


def _as_list(value: Any) -> Any:
    return [value] if isinstance(value, str) else value


Globs = list[str]

RESERVED_TABLES = (
    "rows",
    "batch",
    "records",
    "texts",
    "selected",
    "bad",
    "frame",
    "joined",
    "objects",
    "misfits",
    "suspects",
    "structures",
    "further",
)
"""Names that ingest's own tables have and a table of `join:` can't have."""


class ReaderOptions(Settings):
    """Options of a source's reader. Each applies only to the readers named in its description."""

    header: bool | None = setting(
        None, "csv, tsv: whether files begin with a header line. By default they do unless `columns` is set."
    )
    delimiter: str | None = setting(
        None,
        "csv, tsv: what separates the fields; by default a comma for csv and a tab for tsv. May be several characters"
        " if `quote` is ''.",
        min_length=1,
    )
    quote: str | None = setting(
        None,
        "csv, tsv: the character around quoted fields; '' for no quoting. By default \" for csv and no quoting for"
        " tsv, where a stray quote would swallow the lines after it.",
        max_length=1,
    )
    columns: list[str] | None = setting(
        None, "csv, tsv: column names for files without a header. With `header: true` they replace the header's names."
    )
    whole: bool = setting(
        False,
        "json: read each file as one row with the whole document in the column `data`. Use it if the records lie deep"
        " inside the document; `select` then unnests them.",
    )
    max_chars: int = setting(
        800,
        "documents: characters of a chunk. Documents are cut at headings, then between paragraphs and sentences, and"
        " never within a table, a formula or a fence, which may be longer.",
        origin="chosen here: Chinese text of this length fits into 512 tokens or little more",
        ge=1,
    )
    overlap: int = setting(
        80,
        "documents: characters, in whole sentences, that a chunk repeats from the end of the one before it in the same"
        " section.",
        ge=0,
    )
    turns: int = setting(
        3, "alpaca, sharegpt, messages: exchanges of chat history in a prompt, including the one being answered.", ge=1
    )
    max_prompt_chars: int = setting(
        2000,
        "alpaca, sharegpt, messages: longest prompt, in characters. Older exchanges are dropped until the prompt fits;"
        " the last one always stays.",
        ge=1,
    )


_OF_FILES = (
    *("files", "exclude", "read", "encoding", "simplify", "options", "columns", "join", "select", "from_", "where"),
    *("query", "positive", "negatives", "label", "meta"),
)
"""Keys that say how a source's files are read."""

_SYNTHESIZED: dict[str, Any] = {"files": [], "read": "parquet", "holdout": False}
"""Values of a source with `synthesize:`; evaluating on what a language model asks is left to those who want it."""


class Source(Settings):
    """A data set: its files, the reader that parses them, and the SQL that turns each row into a pair."""

    name: str = Field(
        pattern=r"^[A-Za-z0-9_.-]+$",
        description="Name of the source, unique in the recipe; pairs carry it in the column `source`.",
    )
    category: Category = setting(
        "web_page",
        "Kind of data, one of the paper's eight. `filter.categories` and `mixing.categories` refer to it; evaluation"
        " sets can leave it out.",
    )
    format: Format = setting(
        "title_content",
        "Relation of query and positive, one of the paper's four. Some filter rules judge certain formats only, and"
        " `score.cutoffs` refers to it.",
        origin="paper Table 1: the most common format",
    )
    task: Task = setting(
        "pretrain",
        "What the pairs are for. `pretrain` and `retrieval`: query and positive. `sts`: two sentences and a `label`."
        " `classification`: a text as query and its class name as positive. `passage`: a positive alone, which `mine`"
        " searches and no run trains on. The filter's quality rules apply to `pretrain` and `passage`, the score cutoff"
        " to `pretrain` only.",
        origin="paper §2.1.1: most data is for pre-training",
    )
    files: Globs = Field(
        description="Globs of the files, local or at an fsspec URI (`s3://…`). Compressed files (.gz .zst .xz .bz2)"
        " and archives (.zip .tar) are read as they are."
    )
    synthesize: SynthesizeSettings | None = setting(
        None,
        "A language model that writes the pairs, in place of `files` and of all keys that say how files are read. Their"
        " duplicates yield to the pairs of other sources, and none is held out unless `holdout: true`.",
    )
    exclude: Globs = setting([], "Globs of files to leave out.")
    read: str = Field(
        description="The reader: json, jsonl, csv, tsv, parquet, text, markdown, documents, html, warc, hf (a folder"
        " that Hugging Face `datasets` saved), one of the shapes alpaca, sharegpt, messages, squad and triples, or a"
        " plugin's."
    )
    encoding: str | None = setting(
        None,
        "Character encoding of the files, by default detected for each file. Set it, as in `gb18030`, if that fails.",
    )
    simplify: bool = setting(False, "Convert Traditional Chinese to Simplified with OpenCC. Needs the extra `[zh]`.")
    options: ReaderOptions = setting(ReaderOptions(), "Options of the reader.")
    columns: dict[str, str] = setting(
        {},
        'json, jsonl, csv, tsv, parquet, hf: DuckDB types of columns, as in `{answers: "VARCHAR[]"}`. By default they'
        " are decided from a sample of all files. Rows with a value of another type are rejected.",
    )
    join: dict[str, str] = setting(
        {},
        "Further files for the SQL, as `name: file`. Each becomes a table with the columns `line` and `line_number`.",
    )
    select: str | None = setting(
        None,
        "DuckDB SQL for columns to add to the file's rows, such as `unnest(videoList) AS v`, for use in `query`,"
        " `positive` and the others.",
    )
    from_: str | None = setting(
        None,
        "DuckDB SQL after FROM, in place of `rows`; for joins. `select` then gives all the columns, by default `*`."
        " Keep `_file` and `_line` among them, so that rejects name their place.",
        alias="from",
    )
    where: str | None = setting(
        None, "SQL condition for the rows that belong to this source. Other rows are neither pairs nor rejects."
    )
    query: str = setting(
        "query", "SQL for the query. By default the column `query`, which the readers of the shapes provide."
    )
    positive: str = setting(
        "positive", "SQL for the positive. By default the column `positive`, which the readers of the shapes provide."
    )
    negatives: str | None = setting(
        None,
        "SQL for the hard negatives that come with the data, a list of strings; by default the column `negatives` if"
        " there is one.",
    )
    label: str | None = setting(
        None, "SQL for the similarity of the two sentences, on the scale of `label_range`. Required for `task: sts`."
    )
    label_range: tuple[float, float] = setting(
        (0.0, 1.0), "Lowest and highest label of this source, such as `[0, 5]`; convert maps them to 0…1."
    )
    meta: str | None = setting(
        None,
        "SQL struct of anything else to keep, such as `{'url': url}`; stored as JSON and never used by the trainer.",
    )
    instruction: str | None = setting(
        None,
        "What to find for its queries, as in `Given a question, find its answer`, for models that are trained with"
        " instructions. Queries get `Instruct: …` and `Query: ` before them; so do both sentences with `task: sts` and,"
        " in an evaluation set, texts to classify.",
        origin="chosen here; the form is that of multilingual-e5-instruct and Qwen3-Embedding",
        min_length=1,
    )
    prompts: PromptSettings = setting(
        PromptSettings(), "Texts put before those of this source, in place of the prompts of the model or stage."
    )
    rejects: Literal["masked", "raw"] = setting(
        "masked",
        "Whether the records of rejects are kept as they were read, or with personal data masked as the filter masks it"
        " in pairs; `raw` also follows from `filter.mask: false`.",
    )
    priority: int | None = setting(
        None,
        "Which source keeps a duplicate that several have: the one with the lowest number. By default a source's place"
        " in the recipe, counted from 0.",
    )
    licence: str | None = setting(None, "Licence of the data, for the model card.")
    holdout: bool = setting(True, "Whether the recipe's `holdout:` takes questions of this source.")
    query_only_negatives: bool = setting(
        False,
        "In fine-tuning, compare each of its queries with the query's own negatives only, and no other query with its"
        " texts. Set it where the answer to one query also answers others: classes, clusters, questions made from a"
        " template.",
        origin="chosen here: off, like FlagEmbedding's `no_in_batch_neg`",
    )

    _listed = field_validator("files", "exclude", mode="before")(_as_list)

    @model_validator(mode="before")
    @classmethod
    def _fill_in(cls, keys: Any) -> Any:
        is_synthesized = isinstance(keys, dict) and keys.get("synthesize") is not None
        return _SYNTHESIZED | keys if is_synthesized else keys

    @property
    def gives_questions(self) -> bool:
        """Whether the recipe's `holdout:` takes questions of this source."""
        return self.holdout and self.task != "passage"

    @property
    def has_training_queries(self) -> bool:
        """Whether training draws queries with positives from this source."""
        return self.task not in ("sts", "passage")

    @model_validator(mode="after")
    def _labelled(self) -> "Source":
        if self.task == "sts" and self.label is None:
            raise ValueError(f"source {self.name} has task sts and needs `label:`, an SQL expression")
        if self.task == "passage" and self.query != "query":
            raise ValueError(f"source {self.name} has task passage, so remove `query:`; keep such a column in `meta:`")
        if self.query_only_negatives and not self.has_training_queries:
            raise ValueError(
                f"source {self.name} has task {self.task} and no queries, so remove `query_only_negatives:`"
            )
        if self.label_range[0] >= self.label_range[1]:
            raise ValueError(f"source {self.name}: label_range must rise, got {list(self.label_range)}")
        for name in self.join:
            if not re.fullmatch(r"[A-Za-z_]\w*", name) or name.lower() in RESERVED_TABLES:
                raise ValueError(
                    f"source {self.name}: join can't be named {name!r}: expected letters, digits and _, and none of "
                    f"{', '.join(RESERVED_TABLES)}"
                )
        return self

    @model_validator(mode="after")
    def _is_synthesized_alone(self) -> "Source":
        if self.synthesize is None:
            return self
        fields = type(self).model_fields
        for name in _OF_FILES:
            if getattr(self, name) != _SYNTHESIZED.get(name, fields[name].default):
                raise ValueError(
                    f"source {self.name} has `synthesize:` in place of files, so remove `{fields[name].alias or name}:`"
                )
        if self.priority is not None:
            raise ValueError(
                f"source {self.name} has `synthesize:`, and its pairs yield to all others: remove `priority:`"
            )
        if self.task not in ("pretrain", "retrieval"):
            raise ValueError(
                f"source {self.name} has task {self.task}: expected pretrain or retrieval, for `synthesize:` writes "
                "queries"
            )
        for kind in self.synthesize.kinds:
            if self.format not in FORMATS_OF_KINDS[kind]:
                expected = " or ".join(f"`format: {each}`" for each in FORMATS_OF_KINDS[kind])
                raise ValueError(
                    f"source {self.name} has format {self.format}, to which `synthesize.kinds.{kind}` does not belong: "
                    f"expected {expected}, or another kind"
                )
        return self

    @model_validator(mode="after")
    def _prompts_are_used(self) -> "Source":
        used, given = self._prompted_sides(), self.prompts.model_dump(exclude_none=True)
        if unused := [side for side in given if side not in used]:
            raise ValueError(
                f"{self.name} has task {self.task}, so no text gets `prompts.{unused[0]}`; expected "
                f"{' or '.join(f'`prompts.{side}`' for side in used)}"
            )
        if self.instruction is not None and used == ("passage",):
            raise ValueError(f"{self.name} has task passage and no queries, so remove `instruction:`")
        if self.instruction is not None and used[0] in given:
            raise ValueError(
                f"{self.name} has both `instruction` and `prompts.{used[0]}`, which go to the same place; keep one"
            )
        return self

    def _prompted_sides(self) -> tuple[str, ...]:
        if self.task in ("sts", "passage"):
            return ("sentence",) if self.task == "sts" else ("passage",)
        return ("query", "passage")


class EvaluationSet(Source):
    """A source to evaluate on; `dedup.decontaminate` keeps its texts out of training."""

    passages: Globs = setting(
        [],
        "Globs of more files, read like `files` but without `where`, whose positives join the passages that are"
        " searched.",
    )

    _listed_passages = field_validator("passages", mode="before")(_as_list)

    @model_validator(mode="after")
    def _asks(self) -> "EvaluationSet":
        if self.synthesize is not None:
            raise ValueError(f"evaluation set {self.name}: `synthesize` is for `sources`, so remove it")
        if not self.holdout:
            raise ValueError(f"evaluation set {self.name}: `holdout` is for `sources`, so remove it")
        if self.query_only_negatives:
            raise ValueError(f"evaluation set {self.name}: `query_only_negatives` is for `sources`, so remove it")
        if self.task == "passage":
            raise ValueError(
                f"evaluation set {self.name} has task passage: expected pairs in `files:`, and files of passages to "
                "search in `passages:`"
            )
        return self

    def _prompted_sides(self) -> tuple[str, ...]:
        return ("sentence",) if self.task == "classification" else super()._prompted_sides()


def own_prompts(sources: Sequence[Source]) -> dict[str, SourcePrompts]:
    """Return the prompts of the sources that have any of their own, by name."""
    own = {each.name: SourcePrompts(**each.prompts.model_dump(), instruction=each.instruction) for each in sources}
    return {name: prompts for name, prompts in own.items() if prompts != SourcePrompts()}
