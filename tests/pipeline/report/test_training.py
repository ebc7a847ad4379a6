"""The training runs, each with its curves or next to another corpus's."""

import json
import re
from pathlib import Path

import numpy as np
import pytest
from conan_embedding.pipeline.report.training import render_training
from report_pages import Page, facts_of, figure_of, render, rows_of

STEP = {"retrieval": 1.0, "sts": 0.5, "positive_score": 0.8, "negative_score": 0.3, "tokens_per_second": 1200}


def write_log(corpus: Path, name: str, *entries: dict, end: str = "") -> None:
    folder = corpus / "train" / name
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "log.jsonl").write_text("".join(json.dumps(entry) + "\n" for entry in entries) + end)


def test_runs_have_their_facts_and_curves(scored_corpus: Path) -> None:
    log = [{"event": "start", "steps": 40, "parameters": 683520, "world_size": 2}]
    log += [{"step": number, "loss": 2.5 / number} | STEP for number in (10, 20, 30)]
    log[2]["mining"] = {"visited": 9, "flagged": 5, "replaced": 4, "exhausted": 1}
    log[3] |= {"loss": float("nan"), "mining": {"visited": 9, "flagged": 3, "replaced": 3, "exhausted": 2}}
    log += [{"event": "validation", "step": step, "mean": mean} for step, mean in ((10, 0.5), (20, 0.625), (30, 0.6))]
    for name in ("finetune", "bootstrap"):
        write_log(scored_corpus, name, *log, end='{"step": 40, "lo')
    write_log(scored_corpus, "new", log[0])
    html = render(render_training, scored_corpus)
    page = Page(html)
    assert page.all("h3")[-2:] == ["bootstrap", "finetune"]
    facts = facts_of(html)
    assert [facts[name] for name in ("step", "total steps", "parameters", "processes")] == ["30", "40", "683,520", "2"]
    assert (facts["negatives replaced"], facts["exhausted"], facts["median tokens/s"]) == ("7", "2", "1,200")
    assert facts["best validation"] == "0.625"
    assert re.findall(r'class="key s(\d)">(.*?)<', figure_of(html, "Loss")) == [
        ("0", "loss"),
        ("1", "retrieval"),
        ("2", "sts"),
    ]
    assert re.findall(r'class="key s(\d)">(.*?)<', figure_of(html, "Cosine")) == [
        ("0", "positives"),
        ("1", "negatives"),
    ]
    assert 'aria-label="Validation. mean of the sets by step; mean: from 0.5 to 0.6"' in html


def test_runs_of_compared_corpora_share_charts_and_keep_their_colours(tmp_path: Path, pair, write_shards) -> None:
    corpora = [tmp_path / name for name in ("first", "second")]
    for corpus in corpora:
        write_shards(corpus, "dedup", [pair("问题", "答案")])
    write_log(corpora[0], "finetune", *({"step": step, "loss": 4.0, "positive_score": 0.5} for step in (10, 20)))
    write_log(
        corpora[1],
        "finetune",
        *({"step": step, "loss": 2.0, "positive_score": 0.75} for step in (5, 10)),
        {"event": "validation", "step": 10, "mean": 0.7},
    )
    write_log(corpora[1], "pretrain", {"step": 5, "loss": 1.0})
    html = render(render_training, *corpora)
    assert rows_of(html, "finetune") == [
        ["step", "20", "10"],
        ["loss", "4.000", "2.000"],
        ["best validation", "–", "0.700"],
    ]
    assert rows_of(html, "pretrain") == [["step", "–", "5"], ["loss", "–", "1.000"]]
    finetune = html[html.index("<h3>finetune") :]
    lines = re.findall(r'class="line s(\d)" d="M([\d.]+) ([\d.]+)', figure_of(finetune, "Loss"))
    assert [(series, float(x), float(y)) for series, x, y in lines] == [
        ("0", pytest.approx(42 + 332 / 2), 24.0),  # steps to 20, losses to 4
        ("1", pytest.approx(42 + 332 / 4), 94.0),
    ]
    validation = figure_of(finetune, "Validation")
    assert re.findall(r'class="key s(\d)">(.*?)<', validation) == [("1", "second")]
    assert re.findall(r'class="line s(\d)"', validation) == ["1"]
    assert "Cosine of positives" in finetune
    assert "Cosine of negatives" not in finetune
    assert np.isfinite([float(each) for each in re.findall(r"[ML]([\d.]+) ", html)]).all()
