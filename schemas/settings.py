"""Settings of the data stages: one validated model per section of the recipe, with the paper's values as defaults.

The settings page of the documentation is generated from these models. Each field has a description (what it does, its
unit, when to change it) and an origin, which says where its default comes from: a section of the paper
(Conan-embedding, arXiv 2408.15710), another source, or "chosen here".
"""

import re
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from .pairs import Category, Format, Task


def setting(default: Any, description: str, *, origin: str = "chosen here", **limits: Any) -> Any:
    """Declare a field of a settings model.

    Args:
        default: The default value.
        description: What the setting does, its unit, and when to change it.
        origin: Where the default comes from; kept as `json_schema_extra["origin"]`.
        limits: Further arguments of pydantic's Field, such as `ge=0`.
    """
    return Field(default, description=description, json_schema_extra={"origin": origin}, **limits)


INTERNLM2 = "InternLM2 (arXiv 2403.17297) §3.1.1"
BATCH_TOKENS = (
    "Tokens per batch, padding included; by default 2,048 on a CPU and 16,384 on a GPU. Lower it if the device runs out"
    " of memory."
)


class Settings(BaseModel):
    """Base of all settings models: frozen; unknown keys, NaN and infinite numbers are errors."""

    model_config = ConfigDict(extra="forbid", frozen=True, populate_by_name=True, allow_inf_nan=False)


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

    _listed = field_validator("files", "exclude", mode="before")(_as_list)

    @model_validator(mode="after")
    def _labelled(self) -> "Source":
        if self.task == "sts" and self.label is None:
            raise ValueError(f"source {self.name} has task sts and needs `label:`, an SQL expression")
        if self.task == "passage" and self.query != "query":
            raise ValueError(f"source {self.name} has task passage, so remove `query:`; keep such a column in `meta:`")
        if self.label_range[0] >= self.label_range[1]:
            raise ValueError(f"source {self.name}: label_range must rise, got {list(self.label_range)}")
        for name in self.join:
            if not re.fullmatch(r"[A-Za-z_]\w*", name) or name.lower() in RESERVED_TABLES:
                raise ValueError(
                    f"source {self.name}: join can't be named {name!r}: expected letters, digits and _, and none of "
                    f"{', '.join(RESERVED_TABLES)}"
                )
        return self


class EvaluationSet(Source):
    """A source to evaluate on; `dedup.decontaminate` keeps its texts out of training."""

    passages: Globs = setting(
        [], "Globs of more files, read like `files`, whose positives join the passages that are searched."
    )

    _listed_passages = field_validator("passages", mode="before")(_as_list)

    @model_validator(mode="after")
    def _asks(self) -> "EvaluationSet":
        if self.task == "passage":
            raise ValueError(
                f"evaluation set {self.name} has task passage: expected pairs in `files:`, and files of passages to "
                "search in `passages:`"
            )
        return self


Thresholds = dict[str, float | bool]


class ClassifierSettings(Settings):
    """A text classifier that acts as one more rule of the filter."""

    model: str = Field(description="Folder or Hugging Face hub name of the classifier.")
    label: str | int = Field(description="The class whose probability is measured, by name or index.")
    min: float = setting(0.5, "Pairs with a lower probability are rejected.", ge=0, le=1)
    side: Literal["query", "positive"] = setting("positive", "The text that is classified.")
    tasks: list[Task] = setting(["pretrain"], "Tasks whose pairs are judged; all others pass.")
    max_length: int = setting(512, "Longest text, in tokens; the rest is cut off.", origin="paper §3.1", ge=2)
    batch_tokens: int | None = setting(None, BATCH_TOKENS, ge=16)


class FilterSettings(Settings):
    """Rules of the filter. pipeline/filter/rules.py says what each measures and where its threshold comes from."""

    rules: Thresholds = setting(
        {},
        "Thresholds by rule, in place of the rule's own; `false` turns a rule off. `conan filter --dry-run` shows how"
        " many pairs each rule rejects.",
        origin="rules.py",
    )
    categories: dict[Category, Thresholds] = setting({}, "Thresholds for single categories; they override `rules`.")
    sources: dict[str, Thresholds] = setting({}, "Thresholds for single sources; they override `categories`.")
    classifiers: dict[str, ClassifierSettings] = setting(
        {},
        "Classifiers that judge texts (adverts, fluency, toxicity, pornography); rejects have their name as reason.",
        origin=INTERNLM2,
    )
    mask: bool = setting(
        True,
        "Mask personal data instead of dropping the pair: mobile numbers, ID cards, e-mail addresses, bank cards, QQ"
        " numbers and WeChat ids.",
    )
    blocked_words: str | None = setting(
        None, "File with one word per line; pairs that contain one are rejected.", origin=INTERNLM2
    )
    blocked_domains: str | None = setting(
        None, "File with one domain per line; pairs that link to one are rejected.", origin=INTERNLM2
    )


class DedupSettings(Settings):
    """Exact duplicates, near-duplicates (MinHash-LSH), and texts of evaluation sets."""

    on: Literal["pair", "query", "positive"] = setting(
        "pair",
        "What duplicates have in common: both texts, or only the query or the positive. `query` and `positive` drop"
        " more.",
    )
    threshold: float = setting(
        0.7,
        "Jaccard similarity of character n-grams from which two texts are near-duplicates. Lower it to drop more.",
        origin=f"{INTERNLM2}: MinHash, 128 permutations, 0.7",
        ge=0.1,
        le=1,
    )
    recall: float = setting(
        0.92,
        "Share of the text pairs exactly at `threshold` that LSH must find; the number of bands follows from it. A"
        " higher share takes more time and memory.",
        origin="chosen here: the usual 14 × 9 bands find 44 %",
        gt=0,
        le=0.9999,
    )
    decontaminate: bool | list[str] = setting(
        True,
        "Evaluation sets whose texts no training pair may contain: `true` for all of the recipe's, `false` for no"
        " check, or a list of set names and of Parquet or JSONL files.",
    )


class EncoderSettings(Settings):
    """The embedding model and how it encodes."""

    model: str = setting(
        "BAAI/bge-large-zh-v1.5",
        "Hugging Face hub name, model folder, or training stage of this corpus (`bootstrap`, `pretrain`, `finetune`).",
        origin="paper §2.1.1",
    )
    pooling: Literal["cls", "mean"] | None = setting(
        None, "How token vectors become one vector. By default what the model's folder says, else `cls`, as bge needs."
    )
    max_length: int = setting(512, "Longest text, in tokens; the rest is cut off.", origin="paper §3.1", ge=2)
    batch_tokens: int | None = setting(None, BATCH_TOKENS, ge=16)
    query_prompt: str | None = setting(
        None,
        "Text put before each query. By default what the model's folder says, for bge models the prompt in"
        " FlagEmbedding's README, else nothing.",
    )
    compile: bool = setting(False, "Compile the model with torch.compile. For GPUs; a CPU is faster without.")
    trust_remote_code: bool = setting(
        False, "Run the Python code that comes with the model. Only for models whose code you trust."
    )


class ScoreSettings(EncoderSettings):
    """Cosine of query and positive."""

    query_prompt: str | None = setting(
        "",
        "Text put before each query. `null` takes the model's own prompt, as in `mine`.",
        origin="paper §2.1.1, which names no prompt",
    )
    cutoff: float = setting(
        0.4,
        "Pre-training pairs with a lower cosine are rejected. It fits the default model; look at the score histogram"
        " in `conan report` before using it with another one. A new cutoff encodes nothing again.",
        origin="paper §2.1.1",
        ge=-1,
        le=1,
    )
    cutoffs: dict[Format, Annotated[float, Field(ge=-1, le=1)]] = setting(
        {}, "Cutoffs for single formats, such as `{title_content: 0.35}`; they override `cutoff`."
    )


class ConvertSettings(Settings):
    """From curated pairs to training records."""

    max_prompt_chars: int = setting(
        2000,
        "Prompt-response pairs with a longer prompt, in characters, are rejected.",
        origin="chosen here: longer prompts are code or pasted documents",
        ge=1,
    )
    min_response_chars: int = setting(
        3,
        "Prompt-response pairs with a shorter response, in characters, are rejected.",
        origin="chosen here: 氟西汀 is an answer",
        ge=1,
    )
    class_positives: int = setting(
        1,
        "Classification: positives per text, from its own class.",
        origin="paper §3.2 for the method; the number is chosen here",
        ge=1,
    )
    class_negatives: int = setting(
        4,
        "Classification: negatives per text, from the other classes.",
        origin="paper §3.2 for the method; the number is chosen here",
        ge=1,
    )
    seed: int = setting(0, "Seed of the draw of positives and negatives among classes.")


class MineSettings(EncoderSettings):
    """Negative pools."""

    method: str = setting(
        "topk-percpos",
        "Which passages are too similar to a query to be negatives. topk: none. topk-shifted: the best `margin` ranks."
        " topk-abs: those that score `margin` or more. topk-marginpos: those within `margin` of the lowest positive."
        " topk-percpos: those above `margin` × the lowest positive.",
        origin="NV-Retriever (arXiv 2407.15831): the best of its methods",
    )
    margin: float | None = setting(
        None,
        "The method's margin; by default 10 ranks for topk-shifted, 0.7 for topk-abs, 0.05 for topk-marginpos, 0.95"
        " for topk-percpos. A lower margin (for topk-marginpos and topk-shifted a higher one) leaves fewer false and"
        " fewer hard negatives.",
        origin="NV-Retriever (arXiv 2407.15831) §4",
    )
    top_k: int = setting(
        100,
        "Candidates to keep per query, best first. Hard negative mining moves down this list, so raise it for long"
        " training runs.",
        origin="chosen here: nine windows of ten after rank 10",
        ge=1,
    )
    passages: list[Literal["retrieval", "pretrain", "passages"]] = setting(
        ["retrieval", "passages"],
        "Folders of convert/ whose positives are searched; `passages` may be empty. Add `pretrain` to search the whole"
        " corpus.",
    )
    queries: list[Literal["retrieval", "pretrain"]] = setting(
        ["retrieval"], "Folders of convert/ whose queries get pools; must include those of `finetune.queries`."
    )
    index: str | None = setting(
        None,
        "FAISS index factory string, such as `IVF4096,Flat`. By default every passage is compared up to a million, and"
        " IVF is used above.",
    )
