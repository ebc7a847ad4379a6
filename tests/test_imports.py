"""The arrows between rooms, read from the imports in the source, and what a bare `import conan_embedding` loads.

Imports inside functions are loaded later and follow the same arrows; only those of whole modules can form a circle.
"""

import ast
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from graphlib import TopologicalSorter
from pathlib import Path

PACKAGE = Path(__file__).parents[1]
FILES = [
    *PACKAGE.glob("*.py"),
    *(file for room in ("commands", "schemas", "pipeline", "trainer") for file in PACKAGE.glob(f"{room}/**/*.py")),
]

SHARED_ROOMS = {"pipeline.corpus", "pipeline.encoder", "pipeline.engine", "pipeline.plugins", "pipeline.text"}
ARROWS = {
    "schemas": set(),
    "pipeline.corpus": {"schemas"},
    "pipeline.text": {"schemas"},
    "pipeline.plugins": {"schemas"},
    "pipeline.engine": {"schemas", "pipeline.corpus", "pipeline.plugins"},
    "pipeline.encoder": {"schemas", "pipeline.corpus", "pipeline.engine"},  # the vector cache is filled by calls
    "pipeline.doctor": {"schemas", "pipeline.needed_extras", "pipeline.plugins"},
    "pipeline.needed_extras": {
        "schemas",
        "pipeline.ingest.file_kinds",
        "pipeline.ingest.listing",
    },  # kinds of documents
    "pipeline.sample": {"schemas", *SHARED_ROOMS, "pipeline.mine.methods"},  # cuts pools, whose view names methods
    "pipeline.recipe_writer": {"schemas", *SHARED_ROOMS, "pipeline.ingest"},  # looks at files as ingest reads them
    "pipeline.llm_client": {"schemas", "pipeline.engine"},  # requests are sent from this machine or from all nodes
    "pipeline.judge": {"schemas", *SHARED_ROOMS, "pipeline.llm_client"},
    "pipeline.synthesize": {
        "schemas",
        *SHARED_ROOMS,
        "pipeline.judge.grades",  # grades by the prompt of `conan judge`
        "pipeline.llm_client",
        "pipeline.mine.search",  # a query must find its passage
        "pipeline.mine.search_stored",
    },
    "pipeline": {"schemas", *SHARED_ROOMS},  # a stage, the report, the demo: none imports another
    "trainer": {
        "schemas",
        "pipeline.corpus",
        "pipeline.encoder",
        "pipeline.engine.calls",  # how progress is shown
        "pipeline.engine.progress_lines",
        "pipeline.engine.ray",  # training on a cluster
        "pipeline.ingest.columns",  # evaluation sets are read as sources are
        "pipeline.ingest.files",
        "pipeline.ingest.readers",
        "pipeline.ingest.splits",
        "pipeline.ingest.stage",
        "pipeline.mine.methods",  # DHNM refreshes pools with the methods and the search of `conan mine`
        "pipeline.mine.search",
        "pipeline.mine.search_stored",
        "pipeline.mine.texts",
        "pipeline.needed_extras",  # the extras of trackers
        "pipeline.plugins",  # training processes import what a recipe names
        "pipeline.publish.cards",  # the model card has what the cards of data sets have
    },
    "recipe_names": {"schemas", "pipeline", "trainer"},
    "workflow": {"schemas", "pipeline", "trainer", "recipe_names", "evaluation"},
    "evaluation": {"schemas", "pipeline", "trainer", "workflow"},
}
"""The imports that a room may have besides itself and the package's own __init__. Files at the top that are not named
here (the command line, the public API) may import everything, and nothing that is named here imports them."""


def module_of(file: Path) -> str:
    """The dotted name below conan_embedding; "" for its __init__."""
    return ".".join(file.relative_to(PACKAGE).with_suffix("").parts).removesuffix("__init__").removesuffix(".")


@cache
def imports(file: Path) -> list[tuple[str, bool]]:
    """Modules of ours that a file imports, and whether it does so on being imported itself."""
    return list(_imports(ast.parse(file.read_text("utf-8")), file, at_once=True))


def _imports(tree: ast.AST, file: Path, at_once: bool) -> Iterator[tuple[str, bool]]:
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.Import):
            yield from ((name, at_once) for alias in node.names if (name := _ours(alias.name)) is not None)
        elif isinstance(node, ast.ImportFrom):
            folder = ".".join(["conan_embedding", *file.relative_to(PACKAGE).parts[: -node.level]])
            base = _ours(".".join(filter(None, [folder if node.level else "", node.module])))
            if base is not None:
                yield from ((_module(base, alias.name), at_once) for alias in node.names)
        else:
            is_later = isinstance(node, ast.FunctionDef) or (
                isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)
            )
            yield from _imports(node, file, at_once and not is_later)


def _ours(name: str) -> str | None:
    """The name below conan_embedding, if it is one."""
    top, _, rest = name.partition(".")
    return rest if top == "conan_embedding" else None


def _module(base: str, name: str) -> str:
    """What `from base import name` imports: the module of that name, or the one that has the name."""
    inner = f"{base}.{name}".strip(".")
    return inner if inner in MODULES else base


MODULES = {module_of(file): file for file in FILES}


def is_below(name: str, room: str) -> bool:
    return name == room or name.startswith(f"{room}.")


def may_import(module: str, imported: str) -> bool:
    rule = max((room for room in ARROWS if is_below(module, room)), key=len, default=None)
    own = ".".join(module.split(".")[: 1 + module.startswith("pipeline.")])
    return rule is None or imported == "" or any(is_below(imported, room) for room in (own, *ARROWS[rule]))


def test_imports_follow_the_arrows() -> None:
    found = {(module, name) for module, file in MODULES.items() for name, _ in imports(file)}
    assert len(found) > 200  # so they are read at all
    wrong = sorted(f"{module} imports {name}" for module, name in found if not may_import(module, name))
    assert not wrong, "\n".join(wrong)


def test_the_arrows_forbid_what_they_should() -> None:
    for module, imported in (
        ("schemas.recipe", "pipeline.corpus.folder"),
        ("pipeline.corpus.folder", "pipeline.engine.stage"),
        ("pipeline.text.match_key", "pipeline.dedup.minhash"),
        ("pipeline.filter.stage", "pipeline.ingest.stage"),
        ("pipeline.mine.stage", "trainer.job"),
        ("trainer.job", "pipeline.engine.stage"),
        ("trainer.dhnm.refresh", "pipeline.mine.stage"),
        ("trainer.job", "workflow"),
        ("workflow", "cli"),
    ):
        assert not may_import(module, imported)
    assert may_import("trainer.dhnm.refresh", "pipeline.mine.search")
    assert may_import("cli", "workflow")


def test_no_modules_import_each_other() -> None:
    graph = {module: {name for name, at_once in imports(file) if at_once} for module, file in MODULES.items()}
    assert len(list(TopologicalSorter(graph).static_order())) == len(MODULES)  # raises CycleError with the circle


def test_no_module_is_named_as_one_of_the_standard_library() -> None:
    """A process started in its folder, or a debugger, would import it instead."""
    assert [str(file) for file in FILES if file.stem in sys.stdlib_module_names] == []


def test_importing_the_package_loads_no_library() -> None:
    script = "import sys, conan_embedding; print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout.split()
    assert "conan_embedding" in loaded
    heavy = {"torch", "transformers", "polars", "pyarrow", "duckdb", "numba", "numpy", "pydantic", "typer"}
    assert heavy.isdisjoint(loaded)
