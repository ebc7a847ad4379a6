"""Let many threads wait for other machines from this one, or from all nodes of a Ray cluster."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Protocol, Self

from .calls import Engine


class Sender(Protocol):
    """Sends what it is called with somewhere, from many threads at a time, and returns what comes back."""

    def __call__(self, *arguments: Any) -> Any: ...

    def reaches(self) -> bool:
        """Whether there is a way from this machine; asked on nodes of a cluster only."""

    def __enter__(self) -> Self: ...

    def __exit__(self, *error: object) -> None: ...


@contextmanager
def open_senders(make: Callable[[], Sender], engine: Engine, threads: int) -> Iterator[Callable[..., Any]]:
    """Yield a function that `threads` threads may call as they would `make()`, which must be picklable.

    On a cluster there is one on each node, and the node that has the least to do is taken.

    Raises:
        ClusterError: the engine's Ray cluster can't be used, or its workers die again and again; also from calls.
    """
    if engine.address is None:
        with make() as sender:
            yield sender
    else:
        from .ray import open_on_nodes

        with open_on_nodes(make, engine.address, threads) as send:
            yield send
