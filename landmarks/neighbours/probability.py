"""Scores to probabilities of being right, in the same order: one threshold then serves any mirror, model and setting.

Photos whose truth is known are recognised as the test photos are, by train photos without them. A logistic curve is
fitted to how often a score was right (Platt, "Probabilistic outputs for support vector machines", 1999).
"""

import json
import shutil
from collections.abc import Callable, Collection
from itertools import chain
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd

from landmarks.neighbours import penalty
from landmarks.neighbours.nonlandmarks import References, write_features
from landmarks.running.answer_settings import RecognitionSettings, VerificationSettings
from landmarks.running.digest import digest
from landmarks.running.features_file import ids_in, outline
from landmarks.running.files import whole
from landmarks.running.settings import RunSettings

MOST = 5000  # photos with a landmark, and as many without: of a rate the standard error is 0.7 % at most
MOST_VERIFIED = 1000  # 1.6 %: each takes up to 20 photos' local features
LEAST = 1e-9  # a probability is this far from 0 and 1
FOLDS = 5
STEPS = 100  # of Newton's method, which needs about ten


class Curve(NamedTuple):
    """The probability of being right is 1 / (1 + exp(-(slope x + intercept))), where x is the score or its logarithm.

    The logarithm is for scores that are powers or products, as `vote_power` and `blend` make them. On 1,244 train
    photos and 76 of none (frozen EfficientNet-Lite0) the curve had a cross-validated log loss of 0.121, isotonic
    regression one of 0.118, and 0.127 with its steps joined by lines.
    """

    slope: float
    intercept: float
    logarithm: bool

    def of(self, score: np.ndarray) -> np.ndarray:
        """Probabilities (Q,) float64 of scores (Q,); equal where these are, and strictly in their order.

        What arithmetic would round to the same number differs in the last bits, so GAP is that of the scores. These
        come back as they are if any is not finite: the model is spoilt.
        """
        raw, place = np.unique(score.astype(np.float64), return_inverse=True)
        if not np.isfinite(raw).all():
            return score
        with np.errstate(over="ignore"):  # infinity is as good
            logit = self.slope * _abscissa(raw, self.logarithm) + self.intercept
        probability = _sigmoid(logit)
        bits = np.clip(probability, LEAST, 1 - LEAST).view(np.int64)  # ordered as the numbers, which are positive
        steps = np.arange(len(raw))
        return (np.maximum.accumulate(bits - steps) + steps).view(np.float64)[place]


def fit(found: list[pd.DataFrame], truth: list[pd.Series], share: float) -> Curve | None:
    """The logistic curve from the score of a prediction to how often such predictions are right.

    Where all scores are positive, their logarithm is taken if it fits better. A curve that falls becomes level: the
    scores tell nothing. None if no photo with a landmark is judged, or no prediction is left.

    Args:
        found: `landmark` and `score` of the photos of each fold by id; verification may have left some out.
        truth: the landmark of all of them by id, -1 for none.
        share: what those of none weigh together; the others weigh 1 - `share`. Without any of none these are all.
    """
    judged = pd.concat(truth)
    shown, none = int((judged >= 0).sum()), int((judged < 0).sum())
    predictions = pd.concat(
        [one.assign(truth=theirs.loc[one.index].to_numpy()) for one, theirs in zip(found, truth, strict=True)]
    )
    weight = np.where(predictions["truth"] < 0, share / max(none, 1), (1 - share) / max(shown, 1))
    if not shown or not weight.any():
        return None
    weight = weight / weight.sum()
    score = predictions["score"].to_numpy(np.float64)
    right = (predictions["landmark"] == predictions["truth"]).to_numpy()
    # Platt's targets: one more photo of each kind keeps the slope finite where a threshold parts right from wrong.
    target = np.where(right, (right.sum() + 1) / (right.sum() + 2), 1 / ((~right).sum() + 2))
    fitted = [
        _newton(score, target, weight, logarithm) for logarithm in (False, True) if score.min() > 0 or not logarithm
    ]
    print(
        f"scores are probabilities of being right: by {shown:,} photos with a landmark and {none:,} without, which are "
        f"taken for {share * (none > 0):.1%} of all"
    )
    return min(fitted, key=lambda one: one[0])[1]


def _abscissa(score: np.ndarray, logarithm: bool) -> np.ndarray:
    return np.log(np.maximum(score, np.finfo(np.float64).tiny)) if logarithm else score.astype(np.float64)


def _sigmoid(logit: np.ndarray) -> np.ndarray:
    return np.exp(-np.logaddexp(0, -logit))


def _newton(score: np.ndarray, target: np.ndarray, weight: np.ndarray, logarithm: bool) -> tuple[float, Curve]:
    """The log loss, and the curve that has the least; Newton's method with steps halved until the loss falls."""
    x = _abscissa(score, logarithm)
    # Those that differ by less are as good as equal; the standard deviation of numbers below 1e-162 is 0.
    middle, spread = (np.average(x, weights=weight), np.ptp(x)) if np.ptp(x) > 1e-290 else (x[0], 1.0)
    design = np.stack([(x - middle) / spread, np.ones_like(x)], axis=1)

    def loss(line: np.ndarray) -> float:
        logit = design @ line
        return float(weight @ (np.logaddexp(0, logit) - target * logit))

    base = weight @ target
    level = np.array([0, np.log(base / (1 - base))])
    line = level
    for _ in range(STEPS):
        probability = _sigmoid(design @ line)
        gradient = design.T @ (weight * (probability - target))
        curvature = (design.T * (weight * probability * (1 - probability))) @ design + 1e-12 * np.eye(2)
        step = np.linalg.solve(curvature, gradient)
        while not loss(line - step) <= loss(line) and np.abs(step).max() > 1e-10:
            step /= 2
        line = line - step
        if np.abs(step).max() < 1e-10:
            break
    line = line if line[0] > 0 else level
    slope = line[0] / spread
    return loss(line), Curve(float(slope), float(line[1] - slope * middle), logarithm)


def calibrate(
    run: RunSettings,
    recognition: RecognitionSettings,
    verification: VerificationSettings,
    files: dict[str, list[Path]],
    voters: pd.DataFrame,
    held_out: Collection[str],
    references: list[References],
    none: References | None,
    verify: Callable[[dict[str, list[Path]], Path, pd.DataFrame], pd.DataFrame] | None,
) -> Curve | None:
    """The curve of a run, kept in `calibration.json`; None if no photo tells it.

    Photos whose truth is known are recognised, and verified, as the test photos are, by the other train photos. What is
    found on the way lies in `calibration/` until the curve is there.

    Args:
        files: the features of train, and of the splits that photos of no landmark are in.
        voters, held_out: as `folds` has them.
        references: the photos of no landmark that the penalty takes, weighed.
        none: those that the mirror names.
        verify: takes `files`, a features file of the judged photos and their predictions; gives what is left of these.
    """
    path, folder = run.work / "calibration.json", run.work / "calibration"
    sources = {split: files[split] for split in dict.fromkeys(["train", *(none.splits if none else [])])}
    there, most = list(chain(*sources.values())), MOST_VERIFIED if verify else MOST
    groups = folds(ids_in(there), voters, held_out, none.ids if none else [], most)
    made = made_of(sources, groups, references, recognition, verification)
    curve = kept(made, path)
    if curve is None and groups:
        judged = []  # by fold: a photo may be known in one and unknown in another
        serving = {"references": [file for group in references[-1:] for split in group.splits for file in files[split]]}
        for number, (truth, electors) in enumerate(groups):
            # Exact: each group would have lists of its own, which take longer to make than so few photos to search.
            within = run.model_copy(update={"work": folder / str(number), "search": "exact"})
            sample = within.work / "judged.npz"
            write_features(there, set(truth.index), sample)
            theirs = [group._replace(serve=set(truth.index), splits=["references"]) for group in references[-1:]]
            found = penalty.recognise(recognition, within, {**files, **serving, "test": [sample]}, electors, theirs)
            judged.append(verify(sources, sample, found) if verify else found)
        curve = fit(judged, [truth for truth, _ in groups], recognition.non_landmark_share)
        if curve is not None:
            keep(curve, made, path)
    if curve is None:
        print("there are no train photos to tell how sure scores are: they stay as they are")
    shutil.rmtree(folder, ignore_errors=True)
    return curve


class Fold(NamedTuple):
    """Photos whose truth is known, and those that they are recognised by."""

    truth: pd.Series  # landmark by id, -1 for none
    voters: pd.DataFrame  # `id` and `landmark_id`


def folds(
    there: Collection[str], voters: pd.DataFrame, held_out: Collection[str], none: Collection[str], most: int
) -> list[Fold]:
    """The photos to be judged, at most `most` with a landmark and as many without, in five groups.

    They are train photos that were held out from training or, where there are none, any, as far as others of their
    landmark are left to vote; and photos of no landmark. Where none of these are known, train photos of every fifth
    landmark, another fifth in each group, stand in for them: no photo of it is left to vote.

    Index photos far from every landmark would be too easy. On the index photos of 48 landmarks and of none, by an
    ArcFace model that had not learnt the judged ones, the expected calibration error was 0.120 with the 76 farthest and
    0.033 with photos of unknown landmarks; by a frozen net 0.035 and 0.100.

    Args:
        there: ids of the train photos and those of no landmark that have features.
        voters: `id` and `landmark_id` of the train photos that vote.
        held_out: ids of the train photos that the model has not learnt from.
        none: ids of the photos of no landmark, if any are known.
    """
    photos = voters[voters["id"].isin(there) & ~voters["id"].isin(none)]
    landmark, known_none = photos["landmark_id"], pd.Series(sorted(set(none).intersection(there)), dtype=str)
    candidate = photos["id"].isin(held_out) if len(held_out) else pd.Series(True, photos.index)
    place = candidate.groupby(landmark).cumsum() % FOLDS
    found = []
    for number in range(FOLDS):
        unknown = pd.Series(False, photos.index) if len(none) else landmark.isin(np.unique(landmark)[number::FOLDS])
        shown = photos[candidate & (place == number) & ~unknown]
        judged = _evenly(shown, most // FOLDS)
        left = photos[~unknown & ~photos["id"].isin(judged["id"])]
        judged = judged[judged["landmark_id"].isin(left["landmark_id"])]
        left = photos[~unknown & ~photos["id"].isin(judged["id"])]
        without = _evenly(known_none[number::FOLDS] if len(none) else photos.loc[unknown, "id"], most // FOLDS)
        truth = pd.concat([judged.set_index("id")["landmark_id"], pd.Series(-1, without)])
        if len(left) and len(truth):
            found.append(Fold(truth, left))
    return found


def _evenly(photos: pd.Series, most: int) -> pd.Series:
    return photos.iloc[np.linspace(0, len(photos) - 1, min(most, len(photos))).astype(int)]


def made_of(
    files: dict[str, list[Path]],
    folds: list[Fold],
    references: list[References],
    *settings: RecognitionSettings | VerificationSettings,
) -> str:
    """A digest of all that a curve follows from, but for the model of local features."""
    embeddings = [outline(path).crc32 for paths in files.values() for path in paths]
    parts: list[object] = [embeddings, [(sorted(group.ids), group.weight) for group in references]]
    for truth, voters in folds:
        parts += ["\n".join([*truth.index, *voters["id"]]).encode(), truth.to_numpy(), voters["landmark_id"].to_numpy()]
    return digest(*parts, *(section.model_dump() for section in settings))


def keep(curve: Curve, made_of: str, path: Path) -> None:
    """Write a curve as JSON, with a digest of all that it was made of."""
    with whole(path) as part:
        part.write_text(json.dumps({**curve._asdict(), "made_of": made_of}, indent=2) + "\n")


def kept(made_of: str | None, path: Path) -> Curve | None:
    """The curve in a file, if it was made of the same, or of whatever (None); None if not, or if it is no such file."""
    try:
        found = json.loads(path.read_text())
        curve = Curve(float(found["slope"]), float(found["intercept"]), bool(found["logarithm"]))
        is_one = made_of in (None, found["made_of"]) and 0 <= curve.slope < np.inf and np.isfinite(curve.intercept)
        return curve if is_one else None
    except (OSError, ValueError, KeyError, TypeError, OverflowError, RecursionError):
        return None
