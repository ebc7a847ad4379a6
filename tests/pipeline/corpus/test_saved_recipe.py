"""The recipe that is saved in a corpus."""

from pathlib import Path

import pytest
from conan_embedding.pipeline.corpus import saved_recipe
from conan_embedding.schemas.errors import RecipeError
from conan_embedding.schemas.recipe import Recipe
from small_shards import files


def test_the_recipe_is_kept(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=r"no recipe\.yaml here"):
        saved_recipe.load_recipe(tmp_path)
    recipe = Recipe.model_validate({"dedup": {"on": "query"}, "corpus": "语料"})
    saved_recipe.save_recipe(tmp_path / "corpus", recipe)
    assert saved_recipe.load_recipe(tmp_path / "corpus") == recipe
    assert saved_recipe.load_recipe(tmp_path / "corpus", ["dedup.recall=0.5"]).dedup.recall == 0.5
    assert files(tmp_path) == {"corpus/recipe.yaml"}
