"""Examine this machine and its installation: devices, memory, versions, disks, the hub, and what a recipe needs.

Each check runs in a process of its own, so that a library that crashes or hangs costs one line of the result.
"""

import importlib
import multiprocessing
import os
import platform
import shutil
import signal
import socket
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from importlib import metadata
from multiprocessing.connection import Connection
from pathlib import Path
from urllib.error import HTTPError
from urllib.request import Request, urlopen

from ..schemas.errors import ConanError, MissingExtraError
from ..schemas.outcomes import Finding
from ..schemas.recipe import load
from .needed_extras import PROJECT, missing_packages, needed_extras
from .plugins import load_plugins

Check = Callable[[], Iterable[Finding]]

SECONDS = 30
"""Chosen here: how long the checks may take, all of them together; importing everything takes about 5 s."""
NETWORK_SECONDS = 3
"""Chosen here: how long to wait for an answer over the network."""
LOW_DISK, FULL_DISK = 10e9, 1e9
"""Chosen here: free bytes below which a disk is warned of (a model and a corpus are a few GB), or is an error."""
LOW_MEMORY = 4e9
"""Chosen here: bytes of free memory below which it is warned of: a base model and its optimizer take 2 GB."""

LIBRARIES = {
    "torch": "torch",
    "transformers": "transformers",
    "deepspeed": "deepspeed",
    "polars": "polars",
    "duckdb": "duckdb",
    "pyarrow": "pyarrow",
    "numba": "numba",
    "faiss": "faiss-cpu",
}
"""The libraries with compiled code that everything depends on: module and distribution."""

RAY_CLUSTER = Path("/tmp/ray/ray_current_cluster")
"""The file in which `ray start` leaves the address of the cluster that a machine is in."""
_THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "POLARS_MAX_THREADS", "NUMBA_NUM_THREADS")
_CGROUP = Path("/sys/fs/cgroup")
_MEMORY = Path("/proc/meminfo")


def examine(recipe: Path | None = None, overrides: Sequence[str] = ()) -> list[Finding]:
    """Examine everything, and a recipe's extras and corpus folder if there is one. `overrides` are of its keys."""
    checks: dict[str, Check] = {
        "python": _check_python,
        "packages": _check_packages,
        **{module: partial(_check_library, module, name) for module, name in LIBRARIES.items()},
        "devices": _check_devices,
        "deepspeed ops": _check_deepspeed_ops,
        "cores": _check_cores,
        "memory": _check_memory,
        "disk": _check_disks,
        "ray": _check_ray,
        "hub": _check_hub,
        **({"recipe": partial(_check_recipe, recipe, overrides)} if recipe else {"extras": _check_extras}),
    }
    return run_checks(checks)


def run_checks(checks: Mapping[str, Check]) -> list[Finding]:
    """Run checks, all at once, and return what they find, in their order."""
    deadline = time.monotonic() + SECONDS
    running = [_Running(name, check) for name, check in checks.items()]
    return [finding for each in running for finding in each.wait(deadline)]


class _Running:
    """A check in a process of its own."""

    def __init__(self, name: str, check: Check) -> None:
        context = multiprocessing.get_context("fork")
        self.name = name
        self.receiver, sender = context.Pipe(duplex=False)
        self.process = context.Process(target=_report, args=(name, check, sender), daemon=True)
        self.process.start()
        sender.close()

    def wait(self, deadline: float) -> list[Finding]:
        """Return what the check finds; if it ended without a result, how. That is an error only for a library."""
        if not self.receiver.poll(max(0.0, deadline - time.monotonic())):
            self.process.kill()
            return [Finding(self.name, "warning", f"no result after {SECONDS} s", "try again when the machine is idle")]
        try:
            findings: list[Finding] = self.receiver.recv()
        except EOFError:
            self.process.join()
            code = self.process.exitcode or 0
            end = (
                f"the check was killed by {signal.Signals(-code).name}" if code < 0 else f"the check ended with {code}"
            )
            if self.name in LIBRARIES:
                return [Finding(self.name, "error", end, _reinstall(self.name))]
            return [Finding(self.name, "warning", end)]
        return findings


def _report(name: str, check: Check, sender: Connection) -> None:
    """Run a check and send what it finds; what its libraries print is thrown away."""
    with Path(os.devnull).open("w") as nowhere:
        sys.stdout = sys.stderr = nowhere
        os.dup2(nowhere.fileno(), 1)
        os.dup2(nowhere.fileno(), 2)
        try:
            findings = list(check())
        except BaseException as error:
            findings = [Finding(name, "warning", f"can't be examined: {_say(error)}")]
        sender.send(findings)
        os._exit(0)  # without the clean-up of libraries, which may hang


def _say(error: BaseException) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())}"


def _check_python() -> Iterable[Finding]:
    yield Finding("python", "ok", f"{platform.python_version()}, {sys.executable}")


def _check_packages() -> Iterable[Finding]:
    if missing := missing_packages():
        command = " ".join(f"'{each}'" for each in missing)
        yield Finding("packages", "error", f"missing or too old: {', '.join(missing)}", f"pip install {command}")
    else:
        yield Finding("packages", "ok", f"all that {PROJECT} {metadata.version(PROJECT)} needs")


def _check_library(module: str, name: str) -> Iterable[Finding]:
    try:
        importlib.import_module(module)
    except Exception as error:  # a broken installation may raise anything
        yield Finding(module, "error", f"can't be imported: {_say(error)}", _reinstall(module))
    else:
        yield Finding(module, "ok", metadata.version(name))


def _reinstall(module: str) -> str:
    return f"pip install --force-reinstall {LIBRARIES[module]}"


def _check_devices() -> Iterable[Finding]:
    import torch

    if not torch.accelerator.is_available():
        if shutil.which("nvidia-smi") or Path("/dev/nvidia0").exists():
            cure = "install the build of torch that fits the driver: https://pytorch.org/get-started"
            yield Finding("devices", "warning", f"torch {torch.__version__} can't use this machine's NVIDIA GPU", cure)
        else:
            yield Finding("devices", "ok", "no GPU: everything runs on the CPU, in fp32")
        return
    kind = torch.accelerator.current_accelerator()
    for number in range(torch.accelerator.device_count()):
        if str(kind) != "cuda":
            yield Finding(f"{kind}:{number}", "ok", "found by torch")
            continue
        with torch.cuda.device(number):
            free, total = torch.cuda.mem_get_info()
            has_bf16 = torch.cuda.is_bf16_supported(including_emulation=False)
        found = (
            f"{torch.cuda.get_device_name(number)}, {_gb(free)} of {_gb(total)} free, {'' if has_bf16 else 'no '}bf16"
        )
        if free < total / 2:
            yield Finding(f"cuda:{number}", "warning", found, "see with nvidia-smi which process holds the rest")
        elif not has_bf16:
            yield Finding(f"cuda:{number}", "warning", found, "train with `precision: fp16`")
        else:
            yield Finding(f"cuda:{number}", "ok", found)


def _check_deepspeed_ops() -> Iterable[Finding]:
    import deepspeed
    import torch
    from deepspeed.accelerator import get_accelerator

    device = get_accelerator().device_name()
    usable = [name for name, is_usable in sorted(deepspeed.ops.__compatible_ops__.items()) if is_usable]
    found = f"trains on {device}; can be built here: {', '.join(usable) or 'none'} (training needs none of them)"
    if device == "cpu" and torch.accelerator.is_available():
        yield Finding("deepspeed ops", "warning", found, "unset DS_ACCELERATOR, or DeepSpeed leaves the GPU unused")
    else:
        yield Finding("deepspeed ops", "ok", found)


def _check_cores() -> Iterable[Finding]:
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    threads = {name: os.environ[name] for name in _THREADS if os.environ.get(name)}
    found = ", ".join([f"{cores} core{'s' * (cores != 1)}", *(f"{name}={value}" for name, value in threads.items())])
    allowed = _cores_of_container()
    if allowed is not None and allowed < cores:
        number = max(1, int(allowed))
        cure = f"set OMP_NUM_THREADS={number} and POLARS_MAX_THREADS={number}, and give --workers {number}"
        yield Finding("cores", "warning", f"{found}; the container may use {allowed:g}", cure)
    elif over := [name for name, value in threads.items() if value.isdecimal() and int(value) > cores]:
        yield Finding(
            "cores", "warning", found, f"unset {', '.join(over)}: more threads than cores slow each other down"
        )
    else:
        yield Finding("cores", "ok", found)


def _cores_of_container() -> float | None:
    """Return the number of cores whose time the container's limit allows, if it has one."""
    try:
        quota, period = (_CGROUP / "cpu.max").read_text().split()
    except (OSError, ValueError):
        return None
    return None if quota == "max" else int(quota) / int(period)


def _check_memory() -> Iterable[Finding]:
    lines = (line.partition(":") for line in _MEMORY.read_text().splitlines())
    kilobytes = {name: int(value.split()[0]) for name, _, value in lines}
    free, total = (1024 * kilobytes[name] for name in ("MemAvailable", "MemTotal"))
    try:
        limit = int((_CGROUP / "memory.max").read_text())
        free, total = min(free, limit - int((_CGROUP / "memory.current").read_text())), min(total, limit)
    except (OSError, ValueError):
        pass  # no container, or one without a limit
    found = f"{_gb(free)} of {_gb(total)} free"
    if free < LOW_MEMORY:
        yield Finding(
            "memory", "warning", found, "give fewer --workers, and a smaller batch_tokens or gradcache_tokens"
        )
    else:
        yield Finding("memory", "ok", found)


def _check_disks() -> Iterable[Finding]:
    from huggingface_hub import constants

    yield _check_disk("working folder", Path.cwd(), "work in another folder")
    yield _check_disk("model cache", Path(constants.HF_HUB_CACHE), "set HF_HOME to a folder on another disk")


def _check_disk(name: str, folder: Path, cure: str) -> Finding:
    nearest = next(each for each in (folder.absolute(), *folder.absolute().parents) if each.exists())
    free = shutil.disk_usage(nearest).free
    found = f"{_gb(free)} free in {folder}"
    if not os.access(nearest, os.W_OK):
        return Finding(name, "error", f"{folder} can't be written", cure)
    if free < LOW_DISK:
        return Finding(name, "error" if free < FULL_DISK else "warning", found, f"make room, or {cure}")
    return Finding(name, "ok", found)


def _check_ray() -> Iterable[Finding]:
    try:
        version = metadata.version("ray")
    except metadata.PackageNotFoundError:
        yield Finding("ray", "ok", "not installed; only --engine ray needs it")
        return
    address = os.environ.get("RAY_ADDRESS") or (RAY_CLUSTER.read_text().strip() if RAY_CLUSTER.exists() else "")
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if not port.isdecimal():
        yield Finding("ray", "ok", f"{version}; this machine is in no cluster")
        return
    try:
        socket.create_connection((host, int(port)), NETWORK_SECONDS).close()
    except OSError as error:
        cure = "start it with `ray start`, or give --address"
        yield Finding("ray", "warning", f"{version}; no answer from the cluster at {address}: {error}", cure)
    else:
        yield Finding("ray", "ok", f"{version}; cluster at {address}")


def _check_hub() -> Iterable[Finding]:
    from huggingface_hub import constants

    if constants.HF_HUB_OFFLINE:
        yield Finding("hub", "ok", "not asked, as HF_HUB_OFFLINE is set: models are folders, or in the cache")
        return
    began = time.monotonic()
    try:
        urlopen(Request(constants.ENDPOINT, method="HEAD"), timeout=NETWORK_SECONDS).close()
    except HTTPError:
        pass  # it answers
    except OSError as error:
        cure = "set HF_ENDPOINT to a mirror, or name models by their folders and set HF_HUB_OFFLINE=1"
        yield Finding(
            "hub", "warning", f"{constants.ENDPOINT} can't be reached: {getattr(error, 'reason', error)}", cure
        )
        return
    yield Finding("hub", "ok", f"{constants.ENDPOINT} answers in {time.monotonic() - began:.1f} s")


def _check_extras() -> Iterable[Finding]:
    extras = metadata.metadata(PROJECT).get_all("Provides-Extra") or []
    absent = [extra for extra in extras if missing_packages(extra)]
    present = [extra for extra in extras if extra not in absent]
    found = f"installed: {', '.join(present) or 'none'}; not installed: {', '.join(absent) or 'none'}"
    yield Finding("extras", "ok", found)


def _check_recipe(file: Path, overrides: Sequence[str]) -> Iterable[Finding]:
    try:
        recipe = load(file, overrides)
        load_plugins(recipe.plugins)
    except ConanError as error:
        yield Finding("recipe", "error", str(error))
        return
    yield Finding("recipe", "ok", f"{file} can be read")
    if recipe.corpus:
        yield _check_disk("corpus", Path(recipe.corpus), "name another folder in `corpus`")
    try:
        extras = needed_extras(recipe)
    except ConanError as error:  # perhaps of the network
        yield Finding("extras", "warning", str(error))
        return
    for extra, place in extras.items():
        if missing := missing_packages(extra):
            cure = MissingExtraError(place, extra).command
            yield Finding(f"extra {extra}", "error", f"{place} needs it; missing: {', '.join(missing)}", cure)
        else:
            yield Finding(f"extra {extra}", "ok", f"{place} needs it; installed")


def _gb(size: float) -> str:
    return f"{size / 1e9:,.1f} GB"
