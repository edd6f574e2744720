import tracemalloc

import pytest

from landmarks.running.command import InputError
from landmarks.scoring import solutions
from landmarks.scoring.solutions import Solution, read_recognition_solution, read_retrieval_solution
from landmarks.scoring.submissions import read_recognition, read_retrieval

RECOGNITION_SOLUTION = Solution({"a": [1], "b": [2]}, {"c": [3], "d": []}, {"e", "f"})


RETRIEVAL_SOLUTION = Solution({"a": ["x"], "b": ["y"]}, {"c": ["z"]}, {"e", "f"})


@pytest.fixture
def file(tmp_path):
    def write(*lines):
        path = tmp_path / "file.csv"
        path.write_text("".join(f"{line}\n" for line in lines))
        return path

    return write


def test_read_recognition_solution(file):
    """The cases of the published dataset_file_io_test.py, here and below."""
    path = file(
        "id,landmarks,Usage",
        "0123456789abcdef,0 12,Public",
        "0223456789abcdef,,Public",
        "0323456789abcdef,100,Ignored",
        "0423456789abcdef,1,Private",
        "0523456789abcdef,,Ignored",
    )
    assert read_recognition_solution(path) == (
        {"0123456789abcdef": [0, 12], "0223456789abcdef": []},
        {"0423456789abcdef": [1]},
        {"0323456789abcdef", "0523456789abcdef"},
    )


def test_read_retrieval_solution(file):
    path = file(
        "id,images,Usage",
        "0123456789abcdef,None,Ignored",
        "0223456789abcdef,fedcba9876543210 fedcba9876543200,Public",
        "0323456789abcdef,fedcba9876543200,Private",
    )
    assert read_retrieval_solution(path) == (
        {"0223456789abcdef": ["fedcba9876543210", "fedcba9876543200"]},
        {"0323456789abcdef": ["fedcba9876543200"]},
        {"0123456789abcdef"},
    )


def test_none_means_nothing_to_the_reader(file):
    assert read_retrieval_solution(file("id,images,Usage", "a,None,Public")).public == {"a": ["None"]}


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ("a,1,public", "Usage is 'public'"),
        ("a,1,", "Usage is ''"),
        ("a,1", "2 columns"),
        ("a,1,2,Public", "4 columns"),
        ("a,1;2,Public", "1;2"),
        ("b,1,Private", "'b' is repeated"),
        ("b,1,Ignored", "'b' is repeated"),
    ],
)
def test_bad_recognition_solution(file, row, message):
    with pytest.raises(InputError, match=f"file.csv line 3: .*{message}"):
        read_recognition_solution(file("id,landmarks,Usage", "b,1,Public", row))


def test_query_without_images_must_be_ignored(file):
    with pytest.raises(InputError, match="line 2: .*Ignored"):
        read_retrieval_solution(file("id,images,Usage", "a,,Private"))


def test_another_header(file):
    with pytest.raises(InputError, match="'id,images'; its header must be 'id,landmarks'"):
        read_recognition(file("id,images", "a,1 0.5"), RECOGNITION_SOLUTION)
    with pytest.raises(InputError, match="header"):  # a first row would be lost
        read_recognition(file("a,1 0.5"), RECOGNITION_SOLUTION)
    with pytest.raises(InputError, match="header"):
        read_recognition(file(), RECOGNITION_SOLUTION)


def test_byte_order_mark_line_ends_and_quotes(tmp_path):
    path = tmp_path / "excel.csv"
    path.write_bytes(b'\xef\xbb\xbfid,landmarks\r\na,1 0.5 \r\n\r\n"c","2 0.25"\r\n')
    assert read_recognition(path, RECOGNITION_SOLUTION) == ({"a": (1, 0.5)}, {"c": (2, 0.25)})


def test_no_csv_file(tmp_path):
    for name, content in [
        ("utf-16.csv", "id,landmarks\na,1 0.5\n".encode("utf-16")),
        ("latin.csv", b"id,landmarks\na,\xe9\n"),
        ("open-quote.csv", b'id,landmarks\na,"1 0.5\n'),
        ("text-after-quote.csv", b'id,landmarks\na,"1" 0.5\n'),
        ("photo.jpg", bytes(range(256)) * 100),
    ]:
        path = tmp_path / name
        path.write_bytes(content)
        with pytest.raises(InputError, match=name):
            read_recognition(path, RECOGNITION_SOLUTION)
    for path in (tmp_path / "absent.csv", tmp_path, tmp_path / "utf-16.csv" / "below", tmp_path / ("x" * 300)):
        with pytest.raises(InputError, match="cannot be read: "):
            read_recognition(path, RECOGNITION_SOLUTION)


def test_a_query_may_have_very_many_images(file):
    many = [f"{i:016x}" for i in range(50_000)]  # 850,000 characters; the csv module alone stops at 131,072
    assert read_retrieval_solution(file("id,images,Usage", f"a,{' '.join(many)},Public")).public == {"a": many}


def test_size_of_a_cell_and_a_line_is_bounded(file, monkeypatch):
    monkeypatch.setattr(solutions, "MAX_CELL", 50)
    monkeypatch.setattr(solutions, "MAX_LINE", 200)
    for line in (f"a,{'x' * 51}", "x" * 1000, ",x" * 1000):
        with pytest.raises(InputError, match="field limit|columns"):
            read_retrieval(file("id,images", line), RETRIEVAL_SOLUTION)


def test_a_file_that_is_one_line_does_not_fill_the_memory(tmp_path, monkeypatch):
    monkeypatch.setattr(solutions, "MAX_LINE", 2**16)
    path = tmp_path / "line.csv"
    path.write_bytes(b"id,images\n" + b"x," * 2**23)
    tracemalloc.start()
    with pytest.raises(InputError, match="columns"):
        read_retrieval(path, RETRIEVAL_SOLUTION)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 2**23  # half of the line


def test_what_is_no_number_is_told_in_words(file):
    with pytest.raises(InputError, match="file.csv line 2: '5.0' is not landmark ids, whole numbers"):
        read_recognition_solution(file("id,landmarks,Usage", "a,5.0,Public"))
    for cell in ("5.0 1", "5 high"):
        with pytest.raises(InputError, match=f"line 2: '{cell}' is not `landmark_id score`, a whole number and"):
            read_recognition(file("id,landmarks", f"a,{cell}"), RECOGNITION_SOLUTION)
