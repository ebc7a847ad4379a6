"""The corpus folder: where the shards of each stage lie, what they say of themselves, and when a stage is whole."""

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

STAGES = ("ingest", "filter", "dedup", "score", "convert")
FOLDERS = ("ingest", "filter", "dedup", "score", "convert/pretrain", "convert/retrieval", "convert/sts")
"""Where shards lie, in the order of the work."""

_INCOMPLETE = ".incomplete"
_PART = re.compile(r"part-\d+\.parquet")


def shards(corpus: Path, folder: str) -> list[Path]:
    """The shards of a finished stage, in order.

    Raises:
        CorpusError: the stage was not run, or was interrupted.
    """
    check_place(corpus)
    stage = "ingest" if folder == "evaluation" else folder.partition("/")[0]
    if (corpus / folder / _INCOMPLETE).exists():
        raise CorpusError(f"{corpus / folder}: `conan {stage}` was interrupted; run it again first")
    found = committed(corpus, folder)
    if not found and folder.startswith("convert/") and (corpus / folder).is_dir():
        raise CorpusError(
            f"{corpus / folder}: no pair became such a record, as the tasks of the sources say; train or mine on "
            "others, as with `mine: {queries: [pretrain], passages: [pretrain]}`"
        )
    if not found:
        raise CorpusError(f"{corpus / folder}: no shards; run `conan {stage} {corpus}` first")
    return found


def committed(corpus: Path, folder: str) -> list[Path]:
    """The shards that are there, whether or not their stage is finished."""
    return _parts(corpus / folder)


def _parts(folder: Path) -> list[Path]:
    """Shards or rejects; not what a synchronising program has made of one, `part-00000 (conflicted copy).parquet`."""
    return sorted(file for file in folder.glob("part-*.parquet") if _PART.fullmatch(file.name))


def check_place(corpus: Path) -> None:
    """Raise CorpusError where a corpus lies in a folder whose name DuckDB and Polars take for a pattern."""
    if found := sorted(set("*?[") & set(str(corpus.resolve()))):
        raise CorpusError(f"{corpus.resolve()}: a corpus can't lie below a folder with {found[0]} in its name; move it")


def is_begun(corpus: Path, folder: str) -> bool:
    """Whether a stage has left shards there, or the mark of one that was interrupted."""
    return bool(committed(corpus, folder)) or (corpus / folder / _INCOMPLETE).exists()


def rejects(shard: Path) -> Path:
    """Where the rejects of a shard lie."""
    return shard.parent / "rejected" / shard.name


def read_footer(shard: Path) -> Footer:
    """A shard's own manifest. Raises CorpusError where the file is none of ours."""
    try:
        metadata = pq.read_metadata(shard).metadata or {}
        return Footer.model_validate_json(metadata[FOOTER_KEY])
    except (OSError, KeyError, ValueError, pa.ArrowException) as error:
        raise CorpusError(f"{shard}: not a shard of Conan ({error}); remove it and run the stage again") from error


def fingerprint(*parts: Any) -> str:
    """A 128-bit hash (hex) of anything JSON can say, the same on every machine."""
    text = json.dumps(parts, sort_keys=True, ensure_ascii=False, default=str)
    return hashlib.blake2b(text.encode(errors="surrogatepass"), digest_size=16).hexdigest()


def read_batches(shard: Path, columns: Sequence[str] | None = None) -> Iterator[pa.Table]:
    """The row groups of a shard, one at a time."""
    with pq.ParquetFile(shard) as file:
        for group in range(file.num_row_groups):
            yield file.read_row_group(group, columns=columns)


def begin(corpus: Path, folder: str) -> None:
    """Mark a stage's folder as being written and clear what a killed run left half-written."""
    check_place(corpus)
    place = corpus / folder
    place.mkdir(parents=True, exist_ok=True)
    (place / _INCOMPLETE).touch()
    clear_temporaries(place)
    clear_temporaries(place / "rejected")


def finish(corpus: Path, folder: str, keep: set[str]) -> None:
    """Remove shards of an earlier shape and what killed workers left, then the mark: the folder is whole now."""
    clear_temporaries(corpus / folder)
    clear_temporaries(corpus / folder / "rejected")
    for shard in [*committed(corpus, folder), *_parts(corpus / folder / "rejected")]:
        if shard.name not in keep:
            shard.unlink()
    (corpus / folder / _INCOMPLETE).unlink(missing_ok=True)
