import json
import subprocess
import sys

import numpy as np
import pytest
from conftest import ROOT
from hypothesis import given, settings
from hypothesis import strategies as st

from landmarks.running.command import InputError
from landmarks.scoring.measures import (
    find_hits,
    gap,
    mean_average_precision,
    mean_median_position,
    precision,
    top1_accuracy,
)
from landmarks.scoring.scores import score_recognition, score_retrieval, write_scores

# The cases of the published metrics_test.py.
TRUE_LANDMARKS = {
    "0123456789abcdef": [0, 12],
    "0223456789abcdef": [100, 200, 300],
    "0323456789abcdef": [1],
    "0423456789abcdef": [],
    "0523456789abcdef": [],
}
PREDICTED_LANDMARKS = {
    "0223456789abcdef": (0, 0.01),
    "0323456789abcdef": (1, 10.0),
    "0423456789abcdef": (150, 15.0),
}
TRUE_IMAGES = {
    "0123456789abcdef": ["fedcba9876543210", "fedcba9876543220"],
    "0223456789abcdef": ["fedcba9876543210"],
    "0323456789abcdef": ["fedcba9876543230", "fedcba9876543240", "fedcba9876543250"],
    "0423456789abcdef": ["fedcba9876543230"],
}
PREDICTED_IMAGES = {
    "0223456789abcdef": ["fedcba9876543200", "fedcba9876543210"],
    "0323456789abcdef": ["fedcba9876543240"],
    "0423456789abcdef": ["fedcba9876543230", "fedcba9876543240"],
}


def test_recognition_published_case():
    assert gap(PREDICTED_LANDMARKS, TRUE_LANDMARKS) == pytest.approx(0.166667, abs=1e-6)
    assert gap(PREDICTED_LANDMARKS, TRUE_LANDMARKS, landmarks_only=True) == pytest.approx(0.333333, abs=1e-6)
    assert top1_accuracy(PREDICTED_LANDMARKS, TRUE_LANDMARKS) == pytest.approx(0.333333, abs=1e-6)


def test_retrieval_published_case():
    hits = find_hits(PREDICTED_IMAGES, TRUE_IMAGES)
    assert mean_average_precision(hits) == pytest.approx(0.458333, abs=1e-6)
    assert mean_average_precision(hits, depth=1) == 0.5
    assert [precision(hits, k) for k in (1, 2)] == [0.5, 0.375]
    assert mean_median_position(hits) == (26.25, 1.5)
    assert mean_median_position(hits, depth=1) == (1.5, 1.5)


def test_gap_divides_by_images_with_landmark_not_by_predictions():
    assert gap({"a": (1, 0.9)}, {"a": [1], "b": [1], "c": [1], "d": []}) == pytest.approx(1 / 3)


def test_gap_breaks_ties_by_ascending_id():
    solution = {"a": [1], "b": [2]}
    assert gap({"b": (9, 0.5), "a": (1, 0.5)}, solution) == pytest.approx(1 / 2)  # a, right, is ranked first
    assert gap({"b": (2, 0.5), "a": (9, 0.5)}, solution) == pytest.approx(1 / 4)  # a, wrong, is ranked first


def test_gap_takes_any_of_several_landmarks_once():
    assert gap({"a": (2, 0.5)}, {"a": [1, 2, 3]}) == 1.0


def test_gap_needs_only_the_order_of_scores():
    solution = {"a": [1], "b": [1]}
    for high, low in [(-1.0, -2.0), (1e-85, 1e-86), (5e-324, 0.0), (float("inf"), 1e308)]:
        assert gap({"a": (1, high), "b": (9, low)}, solution) == 1 / 2
        assert gap({"a": (1, low), "b": (9, high)}, solution) == 1 / 4


def test_gap_ranks_a_prediction_on_an_image_without_landmark():
    solution = {"a": [1], "b": []}
    assert gap({"a": (1, 0.1), "b": (1, 0.9)}, solution) == 1 / 2
    assert gap({"a": (1, 0.1), "b": (1, 0.9)}, solution, landmarks_only=True) == 1.0
    assert gap({"a": (1, 0.9), "b": (1, 0.1)}, solution) == 1.0  # below every hit it costs nothing
    assert gap({"a": (1, 0.1)}, solution) == 1.0  # nor does leaving it out


def test_gap_of_plain_arrays():
    labels, predicted, scores = np.array([0, 4, 4]), np.array([0, 4, 1]), np.array([0.2, 0.1, 0.9], np.float32)
    predictions = dict(enumerate(zip(predicted, scores, strict=True)))
    assert gap(predictions, dict(enumerate(labels[:, None]))) == pytest.approx((1 / 2 + 2 / 3) / 3)


def test_gap_errors():
    with pytest.raises(KeyError):
        gap({"x": (1, 0.5)}, {"a": [1]})
    with pytest.raises(ZeroDivisionError):
        gap({"a": (1, 0.5)}, {"a": []})
    with pytest.raises(ZeroDivisionError):
        top1_accuracy({}, {"a": []})


def test_top1_counts_only_images_with_landmark_and_missing_ones_as_wrong():
    solution = {"a": [1], "b": [1, 2], "c": [3], "d": []}
    assert top1_accuracy({"a": (1, 0.1), "b": (3, 0.1), "d": (1, 0.9)}, solution) == pytest.approx(1 / 3)


def test_repeats_use_up_their_rank():
    solution = {"q": ["x", "y"]}
    assert mean_average_precision(find_hits({"q": ["x", "x", "y"]}, solution)) == pytest.approx((1 + 2 / 3) / 2)
    assert mean_average_precision(find_hits({"q": ["z", "z", "x"]}, solution)) == pytest.approx((1 / 3) / 2)
    assert precision(find_hits({"q": ["x", "x"]}, solution), 2) == 1 / 2
    assert precision(find_hits({"q": ["x", "x", "y"]}, solution), 2) == 1 / 2


def test_average_precision_divides_by_the_images_that_could_be_found():
    relevant = [str(i) for i in range(150)]
    assert mean_average_precision(find_hits({"q": relevant[50:]}, {"q": relevant})) == 1.0
    assert mean_average_precision(find_hits({"q": relevant[:1]}, {"q": relevant[:4]})) == 1 / 4
    assert mean_average_precision(find_hits({"q": relevant[:50]}, {"q": relevant})) == 1 / 2


def test_ranks_after_100_do_not_count():
    wrong = [f"wrong{i}" for i in range(100)]
    last = find_hits({"q": [*wrong[:99], "x"]}, {"q": ["x"]})
    assert mean_average_precision(last) == precision(last, 100) == 1 / 100
    assert mean_median_position(last) == (100, 100)
    beyond = find_hits({"q": [*wrong, "x"]}, {"q": ["x"]})
    assert mean_average_precision(beyond) == precision(beyond, 100) == 0
    assert mean_median_position(beyond) == (101, 101)


def test_missing_and_empty_queries_score_nothing():
    solution = {"q": ["x"], "missing": ["x"], "empty": ["x"], "wrong": ["x"]}
    hits = find_hits({"q": ["x"], "empty": [], "wrong": ["y"]}, solution)
    assert mean_average_precision(hits) == 1 / 4
    assert precision(hits, 1) == 1 / 4
    assert precision(hits, 5) == 1 / 20
    assert mean_median_position(hits) == (76, 101)


def test_retrieval_errors():
    with pytest.raises(ValueError, match="'unknown'"):
        find_hits({"unknown": ["x"]}, {"q": ["x"]})
    with pytest.raises(ZeroDivisionError):
        mean_average_precision(find_hits({"q": ["x"]}, {"q": []}))


# Scores and ids from few values, so that ties, repeats and hits are common.
TEST_IDS = st.sampled_from([f"{i:x}" for i in range(12)])
SCORES = st.sampled_from([-2.0, -0.0, 0.0, 1e-86, 2e-86, 0.5, float("inf")]) | st.floats(allow_nan=False)
LANDMARKS = st.integers(0, 3)
IMAGES = st.sampled_from("abcdefgh")


@st.composite
def recognition_cases(draw):
    solution = draw(st.dictionaries(TEST_IDS, st.lists(LANDMARKS, max_size=3), min_size=1))
    solution["with landmark"] = [draw(LANDMARKS)]
    predicted = draw(st.sets(st.sampled_from(sorted(solution))))
    return {i: (draw(LANDMARKS), draw(SCORES)) for i in predicted}, solution


@st.composite
def retrieval_cases(draw):
    solution = draw(st.dictionaries(TEST_IDS, st.lists(IMAGES, min_size=1, max_size=6, unique=True), min_size=1))
    predicted = draw(st.sets(st.sampled_from(sorted(solution))))
    return {i: draw(st.lists(IMAGES, max_size=9)) for i in predicted}, solution


def naive_gap(predictions, solution, landmarks_only):
    rows = [(i, *p) for i, p in predictions.items() if solution[i] or not landmarks_only]
    rows.sort(key=lambda row: row[:2])
    rows.sort(key=lambda row: row[2], reverse=True)  # stable, so ties keep the order by id
    rel = np.array([landmark in solution[i] for i, landmark, _ in rows], float)
    precisions = np.cumsum(rel) / np.arange(1, len(rows) + 1)
    return np.sum(precisions * rel) / np.count_nonzero([len(truth) for truth in solution.values()])


def naive_relevance(neighbours, truth, depth):
    """rel(k) for k = 1 to depth."""
    rel = [x in truth and x not in neighbours[:k] for k, x in enumerate(neighbours)]
    return np.array((rel + [False] * depth)[:depth], float)


def naive_retrieval(predictions, solution, depth):
    ranks = np.arange(1, depth + 1)
    rel = {q: naive_relevance(predictions.get(q, []), truth, depth) for q, truth in solution.items()}
    ap = [np.sum(np.cumsum(rel[q]) / ranks * rel[q]) / min(len(solution[q]), depth) for q in solution]
    precisions = np.mean([np.cumsum(rel[q]) / ranks for q in solution], axis=0)
    first = [np.argmax(rel[q]) + 1 if rel[q].any() else depth + 1 for q in solution]
    return np.mean(ap), precisions, first


@settings(deadline=None)
@given(recognition_cases(), st.booleans())
def test_gap_against_naive(case, landmarks_only):
    assert gap(*case, landmarks_only) == pytest.approx(naive_gap(*case, landmarks_only))


@settings(deadline=None)
@given(recognition_cases())
def test_top1_against_naive(case):
    predictions, solution = case
    right = [predictions[i][0] in truth if i in predictions else False for i, truth in solution.items() if truth]
    assert top1_accuracy(predictions, solution) == pytest.approx(np.mean(right))


@settings(deadline=None)
@given(retrieval_cases(), st.integers(1, 10))
def test_retrieval_against_naive(case, depth):
    expected_map, expected_precisions, expected_first = naive_retrieval(*case, depth)
    hits = find_hits(*case)
    assert mean_average_precision(hits, depth) == pytest.approx(expected_map)
    assert [precision(hits, k) for k in range(1, depth + 1)] == pytest.approx(expected_precisions)
    assert mean_median_position(hits, depth) == pytest.approx((np.mean(expected_first), np.median(expected_first)))


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


def test_write_scores(tmp_path, capsys):
    submission, solution = recognition_files(tmp_path)
    path = tmp_path / "recognition.metrics.json"
    write_scores("recognition", submission, None, path)
    assert not path.exists() and "not scored" in capsys.readouterr().out
    write_scores("recognition", submission, solution, path)
    assert json.loads(path.read_text()) == score_recognition(submission, solution)
    assert capsys.readouterr().out == path.read_text()


def run(*arguments):
    return subprocess.run([sys.executable, *arguments], cwd=ROOT, capture_output=True, text=True, timeout=60)


def test_command_prints_json(tmp_path):
    submission, solution = recognition_files(tmp_path)
    result = run("metrics.py", "recognition", str(submission), str(solution))
    assert (result.returncode, result.stderr) == (0, "")
    assert json.loads(result.stdout) == score_recognition(submission, solution)


def test_command_says_what_is_wrong_in_one_line(tmp_path):
    submission, solution = recognition_files(tmp_path)
    for arguments in (
        ["recognition", str(tmp_path / "absent.csv"), str(solution)],
        ["recognition", str(submission), str(tmp_path)],
        ["retrieval", str(submission), str(solution)],
    ):
        result = run("metrics.py", *arguments)
        assert (result.returncode, result.stdout) == (2, "")
        assert result.stderr.startswith("error: ") and result.stderr.count("\n") == 1
    assert run("metrics.py", "segmentation", str(submission), str(solution)).returncode == 2


def test_commands_start_without_heavy_imports():
    heavy = "{'tensorflow', 'keras', 'torch', 'pandas', 'numpy'}"
    result = run("-c", f"import metrics, submission, sys; print(*({heavy} & set(sys.modules)))")
    assert (result.returncode, result.stdout.strip()) == (0, "")
