"""One validated model per stage: the paper's values as defaults, each with where it comes from.

The description of a field begins with its origin: a section of the paper (Conan-embedding, arXiv 2408.15710), another
source, or "ours" for what no source gives.
"""

import re
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, PositiveInt, field_validator, model_validator

from .pairs import Category, Format, Task


def given(value: Any, origin: str, **limits: Any) -> Any:
    """A default with its origin and its limits."""
    return Field(value, description=origin, **limits)


BATCH_TOKENS = "ours: tokens a batch, padding included; by default 2,048 on a CPU, 16,384 on a GPU"


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

    header: bool | None = given(None, "ours: csv and tsv have a header unless columns are named")
    delimiter: str | None = given(None, "ours: a comma for csv, a tab for tsv", min_length=1)
    quote: str | None = given(
        None, 'ours: " for csv, none for tsv: a stray quote there must not lose lines', max_length=1
    )
    columns: list[str] | None = given(None, "ours: names for a table without a header")
    whole: bool = given(False, "ours: json only: one row a file, its document in the column `data`")
    turns: int = given(3, "ours: chats only: exchanges of history kept in a prompt, the last included", ge=1)
    max_prompt_chars: int = given(
        2000, "ours: chats only: the oldest exchanges are left out of a prompt longer than this", ge=1
    )


class Source(Settings):
    """Files, a reader and a projection to the pair."""

    name: str = Field(pattern=r"^[A-Za-z0-9_.-]+$")
    category: Category = given("web_page", "ours: used by evaluation sets, which need no category")
    format: Format = given("title_content", "paper Table 1: the most common format")
    task: Task = given("pretrain", "paper §2.1.1: most data is for pre-training")
    files: Globs
    exclude: Globs = given([], "ours")
    read: Literal[
        "json",
        "jsonl",
        "csv",
        "tsv",
        "parquet",
        "text",
        "markdown",
        "alpaca",
        "sharegpt",
        "messages",
        "squad",
        "triples",
        "hf",
        "html",
        "warc",
    ]
    encoding: str | None = given(None, "ours: detected unless declared")
    simplify: bool = given(False, "ours: Traditional Chinese becomes Simplified (opencc, the extra `[zh]`)")
    options: ReaderOptions = given(ReaderOptions(), "ours")
    join: dict[str, str] = given({}, "ours: name → file whose lines are a table of that name")
    select: str | None = given(None, "ours: DuckDB SQL over the file's rows")
    from_: str | None = Field(None, alias="from", description="ours: replaces `rows` after FROM")
    where: str | None = given(None, "ours: which rows belong to this source")
    query: str = given("query", "ours: SQL; shapes bring a column of that name")
    positive: str = given("positive", "ours: SQL; shapes bring a column of that name")
    negatives: str | None = given(None, "ours: SQL, a list of strings")
    label: str | None = given(None, "ours: SQL; needed for task sts")
    label_range: tuple[float, float] = given((0.0, 1.0), "ours: the labels' own scale, mapped to 0…1")
    meta: str | None = given(None, "ours: SQL struct, kept as JSON")
    priority: int | None = given(None, "ours: the lower survives a duplicate; default: place in the recipe")
    licence: str | None = given(None, "ours: for the reader of the recipe and the model card")

    _listed = field_validator("files", "exclude", mode="before")(_as_list)

    @model_validator(mode="after")
    def _labelled(self) -> "Source":
        if self.task == "sts" and self.label is None:
            raise ValueError(f"source {self.name} has task sts and needs `label:`, an SQL expression")
        if self.label_range[0] >= self.label_range[1]:
            raise ValueError(f"source {self.name}: label_range must rise, got {list(self.label_range)}")
        quoted = self.options.quote or (self.read == "csv" and self.options.quote is None)
        if quoted and len(self.options.delimiter or ",") > 1:
            raise ValueError(
                f"source {self.name}: a table with quotes needs a delimiter of one character; quote: '' is none"
            )
        for name in self.join:
            if not re.fullmatch(r"[A-Za-z_]\w*", name) or name.lower() in RESERVED_TABLES:
                raise ValueError(f"source {self.name}: join can't be named {name!r}")
        return self


class EvaluationSet(Source):
    """A source kept out of training."""

    passages: Globs = given([], "ours: more files whose positives are searched among")

    _listed_passages = field_validator("passages", mode="before")(_as_list)


Thresholds = dict[str, float | bool]


class ClassifierSettings(Settings):
    """A model that judges texts as one more rule of the filter."""

    model: str = Field(description="ours: a folder or hub name of a classifier")
    label: str | int = Field(description="ours: the class whose probability is measured, by name or place")
    min: float = given(0.5, "ours: pairs below this probability are rejected", ge=0, le=1)
    side: Literal["query", "positive"] = given("positive", "ours: the text that is judged")
    tasks: list[Task] = given(["pretrain"], "DESIGN §4: labelled tasks pass")
    max_length: int = given(512, "paper §3.1: tokens", ge=2)
    batch_tokens: int | None = given(None, BATCH_TOKENS, ge=16)


class FilterSettings(Settings):
    """Rules by name; see pipeline/filter/rules.py for what they measure and where thresholds come from."""

    rules: Thresholds = given({}, "rules.py: name → another threshold, or false for off")
    categories: dict[Category, Thresholds] = given({}, "ours: the same for one category; over `rules`")
    sources: dict[str, Thresholds] = given({}, "ours: the same for one source; over `categories`")
    classifiers: dict[str, ClassifierSettings] = given(
        {}, "InternLM2 (arXiv 2403.17297) §3.1.1: advert, fluency, toxicity, pornography; the name is the reason"
    )
    mask: bool = given(True, "ours: personal data is masked, not dropped (DESIGN: mobile, ID card, e-mail, card)")
    blocked_words: str | None = given(None, "InternLM2 (arXiv 2403.17297) §3.1.1: a file, a word a line")
    blocked_domains: str | None = given(None, "InternLM2 (arXiv 2403.17297) §3.1.1: a file, a domain a line")


class DedupSettings(Settings):
    """Exact, then MinHash-LSH near-duplicates."""

    on: Literal["pair", "query", "positive"] = given("pair", "ours: what must be alike to be a duplicate")
    threshold: float = given(0.7, "InternLM2 (arXiv 2403.17297) §3.1.1: MinHash, 128 permutations, 0.7", ge=0.1, le=1)
    recall: float = given(
        0.92,
        "ours: share of the pairs at the threshold that meet in a bucket; the usual 14 × 9 bands find 44 %",
        gt=0,
        le=0.9999,
    )
    decontaminate: bool | list[str] = given(
        True, "ours: evaluation sets (all of the recipe's, or names and files) that training may not contain"
    )


class EncoderSettings(Settings):
    """Which model encodes and how."""

    model: str = given("BAAI/bge-large-zh-v1.5", "paper §2.1.1: hub name, folder, or a stage of train")
    pooling: Literal["cls", "mean"] | None = given(None, "ours: the folder's own; cls where it says nothing (bge)")
    max_length: int = given(512, "paper §3.1", ge=2)
    batch_tokens: int | None = given(None, BATCH_TOKENS, ge=16)
    query_prompt: str | None = given(
        None, "ours: what stands before a query; the model folder's own, bge's own (FlagEmbedding README), else nothing"
    )
    compile: bool = given(False, "ours: torch.compile, for GPUs; a CPU is faster without")
    trust_remote_code: bool = given(False, "ours: run the Python code that comes with a model")


class ScoreSettings(EncoderSettings):
    """Cosine of query and positive."""

    query_prompt: str | None = given("", "paper §2.1.1 names no instruction; null: the model's own")
    cutoff: float = given(0.4, "paper §2.1.1: pairs scored below 0.4 are discarded", ge=-1, le=1)
    cutoffs: dict[Format, Annotated[float, Field(ge=-1, le=1)]] = given({}, "ours: another cutoff for a format")


class ConvertSettings(Settings):
    """From curated pairs to training records."""

    max_prompt_chars: int = given(2000, "ours: longer prompts are code or pasted documents", ge=1)
    min_response_chars: int = given(3, "ours: 氟西汀 is an answer", ge=1)
    class_positives: int = given(1, "paper §3.2: the same class positive; how many is ours", ge=1)
    class_negatives: int = given(4, "paper §3.2: other classes negative; how many is ours", ge=1)
    seed: int = given(0, "ours")


class MineSettings(EncoderSettings):
    """Negative pools."""

    method: Literal["topk", "topk-shifted", "topk-abs", "topk-marginpos", "topk-percpos"] = given(
        "topk-percpos", "NV-Retriever (arXiv 2407.15831): the best of its methods"
    )
    margin: float | None = given(
        None, "NV-Retriever §4: by method: shifted by 10 ranks, abs 0.7, marginpos 0.05, percpos 0.95"
    )
    top_k: int = given(100, "ours: ranks kept for each query: nine windows of ten after rank 10", ge=1)
    passages: list[Literal["retrieval", "pretrain"]] = given(["retrieval"], "DESIGN §6: convert's folders")
    queries: list[Literal["retrieval", "pretrain"]] = given(["retrieval"], "ours: whose queries get pools")
    index: str | None = given(None, "DESIGN §6: Flat up to a million passages, else IVF; a FAISS factory string")


Layout = Literal["fused", "paper"]

MRL_DIMENSIONS = [256, 512, 768, 1024, 1280, 1536, 1792]


class Mixing(Settings):
    """How often the sources are drawn. A bare number in the recipe is `power`."""

    power: float = given(
        0.5, "ours: a source is drawn in proportion to its size to this power; 1 is by size", ge=0, le=1
    )
    categories: dict[Category, float] | Literal["paper"] | None = given(
        None, "ours: shares of the categories, `power` works within each; paper: the proportions of its Table 1"
    )
    sources: dict[str, float] = given({}, "ours: a source is drawn so many times as often")


class Validation(Settings):
    """Evaluation while training; the best model so far is kept beside the last."""

    every: int | None = given(None, "ours: steps between evaluations; default none", ge=1)
    sets: list[str] = given([], "ours: names of `evaluation:` sources, or files; default all of `evaluation:`")
    queries: int = given(500, "ours: queries, or sentence pairs, of each set; fewer are quicker", ge=1)


class OptimizerSettings(Settings):
    """What both training stages share."""

    learning_rate: float = given(1e-5, "paper §3.1", gt=0)
    warmup: float = given(0.05, "paper §3.1: share of all steps", ge=0, le=1)
    weight_decay: float = given(0.001, "paper §3.1", ge=0)
    gradient_clipping: float = given(1.0, "ours: DeepSpeed's own default since 0.19.3; 0 is off", ge=0)
    steps: int | None = given(None, "ours: updates; default those of `epochs`", ge=1)
    epochs: float = given(
        1.0,
        "ours: the paper says hours, not epochs; so many draws for each record, where steps is not given",
        gt=0,
    )
    max_length: int = given(512, "paper §3.1: tokens", ge=2)
    temperature: float = given(0.02, "ours: the paper gives none; GTE and bge train near it", gt=0)
    precision: Literal["auto", "bf16", "fp16", "fp32"] = given(
        "auto", "paper §3.1: mixed precision; ours: bf16 where the device has it, fp32 on a CPU and with zero_stage 0"
    )
    zero_stage: Literal[0, 1, 2, 3] = given(1, "paper §3.1: DeepSpeed ZeRO stage 1; 0, which shares nothing, in fp32")
    mixing: Mixing = given(Mixing(), "ours")
    seed: int = given(0, "ours", ge=0)
    checkpoint_every: int = given(500, "ours: steps", ge=1)
    keep_checkpoints: int = given(2, "ours", ge=1)
    log_every: int = given(10, "ours: steps", ge=1)
    gradient_checkpointing: bool = given(False, "ours: less memory, a third more time")
    compile: bool = given(False, "ours: torch.compile the encoder, for GPUs; a CPU is faster without")
    learn_temperature: bool = given(
        False, "ours: `temperature` is where it starts; 0.01 is the least (CLIP, arXiv 2103.00020, §2.5)"
    )
    validation: Validation = given(Validation(), "ours")
    tensorboard: bool = given(False, "ours: write what log.jsonl has for TensorBoard, too")
    chunk_tokens: int | None = given(
        None,
        "ours: tokens encoded at a time, by GradCache (arXiv 2101.06983): memory no longer grows with the number of"
        " negatives, but texts are encoded twice; default all at once",
        ge=2,
    )

    @model_validator(mode="after")
    def _precision_fits(self) -> Self:
        if self.zero_stage == 0 and self.precision in ("bf16", "fp16"):
            raise ValueError(f"zero_stage 0 trains in fp32; {self.precision} wants zero_stage 1, 2 or 3")
        return self

    @model_validator(mode="after")
    def _temperature_is_whole(self) -> Self:
        if self.learn_temperature and self.zero_stage == 3:
            raise ValueError("learn_temperature wants zero_stage 0, 1 or 2: 3 spreads every weight over the processes")
        return self

    @field_validator("mixing", mode="before")
    @classmethod
    def _power(cls, value: Any) -> Any:
        return {"power": value} if isinstance(value, int | float) and not isinstance(value, bool) else value


class PretrainSettings(OptimizerSettings):
    """InfoNCE with in-batch negatives (paper §2.1.1, eq. 1)."""

    model: str = given("bootstrap", "ours: hub name, folder, or a stage of train; the paper takes BERT-large")
    on: Literal["ingest", "filter", "dedup", "score", "convert"] = given("convert", "ours: whose pairs to train on")
    batch_size: int = given(8, "paper §3.1: pairs on each GPU", ge=1)
    dimension: int = given(1792, "paper §3.1: the linear layer's width", ge=1)
    pooling: Literal["mean", "cls"] = given("mean", "DESIGN §7, as the released model does")
    dimensions: list[PositiveInt] = given(
        MRL_DIMENSIONS, "paper §3.1: MRL widths; the paper names them for fine-tuning"
    )
    by_source: bool = given(False, "ours: an update's pairs are of one source, so that negatives are of its kind")
    symmetric: bool = given(False, "ours: the mean of eq. 1 and of eq. 1 with queries and positives exchanged")


class HardNegativeMining(Settings):
    """Dynamic hard negative mining (paper §2.2)."""

    enabled: bool = given(True, "paper §2.2")
    check_every: int = given(100, "paper §2.2: iterations between checks", ge=1)
    factor: float = given(1.15, "paper §2.2: no longer hard when factor × score < initial score", gt=0)
    ceiling: float = given(0.8, "paper §2.2: and |score| is below it", gt=0)
    offset: int = given(10, "paper §2.2: the i-th window starts at rank (i − 1) · n + 10", ge=0)
    refresh: Literal["static", "rerank", "remine"] = given(
        "static",
        "paper §2.2: windows are of the pool as it was mined; ours: rerank takes them from the candidates as the"
        " present weights order them, remine rebuilds all pools with the present weights",
    )
    remine_every: int = given(1000, "ours: steps between rebuildings of the pools, for remine", ge=1)


class FinetuneSettings(OptimizerSettings):
    """InfoNCE with hard negatives + β·CoSENT (paper §2.1.2, §2.3, eq. 3)."""

    model: str = given("pretrain", "paper Figure 1: fine-tuning starts from the pre-trained model")
    queries: list[Literal["retrieval", "pretrain"]] = given(["retrieval"], "paper §3.2; ours: more pairs as retrieval")
    retrieval_batch: int = given(4, "paper §3.1: queries in an update", ge=1)
    sts_batch: int = given(32, "paper §3.1: sentence pairs in an update", ge=0)
    negatives: int = given(4, "ours: hard negatives of each query; the paper's n", ge=1)
    sts_by_source: bool = given(
        True, "ours: an update's sentence pairs are of one source, as one source's 0/1 is not another's 0…5"
    )
    in_turn: bool = given(
        False, "ours: an update is of one task, drawn at random: what the paper compares CBB with (its Figure 4)"
    )
    beta: float = given(0.8, "paper §2.3, eq. 3: weight of CoSENT", ge=0)
    sts_temperature: float = given(0.05, "CoSENT (kexue.fm 8847): scale 20", gt=0)
    layout: Layout = given(
        "fused", "ours: every rank encodes texts of both tasks; paper: as its Figure 3, ranks of their own for STS"
    )
    in_batch_positives: bool = given(False, "ours: eq. 3's denominator has no other query's positive")
    query_only_negatives: bool = given(False, "ours: eq. 3's denominator has all queries' negatives; true: its own")
    dimensions: list[PositiveInt] = given(MRL_DIMENSIONS, "paper §3.1: MRL widths")
    hard_negative_mining: HardNegativeMining = given(HardNegativeMining(), "paper §2.2")

    @model_validator(mode="after")
    def _ranks_can_mine(self) -> Self:
        if self.hard_negative_mining.refresh != "static" and self.zero_stage == 3:
            raise ValueError(
                "hard_negative_mining.refresh: rerank and remine want zero_stage 0, 1 or 2; in 3, ranks encode in step"
            )
        return self


class BootstrapTraining(PretrainSettings):
    """Training from random weights wants a larger rate and batch than the paper's, which start from BERT-large."""

    on: Literal["ingest", "filter", "dedup", "score", "convert"] = given("dedup", "ours: before anything can be scored")
    learning_rate: float = given(1e-3, "ours: for random weights", gt=0)
    batch_size: int = given(128, "ours: pairs on each process", ge=1)
    temperature: float = given(0.05, "ours: softer at first", gt=0)
    max_length: int = given(64, "ours: tokens", ge=2)


class BootstrapSettings(Settings):
    """A small BERT made from nothing, for machines without a pretrained encoder at hand."""

    vocabulary: str | None = given(None, "ours: a vocab.txt; made of the corpus's characters otherwise")
    vocabulary_size: int = given(8000, "ours: where no vocabulary is given", ge=100)
    layers: int = given(2, "ours", ge=1)
    hidden: int = given(128, "ours", ge=8)
    heads: int = given(2, "ours", ge=1)
    intermediate: int = given(512, "ours", ge=8)
    max_length: int = given(512, "paper §3.1", ge=8)
    training: BootstrapTraining = given(BootstrapTraining(), "ours")


class ExportSettings(Settings):
    """The folder that sentence-transformers loads."""

    model: str = given("finetune", "ours: which training stage's model")
    folder: str = given("model", "ours: inside the corpus unless absolute")
    precision: Literal["fp32", "fp16", "bf16"] = given("fp32", "ours: of the weights; half of it is half the size")
    onnx: bool = given(False, "ours: also a file for ONNX Runtime: ids and mask in, raw vectors out")


class EvaluateSettings(Settings):
    """Which models `conan run` compares on the evaluation sets, and how they are encoded."""

    models: list[str] = given(["finetune"], "ours")
    dimensions: list[PositiveInt] = given([], "ours: MRL widths that vectors are cut to, besides their own")
    max_length: int = given(512, "paper §3.1", ge=2)
    batch_tokens: int | None = given(None, BATCH_TOKENS, ge=16)
