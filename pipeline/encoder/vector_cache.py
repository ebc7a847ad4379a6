"""The cache of vectors, CORPUS/vectors/SPACE, so that a model encodes no text twice.

A space belongs to a model and all settings that its vectors depend on. It consists of parts: `vectors-N.npy`, float32
[n, D], and `texts-N.parquet`, the 128-bit hashes of the n texts. The vectors are written last, so a part whose vectors
exist is complete. Vectors are never all in memory: a part is memory-mapped when rows of it are read.
"""

import io
import shutil
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import duckdb
import numpy as np
import numpy.typing as npt
import polars as pl
import pyarrow as pa

from ...schemas.settings import EncoderSettings
from ..corpus.atomic import replacing
from ..corpus.folder import fingerprint
from ..corpus.sql import scan_shards
from ..engine.calls import Call, Engine
from ..engine.stage import StageError, run_calls

FOLDER = "vectors"
PART = 32_768
"""Chosen here: the most texts of a part, which is the most that a killed run loses. Two windows of the encoder."""
LEAST = 1_024
"""Chosen here: the fewest texts of a part of a small corpus, which has up to 16, so that progress is seen on a CPU."""

Integers = npt.NDArray[np.int64]
Places = npt.NDArray[np.int32]
Vectors = npt.NDArray[np.float32]

_HASH = ["upper", "lower"]
_TRUNCATED = "truncated"


@dataclass(frozen=True)
class StoredVectors:
    """The vectors of n texts: that of text i is row `rows[i]` of `files[places[i]]`."""

    files: list[Path]
    places: Places
    rows: Places

    def __len__(self) -> int:
        return len(self.rows)

    def take(self, places: Integers) -> Vectors:
        """Read the vectors of the texts at `places`, in that order: float32 [len(places), D]; [0, 0] for no places."""
        files, rows = self.places[places], self.rows[places]
        found = np.empty((0, 0), np.float32)
        for file in np.unique(files):
            mapped = np.load(self.files[file], mmap_mode="r")
            if not found.size:
                found = np.empty((len(places), mapped.shape[1]), np.float32)
            here = files == file
            found[here] = mapped[rows[here]]
        return found


def concatenate(blocks: Sequence[StoredVectors]) -> StoredVectors:
    """Put the texts of several blocks one after another."""
    files: list[Path] = []
    places, rows = [np.zeros(0, np.int32)], [np.zeros(0, np.int32)]
    for block in blocks:
        places.append(block.places + np.int32(len(files)))
        rows.append(block.rows)
        files += block.files
    return StoredVectors(files, np.concatenate(places), np.concatenate(rows))


def space(weights: str, settings: EncoderSettings, prompt: str) -> str:
    """Name a space: a hash of the model's fingerprint, the settings that affect vectors, and the prompt."""
    return fingerprint("vectors", weights, settings.max_length, settings.pooling, settings.trust_remote_code, prompt)


def spaces(weights: str, settings: EncoderSettings, prompts: pl.Series) -> pl.Series:
    """Name the space of each text, from what is put before it."""
    names = {prompt: space(weights, settings, prompt) for prompt in prompts.unique()}
    return prompts.replace_strict(names, return_dtype=pl.String).alias("vectors")


def store(
    corpus: Path, weights: str, settings: EncoderSettings, prompts: pl.Series, texts: pa.Array, engine: Engine
) -> StoredVectors:
    """Return the vectors of distinct texts, each after its prompt; encode and store those that are missing.

    The model is loaded only if vectors are missing. A run that is killed keeps the parts that it has written.

    Raises:
        ModelError: the model can't be loaded.
        StageError: a part could not be written.
    """
    wanted = _hashes(texts).with_columns(vectors=spaces(weights, settings, prompts), prompt=prompts)
    (corpus / FOLDER).mkdir(parents=True, exist_ok=True)
    for (name, prompt), own in wanted.with_row_index("place").group_by("vectors", "prompt", maintain_order=True):
        folder = corpus / FOLDER / str(name)
        folder.mkdir(exist_ok=True)
        missing = own.join(_find_rows(folder, own), on="place", how="anti", maintain_order="left")["place"]
        if len(missing):
            _write_parts(folder, texts, missing, weights, settings, str(prompt), engine)
    return _stored(corpus, wanted)


def _write_parts(
    folder: Path,
    texts: pa.Array,
    missing: pl.Series,
    weights: str,
    settings: EncoderSettings,
    prompt: str,
    engine: Engine,
) -> None:
    """Encode the texts at the places `missing`, and write them to a space, part by part."""
    from .encoder import loaded  # imports transformers: seconds and memory that cached vectors don't need

    loaded(settings, weights, "cpu")  # fail once if the model can't be loaded, instead of in every part
    calls: list[Call] = []
    size = min(PART, max(LEAST, -(-len(missing) // 16)))
    for part, start in enumerate(range(0, len(missing), size), start=max(_parts(folder), default=-1) + 1):
        chosen = texts.take(missing[start : start + size].to_numpy())
        files = _texts_file(folder, part), _vectors_file(folder, part)
        calls.append((str(files[1]), (*files, chosen, weights, settings, prompt)))
    engine.progress("vectors", 0, len(calls), 0)
    outcomes = run_calls(write_part, calls, replace(engine, one_a_device=True))
    for done, (file, error) in enumerate(outcomes, start=1):
        if error or not Path(file).exists():
            raise StageError(f"{file}: {error or 'written on a node that does not share this folder'}")
        engine.progress("vectors", done, len(calls), min(done * size, len(missing)))


def write_part(
    texts_file: Path, vectors_file: Path, texts: pa.Array, weights: str, settings: EncoderSettings, prompt: str
) -> None:
    """Encode texts and write their vectors as a part of a space."""
    from .encoder import encode, loaded

    encoder = loaded(settings, weights)
    before = encoder.truncated
    vectors = encode(encoder, texts, prompt)
    with replacing(texts_file) as temporary:
        _hashes(texts).write_parquet(temporary, metadata={_TRUNCATED: str(encoder.truncated - before)})
    whole = io.BytesIO()
    np.save(whole, vectors)
    with replacing(vectors_file) as temporary:
        temporary.write_bytes(whole.getbuffer())


def find(corpus: Path, names: pl.Series, texts: pa.Array) -> StoredVectors | None:
    """Return the stored vectors of texts, each from the space of its name, or None if any is missing.

    Writes nothing.
    """
    found = _stored(corpus, _hashes(texts).with_columns(vectors=names))
    return None if (found.places < 0).any() else found


def truncated(corpus: Path, names: Collection[str]) -> int:
    """Count the texts in some spaces that were truncated to the model's maximum length."""
    folders = [corpus / FOLDER / name for name in names]
    files = (_texts_file(folder, part) for folder in folders for part in _parts(folder))
    return sum(int(pl.read_parquet_metadata(file)[_TRUNCATED]) for file in files)


def keep_only(corpus: Path, names: Collection[str]) -> None:
    """Delete all spaces but these, so that only the vectors of the model that mined last remain.

    Vectors of texts that are no longer in the corpus stay, since the texts may come back.
    """
    for folder in (corpus / FOLDER).iterdir():
        if not folder.is_dir():  # not a space
            continue
        if folder.name not in names:
            shutil.rmtree(folder)
            continue
        whole = {file(folder, part) for part in _parts(folder) for file in (_texts_file, _vectors_file)}
        for leftover in set(folder.iterdir()) - whole:  # left by a killed run
            if leftover.is_file():
                leftover.unlink()


def _hashes(texts: pa.Array) -> pl.DataFrame:
    """Hash each text with MD5: columns `upper` and `lower`, the two halves, in the order of the texts."""
    with duckdb.connect(":memory:") as connection:
        connection.register("texts", pa.table({"text": texts}))
        hashes: pl.DataFrame = connection.sql(
            "SELECT md5_number_upper(text) AS upper, md5_number_lower(text) AS lower FROM texts"
        ).pl()
        return hashes


def _find_rows(folder: Path, wanted: pl.DataFrame) -> pl.DataFrame:
    """Find texts, columns `upper, lower, place`, in a space: columns `place, part, row` of those that are there.

    The hashes of a space's texts are read as a stream: memory grows with the wanted texts only.
    """
    schema = {"place": pl.Int64, "part": pl.Int64, "row": pl.Int64}
    parts = _parts(folder)
    if not parts:
        return pl.DataFrame(schema=schema)
    hashes = scan_shards((_texts_file(folder, part) for part in parts), filename=True, file_row_number=True)
    with duckdb.connect(":memory:") as connection:
        connection.execute("SET enable_progress_bar = false")
        connection.register("wanted", wanted.select("place", *_HASH).to_arrow())
        found: pl.DataFrame = connection.sql(
            r"SELECT place, CAST(regexp_extract(filename, '(\d+)\.parquet$', 1) AS BIGINT) AS part, "
            f"file_row_number AS row FROM {hashes} JOIN wanted USING (upper, lower)"
        ).pl()
        return found.select(pl.col(name).cast(kind) for name, kind in schema.items())


def _stored(corpus: Path, wanted: pl.DataFrame) -> StoredVectors:
    """Find the texts, columns `upper, lower, vectors` (the space); the place of one that is missing is -1."""
    files: list[Path] = []
    places, rows = np.full(wanted.height, -1, np.int32), np.zeros(wanted.height, np.int32)
    for (name,), own in wanted.with_row_index("place").group_by("vectors"):
        folder = corpus / FOLDER / str(name)
        found = _find_rows(folder, own)
        place, parts = found["place"].to_numpy(), _parts(folder)
        places[place] = len(files) + np.searchsorted(parts, found["part"].to_numpy())
        rows[place] = found["row"].to_numpy()
        files += [_vectors_file(folder, part) for part in parts]
    return StoredVectors(files, places, rows)


def _parts(folder: Path) -> list[int]:
    """Return the numbers of the complete parts."""
    return sorted(int(file.stem.partition("-")[2]) for file in folder.glob("vectors-*.npy"))


def _vectors_file(folder: Path, part: int) -> Path:
    return folder / f"vectors-{part:05d}.npy"


def _texts_file(folder: Path, part: int) -> Path:
    return folder / f"texts-{part:05d}.parquet"
