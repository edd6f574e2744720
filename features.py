"""Images to embeddings on disk, one file a shard; shards that are done are skipped."""

import json
import zipfile
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from tqdm import tqdm

from command import check_stop
from files import whole
from generators import Batches, record_skipped
from mirror import Mirror
from recipe import selected
from settings import Recipe
from shards import FolderShard, TarShard

if TYPE_CHECKING:
    import keras


class Features(NamedTuple):
    """What the model says of N photos; `landmark` and `score` are None where it has no head."""

    ids: np.ndarray  # (N,) str
    embeddings: np.ndarray  # (N, D) float16, L2-normalised
    landmark: np.ndarray | None = None  # (N,) int64: the predicted landmark id
    score: np.ndarray | None = None  # (N,) float32: its confidence
    top_landmark: np.ndarray | None = None
    top_score: np.ndarray | None = None


def save_features(path: Path, features: Features) -> None:
    """Write one shard's features; the file appears under its name only when it is whole."""
    with whole(path) as part, open(part, "wb") as file:
        np.savez(file, **{name: array for name, array in features._asdict().items() if array is not None})


def load_features(path: Path) -> Features:
    """Read one shard's features. Raises ValueError if the file is damaged (checksums are verified) or not finite."""
    try:
        with open(path, "rb") as file, np.load(file, allow_pickle=False) as arrays:
            features = Features(**{name: arrays[name] for name in arrays.files})
        lengths = {len(array) for array in features if array is not None}
        dimensions = [array.ndim for array in features if array is not None]
        if len(lengths) != 1 or dimensions[:2] != [1, 2] or set(dimensions[2:]) > {1}:
            raise ValueError("its arrays do not match")
        if not np.isfinite(features.embeddings).all():
            raise ValueError("its embeddings are not finite")  # faiss would pass over them in silence
    except FileNotFoundError:
        raise
    except (ValueError, TypeError, KeyError, EOFError, OSError, RuntimeError, zipfile.BadZipFile) as error:
        raise ValueError(f"{path} is not a whole features file: {error}") from error
    return features


def is_whole(path: Path) -> bool:
    """Whether there is a features file that can be read to its end."""
    try:
        return path.exists() and load_features(path) is not None
    except ValueError:
        return False


def take(features: Features, rows: np.ndarray) -> Features:
    """The features of some photos: `rows` is a mask (N,) bool, or their places (n,)."""
    return Features(*(None if array is None else array[rows] for array in features))


class Outline(NamedTuple):
    """What is read of a features file without its embeddings."""

    ids: np.ndarray  # (N,) str
    landmark: np.ndarray | None  # (N,) int64
    dimension: int
    crc32: int  # of the embeddings and their type and shape, as the file states it: who reads them checks it


def outline(path: Path) -> Outline:
    """What a features file holds but for its embeddings. Raises ValueError if that is damaged."""
    try:
        with open(path, "rb") as file, np.load(file, allow_pickle=False) as arrays:
            ids, landmark = arrays["ids"], arrays["landmark"] if "landmark" in arrays.files else None
            with arrays.zip.open("embeddings.npy") as embeddings:
                np.lib.format.read_magic(embeddings)
                (count, dimension), _, _ = np.lib.format.read_array_header_1_0(embeddings)
            crc32 = arrays.zip.getinfo("embeddings.npy").CRC
        if ids.shape != (count,) or (landmark is not None and landmark.shape != (count,)):
            raise ValueError("its arrays do not match")
    except FileNotFoundError:
        raise
    except (ValueError, TypeError, KeyError, EOFError, OSError, RuntimeError, zipfile.BadZipFile) as error:
        raise ValueError(f"{path} is not a whole features file: {error}") from error
    return Outline(ids, landmark, dimension, crc32)


def prepare_folder(folder: Path, sources: list[Path], **settings) -> None:
    """Make `folder` ready for features made from others: files in it that were made otherwise are deleted.

    A note there, `made_from.json`, holds the settings and each source file's name, size and time. So features made from
    those of a model that was trained again do not stay, and no more do those whose sources were copied, which have new
    times.
    """
    stamps = [(path.name, path.stat().st_size, path.stat().st_mtime_ns) for path in sources]
    made_from, note = json.dumps({"settings": settings, "sources": stamps}), folder / "made_from.json"
    if not note.exists() or note.read_text() != made_from:
        for path in folder.glob("*.npz"):
            path.unlink()
        with whole(note) as part:
            part.write_text(made_from)


def embed(model: "keras.Model", landmarks: np.ndarray, recipe: Recipe, mirror: Mirror, split: str) -> list[Path] | None:
    """Write the features of a split's shards to `work/features/SPLIT/`, those that are not there yet.

    Args:
        model: with a head over classes, or without one: then there are only embeddings.
        landmarks: (classes,) the landmark id of each class.

    Returns:
        One file a shard, in the mirror's order; None while some are missing that `recipe.shards` leaves to other runs.
    """
    import model as models  # imports Keras, which a command that only reads features need not wait for

    predictor = models.predictor(model, recipe.mirrored)
    names = mirror.shard_names(split)
    files = {name: recipe.work / "features" / split / f"{name}.npz" for name in names}
    absent = [name for name in names if not is_whole(files[name])]
    todo = [name for name in absent if name in selected(names, recipe.shards)]
    listed = set(mirror.ids(split)) if todo else set()
    for shard in tqdm(mirror.stream(split, todo), f"embed {split}", len(todo), unit=" shards", disable=not todo):
        save_features(files[shard.name], _embed_shard(predictor, landmarks, recipe, split, shard, listed))
    missing = [name for name in absent if name not in todo]
    print(f"{split}: {len(names) - len(missing)} of {len(names)} shards embedded, {len(todo)} of them now")
    if missing:
        print(f"{split}: run again without --shards when the other shards' files are in {files[missing[0]].parent}")
    return None if missing else list(files.values())


def _embed_shard(
    predictor: "keras.Model",
    landmarks: np.ndarray,
    recipe: Recipe,
    split: str,
    shard: TarShard | FolderShard,
    listed: set[str],
) -> Features:
    import model as models

    ids: list[str] = []
    dimension = predictor.output["embedding"].shape[-1]
    outputs = {"embedding": [np.empty((0, dimension))], "landmark": [np.empty(0, "int64")], "score": [np.empty(0)]}
    unlisted = [(photo, f"not in metadata/{split}.csv") for photo in shard.ids if photo not in listed]
    batches = Batches(shard, [photo for photo in shard.ids if photo in listed], recipe.image_size, recipe.batch_size)
    for some_ids, photos in tqdm(batches, shard.name, unit=" batches", leave=False):
        check_stop()
        ids += some_ids
        for name, array in models.predict(predictor, photos, recipe.batch_size).items():
            if name in outputs:
                outputs[name].append(array)
    record_skipped(recipe.work, split, shard, unlisted + batches.unreadable)
    features = Features(np.array(ids, dtype=str), np.concatenate(outputs["embedding"]).astype("float16"))
    if "landmark" not in predictor.output:
        return features
    classes, scores = np.concatenate(outputs["landmark"]), np.concatenate(outputs["score"])
    return features._replace(landmark=landmarks[classes.astype("int64")], score=scores.astype("float32"))
