"""Put like files together: those of one folder that are read in the same way and hold the same columns."""

import re
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from pathlib import PurePosixPath

from ...schemas.errors import MissingExtraError
from ..ingest.files import FileError
from ..ingest.globs import expand_braces
from .found_files import DOCUMENT, FoundFile, FoundFiles, strip_packing
from .names import find_split
from .samples import RECORDS, Sample, look_at
from .shapes import NoShapeError, Shape, decide

_LOOKED_AT = 3
"""Chosen here: how many files with the same name up to a number are looked at; the others are taken to be like them."""
_EXCLUDED = 5
"""Chosen here: the most files that `exclude:` names; if a glob matches more that belong elsewhere, it isn't taken."""
_DATED = re.compile(r"\d{4}-?\d{2}-?\d{2}\D")


@dataclass
class Group:
    """Files that become a source, or an evaluation set.

    Attributes:
        folder: The folder that they have in common.
        family: What groups have in common that differ only in their split.
        split: train, dev or test if their names say so, else empty.
    """

    folder: PurePosixPath
    files: list[FoundFile]
    sample: Sample
    shape: Shape
    family: object = None
    split: str = ""


def find_groups(found: FoundFiles) -> tuple[list[Group], dict[str, str]]:
    """Look at files and group them; return the groups and, by path, why other files hold nothing to embed."""
    unplaced: dict[str, str] = {}
    documents = [file for file in found.files if _is_document(file)]
    records = [file for file in found.files if not _is_document(file)]
    groups = list(_group_documents(documents, {folder for file in records for folder in file.path.parents}, unplaced))
    groups += _group_records(records, unplaced)
    return sorted(groups, key=lambda group: str(group.files[0].path)), unplaced


def _is_document(file: FoundFile) -> bool:
    return strip_packing(file.path).suffix.lower() in DOCUMENT


def _group_documents(
    files: Sequence[FoundFile], folders_of_records: set[PurePosixPath], unplaced: dict[str, str]
) -> Iterator[Group]:
    """Group documents by the highest folder that holds nothing else."""
    by_folder: dict[PurePosixPath, list[FoundFile]] = defaultdict(list)
    for file in files:
        pure = [folder for folder in file.path.parents if folder not in folders_of_records]
        by_folder[pure[-1] if pure else file.path.parent].append(file)
    for folder, members in by_folder.items():
        dated = sum(bool(_DATED.match(file.path.name)) for file in members)
        endings = {strip_packing(file.path).suffix.lower() for file in members}
        if endings <= {".md", ".markdown"} and 2 * dated >= len(members):
            why = "articles, by the dates in their names: the title is the query, the text after it the positive"
            otherwise = "`read: documents` to cut long articles at their headings"
            yield Group(
                folder, members, Sample("markdown", []), Shape("markdown", "pretrain", "title_content", why, otherwise)
            )
            continue
        chunks: list[dict[str, object]] = []
        for file in members[:: max(1, len(members) // 20)]:
            try:
                chunks += look_at(file).records
            except (FileError, MissingExtraError):  # shown with the pairs, as `conan ingest` will reject it
                continue
        sample = Sample("documents", chunks)
        yield Group(folder, members, sample, decide(sample))


def _group_records(files: Sequence[FoundFile], unplaced: dict[str, str]) -> Iterator[Group]:
    """Group files of records by folder, reader and columns, then those that turn out to be the same."""
    families: dict[tuple[str, ...], list[FoundFile]] = defaultdict(list)
    for file in files:
        families[_number_free(str(file.path.parent)), _number_free(file.path.name)].append(file)
    alike: dict[tuple[str, object], list[tuple[str, Sample, list[FoundFile]]]] = defaultdict(list)
    for members in families.values():
        for sample, same in _look_at_family(members, unplaced):
            folder, split = _place_of(same[0])
            alike[folder, _kind_of(sample)].append((split, sample, same))
    groups: dict[tuple[object, str], Group] = {}
    for (folder, _), looked_at in alike.items():
        sample = _join([sample for _, sample, _ in looked_at])
        try:
            shape = decide(sample)
        except NoShapeError as error:
            unplaced |= {str(file.path): str(error) for _, _, members in looked_at for file in members}
            continue
        options = str(sorted(sample.options.items()))
        family = (folder, options, sample.encoding, replace(shape, why="", otherwise="", label_range=None))
        for split, _, members in looked_at:
            if (family, split) in groups:
                groups[family, split].files += members
            else:
                groups[family, split] = Group(PurePosixPath(), list(members), sample, shape, family, split)
    for group in groups.values():
        group.files.sort(key=lambda file: str(file.path))
        group.folder = _common_folder(group.files)
        yield group


def _look_at_family(files: list[FoundFile], unplaced: dict[str, str]) -> Iterator[tuple[Sample, list[FoundFile]]]:
    """Yield samples of files with the same name up to a number, and the files that each sample stands for."""
    chosen = files if len(files) <= _LOOKED_AT else [files[0], files[len(files) // 2], files[-1]]
    samples: list[tuple[FoundFile, Sample]] = []
    for file in chosen:
        try:
            samples.append((file, look_at(file)))
        except FileError as error:
            unplaced[str(file.path)] = error.detail
        except MissingExtraError as error:
            unplaced[str(file.path)] = str(error)
    rest = [file for file in files if file not in chosen]
    for number, (file, sample) in enumerate(samples):
        yield sample, [file, *(rest if number == 0 else [])]
    if not samples:
        unplaced |= {str(file.path): "as the files with the same name up to a number" for file in rest}


def _place_of(file: FoundFile) -> tuple[str, str]:
    """Return the folder of a file, without its numbers and the name of a split, and the split."""
    folder = file.path.parent
    if found := find_split(strip_packing(file.path).stem):
        return _number_free(str(folder)), found[0]
    if (found := find_split(folder.name)) and not found[1]:
        return _number_free(str(folder.parent)), found[0]
    return _number_free(str(folder)), ""


def _kind_of(sample: Sample) -> object:
    keys = frozenset(key for record in sample.records for key in record)
    return sample.read, str(sample.options), sample.encoding, keys


def _number_free(text: str) -> str:
    return re.sub(r"[0-9]+", "#", text)


def _join(samples: Sequence[Sample]) -> Sample:
    share = max(1, RECORDS // len(samples))
    return replace(samples[0], records=[record for sample in samples for record in sample.records[: max(share, 20)]])


def _common_folder(files: Sequence[FoundFile]) -> PurePosixPath:
    folders = [file.path.parent for file in files]
    return next(
        parent
        for parent in (folders[0], *folders[0].parents)
        if all(folder.is_relative_to(parent) for folder in folders)
    )


def find_globs(group: Group, root: str, paths: Sequence[PurePosixPath]) -> tuple[list[str], list[str]]:
    """Return globs that match the files of a group, and what to exclude of the other paths that these match."""
    wanted = {file.path for file in group.files}
    if any("::" in file.uri for file in group.files):
        return _list_members(group.files, root, paths), []
    found: list[tuple[str, list[PurePosixPath]]] = []
    folder = "" if group.folder == PurePosixPath() else f"{escape_glob(str(group.folder))}/"
    for deep, name in _list_candidates(wanted) if len(wanted) > 1 else ():
        matched = {path for path in paths if _matches(path, group.folder, deep, name)}
        if wanted <= matched:
            found.append((f"{folder}{'**/' if deep else ''}{name}", sorted(matched - wanted)))
    glob, others = min(found, key=lambda one: len(one[1]), default=("", []))
    if glob and len(others) <= _EXCLUDED:
        return [glob], [escape_glob(str(path)) for path in others]
    return [escape_glob(str(path)) for path in sorted(wanted)], []


def _list_candidates(wanted: set[PurePosixPath]) -> Iterator[tuple[bool, str]]:
    deep = len({path.parent for path in wanted}) > 1
    names = sorted(path.name for path in wanted)
    endings = {path.name.removeprefix(strip_packing(path).stem) for path in wanted}
    begin = _shared_beginning(names)
    ending = "".join(endings)
    if len(endings) > 1:
        ending = f".{{{','.join(sorted(each[1:] for each in endings))}}}" if all(endings) else ""
    for name in dict.fromkeys([f"*{ending}", f"{begin}*{ending}", f"{begin}*", "*"]):
        yield deep, name


def _shared_beginning(names: Sequence[str]) -> str:
    first, last = names[0], names[-1]
    size = next((place for place, pair in enumerate(zip(first, last, strict=False)) if pair[0] != pair[1]), len(first))
    return escape_glob(first[:size].rstrip("0123456789"))  # the next number may begin otherwise


def _matches(path: PurePosixPath, folder: PurePosixPath, deep: bool, name: str) -> bool:
    is_there = path.is_relative_to(folder) if deep else path.parent == folder
    return is_there and any(fnmatchcase(path.name, each) for each in expand_braces(name)) and path.name[0] != "."


def escape_glob(path: str) -> str:
    """Escape what globs read as wildcards; `[` of a whole name is also read as it is."""
    return re.sub(r"([*?\[])", r"[\1]", path)


def _list_members(files: Sequence[FoundFile], root: str, paths: Iterable[PurePosixPath]) -> list[str]:
    """Return an archive that is all of a group, or else each of the members with the archive that it is in."""
    wanted = {file.path for file in files}
    archives: dict[str, list[FoundFile]] = defaultdict(list)
    for file in files:
        archives[file.uri.partition("::")[2]].append(file)
    globs: list[str] = []
    for archive, members in archives.items():
        inner = PurePosixPath(members[0].uri.partition("::")[0].partition("://")[2].strip("/"))
        folder = members[0].path.parents[len(inner.parts) - 1]
        if all(path in wanted for path in paths if path.is_relative_to(folder)):
            globs.append(escape_glob(str(folder)) if archive else members[0].uri)
        else:
            globs += [file.uri.replace(f"::{archive}", f"::{root}/{folder}") for file in members]
    return globs
