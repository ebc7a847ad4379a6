"""The recipe that a corpus keeps, defaults filled in: later stages run by it."""

from collections.abc import Sequence
from pathlib import Path

from ...schemas.errors import RecipeError
from ...schemas.recipe import Recipe, dump, load
from .atomic import write_text


def save_recipe(corpus: Path, recipe: Recipe) -> None:
    """Keep the recipe in the corpus, defaults filled in."""
    corpus.mkdir(parents=True, exist_ok=True)
    write_text(corpus / "recipe.yaml", dump(recipe))


def find_recipe(corpus: Path) -> Path:
    """The file of the recipe that a corpus keeps. Raises RecipeError where it keeps none."""
    path = corpus / "recipe.yaml"
    if not path.exists():
        raise RecipeError(f"{corpus}: no recipe.yaml here; run `conan ingest {corpus} --recipe FILE` first")
    return path


def load_recipe(corpus: Path, overrides: Sequence[str] = ()) -> Recipe:
    """The recipe kept in a corpus."""
    return load(find_recipe(corpus), overrides)


def keep_settings(corpus: Path, overrides: Sequence[str]) -> None:
    """Make overrides part of the recipe that a corpus keeps, if it keeps one."""
    if overrides and (corpus / "recipe.yaml").exists():
        save_recipe(corpus, load_recipe(corpus, overrides))
