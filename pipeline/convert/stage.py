"""conan convert: curated pairs to what the trainer reads, in folders by task."""

from collections.abc import Sequence, Set
from pathlib import Path

import numpy as np
import numpy.typing as npt
import polars as pl
import pyarrow as pa

from ...schemas.outcomes import Summary
from ...schemas.pairs import SCORED, rejected
from ...schemas.recipe import Recipe
from ...schemas.settings import ConvertSettings
from ...schemas.training import TRAINING
from ..corpus.folder import fingerprint, read_batches, read_footer, shards
from ..corpus.shard_writer import ShardWriter
from ..engine.calls import Engine
from ..engine.stage import Task, run_stage
from ..text.normalise import match_key

VERSION = 3


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
            [task([path], decided_by={"max_prompt_chars", "min_response_chars"}) for path in pretrain],
            engine,
        ),
        run_stage(
            corpus,
            "convert/retrieval",
            retrieval_shard,
            [
                task(
                    paths,
                    source,
                    kind,
                    decided_by={"class_positives", "class_negatives", "seed"} if kind == "classification" else set(),
                )
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


_MACHINE = (
    r"(?:(?:AI|人工智能|语言|机器学习|自然语言处理|文本|文字型|聊天|虚拟|计算机|电脑)\s*)+"
    r"(?:模型|助手|助理|程序|系统|机器人)|AI|人工智能|基于文本的模型"
)
_REFUSAL = (
    # Of itself, at the head of a clause: "机器学习作为人工智能的分支" speaks of its subject.
    r"(?:^|[^\p{L}]|[但我])作为(?:一[个名款种位]|由\S{1,12}(?:训练|开发)的)?\s*(?:大型)?\s*(?:语言模型|聊天机器人|"
    r"(?:AI|人工智能)\s*(?:[，,我]|语言模型|模型|助手|助理|程序|系统|聊天机器人|机器人))|(?i:\bas an ai\b)|"
    # With more words of itself between, the clause that follows must be its own: "作为计算机程序，我没有…".
    rf"(?:^|[^\p{{L}}]|[但我])作为[^\p{{P}}\n]{{0,24}}(?:{_MACHINE})\s*[，,]\s*(?:我[^们]|很?抱歉|无法|不能|没有)|"
    rf"我(?:只|仅仅?)?是[^\p{{P}}\n]{{0,20}}(?:{_MACHINE})[，,。]\s*[^\p{{P}}\n]{{0,8}}(?:无法|没有|不能|不具备|不会)|"
    r"^我?(?:非常|很|十分|深感)?(?:抱歉|对不起|不好意思|遗憾)[，,]?\s*(?:但是?)?我?(?:目前|现在|暂时|可能|并|还)?"
    r"(?:不能|无法|没有(?:能力|办法|权限)|不(?:太|是很|能)?(?:知道|明白|理解|确定|清楚)|没有(?:完全)?(?:理解|明白))|"
    r"^我?(?:非常|很)?(?:抱歉|对不起)[^。\n]{0,60}(?:不合适|不恰当|不道德)|"
    r"我(?:不能|无法|没有能力)(?:直接|实际)?(?:提供|回答|协助|满足|访问|查看|生成|创建|执行)"
)
_TEMPLATE = r"\{\{[^{}]+\}\}"
_SLOT = (
    r"[\[【](?:请?在?此处?)?(?:插入|填写|填入|输入[您你]|[您你]的|此处)[^\]】]*[\]】]|"
    r"[（(]请?在?(?:此处?|这里)(?:插入|填写)[^）)]*[）)]|[（(【][您你]的(?:姓名|名字|名称|公司|电话|地址)[）)】]|"
    r"\[[^\[\]\n]{0,12}(?:姓名|名字|(?:公司|机构|职位|产品|客户)名称?)\]|<(?:插入|填写)[^>]*>|"
    r"(?:^|[^a-zA-Z^_}\\$])\{[A-Z_]{2,}\}"  # but neither \overline{AB}, which is LaTeX, nor ${NAME} of a shell
)
_TOOL_CALL = (
    r"^\s*<[|｜]?(?:tool[_▁]?calls?|function_?calls?|python_tag)|^\s*Action:[^\n]+\n+Action Input:|"
    r'(?s)^\s*\[?\s*\{.*"(?:arguments|parameters)"\s*:'
)
_CODE = r"(?s)```.*?(?:```|$)|`[^`\n]*`"
_PLEASANTRY = r"^(?:不客气|不谢|不用客气|不用谢|别客气|不必客气|没关系，随时|再见|拜拜)"
_LONGEST_REFUSAL = 250  # characters; a longer response says what it can't do and then does what it can
_LONGEST_PLEASANTRY = 100
_MOST_SLOTS = 0.1  # of a response's characters; a letter with one [您的姓名] at its end is a letter
_BARE_CODE = (
    r"^(?:#include\b|#!/|import [\w.]+(?:\n|$)|from [\w.]+ import |def \w+\(|class \w+[(:{]|public (?:static|class) |"
    r"(?:const|let|var) \w+ = |function \w*\(|(?i:SELECT)\s[^\n]*(?i:\bFROM\b)|<\?php)"
)


def response_reason(settings: ConvertSettings) -> pl.Expr:
    """Why a prompt-response pair is no training pair (a reason, or null), by the first of these that holds.

    The paper filters prompt-response pairs "by rules" (§3.2) and names none; these are ours: tool calls, refusals in
    the response's first 100 characters with little after them, pleasantries, template slots left open outside of code,
    responses of code or of numbers only, responses that repeat the prompt, prompts and responses of a length that is no
    text for an embedding.
    """
    prompt, response = pl.col("query"), pl.col("positive")
    length = response.str.len_chars()
    prose = response.str.replace_all(_CODE, "")
    is_code = ~prose.str.contains(r"\p{L}") & response.str.contains("`", literal=True)
    is_bare_code = response.str.contains(_BARE_CODE) & ~response.str.contains(r"(?m)^\p{Han}.*[。：:]$")
    return (
        pl.when(response.str.contains(_TOOL_CALL))
        .then(pl.lit("tool_call"))
        .when((length <= _LONGEST_REFUSAL) & response.str.slice(0, 100).str.contains(_REFUSAL))
        .then(pl.lit("refusal"))
        .when((length <= _LONGEST_PLEASANTRY) & response.str.contains(_PLEASANTRY))
        .then(pl.lit("pleasantry"))
        .when(
            prompt.str.replace_all(_CODE, "").str.contains(_TEMPLATE)
            | prose.str.contains(_TEMPLATE)
            | (prose.str.len_chars() - prose.str.replace_all(_SLOT, "").str.len_chars() > _MOST_SLOTS * length)
        )
        .then(pl.lit("template_slot"))
        .when(prompt.str.len_chars() > settings.max_prompt_chars)
        .then(pl.lit("prompt_length"))
        .when(is_code | is_bare_code)
        .then(pl.lit("code_only"))
        .when(~response.str.contains(r"\p{L}"))
        .then(pl.lit("number_only"))
        .when(length < settings.min_response_chars)
        .then(pl.lit("response_length"))
        .when(match_key(prompt) == match_key(response))
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
    """One shard of sentence pairs, labels mapped from the source's own range to 0…1 and kept as they were."""
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
                    original_label="label",
                )
                .to_arrow()
            )


def retrieval_shard(
    paths: Sequence[Path], source: str, task: str, settings: ConvertSettings, fingerprint: str, shard: Path
) -> None:
    """One shard of retrieval records of a source: one a query, with its positives and negatives."""
    with _writer(shard, "retrieval", fingerprint) as writer:
        wanted = (pl.col("source") == source) & (pl.col("task") == task)
        frame = pl.concat(_frame(table).filter(wanted) for path in paths for table in read_batches(path))
        writer.received(frame.height)
        if task == "classification":
            judged = _judged_classes(frame.sort("pair_id"))  # the order of shards decides nothing
            writer.reject(judged.filter(pl.col("reason").is_not_null()).to_arrow())
            frame = judged.filter(pl.col("reason").is_null())
            records = _class_records(frame, settings)
        else:
            records = _records(frame)
        writer.keep(records.to_arrow(), rows=frame.height)


def _records(frame: pl.DataFrame) -> pl.DataFrame:
    """One record a query: all its positives, and the distinct negatives given for it that are none of them."""
    records = frame.group_by("query", maintain_order=True).agg(
        pl.col("source", "category").first(), pair_ids="pair_id", positives="positive", cluster_ids="cluster_id"
    )
    negatives = (
        frame.select("query", "negatives")
        .explode("negatives")
        .drop_nulls()
        .unique(maintain_order=True)
        .join(frame.select("query", negatives="positive"), on=["query", "negatives"], how="anti", maintain_order="left")
        .group_by("query", maintain_order=True)
        .agg("negatives")
    )
    return records.join(negatives, on="query", how="left", maintain_order="left").with_columns(
        pl.col("negatives").fill_null([])
    )


def _judged_classes(frame: pl.DataFrame) -> pl.DataFrame:
    """Add why a text can't be shown with its class (`reason`, `detail`), null where it can; and its `key` and `class`.

    A text of two classes would be its own negative, a class of one text has no positive, a single class no negatives.
    Texts are told apart by their keys, as dedup does, so `好！` is not a negative of `好`. Names that share a cluster
    are one class.
    """
    names = pl.col("positive").unique().sort().str.join(", ")
    frame = frame.with_columns(key=match_key(pl.col("query")), **{"class": pl.col("cluster_id").min().over("positive")})
    clear = pl.col("class").n_unique().over("key") == 1
    size = pl.col("key").filter(pl.col("clear")).n_unique().over("class")
    frame = frame.with_columns(clear=clear).with_columns(size=size)
    left = frame.filter(pl.col("clear") & (pl.col("size") > 1))["class"].n_unique()
    return frame.with_columns(
        reason=pl.when(~pl.col("clear"))
        .then(pl.lit("ambiguous_class"))
        .when(pl.col("size") == 1)
        .then(pl.lit("lonely_class"))
        .when(pl.lit(left) < 2)
        .then(pl.lit("one_class")),
        detail=pl.format("class {}", names.over("key")),
    ).drop("clear", "size")


def _class_records(frame: pl.DataFrame, settings: ConvertSettings) -> pl.DataFrame:
    """One record a text: texts of its class become positives, texts of other classes negatives (paper §3.2).

    A text's positives are those that follow it in a shuffled ring of its class, so each text is shown equally often;
    its negatives are drawn at random, one from each of as many equal stretches of the others as are wanted, so none
    comes twice. A class with fewer texts gives fewer. There are two classes or more, each of two texts or more.
    """
    texts = frame.unique("key", keep="first", maintain_order=True)
    count = texts.height
    generator = np.random.default_rng(settings.seed)
    classes = texts["class"].to_numpy()
    shuffled = generator.permutation(count)
    order = shuffled[np.argsort(classes[shuffled], kind="stable")]
    _, starts, sizes = np.unique(classes[order], return_index=True, return_counts=True)
    start, size = np.repeat(starts, sizes)[:, None], np.repeat(sizes, sizes)[:, None]
    step = np.arange(1, settings.class_positives + 1)
    positives = order[start + (np.arange(count)[:, None] - start + step) % np.maximum(size, 1)]
    # Another place of `order` outside a class's own stretch is so many places after the stretch's end.
    edges = np.arange(settings.class_negatives + 1) * (count - size) // settings.class_negatives
    after = generator.integers(edges[:, :-1], np.maximum(edges[:, 1:], edges[:, :-1] + 1))
    negatives = order[(start + size + after) % max(count, 1)]
    shown = texts[order].select(
        "key",
        positives=_lists(texts["query"], positives, step < size),
        negatives=_lists(texts["query"], negatives, np.diff(edges) > 0),
    )
    records = frame.group_by("query", maintain_order=True).agg(
        pl.col("source", "category", "key", "class").first(), pair_ids="pair_id"
    )
    return records.join(shown, on="key", maintain_order="left").with_columns(
        cluster_ids=pl.col("class").repeat_by(pl.col("positives").list.len())
    )


def _lists(texts: pl.Series, rows: npt.NDArray[np.int64], wanted: npt.NDArray[np.bool_]) -> pl.Series:
    """The texts at `rows` [n, m] as n lists, without those that are not wanted."""
    ends = np.cumsum(wanted.sum(axis=1))
    chosen = texts.gather(rows[wanted]).to_arrow()
    return pl.Series(pa.LargeListArray.from_arrays(np.concatenate([[0], ends]), chosen))
