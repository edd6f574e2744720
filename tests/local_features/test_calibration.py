import numpy as np
import pandas as pd
import pytest

from features import Features, save_features
from landmarks.local_features.calibration import calibrate, hold_out
from landmarks.running.command import InputError

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


def features_of(folder, landmarks, files=3):
    """Random features of train photos of these landmarks in some files, and their table."""
    rng = np.random.default_rng(0)
    train = pd.DataFrame({"id": [f"photo{number:03d}" for number in range(len(landmarks))], "landmark_id": landmarks})
    embeddings = rng.standard_normal((len(train), 8))
    embeddings = (embeddings / np.linalg.norm(embeddings, axis=1, keepdims=True)).astype(np.float16)
    paths = [folder / f"images_{number:03d}.npz" for number in range(files)]
    for path, rows in zip(paths, np.array_split(np.arange(len(train)), files), strict=True):
        save_features(path, Features(train["id"].to_numpy(str)[rows], embeddings[rows]))
    return paths, train, embeddings.astype(np.float32)


def test_held_out_photos_are_predicted_as_a_plain_loop_does(tmp_path):
    landmarks = np.array([1] * 10 + [2] * 5 + [3] * 2 + [4, 5])
    paths, train, embeddings = features_of(tmp_path, landmarks)
    found = hold_out(paths, train, 14, 0, 2, tmp_path / "held_out.npz")
    assert found["shown"].sum() == 7 and len(found) == 14
    assert (found["truth"] == train.set_index("id")["landmark_id"].loc[found.index]).all()
    assert set(found["truth"]) == {1, 2, 3, 4, 5}  # spread over the landmarks
    similarity = embeddings @ embeddings.T
    for row in found.itertuples():
        photo = train.index[train["id"] == row.Index][0]
        others = [n for n in range(len(train)) if (n != photo if row.shown else landmarks[n] != row.truth)]
        nearest = max(others, key=lambda n: similarity[photo, n])
        assert row.landmark == landmarks[nearest] and row.score == pytest.approx(similarity[photo, nearest], abs=1e-5)
        assert row.shown or row.landmark != row.truth
        assert not row.shown or (landmarks == row.truth).sum() > 1
    again = hold_out(paths, train, 14, 0, 1, tmp_path / "held_out.npz")
    pd.testing.assert_frame_equal(again.sort_index(), found.sort_index())


def test_photos_that_are_known_to_show_none_take_the_place_of_these(tmp_path):
    paths, train, embeddings = features_of(tmp_path, np.array([1] * 6 + [2] * 6))
    random = np.random.default_rng(1).standard_normal((9, 8)).astype(np.float16)
    none = [f"none{number}" for number in range(9)]
    save_features(tmp_path / "index.npz", Features(np.array(none), random))
    given = 10, 0, 1, tmp_path / "held_out.npz", [tmp_path / "index.npz"]
    found = hold_out(paths, train, *given, none[:7] + ["gone"])
    others = found[~found["shown"]]
    assert len(found) == 10 and len(others) == 5 and set(others.index) < set(none[:7])
    for photo, row in others.iterrows():
        similarity = random[none.index(photo)].astype(np.float32) @ embeddings.T
        assert row["landmark"] == train["landmark_id"][similarity.argmax()] and row["truth"] == -1
        assert row["score"] == pytest.approx(similarity.max(), abs=1e-5)
    # Listed train photos are not held to be like themselves.
    found = hold_out(paths, train, *given[:-1], paths, train["id"].tolist()[:3])
    assert found["score"].max() < 0.999


@pytest.mark.parametrize("landmarks", [[1, 1, 1, 1], [1, 2, 3, 4]])
def test_what_cannot_be_held_out_is_one_clear_line(tmp_path, landmarks):
    paths, train, _ = features_of(tmp_path, landmarks, files=1)
    with pytest.raises(InputError, match="of 4 train photos none can be held out: there must be two landmarks"):
        hold_out(paths, train, 10, 0, 1, tmp_path / "held_out.npz")
