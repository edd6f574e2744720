import csv
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from landmarks.running.command import InputError
from landmarks.scoring import submissions
from landmarks.scoring.solutions import Solution
from landmarks.scoring.submissions import check, read_recognition, read_retrieval, write_recognition, write_retrieval

RECOGNITION_SOLUTION = Solution({"a": [1], "b": [2]}, {"c": [3], "d": []}, {"e", "f"})


RETRIEVAL_SOLUTION = Solution({"a": ["x"], "b": ["y"]}, {"c": ["z"]}, {"e", "f"})


@pytest.fixture
def file(tmp_path):
    def write(*lines):
        path = tmp_path / "file.csv"
        path.write_text("".join(f"{line}\n" for line in lines))
        return path

    return write


def test_read_recognition(file):
    path = file("id,landmarks", "a,12 0.1 ", "b,", "", "c,-1 -1e-86", "e,any thing at all", "f,1 1")
    predictions = read_recognition(path, RECOGNITION_SOLUTION)
    assert predictions == ({"a": (12, 0.1)}, {"c": (-1, -1e-86)})


def test_read_retrieval(file):
    many = [f"{i:016x}" for i in range(150)]
    path = file("id,images", f"a,{' '.join(many)}", "c,x y x ", "b,", "e,x")
    assert read_retrieval(path, RETRIEVAL_SOLUTION) == ({"a": many}, {"c": ["x", "y", "x"]})


def test_an_empty_prediction_is_not_a_prediction(file):
    """Unknown ids, and repeats, pass where the first has no prediction."""
    path = file("id,landmarks", "unknown,", "a,", "a,1 0.5", "e,", "e,1 0.5", "c,", "c,")
    assert read_recognition(path, RECOGNITION_SOLUTION) == ({"a": (1, 0.5)}, {})


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ("a,12", "1 elements"),
        ("a,12 0.5 13 0.4", "4 elements"),
        ("a,12 0.5  ", "3 elements"),
        ("a, 12 0.5", "3 elements"),
        ("a, ", "1 elements"),
        ("a,12.0 0.5", "12.0"),
        ("a,12 high", "high"),
        ("a,12 nan", "no score to rank by"),
        ("unknown,12 0.5", "'unknown' is not in the solution"),
        ("b,1 0.5", "'b' is repeated"),
        ("b,", "'b' is repeated"),
        ("a", "1 columns"),
        ("a,12 0.5,Public", "3 columns"),
    ],
)
def test_bad_prediction(file, row, message):
    path = file("id,landmarks", "b,1 0.5", row)
    with pytest.raises(InputError, match=f"file.csv line 3: .*{message}"):
        read_recognition(path, RECOGNITION_SOLUTION)


def test_repeated_private_prediction(file):
    with pytest.raises(InputError, match="line 3: test image 'c' is repeated"):
        read_retrieval(file("id,images", "c,x", "c,y"), RETRIEVAL_SOLUTION)


def test_write_recognition(tmp_path):
    path = tmp_path / "recognition.csv"
    landmarks = {"b": np.int64(7), "a": np.int32(12)}
    scores = {"b": np.float32(0.1), "a": np.float64(1e-86)}
    write_recognition(path, ["a", "none", "b"], landmarks, scores)
    assert path.read_bytes() == b"id,landmarks\na,12 1e-86\nnone,\nb,7 0.10000000149011612\n"
    assert list(tmp_path.iterdir()) == [path]


@settings(deadline=None)
@given(st.lists(st.floats(width=32, allow_nan=False, allow_infinity=False), min_size=1))
def test_float32_scores_survive(tmp_path_factory, scores):
    path = tmp_path_factory.mktemp("scores") / "recognition.csv"
    ids = [f"{i:016x}" for i in range(len(scores))]
    array = np.array(scores, np.float32)
    write_recognition(path, ids, dict.fromkeys(ids, 1), dict(zip(ids, array, strict=True)))
    read = read_recognition(path, Solution(dict.fromkeys(ids, [1]), {}, set())).public
    survived = np.array([read[identity][1] for identity in ids], np.float32)
    assert survived.tobytes() == array.tobytes()


def test_write_retrieval_row_by_row(tmp_path):
    path = tmp_path / "retrieval.csv"
    log = []

    def logged(name, values):
        for value in values:
            log.append(name)
            yield value

    neighbours = [["x", "y"], [], np.array(["z"])]
    write_retrieval(path, logged("id", "abc"), logged("list", neighbours))
    assert path.read_bytes() == b"id,images\na,x y\nb,\nc,z\n"
    assert log == ["id", "list"] * 3


@pytest.mark.parametrize("neighbours", [[["x"] * 101], [], [["x"], ["x"]]])
def test_write_retrieval_leaves_nothing_half_made(tmp_path, neighbours):
    path = tmp_path / "retrieval.csv"
    path.write_text("before")
    with pytest.raises(ValueError):
        write_retrieval(path, ["a"], neighbours)
    assert [p.name for p in tmp_path.iterdir()] == ["retrieval.csv"]
    assert path.read_text() == "before"


@pytest.mark.parametrize("score", [math.nan, math.inf])
def test_write_recognition_refuses_scores_that_are_not_finite(tmp_path, score):
    with pytest.raises(InputError, match="test image a is"):
        write_recognition(tmp_path / "recognition.csv", ["a"], {"a": 1}, {"a": score})
    assert not list(tmp_path.iterdir())


def test_what_is_written_passes_the_check(tmp_path):
    path = tmp_path / "submission.csv"
    write_recognition(path, ["a", "b", "c"], {"a": 1, "c": 2}, {"a": np.float32(1e-30), "c": -2.5})
    assert check("recognition", path, ["a", "b", "c"]) == []
    write_retrieval(path, ["a", "b"], [[f"i{n}" for n in range(100)], []])
    assert check("retrieval", path, ["a", "b"], [f"i{n}" for n in range(100)]) == []


def test_check_forgives_one_trailing_space(file):
    assert check("recognition", file("id,landmarks", "a,1 0.5 "), ["a"]) == []
    assert check("retrieval", file("id,images", "a,x y "), ["a"], ["x", "y"]) == []


def test_a_copy_is_whole_and_replaces_what_was_there(tmp_path):
    path, to = tmp_path / "recognition.csv", tmp_path / "out" / "submission.csv"
    for row in ("a,1 0.5", "a,2 0.25"):
        path.write_text(f"id,landmarks\n{row}\n")
        submissions.copy(path, str(to))
        assert to.read_text() == path.read_text()
    submissions.copy(path, "")
    assert [one.name for one in to.parent.iterdir()] == ["submission.csv"]


def test_check_recognition_names_each_fault(file):
    path = file("id,landmarks", "a,1 0.5", "a,1 0.4", "q,1 0.5", "c,1", "d,1 inf", "e,1 0.5,x", "f,-1 0.5", "g,1_0 0.5")
    assert check("recognition", path, "abcdefg") == [
        "repeated id: line 3: 'a'",
        "unknown id: line 4: 'q' is no test image of the mirror",
        "malformed cell: line 5: '1' is not `landmark_id score`",
        "malformed cell: line 8: '-1 0.5' is not `landmark_id score`",
        "malformed cell: line 9: '1_0 0.5' is not `landmark_id score`",
        "score not finite: line 6: '1 inf'",
        "malformed row: line 7: 3 columns, not 2",
        "wrong number of rows: 8, but the mirror has 7 test images",
        "missing id: 'b'",
    ]


def test_a_file_of_another_kind_is_one_fault(file):
    path = file("id,images", "a,1 0.5", "q,1")
    assert check("recognition", path, "ab") == ["wrong header: 'id,images', not 'id,landmarks'"]


@pytest.mark.parametrize(
    ("cell", "kind"),
    [
        ("1 nan", "score not finite"),
        ("1 -Infinity", "score not finite"),
        ("1 1e999", "score not finite"),
        ("1  0.5", "malformed cell"),
        ("1 0.5  ", "malformed cell"),
        (" 1 0.5", "malformed cell"),
        ("1 0.5 2 0.4", "malformed cell"),
        ("0.5 1", "malformed cell"),
        ("1 0x1p3", "malformed cell"),
        ("\u0661 0.5", "malformed cell"),
        (" ", "malformed cell"),
    ],
)
def test_check_recognition_cell(file, cell, kind):
    (fault,) = check("recognition", file("id,landmarks", f"a,{cell}"), ["a"])
    assert fault.startswith(f"{kind}: line 2: ")


def test_check_retrieval_names_each_fault(file):
    index = [f"i{n}" for n in range(101)]
    path = file("id,images", f"a,{' '.join(index)}", "b,i1 i2 i1", "c,i1  i2", "d,i1 i999 i999")
    assert check("retrieval", path, "abcd", index) == [
        "too many ids: line 2: 101, at most 100 count",
        "id repeated in a list: line 3: 'i1'",
        "id repeated in a list: line 5: 'i999'",
        "malformed cell: line 4: the ids are not separated by single spaces",
        "not in the index: line 5: 'i999'",
    ]


def test_check_lists_20_of_a_kind(file):
    faults = check("recognition", file("id,landmarks"), [f"{n:03d}" for n in range(300)])
    assert faults == [
        "wrong number of rows: 0, but the mirror has 300 test images",
        *(f"missing id: '{n:03d}'" for n in range(20)),
        "missing id: 300 in all, the first 20 are listed",
    ]


@pytest.mark.parametrize("odd", ["a,b", 'a"b', "a\nb", ""])
def test_whatever_an_id_is_made_of_csv_reads_it_back(tmp_path, odd):
    write_retrieval(tmp_path / "retrieval.csv", ["plain", odd], [["x", "y"], [odd, "z"]])
    with open(tmp_path / "retrieval.csv", newline="", encoding="utf-8") as file:
        assert list(csv.reader(file)) == [["id", "images"], ["plain", "x y"], [odd, f"{odd} z"]]
