"""Several models: the embeddings that each has of a photo, side by side, are one longer embedding."""

from collections.abc import Callable
from contextlib import suppress
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NamedTuple

import keras
import numpy as np
import pandas as pd
from keras import ops

import features
import model as models
from features import UNWHITENED
from landmarks.mirrors.base import Mirror
from landmarks.mirrors.images import decode_at
from landmarks.mirrors.shards import Shard, valid_id
from landmarks.networks import export
from landmarks.networks import whitening as whitenings
from landmarks.networks.engines import Compiled
from landmarks.networks.frozen import Frozen
from landmarks.networks.layers import Squash, unit
from landmarks.networks.whitening import Whitening
from landmarks.running import recipe as recipes
from landmarks.running.arrays import SortedIds
from landmarks.running.command import InputError, check_stop
from landmarks.running.digest import digest
from landmarks.running.features_file import (
    Features,
    concatenate,
    is_whole,
    load_features,
    require_finite,
    save_features,
    take,
)
from landmarks.running.files import prepare_folder
from landmarks.running.progress import Progress
from landmarks.running.settings import EmbeddingSettings, RunSettings

WHITENING = "whitening.npz"


class Member(NamedTuple):
    """A trained model, alone or one of several, and how it embeds."""

    folder: Path
    landmarks: np.ndarray  # (classes,) int64
    settings: EmbeddingSettings
    image_size: int
    batch_size: int
    whitening: Whitening | None

    def made_by(self) -> str:
        """A digest of all that embeddings follow from, but for the photo."""
        seen_by = features.seen_by(self.folder, self.landmarks, self.settings, self.image_size)
        return digest(*seen_by, *(self.whitening or ()))

    def remedy(self) -> str:
        return f"delete {self.folder / 'model.keras'} and train it again with --precision float32"


def members(run: RunSettings, settings: EmbeddingSettings) -> list[Member]:
    """The model in the work folder, which embeds with these settings, or several, each with those that its own keeps.

    Raises InputError if a model has learnt none of the first one's landmarks, or its whitening is not there.
    """
    found: list[Member] = []
    for folder in run.folders:
        own = recipes.of(folder)
        landmarks = models.load_labels(folder / "labels.csv")
        if found and not np.isin(landmarks, found[0].landmarks).any():
            raise InputError(f"{folder} and {run.folders[0]} were trained on other landmarks: they have none in common")
        embedding, size = settings if folder == run.work else own.embedding, own.model.image_size
        embedding = embedding.model_copy(update={"engine": settings.engine})
        whitening = None if embedding.whitening == "none" else _whitening(folder, landmarks, embedding, size)
        found.append(Member(folder, landmarks, embedding, size, own.training.batch_size, whitening))
    return found


def embed(
    run: RunSettings, settings: EmbeddingSettings, mirror: Mirror, splits: list[str]
) -> dict[str, list[Path]] | None:
    """The features files of some splits, by the model in the work folder, or by several models side by side.

    The shards are embedded on the cluster `run.cluster`, where there is one.

    The model of `run.work` embeds with these settings; each other one with those that its work folder keeps, into it.
    What several say together goes to `run.work` too: to `together/` where that has a model of its own.

    Returns:
        A file a shard for each split, in the mirror's order; None while some are missing that `run.shards` leaves to
        other runs.

    Raises InputError if a model has learnt none of the first one's landmarks, or its whitening is not there.
    """
    by_model: list[dict[str, list[Path]]] = []
    for one in members(run, settings):
        embed_split = partial(
            features.embed, _predictor(one.folder, one.landmarks, one.settings, one.image_size), one.landmarks, mirror,
            work=one.folder, settings=one.settings, image_size=one.image_size, batch_size=one.batch_size,
            shards=run.shards, whitening=one.whitening, elsewhere=_elsewhere(run.cluster, one),
        )  # fmt: skip
        by_model.append({split: files for split in splits if (files := embed_split(split)) is not None})
    if any(len(files) < len(splits) for files in by_model):
        return None
    if len(by_model) == 1:
        return by_model[0]
    return {split: join([files[split] for files in by_model], _weights(run), run.features / split) for split in splits}


def whiten(work: Path, settings: EmbeddingSettings, mirror: Mirror, photos: pd.DataFrame, cluster: str = "") -> None:
    """Find the whitening of the model in a work folder, `WORK/whitening.npz`, unless it is there.

    It is found from train photos in the first shards, as many as `whitening_photos` says; their embeddings stay in
    `WORK/unwhitened`.

    Args:
        photos: the photos to find it from (`id`, `landmark_id`).
    """
    own = recipes.of(work)
    landmarks, size, path = models.load_labels(work / "labels.csv"), own.model.image_size, work / WHITENING
    labels = photos.set_index("id")["landmark_id"]
    made_from = _whitening_note(work, landmarks, settings, size)
    photos_note = digest("\n".join(labels.index).encode(), labels.to_numpy("int64"))
    with suppress(ValueError, FileNotFoundError):
        if whitenings.load(path)[1] == f"{made_from} {photos_note}":
            return
    shards = mirror.shard_names("train")
    first = max(1, round(len(shards) * min(1, settings.whitening_photos / max(len(mirror.ids("train")), 1))))
    files = features.embed(
        _predictor(work, landmarks, settings, size), landmarks, mirror, "train", work, settings, size,
        own.training.batch_size, folder=UNWHITENED, first=first,
        elsewhere=_elsewhere(cluster, Member(work, landmarks, settings, size, own.training.batch_size, None)),
    )  # fmt: skip
    found = concatenate([load_features(path) for path in files or []])
    found = take(found, np.isin(found.ids, labels.index))
    of_photos = labels[found.ids].to_numpy()
    if len(found.ids) < 2:
        raise InputError(f"--whitening needs two train photos or more, {mirror.name} gave {len(found.ids)}")
    method = settings.whitening
    shrinkage = whitenings.choose_shrinkage(method, found.embeddings, of_photos, settings.dimensions)
    whitening = next(whitenings.fit(method, found.embeddings, of_photos, [shrinkage], settings.dimensions))
    whitenings.save(path, whitening, f"{made_from} {photos_note}")
    print(f"{path}: {method} of {len(found.ids):,} train photos, shrinkage {shrinkage:g}")


def _whitening(work: Path, landmarks: np.ndarray, settings: EmbeddingSettings, image_size: int) -> Whitening:
    path = work / WHITENING
    try:
        whitening, made_from = whitenings.load(path)
    except (ValueError, FileNotFoundError) as error:
        raise InputError(f"{path} is not there, or not whole: run recognition.py --work {work} again") from error
    if made_from.partition(" ")[0] != _whitening_note(work, landmarks, settings, image_size):
        _predictor(work, landmarks, settings, image_size)  # a damaged model is another one too, and says what is wrong
        raise InputError(f"{path} is of another model or other settings: run recognition.py with these first")
    return whitening


def _whitening_note(work: Path, landmarks: np.ndarray, settings: EmbeddingSettings, image_size: int) -> str:
    how = settings.whitening, settings.dimensions, settings.whitening_photos
    return digest(*features.seen_by(work, landmarks, settings, image_size), how)


def _elsewhere(cluster: str, one: Member) -> Callable | None:
    """What `features.embed` takes to embed on a cluster; None without one."""
    if not cluster:
        return None
    from landmarks.cluster import tasks

    def elsewhere(mirror: Mirror, split: str, files: dict[str, Path], work: Path, how: tuple) -> None:
        landmarks, split, listed, *rest = how
        how = landmarks, split, SortedIds(filter(valid_id, listed)), *rest
        model = np.fromfile(one.folder / "model.keras", np.uint8)
        opener = partial(_open, model, one.settings.model_dump(), one.image_size, how)
        tasks.share(cluster, opener, mirror, split, files, work, f"embed {split}")

    return elsewhere


def _open(model: np.ndarray, settings: dict, image_size: int, how: tuple) -> Callable:
    """On a node: what embeds shards, as `features.embed_file` does, by the bytes of the model's file."""
    with TemporaryDirectory() as folder:
        model.tofile(Path(folder) / "model.keras")
        how_to_embed = EmbeddingSettings(**settings)
        predictor = Compiled(_predictor(Path(folder), how[0], how_to_embed, image_size), how_to_embed.engine)
        return partial(features.embed_file, predictor, *how)


def _predictor(folder: Path, landmarks: np.ndarray, settings: EmbeddingSettings, image_size: int) -> keras.Model:
    model = models.load(folder / "model.keras")
    if models.classes(model) not in (0, len(landmarks)):
        raise InputError(
            f"{folder / 'labels.csv'} has {len(landmarks)} landmarks, and the model beside it has learnt "
            f"{models.classes(model)}: bring back a copy, or delete model.keras to train again"
        )
    sizes = [] if settings.scales == [1.0] else settings.sizes(image_size)
    return models.predictor(model, settings.mirrored, sizes, settings.scale_pooling, settings.inner_layers)


class Embedder:
    """The models of a run in memory, which embed one photo after another; no file is written."""

    def __init__(self, run: RunSettings, settings: EmbeddingSettings):
        self.members = members(run, settings)
        self._predictors = [
            Compiled(_predictor(one.folder, one.landmarks, one.settings, one.image_size), settings.engine)
            for one in self.members
        ]
        self._weights = _weights(run)

    def of_shard(self, shard: Shard, split: str, work: Path) -> Features:
        """What `embed` would write of a shard's photos; those that cannot be read are noted in `work/skipped.csv`.

        Raises InputError if an embedding is not finite.
        """
        found = []
        for one, predictor in zip(self.members, self._predictors, strict=True):
            sizes = one.settings.sizes(one.image_size)
            ((_, seen),) = features.embed_shards(
                predictor, one.landmarks, split, [shard], set(shard.ids), work, sizes, one.batch_size
            )
            found.append(features.whitened(seen, one.whitening) if one.whitening else seen)
        return _side_by_side(found, self._weights) if len(found) > 1 else found[0]

    def __call__(self, data: bytes) -> Features:
        """What `embed` would write of an encoded photo, N = 1, without an id.

        Raises:
            UnreadablePhoto: it is none.
            InputError: its embedding is not finite.
        """
        found = []
        for one, predictor in zip(self.members, self._predictors, strict=True):
            photos = [square[None] for square in decode_at(data, one.settings.sizes(one.image_size))]
            outputs = predictor.read([(1, predictor(photos))])
            seen = features.predicted([""], outputs, one.landmarks)
            require_finite(seen, "embedding", one.remedy)
            found.append(features.whitened(seen, one.whitening) if one.whitening else seen)
        return _side_by_side(found, self._weights) if len(found) > 1 else found[0]


def as_one(run: RunSettings, settings: EmbeddingSettings) -> keras.Model:
    """The models of a run as one, in float32, for other programs: a photo (H, W, 3) uint8 to its embedding (D,).

    Input and output have the names of `landmarks.networks.export`. What is left out is the rounding of embeddings to
    float16, and the scaling of a JPEG as it is decoded.

    Raises InputError if a network of another runtime is within, which no converter can take.
    """
    photo = keras.Input(batch_shape=(None, None, 3), dtype="uint8", name=export.INPUT)
    parts = []
    for one, weight in zip(members(run, settings), _weights(run), strict=True):
        model = models.load(one.folder / "model.keras")
        if any(isinstance(layer, Frozen) for layer in model._flatten_layers()):
            raise InputError(f"{one.folder} has a network of another runtime, which cannot be exported")
        model = export.as_float32(model)
        headless = keras.Model(model.input, model.get_layer("embedding").output)  # heads may be most of the weights
        sizes = one.settings.sizes(one.image_size)
        how = one.settings.mirrored, sizes, one.settings.scale_pooling, one.settings.inner_layers
        predictor = models.predictor(headless, *how)
        embedding = predictor([Squash(size)(photo) for size in sizes])["embedding"]
        if one.whitening:
            mean, projection = one.whitening
            whiten = keras.layers.Dense(projection.shape[1], dtype="float32")  # weights are written once, constants not
            embedding = unit(whiten(embedding))
            whiten.set_weights([projection, -mean @ projection])
        parts.append(weight * embedding)
    descriptor = unit(ops.concatenate(parts, axis=-1))
    return keras.Model(photo, {export.OUTPUT: ops.reshape(descriptor, (-1,))})


def _weights(run: RunSettings) -> list[float]:
    return run.model_weights or [1.0] * len(run.folders)


def join(files: list[list[Path]], weights: list[float], folder: Path) -> list[Path]:
    """Write features files with the embeddings of several models side by side, of photos that all models could read.

    Each embedding is L2-normalised and multiplied by its model's weight w, the whole is L2-normalised again: so two
    photos have the similarity sum(w**2 s) / sum(w**2), where s are those that the models see. There is no head. Files
    that are there already stay, unless they were made from others or with other weights.

    Args:
        files: of each model, a file a shard, in the same order.
        folder: where the new files go, under their old names.
    """
    prepare_folder(folder, [path for of_model in files for path in of_model], weights=weights)
    written = []
    for paths in Progress(list(zip(*files, strict=True)), f"join into {folder}", unit=" shards"):
        check_stop()
        written.append(folder / paths[0].name)
        if not is_whole(written[-1]):
            save_features(written[-1], _side_by_side([load_features(path) for path in paths], weights))
    return written


def _side_by_side(parts: list[Features], weights: list[float]) -> Features:
    ids = parts[0].ids
    for part in parts[1:]:
        ids = ids[np.isin(ids, part.ids)]
    rows = [pd.Index(part.ids).get_indexer(ids) for part in parts]
    embeddings = [
        weight * _unit(part.embeddings[some].astype(np.float32))
        for part, some, weight in zip(parts, rows, weights, strict=True)
    ]
    return Features(ids, _unit(np.concatenate(embeddings, axis=1)).astype(np.float16))


def _unit(embeddings: np.ndarray) -> np.ndarray:
    return embeddings / np.maximum(np.linalg.norm(embeddings, axis=1, keepdims=True), np.finfo(np.float32).tiny)
