"""Which threshold of inliers suits: precision, recall and GAP of each, by predictions and the truth."""

from collections.abc import Collection, Mapping

import numpy as np
import pandas as pd

import metrics


def calibrate(verified: pd.DataFrame, truth: Mapping[str, Collection[int]], most: int) -> tuple[pd.DataFrame, int]:
    """What each threshold would give, and the one with the best GAP; of equal ones the lowest.

    At a threshold t the predictions with more than t inliers stay and the others become none; so -1 verifies nothing.

    Args:
        verified: columns `landmark`, `score` and `inliers` by test id.
        truth: the landmarks of every photo, none where it shows none. Predictions of other photos are left out.
        most: the last threshold. Counts must be right up to there: those of a photo stop where verification did.

    Returns:
        The table by `threshold`, fractions: `precision`, the part of the kept predictions that are right (NaN when none
        is kept); `recall`, of the photos with a landmark those kept and right; `let_through`, of the photos of none
        those kept; `lost`, of the right predictions those not kept; and `gap`. And the best threshold.

    Raises:
        ZeroDivisionError: no photo of `truth` has a landmark.
    """
    verified = verified[verified.index.isin(list(truth))]
    right = np.array([row.landmark in truth[row.Index] for row in verified.itertuples()], bool)
    is_none = np.array([not len(truth[identity]) for identity in verified.index], bool)
    with_landmark = sum(len(landmarks) > 0 for landmarks in truth.values())
    rows = []
    for threshold in range(-1, most + 1):
        kept = verified["inliers"].to_numpy() > threshold
        hits = int((right & kept).sum())
        predictions = dict(
            zip(verified.index[kept], verified.loc[kept, ["landmark", "score"]].itertuples(index=False), strict=True)
        )
        rows.append(
            {
                "threshold": threshold,
                "precision": hits / kept.sum() if kept.any() else np.nan,
                "recall": hits / with_landmark,
                "let_through": (is_none & kept).sum() / max(len(truth) - with_landmark, 1),
                "lost": 1 - hits / max(right.sum(), 1),
                "gap": metrics.gap(predictions, truth),
            }
        )
    table = pd.DataFrame(rows).set_index("threshold")
    return table, int(table["gap"].idxmax())
