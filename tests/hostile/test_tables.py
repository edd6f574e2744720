"""CSVs and recipes: encodings, line ends, quotes, cells of a MiB, tables in tables."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from strangers import hostile, mutated

from landmarks.mirrors.tables import read_table
from landmarks.neighbours.nonlandmarks import read_ids
from landmarks.running import recipe
from landmarks.running.command import InputError
from landmarks.scoring import solutions, submissions
from landmarks.training.cleaning import read_clean
from landmarks.training.scenes import read_categories

TABLES = {
    "train": b"id,url,landmark_id\nabc1,http://x/1,5\nabc2,http://x/2,6\n",
    "recognition": b"id,landmarks,Usage\nabc1,5 6,Public\nabc2,,Private\nabc3,,Ignored\n",
    "retrieval": b"id,images,Usage\nabc1,abc5 abc6,Public\nabc2,abc5,Private\nabc3,None,Ignored\n",
    "recognition submission": b"id,landmarks\nabc1,5 0.5\nabc2,\n",
    "retrieval submission": b"id,images\nabc1,abc5 abc6\nabc2,abc5\n",
    "clean": b"landmark_id,images\n5,abc1 abc2\n6,abc3\n",
    "categories": b"/a/airfield 2\n/a/alcove 1\n",
    "ids": b"abc1\nabc2\n",
}
SOLUTIONS = (
    solutions.Solution({"abc1": [5]}, {"abc2": []}, {"abc3"}),
    solutions.Solution(solutions.IdLists({"abc1": "abc5"}), solutions.IdLists({"abc2": "abc6"}), {"abc3"}),
)
READERS = [
    lambda path: read_table(path, ["id", "landmark_id"]),
    lambda path: read_table(path, ["url"]),
    solutions.read_recognition_solution,
    solutions.read_retrieval_solution,
    lambda path: submissions.read_recognition(path, SOLUTIONS[0]),
    lambda path: submissions.read_retrieval(path, SOLUTIONS[1]),
    lambda path: submissions.check("recognition", path, {"abc1", "abc2"}),
    lambda path: submissions.check("retrieval", path, {"abc1", "abc2"}, {"abc5"}),
    read_clean,
    read_categories,
    read_ids,
]
CELLS = [
    "abc1", "ABC1", "abc2", "abc5 abc6", "5", "5 0.5", "5 nan", "5 1e999", "Public", "", " ", "-1", "9" * 30, "1_000",
    "٣", "=1+1", "../../owned", "a\0b", "\u202egpj", "x" * 2**20, "1" * 5000, "\r", "a\nb", '"', '""', "'", "\ufeff",
]  # fmt: skip


@st.composite
def tables(draw) -> bytes:
    head = draw(st.sampled_from([data.split(b"\n")[0].decode() for data in TABLES.values()]))
    rows = draw(st.lists(st.lists(st.sampled_from(CELLS) | st.text(max_size=5), max_size=4), max_size=5))
    end = draw(st.sampled_from(["\n", "\r\n", "\r", "\n\n"]))
    text = end.join([head, *map(",".join, rows)]) + draw(st.sampled_from(["", end, '"', "\0"]))
    return text.encode(draw(st.sampled_from(["utf-8", "utf-8-sig", "utf-16", "utf-7", "utf-32-le"])), "replace")


@hostile
@given(st.sampled_from(READERS), tables() | mutated(list(TABLES.values())))
def test_tables(read_within_bounds, reader, data):
    read_within_bounds(reader, data, "x.csv", InputError)


@pytest.mark.parametrize("row", ["1,2,abc", "1,2,a c"])
def test_a_row_with_a_cell_too_many_does_not_shift_the_others(read_within_bounds, row):
    assert read_within_bounds(read_clean, f"landmark_id,images\n{row}\n".encode(), "x.csv", InputError) is None


@pytest.mark.parametrize("rows", ["1,0,5", "0,99999999999999999999", "0,5\0", "0"])
def test_labels(read_within_bounds, rows):
    import model as models

    data = f"class,landmark_id\n{rows}\n".encode()
    assert read_within_bounds(models.load_labels, data, "labels.csv", InputError) is None


RECIPES = [path.read_bytes() for path in sorted(recipe.RECIPES.glob("*.toml"))]
VALUES = ["1", "inf", "-nan", "1" * 5000, "true", '"a\\u0000b"', '"\\u202egpj"', "[]", "[[[[]]]]", "{}", "{a.a.a = 1}",
          "1979-05-27", "0x7fffffffffffffffffff", "'''\n\r\n'''", "[" * 3000, "{a=" * 300, '"../../owned"']  # fmt: skip


@st.composite
def recipes(draw) -> bytes:
    keys = st.sampled_from([*recipe.SECTION_OF, "a", '""', "[[a]]\nb", "backbone" + ".a" * 1500, "[a.a]\nb"])
    lines = draw(st.lists(st.tuples(keys, st.sampled_from(VALUES)), max_size=4))
    return "\n".join(f"{key} = {value}" for key, value in lines).encode()


@hostile
@given(recipes() | mutated(RECIPES))
def test_recipes(read_within_bounds, data):
    read_within_bounds(lambda path: recipe.from_flat(recipe._read(path), path), data, "x.toml", InputError)


@pytest.mark.parametrize(
    "data",
    [
        b"a = " + b"[" * 5000,
        b"a = " + b"{a = " * 5000,
        b"seed = " + b"1" * 5000,
        b"backbone" + b".a" * 1500 + b" = 1",
        b"backbone" + b".a" * 100_000 + b" = 1",
        b'"" = 1',
        b"time_limit = inf",  # a timer of that length fails in its thread
    ],
)
def test_a_hostile_recipe_is_one_line(read_within_bounds, data):
    read = read_within_bounds(lambda path: recipe.from_flat(recipe._read(path), path), data, "x.toml", InputError)
    assert read is None
