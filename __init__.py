"""Conan: curate text pairs, mine hard negatives, train text-embedding models.

    import conan_embedding as conan

    recipe = conan.load_recipe("recipe.yaml")
    for stage, outcome in conan.run(recipe, "corpus"):
        print(stage, outcome)
    conan.Corpus("corpus").sql("SELECT reason, count(*) FROM rejected GROUP BY ALL")

For your own training loops: `conan_embedding.losses`, `.cbb` (cross-GPU batch balance) and `.dhnm` (dynamic hard
negative mining). Heavy libraries are imported on first use.
"""

import gc
import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .api import Corpus, load_encoder, load_recipe, run, run_stage
    from .pipeline.encoder.encoder import encode
    from .pipeline.filter.rules import RULES, Rule

__version__ = "0.1.0"
__all__ = ["RULES", "Corpus", "Rule", "encode", "load_encoder", "load_recipe", "run", "run_stage"]

_MODULES = {"RULES": ".pipeline.filter.rules", "Rule": ".pipeline.filter.rules", "encode": ".pipeline.encoder.encoder"}
"""Where the public names are that are not in `api`."""


def __getattr__(name: str) -> Any:
    """Import a public name on first use."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_MODULES.get(name, ".api"), __name__), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])


def collect_garbage_seldom() -> None:
    """Make Python collect garbage less often; called at the start of Conan's own processes.

    Importing torch creates a million objects that stay alive. By default Python looks for garbage after every 700 new
    ones, which takes a fifth of such a process's start-up time.
    """
    gc.set_threshold(10_000)  # chosen here: a higher threshold saves no more time
