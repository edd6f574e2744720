import gzip
import json

import pytest

from landmarks.running.command import InputError
from landmarks.scoring import solutions
from landmarks.scoring.scores import score_calibration, score_recognition, score_retrieval, show, write_scores


def write(path, *lines):
    path.write_text("".join(f"{line}\n" for line in lines))
    return path


def recognition_files(folder):
    submission = write(
        folder / "recognition.csv", "id,landmarks", "a,1 0.5", "b,2 0.9", "c,7 0.7", "d,", "e,x", "f,3 0.1"
    )
    solution = write(
        folder / "solution.csv",
        "id,landmarks,Usage", "a,1 2,Public", "b,1,Public", "c,,Public", "d,5,Private", "e,,Ignored", "f,3,Private",
    )  # fmt: skip
    return submission, solution


def test_score_recognition(tmp_path):
    scores = score_recognition(*recognition_files(tmp_path))
    assert scores == {
        # ranked: b wrong, c without landmark, a right; two images with landmark
        "public": {"gap": pytest.approx(1 / 6), "gap_landmarks_only": pytest.approx(1 / 4), "top1": 0.5},
        "private": {"gap": 0.5, "gap_landmarks_only": 0.5, "top1": 0.5},
    }


def test_a_photo_that_served_its_own_score_as_a_non_landmark_does_not_count(tmp_path):
    submission, solution = recognition_files(tmp_path)
    # b, whose landmark is 1 and not the 2 predicted, and e, which is ignored anyway
    scores = score_recognition(submission, solution, {"b", "e"})
    # ranked: c without landmark, a right; one image with landmark
    assert scores["public"] == {"gap": 1 / 2, "gap_landmarks_only": 1.0, "top1": 1.0}
    assert scores["private"] == score_recognition(submission, solution)["private"]
    with pytest.raises(InputError, match="nothing to score"):
        score_recognition(submission, solution, set("abdf"))

    path = tmp_path / "recognition.metrics.json"
    write_scores("recognition", submission, solution, path, unscored={"b"})
    assert json.loads(path.read_text()) == scores


def test_score_calibration(tmp_path):
    """a, b and c are predicted with 0.5, 0.9 and 0.7, and a is right; of d and f only f is, with 0.1, and right."""
    submission, solution = recognition_files(tmp_path)
    scores = score_calibration(submission, solution)
    for half, expected in (("public", [0.7, 1.55 / 3, 0.7, 1 / 3]), ("private", [0.9, 0.81, 0.1, 1])):
        assert [*scores[half]] == ["expected_calibration_error", "brier_score", "mean_score", "right"]
        assert [*scores[half].values()] == pytest.approx(expected)
    assert score_calibration(submission, solution, {"f"})["private"]["right"] is None


def test_score_retrieval(tmp_path):
    submission = write(tmp_path / "retrieval.csv", "id,images", "a,x z y", "b,w", "d,x ", "e,x")
    solution = write(
        tmp_path / "solution.csv", "id,images,Usage", "a,x y,Public", "b,x,Public", "d,x,Private", "e,None,Ignored"
    )
    assert score_retrieval(submission, solution) == {
        "public": {
            "map@100": pytest.approx((1 + 2 / 3) / 2 / 2),
            "p@1": 1 / 2,
            "p@5": pytest.approx(1 / 5),
            "p@10": pytest.approx(1 / 10),
            "p@50": pytest.approx(1 / 50),
            "p@100": pytest.approx(1 / 100),
            "mean_position": 51.0,
            "median_position": 51.0,
        },
        "private": {
            "map@100": 1.0, "p@1": 1.0, "p@5": 0.2, "p@10": 0.1, "p@50": 0.02, "p@100": 0.01,
            "mean_position": 1.0, "median_position": 1.0,
        },
    }  # fmt: skip


def test_a_part_with_nothing_to_score_is_null(tmp_path):
    submission = write(tmp_path / "recognition.csv", "id,landmarks", "a,1 0.5", "b,1 0.5")
    solution = write(tmp_path / "solution.csv", "id,landmarks,Usage", "a,1,Public", "b,,Private")
    assert score_recognition(submission, solution)["private"] == {"gap": None, "gap_landmarks_only": None, "top1": None}
    submission = write(tmp_path / "retrieval.csv", "id,images", "a,x")
    solution = write(tmp_path / "solution.csv", "id,images,Usage", "a,x,Private")
    scores = score_retrieval(submission, solution)
    assert scores["public"] == dict.fromkeys(scores["private"])
    assert scores["private"]["map@100"] == 1.0


def test_nothing_to_score_at_all(tmp_path):
    submission = write(tmp_path / "recognition.csv", "id,landmarks", "a,1 0.5")
    with pytest.raises(InputError, match="nothing to score"):
        score_recognition(submission, write(tmp_path / "s.csv", "id,landmarks,Usage", "a,,Public", "b,1,Ignored"))
    submission = write(tmp_path / "retrieval.csv", "id,images", "a,x")
    with pytest.raises(InputError, match="nothing to score"):
        score_retrieval(submission, write(tmp_path / "s.csv", "id,images,Usage", "a,None,Ignored"))


def test_gzip_as_kaggle_takes_it(tmp_path):
    files = recognition_files(tmp_path)
    packed = [path.with_name(f"{path.name}.gz") for path in files]
    for path, other in zip(files, packed, strict=True):
        other.write_bytes(gzip.compress(path.read_bytes()))
    assert score_recognition(*packed) == score_recognition(*files)
    whole = packed[0].read_bytes()
    for spoilt in (whole[:-9], b"no gzip", whole[:12] + b"\xff" * 9 + whole[21:]):
        packed[0].write_bytes(spoilt)
        with pytest.raises(InputError, match="is no (whole gzip file|CSV file in UTF-8)"):
            score_recognition(*packed)


def test_a_gzip_bomb_ends_in_one_line(tmp_path, monkeypatch):
    bomb, solution = tmp_path / "bomb.csv.gz", recognition_files(tmp_path)[1]
    bomb.write_bytes(gzip.compress(b"id,landmarks\n" + b"\n" * 5_000_000))  # half a second
    with pytest.raises(InputError, match="has more than 536,870,912 letters or 4,194,304 lines"):
        score_recognition(bomb, solution)
    monkeypatch.setattr(solutions, "MAX_LETTERS", 2**20)
    bomb.write_bytes(gzip.compress(b"id,landmarks\n" + b'"", ' * 2**18))
    with pytest.raises(InputError, match="has more than 1,048,576 letters"):
        score_recognition(bomb, solution)


def test_write_scores(tmp_path, capsys):
    submission, solution = recognition_files(tmp_path)
    path = tmp_path / "recognition.metrics.json"
    scores = write_scores("recognition", submission, solution, path)
    assert json.loads(path.read_text()) == scores == score_recognition(submission, solution)
    show("recognition", scores, {})
    header, *rows = capsys.readouterr().out.splitlines()
    assert header.split() == ["recognition", "public", "private"]
    shown = [[name, *(f"{scores[half][name]:.3f}" for half in ("public", "private"))] for name in scores["public"]]
    assert [row.split() for row in rows] == shown
    other = {half: {name: 0.25 for name in scores[half]} for half in scores}
    show("recognition", scores, {"frozen": other})
    header, *rows = capsys.readouterr().out.splitlines()
    assert header.split() == ["recognition", "public", "private", "frozen", "public", "frozen", "private"]
    assert [row.split() for row in rows] == [[*row, "0.250", "0.250"] for row in shown]
