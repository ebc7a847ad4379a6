"""Deaths and full disks where files are made, written, made durable and named. No hook of the product is needed.

Python imports this at the start of every process whose PYTHONPATH names its folder. These variables, read at each call,
say what happens:

FAULT: `death` ends this process, `kill` its whole process group, `full` leaves the disk without room from here on.
FAULT_FOLDER: only files below it count.
FAULT_POINTS: a file with the points met so far, shared by all processes. A fault happens at the first point that is not
    in it and is put down there, so the same command started over and over meets each point once.
FAULT_WANTED: where set, the points that count, a line each; where empty, points are put down and nothing happens.
FAULT_EACH: where set, every point is one of its own; else each kind is met once, and no death is at an fsync: what is
    written outlives the process, so it leaves what a death before or after the rename next to it leaves.
"""

import builtins
import errno
import fcntl
import io
import os
import re
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

from points import kind_of

_open = io.open
_named = ""  # the file that was named last: a folder is fsynced for its sake


def full(points: Path) -> Path:
    """The sign that the disk is full, seen by all processes until it is taken away."""
    return points.with_suffix(".full")


def counts(path: Any) -> bool:
    """Whether a path is in the folder where faults happen; a file descriptor is not."""
    folder = os.environ.get("FAULT_FOLDER")
    return folder is not None and not isinstance(path, int) and Path(os.fspath(path)).is_relative_to(folder)


def is_deadly() -> bool:
    return os.environ.get("FAULT") in ("death", "kill")


def is_full() -> bool:
    return os.environ.get("FAULT") == "full"


def reach(call: str, path: Any) -> None:
    """Fail here, if it is a point not met before or if the disk is full already."""
    if not counts(path):
        return
    points = Path(os.environ["FAULT_POINTS"])
    if full(points).exists():
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    name = re.sub(r"\.\d+\.tmp", ".tmp", str(Path(path).relative_to(os.environ["FAULT_FOLDER"])))
    if not os.environ.get("FAULT_EACH"):
        name = kind_of(name)
    point, wanted = f"{call} {name}", os.environ.get("FAULT_WANTED")
    if wanted and point not in wanted.splitlines():
        return
    with _open(points, "a+") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        file.seek(0)
        if point in file.read().splitlines():
            return
        print(point, file=file)
    if wanted == "":
        return
    if is_full():
        _open(full(points), "w").close()
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    if os.environ["FAULT"] == "kill":
        os.killpg(0, signal.SIGKILL)
    os._exit(9)


def around(call: str, function: Callable[..., Any], path: Any, *arguments: Any, **options: Any) -> None:
    """Call what makes something durable; a process may die before it and after it, a disk be full before it."""
    can_die = is_deadly() and (call != "fsync" or os.environ.get("FAULT_EACH"))
    if can_die or not is_deadly():
        reach(f"before {call}", path)
    function(*arguments, **options)
    if can_die:
        reach(f"after {call}", path)


def _fsync(descriptor: int, *, real: Callable[[int], None] = os.fsync) -> None:
    path = Path(f"/proc/self/fd/{descriptor}").readlink()
    around("fsync", real, path / f"for {_named}" if path.is_dir() else path, descriptor)


def _renaming(real: Callable[..., None]) -> Callable[..., None]:
    def rename(source: Any, target: Any, **options: Any) -> None:
        global _named
        around(real.__name__, real, target, source, target, **options)
        _named = Path(target).name

    return rename


def _unlink(path: Any, *, real: Callable[..., None] = os.unlink, **options: Any) -> None:
    if is_deadly() and counts(path) and Path(path).exists():
        is_work = Path(path).parent.name.startswith(".")  # a work folder that is removed: one file for all
        around("unlink", real, Path(path).with_name("any") if is_work else path, path, **options)
    else:
        real(path, **options)


def _mkdir(path: Any, *arguments: Any, real: Callable[..., None] = os.mkdir, **options: Any) -> None:
    if is_full() and counts(path) and not Path(path).exists():
        reach("mkdir", path)
    real(path, *arguments, **options)


def _open_descriptor(path: Any, flags: int, *arguments: Any, real: Callable[..., int] = os.open, **options: Any) -> int:
    if flags & os.O_CREAT and is_full() and counts(path) and not Path(path).exists():
        reach("create", path)
    return real(path, flags, *arguments, **options)


class _File(io.FileIO):
    """A file that the disk may have no room for."""

    def write(self, data: Any) -> int:
        at = self.tell()
        reach(f"write at {at if at == 0 or os.environ.get('FAULT_EACH') else 'N'} of", self.name)
        return super().write(data)


def _open_file(file: Any, mode: str = "r", buffering: int = -1, *text: Any, **options: Any) -> Any:
    if not is_full() or not counts(file) or not set("wax+") & set(mode):
        return _open(file, mode, buffering, *text, **options)
    reach("create", file)
    raw = _File(file, mode.replace("b", "").replace("t", ""))
    buffered = io.BufferedRandom(raw) if "+" in mode else io.BufferedWriter(raw)
    return buffered if "b" in mode else io.TextIOWrapper(buffered, *text, **options)


os.fsync, os.replace, os.rename = _fsync, _renaming(os.replace), _renaming(os.rename)
os.unlink, os.mkdir, os.open = _unlink, _mkdir, _open_descriptor
builtins.open = io.open = _open_file
