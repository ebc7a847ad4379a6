"""A Ray cluster of two nodes on this machine, to which tests add more."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from reader_plugin import python_path

SMALL = {"object_store_memory": 80 << 20}


@dataclass
class Nodes:
    """A cluster whose nodes tests can add and remove. Nodes can import modules from `plugins`."""

    cluster: Any
    address: str
    plugins: Path
    modules: tuple[Path, ...]

    def add(self, **resources: int) -> Any:
        with _environment(self.plugins, *self.modules):
            return self.cluster.add_node(**SMALL, **resources)

    def remove(self, node: Any) -> None:
        self.cluster.remove_node(node, allow_graceful=True)

    def kill(self, node: Any) -> None:
        self.cluster.remove_node(node, allow_graceful=False)

    def alive(self) -> int:
        import ray

        return sum(node["Alive"] for node in ray.nodes())


@contextmanager
def two_nodes(tmp_path_factory: pytest.TempPathFactory, *modules: Path) -> Iterator[Nodes]:
    """Two nodes with one CPU each; their workers can import modules from folders."""
    import ray
    from ray.cluster_utils import Cluster

    plugins = tmp_path_factory.mktemp("plugins")
    # Ray declares a node dead after five failed health checks.
    head = {"num_cpus": 1, "_system_config": {"health_check_period_ms": 500}}
    without = {"include_dashboard": False, "include_log_monitor": False, "no_monitor": True}  # processes to start
    with _environment(plugins, *modules):
        cluster = Cluster(initialize_head=True, head_node_args={**SMALL, **head, **without})
    try:
        nodes = Nodes(cluster, cluster.address, plugins, modules)
        nodes.add(num_cpus=1)
        yield nodes
    finally:
        ray.shutdown()
        cluster.shutdown()


@contextmanager
def _environment(plugins: Path, *modules: Path) -> Iterator[None]:
    """Set what a node inherits, only while it starts: the other tests of this process must not see it."""
    with pytest.MonkeyPatch.context() as environment:
        environment.chdir(plugins)
        environment.setenv("RAY_USAGE_STATS_ENABLED", "0")
        environment.setenv("PYTHONPATH", python_path(*modules, plugins)["PYTHONPATH"])
        yield
