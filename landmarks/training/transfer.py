"""Transfer learning in two stages, the first one: the layers after the backbone learn alone, on its features.

They are random at the start, and their large gradients would spoil a pretrained backbone. Its features never change in
this stage, so they are computed once and kept on disk, a file a shard.

Source: Chollet, "Building powerful image classification models using very little data", The Keras Blog, 2016.
"""

import math
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import keras
import numpy as np
import pandas as pd

import model as models
from generators import Batches
from landmarks.mirrors.base import Mirror
from landmarks.running.command import InputError, check_stop
from landmarks.running.features_file import Features, is_whole, load_features, save_features
from landmarks.running.files import require_space
from landmarks.running.progress import Progress
from landmarks.running.settings import ModelSettings
from landmarks.running.skipped import record_skipped


def folder(work: Path) -> Path:
    """Where this stage works: within the run's own folder."""
    return work / "top"


def divide(settings: ModelSettings, model: keras.Model) -> tuple[keras.Model, keras.Model]:
    """The backbone and the top, which share the layers of `model`.

    They map photos (B, S, S, 3) to `features` (B, h, w, C), and these to the output of `model`.
    """
    features = model.get_layer("pooling" if settings.embedding_size else "embedding").input
    photos = keras.Input((settings.image_size, settings.image_size, 3), dtype=model.input.dtype)
    backbone = keras.Model(photos, {"features": keras.Model(model.input, features)(photos)})
    return backbone, keras.Model(features, model.output, name="top")


def write_features(
    mirror: Mirror,
    names: list[str],
    classes: pd.Series,
    backbone: keras.Model,
    work: Path,
    image_size: int,
    batch_size: int,
) -> None:
    """Write the backbone's features of the photos that have a class to `WORK/top/`, a file for each shard.

    Files that are there and whole stay. The feature map is kept flat, (N, h * w * C) float16: 16 KB a photo for VGG16
    at 128 px. No more than one shard's features are in memory.
    """
    files = {name: folder(work) / f"{name}.npz" for name in names}
    todo = [name for name, path in files.items() if not is_whole(path)]
    size = 2 * len(classes) * len(todo) / len(names) * math.prod(backbone.output["features"].shape[1:])
    require_space(work, size, "the bottleneck features take")
    for shard in Progress(mirror.stream("train", todo), "bottleneck", len(todo), unit=" shards", disable=not todo):
        wanted = [identity for identity in shard.ids if identity in classes.index]
        batches = Batches(shard, wanted, image_size, batch_size)
        save_features(files[shard.name], _of_batches(batches, backbone, shard.name, len(wanted), batch_size))
        record_skipped(work, "train", shard.name, [*shard.refused, *batches.unreadable])
    print(f"bottleneck features of {len(names)} shards, {len(todo)} of them made now")


def _of_batches(batches: Batches, backbone: keras.Model, name: str, count: int, batch_size: int) -> Features:
    features = np.empty((count, np.prod(backbone.output["features"].shape[1:])), "float16")
    ids: list[str] = []
    for some_ids, photos in Progress(batches, name, unit=" batches", leave=False):
        check_stop()
        maps = models.predict(backbone, photos, batch_size)["features"]
        features[len(ids) : len(ids) + len(maps)] = maps.reshape(len(maps), -1)
        ids += some_ids
    return Features(np.array(ids, dtype=str), features[: len(ids)])


class FeatureShards:
    """The features in a folder, in place of a mirror's photos; `shape` is that of one map, (h, w, C)."""

    def __init__(self, folder: Path, shape: tuple[int, int, int]):
        self.folder, self.shape = folder, shape

    def stream(self, split: str, names: list[str]) -> Iterator["FeatureShard"]:
        """As `Mirror.stream`. Raises InputError if a file is damaged."""
        for name in names:
            with closing(FeatureShard(self.folder / f"{name}.npz", self.shape)) as shard:
                yield shard


class FeatureShard:
    """The features of a shard, in memory until it is closed."""

    refused: list[tuple[str, str]] = []

    def __init__(self, path: Path, shape: tuple[int, int, int]):
        self.name, self.shape = path.stem, shape
        try:
            ids, features, *_ = load_features(path)
            self._maps = features.reshape(len(ids), *shape)
        except ValueError as error:
            raise InputError(
                f"bottleneck features {path}: {error}; delete it and run the same command again"
            ) from error
        self.ids = ids.tolist()
        self._rows = {identity: row for row, identity in enumerate(self.ids)}

    def read(self, identity: str) -> bytes:
        """The feature map of a photo, (h, w, C) float16."""
        return self._maps[self._rows[identity]].tobytes()

    def close(self) -> None:
        del self._maps


class FeatureBatches(Batches):
    """Feature maps (B, h, w, C) in place of photos; all of them can be read."""

    def __init__(self, shard: FeatureShard, *arguments, **options):
        super().__init__(shard, *arguments, **options)
        self.shape = shard.shape

    def __iter__(self) -> Iterator[tuple[list[str], np.ndarray]]:
        for ids in self.slices:
            maps = b"".join(map(self.shard.read, ids))
            yield ids, np.frombuffer(maps, np.float16).reshape(len(ids), *self.shape)


def clear(work: Path) -> None:
    """Delete what this stage alone needs, the features and its checkpoint; `training.csv` and the logs stay."""
    for path in [*folder(work).glob("*.npz"), *folder(work).glob("checkpoint*.keras")]:
        path.unlink(missing_ok=True)
