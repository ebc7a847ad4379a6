"""Options of commands, and helpers that turn them into a recipe and an engine."""

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from enum import StrEnum
from math import isfinite
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from . import display
from .show_outcome import show_outcome

if TYPE_CHECKING:
    from .pipeline.engine.calls import Engine
    from .schemas.recipe import Recipe

BAD_INPUT = 3
"""Exit code with --strict if any input was bad."""
GATE_FAILED = 4
"""Exit code if a model is below --min, or worse than --baseline by more than --not-worse."""


class EngineName(StrEnum):
    """Where data stages run: processes of this machine, or a Ray cluster."""

    LOCAL = "local"
    RAY = "ray"


def _debug(wanted: bool) -> bool:
    """Set the environment variable that worker processes read."""
    if wanted:
        os.environ["CONAN_DEBUG"] = "1"
    return wanted


def _numbers(text: str | None) -> str | None:
    if text is not None and not all(part.strip().isdecimal() for part in text.split(",")):
        raise typer.BadParameter("expected whole numbers, as in 256,512")
    return text


def _local_folder(folder: Path) -> Path:
    from .pipeline.corpus.uris import refuse_uri

    refuse_uri(folder)
    return folder


def _corpus(context: typer.Context, corpus: Path | None) -> Path | None:
    """Return the folder of a corpus; one at a URI is opened, but not while the shell completes a command."""
    from .pipeline.corpus.uris import find_folder

    return corpus if corpus is None or context.resilient_parsing else find_folder(corpus)


def _corpora(context: typer.Context, corpora: list[Path]) -> list[Path]:
    return [folder for corpus in corpora if (folder := _corpus(context, corpus))]


Corpus = Annotated[
    Path, typer.Argument(metavar="CORPUS", help="The corpus: a folder, or s3://BUCKET/….", callback=_corpus)
]
Overrides = Annotated[
    list[str],
    typer.Option("--set", metavar="KEY=VALUE", help="Override a recipe key, as in score.cutoff=0.5. May be repeated."),
]
Workers = Annotated[int, typer.Option(metavar="N", help="Worker processes; 0 is one per core.", min=0)]
EngineOption = Annotated[
    EngineName, typer.Option("--engine", help="Where the work runs: on this machine, or on a Ray cluster.")
]
Address = Annotated[
    str | None,
    typer.Option(
        metavar="HOST:PORT", help="--engine ray: address of the cluster; default: the one that this machine is in."
    ),
]
Processes = Annotated[
    int | None,
    typer.Option(
        "--nproc",
        metavar="N",
        help="Training processes, one per device; default: 1, or with --engine ray one per GPU of the cluster.",
        min=1,
    ),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON instead of tables.")]
Strict = Annotated[bool, typer.Option("--strict", help=f"Exit with code {BAD_INPUT} if any input was bad.")]
Debug = Annotated[bool, typer.Option("--debug", help="Print the traceback of an error.", callback=_debug)]
RecipeFile = Annotated[
    Path | None, typer.Option(metavar="FILE", help="The recipe (YAML); default: the one saved in the corpus.")
]
Dimensions = Annotated[
    str | None,
    typer.Option(
        metavar="DIMS", help="Widths to cut vectors to, besides their full width, as in 256,512.", callback=_numbers
    ),
]

Quantizations = Annotated[
    str | None,
    typer.Option(metavar="KINDS", help="Also search passages stored as int8 or binary, as in int8,binary."),
]

PoolingOption = Annotated[
    str | None,
    typer.Option(
        "--pooling", metavar="POOLING", help="How token vectors become one, as in mean; default: what the folder says."
    ),
]
TrustRemoteCode = Annotated[
    bool, typer.Option("--trust-remote-code", help="Run the Python code that comes with the models.")
]

Place = Annotated[
    str,
    typer.Argument(metavar="FOLDER", help="A folder; or a file, a glob, or a URI such as s3://… or hf://datasets/…."),
]
NewRecipe = Annotated[Path, typer.Option("--output", "-o", metavar="FILE", help="The recipe to write; must be new.")]
RecipeArgument = Annotated[Path, typer.Argument(metavar="RECIPE", help="The recipe (YAML).")]
OptionalRecipe = Annotated[
    Path | None, typer.Argument(metavar="RECIPE", help="A recipe (YAML), to see whether what it needs is installed.")
]
OptionalCorpus = Annotated[
    Path | None,
    typer.Argument(
        metavar="CORPUS", help="The corpus: a folder, or s3://…; default: the recipe's `corpus:`.", callback=_corpus
    ),
]
DemoFolder = Annotated[
    Path,
    typer.Argument(metavar="FOLDER", help="The folder to work in: new, or of an earlier demo.", callback=_local_folder),
]
Explain = Annotated[
    str | None, typer.Option(metavar="PAIR_ID", help="Print each rule's value for one pair; write nothing.")
]
IngestDryRun = Annotated[
    bool,
    typer.Option("--dry-run", help="Print each source's columns, and pairs and rejects of a sample; write nothing."),
]
FilterDryRun = Annotated[
    bool, typer.Option("--dry-run", help="Print how many pairs of a sample each rule would reject; write nothing.")
]
JudgeDryRun = Annotated[
    bool,
    typer.Option(
        "--dry-run", help="Print how many pairs are to be judged, and what a language model costs; ask nobody."
    ),
]
SynthesizeDryRun = Annotated[
    bool, typer.Option("--dry-run", help="Print how many requests would be sent, and their tokens; ask nobody.")
]
Labels = Annotated[
    int | None,
    typer.Option(
        "--label",
        metavar="N",
        help="Show up to N undecided pairs, and take a grade for each by a key; ask no model.",
        min=1,
    ),
]
SampledPairs = Annotated[int, typer.Option(metavar="N", help="--dry-run: pairs in the sample.", min=1)]
Model = Annotated[
    str | None, typer.Option(metavar="MODEL", help="Hub name, folder or training stage; default: the recipe's.")
]
Cutoff = Annotated[
    float | None,
    typer.Option(metavar="COSINE", help="Reject pre-training pairs below this; default: the recipe's (0.4)."),
]
Method = Annotated[
    str | None,
    typer.Option(
        metavar="METHOD",
        help="topk, topk-shifted, topk-abs, topk-marginpos or topk-percpos; default: the recipe's (topk-percpos).",
    ),
]
ShowQuery = Annotated[
    str | None,
    typer.Option(metavar="QUERY", help="Print the pool of one query (id or text) and what was dropped, and exit."),
]
TrainingStage = Annotated[str, typer.Option(metavar="STAGE", help="bootstrap, pretrain or finetune.")]
TrainOn = Annotated[
    str | None,
    typer.Option(metavar="STAGE", help="Train on this data stage's pairs, such as dedup; not with finetune."),
]
StartModel = Annotated[
    str | None,
    typer.Option(metavar="MODEL", help="Start from a hub name, folder or training stage; default: the recipe's."),
]
Hostfile = Annotated[
    Path | None,
    typer.Option(
        metavar="FILE",
        help="Train on the machines in this file: lines of HOST slots=N.",
        exists=True,
        dir_okay=False,
    ),
]
TrainDryRun = Annotated[bool, typer.Option("--dry-run", help="Print settings, steps, parameters and memory, and exit.")]
CorpusOrModel = Annotated[
    Path,
    typer.Argument(
        metavar="CORPUS", help="The corpus folder; with --sets or --cmteb it may be a model.", callback=_corpus
    ),
]
Models = Annotated[
    list[str],
    typer.Argument(metavar="MODEL", help="Hub names, folders or training stages; default: the recipe's."),
]
Sets = Annotated[
    list[Path],
    typer.Option(
        metavar="PATH",
        help="Evaluation sets: a file, a folder, or a recipe with `evaluation:`; default: the corpus's own. May be "
        "repeated.",
    ),
]
ResultsFolder = Annotated[
    Path | None,
    typer.Option(
        metavar="FOLDER",
        help="Write results per query to this folder; default for the corpus's own sets: evaluation/results.",
    ),
]
Baseline = Annotated[
    str | None,
    typer.Option(
        metavar="MODEL", help="Evaluate this model, too (bm25 is one), and compare the others with it on each set."
    ),
]
Minimums = Annotated[
    list[str],
    typer.Option(
        "--min",
        metavar="METRIC=VALUE",
        help=f"Exit with code {GATE_FAILED} if a model is below this on a set, as in ndcg@10=0.80. May be repeated.",
    ),
]
NotWorse = Annotated[
    float | None,
    typer.Option(
        metavar="DELTA",
        help=f"Exit with code {GATE_FAILED} if a model is below the baseline by more than this on a set, as the paired "
        "bootstrap finds with 95 % confidence.",
        min=0,
    ),
]
Cmteb = Annotated[bool, typer.Option("--cmteb", help="Evaluate on C-MTEB, which needs the Hugging Face hub.")]
CmtebTasks = Annotated[
    str | None, typer.Option(metavar="NAMES", help="--cmteb: only these tasks, as in T2Retrieval,STSB.")
]
Repository = Annotated[str, typer.Option("--to", metavar="ORG/NAME", help="The repository on the Hugging Face hub.")]
PushedStage = Annotated[
    str | None,
    typer.Option("--data", metavar="STAGE", help="Send this stage's pairs as a data set, in place of the model."),
]
WithRejects = Annotated[
    bool, typer.Option("--rejects", help="--data: send the stage's rejects, too, with personal data masked.")
]
Public = Annotated[bool, typer.Option("--public", help="Make the repository public; by default it is private.")]
PushDryRun = Annotated[bool, typer.Option("--dry-run", help="Print what would be sent; ask and send nothing.")]
ExportedModel = Annotated[
    str | None, typer.Option(metavar="MODEL", help="Training stage, hub name or folder; default: the recipe's.")
]
ExportFolder = Annotated[
    Path | None, typer.Option(metavar="FOLDER", help="The folder to write; default: the recipe's (CORPUS/model).")
]
Query = Annotated[str, typer.Argument(metavar="QUERY", help="The DuckDB SQL.")]
Limit = Annotated[int | None, typer.Option(metavar="ROWS", help="Print at most this many rows; default: all.", min=0)]
AsCsv = Annotated[bool, typer.Option("--csv", help="Print CSV instead of a table; lists and structs as JSON.")]
ReportedCorpora = Annotated[
    list[Path],
    typer.Argument(metavar="CORPUS…", help="A corpus folder, or several to compare.", callback=_corpora),
]
ReportFile = Annotated[
    Path | None,
    typer.Option(
        metavar="FILE",
        help="The page to write; default: CORPUS/report.html, of several the first's comparison.html; of s3://, here.",
    ),
]
NewFolder = Annotated[
    Path, typer.Argument(metavar="OUT", help="The folder to write; must be new.", callback=_local_folder)
]
Rows = Annotated[int, typer.Option(metavar="N", help="Pairs in the sample.", min=1)]
Seed = Annotated[int, typer.Option(metavar="N", help="Seed of the draw.")]


def read_minimums(minimums: list[str]) -> dict[str, float]:
    """Read METRIC=VALUE. What doesn't have this form is a usage error."""
    found = {}
    for text in minimums:
        metric, _, value = text.rpartition("=")
        try:
            found[metric] = float(value)
        except ValueError:
            metric = ""
        if not metric or not isfinite(found[metric]):
            raise typer.BadParameter(f"{text}: expected METRIC=VALUE, as in ndcg@10=0.80", param_hint="--min")
    return found


def read_recipe(file: Path, overrides: list[str]) -> "Recipe":
    """Read a recipe and import its plugins.

    Raises:
        RecipeError: the recipe or an override has a mistake, or a plugin can't be imported.
    """
    from .pipeline.plugins import load_plugins
    from .schemas.recipe import load

    recipe = load(file, overrides)
    load_plugins(recipe.plugins)
    return recipe


def resolve(corpus: Path, file: Path | None, overrides: list[str]) -> "Recipe":
    """Read the recipe of a command on a corpus: the given file, else the recipe saved in the corpus.

    Raises:
        RecipeError: as for `read_recipe`, or there is no file and no corpus.
    """
    from .pipeline.corpus.saved_recipe import find_recipe

    return read_recipe(file or find_recipe(corpus), overrides)


def find_corpus(recipe: "Recipe", corpus: Path | None, file: Path) -> Path:
    """Return the corpus folder: the argument, else the recipe's `corpus:`, which may be a URI (see mirror.py).

    Raises:
        RecipeError: neither is given.
    """
    from .pipeline.corpus.uris import find_folder
    from .schemas.errors import RecipeError

    if corpus is None and recipe.corpus is None:
        raise RecipeError(
            f"{file}: no `corpus:`; add it, or give the folder on the command line: conan run {file} FOLDER"
        )
    return corpus or find_folder(str(recipe.corpus))


def with_options(overrides: list[str], options: dict[str, Any]) -> list[str]:
    """Add options of a command to the overrides. Values are quoted, so that YAML reads a text as a text."""
    return overrides + [f"{key}={json.dumps(value)}" for key, value in options.items() if value is not None]


def cluster_of(engine: EngineName, address: str | None) -> str | None:
    """Return the address of the Ray cluster, None for this machine. --address without --engine ray is a usage error."""
    if engine == EngineName.RAY:
        return address or "auto"
    if address is not None:
        raise typer.BadParameter("only with --engine ray", param_hint="--address")
    return None


@contextmanager
def work(corpus: Path, workers: int = 1, cluster: str | None = None) -> Iterator["Engine"]:
    """Lock the corpus and give an engine that shows its progress."""
    from .pipeline.corpus.lock import locked
    from .pipeline.corpus.uris import shown
    from .pipeline.engine.calls import Engine
    from .pipeline.engine.local import close_workers

    with locked(corpus), display.progress() as show, shown(corpus, show):
        try:
            yield Engine(workers, show, cluster)
        finally:
            close_workers()


def run_and_show(
    name: str,
    corpus: Path,
    recipe: "Recipe",
    as_json: bool,
    workers: int = 1,
    cluster: str | None = None,
    strict: bool = False,
) -> None:
    """Run a data stage and print its summary. With `strict`, exit with BAD_INPUT if any input was bad."""
    from .workflow import run_data_stage

    with work(corpus, workers, cluster) as engine:
        summary = run_data_stage(name, corpus, recipe, engine)
    show_outcome(summary, as_json)
    if strict and summary.bad_input:
        raise typer.Exit(BAD_INPUT)
