"""Run the processes of a training run on a Ray cluster, one per GPU. Imported only for that.

Ray gives each process its place: a GPU and a CPU, or a CPU where no node has a GPU. A place has an actor, whose child
the process is; both end together. All nodes must have the corpus and the models under the same paths, or the corpus is
at a URI (see shipped_job.py).
"""

import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import ray
from ray.exceptions import GetTimeoutError, RayError
from ray.util.placement_group import placement_group, remove_placement_group
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from ... import __version__
from ...pipeline.engine.calls import cores
from ...pipeline.engine.ray import ClusterError, connect, find_version_error, list_nodes, said
from .hosts import LOST, PARENT, PASSED_ON, Cluster, count_threads
from .shipped_job import OWNER

if TYPE_CHECKING:
    from ...pipeline.corpus.shipping import Shipment

PLACED_WITHIN = 600.0
"""Chosen here: seconds to wait for places, in which an autoscaler can start nodes."""
TOLD_AFTER = 5.0
"""Chosen here: seconds of waiting after which to say what is waited for."""
LOST_WITHIN = 120.0
"""Chosen here: seconds to wait for a node that does not answer. Ray takes some 15 s to notice that one is lost."""

OF_THE_NODE = ("PATH", "LD_LIBRARY_PATH", "PYTHON", "CUDA_VISIBLE_DEVICES", "CONAN_CACHE", PARENT)
"""Prefixes of the variables in PASSED_ON that a node has its own values for."""


class Place(NamedTuple):
    """Where an actor is: its node, the node's address and cores, and the GPUs that Ray gave it."""

    node: str
    address: str
    cores: int
    gpus: tuple[str, ...]


class _Actor:
    """Runs one training process on its node. What the process prints is kept until the driver asks for it."""

    def __init__(self, version: str) -> None:
        self.problem = find_version_error(version)
        self.printed: list[bytes] = []

    def look_around(self) -> Place | str:
        context = ray.get_runtime_context()
        gpus = tuple(map(str, ray.get_gpu_ids()))
        return self.problem or Place(context.get_node_id(), ray.util.get_node_ip_address(), cores(), gpus)

    def find_port(self) -> int:
        with socket.create_server(("", 0)) as probe:
            return int(probe.getsockname()[1])

    def receive(self, shipment: "Shipment") -> str:
        """Fetch what a job needs, for all processes of this node; return the job's file."""
        from ...pipeline.corpus.shipping import run_shipped

        return str(run_shipped(shipment, {}))

    def start(self, folder: str, arguments: Sequence[str], environment: dict[str, str]) -> None:
        with suppress(OSError):  # the node has no such folder; absolute paths still work
            os.chdir(folder)
        own = {**os.environ, **environment, PARENT: str(os.getpid())}
        self.process = subprocess.Popen(
            [sys.executable, *arguments],
            env=own,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )
        self.reader = threading.Thread(target=self._read, daemon=True)
        self.reader.start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        while printed := os.read(self.process.stdout.fileno(), 1 << 16):
            self.printed.append(printed)

    def poll(self) -> tuple[int | None, bytes]:
        code = self.process.poll()
        if code is not None:
            self.reader.join(timeout=1)  # a grandchild may hold the pipe open
        count = len(self.printed)
        printed = b"".join(self.printed[:count])
        del self.printed[:count]
        return code, printed

    def wait(self) -> tuple[int | None, bytes]:
        self.process.wait()
        return self.poll()

    def send(self, number: int) -> None:
        self.process.send_signal(number)


_ACTOR = ray.remote(_Actor)


class RemoteProcess:
    """A training process on a node, used like a subprocess.Popen; its exit code is LOST if its node is lost."""

    stdin = None

    def __init__(self, actor: Any) -> None:
        self.actor = actor
        self.code: int | None = None

    def poll(self) -> int | None:
        return self._ask(self.actor.poll)

    def wait(self) -> int:
        code = self._ask(self.actor.wait)
        assert code is not None
        return code

    def _ask(self, method: Any) -> int | None:
        if self.code is None:
            try:
                self.code, printed = ray.get(method.remote(), timeout=LOST_WITHIN)
                sys.stderr.buffer.write(printed)
                sys.stderr.flush()
            except (RayError, GetTimeoutError):
                self.code = LOST
        return self.code

    def send_signal(self, number: int) -> None:
        self.actor.send.remote(number)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)


def count_places(cluster: Cluster) -> int:
    """Return how many processes a run has: as many as asked for, or one per GPU that the cluster has now.

    Raises:
        ClusterError: the cluster can't be reached.
    """
    connect(cluster.address)
    return cluster.processes or sum(gpus for *_, gpus in list_nodes()) or 1


@contextmanager
def started(
    cluster: Cluster,
    count: int,
    arguments: Sequence[str],
    environment: Mapping[str, str],
    shipment: "Shipment | None" = None,
) -> Iterator[tuple[list[RemoteProcess], list[str]]]:
    """Start Python with these arguments once per rank; yield the processes, and their nodes' addresses, by rank.

    `environment` is added to that of the node. The last argument is the file of a job. If the job is shipped, the file
    that each node writes takes its place.

    Raises:
        ClusterError: the cluster has fewer free GPUs (or CPUs, if it has no GPU), or a node has another version.
    """
    has_gpus = any(gpus for *_, gpus in list_nodes())
    need = {"CPU": 1, "GPU": 1} if has_gpus else {"CPU": 1}
    group = placement_group([need] * count, strategy="PACK")
    try:
        _await_places(cluster, group, count, "GPU" if has_gpus else "CPU")
        actors = [
            _ACTOR.options(
                num_cpus=1,
                num_gpus=need.get("GPU", 0),
                scheduling_strategy=PlacementGroupSchedulingStrategy(group, placement_group_bundle_index=number),
            ).remote(__version__)
            for number in range(count)
        ]
        try:
            yield _start(actors, arguments, environment, shipment)
        finally:
            for actor in actors:
                ray.kill(actor)
    except RayError as error:
        raise ClusterError(f"Ray cluster {cluster.address}: a node can't train: {said(error)}") from error
    finally:
        remove_placement_group(group)


def _await_places(cluster: Cluster, group: Any, count: int, unit: str) -> None:
    """Wait until Ray has placed all processes."""
    if group.wait(TOLD_AFTER):
        return
    there = sum(gpus if unit == "GPU" else cpus for _, cpus, gpus in list_nodes())
    needed = f"{count} free {unit}s, and the cluster has {there} {unit}s now"
    print(f"waiting up to {PLACED_WITHIN / 60:.0f} minutes for {needed}", file=sys.stderr)
    if not group.wait(PLACED_WITHIN):
        raise ClusterError(f"Ray cluster {cluster.address}: training needs {needed}; choose --nproc, or add nodes")


def _start(
    actors: Sequence[Any], arguments: Sequence[str], environment: Mapping[str, str], shipment: "Shipment | None"
) -> tuple[list[RemoteProcess], list[str]]:
    looked = ray.get([actor.look_around.remote() for actor in actors])
    if problem := next((each for each in looked if isinstance(each, str)), None):
        raise ClusterError(problem)
    numbered = number_ranks(looked)
    first = actors[numbered[0][0]]
    common = {name: value for name, value in os.environ.items() if name.startswith(PASSED_ON)}
    common = {name: value for name, value in common.items() if not name.startswith(OF_THE_NODE)} | dict(environment)
    common |= {"MASTER_ADDR": looked[numbered[0][0]].address, "MASTER_PORT": str(ray.get(first.find_port.remote()))}
    ranks = [(actors[place], own) for place, own in numbered]
    of_ranks = [arguments] * len(ranks)
    if shipment is not None:
        common[OWNER] = f"{shipment.uri} {shipment.token}"
        nodes = [looked[place].node for place, _ in numbered]
        one_each = {node: actor for node, (actor, _) in zip(nodes, ranks, strict=True)}
        files = ray.get([actor.receive.remote(shipment) for actor in one_each.values()])
        of_nodes = dict(zip(one_each, files, strict=True))
        of_ranks = [[*arguments[:-1], of_nodes[node]] for node in nodes]
    starting = zip(ranks, of_ranks, strict=True)
    ray.get([actor.start.remote(str(Path.cwd()), of_rank, common | own) for (actor, own), of_rank in starting])
    return [RemoteProcess(actor) for actor, _ in ranks], [looked[place].address for place, _ in numbered]


def number_ranks(places: Sequence[Place]) -> list[tuple[int, dict[str, str]]]:
    """Number ranks node by node, and by GPU; return for each rank its place's index and its environment variables.

    All processes of a node see all of its GPUs that are theirs, as each takes the one of its local rank.
    """
    nodes = list(dict.fromkeys(place.node for place in places))
    order = sorted(range(len(places)), key=lambda index: (nodes.index(places[index].node), places[index].gpus))
    numbered = []
    for rank, index in enumerate(order):
        place = places[index]
        local = [each for each in order if places[each].node == place.node]
        gpus = [gpu for each in local for gpu in places[each].gpus]
        own = {
            "RANK": str(rank),
            "WORLD_SIZE": str(len(places)),
            "LOCAL_RANK": str(local.index(index)),
            "LOCAL_WORLD_SIZE": str(len(local)),
            "OMP_NUM_THREADS": count_threads(place.cores, len(local)),
        }
        own |= {"CUDA_VISIBLE_DEVICES": ",".join(gpus)} if gpus else {"DS_ACCELERATOR": "cpu"}
        numbered.append((index, own))
    return numbered
