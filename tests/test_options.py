"""Helpers that turn the options of commands into a recipe and a corpus."""

from pathlib import Path

import pytest
from conan_embedding.options import find_corpus
from conan_embedding.schemas.errors import RecipeError
from conan_embedding.schemas.recipe import Recipe


def recipe(**sections: object) -> Recipe:
    return Recipe.model_validate({"sources": [{"name": "s", "files": "*.jsonl", "read": "jsonl"}], **sections})


def test_the_corpus_is_named_by_the_command_or_the_recipe(tmp_path: Path) -> None:
    assert find_corpus(recipe(corpus="there"), None, tmp_path) == Path("there")
    assert find_corpus(recipe(corpus="there"), Path("here"), tmp_path) == Path("here")
    with pytest.raises(RecipeError, match="conan run"):
        find_corpus(recipe(), None, tmp_path)
