"""Settings of training, evaluation and export: the paper's values as defaults, each with where it comes from.

Descriptions begin with their origin, as in settings.py.
"""

from typing import Any, Literal, Self

from pydantic import PositiveInt, field_validator, model_validator

from .pairs import Category
from .settings import BATCH_TOKENS, Settings, setting

CBBPartition = Literal["mixed", "per_task"]

MATRYOSHKA_DIMS = [256, 512, 768, 1024, 1280, 1536, 1792]


class Mixing(Settings):
    """How often the sources are drawn. A bare number in the recipe is `power`."""

    power: float = setting(
        0.5, "chosen here: a source is drawn in proportion to its size to this power; 1 is by size", ge=0, le=1
    )
    categories: dict[Category, float] | Literal["paper"] | None = setting(
        None, "chosen here: shares of the categories, `power` works within each; paper: the proportions of its Table 1"
    )
    sources: dict[str, float] = setting({}, "chosen here: a source is drawn so many times as often")


class Validation(Settings):
    """Evaluation while training; the best model so far is kept beside the last."""

    every: int | None = setting(None, "chosen here: steps between evaluations; default none", ge=1)
    sets: list[str] = setting([], "chosen here: names of `evaluation:` sources, or files; default all of `evaluation:`")
    queries: int = setting(500, "chosen here: queries, or sentence pairs, of each set; fewer are quicker", ge=1)


class OptimizerSettings(Settings):
    """What both training stages share."""

    learning_rate: float = setting(1e-5, "paper §3.1", gt=0)
    warmup: float = setting(0.05, "paper §3.1: share of all steps", ge=0, le=1)
    weight_decay: float = setting(0.001, "paper §3.1", ge=0)
    gradient_clipping: float = setting(1.0, "chosen here: DeepSpeed's own default since 0.19.3; 0 is off", ge=0)
    steps: int | None = setting(None, "chosen here: updates; default those of `epochs`", ge=1)
    epochs: float = setting(
        1.0,
        "chosen here: the paper says hours, not epochs; so many draws for each record, where steps is not given",
        gt=0,
    )
    max_length: int = setting(512, "paper §3.1: tokens", ge=2)
    temperature: float = setting(0.02, "chosen here: the paper gives none; GTE and bge train near it", gt=0)
    precision: Literal["auto", "bf16", "fp16", "fp32"] = setting(
        "auto",
        "paper §3.1: mixed precision; chosen here: bf16 where the device has it, fp32 on a CPU and with zero_stage 0",
    )
    zero_stage: Literal[0, 1, 2, 3] = setting(1, "paper §3.1: DeepSpeed ZeRO stage 1; 0, which shares nothing, in fp32")
    mixing: Mixing = setting(Mixing(), "chosen here")
    seed: int = setting(0, "chosen here", ge=0)
    checkpoint_every: int = setting(500, "chosen here: steps", ge=1)
    keep_checkpoints: int = setting(2, "chosen here", ge=1)
    log_every: int = setting(10, "chosen here: steps", ge=1)
    gradient_checkpointing: bool = setting(False, "chosen here: less memory, a third more time")
    compile: bool = setting(False, "chosen here: torch.compile the encoder, for GPUs; a CPU is faster without")
    learn_temperature: bool = setting(
        False, "chosen here: `temperature` is where it starts; 0.01 is the least (CLIP, arXiv 2103.00020, §2.5)"
    )
    loss_terms: dict[str, float] = setting({}, "chosen here: further terms of the loss by name, and their weights")
    validation: Validation = setting(Validation(), "chosen here")
    tensorboard: bool = setting(False, "chosen here: write what log.jsonl has for TensorBoard, too")
    gradcache_tokens: int | None = setting(
        None,
        "chosen here: tokens encoded at a time, by GradCache (arXiv 2101.06983): memory no longer grows with the"
        " number of negatives, but texts are encoded twice; default all at once",
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

    model: str = setting("bootstrap", "chosen here: hub name, folder, or a stage of train; the paper takes BERT-large")
    on: Literal["ingest", "filter", "dedup", "score", "convert"] = setting(
        "convert", "chosen here: whose pairs to train on"
    )
    batch_size: int = setting(8, "paper §3.1: pairs on each GPU", ge=1)
    projection_dim: int = setting(1792, "paper §3.1: the linear layer's width", ge=1)
    pooling: Literal["mean", "cls"] = setting("mean", "chosen here: as the released model does")
    matryoshka_dims: list[PositiveInt] = setting(
        MATRYOSHKA_DIMS, "paper §3.1: MRL widths; the paper names them for fine-tuning"
    )
    homogeneous_batches: bool = setting(
        False, "chosen here: an update's pairs are of one source, so that negatives are of its kind"
    )
    symmetric: bool = setting(False, "chosen here: the mean of eq. 1 and of eq. 1 with queries and positives exchanged")


class HardNegativeMining(Settings):
    """Dynamic hard negative mining (paper §2.2)."""

    enabled: bool = setting(True, "paper §2.2")
    check_every: int = setting(100, "paper §2.2: iterations between checks", ge=1)
    factor: float = setting(1.15, "paper §2.2: no longer hard when factor × score < initial score", gt=0)
    ceiling: float = setting(0.8, "paper §2.2: and |score| is below it", gt=0)
    offset: int = setting(10, "paper §2.2: the i-th window starts at rank (i − 1) · n + 10", ge=0)
    refresh: Literal["static", "rerank", "remine"] = setting(
        "static",
        "paper §2.2: windows are of the pool as it was mined; chosen here: rerank takes them from the candidates as the"
        " current weights order them, remine rebuilds all pools with the current weights",
    )
    remine_every: int = setting(1000, "chosen here: steps between rebuildings of the pools, for remine", ge=1)


class FinetuneSettings(OptimizerSettings):
    """InfoNCE with hard negatives + β·CoSENT (paper §2.1.2, §2.3, eq. 3)."""

    model: str = setting("pretrain", "paper Figure 1: fine-tuning starts from the pre-trained model")
    queries: list[Literal["retrieval", "pretrain"]] = setting(
        ["retrieval"], "paper §3.2; chosen here: more pairs as retrieval"
    )
    retrieval_batch: int = setting(4, "paper §3.1: queries in an update", ge=1)
    sts_batch: int = setting(32, "paper §3.1: sentence pairs in an update", ge=0)
    negatives: int = setting(4, "chosen here: hard negatives of each query; the paper's n", ge=1)
    homogeneous_batches: bool = setting(
        True, "chosen here: an update's sentence pairs are of one source, as one source's 0/1 is not another's 0…5"
    )
    alternate_tasks: bool = setting(
        False, "chosen here: an update is of one task, drawn at random: what the paper compares CBB with (its Figure 4)"
    )
    beta: float = setting(0.8, "paper §2.3, eq. 3: weight of CoSENT", ge=0)
    sts_temperature: float = setting(0.05, "CoSENT (kexue.fm 8847): scale 20", gt=0)
    cbb_partition: CBBPartition = setting(
        "mixed",
        "chosen here: every rank encodes texts of both tasks; per_task: STS has ranks of its own (paper, Figure 3)",
    )
    in_batch_positives: bool = setting(False, "chosen here: eq. 3's denominator has no other query's positive")
    query_only_negatives: bool = setting(
        False, "chosen here: eq. 3's denominator has all queries' negatives; true: its own"
    )
    matryoshka_dims: list[PositiveInt] = setting(MATRYOSHKA_DIMS, "paper §3.1: MRL widths")
    hard_negative_mining: HardNegativeMining = setting(HardNegativeMining(), "paper §2.2")

    @model_validator(mode="after")
    def _ranks_can_mine(self) -> Self:
        if self.hard_negative_mining.refresh != "static" and self.zero_stage == 3:
            raise ValueError(
                "hard_negative_mining.refresh: rerank and remine want zero_stage 0, 1 or 2; in 3, ranks encode in step"
            )
        return self


class BootstrapTraining(PretrainSettings):
    """Training from random weights wants a larger rate and batch than the paper's, which start from BERT-large."""

    on: Literal["ingest", "filter", "dedup", "score", "convert"] = setting(
        "dedup", "chosen here: before anything can be scored"
    )
    learning_rate: float = setting(1e-3, "chosen here: for random weights", gt=0)
    batch_size: int = setting(128, "chosen here: pairs on each process", ge=1)
    temperature: float = setting(0.05, "chosen here: softer at first", gt=0)
    max_length: int = setting(64, "chosen here: tokens", ge=2)


class BootstrapSettings(Settings):
    """A small BERT made from nothing, for machines without a pretrained encoder at hand."""

    vocabulary: str | None = setting(None, "chosen here: a vocab.txt; made of the corpus's characters otherwise")
    vocabulary_size: int = setting(8000, "chosen here: where no vocabulary is given", ge=100)
    layers: int = setting(2, "chosen here", ge=1)
    hidden: int = setting(128, "chosen here", ge=8)
    heads: int = setting(2, "chosen here", ge=1)
    intermediate: int = setting(512, "chosen here", ge=8)
    max_length: int = setting(512, "paper §3.1", ge=8)
    training: BootstrapTraining = setting(BootstrapTraining(), "chosen here")


class ExportSettings(Settings):
    """The folder that sentence-transformers loads."""

    model: str = setting("finetune", "chosen here: which training stage's model")
    folder: str = setting("model", "chosen here: inside the corpus unless absolute")
    precision: Literal["fp32", "fp16", "bf16"] = setting(
        "fp32", "chosen here: of the weights; half of it is half the size"
    )
    onnx: bool = setting(False, "chosen here: also a file for ONNX Runtime: ids and mask in, raw vectors out")


class EvaluateSettings(Settings):
    """Which models `conan run` compares on the evaluation sets, and how they are encoded."""

    models: list[str] = setting(["finetune"], "chosen here")
    matryoshka_dims: list[PositiveInt] = setting(
        [], "chosen here: MRL widths that vectors are cut to, besides their own"
    )
    max_length: int = setting(512, "paper §3.1", ge=2)
    batch_tokens: int | None = setting(None, BATCH_TOKENS, ge=16)
