"""The recipe saved in a corpus, with defaults filled in: later stages take their settings from it."""

from collections.abc import Sequence
from pathlib import Path

from ...schemas.errors import RecipeError
from ...schemas.recipe import Recipe, dump, load
from .atomic import write_text
from .uris import upload


def save_recipe(corpus: Path, recipe: Recipe) -> None:
    """Save the recipe in the corpus, with defaults filled in."""
    corpus.mkdir(parents=True, exist_ok=True)
    write_text(corpus / "recipe.yaml", dump(recipe))
    upload(corpus, "recipe.yaml")


def find_recipe(corpus: Path) -> Path:
    """Return the path of the recipe saved in a corpus. Raises RecipeError if no recipe was saved."""
    path = corpus / "recipe.yaml"
    if not path.exists():
        raise RecipeError(f"{corpus}: no recipe.yaml here; run `conan ingest {corpus} --recipe FILE` first")
    return path


def load_recipe(corpus: Path, overrides: Sequence[str] = ()) -> Recipe:
    """Load the recipe saved in a corpus, with `overrides` applied."""
    return load(find_recipe(corpus), overrides)


def load_saved(corpus: Path) -> Recipe:
    """Load the recipe saved in a corpus; an empty one if it is missing or can't be read."""
    try:
        return load_recipe(corpus)
    except RecipeError:
        return Recipe()


def keep_settings(corpus: Path, overrides: Sequence[str]) -> None:
    """Save overrides in the recipe of a corpus, if it has one."""
    if overrides and (corpus / "recipe.yaml").exists():
        save_recipe(corpus, load_recipe(corpus, overrides))
