"""Scores to probabilities of being right."""

import numpy as np
import pandas as pd
import pytest
from conftest import write_features
from hypothesis import example, given
from hypothesis import strategies as st

from landmarks.neighbours import approximate, probability
from landmarks.neighbours.nonlandmarks import References
from landmarks.neighbours.probability import Curve
from landmarks.running.answer_settings import RecognitionSettings, VerificationSettings
from landmarks.running.features_file import load_features
from landmarks.running.settings import RunSettings
from landmarks.scoring.measures import gap

finite = st.floats(allow_nan=False, allow_infinity=False)
curves = st.builds(Curve, st.one_of(st.just(0.0), st.floats(1e-3, 1e6)), st.floats(-1e6, 1e6), st.booleans())


@given(curves, st.lists(st.one_of(finite, st.floats(0, 1), st.floats(0, 1e-80)), min_size=1, max_size=30))
@example(Curve(0.0, 0.0, False), [1.7976931348623157e308, -1e292])
def test_the_order_and_the_ties_of_scores_stay(curve, scores):
    score = np.array(scores)
    found = curve.of(score)
    assert ((found > 0) & (found < 1)).all()
    assert ((found[:, None] < found) == (score[:, None] < score)).all()


@given(curves, st.lists(st.tuples(finite, st.booleans()), min_size=1, max_size=30))
def test_gap_is_the_same(curve, photos):
    scores, right = zip(*photos, strict=True)
    solution = {n: [1] if hit else [2] for n, hit in enumerate(right)}
    gaps = [gap({n: (1, s) for n, s in enumerate(one)}, solution) for one in (scores, curve.of(np.array(scores)))]
    assert gaps[0] == gaps[1]


def test_a_hundred_thousand_scores_that_round_to_the_same_stay_apart():
    score = np.linspace(1000, 1001, 120_000)
    found = Curve(1.0, 0.0, False).of(score)
    assert (np.diff(found) > 0).all() and found[-1] < 1


def test_scores_that_are_not_finite_stay_for_the_writer_to_refuse():
    np.testing.assert_array_equal(Curve(1.0, 0.0, False).of(np.array([0.5, np.nan])), [0.5, np.nan])


def judged(of_landmarks: np.ndarray, of_none: np.ndarray) -> tuple[list[pd.DataFrame], list[pd.Series]]:
    """Photos of landmark 7, all named rightly, and photos of none, with these scores, in two folds."""
    ids = [f"photo{n}" for n in range(len(of_landmarks) + len(of_none))]
    found = pd.DataFrame({"landmark": 7, "score": np.concatenate([of_landmarks, of_none])}, index=ids)
    truth = pd.Series(np.repeat([7, -1], [len(of_landmarks), len(of_none)]), index=ids)
    return [found[::2], found[1::2]], [truth[::2], truth[1::2]]


@pytest.mark.parametrize("share", [0.5, 0.9])
@pytest.mark.parametrize("logarithm", [False, True])
def test_bayes_rule_of_two_bells(share, logarithm):
    """Of N(1, 1) and N(-1, 1) the log odds are 2 x + log((1 - share) / share), however many of each are drawn."""
    rng = np.random.default_rng(0)
    bells = [rng.normal(1, 1, 20_000), rng.normal(-1, 1, 5_000)]
    curve = probability.fit(*judged(*(np.exp(bell) if logarithm else bell for bell in bells)), share)
    assert curve.logarithm is logarithm
    assert curve.slope == pytest.approx(2, abs=0.1)
    assert curve.intercept == pytest.approx(np.log((1 - share) / share), abs=0.1)


def test_wrong_landmarks_count_as_wrong():
    """3 of 4 are right whatever the score: the curve is level there, one more of each kind being added (Platt)."""
    found, truth = judged(np.repeat([0.2, 0.8], 400), np.empty(0))
    for one in truth:
        one.iloc[::4] = 8
    np.testing.assert_allclose(probability.fit(found, truth, 0.5).of(np.array([0.2, 0.5, 0.8])), 0.75, atol=0.002)


def test_what_a_threshold_parts_has_a_finite_curve():
    curve = probability.fit(*judged(np.linspace(0.6, 0.9, 50), np.linspace(0.1, 0.4, 50)), 0.5)
    low, middle, high = curve.of(np.array([0.1, 0.5, 0.9]))
    assert low < 0.05 and 0.4 < middle < 0.6 and 0.95 < high < 1 - 1e-6


def test_scores_that_mislead_give_a_level_curve():
    curve = probability.fit(*judged(np.linspace(0.1, 0.4, 30), np.linspace(0.6, 0.9, 30)), 0.5)
    assert curve.slope == 0
    assert curve.of(np.array([0.1, 0.9])) == pytest.approx([0.5, 0.5])


@pytest.mark.parametrize("score", [0.5, 0.0])
def test_one_score_for_all(score):
    curve = probability.fit(*judged(np.full(5, score), np.full(5, score)), 0.5)
    assert curve.of(np.array([score])) == pytest.approx([0.5])


scores = st.lists(st.one_of(st.floats(-1e3, 1e3), st.floats(0, 1e-300), st.sampled_from([0.0, 0.5])), max_size=20)


@given(scores, scores, st.floats(0, 0.999))
def test_whatever_scores_give_a_curve(of_landmarks, of_none, share):
    """Also those so near to 0, as a high vote_power makes them, that their squares are 0."""
    curve = probability.fit(*judged(np.array(of_landmarks), np.array(of_none)), share)
    if curve is None:
        assert not of_landmarks
    else:
        assert 0 <= curve.slope < np.inf and np.isfinite(curve.intercept)
        assert np.isfinite(curve.of(np.array(of_landmarks))).all()


def test_verification_may_leave_some_photos_or_none():
    """Of the photos of none a tenth is left: of predictions that are left 10 of 11 are right."""
    (found, _), (truth, _) = judged(np.full(200, 0.5), np.full(200, 0.5))
    assert probability.fit([found[:110]], [truth], 0.5).of(np.array([0.5])) == pytest.approx([10 / 11], abs=0.01)
    assert probability.fit([found[:0]], [truth], 0.5) is None
    assert probability.fit([found[100:]], [truth], 0.0) is None
    assert probability.fit([found[100:]], [truth[100:]], 0.5) is None


VOTERS = pd.DataFrame({"id": [f"t{n}" for n in range(12)], "landmark_id": [1] * 7 + [2] * 2 + [3] + [4] * 2})
THERE = [*VOTERS["id"].drop(4), "n0", "n1", "n2"]


def judged_in(folds) -> dict[str, int]:
    """All that are judged, each once; and nobody votes on itself."""
    truths = [truth for truth, _ in folds]
    assert not any(voters["id"].isin(truth.index).any() for truth, voters in folds)
    assert pd.concat(truths).index.is_unique
    return pd.concat(truths).to_dict()


def test_photos_that_were_not_learnt_are_judged():
    held = ["t0", "t1", "t4", "t7", "t9", "t10", "t11"]
    folds = probability.folds(THERE, VOTERS, held, {"n0", "n2", "gone"}, 100)
    # 3 has one photo: nobody would be left to vote. t4 could not be read.
    shown = {"t0": 1, "t1": 1, "t7": 2, "t10": 4, "t11": 4}
    assert judged_in(folds) == {**shown, "n0": -1, "n2": -1}
    for truth, voters in folds:
        left = set(voters["id"])
        assert left == set(VOTERS["id"]) - {"t4"} - set(truth.index)
        assert set(truth[truth > 0]) <= set(voters["landmark_id"])


def test_without_held_out_photos_all_are():
    folds = probability.folds(THERE, VOTERS, [], {"t0", "n1"}, 100)
    landmarks = VOTERS.set_index("id")["landmark_id"].drop(["t0", "t4", "t9"])
    assert judged_in(folds) == {**landmarks.to_dict(), "t0": -1, "n1": -1}
    assert not any(voters["id"].isin(["t0", "t4"]).any() for _, voters in folds)
    few = pd.concat([truth for truth, _ in probability.folds(THERE, VOTERS, [], {"t0", "n1"}, 5)])
    assert (few > 0).sum() <= 5 and (few < 0).sum() == 2


def test_landmarks_in_turn_are_unknown_where_no_photos_of_none_are_known():
    folds = probability.folds(THERE, VOTERS, [], [], 100)
    for (truth, voters), unknown in zip(folds, (1, 2, 3, 4, None), strict=True):  # the last has t5 alone
        here = VOTERS[VOTERS["id"].isin(THERE)]
        assert set(truth[truth < 0].index) == set(here.loc[here["landmark_id"] == unknown, "id"])
        assert unknown not in set(voters["landmark_id"]) and unknown not in set(truth)
        assert set(truth[truth > 0]) <= set(voters["landmark_id"])
        assert not voters["id"].isin(truth.index).any()
    few = probability.folds(THERE, VOTERS, [], [], 5)
    assert all((truth < 0).sum() <= 1 and (truth > 0).sum() <= 1 for truth, _ in few)
    assert 1 not in set(few[0].voters["landmark_id"])  # photos of it that are not judged would name it


def test_nobody_is_judged_without_voters():
    folds = probability.folds(["t0", "t1"], VOTERS.iloc[:2], [], [], 100)
    assert all(len(voters) and len(truth) for truth, voters in folds)
    assert judged_in(folds) == {"t0": 1, "t1": 1}


def test_a_curve_is_kept_with_what_it_was_made_of(tmp_path):
    path, curve = tmp_path / "calibration.json", Curve(2.5, -1.25, True)
    assert probability.kept("this", path) is None
    probability.keep(curve, "this", path)
    assert probability.kept("this", path) == curve
    assert probability.kept("that", path) is None
    whole = path.read_text()
    for spoilt in ("", whole[:-9], "[]", "[" * 100_000, whole.replace("2.5", "NaN"), whole.replace("-1.25", "1e999"),
                   whole.replace("2.5", '"x"'), whole.replace("2.5", "-1")):  # fmt: skip
        path.write_text(spoilt)
        assert probability.kept("this", path) is None


@pytest.mark.parametrize("verified", [False, True])
def test_photos_are_recognised_by_the_others_and_verified(tmp_path, monkeypatch, verified):
    """Two landmarks of six photos each, known by their direction; photo 5 of the first one is turned to the other."""
    embeddings = np.repeat(np.eye(2), 6, axis=0)
    embeddings[5] = [0.28, 0.96]
    files = {"train": write_features(tmp_path, "train", embeddings)}
    voters = pd.DataFrame({"id": [f"train{n}" for n in range(12)], "landmark_id": np.repeat([3, 4], 6)})
    calls, fitted = [], []

    def verify(sources, sample, found):
        assert sources == files and sorted(load_features(sample).ids) == sorted(found.index)
        calls.extend(found.index)
        return found[found.index != "train5"]

    def fit(found, truth, share):
        fitted.append((pd.concat(found), pd.concat(truth), share))
        return Curve(2.0, 1.0, False)

    monkeypatch.setattr(probability, "fit", fit)
    none, held_out = References({"train11"}, ["train"], set()), set(voters["id"]) - {"train0"}
    monkeypatch.setattr(approximate, "search", pytest.fail)  # it would make lists for each fold
    settings = (
        RunSettings(work=tmp_path, search="ivfpq"),
        RecognitionSettings(non_landmark_share=0.3),
        VerificationSettings(),
    )
    given = *settings, files, voters, held_out, [], none, verify if verified else None
    assert probability.calibrate(*given) == probability.calibrate(*given) == Curve(2.0, 1.0, False)
    judged = sorted(held_out)
    assert sorted(calls) == (judged if verified else [])
    [(found, truth, share)] = fitted  # once: the curve is kept
    assert share == 0.3
    assert truth.to_dict() == {**voters.set_index("id")["landmark_id"].drop("train0"), "train11": -1}
    named = {identity: 3 if identity in ("train1", "train2", "train3", "train4") else 4 for identity in judged}
    score = dict.fromkeys(judged, 1.0) | {"train5": 0.96}
    left = [identity for identity in judged if not (verified and identity == "train5")]
    assert found["landmark"].sort_index().to_dict() == {identity: named[identity] for identity in left}
    assert found["score"].sort_index().to_dict() == pytest.approx({identity: score[identity] for identity in left})
    assert not (tmp_path / "calibration").exists()


def test_where_nobody_can_be_judged_scores_stay(tmp_path, capsys):
    files = {"train": write_features(tmp_path, "train", np.eye(2))}
    voters = pd.DataFrame({"id": ["train0", "train1"], "landmark_id": [3, 4]})
    none = References({"gone"}, ["train"], set())
    given = RunSettings(work=tmp_path), RecognitionSettings(), VerificationSettings(), files, voters, set(), [], none
    assert probability.calibrate(*given, None) is None
    assert "they stay as they are" in capsys.readouterr().out
