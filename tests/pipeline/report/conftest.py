"""A corpus to report on."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from report_pages import HOSTILE, write_ingest


@pytest.fixture
def scored_corpus(tmp_path: Path, pair: Callable[..., dict[str, Any]], write_shards: Callable[..., None]) -> Path:
    """Two sources through ingest, filter, dedup and score; one filter reject in four is hostile."""
    folder = tmp_path / "my <corpus>"
    web = [pair(f"问题{number}", "答" * (number + 1), "web") for number in range(12)]
    news = [pair(f"标题{number}", "文" * 40, "news & <b>", category="news") for number in range(8)]
    bad = [
        pair(f"{number}{HOSTILE}", HOSTILE * 9, "web") | {"reason": "markup", "detail": HOSTILE} for number in range(5)
    ]
    bad += [pair("问", "", "web") | {"reason": "empty_side", "detail": "0 < 1"}] * 6
    broken = {"source": "web", "file": "<i>/posts.jsonl", "line": 7, "record": '{"q": <b>', "reason": "broken_json"}
    broken_file = {"source": "web", "file": "posts.gz", "reason": "truncated", "detail": "after 0 bytes"}
    unread = [broken | {"detail": "not valid JSON"}, broken_file]
    write_ingest(folder, web + news[:4] + bad, news[4:], rejects=unread)
    write_shards(folder, "filter", web + news[:4], news[4:], rejects=bad)
    write_shards(folder, "dedup", web, news)
    scored = [row | {"score": 0.31 + number * 0.03, "mismatched": 0.1} for number, row in enumerate(web)]
    low = [row | {"reason": "score", "detail": f"{row['score']:.3g} < 0.4"} for row in scored if row["score"] < 0.4]
    write_shards(folder, "score", scored[len(low) :], news, rejects=low)
    return folder
