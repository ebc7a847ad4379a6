"""The metrics of models next to BM25's."""

import json
import re
from pathlib import Path
from typing import Any

import pyarrow as pa
from conan_embedding.pipeline.corpus.shard_writer import ShardWriter
from conan_embedding.pipeline.report.evaluation import render_evaluation
from conan_embedding.schemas.pairs import PAIR
from report_pages import render, rows_of


def write_metrics(corpus: Path, *rows: tuple[Any, ...]) -> None:
    names = ("model", "set", "metric", "value", "bytes_per_vector")
    (corpus / "evaluation").mkdir(exist_ok=True)
    (corpus / "evaluation" / "metrics.json").write_text(
        json.dumps([dict(zip(names, row, strict=False)) for row in rows])
    )


def test_the_best_is_bold_and_models_are_compared_to_bm25(scored_corpus: Path) -> None:
    write_metrics(
        scored_corpus,
        ("bm25", "qa", "ndcg@10", 0.75),
        ("bge <large>", "qa", "ndcg@10", 0.7, 4096),
        ("chosen here", "qa", "ndcg@10", 0.8125),
        ("chosen here", "sts", "spearman", None),
    )
    html = render(render_evaluation, scored_corpus)
    assert rows_of(html, "Evaluation") == [
        ["qa ndcg@10", "0.700-0.050", "0.812+0.062", "0.750"],
        ["sts spearman", "–", "–", "–"],
    ]
    assert re.findall(r"<td><b>(.*?)</b>", html) == ["0.812"]
    heads = re.findall(r'<th scope="col">(.*?)</th>', html[html.index(">Evaluation</h2>") :])
    assert heads[:4] == [
        "set",
        'bge &lt;large&gt;<br><span class="aside">4,096 bytes</span>',
        "chosen here",
        "bm25",
    ]


def test_columns_of_a_model_of_compared_corpora_are_next_to_each_other(tmp_path: Path, pair, write_shards) -> None:
    corpora = [tmp_path / name for name in ("first", "second")]
    for corpus, value in zip(corpora, (0.5, 0.6), strict=True):
        write_shards(corpus, "dedup", [pair("问题", "答案")])
        write_metrics(corpus, ("finetune", "qa", "ndcg@10", value), ("bm25", "qa", "ndcg@10", 0.55))
    write_metrics(corpora[1], ("finetune", "qa", "ndcg@10", 0.6), ("bm25", "own", "ndcg@10", 0.25))
    html = render(render_evaluation, *corpora)
    heads = re.findall(r'<th scope="col">(.*?)</th>', html[html.index(">Evaluation</h2>") :])
    assert [re.sub(r"<[^>]*>", " ", head).split() for head in heads] == [
        ["set"],
        ["finetune", "first"],
        ["finetune", "second"],
        ["bm25", "first"],
        ["bm25", "second"],
    ]
    assert rows_of(html, "Evaluation") == [
        ["qa ndcg@10", "0.500-0.050", "0.600", "0.550", "–"],
        ["own ndcg@10", "–", "–", "–", "0.250"],
    ]


def test_what_is_held_out_of_the_sources_is_listed(scored_corpus: Path) -> None:
    for number, notes in enumerate([{"source": "qa", "held_out": 200, "questions": 4000, "passages": 3900}, {}]):
        shard = scored_corpus / "holdout" / f"part-{number:05d}.parquet"
        with ShardWriter(shard, PAIR, None, stage="holdout", version=1, fingerprint="") as writer:
            writer.keep(pa.table([[] for _ in PAIR], PAIR))
            writer.notes |= notes
    html = render(render_evaluation, scored_corpus)
    assert rows_of(html, "Evaluation") == [["qa", "200", "4,000", "3,900"]]
