"""The house stays as docs/architecture.md shows it, and everything in it is where that page says."""

import ast
import re

import pytest
from conftest import ROOT

from docs import house

FILES = [(place, path) for place, files in house.rooms().items() for path in files]


def names(values) -> list[str]:
    return [path.relative_to(ROOT).as_posix() for _, path in values]


@pytest.mark.parametrize(("place", "path"), FILES, ids=names(FILES))
def test_imports_run_downwards(place, path):
    up = {other for other in house.imports(path) if house.FLOOR[other] <= house.FLOOR[place]}
    assert not up, f"{path.name} imports {up}"


def test_the_page_shows_the_house():
    assert house.PAGE.read_text(encoding="utf-8") == house.page(), "run `python docs/house.py`"


def test_files_that_the_page_names_are_there():
    text = house.PAGE.read_text(encoding="utf-8")
    named = set(re.findall(r"[\w/]+\.py\b", text))
    found = {path.relative_to(ROOT).as_posix() for path in ROOT.rglob("*.py")}
    rooms = {name.rsplit("/", 1)[-1] for name in found}
    assert {name for name in named if name not in found and ("/" in name or name not in rooms)} == set()


def test_every_place_says_its_purpose_in_a_line():
    for _, path in FILES:
        assert 20 < len(house.purpose(path)) <= 120, path


def test_the_root_has_few_files_and_no_room_is_a_hall():
    assert len(list(ROOT.glob("*.py"))) <= 15
    for _, path in FILES:
        assert len(path.read_text(encoding="utf-8").splitlines()) <= 350, path


def test_no_function_below_the_doors_takes_a_whole_recipe():
    for place, path in FILES:
        if place == "doors":
            continue
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.FunctionDef):
                arguments = [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs]
                types = [ast.unparse(argument.annotation) for argument in arguments if argument.annotation]
                assert not any(re.search(r"\bRecipe\b", one) for one in types), f"{path.name}: {node.name}"
