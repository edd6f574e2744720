import math
import time

import numpy as np
import pytest

from landmarks.running.command import InputError
from landmarks.scoring import resampling
from landmarks.scoring.measures import find_hits, gap, mean_average_precision, top1_accuracy
from landmarks.scoring.resampling import difference, mean, resample, standard_errors
from landmarks.scoring.submissions import write_recognition, write_retrieval


def recognition_files(folder, photos, seed=0, name="submission"):
    """Random predictions, with ties in the score, photos of no landmark, and photos without a prediction."""
    rng = np.random.default_rng(seed)
    ids = [f"{number:04}" for number in rng.permutation(photos)]
    truth = np.random.default_rng(9).integers(0, 4, photos)  # the same for all submissions; 0: none
    solution = folder / "solution.csv"
    solution.write_text("id,landmarks,Usage\n" + "".join(
        f"{number:04},{truth[number] or ''},{('Public', 'Private', 'Private', 'Ignored')[number % 4]}\n"
        for number in range(photos)
    ))  # fmt: skip
    predicted = {identity: int(rng.integers(1, 4)) for identity in ids if rng.random() < 0.9}
    scores = {identity: float(rng.integers(0, 20)) for identity in predicted}
    write_recognition(folder / f"{name}.csv", ids, predicted, scores)
    return folder / f"{name}.csv", solution


def retrieval_files(folder, queries, seed=0, name="submission"):
    rng = np.random.default_rng(seed)
    solution = folder / "solution.csv"
    solution.write_text("id,images,Usage\n" + "".join(
        f"q{number},{' '.join(f'i{one}' for one in range(number % 7 + 1))},{'Public' if number % 3 else 'Private'}\n"
        for number in range(queries)
    ))  # fmt: skip
    lists = [[f"i{place}" for place in rng.permutation(12)] for _ in range(queries)]
    write_retrieval(folder / f"{name}.csv", [f"q{number}" for number in range(queries)], lists)
    return folder / f"{name}.csv", solution


def duplicated(photos, weights):
    """The photos as a resample has them: each copy with an id of its own that sorts as the photo does."""
    copies = {}
    for identity, weight in zip(photos, weights, strict=True):
        copies |= {(identity, copy): photos[identity] for copy in range(weight)}
    return copies


@pytest.mark.parametrize("seed", range(5))
def test_gap_and_top1_are_those_of_the_rows_copied_as_often_as_drawn(seed):
    rng = np.random.default_rng(seed)
    truth = {f"{number:02}": [int(rng.integers(1, 4))] * int(rng.integers(0, 2)) for number in range(40)}
    predicted = {
        identity: (int(rng.integers(1, 4)), float(rng.integers(0, 9))) for identity in truth if rng.random() < 0.8
    }
    weights = rng.multinomial(40, [1 / 40] * 40, size=30)
    measures = resampling._recognition(predicted, truth)
    found = {name: measure(weights) for name, measure in measures.items()}
    for number, row in enumerate(weights):
        copied = duplicated(truth, row)
        guesses = {copy: predicted[copy[0]] for copy in copied if copy[0] in predicted}
        assert found["gap"][number] == pytest.approx(gap(guesses, copied), abs=1e-12)
        assert found["top1"][number] == pytest.approx(top1_accuracy(guesses, copied), abs=1e-12)


def test_gap_by_hand():
    # A right one, one of no landmark and a wrong one, drawn 2, 1 and 0 times; the last photo, missed, once.
    truth = {"a": [1], "b": [], "c": [2], "d": [3]}
    predicted = {"a": (1, 0.5), "b": (1, 0.9), "c": (1, 0.7)}
    found = resampling._recognition(predicted, truth)["gap"](np.array([[2, 1, 0, 1]]))
    assert found[0] == pytest.approx((1 / 2 + 2 / 3) / 3)


def test_values_are_the_scores_and_errors_those_of_a_loop(tmp_path):
    submission, solution_csv = recognition_files(tmp_path, 200)
    from landmarks.scoring import solutions, submissions
    from landmarks.scoring.scores import score_recognition

    found = resample("recognition", submission, solution_csv, resamples=2000)
    scores = score_recognition(submission, solution_csv)
    solution = solutions.read_recognition_solution(solution_csv)
    predictions = submissions.read_recognition(submission, solution)
    rng = np.random.default_rng(1)
    for half in ("public", "private"):
        truth, predicted = getattr(solution, half), getattr(predictions, half)
        ids = list(truth)
        values = []
        for _ in range(1000):
            copied = {(identity, place): truth[identity] for place, identity in enumerate(rng.choice(ids, len(ids)))}
            guesses = {copy: predicted[copy[0]] for copy in copied if copy[0] in predicted}
            values.append((gap(guesses, copied), top1_accuracy(guesses, copied)))
        for name, loop in zip(("gap", "top1"), np.transpose(values), strict=True):
            assert found[half][name].value == pytest.approx(scores[half][name])
            # The standard error of a standard deviation of 1,000 is 2 %.
            assert found[half][name].standard_error == pytest.approx(loop.std(), rel=0.15)
    both = found["mean"]["gap"]
    assert both.value == pytest.approx((scores["public"]["gap"] + scores["private"]["gap"]) / 2)
    expected = math.hypot(found["public"]["gap"].standard_error, found["private"]["gap"].standard_error) / 2
    assert both.standard_error == pytest.approx(expected, rel=0.1)  # the halves are drawn apart


def test_retrieval_draws_queries(tmp_path):
    submission, solution_csv = retrieval_files(tmp_path, 60)
    from landmarks.scoring import solutions, submissions

    found = resample("retrieval", submission, solution_csv, resamples=2000)
    solution = solutions.read_retrieval_solution(solution_csv)
    predictions = submissions.read_retrieval(submission, solution)
    for half in ("public", "private"):
        hits = find_hits(getattr(predictions, half), getattr(solution, half))
        precisions = [mean_average_precision([one]) for one in hits]
        assert found[half]["map@100"].value == pytest.approx(mean_average_precision(hits))
        # The standard error of a mean is known without resampling.
        assert found[half]["map@100"].standard_error == pytest.approx(
            np.std(precisions) / math.sqrt(len(hits)), rel=0.1
        )


def test_differences_are_paired(tmp_path):
    one, solution = recognition_files(tmp_path, 400)
    rows = one.read_text().splitlines(keepends=True)
    other = tmp_path / "other.csv"
    other.write_text("".join(rows[:-5]))  # the same but for five photos
    found = standard_errors("recognition", one, solution, other)
    for part in ("public", "private", "mean"):
        figures = found[part]["gap"]
        assert figures["difference_standard_error"] < figures["standard_error"] / 2
        assert figures["difference"] == pytest.approx(
            figures["value"] - resample("recognition", other, solution)[part]["gap"].value
        )
    same = standard_errors("recognition", one, solution, one)["mean"]["top1"]
    assert (same["difference"], same["difference_standard_error"]) == (0, 0)
    assert "difference" not in standard_errors("recognition", one, solution)["mean"]["top1"]


def test_seeds_have_a_common_error(tmp_path):
    one, solution = recognition_files(tmp_path, 100)
    estimates = [resample("recognition", one, solution)["mean"]["gap"]] * 2
    assert mean(estimates).standard_error == pytest.approx(estimates[0].standard_error)
    assert difference(*estimates).standard_error == 0


def test_a_half_with_nothing_to_score_is_null(tmp_path):
    solution = tmp_path / "solution.csv"
    solution.write_text("id,landmarks,Usage\na,1,Private\nb,,Private\nc,2,Private\nd,,Public\n")
    submission = tmp_path / "submission.csv"
    submission.write_text("id,landmarks\na,1 0.5\nb,1 0.7\n")
    found = standard_errors("recognition", submission, solution)
    assert found["public"]["gap"] == {"value": None, "standard_error": None}
    assert found["mean"]["gap"] == {"value": None, "standard_error": None}
    assert found["private"]["gap"]["value"] == 0.25 and found["private"]["gap"]["standard_error"] > 0
    solution.write_text("id,images,Usage\na,i,Private\n")
    submission.write_text("id,images\na,i\n")
    found = standard_errors("retrieval", submission, solution)
    assert found["public"]["map@100"]["value"] is None
    assert found["private"]["map@100"] == {"value": 1, "standard_error": 0}
    with pytest.raises(InputError, match="not in the solution"):
        standard_errors("retrieval", submission, solution, _unknown(tmp_path))


def _unknown(folder):
    path = folder / "unknown.csv"
    path.write_text("id,images\nz,i\n")
    return path


def test_chunks_change_nothing(tmp_path, monkeypatch):
    submission, solution = recognition_files(tmp_path, 60)
    whole = resample("recognition", submission, solution, resamples=50)
    monkeypatch.setattr(resampling, "CHUNK", 100)
    again = resample("recognition", submission, solution, resamples=50)
    for part in ("public", "private", "mean"):
        np.testing.assert_allclose(again[part]["gap"].resamples, whole[part]["gap"].resamples, atol=1e-12)
    assert len(np.unique(whole["private"]["gap"].resamples)) > 25


def test_a_thousand_resamples_of_a_thousand_photos_take_seconds(tmp_path):
    submission, solution = recognition_files(tmp_path, 1250)
    began = time.process_time()
    resample("recognition", submission, solution)
    assert time.process_time() - began < 5  # it takes 0.1
