from __future__ import annotations

from batch.training.parameters import RECIPES
from contract.settings import RECIPE_NAMES


def test_the_names_of_the_setting_are_those_of_the_recipes() -> None:
    assert tuple(RECIPES) == RECIPE_NAMES
    assert all(name == recipe.name for name, recipe in RECIPES.items())
