"""Figures: in the page's colours, with ids of their own, and with the numbers that they show."""

import re

import numpy as np
import pandas as pd
import pytest

from landmarks.report import figures, judged


def photos(score: list[float], shows: list[bool]) -> pd.DataFrame:
    shown = [[1] if one else [] for one in shows]
    return pd.DataFrame(
        {"score": score, "shown": shown, "right": shows}, index=[f"p{one}" for one in range(len(score))]
    )


def test_colours_are_the_pages_and_ids_the_figures_own():
    bins = judged.reliability(photos([0.1, 0.4, 0.8], [False, True, True]))
    svg = figures.reliability(bins).svg
    assert svg.startswith('<svg role="img" aria-label="Reliability diagram"')
    assert not re.findall(r"#0[1-7]0[1-7]0[1-7]", svg) and "var(--series-0)" in svg and "var(--ink)" in svg
    assert set(re.findall(r' id="(\w+)-', svg)) == {"reliability"}
    assert set(re.findall(r"url\(#(\w+)-", svg)) | set(re.findall(r'href="#(\w+)-', svg)) == {"reliability"}
    assert svg == figures.reliability(bins).svg  # the same each time


def test_landmarks_are_counted_in_bins_that_double():
    drawn = figures.photos_per_landmark(pd.Series([1, 2, 3, 4, 7, 8, 2**20]))
    rows = dict(map(tuple, drawn.rows))
    assert rows["1"] == "1" and rows["2–3"] == "2" and rows["4–7"] == "2" and rows["8–15"] == "1"
    assert rows["1,048,576–2,097,151"] == "1" and len(rows) == 21
    assert figures.photos_per_landmark(pd.Series([5])).rows == [["4–7", "1"]]


@pytest.mark.parametrize(
    ("score", "scale"),
    [
        ([0.2, 0.9], "linear"),  # similarities
        ([1e-5, 0.9995], "logit"),  # probabilities
        ([1e-86, 1.0], "log"),  # powers
        ([-0.1, 2.5], "linear"),  # less a penalty
        ([0.5, 0.5], "linear"),
        ([3.0, 3.0], "linear"),
        ([0.0, 1.0], "linear"),
    ],
)
def test_every_score_is_in_a_bin_whatever_scores_are(score, scale):
    edges, found = figures._edges(np.array(score))
    assert found == scale and (np.diff(edges) > 0).all() and np.histogram(score, edges)[0].sum() == len(score)
    given = photos(score, [False, True])
    threshold = judged.best_threshold(given)
    assert threshold is not None
    rows = figures.score_histograms(given, threshold).rows
    assert len(rows) == figures.BINS
    assert sum(int(row[1]) for row in rows) == sum(int(row[2]) for row in rows) == 1


def test_long_curves_are_thinned():
    ranking = pd.DataFrame({"precision": np.linspace(1, 0.5, 100_000)})
    drawn = figures.precision_by_rank({"public": ranking})
    assert len(drawn.svg) < 60_000 and [row[1] for row in drawn.rows][-1] == "100,000" and len(drawn.rows) == 12
    training = pd.DataFrame({"mini_epoch": range(1, 4001), "loss": np.ones(4000)})
    assert len(figures.training_curves(training, ["loss"], "loss", "t").rows) == figures.MOST_ROWS
