"""Conan: curate text pairs, mine hard negatives, train text-embedding models.

    import conan_embedding as conan

    recipe = conan.load_recipe("recipe.yaml")
    for stage, outcome in conan.run(recipe, "corpus"):
        print(stage, outcome)
    conan.Corpus("corpus").sql("SELECT reason, count(*) FROM rejected GROUP BY ALL")

The losses, CBB and DHNM for loops of your own are in `conan_embedding.losses`, `.cbb` and `.dhnm`. Nothing heavy is
imported before it is used.
"""

import gc
import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .api import Corpus, encode, load_encoder, load_recipe, run, run_stage
    from .pipeline.filter.rules import RULES, Rule

__version__ = "0.1.0"
__all__ = ["RULES", "Corpus", "Rule", "encode", "load_encoder", "load_recipe", "run", "run_stage"]

_RULES = ("RULES", "Rule")


def __getattr__(name: str) -> Any:
    """Import what is asked for."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module = ".pipeline.filter.rules" if name in _RULES else ".api"
    return getattr(importlib.import_module(module, __name__), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])


def collect_garbage_seldom() -> None:
    """Collect garbage less often, in a process of Conan's own.

    Importing torch and its like makes a million objects that all stay. Python looks for garbage after every 700, which
    is a fifth of the time that such a process takes to start.
    """
    gc.set_threshold(10_000)  # chosen here: more gains no more
