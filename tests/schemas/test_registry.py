"""Registries, and what messages suggest for names that are not in them."""

import pytest
from conan_embedding.schemas.errors import ConanError, RecipeError
from conan_embedding.schemas.registry import Registry, check_names, did_you_mean

FRUITS = ["apple", "banana", "cherry"]


def test_a_registry_keeps_its_order_and_finds_by_name() -> None:
    fruits: Registry[int] = Registry("fruit")
    for number, name in enumerate(reversed(FRUITS)):
        assert fruits.register(name, number) == number
    assert list(fruits) == ["cherry", "banana", "apple"]
    assert fruits.find("banana", "recipe.yaml:1: fruit") == 1


def test_a_name_is_registered_once() -> None:
    fruits: Registry[int] = Registry("fruit")
    fruits.register("apple", 1)
    with pytest.raises(ConanError, match="the fruit 'apple' exists already"):
        fruits.register("apple", 2)
    assert fruits["apple"] == 1


def test_an_unknown_name_is_said_with_its_place() -> None:
    fruits: Registry[int] = Registry("fruit")
    with pytest.raises(
        RecipeError, match=r"^recipe.yaml:1: x: no fruit is called 'aple'; there is nothing to choose from$"
    ):
        fruits.find("aple", "recipe.yaml:1: x")
    fruits.register("apple", 1)
    with pytest.raises(RecipeError, match=r"^recipe.yaml:1: x: no fruit is called 'aple'; did you mean 'apple'\?$"):
        fruits.find("aple", "recipe.yaml:1: x")


def test_names_are_checked_one_by_one() -> None:
    check_names("fruit", ["cherry", "apple"], FRUITS, "x")
    check_names("fruit", [], [], "x")
    with pytest.raises(RecipeError, match=r"^x: no fruit is called 'zzz'; choose from apple, banana, cherry$"):
        check_names("fruit", ["apple", "zzz"], FRUITS, "x")


def test_the_end_of_a_message() -> None:
    assert did_you_mean("bananna", FRUITS) == "; did you mean 'banana'?"
    assert did_you_mean("bananna", FRUITS, "`{}`".format) == "; did you mean `banana`?"
    assert did_you_mean("bananna", FRUITS, list_others=False) == "; did you mean 'banana'?"
    assert did_you_mean("zzz", iter(FRUITS)) == "; choose from apple, banana, cherry"
    assert did_you_mean("zzz", FRUITS, list_others=False) == ""
    assert did_you_mean("zzz", []) == "; there is nothing to choose from"


def test_a_long_list_is_cut() -> None:
    assert did_you_mean("zzz", map(str, range(53))).endswith("48, 49 and 3 more")
    assert did_you_mean("zzz", map(str, range(50))).endswith("48, 49")
