"""Send an exported model or the pairs of a stage to the Hugging Face hub, each push as one commit."""

import re
import tempfile
from collections.abc import Mapping
from pathlib import Path

import polars as pl
import pyarrow.parquet as pq
from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi

from ...schemas.errors import ConanError, CorpusError
from ...schemas.outcomes import Pushed
from ...schemas.recipe import Recipe
from ..corpus.folder import FOLDERS, committed, rejects, shards
from ..corpus.uris import fetch
from ..text.personal_data import mask_personal_data
from .dataset_card import dataset_card

CARD = "README.md"
REJECTED = "rejected"
_NAME = re.compile(r"[\w.-]+/[\w.-]+")
_MASKED = ("query", "positive", "negatives", "record", "detail")
"""The columns of rejects that hold texts."""


class PublishError(ConanError):
    """Nothing was sent; the message says why and what to do."""


def push_model(corpus: Path, recipe: Recipe, repository: str, *, public: bool = False, dry_run: bool = False) -> Pushed:
    """Send the exported model with its card, in which the name of the repository takes the folder's place.

    Raises:
        CorpusError: the model has not been exported.
        PublishError: see `_send`.
    """
    _check_name(repository)
    folder = corpus / recipe.export.folder
    fetch(corpus, recipe.export.folder)
    if not (folder / "modules.json").exists():
        raise CorpusError(f"{folder}: no exported model; run `conan export {corpus}` first")
    files = {
        file.relative_to(folder).as_posix(): file
        for file in sorted(folder.rglob("*"))
        if file.is_file() and not any(part.startswith(".") for part in file.relative_to(folder).parts)
    }
    with tempfile.TemporaryDirectory() as place:
        if card := files.get(CARD):
            text = card.read_text("utf-8").replace(
                f'SentenceTransformer("{folder.name}"', f'SentenceTransformer("{repository}"'
            )
            files[CARD] = _write(Path(place, CARD), text)
        return _send(repository, "model", files, public, dry_run)


def push_data(
    corpus: Path,
    recipe: Recipe,
    stage: str,
    repository: str,
    *,
    with_rejects: bool = False,
    public: bool = False,
    dry_run: bool = False,
) -> Pushed:
    """Send a stage's shards as a data set with a card. Its rejects go along only if asked, with personal data masked.

    Raises:
        CorpusError: the stage has not been run, or was interrupted; or ingest kept its rejects raw.
        PublishError: the stage has no shards of pairs; or see `_send`.
    """
    _check_name(repository)
    folders = [folder for folder in FOLDERS if folder.partition("/")[0] == stage]
    if not folders:
        stages = dict.fromkeys(folder.partition("/")[0] for folder in FOLDERS)
        raise PublishError(f"--data {stage}: expected one of {', '.join(stages)}")
    with tempfile.TemporaryDirectory() as place:
        files: dict[str, Path] = {}
        for folder in [folder for folder in folders if committed(corpus, folder)] or folders:
            config = folder.rpartition("/")[2]
            for shard in shards(corpus, folder):
                files[f"{config}/{shard.name}"] = shard
                if with_rejects and (rejected := rejects(shard)).exists() and pq.read_metadata(rejected).num_rows:
                    _check_masked(recipe, stage)
                    name = f"{REJECTED}/{config}-{shard.name}"
                    files[name] = _mask_rejects(rejected, Path(place, config, shard.name))
        configs = list(dict.fromkeys(name.partition("/")[0] for name in files))
        sources = {source.name: source for source in recipe.sources}
        files[CARD] = _write(Path(place, CARD), dataset_card(corpus, repository, stage, sources, configs))
        return _send(repository, "dataset", files, public, dry_run)


def _check_name(repository: str) -> None:
    if not _NAME.fullmatch(repository):
        raise PublishError(f"--to {repository}: expected the name of a repository on the hub, as in my-team/zh-model")


def _check_masked(recipe: Recipe, stage: str) -> None:
    raw = [source.name for source in recipe.sources if source.rejects == "raw"]
    if stage == "ingest" and (raw or not recipe.filter.mask):
        which = f"source {raw[0]} has `rejects: raw`" if raw else "the recipe has `filter.mask: false`"
        raise CorpusError(f"rejects of ingest hold records as they were read, as {which}; leave out --rejects")


def _mask_rejects(rejected: Path, to: Path) -> Path:
    """Write rejects with personal data masked, and of their files' paths on this machine the names alone."""
    frame = pl.read_parquet(rejected)
    if "file" in frame.columns:
        frame = frame.with_columns(pl.col("file").str.split("/").list.last())
    masked, _ = mask_personal_data(frame, [name for name in _MASKED if name in frame.columns])
    to.parent.mkdir(parents=True, exist_ok=True)
    masked.write_parquet(to, compression="zstd")
    return to


def _write(file: Path, text: str) -> Path:
    file.write_text(text, encoding="utf-8")
    return file


def _send(repository: str, kind: str, files: Mapping[str, Path], public: bool, dry_run: bool) -> Pushed:
    """Make the repository hold these files and no others, in one commit; its history keeps earlier ones.

    The token is that of HF_TOKEN or of `hf auth login`. A new repository is private unless `public`.

    Raises:
        PublishError: the hub can't be reached or refuses; or the repository is there and is public though `public` is
            not set, or the other way round.
    """
    sizes = {name: file.stat().st_size for name, file in files.items()}
    card = files[CARD].read_text("utf-8") if CARD in files else ""
    if dry_run:
        return Pushed(repository, kind, not public, sizes, card, url=None)
    api = HfApi()
    try:
        url = str(api.create_repo(repository, private=not public, repo_type=kind, exist_ok=True))
        if api.repo_info(repository, repo_type=kind).private == public:
            found, cure = ("private", "leave out --public") if public else ("public", "pass --public")
            raise PublishError(f"{repository} is there already and is {found}; {cure}, or choose another name")
        gone = set(api.list_repo_files(repository, repo_type=kind)) - {*files, ".gitattributes"}
        operations: list[CommitOperationAdd | CommitOperationDelete] = [
            *(CommitOperationAdd(name, file) for name, file in files.items()),
            *(CommitOperationDelete(name) for name in sorted(gone)),
        ]
        api.create_commit(repository, operations, commit_message="Push with conan-embedding", repo_type=kind)
    except PublishError:
        raise
    except Exception as error:  # the hub's client raises errors of several libraries
        said = str(error).strip().splitlines()[0]
        raise PublishError(
            f"{repository}: {said}; check the name, and that HF_TOKEN or `hf auth login` gives a token that may write "
            "there"
        ) from error
    return Pushed(repository, kind, not public, sizes, card, url)
