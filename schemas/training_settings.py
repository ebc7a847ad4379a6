"""Settings of training; settings.py says what a field's description and origin are."""

from typing import Any, Literal, Self

from pydantic import (
    PositiveInt,
    field_validator,
    model_validator,
)

from .dhnm_settings import HardNegativeMining
from .loss_settings import DistillSettings, FalseNegativeMask
from .pairs import Category
from .settings import Pooling, PromptSettings, Settings, setting

CBBPartition = Literal["mixed", "per_task"]
Attention = Literal["causal", "bidirectional", "soft"]

MATRYOSHKA_DIMS = [256, 512, 768, 1024, 1280, 1536, 1792]


class Mixing(Settings):
    """How often each source is drawn. A bare number in the recipe is `power`."""

    power: float = setting(
        0.5,
        "Draw a source in proportion to its size to this power: 1 draws by size, 0 draws all sources equally often."
        " Lower it if a large source dominates.",
        ge=0,
        le=1,
    )
    categories: dict[Category, float] | Literal["paper"] | None = setting(
        None,
        "Shares of the categories; `power` then works within each category. `paper` takes the proportions of the"
        " paper's Table 1.",
    )
    sources: dict[str, float] = setting({}, "Factors by source: 2 draws a source twice as often, 0 never.")


class Validation(Settings):
    """Evaluation during training. The best model so far is kept in `train/STAGE/best`."""

    every: int | None = setting(None, "Steps between evaluations; by default there are no evaluations.", ge=1)
    sets: list[str] = setting(
        [], "Names of the corpus's sets (`evaluation:` and `holdout:`), or files; by default all its sets."
    )
    queries: int = setting(
        500,
        "At most this many queries, sentence pairs or texts of each set. Fewer take less time but vary more.",
        ge=1,
    )


class LoRASettings(Settings):
    """Low-rank adapters (LoRA, arXiv 2106.09685), which are trained in place of the encoder's own weights."""

    rank: int = setting(
        16,
        "Rank of an adapter's matrices. A higher one learns more, in more memory.",
        origin="Conan-embedding-v2 (arXiv 2509.12892), whose ablation has 16, 32 and 64",
        ge=1,
    )
    alpha: int = setting(
        32, "What an adapter adds is multiplied by `alpha` / `rank`.", origin="chosen here: twice the rank", ge=1
    )
    targets: list[str] = setting(
        [],
        "Ends of the names of the linear layers that get an adapter, such as `q_proj`; `[]` means all layers.",
        origin="QLoRA (arXiv 2305.14314) §4: all layers, to match full fine-tuning",
    )
    dropout: float = setting(0.0, "Dropout before each adapter.", ge=0, lt=1)


class OptimizerSettings(Settings):
    """Settings that pre-training and fine-tuning share."""

    learning_rate: float = setting(
        1e-5,
        "Peak learning rate of AdamW; it rises linearly and then falls linearly to 0. Lower it if the loss rises or"
        " gradients become NaN; larger batches allow a higher one.",
        origin="paper §3.1; the fall is BERT's (arXiv 1810.04805, A.2), as the paper gives only the warm-up",
        gt=0,
    )
    warmup: float = setting(
        0.05, "Share of all steps in which the learning rate rises.", origin="paper §3.1", ge=0, le=1
    )
    weight_decay: float = setting(
        0.001,
        "Weight decay of AdamW; biases and norms have none.",
        origin="paper §3.1; biases and norms as in BERT's code, google-research/bert optimization.py",
        ge=0,
    )
    gradient_clipping: float = setting(
        1.0,
        "Largest norm of the gradient; larger gradients are scaled down to it. 0 turns clipping off.",
        origin="chosen here: DeepSpeed's default since 0.19.3",
        ge=0,
    )
    steps: int | None = setting(None, "Number of steps; overrides `epochs`.", ge=1)
    epochs: float = setting(
        1.0,
        "Number of draws, as a multiple of the number of pairs (fine-tuning: of queries); sets the number of steps if"
        " `steps` is not given.",
        origin="chosen here: the paper gives hours",
        gt=0,
    )
    max_length: int = setting(
        512,
        "Longest text, in tokens, prompt included; the rest is cut off. Time and memory grow with it. Models whose"
        " folder names a shorter length keep it.",
        origin="paper §3.1",
        ge=2,
    )
    prompts: PromptSettings = setting(
        PromptSettings(),
        "Texts put before queries, passages and sentence pairs. They are written into the trained model's folder, so"
        " that later stages use them too.",
    )
    temperature: float = setting(
        0.02,
        "Temperature of InfoNCE, which divides the cosines. A lower one weighs the hardest negatives more.",
        origin="chosen here: the paper gives none; GTE and bge train near it",
        gt=0,
    )
    precision: Literal["auto", "bf16", "fp16", "fp32"] = setting(
        "auto",
        "Precision of the computation. `auto` is bf16 if the device supports it, else fp32; with `zero_stage: 0` it is"
        " always fp32.",
        origin="paper §3.1: mixed precision; bf16 is chosen here",
    )
    zero_stage: Literal[0, 1, 2, 3] = setting(
        1,
        "DeepSpeed ZeRO stage, which says what is divided among the processes. 0: nothing (fp32 only). 1: the"
        " optimizer's state. 2: gradients, too. 3: weights, too. Raise it if the model does not fit into memory.",
        origin="paper §3.1",
    )
    mixing: Mixing = setting(Mixing(), "How often each source is drawn; a bare number is `power`.")
    seed: int = setting(0, "Seed of the order of the records, of dropout and of new weights.", ge=0)
    checkpoint_every: int = setting(
        500, "Steps between checkpoints; a killed run repeats the steps since the last one.", ge=1
    )
    keep_checkpoints: int = setting(2, "Checkpoints to keep; older ones are deleted.", ge=1)
    log_every: int = setting(10, "Steps between lines in `log.jsonl`.", ge=1)
    gradient_checkpointing: bool = setting(
        False, "Compute activations again in the backward pass: less memory, a third more time."
    )
    compile: bool = setting(False, "Compile the encoder with torch.compile. For GPUs; a CPU is faster without.")
    lora: LoRASettings | None = setting(
        None,
        "Train low-rank adapters and the linear layer instead of all weights, in much less memory; the trained model"
        " has them merged. A higher `learning_rate` suits them, such as 1e-4. Needs the extra `[lora]`.",
    )
    learn_temperature: bool = setting(
        False,
        "Train the temperature as well, from `temperature` on and never below 0.01 (CLIP, arXiv 2103.00020, §2.5).",
    )
    mask_false_negatives: FalseNegativeMask | None = setting(
        None,
        "Leave out of a query's negatives the passages of other queries that score too close to its own positive, as"
        " they may answer it, too; by default all are negatives.",
    )
    loss_terms: dict[str, float] = setting({}, "Weights of further loss terms, by the name that a plugin registers.")
    validation: Validation = setting(Validation(), "Evaluation during training.")
    track: list[str] = setting(
        [],
        "Experiment trackers that get the log as well: wandb, mlflow, trackio, tensorboard, or a plugin's. Each needs"
        " the extra of its name.",
    )
    gradcache_tokens: int | None = setting(
        None,
        "Tokens that a process encodes at a time, with GradCache (arXiv 2101.06983); by default all of a step's. Set"
        " it if a step does not fit into memory: memory no longer grows with the number of texts, but each text is"
        " encoded twice. The loss stays the same.",
        ge=2,
    )

    @model_validator(mode="after")
    def _precision_fits(self) -> Self:
        if self.zero_stage == 0 and self.precision in ("bf16", "fp16"):
            raise ValueError(f"zero_stage 0 trains in fp32; {self.precision} needs zero_stage 1, 2 or 3")
        return self

    @model_validator(mode="after")
    def _temperature_is_whole(self) -> Self:
        if self.learn_temperature and self.zero_stage == 3:
            raise ValueError(
                "learn_temperature needs zero_stage 0, 1 or 2; zero_stage 3 divides every weight among the processes"
            )
        return self

    @field_validator("mixing", mode="before")
    @classmethod
    def _power(cls, value: Any) -> Any:
        return {"power": value} if isinstance(value, int | float) and not isinstance(value, bool) else value


class PretrainSettings(OptimizerSettings):
    """InfoNCE with in-batch negatives (paper §2.1.1, eq. 1)."""

    model: str = setting(
        "bootstrap",
        "Model to start from: hub name, folder, or `bootstrap`.",
        origin="chosen here; the paper starts from a BERT-large",
    )
    on: Literal["ingest", "filter", "dedup", "score", "convert"] = setting(
        "convert",
        "Stage whose pairs are trained on. Name an earlier one to measure what the later ones gain.",
    )
    batch_size: int = setting(
        8,
        "Pairs per process and step. Each query's negatives are the positives of all processes, so a larger batch has"
        " more negatives.",
        origin="paper §3.1",
        ge=1,
    )
    projection_dim: int = setting(
        1792, "Width of the linear layer after pooling, which is that of the vectors.", origin="paper §3.1", ge=1
    )
    pooling: Pooling | None = setting(
        None,
        "How token vectors become one vector. By default what the model's folder says, else `mean`, as in the released"
        " model; a decoder whose folder says nothing is refused.",
    )
    attention: Attention | None = setting(
        None,
        "Attention of a decoder (Gemma 3, Llama, Mistral, Qwen2, Qwen3), by default as its folder says. causal: each"
        " token sees those before it. bidirectional: it sees all. soft: from causal in the first steps to bidirectional"
        " in the last, which Conan-embedding-v2 (arXiv 2509.12892) gained 2 points with.",
    )
    matryoshka_dims: list[PositiveInt] = setting(
        MATRYOSHKA_DIMS,
        "Widths that vectors can be cut to later (Matryoshka); the loss is the mean over them. `[]` trains the full"
        " width only.",
        origin="paper §3.1, which names them for fine-tuning",
    )
    homogeneous_batches: bool = setting(
        False, "Draw all pairs of a step from one source, so that in-batch negatives are of the same kind."
    )
    symmetric: bool = setting(
        False, "Average the loss with that of the other direction, in which each positive looks for its query."
    )


class FinetuneSettings(OptimizerSettings):
    """InfoNCE with hard negatives + β · CoSENT, balanced over the processes (CBB; paper §2.1.2, §2.3, eq. 3)."""

    model: str = setting(
        "pretrain",
        "Model to start from: hub name, folder, or a training stage (`pretrain`, `bootstrap`).",
        origin="paper Figure 1",
    )
    queries: list[Literal["retrieval", "pretrain"]] = setting(
        ["retrieval"],
        "Folders of convert/ whose queries are trained on; all of them need a pool (`mine.queries`).",
        origin="paper §3.2",
    )
    retrieval_batch: int = setting(
        4,
        "Queries per step, over all processes. In a larger batch each query is compared with more negatives.",
        origin="paper §3.1",
        ge=1,
    )
    sts_batch: int = setting(
        32, "Sentence pairs per step, over all processes; 0 trains on queries only.", origin="paper §3.1", ge=0
    )
    negatives: int = setting(
        4, "Hard negatives per query: the paper's n. More need more memory (`gradcache_tokens`).", ge=1
    )
    homogeneous_batches: bool = setting(
        True,
        "Draw all sentence pairs of a step from one source: CoSENT compares their labels, and the same label can mean "
        "different similarities in two sources.",
    )
    alternate_tasks: bool = setting(
        False,
        "Train one task per step, drawn at random, instead of both: what the paper compares CBB with in its Figure 4.",
    )
    beta: float = setting(0.8, "Weight β of the CoSENT loss.", origin="paper §2.3, eq. 3", ge=0)
    sts_temperature: float = setting(
        0.05, "Temperature of CoSENT, which divides the cosines.", origin="CoSENT (kexue.fm 8847): scale 20", gt=0
    )
    cbb_partition: CBBPartition = setting(
        "mixed",
        "Which process encodes what. mixed: each one texts of both tasks. per_task: STS has processes of its own, as"
        " in the paper's Figure 3. The loss is the same.",
    )
    in_batch_positives: bool = setting(
        False, "Take the positives of a step's other queries as negatives as well; in eq. 3 they are not."
    )
    query_only_negatives: bool = setting(
        False,
        "Compare every query with its own hard negatives only; in eq. 3 it is compared with those of all queries. For"
        " the queries of single sources, set it in the source.",
    )
    matryoshka_dims: list[PositiveInt] = setting(
        MATRYOSHKA_DIMS,
        "Widths that vectors can be cut to later (Matryoshka); the loss is the mean over them. `[]` trains the full"
        " width only.",
        origin="paper §3.1",
    )
    distill: DistillSettings | None = setting(
        None, "Learning from a judge's scores of positives and negatives; by default only which is which is learnt."
    )
    hard_negative_mining: HardNegativeMining = setting(
        HardNegativeMining(), "Replacement of negatives that have become easy.", origin="paper §2.2"
    )

    @model_validator(mode="after")
    def _negatives_are_whose(self) -> Self:
        if self.in_batch_positives and self.query_only_negatives:
            raise ValueError(
                "query_only_negatives leaves out the texts of other queries, and in_batch_positives takes them; set one"
                " of them to false"
            )
        return self

    @model_validator(mode="after")
    def _names_of_terms_differ(self) -> Self:
        if self.distill and "distill" in self.loss_terms:
            raise ValueError("the loss term of `distill:` has this name in the log; register yours under another one")
        return self

    @model_validator(mode="after")
    def _ranks_can_mine(self) -> Self:
        if self.hard_negative_mining.refresh != "static" and self.zero_stage == 3:
            raise ValueError(
                "hard_negative_mining.refresh: rerank and remine need zero_stage 0, 1 or 2, as with zero_stage 3 no"
                " process can encode on its own"
            )
        return self


class BootstrapTraining(PretrainSettings):
    """Training from random weights, which needs a higher learning rate and a larger batch than the paper's BERT-large.

    `model` has no effect here.
    """

    on: Literal["ingest", "filter", "dedup", "score", "convert"] = setting(
        "dedup", "Stage whose pairs are trained on.", origin="chosen here: the last one that needs no model"
    )
    learning_rate: float = setting(
        1e-3,
        "Peak learning rate of AdamW; it rises linearly and then falls linearly to 0.",
        origin="chosen here: for random weights",
        gt=0,
    )
    batch_size: int = setting(128, "Pairs per process and step.", ge=1)
    temperature: float = setting(
        0.05, "Temperature of InfoNCE, which divides the cosines.", origin="chosen here: softer at first", gt=0
    )
    max_length: int = setting(64, "Longest text, in tokens; the rest is cut off.", ge=2)


class BootstrapSettings(Settings):
    """A small BERT trained from random weights, for when there is no pretrained encoder."""

    vocabulary: str | None = setting(
        None, "A vocab.txt of BERT's format; by default built from the characters of the corpus."
    )
    vocabulary_size: int = setting(8000, "Entries of the vocabulary if it is built here.", ge=100)
    layers: int = setting(2, "Transformer layers.", ge=1)
    hidden: int = setting(128, "Width of a layer; a multiple of `heads`.", ge=8)
    heads: int = setting(2, "Attention heads of a layer.", ge=1)
    intermediate: int = setting(512, "Width of a layer's feed-forward network.", ge=8)
    max_length: int = setting(512, "Longest text that the model can take, in tokens.", origin="paper §3.1", ge=8)
    training: BootstrapTraining = setting(BootstrapTraining(), "How it is trained.")

    @model_validator(mode="after")
    def _heads_share_the_width(self) -> Self:
        if self.hidden % self.heads:
            raise ValueError(f"`hidden` must be a multiple of `heads`, got {self.hidden} and {self.heads}")
        return self
