"""Find the files of a folder, and say which of them are surely no data, each with the reason."""

import re
from dataclasses import dataclass, field
from pathlib import PurePosixPath

import fsspec

from ...schemas.errors import RecipeError
from ..ingest.documents_reader import FORMATS
from ..ingest.file_kinds import PACKED
from ..ingest.globs import is_wild
from ..ingest.listing import list_files

DOCUMENT = tuple(FORMATS)
"""Endings of the files that `read: documents` takes."""

_ABOUT = re.compile(
    r"(readme|licen[cs]e|copying|notice|authors|contributing|changelog|changes|citation|todo)", re.IGNORECASE
)
"""Names, without their endings, of the files that come with data and describe it."""
_METADATA = re.compile(
    r"(dataset_infos?|dataset_dict|state|config|package|metadata|croissant|manifest)\.json", re.IGNORECASE
)
_LEFT_BEHIND = re.compile(r"~\$.*|thumbs\.db|desktop\.ini", re.IGNORECASE)
"""Names of the files that Office and Windows leave in folders: locks of open documents, previews, settings."""
_NO_DATA = {
    ".py .ipynb .sh .js .ts .java .c .cpp .h .go .rs .sql .css": "code",
    ".toml .yaml .yml .ini .cfg .lock .log": "settings or a log",
    ".png .jpg .jpeg .gif .webp .svg .bmp .ico .mp3 .wav .mp4": "a picture or a recording",
    ".safetensors .bin .pt .pth .onnx .npy .npz .pkl .model .faiss": "a model or arrays",
    ".xlsx .xls .ods": "a spreadsheet: save its sheets as CSV or as Unicode text",
    ".doc .wps .odt .rtf": "an old kind of document: save it as DOCX",
    ".ppt": "an old kind of slides: save it as PPTX",
    ".sqlite .db .duckdb": "a database: export its tables as CSV or Parquet",
    ".7z .rar .tgz": "an archive that can't be read in place: unpack it",
}
_REASONS = {ending: reason for endings, reason in _NO_DATA.items() for ending in endings.split()}


@dataclass(frozen=True)
class FoundFile:
    """A file that may be data.

    Attributes:
        uri: What readers open.
        path: Its place below the root; a member of an archive seems to lie in a folder of the archive's name.
    """

    uri: str
    path: PurePosixPath


@dataclass(frozen=True)
class FoundFiles:
    """The files of a place that may be data, and the reason for every other one, by path.

    Attributes:
        root: The folder or the URI below which they are, as it is to be written into the recipe.
        no_data: Files whose names say that they are not data.
        skipped: Files and folders that ingest skips: hidden, empty, unreadable.
    """

    root: str
    files: list[FoundFile] = field(default_factory=list)
    no_data: dict[str, str] = field(default_factory=dict)
    skipped: dict[str, str] = field(default_factory=dict)


def find_files(place: str) -> FoundFiles:
    """List what a folder, a file, a glob or an fsspec URI names.

    Raises:
        RecipeError: there is nothing.
    """
    filesystem, path = fsspec.core.url_to_fs(place)
    is_folder = not is_wild(path) and filesystem.isdir(path)
    listing = list_files([f"{place.rstrip('/')}/**" if is_folder else place])
    if not listing.files and not listing.skipped:
        raise RecipeError(
            f"{place}: nothing there; expected a folder with data, a file, a glob, or a URI such as s3://…"
        )
    below = path.rstrip("/") if is_folder else re.split(r"[*?\[{]", path)[0].rpartition("/")[0]
    root = place.rstrip("/") if is_folder else re.split(r"[*?\[{]", place)[0].rpartition("/")[0]
    found = FoundFiles(root or ".")
    for uri, reason in listing.skipped.items():
        found.skipped[str(_find_path(uri, below))] = reason
    for file in listing.files:
        inside = _find_path(file.path, below)
        if no_data := explain_no_data(inside):
            found.no_data[str(inside)] = no_data
        else:
            found.files.append(FoundFile(file.path, inside))
    return found


def _find_path(uri: str, below: str) -> PurePosixPath:
    member, _, archive = uri.rpartition("::")
    outside = archive.partition("://")[2] or archive
    inside = outside.removeprefix(below.partition("://")[2] or below).strip("/")
    return PurePosixPath(inside, member.partition("://")[2].strip("/"))


def strip_packing(path: PurePosixPath) -> PurePosixPath:
    """Drop the ending of a compressed file, as in `faq.csv.gz`."""
    return path.with_suffix("") if path.suffix.lower() in PACKED else path


def explain_no_data(path: PurePosixPath) -> str | None:
    """Say why a file with this name is no data; None if it may be some."""
    inner = strip_packing(path)
    if _ABOUT.fullmatch(inner.stem) and inner.suffix.lower() in ("", ".md", ".txt", ".rst", ".html"):
        return "describes the other files"
    if _METADATA.fullmatch(inner.name):
        return "describes a data set or a model"
    if _LEFT_BEHIND.fullmatch(path.name):
        return "left behind by Office or Windows"
    if re.search(r"\{.*,.*\}|\$\{|::|\n", str(path)):
        return "its name has signs that a recipe reads as something else: rename it"
    return _REASONS.get(inner.suffix.lower())
