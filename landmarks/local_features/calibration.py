"""Which threshold of inliers suits: precision, recall and GAP of each, by predictions and the truth."""

from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from landmarks.local_features.candidates import features_of, most_similar
from landmarks.local_features.decision import decide, largest_threshold
from landmarks.local_features.matching import MATCHING, compare
from landmarks.mirrors.base import Mirror
from landmarks.neighbours import nonlandmarks
from landmarks.neighbours.search import search
from landmarks.running.answer_settings import VerificationSettings
from landmarks.running.command import InputError
from landmarks.running.features_file import concatenate, load_features, outline, save_features, take
from landmarks.running.progress import Progress
from landmarks.running.settings import RunSettings
from landmarks.scoring import measures

PHOTOS = 1000  # that are held out: of rates among half of them the standard error is 2 % at most
DEPTH = 100  # neighbours among which a photo of another landmark is looked for


def photos_of_no_landmark(mirror: Mirror) -> tuple[list[str], set[str]]:
    """The splits to embed, train first, and the photos that the mirror says show no landmark, if it names any."""
    listed = nonlandmarks.listed(mirror)
    if listed is None:
        return ["train"], set()
    return list(dict.fromkeys(["train", *listed.splits])), listed.ids


def verify_held_out(
    run: RunSettings,
    settings: VerificationSettings,
    mirror: Mirror,
    files: dict[str, list[Path]],
    none: Collection[str],
    seed: int,
) -> pd.DataFrame:
    """`hold_out`, and the most `inliers` of each of these photos with a train photo of its predicted landmark.

    Args:
        files: features files of train, and of the splits with the photos that are known to show no landmark.
        none: their ids.
    """
    train, sample = mirror.train(), run.work / "held_out.npz"
    none_files = [path for split in files if split != "train" for path in files[split]] or files["train"]
    found = hold_out(files["train"], train, PHOTOS, seed, run.index_parts, sample, none_files, none)
    return found.assign(inliers=most_inliers(run, settings, mirror, files, sample, found["landmark"]))


def most_inliers(
    run: RunSettings,
    settings: VerificationSettings,
    mirror: Mirror,
    files: Mapping[str, list[Path]],
    sample: Path,
    landmark: pd.Series,
) -> pd.Series:
    """The most inliers that each photo has with another train photo of its predicted `landmark`, both by id.

    Args:
        files: features files of train, and of the other splits that the photos are in.
        sample: a features file of the photos.
    """
    nearest = most_similar([sample], files["train"], landmark, mirror.train(), settings.comparisons + 1)
    candidates = {i: [other for other in row if other != i][: settings.comparisons] for i, row in nearest.items()}
    counts: dict[str, list[int]] = {}
    for split in files:
        here = set(np.concatenate([outline(path).ids for path in files[split]]).tolist())
        theirs = {identity: row for identity, row in candidates.items() if identity in here}
        photos, gallery, theirs = features_of(run, settings, mirror, files, (split, "train"), theirs)
        compared = compare(theirs, photos, gallery, MATCHING[settings.extractor], largest_threshold(settings))
        counts |= Progress(compared, "compare", len(theirs), unit=" photos")
    return pd.Series({identity: max(counts[identity], default=0) for identity in landmark.index}, dtype="int64")


def verify_known(
    run: RunSettings,
    settings: VerificationSettings,
    mirror: Mirror,
    files: Mapping[str, list[Path]],
    sample: Path,
    found: pd.DataFrame,
) -> pd.DataFrame:
    """Predictions of photos whose truth is known, `landmark` and `score` by id, verified as those of test photos are.

    Args:
        files, sample: as `most_inliers` has them.
    """
    inliers = most_inliers(run, settings, mirror, files, sample, found["landmark"])
    return decide(found, inliers, settings.verify, settings.inliers, settings.inlier_weight)


def hold_out(
    files: list[Path],
    train: pd.DataFrame,
    count: int,
    seed: int,
    parts: int,
    path: Path,
    none_files: Sequence[Path] = (),
    none: Collection[str] = (),
) -> pd.DataFrame:
    """Train photos, spread over the landmarks, and what the nearest other train photo says of them.

    Of one half that is any photo but itself. The other half are photos that show no landmark or, where none are known,
    stand for these: train photos whose nearest one is one of another landmark, as if their own were not known. Left out
    are those whose 100 nearest are all of their own landmark and, in the first half, those of landmarks with one photo.

    Args:
        files: features files of the train photos.
        train: their `id` and `landmark_id`.
        count: how many photos, at most.
        parts: the train photos are searched in so many parts.
        path: where the features of the held-out photos go.
        none_files: features files with the photos that are known to show no landmark, and others.
        none: their ids.

    Returns:
        By id: `landmark` and `score` as predicted, `truth`, the landmark, or -1, and `shown`, whether it was known.

    Raises:
        InputError: no landmark has two train photos, or there is but one landmark.
    """
    landmark_of = train.set_index("id")["landmark_id"]
    ids = np.concatenate([outline(file).ids for file in files])
    ids = ids[~np.isin(ids, list(none))]
    random = np.random.default_rng(seed)
    photos = landmark_of.loc[random.permutation(np.sort(ids))]
    place, size = photos.groupby(photos).cumcount().to_numpy(), photos.groupby(photos).transform("size").to_numpy()
    shown = np.zeros(len(photos), bool)
    shown[np.flatnonzero(size > 1)[::2]] = True
    order = np.argsort(place, kind="stable")  # each landmark's first photo, each one's second, ...
    chosen = np.concatenate([order[shown[order] == half][: count // 2] for half in (True, False)])
    found = pd.DataFrame({"truth": photos.iloc[chosen], "shown": shown[chosen]})

    if len(none):
        known = {identity for file in none_files for identity in outline(file).ids.tolist()}.intersection(none)
        chosen = random.permutation(sorted(known))[: count // 2]
        found = pd.concat([found[found["shown"]], pd.DataFrame({"truth": -1, "shown": False}, index=chosen)])

    wanted, picked = found.index.to_numpy(str), []
    for features in map(load_features, dict.fromkeys([*files, *none_files])):
        picked.append(take(features, np.isin(features.ids, wanted)))
    save_features(path, concatenate(picked))
    neighbours = search([path], files, DEPTH, parts, landmark_of.index)
    found = found.loc[neighbours.query_ids]
    landmarks = landmark_of.loc[neighbours.index_ids].to_numpy()[neighbours.positions]
    own = neighbours.index_ids[neighbours.positions] == neighbours.query_ids[:, None]
    own |= ~found["shown"].to_numpy()[:, None] & (landmarks == found["truth"].to_numpy()[:, None])
    usable = (neighbours.positions >= 0) & ~own
    best = usable.argmax(axis=1)[:, None]
    found["landmark"] = np.take_along_axis(landmarks, best, axis=1)[:, 0]
    found["score"] = np.take_along_axis(neighbours.similarities, best, axis=1)[:, 0]
    found = found[usable.any(axis=1)]
    if not found["shown"].any() or found["shown"].all():
        raise InputError(
            f"of {len(ids):,} train photos none can be held out: there must be two landmarks, and two photos of one"
        )
    return found


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
                "gap": measures.gap(predictions, truth),
            }
        )
    table = pd.DataFrame(rows).set_index("threshold")
    return table, int(table["gap"].idxmax())
