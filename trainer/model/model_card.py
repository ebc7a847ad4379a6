"""The model card of an exported model, in the Hugging Face hub's format: use, training data, training, evaluation."""

import json
import re
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import polars as pl
import yaml
from huggingface_hub import EvalResult, ModelCardData

from ...pipeline.corpus.uris import fetch
from ...pipeline.encoder.quantization import RANGES_FILE, bytes_per_vector
from ...pipeline.publish.cards import choose_licence, show_licence, write_table
from ...schemas.prompts import Prompts
from ...schemas.source_settings import Source

_METRICS = {
    "map": ("Reranking", "map"),
    "spearman": ("STS", "cosine_spearman"),
    "ap": ("PairClassification", "cosine_ap"),
    "best_accuracy": ("PairClassification", "cosine_accuracy"),
    "accuracy": ("Classification", "accuracy"),
    "v_measure": ("Clustering", "v_measure"),
}
"""The task and metric in mteb's terms for each of our metrics; all others are retrieval metrics."""

_HUB_NAME = re.compile(r"[\w.-]+/[\w.-]+")
_HUB_DATASET = re.compile(r"hf://datasets/([^/@]+/[^/@]+)")
_RECORDS = {"source": pl.String, "category": pl.String, "rows": pl.Int64, "chinese": pl.Int64}


@dataclass(frozen=True)
class Stage:
    """A training stage as it was run.

    `records` counts the records that it drew from, with the columns source, category, rows and chinese (the rows with
    Han characters and no kana). None if the corpus no longer has the records.
    """

    name: str
    settings: dict[str, Any]
    steps: int
    processes: int
    records: pl.DataFrame | None


def read_stages(corpus: Path, last: str) -> tuple[list[Stage], str | None]:
    """Read the stages that led to the model of stage `last`, oldest first, and the model that the first started from.

    The latter is a hub name or a folder, or None for random weights.
    """
    stages: list[Stage] = []
    name = last
    while name != "untrained":
        folder = corpus / "train" / name
        job = json.loads((folder / "job.json").read_text("utf-8"))
        with (folder / "log.jsonl").open(encoding="utf-8") as log:
            start = json.loads(log.readline())
        settings = {key: value for key, value in job["settings"].items() if key != "model"}
        stages.insert(0, Stage(name, settings, start["steps"], start["world_size"], _records(job, corpus)))
        begun, trained = Path(job["model"]), Path(job["corpus"]) / "train"
        if not begun.is_relative_to(trained):
            return stages, job["model"]
        name = begun.relative_to(trained).parts[0]
    return stages, None


def _records(job: Mapping[str, Any], corpus: Path) -> pl.DataFrame | None:
    """Count the records in a job's shards by source. The corpus may have been moved since the job was run."""
    files = [
        (kind, corpus / Path(shard).relative_to(job["corpus"]))
        for kind, shards in job["shards"].items()
        for shard in shards
        if kind != "sts" or job["settings"]["sts_batch"]
    ]
    for _, file in files:
        fetch(corpus, file.relative_to(corpus).as_posix())
    if not all(file.exists() for _, file in files):
        return None
    parts = [pl.LazyFrame(schema=_RECORDS)]
    for kind, file in files:
        frame = pl.scan_parquet(file)
        if "task" in frame.collect_schema():  # a stage before convert: count the pairs that `write_pairs` takes
            frame = frame.filter(pl.col("task").cast(pl.String).is_in(["pretrain", "retrieval"]))
        text = pl.col("text_a" if kind == "sts" else "query")
        chinese = text.str.contains(r"\p{Han}") & ~text.str.contains(r"\p{Hiragana}|\p{Katakana}")
        parts.append(
            frame.group_by(pl.col("source", "category").cast(pl.String)).agg(
                rows=pl.len().cast(pl.Int64), chinese=chinese.sum().cast(pl.Int64)
            )
        )
    return pl.concat(parts).group_by("source", "category", maintain_order=True).sum().collect()


def model_card(
    name: str,
    *,
    base: str | None,
    stages: Sequence[Stage],
    sources: Sequence[Source],
    metrics: Sequence[Mapping[str, Any]],
    dimension: int,
    max_length: int,
    prompts: Prompts,
    precision: str,
    onnx: bool,
    calibrated: int,
    command: Sequence[str],
) -> str:
    """Return the card of a model: YAML front matter (https://huggingface.co/docs/hub/model-cards), text and tables.

    `base` is the hub name or folder that training started from, None for random weights. `metrics` has rows with set,
    metric, value and, for truncated or quantised vectors, dimension and precision. `calibrated` is the number of
    passages that int8_ranges.safetensors is of, 0 if there is no such file.

    The card claims only what is known. The licence is the one that all training sources declare if there is no base
    model, which may have its own; otherwise `other`. The language is Chinese if most records are, and omitted
    otherwise. `base_model` and `datasets` are given only if they are on the hub.
    """
    known = {source.name: source for source in sources}
    trained = _trained(stages)
    used = [known[source] for source in trained["source"] if source in known]
    datasets = sorted({found[1] for source in used for file in source.files if (found := _HUB_DATASET.match(file))})
    is_hub_name = base is not None and _HUB_NAME.fullmatch(base) is not None and not Path(base).exists()
    data = ModelCardData(
        language="zh" if trained["chinese"].sum() * 2 > trained["rows"].sum() else None,
        license=choose_licence([known.get(source) for source in trained["source"]]) if base is None else "other",
        library_name="sentence-transformers",
        pipeline_tag="sentence-similarity",
        tags=["sentence-transformers", "sentence-similarity", "feature-extraction", "conan-embedding"]
        + ["onnx", "transformers.js"] * onnx,
        base_model=base if is_hub_name else None,
        datasets=datasets or None,
        model_name=name if metrics else None,  # required with eval_results; without, it would be a key of the card
        eval_results=[_result(row) for row in metrics if _vectors_of(row, dimension) == (dimension, "float32")] or None,
    )
    began = "random weights" if base is None else f"`{base if is_hub_name else Path(base).name}`"
    parts = [
        f"---\n{data.to_yaml()}\n---\n\n# {name}",
        _what(name, stages, dimension, max_length, prompts, precision),
        _how_to_run_onnx(dimension) if onnx else "",
        _how_to_quantize(name, dimension, calibrated) if calibrated else "",
        _training_data(trained, stages, known),
        f"## Training\n\nTraining started from {began}." if stages else f"This is {began}, not trained further.",
        *(_stage(stage) for stage in stages),
        _metrics(metrics, dimension),
        f"## How this model was made\n\nWith the conan-embedding toolkit, version {version('conan-embedding')}, which "
        "implements the Conan-embedding paper (arXiv 2408.15710):\n\n"
        f"```sh\n{shlex.join(_without_folders(command))}\n```",
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def _trained(stages: Sequence[Stage]) -> pl.DataFrame:
    """Return one row per source: category, its rows in all stages, and in each stage."""
    parts = [stage.records.with_columns(stage=pl.lit(stage.name)) for stage in stages if stage.records is not None]
    every = pl.concat([pl.DataFrame(schema=_RECORDS | {"stage": pl.String}), *parts])
    return every.group_by("source", "category", maintain_order=True).agg(
        pl.col("rows", "chinese").sum(),
        *(pl.col("rows").filter(pl.col("stage") == stage.name).sum().alias(stage.name) for stage in stages),
    )


def _result(row: Mapping[str, Any]) -> EvalResult:
    """Return a metric in the hub's form and mteb's terms. The hub distinguishes sets only by `dataset_type`."""
    task, metric = _METRICS.get(row["metric"], ("Retrieval", row["metric"].replace("@", "_at_")))
    return EvalResult(
        task_type=task,
        dataset_type=row["set"],
        dataset_name=row["set"],
        metric_type=metric,
        metric_value=round(float(row["value"]), 4),
    )


def _what(name: str, stages: Sequence[Stage], dimension: int, max_length: int, prompts: Prompts, precision: str) -> str:
    widths = sorted(
        {width for stage in stages[-1:] for width in stage.settings["matryoshka_dims"] if width < dimension}
    )
    shorter = (
        f" Vectors may be truncated to a width of {', '.join(map(str, widths))} (Matryoshka, arXiv 2205.13147)."
        if widths
        else ""
    )
    added = [
        f"`{prompt}` before {texts}, which `{function}` adds"
        for prompt, texts, function in (
            (prompts.query, "queries", "encode_query"),
            (prompts.passage, "passages", "encode_document"),
            (prompts.sentence, "other texts", "encode"),
        )
        if prompt
    ]
    prompt = f"It needs the prompts {', '.join(added)}." if added else "It needs no prompts."
    return (
        f"A text-embedding model. It encodes the first {max_length} tokens of a text as a vector of {dimension} "
        f"dimensions. Compare vectors by cosine similarity.{shorter} {prompt} The weights are {precision}.\n\n"
        "```python\nfrom sentence_transformers import SentenceTransformer\n\n"
        f'model = SentenceTransformer("{name}"{f", truncate_dim={widths[-1]}" if widths else ""})\n'
        "queries = model.encode_query(queries_as_text)\n"
        "passages = model.encode_document(passages_as_text)\n"
        "scores = model.similarity(queries, passages)\n```"
    )


def _how_to_run_onnx(dimension: int) -> str:
    return (
        f"`onnx/model.onnx` takes `input_ids` and `attention_mask` [texts, length] and returns `sentence_embedding` "
        f"[texts, {dimension}] in fp32, not normalised. `onnx/model_quantized.onnx`, if there is one, is the same with "
        'int8 weights: `dtype: "q8"` in transformers.js.\n\n'
        "```python\nimport onnxruntime\n\n"
        'batch = tokenizer(texts, padding=True, truncation=True, return_tensors="np")\n'
        'session = onnxruntime.InferenceSession("onnx/model.onnx")\n'
        'vectors = session.run(None, {name: batch[name] for name in ("input_ids", "attention_mask")})[0]\n```'
    )


def _how_to_quantize(name: str, dimension: int, calibrated: int) -> str:
    return (
        f"`{RANGES_FILE}` has the least and the greatest value of each dimension in the vectors of {calibrated:,} "
        "passages of the training data, for each width. With them, a passage is stored in a byte per dimension:\n\n"
        "```python\nfrom safetensors.numpy import load_file\n"
        "from sentence_transformers.util.quantization import quantize_embeddings\n\n"
        f'ranges = load_file("{name}/{RANGES_FILE}")["{dimension}"]\n'
        "vectors = model.encode_document(passages_as_text, normalize_embeddings=True)\n"
        'stored = quantize_embeddings(vectors, "int8", ranges=ranges)\n```'
    )


def _training_data(trained: pl.DataFrame, stages: Sequence[Stage], sources: Mapping[str, Source]) -> str:
    if not stages:
        return ""
    found = [stage.name for stage in stages if stage.records is not None]
    gone = [stage.name for stage in stages if stage.records is None]
    rows = [
        [
            row["source"],
            row["category"],
            show_licence(sources.get(row["source"])),
            *(f"{row[name]:,}" for name in found),
        ]
        for row in trained.to_dicts()
    ]
    total = ["all", "", "", *(f"{trained[name].sum():,}" for name in found)]
    return (
        "## Training data\n\nThe number of records that each training stage drew from, by source. Licences are as "
        "declared in the recipe. They do not settle the licence of the model, which its publisher has to choose.\n\n"
        + write_table(["source", "category", "licence", *found], [*rows, total], numbers=len(found))
        + "".join(f"\n\nThe records of {name} are no longer in the corpus." for name in gone)
    )


def _without_folders(value: Any) -> Any:
    """Return settings or arguments in which paths of this machine are their last part: a card is for everybody."""
    if isinstance(value, dict):
        return {key: _without_folders(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [_without_folders(each) for each in value]
    if not isinstance(value, str):
        return value
    key, equals, text = value.rpartition("=")  # --set KEY=PATH
    path = Path(text.strip("\"'"))
    is_local = (
        path.is_absolute() or ".." in path.parts or text.startswith("~") or (len(path.parts) > 1 and path.exists())
    )
    return f"{key}{equals}{path.name}" if is_local else value


def _stage(stage: Stage) -> str:
    processes = "one process" if stage.processes == 1 else f"{stage.processes} processes"
    settings = yaml.safe_dump(
        _without_folders(stage.settings), allow_unicode=True, sort_keys=False, default_flow_style=None, width=200
    )
    return f"### {stage.name}\n\n{stage.steps:,} steps on {processes}.\n\n```yaml\n{settings}```"


def _metrics(metrics: Sequence[Mapping[str, Any]], full: int) -> str:
    if not metrics:
        return ""
    found = {(row["set"], row["metric"], _vectors_of(row, full)): f"{row['value']:.4f}" for row in metrics}
    stored = sorted({vectors for *_, vectors in found}, key=lambda vectors: bytes_per_vector(*vectors))
    rows = [
        [name, metric, *(found.get((name, metric, vectors), "") for vectors in stored)]
        for name, metric in dict.fromkeys((name, metric) for name, metric, _ in found)
    ]
    if any(precision != "float32" for _, precision in stored):
        rows.append(["", "bytes per vector", *(f"{bytes_per_vector(*vectors):,}" for vectors in stored)])
    header = ["set", "metric", *(f"{width} {precision}".removesuffix(" float32") for width, precision in stored)]
    return "## Evaluation\n\nOn held-out sets, by vector width:\n\n" + write_table(header, rows, len(stored))


def _vectors_of(row: Mapping[str, Any], full: int) -> tuple[int, str]:
    """Return the width and precision of the vectors behind a metric."""
    return row.get("dimension") or full, row.get("precision") or "float32"
