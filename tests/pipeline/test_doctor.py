"""`conan doctor`: what each check finds, and that none can take the others with it."""

import json
import os
import shutil
import signal
import socket
import sys
import time
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NoReturn
from urllib.error import HTTPError, URLError

import pytest
from command_line import Conan
from conan_embedding.pipeline import doctor
from conan_embedding.schemas.outcomes import Finding


def only(check: Callable[[], Any]) -> Finding:
    """Return the one finding of a check."""
    (finding,) = check()
    return finding


def fine() -> list[Finding]:
    print("noise")
    os.write(2, b"more noise")
    return [Finding("fine", "ok", "as it should be")]


def raising() -> NoReturn:
    raise RuntimeError("broken\n  badly")


def crashing() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def leaving() -> None:
    os._exit(3)


def hanging() -> None:
    time.sleep(60)


def test_a_check_that_breaks_costs_its_own_line(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(doctor, "SECONDS", 2)
    began = time.monotonic()
    checks = {"raises": raising, "torch": crashing, "leaves": leaving, "hangs": hanging, "fine": fine}
    assert doctor.run_checks(checks) == [
        Finding("raises", "warning", "can't be examined: RuntimeError: broken badly"),
        Finding("torch", "error", "the check was killed by SIGKILL", "pip install --force-reinstall torch"),
        Finding("leaves", "warning", "the check ended with 3"),
        Finding("hangs", "warning", "no result after 2 s", "try again when the machine is idle"),
        Finding("fine", "ok", "as it should be"),
    ]
    assert time.monotonic() - began < 30
    assert capfd.readouterr() == ("", "")


def test_libraries_and_packages(monkeypatch: pytest.MonkeyPatch) -> None:
    assert only(lambda: doctor._check_library("duckdb", "duckdb")) == Finding(
        "duckdb", "ok", metadata.version("duckdb")
    )
    monkeypatch.setitem(sys.modules, "faiss", None)
    found = only(lambda: doctor._check_library("faiss", "faiss-cpu"))
    assert (found.level, found.cure) == ("error", "pip install --force-reinstall faiss-cpu")
    assert found.found.startswith("can't be imported: ModuleNotFoundError: ")

    assert only(doctor._check_packages).level == "ok"
    monkeypatch.setattr(doctor, "missing_packages", lambda: ["torch>=2.6", "polars>=2"])
    assert only(doctor._check_packages) == Finding(
        "packages",
        "error",
        "missing or too old: torch>=2.6, polars>=2",
        "pip install 'torch>=2.6' 'polars>=2'",
    )


def torch_with(*devices: tuple[float, bool], kind: str = "cuda") -> Any:
    """A stand-in for torch on a machine with devices of 80 GB: the free memory of each, and whether it has bf16."""
    current: list[int] = []

    class Device:
        def __init__(self, number: int) -> None:
            current[:] = [number]

        def __enter__(self) -> None: ...
        def __exit__(self, *_: object) -> None: ...

    return SimpleNamespace(
        __version__="2.13.0",
        accelerator=SimpleNamespace(
            is_available=lambda: bool(devices), current_accelerator=lambda: kind, device_count=lambda: len(devices)
        ),
        cuda=SimpleNamespace(
            device=Device,
            mem_get_info=lambda: (devices[current[0]][0], 80e9),
            is_bf16_supported=lambda including_emulation: devices[current[0]][1],
            get_device_name=lambda number: "H200",
        ),
    )


def test_devices(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch", torch_with((79e9, True), (79e9, False), (8e9, True)))
    assert list(doctor._check_devices()) == [
        Finding("cuda:0", "ok", "H200, 79.0 GB of 80.0 GB free, bf16"),
        Finding("cuda:1", "warning", "H200, 79.0 GB of 80.0 GB free, no bf16", "train with `precision: fp16`"),
        Finding(
            "cuda:2",
            "warning",
            "H200, 8.0 GB of 80.0 GB free, bf16",
            "see with nvidia-smi which process holds the rest",
        ),
    ]
    monkeypatch.setitem(sys.modules, "torch", torch_with((1.0, True), kind="npu"))
    assert only(doctor._check_devices) == Finding("npu:0", "ok", "found by torch")
    monkeypatch.setitem(sys.modules, "torch", torch_with())
    monkeypatch.setattr(shutil, "which", lambda name: None)
    monkeypatch.setattr(Path, "exists", lambda path: False)
    assert only(doctor._check_devices) == Finding("devices", "ok", "no GPU: everything runs on the CPU, in fp32")
    monkeypatch.setattr(shutil, "which", lambda name: "/usr/bin/nvidia-smi")
    assert only(doctor._check_devices).found == "torch 2.13.0 can't use this machine's NVIDIA GPU"


@pytest.mark.parametrize(("devices", "level"), [([], "ok"), ([(1.0, True)], "warning")])
def test_deepspeed_on_the_cpu_of_a_machine_with_a_gpu_is_warned_of(
    monkeypatch: pytest.MonkeyPatch, devices: list[tuple[float, bool]], level: str
) -> None:
    ops = SimpleNamespace(__compatible_ops__={"pin_memory": True, "async_io": False, "cpu_adam": True})
    accelerator = SimpleNamespace(get_accelerator=lambda: SimpleNamespace(device_name=lambda: "cpu"))
    monkeypatch.setitem(sys.modules, "torch", torch_with(*devices))
    monkeypatch.setitem(sys.modules, "deepspeed", SimpleNamespace(ops=ops))
    monkeypatch.setitem(sys.modules, "deepspeed.accelerator", accelerator)
    found = only(doctor._check_deepspeed_ops)
    assert found.found == "trains on cpu; can be built here: cpu_adam, pin_memory (training needs none of them)"
    assert (found.level, "DS_ACCELERATOR" in found.cure) == (level, level == "warning")


def test_cores_and_threads(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in doctor._THREADS:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: set(range(8)))
    monkeypatch.setattr(doctor, "_CGROUP", tmp_path)
    assert only(doctor._check_cores) == Finding("cores", "ok", "8 cores")
    (tmp_path / "cpu.max").write_text("max 100000\n")
    monkeypatch.setenv("OMP_NUM_THREADS", "4")
    assert only(doctor._check_cores) == Finding("cores", "ok", "8 cores, OMP_NUM_THREADS=4")
    monkeypatch.setenv("POLARS_MAX_THREADS", "16")
    found = only(doctor._check_cores)
    assert (found.level, found.cure) == (
        "warning",
        "unset POLARS_MAX_THREADS: more threads than cores slow each other down",
    )
    (tmp_path / "cpu.max").write_text("250000 100000\n")
    found = only(doctor._check_cores)
    assert (found.level, found.found.rpartition("; ")[2]) == ("warning", "the container may use 2.5")
    assert found.cure == "set OMP_NUM_THREADS=2 and POLARS_MAX_THREADS=2, and give --workers 2"


def test_memory(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "meminfo").write_text(
        "MemTotal:  31250000 kB\nMemFree:  9 kB\nMemAvailable:  29296875 kB\nHugePages: 0\n"
    )
    monkeypatch.setattr(doctor, "_MEMORY", tmp_path / "meminfo")
    monkeypatch.setattr(doctor, "_CGROUP", tmp_path)
    assert only(doctor._check_memory) == Finding("memory", "ok", "30.0 GB of 32.0 GB free")
    (tmp_path / "memory.max").write_text("8000000000\n")
    (tmp_path / "memory.current").write_text("5000000000\n")
    found = only(doctor._check_memory)
    assert (found.level, found.found) == ("warning", "3.0 GB of 8.0 GB free")


@pytest.mark.parametrize(
    ("free", "writable", "level"),
    [(20e9, True, "ok"), (5e9, True, "warning"), (0.5e9, True, "error"), (20e9, False, "error")],
)
def test_disks(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, free: float, writable: bool, level: str) -> None:
    seen = []
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: seen.append(folder) or SimpleNamespace(free=free))
    monkeypatch.setattr(os, "access", lambda folder, mode: writable)
    found = doctor._check_disk("corpus", tmp_path / "new" / "corpus", "move it")
    assert found.level == level
    assert found.cure == {"ok": "", "warning": "make room, or move it", "error": found.cure}[level]
    assert seen == [tmp_path]


def test_ray(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(metadata, "version", lambda name: "2.60.0")
    monkeypatch.setattr(doctor, "RAY_CLUSTER", tmp_path / "cluster")
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    assert only(doctor._check_ray) == Finding("ray", "ok", "2.60.0; this machine is in no cluster")
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = f"127.0.0.1:{server.getsockname()[1]}"
        (tmp_path / "cluster").write_text(f"{address}\n")
        assert only(doctor._check_ray) == Finding("ray", "ok", f"2.60.0; cluster at {address}")
    assert only(doctor._check_ray).level == "warning"
    monkeypatch.setenv("RAY_ADDRESS", "auto")
    assert only(doctor._check_ray).level == "ok"


def test_the_hub_is_never_an_error_and_not_asked_offline(monkeypatch: pytest.MonkeyPatch) -> None:
    def answer(error: Exception | None) -> Callable[..., Any]:
        def urlopen(request: Any, timeout: float) -> Any:
            assert (request.full_url, request.method, timeout) == ("https://huggingface.co", "HEAD", 3)
            if error:
                raise error
            return SimpleNamespace(close=lambda: None)

        return urlopen

    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "https://huggingface.co")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    levels = []
    for error in (None, HTTPError("u", 403, "no", {}, None), URLError("no route"), TimeoutError("timed out")):  # type: ignore[arg-type]
        monkeypatch.setattr(doctor, "urlopen", answer(error))
        levels.append(only(doctor._check_hub).level)
    assert levels == ["ok", "ok", "warning", "warning"]
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr(doctor, "urlopen", raising)
    assert only(doctor._check_hub).level == "ok"


RECIPE = """\
corpus: corpora/zh
sources: [{name: pages, files: "*.html", read: html}]
finetune: {track: [wandb], lora: {}}
"""


def test_a_recipe_says_which_extras_are_missing(conan: Conan, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Through the command line, with checks that take long left out."""
    for slow in ("_check_devices", "_check_deepspeed_ops", "_check_hub"):
        monkeypatch.setattr(doctor, slow, list)
    monkeypatch.setattr(doctor, "LIBRARIES", {"duckdb": "duckdb"})
    monkeypatch.setattr(doctor, "missing_packages", lambda extra="": ["wandb>=0.20"] if extra == "wandb" else [])
    monkeypatch.chdir(tmp_path)
    Path("r.yaml").write_text(RECIPE, "utf-8")
    code, out, _ = conan("doctor", "r.yaml", "--json")
    found = {each["check"]: each for each in json.loads(out)}
    assert [found[f"extra {name}"]["level"] for name in ("web", "lora", "wandb")] == ["ok", "ok", "error"]
    assert found["extra wandb"]["found"] == "r.yaml:3: finetune.track needs it; missing: wandb>=0.20"
    assert found["extra wandb"]["cure"] == "pip install 'conan-embedding[wandb]'"
    assert found["corpus"]["level"] in ("ok", "warning") and "extras" not in found
    assert code == 1

    code, out, _ = conan("doctor", "r.yaml", "--set", "finetune.track=[]")
    assert code == 0
    assert [line.split()[0] for line in out.splitlines()].count("ok") >= len(found) - 2
    assert f"ok       duckdb          {metadata.version('duckdb')}" in out

    code, out, _ = conan("doctor", "r.yaml", "--set", "sources=no")
    assert code == 1
    assert "error    recipe          --set sources=no: sources: " in out
    assert "ok       python " in out

    code, out, _ = conan("doctor", "r.yaml", "--set", "sources=[{name: a, files: 'no://a', read: documents}]")
    assert code == 0 and "warning  extras          --set sources=" in out

    assert only(doctor._check_extras).found.endswith("; not installed: wandb")
