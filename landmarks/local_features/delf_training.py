"""DELF's model from the train photos: its attention, then PCA.

The publication (Noh et al., ICCV 2017) trains in two stages. The first fine-tunes the backbone by classification: that
is what recognition.py does. In the second the features are fixed, and the attention learns to weigh them so that a
softmax tells the landmark from their weighted sum.
"""

import io
import json
import shutil
import zlib
from collections.abc import Iterable, Iterator
from functools import partial
from itertools import islice
from math import ceil
from pathlib import Path

import keras
import numpy as np
import pandas as pd
from keras import layers, ops
from PIL import Image

import model as models
from generators import Batches, shuffled
from landmarks.local_features import delf
from landmarks.local_features.kept import DECODED_AHEAD
from landmarks.local_features.points import SCALES, decode
from landmarks.mirrors import build
from landmarks.mirrors.base import Mirror
from landmarks.mirrors.folder import FolderMirror
from landmarks.mirrors.images import UnreadablePhoto
from landmarks.networks import devices
from landmarks.networks.layers import register, unit
from landmarks.running.answer_settings import VerificationSettings
from landmarks.running.command import InputError, check_stop
from landmarks.running.files import whole
from landmarks.running.progress import Progress
from landmarks.running.settings import ModelSettings, RunSettings, TrainingSettings
from landmarks.running.threads import in_threads
from landmarks.training.run import CHECKPOINTS, Trainer
from landmarks.training.schedule import stream

SETTINGS = ("delf_backbone", "delf_weights", "delf_epochs", "delf_photos")  # that change what is made
DIMENSIONS = 40
POINTS = 1000
PCA_PHOTOS = 100
PHOTOS_EACH = 10  # of a landmark that the attention learns, at least, where there are so many
BATCH_SIZE = 8  # at most: at the largest scale the 8 photos have 8 million pixels


@register
class AttentivePooling(layers.Layer):
    """Features (B, H, W, C), their scores and which of them count, (B, H, W, 1), to (B, C) float32.

    That is the mean of the L2-normalised features, weighted. The publication has the sum; the mean, as in its release,
    does not grow with the photo.
    """

    def call(self, features, scores, inside):
        pooled = ops.sum(unit(features) * scores * inside, axis=(1, 2))
        return pooled / ops.maximum(ops.sum(inside, axis=(1, 2)), 1)


class Levels(Batches):
    """Photos as `delf.extract` sees them, (B, S, S, 4) uint8: of their own shape, at a random scale of the pyramid.

    The fourth channel is 255 in the photo, and 0 where it was filled up to the square. S is the side of a scale that
    holds the whole batch, so that there are seven shapes at most: JAX compiles anew for each. Scale and mirroring
    follow from the ids of a batch, so that a resumed run repeats them.
    """

    def __init__(self, *arguments, flip: bool, **options):
        super().__init__(*arguments, **options)
        self.flip = flip
        self.sides = [ceil(scale * self.size / delf.MULTIPLE) * delf.MULTIPLE for scale in SCALES]

    def __iter__(self) -> Iterator[tuple[list[str], np.ndarray]]:
        photos = in_threads(self._decode, (identity for ids in self.slices for identity in ids), DECODED_AHEAD)
        for ids in self.slices:
            random = np.random.default_rng(zlib.crc32(" ".join(ids).encode()))
            scale, mirrored = random.choice(SCALES), random.random(len(ids)) < self.flip / 2
            decoded = list(islice(photos, len(ids)))
            self.unreadable += [(identity, reason) for identity, reason in decoded if isinstance(reason, str)]
            levels = {
                identity: delf.level(photo[:, ::-1] if mirror else photo, scale)
                for (identity, photo), mirror in zip(decoded, mirrored, strict=True)
                if isinstance(photo, np.ndarray)
            }
            if levels:
                largest = max(max(level.shape) for level in levels.values())
                side = min(side for side in self.sides if side >= largest)
                yield list(levels), np.stack([_fill(level, side) for level in levels.values()])

    def _decode(self, identity: str) -> tuple[str, np.ndarray | str]:
        try:
            return identity, decode(self.shard.read(identity), self.size)
        except (OSError, UnreadablePhoto) as error:
            return identity, str(error)


def _fill(level: np.ndarray, side: int) -> np.ndarray:
    inside = np.zeros((side, side, 1), np.uint8)
    inside[: level.shape[0], : level.shape[1]] = 255
    return np.concatenate([delf.fill(level, side, side), inside], axis=2)


@devices.alone()
def train_delf(
    run: RunSettings,
    model: ModelSettings,
    training: TrainingSettings,
    settings: VerificationSettings,
    mirror: Mirror,
    photos: pd.DataFrame,
    landmarks: np.ndarray,
) -> Path:
    """Make `WORK/delf.keras` unless it is there: features, an attention, and PCA.

    The features are those of `WORK/model.keras`, or of a backbone of their own (`delf_backbone`); while there is no
    model.keras, those of the run's backbone with its first weights. A sample of the train photos, at `local_size`,
    is kept in `WORK/attention/` until DELF is done. On it the attention is trained for `delf_epochs`, from the
    checkpoint there if there is one; with none the norm of the features stands in for it.

    Args:
        photos: `id` and `landmark_id` of the train photos to learn from.
        landmarks: (classes,) the landmark ids to learn, ascending.

    Raises:
        InputError: the model or the checkpoint does not load, or there is a DELF of other settings.
        Stopped: this run is asked to end; a checkpoint is written first.
    """
    path, folder = run.work / delf.FILE, run.work / "attention"
    made_from = {name: getattr(settings, name) for name in SETTINGS}
    note = folder / "made_from.json"
    before = _noted(note)
    if path.exists():
        if before is not None and before != made_from:
            told = _said(before) or f"settings that {note} no longer tells"
            raise InputError(f"{path} was made with {told}, now {_said(made_from)}; delete it to make another")
        return path
    if before != made_from:
        shutil.rmtree(folder, ignore_errors=True)  # what is in it would be gone on with
        with whole(note) as part:
            part.write_text(json.dumps(made_from))

    normalization, features = dense_features(run.work, model, settings, training.seed, len(landmarks))
    photos = photos[photos["landmark_id"].isin(landmarks)]
    count = settings.delf_photos if settings.delf_epochs else PCA_PHOTOS
    place = folder / f"photos-{settings.local_size}"
    sample = draw_sample(mirror, photos, count, settings.local_size, training.seed, place)
    head: keras.Layer = delf.FeatureNorm()
    if settings.delf_epochs:
        stage = training.stage(settings.delf_epochs, schedule="cosine", batch_size=min(training.batch_size, BATCH_SIZE))
        of_photos = model.model_copy(update={"loss": "softmax", "image_size": settings.local_size})
        within = run.model_copy(update={"work": folder})
        head = train_attention(within, of_photos, stage, sample, photos, normalization, features)
    whole_features = delf.build(normalization, features, head)
    mean, axes = principal_axes(_samples(sample, whole_features, settings.local_size), DIMENSIONS)
    models.save(delf.with_pca(whole_features, mean, axes), path)
    for name in CHECKPOINTS:
        (folder / name).unlink(missing_ok=True)
    shutil.rmtree(place)
    return path


def _noted(note: Path) -> dict | None:
    """The settings in a note, none of them if it is damaged; None where there is no note, as of earlier versions."""
    try:
        found = json.loads(note.read_bytes())
        return found if isinstance(found, dict) else {}
    except FileNotFoundError:
        return None
    except (ValueError, RecursionError):
        return {}


def _said(settings: dict) -> str:
    return ", ".join(f"{name} = {value}" for name, value in settings.items())


def dense_features(
    work: Path, model: ModelSettings, settings: VerificationSettings, seed: int = 0, classes: int = 2
) -> tuple[keras.Layer, keras.Model]:
    """The normalisation of photos, and the stride-16 features, that DELF is made of.

    Raises:
        InputError: the model does not load, or the backbone has no such features or its weights cannot be had.
    """
    trained = work / "model.keras"
    if settings.delf_backbone:
        own = {"backbone": settings.delf_backbone, "weights": settings.delf_weights, "pooling": "average"}
        try:
            start = models.build_model(classes, model.model_copy(update=own), seed)
        except InputError as error:
            raise InputError(f"DELF: {error}".replace("--weights", "--delf-weights")) from error
    else:
        start = models.load(trained) if trained.exists() else models.build_model(classes, model, seed)
    backbone = next(layer for layer in start.layers if isinstance(layer, keras.Model))
    return start.get_layer("normalization"), delf.stride_16_features(backbone)


def draw_sample(mirror: Mirror, photos: pd.DataFrame, count: int, size: int, seed: int, folder: Path) -> FolderMirror:
    """At most `count` of `photos`, as many of each landmark as far as there are, as a mirror of small train photos.

    Of very many landmarks the `count` / 10 most frequent are drawn from, and of the mirror's shards only as many, at
    random, as should hold 10 photos of each of these; each is read, and so downloaded, once. A second call goes on
    after the last whole shard.

    Args:
        photos: `id` and `landmark_id`.
        size: of the longer side in pixels; JPEGs of 512 take some 60 KB.
    """
    counts = photos["landmark_id"].value_counts().sort_index().sort_values(ascending=False, kind="stable")
    counts = counts[: max(count // PHOTOS_EACH, 1)]
    each = count // len(counts)
    names = mirror.shard_names("train")
    needed = min(ceil(len(names) * each / counts.iloc[-1]), len(names))
    names = [names[i] for i in shuffled(len(names), seed, 0)[:needed]]
    landmark_of = photos[photos["landmark_id"].isin(counts.index)].set_index("id")["landmark_id"]
    sample = FolderMirror(folder)
    done = [name for name in names if (folder / f"md5sum/train/md5.{name}.txt").exists()]
    taken = pd.Series(0, counts.index)

    def take(ids: list[str]) -> list[str]:
        ids = pd.Index(ids).intersection(landmark_of.index, sort=False)
        landmark = landmark_of[ids]
        chosen = landmark[landmark.groupby(landmark).cumcount() + landmark.map(taken) < each]
        taken[:] += chosen.value_counts().reindex(taken.index, fill_value=0)
        return chosen.index.tolist()

    for shard in sample.stream("train", done):
        take(shard.ids)
    for shard in Progress(mirror.stream("train", names[len(done) :]), "DELF's photos", len(names), len(done)):
        ids = take([shard.ids[i] for i in shuffled(len(shard.ids), seed, 0)])
        load = partial(_small, shard, size)
        build.write_shard(folder, "train", shard.name, list(zip(ids, ids, strict=True)), load)
    return sample


def _small(shard, size: int, identity: str) -> bytes:
    data = io.BytesIO()
    Image.fromarray(decode(shard.read(identity), size)).save(data, "JPEG", quality=90)
    return data.getvalue()


def train_attention(
    run: RunSettings,
    model: ModelSettings,
    training: TrainingSettings,
    sample: Mirror,
    photos: pd.DataFrame,
    normalization: keras.Layer,
    features: keras.Model,
) -> keras.Layer:
    """Train the attention on the sample's train shards; only it and a softmax over its landmarks change."""
    names = sample.shard_names("train")
    ids = [identity for shard in sample.stream("train", names) for identity in shard.ids]
    landmark = photos.set_index("id")["landmark_id"].loc[ids]
    classes = pd.Series(np.unique(landmark, return_inverse=True)[1], index=ids)

    keras.utils.set_random_seed(training.seed)
    shown = keras.Input((None, None, 4), dtype="uint8", name="photos")
    maps = features(normalization(shown[..., :3]), training=False)
    middle = delf.STRIDE // 2  # a cell counts where extraction has it: its centre is in the photo
    inside = ops.cast(shown[:, middle :: delf.STRIDE, middle :: delf.STRIDE, 3:] > 0, "float32")
    pooled = AttentivePooling(dtype="float32")(maps, delf.attention_head()(maps), inside)
    # A random softmax would teach the attention to look elsewhere before it knows a landmark itself: over frozen
    # ImageNet features of 48 real landmarks the loss came down to 1.4 in ten epochs; from zeros it comes down to 0.2.
    softmax = layers.Dense(int(classes.max()) + 1, kernel_initializer="zeros", dtype="float32", name="landmark")
    network = keras.Model(shown, softmax(pooled), name="attention")

    batches = partial(Levels, flip=model.flip)
    trainer = Trainer(run, model, training, classes, training.epochs * len(names), network, batches)
    trainer.train(stream(training, sample, names, classes, len(trainer.history)), lambda _: {})
    return trainer.model.get_layer("attention")


def principal_axes(samples: Iterable[np.ndarray], dimensions: int) -> tuple[np.ndarray, np.ndarray]:
    """PCA of samples (N, C) that come in parts: their mean (C,) and the first axes (C, `dimensions`), float32.

    Only the sums are in memory: 8 MB for 1,024 channels. There are at most C axes.
    """
    count, total, products = 0, 0.0, 0.0
    for part in samples:
        part = part.astype("float64")
        count, total, products = count + len(part), total + part.sum(axis=0), products + part.T @ part
    mean = np.asarray(total / count)
    _, axes = np.linalg.eigh(products / count - np.outer(mean, mean))
    return mean.astype("float32"), axes[:, ::-1][:, :dimensions].astype("float32")


def _samples(sample: Mirror, model: keras.Model, size: int) -> Iterator[np.ndarray]:
    """The best features of the first photos of the sample."""
    ids = ((shard, identity) for shard in sample.stream("train", sample.shard_names("train")) for identity in shard.ids)
    extract = delf.extractor(model, POINTS)
    for shard, identity in Progress(islice(ids, PCA_PHOTOS), "PCA", PCA_PHOTOS, unit=" photos"):
        check_stop()
        yield extract([decode(shard.read(identity), size)])[0].descriptors
