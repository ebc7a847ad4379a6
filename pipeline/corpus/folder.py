"""The corpus folder: where each stage keeps its shards, what their footers say, and whether a stage is complete."""

import hashlib
import json
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from ...schemas.errors import CorpusError
from ...schemas.footer import FOOTER_KEY, Footer
from .atomic import clear_temporaries
from .uris import fetch_shards, refuse_uri, settle, upload

STAGES = ("ingest", "filter", "dedup", "score", "convert")
FOLDERS = (
    *("ingest", "filter", "dedup", "score"),
    *("convert/pretrain", "convert/retrieval", "convert/sts", "convert/passages"),
)
"""The folders that hold shards, in pipeline order."""

HOLDOUT = "holdout"
"""The folder of the evaluation sets that dedup holds out of the sources."""
HELD_OUT = f"{HOLDOUT}/questions/questions.parquet"
"""The questions that stay held out when the corpus grows; not a shard."""

_INCOMPLETE = ".incomplete"
_PART = re.compile(r"part-\d+\.parquet")


def shards(corpus: Path, folder: str) -> list[Path]:
    """Return the shards of a completed stage, in order.

    Raises:
        CorpusError: the stage has not been run, or it was interrupted.
    """
    check_place(corpus)
    stage = {"evaluation": "ingest", HOLDOUT: "dedup"}.get(folder, folder.partition("/")[0])
    if is_interrupted(corpus, folder):
        raise CorpusError(f"{corpus / folder}: `conan {stage}` was interrupted; run it again first")
    found = committed(corpus, folder)
    if not found and folder.startswith("convert/") and (corpus / folder).is_dir():
        raise CorpusError(
            f"{corpus / folder}: no records of this kind, which the `task` of each source decides; train on or mine "
            "other kinds, for example `mine: {queries: [pretrain], passages: [pretrain, passages]}`"
        )
    if not found:
        raise CorpusError(f"{corpus / folder}: no shards; run `conan {stage} {corpus}` first")
    return found


def committed(corpus: Path, folder: str) -> list[Path]:
    """Return the shards that exist, whether or not their stage is complete."""
    fetch_shards(corpus, folder)
    return _parts(corpus / folder)


def _parts(folder: Path) -> list[Path]:
    """List shards or rejects, but not the copies of sync tools, such as `part-00000 (conflicted copy).parquet`."""
    return sorted(file for file in folder.glob("part-*.parquet") if _PART.fullmatch(file.name))


def check_place(corpus: Path) -> None:
    """Raise CorpusError if a corpus is a URI, or its path has characters that DuckDB and Polars read as a glob."""
    refuse_uri(corpus)
    if found := sorted(set("*?[") & set(str(corpus.resolve()))):
        raise CorpusError(
            f"{corpus.resolve()}: the path of a corpus must not contain {found[0]}; move or rename the folder"
        )


def is_begun(corpus: Path, folder: str) -> bool:
    """Whether a stage has written shards, or was interrupted before the first."""
    return bool(committed(corpus, folder)) or is_interrupted(corpus, folder)


def is_interrupted(corpus: Path, folder: str) -> bool:
    """Whether a stage has begun to write its shards and has not come to its end."""
    return (corpus / folder / _INCOMPLETE).exists()


def is_sample(corpus: Path) -> bool:
    """Whether `conan sample` wrote the corpus: its pairs are not all of the sources, and ingest would replace them."""
    return any(read_footer(shard).notes.get("sample") for shard in committed(corpus, "ingest"))


def rejects(shard: Path) -> Path:
    """Return the path of the rejects that belong to a shard."""
    return shard.parent / "rejected" / shard.name


def read_footer(shard: Path) -> Footer:
    """Read the footer of a shard, which is its manifest. Raises CorpusError if Conan did not write the file."""
    try:
        metadata = pq.read_metadata(shard).metadata or {}
        return Footer.model_validate_json(metadata[FOOTER_KEY])
    except (OSError, KeyError, ValueError, pa.ArrowException) as error:
        raise CorpusError(f"{shard}: not a Conan shard ({error}); delete it and run the stage again") from error


def fingerprint(*parts: Any) -> str:
    """Return a 128-bit hash (hex) of any JSON-serialisable values, the same on every machine."""
    text = json.dumps(parts, sort_keys=True, ensure_ascii=False, default=str)
    return hashlib.blake2b(text.encode(errors="surrogatepass"), digest_size=16).hexdigest()


def read_batches(shard: Path, columns: Sequence[str] | None = None) -> Iterator[pa.Table]:
    """Yield the row groups of a shard, one at a time."""
    with pq.ParquetFile(shard) as file:
        for group in range(file.num_row_groups):
            yield file.read_row_group(group, columns=columns)


def begin(corpus: Path, folder: str) -> None:
    """Mark the folder of a stage as incomplete, and delete the temporary files of a killed run."""
    check_place(corpus)
    place = corpus / folder
    place.mkdir(parents=True, exist_ok=True)
    (place / _INCOMPLETE).touch()
    clear_temporaries(place)
    clear_temporaries(place / "rejected")
    settle(corpus, folder)


def finish(corpus: Path, folder: str, keep: set[str]) -> None:
    """Mark the folder of a stage as complete.

    Before that, delete shards whose name is not in `keep` (from an earlier sharding) and the temporary files of killed
    workers.
    """
    clear_temporaries(corpus / folder)
    clear_temporaries(corpus / folder / "rejected")
    for shard in [*committed(corpus, folder), *_parts(corpus / folder / "rejected")]:
        if shard.name not in keep:
            shard.unlink()
    settle(corpus, folder)
    (corpus / folder / _INCOMPLETE).unlink(missing_ok=True)
    upload(corpus, folder)
