import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from landmarks.scoring.measures import (
    brier_score,
    expected_calibration_error,
    find_hits,
    gap,
    mean_average_precision,
    mean_median_position,
    precision,
    top1_accuracy,
)

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


def test_calibration_by_hand():
    confidence, right = [0.2, 0.9, 0.6, 0.4], [False, True, False, True]
    # The two least sure, one of them right, have 0.6 together; the others, one of them right, 1.5.
    assert expected_calibration_error(confidence, right, bins=2) == pytest.approx((0.4 + 0.5) / 4)
    assert expected_calibration_error(confidence, right) == pytest.approx((0.2 + 0.1 + 0.6 + 0.6) / 4)
    assert brier_score(confidence, right) == pytest.approx((0.04 + 0.01 + 0.36 + 0.36) / 4)
