"""A Ray cluster of two nodes on this machine, to which tests add more."""

import os
import signal
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
from object_store import CREDENTIALS
from reader_plugin import python_path

SMALL = {"object_store_memory": 80 << 20}


@dataclass
class Nodes:
    """A cluster whose nodes tests can add and remove. Nodes can import modules from `plugins`.

    Each node has a cache of its own below `caches`, and looks for an S3 server at `s3_port`, where tests may start one:
    there, its requests have the name of its cache.
    """

    cluster: Any
    address: str
    plugins: Path
    modules: tuple[Path, ...]
    caches: Path
    s3_port: int

    def add(self, **resources: int) -> Any:
        with _environment(self.caches, self.s3_port, self.plugins, *self.modules) as name:
            node = self.cluster.add_node(**SMALL, **resources)
            node.name = name
            return node

    def remove(self, node: Any) -> None:
        self.cluster.remove_node(node, allow_graceful=True)

    def kill(self, node: Any) -> None:
        self.cluster.remove_node(node, allow_graceful=False)

    def kill_with_workers(self, node: Any) -> None:
        """Kill a node with its processes and theirs, which would outlive it for a moment."""
        (raylet,) = node.all_processes["raylet"]
        workers = find_children(raylet.process.pid)
        for each in [*(child for worker in workers for child in find_children(worker)), *workers]:
            with suppress(ProcessLookupError):
                os.kill(each, signal.SIGKILL)
        self.kill(node)

    def alive(self) -> int:
        import ray

        return sum(node["Alive"] for node in ray.nodes())


def find_children(parent: int) -> list[int]:
    """List the processes that a process has started."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            if (folder / "stat").read_text().rpartition(")")[2].split()[1] == str(parent):
                found.append(int(folder.name))
    return found


@contextmanager
def two_nodes(tmp_path_factory: pytest.TempPathFactory, *modules: Path) -> Iterator[Nodes]:
    """Two nodes with one CPU each; their workers can import modules from folders."""
    import ray
    from ray.cluster_utils import Cluster

    plugins, caches = (tmp_path_factory.mktemp(name) for name in ("plugins", "caches"))
    with socket.create_server(("127.0.0.1", 0)) as probe:
        s3_port = probe.getsockname()[1]
    # Ray declares a node dead after five failed health checks.
    head = {"num_cpus": 1, "_system_config": {"health_check_period_ms": 500}}
    without = {"include_dashboard": False, "include_log_monitor": False, "no_monitor": True}  # processes to start
    with _environment(caches, s3_port, plugins, *modules):
        cluster = Cluster(initialize_head=True, head_node_args={**SMALL, **head, **without})
    try:
        nodes = Nodes(cluster, cluster.address, plugins, modules, caches, s3_port)
        nodes.add(num_cpus=1)
        yield nodes
    finally:
        ray.shutdown()
        cluster.shutdown()


@contextmanager
def _environment(caches: Path, s3_port: int, plugins: Path, *modules: Path) -> Iterator[str]:
    """Set what a node inherits, only while it starts, as the other tests must not see it; yield the node's name."""
    name = uuid4().hex
    own = CREDENTIALS | {
        "RAY_USAGE_STATS_ENABLED": "0",
        "PYTHONPATH": python_path(*modules, plugins)["PYTHONPATH"],
        "AWS_ENDPOINT_URL": f"http://127.0.0.1:{s3_port}",
        "CONAN_CACHE": str(caches / name),
        "AWS_SDK_UA_APP_ID": name,
    }
    with pytest.MonkeyPatch.context() as environment:
        environment.chdir(plugins)
        for variable, value in own.items():
            environment.setenv(variable, value)
        yield name
