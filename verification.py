"""Does the photo really show the landmark? Its local features and those of train photos decide.

    python verification.py match A.jpg B.jpg --out matches.png [--extractor sift]
    python verification.py calibrate WORK

A test photo is compared with train photos of its predicted landmark, the most similar first, until one has more inliers
than the threshold: then it shows the landmark, else none. The third published solution compares with 20 at most, and
its threshold is 35 inliers of DELF.

`match` draws the inliers of two photos. `calibrate` tells what each threshold would give with the model and settings of
a WORK folder, and which has the best GAP: on train photos, each held out, and as many that show no landmark, where the
mirror lists some in metadata/non_landmarks.csv; else these are train photos whose landmark is taken for unknown. No
solution is read. It ends with the threshold at which a run stops to compare; for more give the run more `--inliers`.
"""

import argparse
import hashlib
import math
import shutil
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from functools import partial
from itertools import chain
from pathlib import Path

import numpy as np
import pandas as pd
from tqdm import tqdm

import command
import nonlandmarks
import recipe as recipes
from calibration import calibrate, hold_out
from command import InputError, check_stop
from drawing import draw_matches, draw_verified
from features import load_features, outline, prepare_folder
from files import whole
from generators import in_threads
from images import UnreadablePhoto
from local_features import (
    EXTRACTORS,
    MODEL_FILES,
    SMALLEST_SIDE,
    KeptFeatures,
    LocalFeatures,
    decode,
    keep_features,
    open_extractor,
    opencv,
)
from matching import MATCHING, Matching, inliers
from mirror import FolderMirror, Mirror, open_mirror
from search import Neighbours
from selection import train_photos
from settings import Recipe

AHEAD = 64  # photos whose results may wait for that of a slower one
PICTURES = 12  # of verified photos
PHOTOS = 1000  # that calibrate takes: of rates among half of them the standard error is 2 % at most


def most_similar(
    files: list[Path], train_files: list[Path], landmark: pd.Series, train: pd.DataFrame, count: int
) -> dict[str, list[str]]:
    """The train photos of each photo's predicted landmark, most similar first, at most `count`, by id.

    All photos of the landmark take part, not only those that a search has found. Memory: the embeddings of the
    predicted photos, as stored, and one file of the train photos.

    Args:
        files: features files of the predicted photos.
        landmark: their predicted landmarks by id; photos without one are left out.
        train: `id` and `landmark_id` of the train photos.
    """
    landmark_of = train.set_index("id")["landmark_id"]
    parts = [load_features(path) for path in files]
    rows = [np.isin(part.ids, landmark.index.to_numpy(str)) for part in parts]
    ids = np.concatenate([part.ids[those] for part, those in zip(parts, rows, strict=True)])
    embeddings = np.concatenate([part.embeddings[those] for part, those in zip(parts, rows, strict=True)])
    predicted = landmark.loc[ids].to_numpy()
    rows_of = pd.Series(predicted).groupby(predicted).indices
    similarities = np.full((len(ids), count), -np.inf, np.float32)
    positions = np.full((len(ids), count), -1, np.int64)
    train_ids: list[str] = []
    for features in map(load_features, tqdm(train_files, "most similar train photos", unit=" files")):
        check_stop()
        shown = landmark_of.loc[features.ids].to_numpy()
        for shown_landmark, columns in pd.Series(shown).groupby(shown).indices.items():
            if shown_landmark not in rows_of:
                continue
            rows = rows_of[shown_landmark]
            found = embeddings[rows].astype(np.float32) @ features.embeddings[columns].astype(np.float32).T
            found = np.hstack([similarities[rows], found])
            places = np.hstack([positions[rows], np.broadcast_to(len(train_ids) + columns, (len(rows), len(columns)))])
            order = np.argsort(-found, axis=1, kind="stable")[:, :count]
            similarities[rows] = np.take_along_axis(found, order, axis=1)
            positions[rows] = np.take_along_axis(places, order, axis=1)
        train_ids += features.ids.tolist()
    return {
        identity: [train_ids[place] for place in row[row >= 0]]
        for identity, row in zip(ids.tolist(), positions, strict=True)
    }


def compare(
    candidates: Mapping[str, Sequence[str]],
    photos: Mapping[str, LocalFeatures],
    others: Mapping[str, LocalFeatures],
    how: Matching,
    enough: float = math.inf,
) -> dict[str, list[int]]:
    """How many inliers each photo has with its candidates, in their order, up to the first with more than `enough`.

    Photos are shared out among the cores in threads, each with one thread of BLAS: its own ones would get into each
    other's way, 14 ms a pair against 2.

    Args:
        candidates: ids in `others`, by id in `photos`.

    Raises:
        InputError: OpenCV or threadpoolctl is not installed.
        Stopped: the process was asked to end.
    """
    opencv()
    from threadpoolctl import threadpool_limits

    def count(identity: str) -> list[int]:
        photo, counts = photos[identity], []
        for candidate in candidates[identity]:
            check_stop()
            counts.append(len(inliers(photo, others[candidate], how)))
            if counts[-1] > enough:
                break
        return counts

    with threadpool_limits(1, "blas"):
        counts = in_threads(count, candidates, AHEAD)
        return dict(zip(candidates, tqdm(counts, "compare", len(candidates), unit=" photos"), strict=True))


def decide(found: pd.DataFrame, inliers: pd.Series, rule: str, threshold: int, weight: float = 1.0) -> pd.DataFrame:
    """The predictions, `landmark` and `score` by id, after verification.

    Args:
        inliers: the most that a photo has with any train photo, by id.
        rule: "none" takes the prediction from photos with `threshold` inliers or fewer, as the third published
            solution; "lower" multiplies scores by 1 - `weight` * (1 - min(1, inliers / (2 `threshold`))). From a score
            below 0 it takes as much as it would from one as far above.
        weight: 1 gives the min(70, inliers) / 70 of the third place of 2019 (Ozaki and Yokoo, arXiv 1906.04087) where
            the threshold is 35. On the public half of 2,940 web photos 0.7 gave a GAP of 0.909, 0.904 and 0.902 with
            DELF, XFeat and SIFT; 1 gave 0.907, 0.901 and 0.899, no verification 0.891.
    """
    if rule == "none":
        return found[inliers.loc[found.index] > threshold]
    missing = weight * (1 - np.minimum(inliers.loc[found.index] / (2 * threshold), 1))
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


def verify(recipe: Recipe, mirror: Mirror, files: Mapping[str, list[Path]], found: pd.DataFrame) -> pd.DataFrame:
    """Verify the predictions of the test photos; what was found goes to `verification.csv` in the work folder.

    Its columns are `id`, `landmark` and `score` as predicted, `inliers`, the most of any comparison, `match`, the train
    photo with those, and `compared`, how many there were. The photos with the most inliers are drawn in
    `report/verification/`, unless the mirror's shards are downloaded: they are gone by then.

    Args:
        files: features files of the splits test and train.
        found: `landmark` and `score` by id.

    Returns:
        What is left of `found`, as the setting `verify` has it.
    """
    how = MATCHING[recipe.extractor]
    candidates = most_similar(files["test"], files["train"], found["landmark"], mirror.train(), recipe.comparisons)
    photos, others, candidates = features_of(recipe, mirror, files, ("test", "train"), candidates)
    counts = compare(candidates, photos, others, how, largest_threshold(recipe))
    verified = found.loc[list(counts), ["landmark", "score"]].assign(
        inliers=[max(row, default=0) for row in counts.values()],
        match=[candidates[i][int(np.argmax(row))] if row else "" for i, row in counts.items()],
        compared=list(map(len, counts.values())),
    )
    with whole(recipe.work / "verification.csv") as part:
        verified.to_csv(part, index_label="id")
    confirmed = verified[verified["inliers"] > recipe.inliers]
    print(f"{len(confirmed):,} of {len(verified):,} predictions have more than {recipe.inliers} inliers")
    if isinstance(mirror, FolderMirror):
        shown = confirmed.nlargest(PICTURES, "inliers")
        draw_verified(shown, photos, others, mirror, how, recipe.local_size, recipe.work / "report" / "verification")
    return decide(found, verified["inliers"], recipe.verify, recipe.inliers, recipe.inlier_weight)


def rerank(recipe: Recipe, mirror: Mirror, files: Mapping[str, list[Path]], neighbours: Neighbours) -> Neighbours:
    """The first `recipe.rerank_inliers` neighbours of each test photo, by their inliers and their similarity."""
    width = min(recipe.rerank_inliers, neighbours.positions.shape[1])
    places = neighbours.positions[:, :width]
    candidates = {
        query: neighbours.index_ids[row[row >= 0]].tolist()
        for query, row in zip(neighbours.query_ids.tolist(), places, strict=True)
    }
    photos, others, compared = features_of(recipe, mirror, files, ("test", "index"), candidates)
    found = compare(compared, photos, others, MATCHING[recipe.extractor])
    of_pair = {(q, i): count for q, row in found.items() for i, count in zip(compared[q], row, strict=True)}
    counts = np.zeros(places.shape, np.int64)
    counts[places >= 0] = [of_pair.get((query, i), 0) for query, row in candidates.items() for i in row]
    return by_inliers(neighbours, counts, full=2 * recipe.inliers)


def require(recipe: Recipe) -> None:
    """Raise InputError unless the extractor of these settings opens, or is a DELF that this run can train."""
    opencv()
    if recipe.extractor != "delf" or recipe.extractor_model:
        open_extractor(recipe.extractor, Path(recipe.extractor_model), recipe.local_points)
    elif recipe.delf_backbone and not (recipe.folders[0] / MODEL_FILES["delf"]).exists():
        import delf_training  # imports Keras

        delf_training.dense_features(recipe)  # whose weights can be had


def extractor_folder(recipe: Recipe, mirror: Mirror) -> Path:
    """The folder of the extractor's model; DELF is trained there, after the recipe's own model, unless it is done."""
    if recipe.extractor_model:
        return Path(recipe.extractor_model)
    if recipe.extractor == "delf":
        import delf_training  # imports Keras
        from model import load_labels

        own = recipe
        if recipe.models:  # of several the first one's
            changed = {name: getattr(recipe, name) for name in (*delf_training.SETTINGS, "local_size")}
            own = recipes.of(recipe.folders[0]).model_copy(update=changed)
        landmarks = load_labels(own.work / "labels.csv")
        delf_training.train_delf(own, mirror, train_photos(own, mirror), landmarks)
    return recipe.folders[0]


def by_need(candidates: Mapping[str, Sequence[str]]) -> list[str]:
    """The candidates, those first that come first for a photo, and of these the ones that more photos have."""
    place, photos = {}, Counter(chain.from_iterable(candidates.values()))
    for row in candidates.values():
        for number, identity in enumerate(row):
            place[identity] = min(place.get(identity, number), number)
    return sorted(place, key=lambda identity: (place[identity], -photos[identity], identity))


def features_of(
    recipe: Recipe,
    mirror: Mirror,
    files: Mapping[str, list[Path]],
    splits: tuple[str, str],
    candidates: Mapping[str, Sequence[str]],
) -> tuple[KeptFeatures, KeptFeatures, dict[str, list[str]]]:
    """The local features of photos of one split, those of their candidates of another, and the candidates with any.

    On disk they stay within `local_gigabytes`. All photos have theirs, so it is the candidates that are left out, the
    least needed ones first; before them those of earlier runs that this one does not need.

    Raises:
        InputError: the extractor does not open, or there is no room beside the features of the photos.
    """
    model = extractor_folder(recipe, mirror)
    here, there = (recipe.work / "local" / recipe.extractor / split for split in splits)
    photos = kept_features(recipe, mirror, model, splits[0], files[splits[0]], candidates)
    taken = _size(here)
    one = max(taken / max(len(photos), 1), 1)
    beside = taken if here != there else 0
    most = int((1e9 * recipe.local_gigabytes - beside) / one)
    wanted = list(dict.fromkeys([*(candidates if here == there else []), *by_need(candidates)]))
    if candidates and most <= (len(candidates) if here == there else 0):
        raise InputError(
            f"local features of {len(photos):,} {splits[0]} photos take {taken / 1e9:.3g} GB, which leaves no room for "
            f"others in --local-gigabytes {recipe.local_gigabytes:g}: give more, or fewer --local-points"
        )
    spare = 1e9 * recipe.local_gigabytes - beside - one * min(most, len(wanted))
    for folder in sorted(set((recipe.work / "local").glob("*/*")) - {here, there}):  # of other extractors and splits
        if _size(folder) > spare:
            shutil.rmtree(folder)
        else:
            spare -= _size(folder)
    others = kept_features(recipe, mirror, model, splits[1], files[splits[1]], wanted, most)
    photos = others if here == there else photos  # whose files were written anew
    compared = {identity: [other for other in row if other in others] for identity, row in candidates.items()}
    total, done = (sum(map(len, rows.values())) for rows in (candidates, compared))
    if done < total:
        alone = sum(bool(candidates[identity]) and not row for identity, row in compared.items())
        print(
            f"{total - done:,} of {total:,} comparisons are left out, and {alone:,} photos have none: "
            f"--local-gigabytes {recipe.local_gigabytes:g} holds no more"
        )
    return photos, others, compared


def _size(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.glob("*.npz"))


def kept_features(
    recipe: Recipe,
    mirror: Mirror,
    model: Path,
    split: str,
    files: list[Path],
    wanted: Collection[str],
    most: int | None = None,
) -> KeptFeatures:
    """The local features of the wanted photos of a split, at most so many, made now unless they are in the work folder.

    The first of `wanted` are needed most.
    """
    open_it = partial(open_extractor, recipe.extractor, model, recipe.local_points)
    folder = recipe.work / "local" / recipe.extractor
    digest = hashlib.md5()
    made_of = MODEL_FILES.get(recipe.extractor)
    for path in sorted(model.glob(made_of)) if made_of else []:
        digest.update(path.read_bytes() if path.is_file() else b"")
    prepare_folder(folder / split, [], model=digest.hexdigest(), size=recipe.local_size, points=recipe.local_points)
    return keep_features(open_it, mirror, split, files, list(wanted), folder, recipe.local_size, recipe.work, most)


def largest_threshold(recipe: Recipe) -> int:
    """Up to how many inliers the counts of a run are sure: comparing stops where more would change nothing."""
    return recipe.inliers if recipe.verify == "none" else 2 * recipe.inliers - 1


def match_files(a: Path, b: Path, out: Path, extractor: str, model: Path | None, size: int, points: int) -> None:
    """Print how many inliers two photos have and draw them; the arguments are those of the command."""
    if size < SMALLEST_SIDE or points < 2:
        raise InputError(f"--size {size} --points {points}: give at least {SMALLEST_SIDE} pixels and 2 points")
    extract = open_extractor(extractor, model, points)
    photos = [_read_photo(path, size) for path in (a, b)]
    found = [extract(photo) for photo in photos]
    rows = inliers(*found, MATCHING[extractor])
    picture = draw_matches(*photos, found[0].points[rows[:, 0]], found[1].points[rows[:, 1]])
    try:
        with whole(out) as part:
            picture.save(part)
    except ValueError as error:  # Pillow goes by the suffix
        raise InputError(f"{out} cannot be written: {error}; give a name like matches.png") from error
    print(f"{len(rows)} inliers")


def _read_photo(path: Path, size: int) -> np.ndarray:
    try:
        photo = decode(path.read_bytes(), size)
    except (OSError, UnreadablePhoto) as error:
        raise InputError(f"photo {path} cannot be read: {error}") from error
    if min(photo.shape[:2]) < SMALLEST_SIDE:
        raise InputError(f"photo {path} is too small: at --size {size} no side may be under {SMALLEST_SIDE} pixels")
    return photo


def calibrate_run(work: Path) -> None:
    """Print what each threshold would give to train photos that are held out, by the model in a work folder."""
    recipe = recipes.load(["--work", str(work)])
    for folder in recipe.folders:
        recipes.of(folder)  # there is a trained model
    require(recipe)
    mirror = open_mirror(recipe.mirror, recipe.work / "mirror", recipe.ahead, recipe.strict_md5, recipe.seed)
    command.prepare_backend()
    import ensemble  # imports Keras

    splits, none = ["train"], set()
    if mirror.path(nonlandmarks.LISTED):
        (group,) = nonlandmarks.references("auto", mirror)
        splits, none = list(dict.fromkeys(["train", *group.splits])), group.ids or set()
    files, train, sample = ensemble.embed(recipe, mirror, splits), mirror.train(), recipe.work / "held_out.npz"
    none_files = [path for split in splits[1:] or splits for path in files[split]]
    found = hold_out(files["train"], train, PHOTOS, recipe.seed, recipe.index_parts, sample, none_files, none)
    nearest = most_similar([sample], files["train"], found["landmark"], train, recipe.comparisons + 1)
    candidates = {i: [other for other in row if other != i][: recipe.comparisons] for i, row in nearest.items()}
    counts: dict[str, list[int]] = {}
    for split in splits:
        here = set(np.concatenate([outline(path).ids for path in files[split]]).tolist())
        theirs = {identity: row for identity, row in candidates.items() if identity in here}
        photos, others, theirs = features_of(recipe, mirror, files, (split, "train"), theirs)
        counts |= compare(theirs, photos, others, MATCHING[recipe.extractor], largest_threshold(recipe))
    verified = found.assign(inliers=[max(counts[identity], default=0) for identity in found.index])
    truth = {row.Index: [row.truth] if row.shown else [] for row in found.itertuples()}
    table, best = calibrate(verified, truth, largest_threshold(recipe))
    print(table.to_string(float_format="{:.4f}".format))
    shown = int(found["shown"].sum())
    others = "that show no landmark" if none else "whose landmark was left out"
    print(f"{shown:,} held-out train photos, and {len(found) - shown:,} {others}")
    print(f"best GAP: --inliers {best}" if best >= 0 else "best GAP: --verify off")


def main() -> None:
    parser = command.Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    matching = commands.add_parser("match", help="draw the inliers of two photos")
    matching.add_argument("a", type=Path)
    matching.add_argument("b", type=Path)
    matching.add_argument("--out", type=Path, required=True, help="the picture to write, like matches.png")
    matching.add_argument("--extractor", choices=list(EXTRACTORS), default="sift")
    matching.add_argument("--model", type=Path, help="folder of the SavedModel, or of the trained DELF")
    matching.add_argument("--size", type=int, default=512, help="pixels of a photo's longer side (default 512)")
    matching.add_argument("--points", type=int, default=1000, help="of a photo at most (default 1000)")
    calibrating = commands.add_parser("calibrate", help="precision, recall and GAP by the threshold of inliers")
    calibrating.add_argument("work", type=Path, help="a work folder with a trained model")
    arguments = vars(parser.parse_args())
    {"match": match_files, "calibrate": calibrate_run}[arguments.pop("command")](**arguments)


if __name__ == "__main__":
    command.run(main)
