"""Read evaluation sets from Parquet and JSONL files, written by `conan ingest` or by hand, and from recipes."""

import hashlib
import json
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from math import isfinite
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal, NamedTuple

import numpy as np
import numpy.typing as npt
import polars as pl

from ...pipeline.corpus.folder import HOLDOUT, committed, is_begun, read_footer, shards
from ...pipeline.ingest.columns import decide_columns
from ...pipeline.ingest.files import FileSplit
from ...pipeline.ingest.readers import check_readers
from ...pipeline.ingest.splits import list_source_files
from ...pipeline.ingest.stage import ingest_evaluation_set
from ...pipeline.plugins import load_plugins
from ...schemas.errors import CorpusError, RecipeError
from ...schemas.recipe import load
from ...schemas.settings import SourcePrompts
from ...schemas.source_settings import own_prompts

Integers = npt.NDArray[np.int64]

_OPTIONAL: dict[str, pl.DataType] = {
    "pair_id": pl.String(),
    "negatives": pl.List(pl.String),
    "label": pl.Float32(),
}
"""Columns of pairs that a file may lack."""
_FEWEST = 10
"""Chosen here: the fewest texts of a classification set."""


@dataclass(frozen=True)
class EvaluationSet:
    """An evaluation set. The columns of `frame` depend on `task`; all have `query_id`.

    - retrieval: `query, positives, negatives` (lists); `passages` are further passages to search
    - sts: `text_a, text_b, label`
    - classification: `text, class, learnt`; if any texts are `learnt`, they train the classifier, which predicts the
      class of the others

    `prompts` are the set's own, in place of the model's.
    """

    name: str
    task: Literal["retrieval", "sts", "classification"]
    frame: pl.DataFrame
    passages: pl.Series = field(default_factory=lambda: pl.Series([], dtype=pl.String))
    prompts: SourcePrompts = field(default_factory=SourcePrompts)


def hash_set(one: EvaluationSet) -> str:
    """Return a hash of a set's records: metrics of two models can be compared if they were measured on the same."""
    digest = hashlib.sha256()
    for frame in (one.frame, one.passages.to_frame("passage")):
        for part in frame.iter_slices():
            digest.update(part.write_ndjson().encode())
    return digest.hexdigest()[:16]


def find_own_sets(corpus: Path) -> list[Path]:
    """Find the places of a corpus's own sets: those of `evaluation:`, and those that are held out of its sources.

    Raises:
        CorpusError: the corpus has no sets, or dedup, which writes those held out, was interrupted.
    """
    folder = corpus / "evaluation"
    committed(corpus, "evaluation")  # fetches the sets of a corpus at a URI
    held_out = shards(corpus, HOLDOUT) if is_begun(corpus, HOLDOUT) else []
    if not held_out and not folder.is_dir():
        raise CorpusError(
            f"{corpus}: no evaluation sets; add `evaluation:` or `holdout:` to the recipe and run ingest and dedup, or "
            "name files of your own (`conan evaluate --sets`, `validation.sets`)"
        )
    return [*([folder] if folder.is_dir() else []), *held_out]


def read_sets(
    places: Sequence[Path], overrides: Sequence[str] = (), prompts: Mapping[str, SourcePrompts] = {}
) -> list[EvaluationSet]:
    """Read evaluation sets from `places`: Parquet and JSONL files, folders of them, and recipes.

    `overrides` apply to recipes, whose section `evaluation` is ingested. A file with the columns of pairs (`source,
    task, query, positive`, as ingest writes them) gives one set per source; pairs of any task but sts and
    classification become a retrieval set, and those of the task passage are only searched. Any other file gives one
    set, by its columns: `query, positives` and optionally `negatives`; `text_a, text_b, label`; or `text, label` and
    optionally `split`, where texts with the split `train` train the classifier. A column `query_id` is kept. Records
    with the same query are one query with the positives and negatives of all of them, and the first `query_id`. Queries
    without an answer are left out. Sets have the prompts that their recipe gives them or, by name, those in `prompts`.

    Raises:
        CorpusError: a file is missing, unreadable or has other columns, the label of a sentence pair is not a number,
            two sets have the same name, or a set is empty.
        RecipeError: a recipe can't be used, or one of its evaluation sets has no pairs.
    """
    prompts = dict(prompts)
    with TemporaryDirectory() as folder:
        whole = list(places)
        for number, place in enumerate(places):
            if place.suffix in (".yaml", ".yml"):
                whole[number] = Path(folder) / str(number)
                prompts |= _ingest(place, overrides, whole[number])
        files = [
            file
            for place in whole
            for file in (sorted([*place.glob("*.parquet"), *place.glob("*.jsonl")]) if place.is_dir() else [place])
        ]
        if not files or not all(file.exists() for file in files):
            missing = [str(file) for file in files if not file.exists()] or [str(place) for place in places]
            raise CorpusError(f"no evaluation sets in {', '.join(missing)}; expected Parquet or JSONL files")
        found = [one for file in files for one in _read_file(file)]
    found = [replace(one, prompts=prompts.get(one.name, one.prompts)) for one in found]
    if empty := [one.name for one in found if one.frame.is_empty()]:
        raise CorpusError(f"empty evaluation sets: {', '.join(empty)}")
    if twice := [name for name, times in Counter(one.name for one in found).items() if times > 1]:
        raise CorpusError(f"two evaluation sets have the name {twice[0]}; rename a file or a source")
    for one in found:
        if one.task == "classification":
            _check_classes(one)
    return found


def _ingest(file: Path, overrides: Sequence[str], folder: Path) -> dict[str, SourcePrompts]:
    """Ingest the evaluation sets of a recipe to `folder`, one shard each; return their prompts."""
    recipe = load(file, overrides)
    load_plugins(recipe.plugins)
    if not recipe.evaluation:
        raise RecipeError(f"{file}: the recipe has no `evaluation:` section")
    check_readers(recipe)
    for number, one in enumerate(recipe.evaluation):
        shard = folder / f"part-{number:05}.parquet"
        files, passages = (
            [FileSplit(found.path) for found in list_source_files(one, g).files] for g in (one.files, one.passages)
        )
        decided = decide_columns(one, [*files, *passages]).source
        ingest_evaluation_set(decided, files, passages, "", shard)
        footer = read_footer(shard)
        if footer.rows_out == footer.notes["passages"]:
            raise RecipeError(f"{file}: the evaluation set {one.name} has no pairs in {', '.join(one.files)}")
    return own_prompts(recipe.evaluation)


def _check_classes(one: EvaluationSet) -> None:
    learnt = one.frame.filter("learnt")
    known = one.frame if learnt.is_empty() else learnt
    if known["class"].n_unique() < 2 or one.frame.height < _FEWEST or learnt.height == one.frame.height:
        raise CorpusError(
            f"the evaluation set {one.name} can't be used for classification: it needs two or more classes to train "
            f"on, {_FEWEST} or more texts, and some texts to test on; it has {known['class'].n_unique()} classes and "
            f"{one.frame.height} texts, {one.frame.height - learnt.height} of them to test on"
        )


def _read_file(file: Path) -> list[EvaluationSet]:
    try:
        if file.suffix != ".parquet":
            found = _sets_of(file, _read_lines(file))
            _check_labels(file, _json_labels(file) if any(one.task == "sts" for one in found) else ())
            return found
        frame = pl.read_parquet(file)
        pairs = (
            pl.col("task").cast(pl.String) == "sts" if "task" in frame.columns else pl.lit("text_a" in frame.columns)
        )
        if "label" in frame.columns:
            numbered = frame.select("label", pairs=pairs, row=pl.int_range(1, pl.len() + 1)).filter("pairs")
            _check_labels(file, numbered.select("row", "label").iter_rows())
        return _sets_of(file, frame)
    except pl.exceptions.PolarsError as error:
        raise CorpusError(f"{file}: can't be read as an evaluation set: {error}") from error


def _read_lines(file: Path) -> pl.DataFrame:
    try:
        return pl.read_ndjson(file, infer_schema_length=None)
    except pl.exceptions.PolarsError:
        _check_labels(file, _json_labels(file))  # which are often what Polars can't read
        raise


def _json_labels(file: Path) -> Iterator[tuple[int, Any]]:
    """Yield the line number and label of each sentence pair of a JSONL file, as far as it is JSON."""
    for number, line in enumerate(file.read_text("utf-8", errors="replace").splitlines(), start=1):
        with suppress(ValueError):
            record = json.loads(line)
            if isinstance(record, dict) and (
                {"text_a", "text_b", "label"} <= record.keys() or record.get("task") == "sts"
            ):
                yield number, record.get("label")


def _check_labels(file: Path, labels: Iterable[tuple[int, Any]]) -> None:
    """Raise CorpusError if the label of a sentence pair is not a finite number; `labels` are by line or row, from 1."""
    for number, label in labels:
        if not isinstance(label, int | float) or isinstance(label, bool) or not isfinite(label):
            raise CorpusError(
                f"{file}:{number}: the label of a sentence pair must be a number, as in 0.8; found "
                f"{json.dumps(label, ensure_ascii=False, default=str)}"
            )


def _sets_of(file: Path, frame: pl.DataFrame) -> list[EvaluationSet]:
    columns = dict.fromkeys(frame.columns)
    if {"source", "task", "query", "positive"} <= columns.keys():
        frame = frame.with_columns(
            pl.col("source", "task").cast(pl.String),
            *(pl.lit(None, kind).alias(name) for name, kind in _OPTIONAL.items() if name not in columns),
        )
        return [_of_pairs(str(name[0]), part) for name, part in frame.group_by("source", maintain_order=True)]
    if "query_id" not in columns:
        frame = frame.with_row_index("query_id")
    frame = frame.with_columns(pl.col("query_id").cast(pl.String))
    if {"text_a", "text_b", "label"} <= columns.keys():
        return [EvaluationSet(file.stem, "sts", frame.select("query_id", "text_a", "text_b", "label").drop_nulls())]
    if {"query", "positives"} <= columns.keys():
        negatives = pl.col("negatives") if "negatives" in columns else pl.lit([], pl.List(pl.String))
        positives = pl.col("positives").list.filter(pl.element() != "")
        records = frame.select("query_id", "query", positives, negatives=negatives.cast(pl.List(pl.String)))
        sides = (pl.col(side).explode().drop_nulls() for side in ("positives", "negatives"))
        grouped = records.drop_nulls("query").group_by("query", maintain_order=True)
        queries = grouped.agg(pl.col("query_id").first(), *sides)
        return [EvaluationSet(file.stem, "retrieval", queries.filter(pl.col("positives").list.len() > 0))]
    if {"text", "label"} <= columns.keys():
        learnt = pl.col("split") == "train" if "split" in columns else pl.lit(False)
        texts = frame.select("query_id", "text", pl.col("label").cast(pl.String).alias("class"), learnt=learnt)
        return [EvaluationSet(file.stem, "classification", texts.drop_nulls())]
    raise CorpusError(
        f"{file}: expected the columns source, task, query, positive; or text_a, text_b, label; or query, positives; "
        f"or text, label; found {', '.join(columns)}"
    )


def _of_pairs(name: str, frame: pl.DataFrame) -> EvaluationSet:
    frame = frame.with_columns(query_id=pl.coalesce("pair_id", pl.int_range(pl.len()).cast(pl.String)))
    is_passage = pl.col("task") == "passage"
    task = next(iter(frame.filter(~is_passage)["task"]), "passage")
    if task == "sts":
        pairs = frame.select("query_id", text_a="query", text_b="positive", label="label").drop_nulls()
        return EvaluationSet(name, "sts", pairs)
    asked = frame.filter(~is_passage & (pl.col("query") != "") & (pl.col("positive") != ""))
    if task == "classification":
        texts = asked.select("query_id", pl.col("query").alias("text"), pl.col("positive").alias("class"))
        return EvaluationSet(name, "classification", texts.with_columns(learnt=False))
    queries = asked.group_by("query", maintain_order=True).agg(
        pl.col("query_id").first(), pl.col("positive").alias("positives"), pl.col("negatives").explode().drop_nulls()
    )
    passages = pl.concat([frame["positive"], frame["negatives"].explode().cast(pl.String)])
    return EvaluationSet(name, "retrieval", queries, passages)


def part(one: EvaluationSet, frame: pl.DataFrame) -> EvaluationSet:
    """Return a set with only the rows in `frame`; a retrieval set keeps all of its passages to search."""
    passages = one.passages
    if one.task == "retrieval":
        named = [one.frame[side].explode().cast(pl.String) for side in ("positives", "negatives")]
        passages = pl.concat([*named, passages])
    return replace(one, frame=frame, passages=passages)


class Haystack(NamedTuple):
    """A retrieval set as arrays: its distinct passages, and which of them each query names.

    Query `owner[i]` names passage `place[i]`, as a positive if `wanted[i]`, else as a negative. Sorted by owner; each
    pair is listed once.
    """

    passages: pl.Series
    owner: Integers
    place: Integers
    wanted: npt.NDArray[np.bool_]


def haystack(one: EvaluationSet) -> Haystack:
    """Collect the passages of a retrieval set. A text that is both positive and negative for a query is positive."""
    queries = one.frame.with_columns(owner=pl.int_range(pl.len()))
    named = pl.concat(
        queries.select("owner", wanted=pl.lit(answers), text=side).explode("text")
        for side, answers in (("positives", True), ("negatives", False))
    )
    named = named.filter(pl.col("text") != "").unique(["owner", "text"], keep="first", maintain_order=True)
    passages = pl.concat([named["text"], one.passages]).drop_nulls().unique(maintain_order=True)
    passages = passages.filter(passages != "")
    place = pl.DataFrame({"text": passages, "place": np.arange(len(passages))})
    named = named.join(place, on="text", how="left", maintain_order="left").sort("owner", maintain_order=True)
    return Haystack(passages, *(named[column].to_numpy() for column in ("owner", "place", "wanted")))
