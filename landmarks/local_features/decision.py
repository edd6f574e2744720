"""Do local features say that a photo shows the landmark? Comparisons, and what follows from their inliers."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pandas as pd

from landmarks.local_features.candidates import extractor_folder, features_of, made_of, most_similar
from landmarks.local_features.delf_training import dense_features
from landmarks.local_features.drawing import draw_verified
from landmarks.local_features.extractors import MODEL_FILES, open_extractor
from landmarks.local_features.kept import KeptFeatures
from landmarks.local_features.matching import MATCHING, compare
from landmarks.local_features.points import opencv
from landmarks.local_features.rounds import Candidates, Counts, Row, by_gain, compare_in_rounds
from landmarks.mirrors.base import Mirror
from landmarks.mirrors.folder import FolderMirror
from landmarks.neighbours.search import Neighbours
from landmarks.running.answer_settings import VerificationSettings
from landmarks.running.files import whole
from landmarks.running.progress import Progress
from landmarks.running.settings import ModelSettings, RunSettings

PICTURES = 12  # of verified photos
COLUMNS = ("inliers", "match", "compared")  # of verification.csv, beside the prediction


def decide(found: pd.DataFrame, inliers: pd.Series, rule: str, threshold: int, weight: float = 1.0) -> pd.DataFrame:
    """The predictions, `landmark` and `score` by id, after verification.

    Args:
        inliers: the most that a photo has with any train photo, by id, of the photos that were verified.
        rule: "none" takes the prediction from photos with `threshold` inliers or fewer, as the third published
            solution; "lower" multiplies scores by 1 - `weight` * (1 - min(1, inliers / (2 `threshold`))). From a score
            below 0 it takes as much as it would from one as far above.
        weight: 1 gives the min(70, inliers) / 70 of the third place of 2019 (Ozaki and Yokoo, arXiv 1906.04087) where
            the threshold is 35. On the public half of 2,940 web photos 0.7 gave a GAP of 0.909, 0.904 and 0.902 with
            DELF, XFeat and SIFT; 1 gave 0.907, 0.901 and 0.899, no verification 0.891.

    Photos that were not verified keep their prediction with "none". With "lower" all of them lose as much as one
    without inliers, so that none gets ahead of those that were: where the highest scores were verified, half of all
    photos, that gave a GAP of 0.924 on held-out train photos, and 0.891 with their scores as they were; all verified
    gave 0.927, none 0.923.
    """
    known = inliers.reindex(found.index)
    if rule == "none":
        return found[~(known <= threshold)]
    missing = weight * (1 - np.minimum(known.fillna(0) / (2 * threshold), 1))
    return found.assign(score=found["score"] - missing * found["score"].abs())


def by_inliers(neighbours: Neighbours, counts: np.ndarray, full: int, weight: float = 1.0) -> Neighbours:
    """The best neighbours in the order of similarity + `weight` * min(`full`, inliers) / `full`; the rest stay below.

    Args:
        counts: (Q, N) inliers of each query's first N neighbours.

    Returns:
        The neighbours with these sums as similarities; equal ones stay in their order.
    """
    width = counts.shape[1]
    similarities = neighbours.similarities.copy()
    similarities[:, :width] += weight * np.minimum(counts, full) / full
    order = np.argsort(-similarities, axis=1, kind="stable")
    return neighbours._replace(
        similarities=np.take_along_axis(similarities, order, axis=1),
        positions=np.take_along_axis(neighbours.positions, order, axis=1),
    )


def verify(
    run: RunSettings,
    settings: VerificationSettings,
    mirror: Mirror,
    files: Mapping[str, list[Path]],
    found: pd.DataFrame,
) -> pd.DataFrame:
    """Verify the predictions of the test photos; what was found goes to `verification.csv` in the work folder.

    Its columns are `id`, `landmark` and `score` as predicted, `inliers`, the most of any comparison, `match`, the train
    photo with those, and `compared`, how many there were. Only photos whose decision may change are compared, and
    within `verify_budget`; what that leaves has no row, and keeps its landmark. The photos with the most inliers are
    drawn in `report/verification/`, unless the mirror's shards are downloaded: they are gone by then.

    Args:
        files: features files of the splits test and train.
        found: `landmark` and `score` by id.

    Returns:
        What is left of `found`, as the setting `verify` has it.
    """
    how = MATCHING[settings.extractor]
    model = extractor_folder(run, settings, mirror)  # DELF's training, if that is to be, is no part of the budget
    candidates = most_similar(files["test"], files["train"], found["landmark"], mirror.train(), settings.comparisons)
    may_change = candidates if settings.verify == "none" else found.index[found["score"] != 0]
    asked = [i for i in by_gain(found["score"]) if candidates.get(i) and i in may_change]
    print(f"{len(asked):,} of {len(found):,} predictions may change by verification")
    kept: list[KeptFeatures] = []

    def compare_some(some: Candidates) -> tuple[Candidates, Counts]:
        photos, others, compared = features_of(run, settings, mirror, files, ("test", "train"), some)
        kept[:] = photos, others
        return compared, compare(compared, photos, others, how, largest_threshold(settings))

    rows = compare_in_rounds(
        {i: candidates[i] for i in asked},
        str([made_of(settings, model), how, largest_threshold(settings), settings.local_gigabytes]),
        run.work / "local" / settings.extractor / "compared.csv",
        compare_some,
        settings.verify_budget,
    )
    left = set(asked).difference(rows)
    verified = found.loc[[i for i in candidates if i not in left], ["landmark", "score"]]
    of_none = Row(0, 0, "", 0, 0)
    verified = verified.assign(
        **{name: [getattr(rows.get(i, of_none), name) for i in verified.index] for name in COLUMNS}
    )
    with whole(run.work / "verification.csv") as part:
        verified.to_csv(part, index_label="id")
    confirmed = verified[verified["inliers"] > settings.inliers]
    print(f"{len(confirmed):,} of {len(verified):,} predictions have more than {settings.inliers} inliers")
    if left:
        print(
            f"{len(left):,} of {len(asked):,} predictions that may change keep their unverified decision: "
            "--verify-budget is over; with more of it the same command goes on"
        )
    if isinstance(mirror, FolderMirror):
        photos, others = kept
        there = [i in photos and match in others for i, match in confirmed["match"].items()]  # unless they had to go
        shown = confirmed[np.array(there, bool)].nlargest(PICTURES, "inliers")
        draw_verified(shown, photos, others, mirror, how, settings.local_size, run.work / "report" / "verification")
    return decide(found, verified["inliers"], settings.verify, settings.inliers, settings.inlier_weight)


def rerank(
    run: RunSettings,
    settings: VerificationSettings,
    mirror: Mirror,
    files: Mapping[str, list[Path]],
    neighbours: Neighbours,
    count: int,
) -> Neighbours:
    """The first `count` neighbours of each test photo, by their inliers and their similarity.

    Args:
        files: features files of the splits test and index.
    """
    width = min(count, neighbours.positions.shape[1])
    places = neighbours.positions[:, :width]
    candidates = {
        query: neighbours.index_ids[row[row >= 0]].tolist()
        for query, row in zip(neighbours.query_ids.tolist(), places, strict=True)
    }
    photos, others, compared = features_of(run, settings, mirror, files, ("test", "index"), candidates)
    counting = compare(compared, photos, others, MATCHING[settings.extractor])
    found = dict(Progress(counting, "compare", len(compared), unit=" photos"))
    of_pair = {(q, i): inliers for q, row in found.items() for i, inliers in zip(compared[q], row, strict=True)}
    counts = np.zeros(places.shape, np.int64)
    counts[places >= 0] = [of_pair.get((query, i), 0) for query, row in candidates.items() for i in row]
    return by_inliers(neighbours, counts, full=2 * settings.inliers)


def require(run: RunSettings, model: ModelSettings, settings: VerificationSettings) -> None:
    """Raise InputError unless the extractor of these settings opens, or is a DELF that this run can train."""
    opencv()
    if settings.extractor != "delf" or settings.extractor_model:
        open_extractor(settings.extractor, Path(settings.extractor_model), settings.local_points)
    elif settings.delf_backbone and not (run.folders[0] / MODEL_FILES["delf"]).exists():
        dense_features(run.folders[0], model, settings)  # whose weights can be had


def largest_threshold(settings: VerificationSettings) -> int:
    """Up to how many inliers the counts of a run are sure: comparing stops where more would change nothing."""
    return settings.inliers if settings.verify == "none" else 2 * settings.inliers - 1
