import numpy as np
import pandas as pd
import pytest

from calibration import calibrate

TRUTH = {"a": [1], "b": [], "c": [3, 8], "d": [5], "e": [6], "f": []}


def predictions(**rows):
    return pd.DataFrame.from_dict(rows, orient="index", columns=["landmark", "score", "inliers"])


def test_the_table_by_hand():
    """Photos a and c are right, b shows none, d something else; e and f have no prediction, g is of the other half."""
    verified = predictions(g=(9, 1.0, 99), a=(1, 0.9, 40), b=(2, 0.8, 10), c=(3, 0.7, 20), d=(4, 0.6, 0))
    table, best = calibrate(verified, TRUTH, most=45)
    assert table.index.tolist() == list(range(-1, 46))
    assert table.columns.tolist() == ["precision", "recall", "let_through", "lost", "gap"]
    by_hand = {  # of 4 photos with a landmark and 2 without; in order of score a, b, c, d
        range(-1, 0): (2 / 4, 2 / 4, 1 / 2, 0, (1 + 2 / 3) / 4),
        range(0, 10): (2 / 3, 2 / 4, 1 / 2, 0, (1 + 2 / 3) / 4),
        range(10, 20): (1, 2 / 4, 0, 0, (1 + 1) / 4),
        range(20, 40): (1, 1 / 4, 0, 1 / 2, 1 / 4),
        range(40, 46): (np.nan, 0, 0, 1, 0),
    }
    for thresholds, row in by_hand.items():
        for threshold in thresholds:
            np.testing.assert_allclose(table.loc[threshold], row)
    assert best == 10  # the lowest of those with the best GAP
    assert calibrate(verified, TRUTH, most=9)[1] == -1  # up to there nothing is gained


def test_what_is_right_with_few_inliers_is_best_left_alone():
    verified = predictions(a=(1, 0.9, 0), b=(2, 0.1, 30), c=(8, 0.8, 0))
    table, best = calibrate(verified, TRUTH, most=20)
    assert best == -1
    assert table["gap"].tolist() == [2 / 4, *[0] * 21]
    assert table["precision"].tolist() == [2 / 3, *[0] * 21]


def test_without_predictions_or_landmarks():
    table, best = calibrate(predictions(g=(9, 1.0, 99)), TRUTH, most=3)
    assert best == -1
    assert table["precision"].isna().all() and (table[["recall", "let_through", "gap"]] == 0).all(axis=None)
    with pytest.raises(ZeroDivisionError):
        calibrate(predictions(b=(2, 0.8, 10)), {"b": []}, most=3)
