"""What tests of the report share: a finished work folder."""

from pathlib import Path

import pytest
from conftest import make_mirror, recipe_with
from finished import finish

from landmarks.running.recipe import Recipe


@pytest.fixture(scope="session")
def mirror(tmp_path_factory) -> Path:
    return make_mirror(tmp_path_factory.mktemp("report") / "mirror", test=6, index=5)


@pytest.fixture
def recipe(mirror, tmp_path) -> Recipe:
    return recipe_with(work=tmp_path / "work", mirror=str(mirror))


@pytest.fixture
def work(recipe) -> Path:
    return finish(recipe)
