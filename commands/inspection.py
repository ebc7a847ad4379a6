"""Commands that show what is in a corpus, and whether the machine is fit for the work."""

from functools import partial
from pathlib import Path

import typer

from .. import display, options
from ..options import AsJson, Corpus, Debug, Overrides
from ..show_outcome import show_outcome
from .registration import register

app = typer.Typer()
command = partial(register, app, "Inspection")


@command(
    'conan sql corpora/zh "SELECT reason, count(*) FROM rejected GROUP BY 1"',
    'conan sql corpora/zh "FROM rejected" --limit 100 --csv',
)
def sql(
    corpus: Corpus,
    query: options.Query,
    limit: options.Limit = None,
    as_json: AsJson = False,
    as_csv: options.AsCsv = False,
    debug: Debug = False,
) -> None:
    """Query a corpus with SQL, and print the result.

    Views: ingest, filter, dedup, score, convert, pretrain, retrieval, sts, passages, rejected, funnel, rules, runs,
    results.
    Negative pools: pools.candidates, pools.queries, pools.passages, pools.positives, pools.windows, pools.replacements,
    pools.runs, pools.short_pools, pools.judgements.
    """
    from ..pipeline.corpus.catalog import query as ask

    if as_json and as_csv:
        raise typer.BadParameter("not with --json", param_hint="--csv")
    display.show_rows(ask(corpus, query, limit), as_json, as_csv)


@command("conan report corpora/zh --to report.html", "conan report corpora/zh corpora/zh-strict")
def report(
    corpora: options.ReportedCorpora,
    to: options.ReportFile = None,
    debug: Debug = False,
) -> None:
    """Write one self-contained HTML page: funnel, scores, rejects with examples, training curves, metrics.

    Several corpora are next to each other, after the settings in which they differ.
    """
    from ..pipeline.corpus.uris import is_mirror
    from ..pipeline.report.page import write_report

    name = "report.html" if len(corpora) == 1 else "comparison.html"
    place = Path() if is_mirror(corpora[0]) else corpora[0]
    typer.echo(f"report: {write_report(corpora, to or place / name)}")


@command("conan sample corpora/zh tests/corpus --rows 1000")
def sample(
    corpus: Corpus,
    out: options.NewFolder,
    rows: options.Rows = 1_000,
    seed: options.Seed = 0,
    as_json: AsJson = False,
    debug: Debug = False,
) -> None:
    """Write a small sample of a corpus: every stage with its rejects and pools, by source and format."""
    from ..pipeline.corpus.lock import locked
    from ..pipeline.sample import cut

    with locked(corpus):
        summaries = cut(corpus, out, rows, seed)
    for summary in summaries:
        show_outcome(summary, as_json)


@command("conan doctor", "conan doctor recipe.yaml --json")
def doctor(
    recipe: options.OptionalRecipe = None,
    overrides: Overrides = [],
    as_json: AsJson = False,
    debug: Debug = False,
) -> None:
    """Examine this machine: devices, memory, versions, disks, network, extras; a line each, with what to do.

    The exit code is 1 if there is an error.
    """
    from ..pipeline.doctor import examine

    findings = examine(recipe, overrides)
    display.show_findings(findings, as_json)
    if any(finding.level == "error" for finding in findings):
        raise typer.Exit(1)
