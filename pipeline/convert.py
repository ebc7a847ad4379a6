"""conan convert: curated pairs to what the trainer reads, in folders by task."""

from collections.abc import Sequence, Set
from pathlib import Path

import numpy as np
import polars as pl
import pyarrow as pa

from ..schemas.pairs import SCORED, rejected
from ..schemas.recipe import Recipe
from ..schemas.settings import ConvertSettings
from ..schemas.training import TRAINING
from .corpus import ShardWriter, fingerprint, read_batches, read_footer, shards
from .engine import Engine, Summary, Task, run_stage
from .text import key

VERSION = 1


def convert(corpus: Path, recipe: Recipe, engine: Engine) -> Summary:
    """Write convert/pretrain, convert/retrieval and convert/sts.

    Raises:
        StageError: a shard could not be made.
    """
    settings = recipe.convert
    inputs = shards(corpus, "score")
    names = pl.concat(
        pl.read_parquet(shard, columns=["source", "task"])
        .unique()
        .select(pl.col("source", "task").cast(pl.String), shard=pl.lit(str(shard)))
        for shard in inputs
    )
    content = {str(shard): (shard.name, read_footer(shard).content) for shard in inputs}
    ranges = {source.name: source.label_range for source in recipe.sources}

    def task(paths: Sequence[str], *arguments: object, decided_by: Set[str] = frozenset()) -> Task:
        decisive = settings.model_dump(include=set(decided_by)), [content[path] for path in paths], arguments
        return Task(([Path(path) for path in paths], *arguments, settings), fingerprint("convert", VERSION, decisive))

    pretrain = sorted(set(names.filter(pl.col("task") == "pretrain")["shard"]))
    sts = names.filter(pl.col("task") == "sts").sort("shard", "source")
    grouped = (
        names.filter(pl.col("task").is_in(["retrieval", "classification"]))
        .sort("shard")
        .group_by("source", "task", maintain_order=True)
        .agg("shard")
    )
    parts = [
        run_stage(
            corpus,
            "convert/pretrain",
            pretrain_shard,
            [task([path], decided_by={"max_prompt_characters", "min_response_characters"}) for path in pretrain],
            engine,
        ),
        run_stage(
            corpus,
            "convert/retrieval",
            retrieval_shard,
            [
                task(paths, source, kind, decided_by={"class_negatives", "seed"} if kind == "classification" else set())
                for source, kind, paths in grouped.select("source", "task", "shard").iter_rows()
            ],
            engine,
        ),
        run_stage(
            corpus,
            "convert/sts",
            sts_shard,
            [
                task([path], source, tuple(ranges.get(source, (0.0, 1.0))))
                for source, path in sts.select("source", "shard").iter_rows()
            ],
            engine,
        ),
    ]
    whole = Summary("convert")
    for part in parts:
        whole.rows_in += part.rows_in
        whole.rows_out += part.rows_out
        whole.rejected += part.rejected
        whole.shards += part.shards
        whole.skipped += part.skipped
        whole.seconds += part.seconds
        whole.notes[part.stage] = part.rows_out
    return whole


def _writer(shard: Path, kind: str, fingerprint: str) -> ShardWriter:
    return ShardWriter(
        shard, TRAINING[kind], rejected(SCORED), stage="convert", version=VERSION, fingerprint=fingerprint
    )


def _frame(table: pa.Table) -> pl.DataFrame:
    frame = pl.from_arrow(table)
    assert isinstance(frame, pl.DataFrame)
    return frame.with_columns(pl.col("source", "category", "format", "task").cast(pl.String))


_REFUSAL = (
    # Of itself, at the head of a clause: "机器学习作为人工智能的分支" speaks of its subject.
    r"(?:^|[^\p{L}]|[但我])作为(?:一[个名款种位]|由\S{1,12}(?:训练|开发)的)?\s*(?:大型)?\s*(?:语言模型|聊天机器人|"
    r"(?:AI|人工智能)\s*(?:[，,我]|语言模型|模型|助手|助理|程序|系统|聊天机器人|机器人))|(?i:\bas an ai\b)|"
    r"^(?:非常|很)?(?:抱歉|对不起|不好意思)[，,]?\s*(?:但)?我(?:不能|无法|没有办法)|我(?:不能|无法)(?:提供|回答|协助|满足|访问|查看)"
)
_SLOT = (
    r"\{\{[^{}]+\}\}|\[(?:插入|填写|填入|你的|您的|此处)[^\]]*\]|<(?:插入|填写)[^>]*>|"
    r"(?:^|[^a-zA-Z^_}\\])\{[A-Z_]{2,}\}"  # but not \overline{AB}, which is LaTeX
)
_TOOL_CALL = r'^\s*(?:<tool_call>|<functioncall>|\{\s*"(?:name|function|arguments)"\s*:)'
_CODE = r"(?s)```.*?(?:```|$)"


def response_reason(settings: ConvertSettings) -> pl.Expr:
    """Why a prompt-response pair is no training pair (a reason, or null), by the first of these that holds.

    The paper filters prompt-response pairs "by rules" (§3.2) and names none; these are ours: tool calls, refusals in
    the response's first 100 characters, template slots left open, responses of code or of numbers only, responses
    that repeat the prompt, prompts and responses of a length that is no text for an embedding.
    """
    prompt, response = pl.col("query"), pl.col("positive")
    prose = response.str.replace_all(_CODE, "")
    return (
        pl.when(response.str.contains(_TOOL_CALL))
        .then(pl.lit("tool_call"))
        .when(response.str.slice(0, 100).str.contains(_REFUSAL))
        .then(pl.lit("refusal"))
        .when(pl.concat_str(prompt, response, separator="\n").str.contains(_SLOT))
        .then(pl.lit("template_slot"))
        .when(prompt.str.len_chars() > settings.max_prompt_characters)
        .then(pl.lit("prompt_length"))
        .when(~prose.str.contains(r"\p{L}") & response.str.contains("```", literal=True))
        .then(pl.lit("code_only"))
        .when(~response.str.contains(r"\p{L}"))
        .then(pl.lit("number_only"))
        .when(response.str.len_chars() < settings.min_response_characters)
        .then(pl.lit("response_length"))
        .when(key(prompt) == key(response))
        .then(pl.lit("echo"))
    )


def pretrain_shard(paths: Sequence[Path], settings: ConvertSettings, fingerprint: str, shard: Path) -> None:
    """One shard of pairs for pre-training."""
    with _writer(shard, "pretrain", fingerprint) as writer:
        for table in (table for path in paths for table in read_batches(path)):
            frame = _frame(table).filter(pl.col("task") == "pretrain")
            writer.received(frame.height)
            is_response = frame["format"] == "prompt_response"
            judged = frame.filter(is_response).with_columns(
                reason=response_reason(settings), detail=pl.col("positive").str.slice(0, 100)
            )
            writer.reject(judged.filter(pl.col("reason").is_not_null()).to_arrow())
            for kept in (frame.filter(~is_response), judged.filter(pl.col("reason").is_null())):
                writer.keep(kept.with_columns(pair_ids=pl.concat_list("pair_id")).to_arrow())


def sts_shard(
    paths: Sequence[Path],
    source: str,
    label_range: tuple[float, float],
    settings: ConvertSettings,
    fingerprint: str,
    shard: Path,
) -> None:
    """One shard of sentence pairs, labels mapped from the source's own range to 0…1."""
    low, high = label_range
    with _writer(shard, "sts", fingerprint) as writer:
        writer.notes["label_range"] = [low, high]
        for table in (table for path in paths for table in read_batches(path)):
            frame = _frame(table).filter((pl.col("task") == "sts") & (pl.col("source") == source))
            outside = ~pl.col("label").is_between(low, high).fill_null(False)
            writer.received(frame.height)
            writer.reject(
                frame.filter(outside)
                .with_columns(
                    reason=pl.lit("label_range"),
                    detail=pl.format(
                        f"{{}} is not in {low:g}…{high:g}; set label_range",
                        pl.col("label").cast(pl.String).fill_null("null"),
                    ),
                )
                .to_arrow()
            )
            writer.keep(
                frame.filter(~outside)
                .with_columns(
                    pair_ids=pl.concat_list("pair_id"),
                    text_a="query",
                    text_b="positive",
                    label=(pl.col("label") - low) / (high - low),
                )
                .to_arrow()
            )


def retrieval_shard(
    paths: Sequence[Path], source: str, task: str, settings: ConvertSettings, fingerprint: str, shard: Path
) -> None:
    """One shard of retrieval records of a source: one a query, all its positives and given negatives."""
    with _writer(shard, "retrieval", fingerprint) as writer:
        wanted = (pl.col("source") == source) & (pl.col("task") == task)
        frame = pl.concat(_frame(table).filter(wanted) for path in paths for table in read_batches(path))
        writer.received(frame.height)
        if task == "classification":
            judged = _judged_classes(frame.sort("pair_id"))  # the order of shards decides nothing
            writer.reject(judged.filter(pl.col("reason").is_not_null()).to_arrow())
            frame = _classes_as_retrieval(judged.filter(pl.col("reason").is_null()), settings)
        records = frame.group_by("query", maintain_order=True).agg(
            pl.col("source", "category").first(),
            pair_ids="pair_id",
            positives="positive",
            cluster_ids="cluster_id",
        )
        records = records.join(_negatives(frame), on="query", how="left", maintain_order="left")
        writer.keep(records.with_columns(pl.col("negatives").fill_null([])).to_arrow(), rows=frame.height)


def _negatives(frame: pl.DataFrame) -> pl.DataFrame:
    """The distinct negatives given for each query, in their order, without those that are its positives."""
    return (
        frame.select("query", "negatives")
        .explode("negatives")
        .drop_nulls()
        .unique(maintain_order=True)
        .join(frame.select("query", negatives="positive"), on=["query", "negatives"], how="anti", maintain_order="left")
        .group_by("query", maintain_order=True)
        .agg("negatives")
    )


def _judged_classes(frame: pl.DataFrame) -> pl.DataFrame:
    """Add why a text can't be shown with its class (`reason`, `detail`), null where it can.

    A text of two classes would be its own negative, a class of one text has no positive, a single class no negatives.
    """
    classes = pl.col("positive")
    clear = classes.n_unique().over("query") == 1
    frame = frame.with_columns(clear=clear, size=clear.sum().over("positive"))
    left = frame.filter(pl.col("clear") & (pl.col("size") > 1))["positive"].n_unique()
    return frame.with_columns(
        reason=pl.when(~pl.col("clear"))
        .then(pl.lit("ambiguous_class"))
        .when(pl.col("size") == 1)
        .then(pl.lit("lonely_class"))
        .when(pl.lit(left) < 2)
        .then(pl.lit("one_class")),
        detail=pl.format("class {}", classes.unique().sort().str.join(", ").over("query")),
    ).drop("clear", "size")


def _classes_as_retrieval(frame: pl.DataFrame, settings: ConvertSettings) -> pl.DataFrame:
    """Texts of the same class become positives, texts of other classes negatives (paper §3.2).

    A text's positive is the one that follows it in a shuffled ring of its class; negatives are drawn at random from
    the others. There are two classes or more, each of two texts or more.
    """
    if frame.is_empty():
        return frame
    generator = np.random.default_rng(settings.seed)
    classes = frame["positive"].rank("dense").to_numpy()
    shuffled = generator.permutation(frame.height)
    order = shuffled[np.argsort(classes[shuffled], kind="stable")]
    _, starts, sizes = np.unique(classes[order], return_index=True, return_counts=True)
    start, size = np.repeat(starts, sizes), np.repeat(sizes, sizes)
    place = np.arange(frame.height)
    # Another place of `order` outside a class's own stretch is so many places after the stretch's end.
    after = generator.integers(frame.height - size, size=(settings.class_negatives, frame.height))
    positives = order[start + (place - start + 1) % size]
    negatives = order[(start + size + after) % frame.height]
    texts = frame["query"]
    return frame[order].with_columns(
        positive=texts.gather(positives),
        negatives=texts.gather(negatives.T.ravel()).reshape((-1, settings.class_negatives)).arr.to_list(),
    )
