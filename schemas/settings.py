"""Settings of the data stages: one validated model per section of the recipe, with the paper's values as defaults.

The settings page of the documentation is generated from these models. Each field has a description (what it does, its
unit, when to change it) and an origin, which says where its default comes from: a section of the paper
(Conan-embedding, arXiv 2408.15710), another source, or "chosen here".
"""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

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


MOST_HELD_OUT = 0.2
"""The largest share of a source to hold out. Chosen here: most of a source is for training, whatever `min` says."""


class HoldoutSettings(Settings):
    """Questions of the corpus's own sources that are kept out of training, to evaluate on."""

    share: float = setting(0.05, "Share of each source's questions.", gt=0, le=MOST_HELD_OUT)
    min: int = setting(
        200, "At least this many questions of each source, but never more than a fifth of those it has.", ge=0
    )
    max: int = setting(
        5000,
        "At most this many questions of each source.",
        origin="chosen here: the standard error of a mean over 5,000 values between 0 and 1 is at most 0.007",
        ge=1,
    )
    by: Literal["cluster"] = setting(
        "cluster",
        "What stays together: questions that are near-duplicates, and whatever shares a text or a near-duplicate with"
        " a held-out pair.",
    )

    @model_validator(mode="after")
    def _min_is_below_max(self) -> "HoldoutSettings":
        if self.min > self.max:
            raise ValueError(f"min is {self.min} and above max, {self.max}")
        return self


Pooling = Literal["cls", "mean", "max", "lasttoken", "weightedmean", "mean_sqrt_len"]


class PromptSettings(Settings):
    """Texts put before what is encoded. Missing ones are the model's own; `""` puts nothing before a text."""

    query: str | None = setting(
        None,
        "Put before queries. By default what the model's folder says; in mining, training and evaluation, bge models"
        " whose folder says nothing get the prompt of FlagEmbedding's README.",
    )
    passage: str | None = setting(None, "Put before passages. By default what the model's folder says.")
    sentence: str | None = setting(
        None,
        "Put before both sides of sentence pairs and before texts to classify. By default the folder's default prompt.",
    )


class SourcePrompts(PromptSettings):
    """The prompts of a source, in place of the model's: texts for some sides, or an instruction."""

    instruction: str | None = setting(None, "The task of the source's queries or sentences.")


class EncoderSettings(Settings):
    """The embedding model and how it encodes."""

    model: str = setting(
        "BAAI/bge-large-zh-v1.5",
        "Hugging Face hub name, model folder, or training stage of this corpus (`bootstrap`, `pretrain`, `finetune`);"
        " `NAME[:6]` is the first six layers of a model.",
        origin="paper §2.1.1",
    )
    pooling: Pooling | None = setting(
        None,
        "How token vectors become one vector. By default what the model's folder says; an encoder whose folder says"
        " nothing gets `mean`, as in sentence-transformers, and a decoder is refused.",
    )
    max_length: int = setting(
        512,
        "Longest text, in tokens, prompt included; the rest is cut off. Models whose folder names a shorter length keep"
        " it.",
        origin="paper §3.1",
        ge=2,
    )
    batch_tokens: int | None = setting(None, BATCH_TOKENS, ge=16)
    prompts: PromptSettings = setting(PromptSettings(), "Texts put before queries, passages and sentences.")
    compile: bool = setting(False, "Compile the model with torch.compile. For GPUs; a CPU is faster without.")
    trust_remote_code: bool = setting(
        False, "Run the Python code that comes with the model. Only for models whose code you trust."
    )


class ScoreSettings(EncoderSettings):
    """Cosine of query and positive, and the pairs that it cuts: by a cutoff, by source, by rank, or by several."""

    prompts: PromptSettings = setting(
        PromptSettings(),
        "Texts put before queries and passages: those of the model's folder. bge's have none there, so they are scored"
        " without.",
        origin="paper §2.1.1, which names no prompt",
    )
    cutoff: Annotated[float, Field(ge=-1, le=1)] | None = setting(
        0.4,
        "Pre-training pairs with a lower cosine are rejected; `null` turns this cut off. It fits the default model:"
        " look at the histogram in `conan report` before using it with another one. A change of any cut encodes"
        " nothing again.",
        origin="paper §2.1.1",
    )
    cutoffs: dict[Format, Annotated[float, Field(ge=-1, le=1)]] = setting(
        {}, "Cutoffs for single formats, such as `{title_content: 0.35}`; they override `cutoff`."
    )
    quantile: float | None = setting(
        None, "Share of the pairs of each source to reject: those with the lowest cosines, as in `0.1`.", gt=0, lt=1
    )
    rank: int | None = setting(
        None,
        "Pairs are rejected whose positive ranks lower than this for its query, among the sampled passages: `2` keeps"
        " those that come first or second. For models to which all cosines are alike, such as e5's.",
        origin="chosen here; E5 (arXiv 2212.03533 §3) and nomic-embed take 2, KaLM takes 50",
        ge=1,
    )
    among: int = setting(
        1_000,
        "Passages sampled from the corpus, among which the rank of each positive is written. Another number encodes all"
        " pairs again.",
        origin="chosen here: a thousandth of E5's, and a small share of the time",
        ge=1,
    )

    @model_validator(mode="after")
    def _ranks_are_among_the_sample(self) -> "ScoreSettings":
        if self.rank is not None and self.rank > self.among:
            raise ValueError(
                f"`rank: {self.rank}` keeps every pair, as positives are ranked among {self.among} passages"
            )
        return self


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
        "FAISS index factory string, such as `IVF4096,Flat`; `Flat` compares every passage. By default that is so up to"
        " a million passages, and IVF is used above.",
    )
    block: int = setting(
        1_000_000,
        "Texts that are in memory at a time while they are encoded, and passages of an index; the pools of `Flat` are"
        " the same for any number. Lower it to take less memory.",
        origin="chosen here",
        ge=1,
    )
