"""Match globs against local folders as Python's glob and the shells do, and say what they leave out."""

import os
import re
from collections import deque
from collections.abc import Iterator, Sequence
from fnmatch import translate

Matches = Iterator[tuple[str, str]]
"""Paths, each with the reason why it is skipped; the reason is empty if it is not."""

HIDDEN = "hidden"
OTHER_CASE = "in another case"
UNREADABLE = "unreadable"

_WILD = re.compile(r"[*?\[]")
_BRACES = re.compile(r"\{([^{}]*,[^{}]*)\}")


def expand_braces(glob: str) -> list[str]:
    """Return the globs that one with braces stands for: `{train,dev}.csv` is `train.csv` and `dev.csv`."""
    braces = _BRACES.search(glob)
    if not braces:
        return [glob]
    before, after = glob[: braces.start()], glob[braces.end() :]
    return [each for option in braces[1].split(",") for each in expand_braces(before + option + after)]


def is_wild(path: str) -> bool:
    """Whether a path has a character that globs use as a wildcard."""
    return bool(_WILD.search(path))


def match(glob: str) -> Matches:
    """Yield the paths that match an absolute glob. Links to folders are followed, below `**` too.

    A name that equals its part of the glob matches even if that part has wildcards, as in `data[1].jsonl`. Names that
    begin with a dot are hidden unless their part of the glob begins with one.
    """
    parts = [part for part in glob.split("/") if part not in ("", ".")]
    return _match("/", parts) if parts else iter([])


def _match(folder: str, parts: Sequence[str]) -> Matches:
    part, *rest = parts
    if part == "**":
        for below, why in _descend(folder):
            yield from [(below, why)] if why else _match(below, rest or ["*"])
    elif not is_wild(part):
        yield from _go_on(os.path.join(folder, part), rest)  # noqa: PTH118 (keeps the path as it is written)
    elif (entries := _scan(folder)) is None:
        yield folder, UNREADABLE
    else:
        exact, any_case = (re.compile(translate(part), flags) for flags in (0, re.IGNORECASE))
        for entry in entries:
            if entry.name == part or exact.match(entry.name):
                is_hidden = entry.name.startswith(".") and not part.startswith(".")
                yield from [(entry.path, HIDDEN)] if is_hidden else _go_on(entry.path, rest)
            elif any_case.match(entry.name):
                yield entry.path, OTHER_CASE


def _go_on(path: str, rest: Sequence[str]) -> Matches:
    """Match the rest of a glob below a path, or yield the path if nothing of the glob is left."""
    if not rest:
        yield from [(path, "")] if os.path.lexists(path) else []
    elif os.path.isdir(path):  # noqa: PTH112 (Path.is_dir raises errors)
        yield from _match(path, rest)


def _descend(folder: str) -> Matches:
    """Yield a folder and all below it, each once: by its own name, if it has one here, rather than by a link's."""
    waiting, seen = deque([folder]), set()
    while waiting:
        folder = waiting.popleft()
        status = os.stat(folder)  # noqa: PTH116
        if (status.st_dev, status.st_ino) in seen:
            continue
        seen.add((status.st_dev, status.st_ino))
        yield folder, ""
        for entry in _scan(folder) or []:
            if not os.path.isdir(entry.path):  # noqa: PTH112
                continue
            if entry.name.startswith("."):
                yield entry.path, HIDDEN
            elif entry.is_symlink():
                waiting.append(entry.path)
            else:
                waiting.appendleft(entry.path)


def _scan(folder: str) -> list[os.DirEntry[str]] | None:
    """List a folder by name; None if it can't be read."""
    try:
        with os.scandir(folder) as entries:
            return sorted(entries, key=lambda entry: entry.name)
    except OSError:
        return None
