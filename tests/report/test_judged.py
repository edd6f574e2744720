"""Predictions against the truth, on a handful that can be counted by hand."""

from pathlib import Path

import pandas as pd
import pytest

from landmarks.report import judged
from landmarks.scoring import measures, solutions
from landmarks.scoring.measures import expected_calibration_error

SOLUTION = {  # id: landmarks, usage
    "a": ("1", "Public"), "b": ("1 2", "Public"), "c": ("", "Public"), "d": ("3", "Private"), "e": ("", "Private"),
    "f": ("3", "Private"), "g": ("", "Ignored"), "h": ("2", "Private"),
}  # fmt: skip
SUBMISSION = {"a": "1 0.9", "b": "2 0.5", "c": "1 0.7", "d": "2 0.6", "e": "", "f": "3 0.5", "g": "9 1.0", "h": ""}


def write(path: Path, header: str, rows: dict[str, str]) -> Path:
    path.write_text("\n".join([header, *(f"{identity},{cell}" for identity, cell in rows.items())]) + "\n")
    return path


@pytest.fixture
def submission(tmp_path) -> Path:
    return write(tmp_path / "recognition.csv", "id,landmarks", SUBMISSION)


@pytest.fixture
def photos(tmp_path, submission) -> pd.DataFrame:
    solution = write(tmp_path / "s.csv", "id,landmarks,Usage", {one: ",".join(row) for one, row in SOLUTION.items()})
    return judged.recognised(submission, solution)


def test_every_scored_photo_is_judged(photos):
    assert photos.index.tolist() == ["a", "b", "c", "d", "e", "f", "h"]
    assert photos.index[photos["right"]].tolist() == ["a", "b", "f"]
    assert photos.loc["b", "shown"] == [1, 2] and photos.loc["e", "landmark"] == -1
    assert photos["half"].tolist() == ["public"] * 3 + ["private"] * 4


def test_without_a_solution_there_are_the_predictions(submission):
    photos = judged.recognised(submission, None)
    assert photos.index.tolist() == ["a", "b", "c", "d", "f", "g"]
    assert not photos["right"].any() and set(photos["half"]) == {""}


def test_precision_goes_down_the_ranking_of_gap(photos):
    ranking = judged.ranked(photos)
    assert ranking.index.tolist() == ["a", "c", "d", "b", "f"]  # equal scores by id
    assert ranking["precision"].tolist() == pytest.approx([1, 1 / 2, 1 / 3, 2 / 4, 3 / 5])
    public = photos[photos["half"] == "public"]
    predicted = {one: (row.landmark, row.score) for one, row in zip(public.index, public.itertuples(), strict=True)}
    assert judged.gap(public) == pytest.approx(measures.gap(predicted, public["shown"].to_dict()))


def test_the_best_threshold_gives_the_most_right_answers(photos):
    # From 0.5 on: a, b, f named right, e without a landmark and without an answer; c and d wrong, h missed.
    assert judged.best_threshold(photos) == judged.Threshold(0.5, 4, 7)
    none = photos.assign(shown=[[]] * len(photos), right=False)
    best = judged.best_threshold(none)
    assert best is not None and best.score == 0.9  # all are wrong to be named, and one has to be
    assert judged.best_threshold(photos[photos["score"].isna()]) is None


def test_bins_of_the_diagram_are_those_of_the_calibration_error():
    photos = pd.DataFrame({"score": [i / 140 for i in range(140)], "right": [i % 3 > 0 for i in range(140)]})
    bins = judged.reliability(photos)
    assert len(bins) == judged.BINS and bins["photos"].sum() == 140
    error = ((bins["score"] - bins["right"]).abs() * bins["photos"]).sum() / 140
    assert error == pytest.approx(expected_calibration_error(photos["score"].tolist(), photos["right"].tolist()))
    assert [len(judged.reliability(photos.head(count))) for count in (0, 3, 15, 16, 119)] == [0, 1, 1, 2, 14]


def test_confused_are_landmarks_and_photos_of_none(photos):
    assert judged.confusions(photos) == [judged.Confusion(3, 2, 1, 2)]
    assert judged.named_without(photos, 0.7) == [(1, 1)] and judged.named_without(photos, 0.71) == []
    assert judged.confusions(photos.head(0)) == []


def test_queries_have_their_first_ten_and_their_precision(tmp_path):
    solution = write(
        tmp_path / "s.csv", "id,images,Usage", {"a": "x y,Public", "b": "z,Private", "c": "x,Private", "d": ",Ignored"}
    )  # fmt: skip
    twelve = " ".join(f"n{number}" for number in range(11))
    submission = write(tmp_path / "r.csv", "id,images", {"a": "x w y", "b": f"{twelve} z", "c": "", "d": "x"})
    queries = judged.retrieved(submission, solution)
    assert queries.loc["a", "right"] == [True, False, True]
    assert queries["precision"].tolist() == pytest.approx([(1 + 2 / 3) / 2, 1 / 12, 0])
    assert len(queries.loc["b", "first"]) == 10 and not any(queries.loc["b", "right"])
    assert queries.loc["c", "first"] == [] and queries["relevant"].tolist() == [2, 1, 1]
    assert judged.retrieved(submission, None).index.tolist() == ["a", "b", "d"]


def test_the_task_of_a_solution_is_in_its_header(tmp_path):
    assert solutions.task_of(write(tmp_path / "s.csv", "id,images,Usage", {})) == "retrieval"
    assert solutions.task_of(write(tmp_path / "s.csv", "id,landmarks,Usage", {})) == "recognition"
    with pytest.raises(solutions.InputError, match="no solution"):
        solutions.task_of(write(tmp_path / "s.csv", "id,landmarks", {}))
