"""Run the calls of a stage on a Ray cluster. Imported only for that; only trainer.launch.cluster imports Ray, too.

Every node needs this package in its own Python environment. A corpus is in a folder that all nodes share, or at a URI:
then a node fetches what a call reads, and puts what it writes (see corpus/shipping.py).
Calls are tasks of one CPU; calls that run a model go to actors, one per device, which keep the model loaded. What only
waits for other machines is sent by actors that take no CPU, one per node.
"""

import logging
import os
import pickle
import re
import socket
import sys
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from textwrap import shorten
from threading import Lock
from typing import TYPE_CHECKING, Any

from ... import __version__
from ...schemas.errors import ConanError, MissingExtraError
from ..corpus.uris import find_leased, name_uris
from .calls import ATTEMPTS, THREAD_VARIABLES, Call, Engine, Outcome, attempt_packed, pack_call
from .nodes import Sender

try:
    import ray
    from ray.exceptions import RayError, RayTaskError
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy
except ImportError as missing:
    raise MissingExtraError("the engine ray", "ray") from missing


if TYPE_CHECKING:
    from ..corpus.mirror import Mirror


class ClusterError(ConanError):
    """A Ray cluster can't be used; the message says why and what to do."""


REACHED_WITHIN = 5.0
"""Chosen here: seconds to wait for a cluster to answer. Ray itself tries for two minutes, then ends the process."""
LOOK_AGAIN = 10.0
"""Chosen here: after this many seconds without an outcome, check that there are still nodes to run calls on."""
QUEUED = 2
"""Chosen here: tasks in flight per CPU, so that no CPU waits for the driver between two tasks."""


Result = tuple[str | None, dict[str, Any]]
"""The error of a call, if it failed, and the objects that it has put into the store of a corpus at a URI."""


def _attempt(version: str, folder: str, call: bytes, is_shipped: bool) -> Result:
    """On a node, run calls.attempt_packed in the driver's working directory, as paths may be relative to it."""
    if problem := find_version_error(version):
        return problem, {}
    with suppress(OSError):  # the node has no such folder; absolute paths still work
        os.chdir(folder)
    written: dict[str, Any] = {}
    error = attempt_packed(call, *([written] if is_shipped else []))
    return error and name_uris(error), written


def find_version_error(version: str) -> str | None:
    """On a node, say what is wrong if the driver has another version of this package."""
    if version == __version__:
        return None
    return f"{socket.gethostname()} has conan-embedding {__version__}, the driver {version}; install one version"


class _Device:
    """An actor for one device; its process keeps the model loaded between calls."""

    def attempt(self, *arguments: Any) -> Result:
        return _attempt(*arguments)


class _SenderActor:
    """An actor with a sender. Errors are returned, as Ray would put a page around what is raised."""

    def __init__(self, version: str, make: bytes) -> None:
        self.problem = find_version_error(version)
        if not self.problem:
            self.sender: Sender = pickle.loads(make)()

    def reaches(self) -> bool | str:
        return self.problem or self.sender.reaches()

    def send(self, arguments: bytes) -> tuple[Any, Exception | None]:
        try:
            return self.sender(*pickle.loads(arguments)), None
        except Exception as error:
            return None, error


@dataclass(frozen=True)
class _Place:
    """Room for one call at a time: a device of a node, or (if node is None) a CPU that Ray chooses."""

    number: int
    cpus: int = 1
    gpus: int = 0
    node: str | None = None


_TASK, _DEVICE, _SENDER = ray.remote(_attempt), ray.remote(_Device), ray.remote(_SenderActor)


def run_on_cluster(function: Callable[..., None], calls: Sequence[Call], engine: Engine) -> Iterator[Outcome]:
    """Do what stage.run_calls does, on the cluster at `engine.address`; `engine.workers` bounds the tasks in flight.

    Calls whose worker died are retried here, not by Ray, which would retry a call that needs too much memory forever.

    Raises:
        ClusterError: the cluster can't be reached, or has no node that can run calls.
    """
    assert engine.address is not None
    connect(engine.address)
    mirror = find_leased()
    waiting = deque(calls)
    deaths: Counter[str] = Counter()
    devices: dict[_Place, Any] = {}  # actors
    running: dict[Any, tuple[_Place, Call]] = {}  # by Ray's reference to the outcome

    def start() -> None:
        if waiting:
            taken = {place for place, _ in running.values()}
            for place in [place for place in _places(engine) if place not in taken][: len(waiting)]:
                call = waiting.popleft()
                running[_submit(place, devices, _pack(mirror, function, call[1]), mirror is not None)] = place, call

    try:
        while waiting or running:
            start()
            ready = ray.wait(list(running), timeout=LOOK_AGAIN)[0] if running else []
            if not ready and not _places(engine):
                raise ClusterError(f"Ray cluster {engine.address}: no node has a CPU for tasks")
            for reference in ready:
                place, call = running.pop(reference)
                name = call[0]
                written = {}
                try:
                    error, written = ray.get(reference)
                except RayTaskError as raised:  # the call never started; an error that it raises itself is its outcome
                    error = f"a node can't use conan-embedding: {said(raised)}"
                except RayError as died:
                    if place in devices:
                        ray.kill(devices.pop(place))
                    deaths[name] += 1
                    if deaths[name] < ATTEMPTS:
                        waiting.append(call)
                        continue
                    error = f"its worker died {ATTEMPTS} times ({type(died).__name__}: {said(died)})"
                start()  # before the driver looks at the outcome
                if mirror is not None:
                    mirror.receive(written)
                yield name, error
    finally:
        for reference, (place, _) in running.items():
            if place not in devices:
                ray.cancel(reference, force=True)
        for device in devices.values():
            ray.kill(device)


def connect(address: str) -> None:
    """Connect to a cluster, unless this process is connected already.

    Raises:
        ClusterError: the cluster can't be reached.
    """
    if ray.is_initialized():
        return
    if address == "auto":
        address = os.environ.get("RAY_ADDRESS", address)
    debug = bool(os.environ.get("CONAN_DEBUG"))
    # Ray prints a page to standard output about every dead worker, whatever its log settings; we print JSON there.
    ray._private.worker.print_to_stdstream = _print_to_standard_error if debug else _print_nothing
    try:
        if address != "auto":
            host, _, port = address.rpartition("://")[2].rpartition(":")
            socket.create_connection((host, int(port)), REACHED_WITHIN).close()
        ray.init(address, logging_level=logging.ERROR, log_to_driver=debug)
    except (Exception, SystemExit) as error:
        raise ClusterError(
            f"Ray cluster {address}: {error} (`ray start --head` starts one, `ray start --address HOST:PORT` joins it)"
        ) from error


def _print_to_standard_error(data: dict[str, Any], ignore_prefix: bool) -> None:
    """Print what Ray tells a driver to standard error."""
    ray._private.worker.print_worker_logs(data, sys.stderr, ignore_prefix)


def _print_nothing(data: dict[str, Any], ignore_prefix: bool) -> None:
    """Drop what Ray tells a driver, unless CONAN_DEBUG is set."""


def said(error: BaseException) -> str:
    """Return the last line of an error's message, where Ray names the cause, without colour codes."""
    return shorten(re.sub(r"\x1b\[\d+m", "", str(error)).rpartition("\n")[2], 200) or type(error).__name__


def _places(engine: Engine) -> list[_Place]:
    """List the places for calls on the nodes that are alive now."""
    nodes = list_nodes()
    if engine.one_a_device:
        on_gpus = [_Place(k, cpus // gpus, 1, name) for name, cpus, gpus in nodes for k in range(gpus)]
        return on_gpus or [_Place(0, cpus, 0, name) for name, cpus, _ in nodes if cpus]
    most = QUEUED * sum(cpus for _, cpus, _ in nodes)
    return [_Place(number) for number in range(min(engine.workers or most, most))]


def list_nodes() -> list[tuple[str, int, int]]:
    """List the nodes that are alive now, each with its id, its CPUs and its GPUs."""
    found = [(node["NodeID"], node["Resources"]) for node in ray.nodes() if node["Alive"]]
    return [(name, int(has.get("CPU", 0)), int(has.get("GPU", 0))) for name, has in found]


def _pack(mirror: "Mirror | None", function: Callable[..., None], arguments: tuple[Any, ...]) -> bytes:
    """Pack a call; one about a corpus at a URI is shipped."""
    if mirror is None:
        return pack_call(function, arguments)
    from ..corpus.shipping import run_shipped, ship  # imports botocore, which corpora in folders don't need

    return pack_call(run_shipped, (ship(mirror, function, arguments),))


def _submit(place: _Place, devices: dict[_Place, Any], call: bytes, is_shipped: bool) -> Any:
    """Start a call at a free place; return Ray's reference to its result."""
    arguments = __version__, str(Path.cwd()), call, is_shipped
    threads = {name: os.environ.get(name) or str(max(1, place.cpus)) for name in THREAD_VARIABLES}
    debug = {name: value for name, value in os.environ.items() if name == "CONAN_DEBUG"}
    options = {"num_cpus": place.cpus, "num_gpus": place.gpus, "runtime_env": {"env_vars": threads | debug}}
    if place.node is None:
        return _TASK.options(max_retries=0, scheduling_strategy="SPREAD", **options).remote(*arguments)
    if place not in devices:
        there = NodeAffinitySchedulingStrategy(place.node, soft=False)
        devices[place] = _DEVICE.options(scheduling_strategy=there, **options).remote()
    return devices[place].attempt.remote(*arguments)


@contextmanager
def open_on_nodes(make: Callable[[], Sender], address: str, threads: int) -> Iterator[Callable[..., Any]]:
    """Do what nodes.open_senders does, on the cluster at `address`.

    Nodes that don't reach what they would send to are left out, unless none does. Ray restarts an actor that has died,
    on another node if its own is gone, and sends again what it was sending.
    """
    connect(address)
    packed = pickle.dumps(make)
    common = {"num_cpus": 0, "max_concurrency": threads, "max_restarts": -1, "max_task_retries": ATTEMPTS - 1}
    there = [NodeAffinitySchedulingStrategy(node, soft=True) for node, cpus, _ in list_nodes() if cpus]
    if not there:
        raise ClusterError(f"Ray cluster {address}: no node has a CPU for tasks")
    actors = [_SENDER.options(scheduling_strategy=each, **common).remote(__version__, packed) for each in there]
    try:
        reached = _get(address, [actor.reaches.remote() for actor in actors])
        if problem := next((each for each in reached if isinstance(each, str)), None):
            raise ClusterError(problem)
        used = [actor for actor, reaches in zip(actors, reached, strict=True) if reaches] or actors
        in_flight, lock = [0] * len(used), Lock()

        def send(*arguments: Any) -> Any:
            with lock:
                place = in_flight.index(min(in_flight))
                in_flight[place] += 1
            try:
                found, error = _get(address, used[place].send.remote(pickle.dumps(arguments)))
            finally:
                with lock:
                    in_flight[place] -= 1
            if error is not None:
                raise error
            return found

        yield send
    finally:
        for actor in actors:
            ray.kill(actor)


def _get(address: str, reference: Any) -> Any:
    """Wait for what actors return. Raises ClusterError if they can't be started, or died again and again."""
    try:
        return ray.get(reference)
    except RayError as error:
        raise ClusterError(f"Ray cluster {address}: a node can't send: {said(error)}") from error
