"""Recipes in a temporary folder, with data that looks like a BEIR folder."""

import pytest

from dptdr.cli.commands import options_of
from dptdr.recipes.planning import make_plan
from dptdr.recipes.reading import read_recipe
from helpers.tasks import tiny_data


@pytest.fixture
def data(tmp_path):
    return tiny_data(tmp_path / "data")


@pytest.fixture
def read(tmp_path):
    """Read a recipe from its text; ``DATA`` in it is the tiny data's folder."""

    def _read(text, *changes):
        path = tmp_path / "recipe.toml"
        path.write_text(text.replace("DATA", str(tmp_path / "data")), encoding="utf-8")
        return read_recipe(path, options_of=options_of, changes=changes, work=tmp_path / "work")

    return _read


@pytest.fixture
def plan(read):
    """Plan a recipe from its text."""

    def _plan(text, *changes, only=()):
        return make_plan(read(text, *changes), options_of=options_of, only=only)

    return _plan
