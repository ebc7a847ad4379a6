"""`conan report`: write one self-contained HTML page about a corpus, or about several next to each other."""

import re
from base64 import b64encode
from collections.abc import Sequence
from datetime import datetime
from hashlib import sha256
from pathlib import Path

from ...schemas.errors import CorpusError
from ..corpus.atomic import write_text
from ..corpus.uris import name_uris
from .differences import render_differences
from .elements import escape_text
from .evaluation import render_evaluation
from .funnel import render_funnel
from .lengths import render_lengths
from .negative_pools import render_pools
from .rejects import render_examples, render_rejects
from .scores import render_scores
from .style import SCRIPT, STYLE
from .subjects import Subject, open_subjects
from .synthesis import render_synthesis
from .training import render_training

_SECTIONS = (
    render_differences,
    render_funnel,
    render_rejects,
    render_synthesis,
    render_scores,
    render_lengths,
    render_pools,
    render_training,
    render_evaluation,
    render_examples,
)

_MOST = 4
"""The most corpora on a page: the series that the style sheet tells apart."""


def write_report(corpora: Sequence[Path], to: Path) -> Path:
    """Write the page to `to` and return that: inline CSS and SVG, one inline script that filters a table.

    Sections without data are left out. Neither the page, which is under 2 MB, nor the memory that it takes grows with
    the corpora.

    Raises:
        CorpusError: a folder holds no shards, or they are too many, or one is named twice.
    """
    if len(corpora) > _MOST:
        raise CorpusError(f"{len(corpora)} corpora; a report compares at most {_MOST}")
    with open_subjects(corpora) as subjects:
        body = "".join(render(subjects) for render in _SECTIONS)
        page = _render_page(subjects, body)
    to.parent.mkdir(parents=True, exist_ok=True)
    write_text(to, page)
    return to


def _render_page(subjects: Sequence[Subject], body: str) -> str:
    title = " and ".join(escape_text(subject.name, 255) for subject in subjects)
    places = "<br>".join(escape_text(name_uris(str(subject.folder)), 1000) for subject in subjects)
    links = "".join(
        f'<a href="#{name}">{heading}</a>' for name, heading in re.findall(r'<section id="(\w+)"><h2>(.*?)</h2>', body)
    )
    now = datetime.now().astimezone()
    digest = b64encode(sha256(SCRIPT.encode()).digest()).decode()
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline'; \
script-src 'sha256-{digest}'; base-uri 'none'; form-action 'none'">
<title>{title} · Conan corpus report</title>
<style>{STYLE}</style>
</head>
<body>
<header><p>Conan corpus report</p><h1>{title}</h1>
<p>{places}<br><time datetime="{now.isoformat(timespec="seconds")}">{now:%d %B %Y, %H:%M %Z}</time></p>
<nav>{links}</nav>
</header>
<main>
{body}
</main>
<script>{SCRIPT}</script>
</body>
</html>
"""
