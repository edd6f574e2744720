import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from landmarks.mirrors import plain_table, tables
from landmarks.mirrors.plain_table import NotPlain, read_plain
from landmarks.running.command import InputError

PLAIN = 'id,url,landmark_id\nabc1,http://x/1,5\nabcd-2,"http://x/a,b",60\nabc,,007\n'
CELLS = ["abc1", "abc2", "a-c1", "abcd-e_", "12", "0", "9" * 19, "-1", "x,y", "", "é", "a\0b", '"', "a\nb", "x" * 84]


def read(path, content, columns=("id", "landmark_id")):
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return tables.read_table(path, list(columns))


@pytest.mark.parametrize("block", [8, 16, 2**22])
@pytest.mark.parametrize("newline", ["\n", "\r\n", "\n\n"])
@pytest.mark.parametrize("begin, end", [("", ""), ("\ufeff", "\n\n")])
def test_a_plain_file_is_read_as_the_csv_module_reads_it(tmp_path, monkeypatch, block, newline, begin, end):
    monkeypatch.setattr(plain_table, "BLOCK", block)
    path = tmp_path / "train.csv"
    path.write_text(begin + PLAIN.removesuffix("\n").replace("\n", newline) + end, newline="", encoding="utf-8")
    if block > len(PLAIN):
        found, hashes = read_plain(path, ["id", "landmark_id"])
        assert found["id"].tolist() == ["abc1", "abcd-2", "abc"] and len(set(hashes)) == 3
    table = tables.read_table(path, ["landmark_id", "id"])
    assert list(table) == ["landmark_id", "id"]
    assert table["id"].tolist() == ["abc1", "abcd-2", "abc"]
    assert table["landmark_id"].tolist() == [5, 60, 7] and table["landmark_id"].dtype == np.int64


@pytest.mark.parametrize("rows", ["", "\n", "\n\n"])
def test_a_table_without_a_row_is_empty(tmp_path, rows):
    assert read(tmp_path / "train.csv", "id,landmark_id" + rows).empty


@pytest.mark.parametrize(
    "row, told",
    [
        ("abc3,x", "line 5: 2 cells, the first line has 3"),
        ("abc3,x,5,6", "line 5: 4 cells"),
        ("abc3,x\nabc4,5,5,5", "line 5: 2 cells"),  # together they have as many as two rows
        ("a/c3,x,5", "line 5: 'a/c3' cannot be"),
        ("-bc3,x,5", "cannot be"),
        ("ab,x,5", "cannot be"),
        (f"{'x' * 84},x,5", "cannot be"),
        ("\u0663bc,x,5", "cannot be"),
        ("abc3,x,\u0663", "is no landmark id"),
        ("abc3,x,-5", "is no landmark id"),
        ("abc3,x,", "is no landmark id"),
        ("abc3,x," + "9" * 19, "line 5"),
        ("abc\0,x,5", "line 5"),
        ("abc1,x,5", "lists the photo 'abc1' twice"),
        ('"abc1",x,5', "lists the photo 'abc1' twice"),
    ],
)
def test_a_fault_is_told_with_its_line(tmp_path, row, told):
    with pytest.raises(InputError) as raised:
        read(tmp_path / "train.csv", PLAIN + row + "\nabc9,x,1\n")
    assert told in str(raised.value)


def test_a_file_of_no_utf8_is_refused(tmp_path):
    with pytest.raises(InputError, match="is not a CSV"):
        read(tmp_path / "train.csv", PLAIN.encode() + b"abc3,\xff,5\n")


def test_ids_that_differ_in_length_alone_are_not_the_same(tmp_path, monkeypatch):
    monkeypatch.setattr(plain_table, "BLOCK", 40)  # so that each is among others
    ids = [letter * length for letter in "ab" for length in range(3, 84)]
    assert read(tmp_path / "test.csv", "id\n" + "\n".join(ids), ["id"])["id"].tolist() == ids
    with pytest.raises(InputError, match="twice"):
        read(tmp_path / "test.csv", "id\n" + "\n".join([*ids, ids[5]]), ["id"])


@given(st.lists(st.lists(st.sampled_from(CELLS) | st.text(max_size=4), min_size=3, max_size=3), max_size=4),
       st.lists(st.sampled_from(["", '"']), min_size=12, max_size=12))  # fmt: skip
def test_whatever_is_read_as_plain_is_read_the_same_cell_by_cell(tmp_path_factory, rows, quotes):
    marks = iter(quotes)
    lines = [",".join(f"{(mark := next(marks))}{cell}{mark}" for cell in row) for row in rows]
    path = tmp_path_factory.getbasetemp() / "any.csv"
    path.write_text("\n".join(["id,url,landmark_id", *lines]), newline="", encoding="utf-8", errors="surrogatepass")
    try:
        found, _ = read_plain(path, ["id", "landmark_id"])
    except NotPlain:
        return
    expected, _ = tables._read_any(path, ["id", "landmark_id"])
    assert list(found["id"]) == expected["id"] and list(found["landmark_id"]) == list(expected["landmark_id"])
