"""Find where the host waits for the device in a step of `conan train`: reported by CUDA, or simulated without a GPU.

Run: `python benchmarks/host_syncs.py --jobs JOB… [--ranks 1 2] [--steps 3]`, where each JOB is a job.json with more
steps than `--steps`. Prints a line of JSON per step and rank: how often the host waited, by the place in the code that
caused it. The place is the innermost frame of Conan or DeepSpeed, so what transformers does for Conan counts as
Conan's.

Without a GPU all tensors are on the CPU, but those that would be on the device are tracked: tensors moved there by
`.to(device)` or created with `device=`, and all that are computed from them. The host waits if such a tensor is read
(`item`, `bool`, `float`, `tolist`), if the shape of a result depends on its values, and for each copy to the device
that is not `non_blocking`, because CUDA then waits for its stream. Collectives are not counted, as NCCL's do not make
the host wait. Texts are padded as on a GPU, not packed.
"""

import argparse
import json
import os
import socket
import sys
import warnings
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from itertools import product
from multiprocessing import get_context
from pathlib import Path
from types import FrameType
from typing import Any
from unittest import mock

import conan_embedding
import deepspeed
import torch
from conan_embedding.trainer import train
from conan_embedding.trainer.job import Job
from conan_embedding.trainer.model.embedding_model import load
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from train_steps import train_steps

READS = {
    "_local_scalar_dense",  # item(), bool(), float(), int()
    *("equal", "nonzero", "masked_select", "_unique2", "unique_dim", "unique_consecutive", "bincount"),
}
"""Operations that read a tensor's values on the host, or need them to determine the shape of the result."""

Places = Counter[tuple[str, str]]
"""How often the host waited, by whose code caused it (`Conan`, `DeepSpeed`) and where."""


def main() -> None:
    """Run the ranks and print the counts of each."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--jobs", type=Path, nargs="+", required=True, metavar="JOB")
    parser.add_argument("--ranks", type=int, nargs="+", default=[1], help="numbers of ranks, tried one after the other")
    parser.add_argument("--steps", type=int, default=3)
    options = parser.parse_args()
    for file, ranks in product(options.jobs, options.ranks):
        job = Job.model_validate_json(file.read_text("utf-8"))
        with socket.create_server(("127.0.0.1", 0)) as probe:
            environment = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(probe.getsockname()[1])}
        environment |= {"WORLD_SIZE": str(ranks)}
        calls = [
            (job, options.steps, environment | {"RANK": f"{rank}", "LOCAL_RANK": f"{rank}"}) for rank in range(ranks)
        ]
        with get_context("fork").Pool(ranks) as pool:  # safe, as this process has not used a GPU
            for rank, steps in enumerate(pool.starmap(count_syncs, calls, chunksize=1)):
                for step, places in steps.items():
                    waits = [
                        {"owner": owner, "place": place, "times": times} for (owner, place), times in places.items()
                    ]
                    print(json.dumps({"job": str(file), "ranks": ranks, "rank": rank, "step": step, "waits": waits}))


def count_syncs(job: Job, steps: int, environment: Mapping[str, str]) -> dict[int, Places]:
    """Train as the rank given by `environment`; return how often the host waited in each step, and where."""
    os.environ |= environment
    found: dict[int, Places] = {}

    def before(step: int) -> None:
        counts.clear()

    def after(step: int) -> None:
        found[step] = counts.copy()

    with (
        mock.patch.object(train, "load", _load_padding),
        (cuda_syncs if torch.cuda.is_available() else device_syncs)() as counts,
    ):
        train_steps(job, steps, before, after)
    return found


def _load_padding(*arguments: Any) -> Any:
    model, tokenizer = load(*arguments)
    model.packable = False
    return model, tokenizer


@contextmanager
def cuda_syncs() -> Iterator[Places]:
    """Count the synchronising calls that PyTorch warns of in CUDA's sync debug mode."""
    counts: Places = Counter()

    def note(message: Any, *_: Any) -> None:
        if "synchronizing CUDA operation" in str(message):
            counts[_cause(sys._getframe())] += 1

    with warnings.catch_warnings(), mock.patch.object(warnings, "showwarning", note):
        warnings.filterwarnings("always", message=".*synchronizing CUDA operation")
        torch.cuda.set_sync_debug_mode("warn")
        try:
            yield counts
        finally:
            torch.cuda.set_sync_debug_mode("default")


@contextmanager
def device_syncs() -> Iterator[Places]:
    """Count the calls that would wait if the tensors tracked by DeviceTensors were on a GPU."""
    run_backward = torch.autograd._engine_run_backward

    def followed(*arguments: Any, **options: Any) -> Any:
        with transfers:  # a mode is off within functions that it intercepts; turn it on again for gradient hooks
            return run_backward(*arguments, **options)

    counts: Places = Counter()
    with (
        mock.patch.object(torch.autograd, "_engine_run_backward", followed),
        DeviceTensors(counts) as known,
        Transfers(known) as transfers,
    ):
        yield counts


class DeviceTensors(TorchDispatchMode):
    """Tracks tensors that would be on a device, by their storages, and counts operations that would wait for them."""

    def __init__(self, counts: Places) -> None:
        super().__init__()
        self.counts = counts
        self.storages: dict[int, Any] = {}  # holds references, or a new storage could reuse an address

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run an operation; its results are on the device if any of its inputs is."""
        given = tree_leaves((args, kwargs))
        from_device = self.holds(given)
        name = func._schema.name.removeprefix("aten::")
        if from_device and (name in READS or (name == "index" and _has_mask(args[1]))):
            self.count()
        if name == "copy_" and self.holds(args[:1]) != self.holds(args[1:2]) and args[1].numel():
            self.count()
        result = func(*args, **(kwargs or {}))
        if from_device:
            self.mark(result)
        return result

    def holds(self, values: Any) -> bool:
        """Whether any of the values is a tensor on the device."""
        return any(isinstance(each, Tensor) and _storage(each)._cdata in self.storages for each in values)

    def mark(self, values: Any) -> None:
        """Note that all tensors of `values` are on the device."""
        for each in tree_leaves(values):
            if isinstance(each, Tensor):
                self.storages[_storage(each)._cdata] = _storage(each)

    def on_host(self, tensor: Tensor) -> Tensor:
        """Return a copy that is not on the device."""
        copy = tensor.clone()
        self.storages.pop(_storage(copy)._cdata, None)
        return copy

    def count(self) -> None:
        """Count one wait, caused by the code that is running."""
        self.counts[_cause(sys._getframe())] += 1


class Transfers(TorchFunctionMode):
    """Tracks transfers to the device and back, which copy nothing on a CPU, and counts those that would wait."""

    def __init__(self, known: DeviceTensors) -> None:
        super().__init__()
        self.known = known

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run a function, and track the tensors that it moves to the device or creates there."""
        kwargs = kwargs or {}
        name = getattr(func, "__name__", "")
        if name == "to" and any(isinstance(each, torch.device) for each in (*args[1:], kwargs.get("device"))):
            return self._to_device(func, args, kwargs)
        result = func(*args, **kwargs)
        if name in ("tolist", "numpy", "cpu") and self.known.holds(args[:1]):
            self.known.count()
            return self.known.on_host(result) if name == "cpu" else result
        if name != "to" and kwargs.get("device") is not None:
            self.known.mark(result)
            if name in ("tensor", "as_tensor"):
                self.known.count()
        return result

    def _to_device(self, func: Any, args: Any, kwargs: Any) -> Any:
        result = func(*args, **kwargs)
        if self.known.holds(args[:1]):
            return result
        if not kwargs.get("non_blocking") and result.numel():
            self.known.count()
        result = result.clone()
        self.known.mark(result)
        return result


def _storage(tensor: Tensor) -> Any:
    return tensor.untyped_storage()


def _has_mask(indices: Any) -> bool:
    return any(isinstance(each, Tensor) and each.dtype in (torch.bool, torch.uint8) for each in indices)


def _cause(frame: FrameType | None) -> tuple[str, str]:
    """Find the innermost frame of Conan or DeepSpeed: whose code it is, and the place."""
    roots = {"Conan": f"{Path(conan_embedding.__path__[0])}/", "DeepSpeed": f"{Path(deepspeed.__path__[0])}/"}
    while frame is not None:
        file = frame.f_code.co_filename
        for owner, root in roots.items():
            inner = file.removeprefix(root)
            if inner != file and not inner.startswith(("benchmarks/", ".venv/")):
                return owner, f"{inner}:{frame.f_lineno} {frame.f_code.co_name}"
        if frame.f_code.co_name == "_engine_run_backward":
            return "Conan", "the backward pass"
        frame = frame.f_back
    return "other", ""


if __name__ == "__main__":
    main()
