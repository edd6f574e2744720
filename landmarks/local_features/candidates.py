"""Which train photos a photo is compared with, and the local features of all of them, within a bound of disk."""

import hashlib
import shutil
from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from functools import partial
from itertools import chain
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pandas as pd

from landmarks.cluster import tasks
from landmarks.local_features.delf_training import train_delf
from landmarks.local_features.extractors import MODEL_FILES, open_extractor
from landmarks.local_features.kept import KeptFeatures, job, keep_features
from landmarks.mirrors.base import Mirror
from landmarks.running import recipe as recipes
from landmarks.running.answer_settings import VerificationSettings
from landmarks.running.command import InputError, check_stop
from landmarks.running.features_file import load_features
from landmarks.running.files import prepare_folder
from landmarks.running.progress import Progress
from landmarks.running.settings import RunSettings
from landmarks.training.selection import train_photos
from model import load_labels


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
    for features in map(load_features, Progress(train_files, "most similar train photos", unit=" files")):
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


def extractor_folder(run: RunSettings, settings: VerificationSettings, mirror: Mirror) -> Path:
    """The folder of the extractor's model; DELF is trained there, after the run's own model, unless it is done.

    Of several models it is the first one's.
    """
    folder = run.folders[0]
    if settings.extractor_model:
        return Path(settings.extractor_model)
    if settings.extractor == "delf":
        own, landmarks = recipes.of(folder), load_labels(folder / "labels.csv")
        photos = train_photos(own.photos, mirror, folder)
        train_delf(own.run, own.model, own.training, settings, mirror, photos, landmarks)
    return folder


def by_need(candidates: Mapping[str, Sequence[str]]) -> list[str]:
    """The candidates, those first that come first for a photo, and of these the ones that more photos have."""
    place: dict[str, int] = {}
    photos = Counter(chain.from_iterable(candidates.values()))
    for row in candidates.values():
        for number, identity in enumerate(row):
            place[identity] = min(place.get(identity, number), number)
    return sorted(place, key=lambda identity: (place[identity], -photos[identity], identity))


def features_of(
    run: RunSettings,
    settings: VerificationSettings,
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
    model = extractor_folder(run, settings, mirror)
    here, there = (run.work / "local" / settings.extractor / split for split in splits)
    photos = kept_features(
        settings, run.work, model, mirror, splits[0], files[splits[0]], candidates, cluster=run.cluster
    )
    taken = _size(here)
    one = max(taken / max(len(photos), 1), 1)
    beside = taken if here != there else 0
    most = max(0, int((1e9 * settings.local_gigabytes - beside) / one))
    wanted = list(dict.fromkeys([*(candidates if here == there else []), *by_need(candidates)]))
    if candidates and most <= (len(candidates) if here == there else 0):
        raise InputError(
            f"local features of {len(photos):,} {splits[0]} photos take {taken / 1e9:.3g} GB, which leaves no room for "
            f"others in --local-gigabytes {settings.local_gigabytes:g}: give more, or fewer --local-points"
        )
    spare = 1e9 * settings.local_gigabytes - beside - one * min(most, len(wanted))
    for folder in sorted(set((run.work / "local").glob("*/*")) - {here, there}):  # of other extractors and splits
        if not folder.is_dir():  # what has been compared
            continue
        if _size(folder) > spare:
            shutil.rmtree(folder)
        else:
            spare -= _size(folder)
    others = kept_features(settings, run.work, model, mirror, splits[1], files[splits[1]], wanted, most, run.cluster)
    photos = others if here == there else photos  # whose files were written anew
    compared = {identity: [other for other in row if other in others] for identity, row in candidates.items()}
    total, done = (sum(map(len, rows.values())) for rows in (candidates, compared))
    if done < total:
        alone = sum(bool(candidates[identity]) and not row for identity, row in compared.items())
        print(
            f"{total - done:,} of {total:,} comparisons are left out, and {alone:,} photos have none: "
            f"--local-gigabytes {settings.local_gigabytes:g} holds no more"
        )
    return photos, others, compared


def _size(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.glob("*.npz"))


def made_of(settings: VerificationSettings, model: Path) -> dict[str, str | int]:
    """What local features follow from beside the photo: a digest of the extractor's model, and settings."""
    digest = hashlib.md5()
    for path in _model_files(settings, model):
        digest.update(path.read_bytes())
    return {"model": digest.hexdigest(), "size": settings.local_size, "points": settings.local_points}


def _model_files(settings: VerificationSettings, model: Path) -> list[Path]:
    names = MODEL_FILES.get(settings.extractor)
    return [path for path in sorted(model.glob(names)) if path.is_file()] if names else []


def kept_features(
    settings: VerificationSettings,
    work: Path,
    model: Path,
    mirror: Mirror,
    split: str,
    files: list[Path],
    wanted: Collection[str],
    most: int | None = None,
    cluster: str = "",
) -> KeptFeatures:
    """The local features of the wanted photos of a split, at most so many, made now unless they are in the work folder.

    The first of `wanted` are needed most.
    """
    open_it = partial(open_extractor, settings.extractor, model, settings.local_points)
    folder = work / "local" / settings.extractor
    prepare_folder(folder / split, [], **made_of(settings, model))

    def elsewhere(todo: dict[str, list[str]], files: dict[str, Path], add: Callable) -> None:
        parts = _model_files(settings, model)
        data = {path.relative_to(model).as_posix(): np.fromfile(path, np.uint8) for path in parts}
        opener = partial(_open_job, settings.extractor, data, settings.local_points, split, todo, settings.local_size)
        tasks.share(cluster, opener, mirror, split, files, work, f"local features of {split}", add)

    return keep_features(
        open_it, mirror, split, files, list(wanted), folder, settings.local_size, work, most,
        elsewhere if cluster else None,
    )  # fmt: skip


def _open_job(
    extractor: str, model: dict[str, np.ndarray], points: int, split: str, wanted: dict[str, list[str]], size: int
) -> Callable[..., None]:
    """On a node: what makes the file of a shard's local features, by the files of the extractor's model."""
    with TemporaryDirectory() as folder:
        for name, data in model.items():
            path = Path(folder) / name
            path.parent.mkdir(parents=True, exist_ok=True)
            data.tofile(path)
        return partial(job, open_extractor(extractor, Path(folder), points), split, wanted, size)
